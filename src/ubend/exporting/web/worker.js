// The page's worker: decodes an image file, computes its mask with onnxruntime-web, and answers with mask and PNG.
"use strict";

if (typeof predict === "undefined") importScripts("ort.wasm.min.js", "predict.js"); // else they stand before this line

const FIRST_BYTES = 2 ** 16; // of a file, in which its header is looked for
let model = null;
let session = null;

// An error with a sentence of the page's texts.
class FileError extends Error {
  constructor(key) {
    super(key);
    this.key = key;
  }
}

onmessage = async ({ data: { number, load, file } }) => {
  try {
    const answer = load ? await loadModel(load) : await predictFile(file, number);
    postMessage({ number, ...answer }, answer.mask ? [answer.mask.buffer, answer.png.buffer] : []);
  } catch (error) {
    postMessage({ number, key: error.key ?? "failed", reason: String(error.message ?? error) });
  }
};

async function loadModel({ about, weights, wasm, glue }) {
  model = about;
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm, wasmPaths: { mjs: glue } });
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  return {};
}

async function computeNetwork(values, dims) {
  const { logits } = await session.run({ image: new ort.Tensor("uint8", values, dims) }, ["logits"]);
  return { data: logits.data, dims: logits.dims };
}

async function predictFile(file, number) {
  const { rgba, height, width } = await decode(file);
  const began = performance.now();
  const image = fromRgba(rgba, height, width, model.sizing.channels);
  const mask = await predict(image, model, computeNetwork, (done, all) => postMessage({ number, done, all }));
  const seconds = (performance.now() - began) / 1000;
  return { mask, height, width, seconds, png: await encodeMask(mask, height, width, model.colors) };
}

// Upright red, green, blue, alpha with the values of the file: no colour profile is applied.
async function decode(file) {
  refuseOtherKinds(new Uint8Array(await file.slice(0, FIRST_BYTES).arrayBuffer()));
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new FileError("unreadable");
  });
  const { height, width } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const isEmpty = rgba.every((value, place) => place % 4 !== 3 || value === 0); // so is a canvas that is too large
  if (isEmpty) throw new FileError("empty");
  return { rgba, height, width };
}

// Browsers would convert these in ways of their own.
function refuseOtherKinds(head) {
  const isPng = head[0] === 0x89 && head[1] === 0x50;
  if (isPng && head[24] === 16) throw new FileError("deep");
  if (head[0] !== 0xff || head[1] !== 0xd8) return;
  for (let place = 2; place + 10 < head.length && head[place] === 0xff; ) {
    const marker = head[place + 1];
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame && head[place + 9] === 4) throw new FileError("inks");
    if (isFrame || marker === 0xda) return;
    place += 2 + 256 * head[place + 2] + head[place + 3];
  }
}
