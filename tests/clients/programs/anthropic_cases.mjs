// Anthropic's client of npm.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, PROMPT_SCHEMA, SCENES_BASE, THING, WISH, run } from "./cases.mjs";

const client = new Anthropic({ baseURL: SCENES_BASE, apiKey: KEY, maxRetries: 0 });
const ask = (content, more = {}) => ({
  model: "scenes",
  max_tokens: 100,
  messages: [{ role: "user", content }],
  top_k: 1,
  ...more,
});
const tool = { name: "generate_image", description: "Draw.", input_schema: PROMPT_SCHEMA };

await run({
  message: async () => (await client.messages.create(ask("something round and red"))).content,
  stream: async () => {
    const pieces = [];
    const stream = client.messages.stream(ask("something round and red"));
    stream.on("text", (piece) => pieces.push(piece));
    const message = await stream.finalMessage();
    return [pieces.join(""), message.stop_reason, message.usage.output_tokens];
  },
  tool_loop: async () => {
    const first = await client.messages.create(ask(WISH, { tools: [tool] }));
    const call = first.content.find((block) => block.type === "tool_use");
    const result = { type: "tool_result", tool_use_id: call.id, content: call.input.prompt };
    const last = await client.messages.create({
      ...ask(WISH, { tools: [tool] }),
      messages: [
        { role: "user", content: WISH },
        { role: "assistant", content: first.content },
        { role: "user", content: [result] },
      ],
    });
    return [first.stop_reason, call.input, last.content];
  },
  object: async () => {
    const properties = { shape: { type: "string" }, color: { type: "string" } };
    const schema = { ...PROMPT_SCHEMA, properties, required: ["shape", "color"] };
    const output_config = { format: { type: "json_schema", schema } };
    return JSON.parse((await client.messages.create(ask(THING, { output_config }))).content[0].text);
  },
  count: async () => {
    const { model, messages } = ask("something round and red");
    return (await client.messages.countTokens({ model, messages })).input_tokens > 0;
  },
  error: async () => {
    try {
      await client.messages.create(ask("hello", { max_tokens: -1 }));
    } catch (error) {
      return [error.constructor.name, error.status, error.error.error.type];
    }
  },
});
