/**
 * The emulator's stream of server-sent events, kept open over restarts of the server.
 *
 * The browser reconnects by itself with Last-Event-ID, but gives up for good at an answer that is not a stream, such as
 * one from another program that took the port for a moment. Then a new connection is made here.
 */

const RETRY_AFTER = 1000;

/**
 * @param {{state: function(string): void, hello: function(object): void, batch: function(object, number): void,
 *   reset: function(): void}} receiver told of each change; `state` is "connected" or "reconnecting", and a batch comes
 *   with its size in characters.
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
