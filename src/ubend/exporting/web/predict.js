// Predicts the mask of an image with an exported model: size, resizing, tiles, classes. For the page's worker and Node.
//
// The values are those of ubend's Python modules, to the last bit of a float: portable/images.py (size), resize.py,
// tiling.py and model.py, where the sources are named. Only the network itself, computed by `run`, may round otherwise.
//
// An image is { data, height, width, channels }: a Uint8Array of height * width * channels values, row by row.
// `model` is the page's model.json. `run(values, dims)` computes the network: a Uint8Array of dims (1, channels,
// height, width) -> a promise of { data, dims }: a Float32Array of the logits, (1, classes, height, width).
"use strict";

const INVALID = 255; // class index of pixels without an image, such as transparent ones
const MOST_BITS = 22; // of the fraction of a whole-number weight
const SIGMA = 1 / 8; // of a tile's side: the standard deviation of its weights

// A promise of the mask: a Uint8Array of height * width class indices. `progress(done, all)` is called between tiles.
async function predict(image, model, run, progress = () => {}) {
  const mask = new Uint8Array(image.height * image.width);
  if (model.tiles.px) {
    await predictTiles(image, model, run, progress, mask);
  } else {
    const [height, width] = modelSize(image.height, image.width, model.sizing);
    const small = resizePixels(image, height, width);
    const logits = await computeLogits(small, model, run, 0);
    writeClasses(logits, image.height, image.width, mask, 0);
  }
  if (image.invalid) image.invalid.forEach((invalid, place) => invalid && (mask[place] = INVALID));
  return mask;
}

// { data, classes, height, width } of an image at the model's size; `margin` px on each side have no logits.
async function computeLogits(image, model, run, margin) {
  const { data, dims } = await run(toPlanes(image), [1, image.channels, image.height, image.width]);
  const [, classes, height, width] = dims.map(Number);
  const expected = [model.names.length, image.height - 2 * margin, image.width - 2 * margin];
  if (String([classes, height, width]) !== String(expected)) throw new Error("the model gave logits of another shape");
  if (!data.every(Number.isFinite)) throw new Error("the model's logits are not finite");
  return { data, classes, height, width };
}

// Row-by-row pixels -> one plane of values for each channel.
function toPlanes({ data, height, width, channels }) {
  const planes = new Uint8Array(data.length);
  const pixels = height * width;
  for (let channel = 0; channel < channels; channel++) {
    for (let place = 0; place < pixels; place++) planes[channel * pixels + place] = data[place * channels + channel];
  }
  return planes;
}

// Resizes logits to (height, width) and writes the largest class of each pixel, the first of equal ones, to `mask`.
function writeClasses(logits, height, width, mask, offset) {
  const { classes } = logits;
  let { data, height: lines } = logits;
  if (width === 1) { // ubend transposes a single column
    data = resizeAxis(data, classes, lines, logits.width, height, sumFloats);
    lines = height;
  }
  data = resizeAxis(data, classes * lines, logits.width, 1, width, sumFloats);
  for (let row = 0; row < height; row++) {
    const values = resizeAxis(data, classes, lines, width, height, sumFloats, row, row + 1);
    for (let column = 0; column < width; column++) {
      let best = 0;
      for (let index = 1; index < classes; index++) {
        if (values[index * width + column] > values[best * width + column]) best = index;
      }
      mask[offset + row * width + column] = best;
    }
  }
}

// ---- Size and resizing --------------------------------------------------------------------------------------------

// [height, width] at which the network takes an image: the area of a square of size_px with the image's aspect.
function modelSize(height, width, { size_px: size, keep_aspect: keepAspect }) {
  if (size === null) return [height, width];
  if (!keepAspect) return [size, size];
  const factor = size / Math.sqrt(height * width);
  return [height, width].map((side) => Math.max(1, roundHalfEven(side * factor)));
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

// Bilinear, antialiased when shrinking, as torch does with uint8: first along the columns, then along the rows.
function resizePixels(image, height, width) {
  const { channels } = image;
  if (image.height === height && image.width === width) return image;
  if (width > 1) {
    const columns = resizeAxis(image.data, image.height, image.width, channels, width, sumBytes);
    const data = resizeAxis(columns, 1, image.height, width * channels, height, sumBytes);
    return { data, height, width, channels };
  }
  const values = Float32Array.from(image.data);
  const rows = resizeAxis(values, 1, image.height, image.width * channels, height, sumFloats);
  const floats = resizeAxis(rows, height, image.width, channels, 1, sumFloats);
  return { data: Uint8Array.from(floats, roundHalfEven), height, width, channels };
}

// Resizes the middle one of three axes (before, side, after) to `size`; only the results `from` to `to` along it.
function resizeAxis(data, before, side, after, size, sum, from = 0, to = size) {
  if (side === size) {
    if (to - from === size) return data;
    const kept = new data.constructor(before * (to - from) * after);
    for (let outer = 0; outer < before; outer++) {
      const start = (outer * side + from) * after;
      kept.set(data.subarray(start, start + (to - from) * after), outer * (to - from) * after);
    }
    return kept;
  }
  const out = new data.constructor(before * (to - from) * after);
  sum(data, before, side, after, size, from, to, out);
  return out;
}

// Weights of 16 bits, rounded once.
function sumBytes(data, before, side, after, size, from, to, out) {
  const { first, length, weights, taps, bits } = findWholeWeights(side, size);
  const half = 1 << (bits - 1);
  let place = 0;
  for (let outer = 0; outer < before; outer++) {
    for (let index = from; index < to; index++) {
      const start = (outer * side + first[index]) * after;
      for (let inner = 0; inner < after; inner++) {
        let total = half;
        for (let tap = 0; tap < length[index]; tap++) {
          total += data[start + tap * after + inner] * weights[index * taps + tap];
        }
        out[place++] = Math.min(255, Math.max(0, total >> bits));
      }
    }
  }
}

// In float32, with the roundings of torch's loop: the first product is rounded, and so are the next ones in whole groups
// of four, each before it is added; the others are multiplied and added with one rounding.
function sumFloats(data, before, side, after, size, from, to, out) {
  const { first, length, weights, taps } = findTaps(side, size, Math.fround);
  let place = 0;
  for (let outer = 0; outer < before; outer++) {
    for (let index = from; index < to; index++) {
      const start = (outer * side + first[index]) * after;
      const rounded = 1 + Math.trunc((length[index] - 1) / 4) * 4;
      for (let inner = 0; inner < after; inner++) {
        let total = Math.fround(data[start + inner] * weights[index * taps]);
        for (let tap = 1; tap < length[index]; tap++) {
          const product = data[start + tap * after + inner] * weights[index * taps + tap];
          total = Math.fround(total + (tap < rounded ? Math.fround(product) : product));
        }
        out[place++] = total;
      }
    }
  }
}

const keptTaps = new Map(); // of the last sizes

function keep(key, make) {
  if (!keptTaps.has(key)) {
    if (keptTaps.size > 64) keptTaps.clear();
    keptTaps.set(key, make());
  }
  return keptTaps.get(key);
}

// Weights as multiples of 2 ** -bits; the largest one has 15 bits.
function findWholeWeights(side, size) {
  return keep(`whole ${side} ${size}`, () => {
    const found = findTaps(side, size, Number);
    const largest = found.weights.reduce((most, weight) => Math.max(most, weight), 0);
    let bits = 0;
    while (bits < MOST_BITS && Math.trunc(0.5 + largest * (1 << (bits + 1))) < 1 << 15) bits++;
    return { ...found, bits, weights: Int32Array.from(found.weights, (weight) => 0.5 + weight * (1 << bits)) };
  });
}

// For each of `size` results along a side: its first value, how many there are, and their weights, a triangle as wide
// as the scale. `round` is the type that torch computes them in: Math.fround for float32, Number for float64.
function findTaps(side, size, round) {
  return keep(`${round.name} ${side} ${size}`, () => {
    const scale = round(side / size);
    const support = Math.max(scale, 1);
    const inverse = round(1 / support);
    const taps = Math.ceil(Math.fround(support)) * 2 + 1;
    const [first, length] = [new Int32Array(size), new Int32Array(size)];
    const weights = new Float64Array(size * taps);
    for (let index = 0; index < size; index++) {
      const center = round(scale * (index + 0.5));
      first[index] = Math.max(Math.trunc(round(center - support) + 0.5), 0);
      const last = Math.min(Math.trunc(round(center + support) + 0.5), side);
      length[index] = Math.min(Math.max(last - first[index], 0), taps);
      let total = 0;
      for (let tap = 0; tap < length[index]; tap++) {
        const away = round((round(first[index] + tap - center) + 0.5) * inverse);
        weights[index * taps + tap] = Math.max(round(1 - Math.abs(away)), 0);
        total = round(total + weights[index * taps + tap]);
      }
      for (let tap = 0; tap < length[index]; tap++) {
        weights[index * taps + tap] = round(weights[index * taps + tap] / total);
      }
    }
    return { first, length, weights, taps };
  });
}

// ---- Tiles --------------------------------------------------------------------------------------------------------

// Tiles from left to right and from top to bottom; only one row of them is in memory.
async function predictTiles(image, model, run, progress, mask) {
  const { margin } = model.tiles;
  const classes = model.names.length;
  const rows = planAxis(image.height, model.tiles);
  const columns = planAxis(image.width, model.tiles);
  const width = columns.starts.at(-1) + columns.tile;
  const plane = rows.tile * width;
  let sums = new Float32Array(classes * plane);
  const count = rows.starts.length * columns.starts.length;
  for (const [row, top] of rows.starts.entries()) {
    for (const [column, left] of columns.starts.entries()) {
      progress(row * columns.starts.length + column, count);
      const tile = cutTile(image, inputPlaces(rows, top, margin), inputPlaces(columns, left, margin));
      addTile(sums, plane, width, left, await computeLogits(tile, model, run, margin), rows.weights[row], columns.weights[column]);
    }
    const end = row + 1 < rows.starts.length ? rows.starts[row + 1] : image.height; // later tiles cover what is below
    const done = end - top;
    const logits = new Float32Array(classes * done * image.width);
    const rest = new Float32Array(classes * plane);
    for (let index = 0; index < classes; index++) {
      for (let line = 0; line < done; line++) {
        const start = index * plane + line * width;
        logits.set(sums.subarray(start, start + image.width), (index * done + line) * image.width);
      }
      rest.set(sums.subarray(index * plane + done * width, (index + 1) * plane), index * plane);
    }
    writeClasses({ data: logits, classes, height: done, width: image.width }, done, image.width, mask, top * image.width);
    sums = rest;
  }
  progress(count, count);
}

// Adds logits times their weights, rounded to float32 as NumPy does.
function addTile(sums, plane, width, left, logits, rowWeights, columnWeights) {
  let place = 0;
  for (let index = 0; index < logits.classes; index++) {
    for (let row = 0; row < logits.height; row++) {
      const start = index * plane + row * width + left;
      for (let column = 0; column < logits.width; column++) {
        const weight = Math.fround(rowWeights[row] * columnWeights[column]);
        sums[start + column] += Math.fround(logits.data[place++] * weight);
      }
    }
  }
}

// The tiles along one axis: side of a tile, first pixel and weights of each.
function planAxis(side, { px, overlap, multiple, margin, edge_px: edge }) {
  const roundUp = (value) => Math.ceil(value / multiple) * multiple;
  const most = Math.max(multiple, roundUp(px - edge));
  const padded = roundUp(Math.max(0, side - edge));
  const tile = Math.min(padded, most) + edge;
  const room = (padded + edge - tile) / multiple; // for the first pixel of a tile, in steps of `multiple`
  const step = Math.max(1, Math.floor(((1 - (margin ? 0 : overlap)) * tile) / multiple));
  const gaps = Math.ceil(room / step);
  const starts = Array.from({ length: gaps + 1 }, (_value, index) =>
    margin ? Math.min(step * index, room) : Math.floor((room * index) / Math.max(1, gaps))
  ).map((place) => place * multiple);
  return { side, tile, starts, weights: margin ? weighFirst(starts, tile) : weighGaussian(starts, tile) };
}

// Towards the border of the image, the outermost tile has weight 1 before the sum of all weights becomes 1.
function weighGaussian(starts, tile) {
  const total = new Float64Array(starts.at(-1) + tile);
  const bells = starts.map((start, number) => {
    const bell = Float64Array.from({ length: tile }, (_value, place) => {
      if (number === 0 && place < Math.floor(tile / 2)) return 1;
      if (number === starts.length - 1 && place >= Math.floor((tile + 1) / 2)) return 1;
      return Math.exp(-0.5 * (((place + 0.5) / tile - 0.5) / SIGMA) ** 2);
    });
    bell.forEach((weight, place) => (total[start + place] += weight));
    return bell;
  });
  return bells.map((bell, number) => Float32Array.from(bell, (weight, place) => weight / total[starts[number] + place]));
}

// 1 for the first tile that covers a pixel, otherwise 0.
function weighFirst(starts, tile) {
  return starts.map((start, number) => {
    const covered = number ? Math.max(0, starts[number - 1] + tile - start) : 0;
    return new Float32Array(tile).fill(1, covered);
  });
}

// Pixels that a tile reads: beyond its border the image is mirrored.
function inputPlaces({ side, tile }, start, margin) {
  const thereAndBack = Math.max(1, 2 * (side - 1));
  return Array.from({ length: tile + 2 * margin }, (_value, index) => {
    const place = (((start - margin + index) % thereAndBack) + thereAndBack) % thereAndBack;
    return Math.min(place, thereAndBack - place, side - 1);
  });
}

function cutTile({ data, width, channels }, rows, columns) {
  const out = new Uint8Array(rows.length * columns.length * channels);
  let place = 0;
  for (const row of rows) {
    for (const column of columns) {
      const start = (row * width + column) * channels;
      for (let channel = 0; channel < channels; channel++) out[place++] = data[start + channel];
    }
  }
  return { data: out, height: rows.length, width: columns.length, channels };
}

// ---- Pixels in, files out -----------------------------------------------------------------------------------------

// An image for `predict` from red, green, blue, alpha; pixels of alpha 0 are invalid, and get the mean of the others.
function fromRgba(rgba, height, width, channels) {
  const pixels = height * width;
  const data = new Uint8Array(pixels * channels);
  const invalid = new Uint8Array(pixels);
  for (let place = 0; place < pixels; place++) {
    const [red, green, blue] = [rgba[4 * place], rgba[4 * place + 1], rgba[4 * place + 2]];
    if (channels === 1) {
      data[place] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16; // ITU-R 601 luma, as Pillow computes it
    } else {
      data[3 * place] = red;
      data[3 * place + 1] = green;
      data[3 * place + 2] = blue;
    }
    if (rgba[4 * place + 3] === 0) invalid[place] = 1;
  }
  if (!invalid.includes(1)) return { data, height, width, channels };
  fillInvalid(data, invalid, channels);
  return { data, height, width, channels, invalid };
}

function fillInvalid(data, invalid, channels) {
  const valid = invalid.reduce((count, hidden) => count + 1 - hidden, 0);
  for (let channel = 0; channel < channels; channel++) {
    let total = 0;
    invalid.forEach((hidden, place) => (total += hidden ? 0 : data[place * channels + channel]));
    const mean = roundHalfEven(total / Math.max(1, valid));
    invalid.forEach((hidden, place) => hidden && (data[place * channels + channel] = mean));
  }
}

// A promise of the bytes of a PNG whose values are class indices, and whose palette has the class colours.
async function encodeMask(mask, height, width, colors) {
  const lines = new Uint8Array(height * (width + 1)); // each begins with its filter: 0, none
  for (let row = 0; row < height; row++) {
    lines.set(mask.subarray(row * width, (row + 1) * width), row * (width + 1) + 1);
  }
  const stream = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const palette = new Uint8Array(3 * 256).fill(128);
  colors.forEach((color, index) => palette.set(color, 3 * index));
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, 0x0803); // 8 bits, palette
  const parts = [["IHDR", new Uint8Array(header.buffer)], ["PLTE", palette], ["IDAT", packed], ["IEND", new Uint8Array()]];
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  return joinBytes([signature, ...parts.map(([kind, content]) => makeChunk(kind, content))]);
}

function makeChunk(kind, content) {
  const chunk = new Uint8Array(content.length + 12);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, content.length);
  chunk.set(Array.from(kind, (letter) => letter.charCodeAt(0)), 4);
  chunk.set(content, 8);
  view.setUint32(content.length + 8, checksum(chunk.subarray(4, content.length + 8)));
  return chunk;
}

// CRC-32 of PNG.
function checksum(bytes) {
  let rest = 0xffffffff;
  for (const byte of bytes) {
    rest ^= byte;
    for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  }
  return (rest ^ 0xffffffff) >>> 0;
}

function joinBytes(parts) {
  const joined = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let place = 0;
  for (const part of parts) {
    joined.set(part, place);
    place += part.length;
  }
  return joined;
}

if (typeof module !== "undefined") {
  module.exports = { encodeMask, fromRgba, modelSize, planAxis, predict, resizeAxis, resizePixels, sumFloats, writeClasses };
}
