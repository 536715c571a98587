// OpenAI's client of npm.
import OpenAI, { toFile } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { KEY, PROMPT_SCHEMA, SCENES, SHAPES, THING, WISH, picture, run, sizeOf } from "./cases.mjs";

const text = new OpenAI({ baseURL: SCENES, apiKey: KEY, maxRetries: 0 });
const images = new OpenAI({ baseURL: SHAPES, apiKey: KEY, maxRetries: 0 }).images;
const ask = (content, more = {}) => ({
  model: "scenes",
  messages: [{ role: "user", content }],
  temperature: 0,
  ...more,
});
const draw = (run) => ({
  type: "function",
  function: {
    name: "generate_image",
    description: "Draw a picture.",
    parameters: PROMPT_SCHEMA,
    ...run,
  },
});
const decoded = (answer) => sizeOf(Buffer.from(answer.data[0].b64_json, "base64"));

await run({
  models: async () => (await text.models.list()).data.map((model) => model.id),
  chat: async () =>
    (await text.chat.completions.create(ask("something round and red"))).choices[0].message.content,
  stream: async () => {
    const stream = text.chat.completions.stream(ask("something round and red"));
    return await stream.finalContent();
  },
  tool_loop: async () => {
    const drawn = [];
    const call = ({ prompt }) => (drawn.push(prompt), prompt);
    const runner = text.chat.completions.runTools(
      ask(WISH, { tools: [draw({ function: call, parse: JSON.parse })] }),
    );
    return [await runner.finalContent(), drawn];
  },
  structured: async () => {
    const thing = z.object({ shape: z.string(), color: z.string() });
    const wanted = ask(THING, { response_format: zodResponseFormat(thing, "thing") });
    return (await text.chat.completions.parse(wanted)).choices[0].message.parsed;
  },
  embeddings: async () => {
    const answer = await text.embeddings.create({ model: "scenes", input: ["a star", "a circle"] });
    return answer.data.map((entry) => entry.embedding.length);
  },
  generate: async () =>
    decoded(await images.generate({ model: "shapes", prompt: "a star", size: "1024x1024" })),
  generate_stream: async () => {
    const wanted = { model: "shapes", prompt: "a star", stream: true, partial_images: 1 };
    const kinds = [];
    for await (const event of await images.generate(wanted)) kinds.push(event.type);
    return kinds;
  },
  edit: async () => {
    const image = await toFile(picture(), "in.png", { type: "image/png" });
    const wanted = { model: "shapes", image: [image], prompt: "a star", input_fidelity: "high" };
    return decoded(await images.edit(wanted));
  },
  error: async () => {
    try {
      await text.chat.completions.create(ask("hello", { max_completion_tokens: -1 }));
    } catch (error) {
      return [error.constructor.name, error.status, error.param];
    }
  },
});
