/** Server-sent events out of a response whose body arrives in pieces. `EventSource` cannot send a body or a key. */

/**
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>} the data of each event
 */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder(); // keeps the beginning of a character that a piece ends in
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that has failed, which its reader was told already
  }
}
