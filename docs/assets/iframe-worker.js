// Search in pages that are opened as files. Browsers start no worker from file://, so a hidden frame runs its script.
(() => {
  if (location.protocol !== "file:") return;

  window.Worker = class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.onmessageerror = null;
      this.onerror = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const scope = this.frame.contentWindow;
      // The script sends its answers with the postMessage of its own scope.
      scope.postMessage = (data) => this.report("message", { data });
      const script = scope.document.createElement("script");
      script.src = new URL(url, document.baseURI);
      this.ready = new Promise((resolve) => {
        script.onload = resolve;
        script.onerror = () => this.report("error", {});
      });
      scope.document.head.append(script);
    }

    postMessage(data) {
      const scope = this.frame.contentWindow;
      this.ready.then(() => scope.dispatchEvent(new scope.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }

    report(type, init) {
      const event = new MessageEvent(type, init);
      this[`on${type}`]?.(event);
      this.dispatchEvent(event);
    }
  };
})();
