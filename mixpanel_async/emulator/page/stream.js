/**
 * The emulator's stream of server-sent events, reopened after restarts of the server.
 *
 * The browser reconnects automatically with Last-Event-ID, but stops at a response that is not a stream, such as one
 * from another program that used the port for a moment. In that case, this module opens a new connection.
 */

const RETRY_AFTER = 1000;

/**
 * @param {{state: function(string): void, hello: function(object): void, batch: function(object, number): void,
 *   reset: function(): void}} receiver called for each change. `state` is "connected" or "reconnecting". `batch` gets the
 *   size of the batch in characters.
 */
export function listen(receiver) {
  const source = new EventSource("/_emulator/stream");
  source.addEventListener("open", () => receiver.state("connected"));
  source.addEventListener("error", () => {
    receiver.state("reconnecting");
    if (source.readyState === EventSource.CLOSED) setTimeout(() => listen(receiver), RETRY_AFTER);
  });
  source.addEventListener("hello", (message) => receiver.hello(JSON.parse(message.data)));
  source.addEventListener("batch", (message) => receiver.batch(JSON.parse(message.data), message.data.length));
  source.addEventListener("reset", () => receiver.reset());
}
