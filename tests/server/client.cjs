// OpenAI's own client for JavaScript against the server at the address that is given; prints what it got as JSON.
const OpenAI = require("openai");

async function main() {
  const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
  const asked = { model: "tales", seed: 3, max_tokens: 12 };
  const models = (await client.models.list()).data.map((model) => model.id);
  const whole = (await client.completions.create({ prompt: "The king", ...asked })).choices[0].text;
  let streamed = "";
  const messages = [{ role: "user", content: "Tell me of the sea." }];
  const reply = (await client.chat.completions.create({ messages, ...asked })).choices[0].message.content;
  for await (const chunk of await client.chat.completions.create({ messages, stream: true, ...asked })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
  }
  const vector = (await client.embeddings.create({ model: "tales", input: "The fox" })).data[0].embedding;
  const refused = await client.completions.create({ prompt: "x", ...asked, temperature: -1 }).catch((error) => error);
  const error = { status: refused.status, param: refused.param };
  console.log(JSON.stringify({ models, whole, reply, streamed, vector, error }));
}

main();
