// The cases of one npm client: each is a function, and all run in one process. Prints what each
// gave, or how it failed, by its name.
import { deflateSync } from "node:zlib";

export const SHAPES = `${process.env.SHAPES_URL}/v1`;
export const SCENES_BASE = process.env.SCENES_URL;
export const SCENES = `${SCENES_BASE}/v1`;
export const KEY = "none";

export const WISH = "Please draw a red circle above a blue square.";
export const THING = "A red circle. Answer as JSON with the keys shape and color.";
export const PROMPT_SCHEMA = {
  type: "object",
  properties: { prompt: { type: "string" } },
  required: ["prompt"],
  additionalProperties: false,
};

/** Width and height of a PNG. */
export function sizeOf(bytes) {
  const png = Buffer.from(bytes);
  if (png.readUInt32BE(0) !== 0x89504e47) throw new Error("not a PNG");
  return [png.readUInt32BE(16), png.readUInt32BE(20)];
}

/** A grey PNG, without a library for pictures. */
export function picture(width = 120, height = 90) {
  const chunk = (kind, data) => {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const ends = [Buffer.alloc(4), Buffer.alloc(4)];
    ends[0].writeUInt32BE(data.length);
    ends[1].writeUInt32BE(crc32(body));
    return Buffer.concat([ends[0], body, ends[1]]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const row = Buffer.concat([Buffer.from([0]), Buffer.alloc(3 * width, 0x80)]);
  const rows = deflateSync(Buffer.concat(Array(height).fill(row)));
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([
    signature,
    chunk("IHDR", header),
    chunk("IDAT", rows),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

/** PNG's checksum; zlib has it from node 20.15 on only. */
function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** Run the cases in order and print one JSON object. */
export async function run(cases) {
  const told = {};
  for (const [name, work] of Object.entries(cases)) {
    try {
      told[name] = { gave: await work() };
    } catch (error) {
      told[name] = { failed: `${error.stack}\n${error.responseBody ?? ""}` };
    }
  }
  console.log(JSON.stringify(told));
}
