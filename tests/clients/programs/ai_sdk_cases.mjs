// The AI SDK, through its provider for servers that speak OpenAI's protocol, and through the one
// for OpenAI itself, whose default model asks /v1/responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  embedMany,
  experimental_generateImage as generateImage,
  generateObject,
  generateText,
  jsonSchema,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";
import { KEY, PROMPT_SCHEMA, SCENES, SHAPES, THING, WISH, picture, run, sizeOf } from "./cases.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const options = { apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true };
const scenes = createOpenAICompatible({ name: "atelier", baseURL: SCENES, ...options });
const shapes = createOpenAICompatible({ name: "atelier", baseURL: SHAPES, ...options });
const model = scenes("scenes");
const answering = createOpenAI({ apiKey: KEY, baseURL: SCENES })("scenes");
const greedy = { model, temperature: 0, maxRetries: 0 };
const thing = z.object({ shape: z.string(), color: z.string() });
const pictured = (answer) => answer.images.map((image) => sizeOf(image.uint8Array));

const drawing = async (wanted) => {
  const drawn = [];
  const generate_image = tool({
    description: "Draw a picture.",
    inputSchema: jsonSchema(PROMPT_SCHEMA),
    execute: async ({ prompt }) => (drawn.push(prompt), prompt),
  });
  const told = { ...greedy, ...wanted, prompt: WISH, tools: { generate_image } };
  const answer = await generateText({ ...told, stopWhen: stepCountIs(2) });
  return [answer.text, drawn];
};

await run({
  text: async () => {
    const answer = await generateText({ ...greedy, prompt: "something round and red" });
    return [answer.text, answer.usage.outputTokens, answer.finishReason];
  },
  stream: async () => {
    const pieces = [];
    const answer = streamText({ ...greedy, prompt: "something round and red" });
    for await (const piece of answer.textStream) pieces.push(piece);
    return [pieces.join(""), (await answer.usage).outputTokens];
  },
  tool_loop: () => drawing({}),
  object: async () => (await generateObject({ ...greedy, schema: thing, prompt: THING })).object,
  object_stream: async () => {
    const answer = streamObject({ ...greedy, schema: thing, prompt: THING });
    let grown = 0;
    for await (const _ of answer.partialObjectStream) grown++;
    return [await answer.object, grown > 1];
  },
  response: async () => {
    const wanted = { ...greedy, model: answering, prompt: "something round and red" };
    const answer = await generateText(wanted);
    return [answer.text, answer.usage.outputTokens, answer.finishReason];
  },
  response_stream: async () => {
    const pieces = [];
    const wanted = { ...greedy, model: answering, prompt: "something round and red" };
    const answer = streamText(wanted);
    for await (const piece of answer.textStream) pieces.push(piece);
    return [pieces.join(""), (await answer.usage).outputTokens];
  },
  response_tool_loop: () => drawing({ model: answering }),
  response_tool_loop_by_items: () =>
    drawing({ model: answering, providerOptions: { openai: { store: false } } }),
  response_object: async () => {
    const wanted = { ...greedy, model: answering, schema: thing, prompt: THING };
    return (await generateObject(wanted)).object;
  },
  completion: async () => {
    const plain = scenes.completionModel("scenes");
    const wanted = { ...greedy, model: plain, prompt: "a red circle", maxOutputTokens: 4 };
    return (await generateText(wanted)).usage.outputTokens;
  },
  embeddings: async () => {
    const values = ["a red circle", "a blue square"];
    const answer = await embedMany({ model: scenes.embeddingModel("scenes"), values });
    return answer.embeddings.map((vector) => vector.length);
  },
  image: async () => {
    const wanted = { model: shapes.imageModel("shapes"), prompt: "a star", maxRetries: 0 };
    return pictured(await generateImage({ ...wanted, size: "1024x1024", n: 2 }));
  },
  edit: async () => {
    const wanted = { model: shapes.imageModel("shapes"), maxRetries: 0 };
    const prompt = { text: "a star", images: [picture()] };
    return pictured(await generateImage({ ...wanted, prompt }));
  },
});
