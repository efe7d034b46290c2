// The page: takes image files, has the worker predict their masks, and shows these over the images.
"use strict";

const SHOWN_PX = 1200; // longest side of a shown image
const INVALID = 255; // class index of transparent pixels
const OUTLINE_SHARE = 256; // pixels of the longer side for a pixel of an outline
const about = JSON.parse(document.getElementById("about").textContent);
const texts = JSON.parse(document.getElementById("texts").textContent);
const status = document.getElementById("status");
const opacity = document.getElementById("opacity");
const results = document.getElementById("results");
const language = document.documentElement.lang;
const waiting = []; // files
let worker = null;
let isBusy = true; // until the model is loaded
const shown = []; // functions that draw the shown images again

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_match, name) => values[name]);
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

// ---- Parts of the page, inside it or beside it ---------------------------------------------------------------------

// The bytes of a file that is packed into the page, or that lies beside it.
async function readPart(name) {
  const inside = document.getElementById(`file-${name}`);
  if (!inside) {
    const answer = await fetch(name);
    if (!answer.ok) throw new Error(`${name}: HTTP ${answer.status}`);
    return answer.arrayBuffer();
  }
  const packed = atob(inside.textContent.trim());
  inside.remove();
  const bytes = new Uint8Array(packed.length);
  for (let place = 0; place < packed.length; place++) bytes[place] = packed.charCodeAt(place);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// The address of a script for the worker, which may not import a blob: of a page that was opened from the disk.
async function addressOf(name) {
  if (!document.getElementById(`file-${name}`)) return new URL(name, location.href).href;
  const text = new TextDecoder().decode(await readPart(name));
  return `data:text/javascript,${encodeURIComponent(text)}`;
}

async function makeWorker() {
  const code = document.getElementById("worker-code");
  if (!code) return new Worker("worker.js");
  const parts = [await readPart("ort.wasm.min.js"), "\n", code.textContent];
  return new Worker(URL.createObjectURL(new Blob(parts, { type: "text/javascript" })));
}

// ---- The worker ----------------------------------------------------------------------------------------------------

let calls = 0;

// The worker's answer; rejected with an error that has the key of a text, and a reason.
function ask(message, transferred = []) {
  const number = ++calls;
  return new Promise((resolve, reject) => {
    const receive = ({ data }) => {
      if (data.number !== number) return;
      if ("done" in data) return say(fill(texts.tiles, { name: message.file.name, done: data.done, all: data.all }));
      worker.removeEventListener("message", receive);
      if ("key" in data) reject(data);
      else resolve(data);
    };
    worker.addEventListener("message", receive);
    worker.onerror = (event) => reject({ key: "failed", reason: event.message });
    worker.postMessage({ number, ...message }, transferred);
  });
}

async function start() {
  say(texts.loading);
  try {
    worker = await makeWorker();
    const [weights, wasm] = [new Uint8Array(await readPart("model.onnx")), await readPart("ort-wasm-simd-threaded.wasm")];
    const load = { about, weights, wasm, glue: await addressOf("ort-wasm-simd-threaded.js") };
    await ask({ load }, [weights.buffer, wasm]);
  } catch (error) {
    worker = null;
    const isFolder = location.protocol === "file:" && !document.getElementById("worker-code");
    say(isFolder ? texts.served : fill(texts.broken, { reason: error.reason ?? error.message }), true);
    return;
  }
  isBusy = false;
  say(texts.ready);
  predictWaiting();
}

async function predictWaiting() {
  if (isBusy) return;
  isBusy = true;
  const failed = [];
  while (waiting.length) {
    const file = waiting.shift();
    const rest = waiting.length ? ` ${fill(texts.queued, { count: waiting.length })}` : "";
    say(fill(texts.computing, { name: file.name }) + rest);
    try {
      await show(file, await ask({ file }));
    } catch (error) {
      failed.push(fill(texts[error.key] ?? texts.failed, { name: file.name, reason: error.reason ?? error.message }));
    }
  }
  isBusy = false;
  say(failed.length ? failed.join("\n") : texts.ready, failed.length > 0);
}

function take(files) {
  waiting.push(...files);
  if (isBusy && worker) say(fill(texts.queued, { count: waiting.length }));
  predictWaiting();
}

// ---- A result ------------------------------------------------------------------------------------------------------

async function show(file, { mask, height, width, seconds, png }) {
  const card = document.getElementById("result").content.firstElementChild.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  const rows = countClasses(mask);
  find("h2").textContent = file.name;
  find(".size").textContent = fill(texts.size, { width, height, seconds: seconds.toLocaleString(language, { maximumFractionDigits: 2 }) });
  for (const { name, color, share } of rows) find("tbody").append(makeRow(name, color, share));
  const link = find("a");
  link.href = URL.createObjectURL(new Blob([png], { type: "image/png" }));
  link.download = `${file.name.replace(/\.[^.]*$/, "")}_mask.png`;
  link.setAttribute("aria-label", `${link.textContent}: ${link.download}`);
  const canvas = find("canvas");
  const listed = rows.map(({ name, share }) => `${name} ${share}`).join(", ");
  canvas.setAttribute("aria-label", fill(texts.alt, { name: file.name, classes: listed }));
  const scale = Math.min(1, SHOWN_PX / Math.max(height, width));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const photo = await createImageBitmap(file, { resizeWidth: canvas.width, resizeHeight: canvas.height, resizeQuality: "high" });
  const small = shrinkMask(mask, height, width, canvas.height, canvas.width);
  const colors = await createImageBitmap(paintClasses(small, canvas.width, false));
  const outlines = await createImageBitmap(paintClasses(small, canvas.width, true));
  const draw = () => {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
    context.drawImage(photo, 0, 0);
    context.globalAlpha = opacity.value / 100;
    context.drawImage(colors, 0, 0);
    if (opacity.value === "0") return;
    context.globalAlpha = 1;
    context.drawImage(outlines, 0, 0);
  };
  draw();
  shown.push(draw);
  results.prepend(card);
}

// Name, colour and share of each class.
function countClasses(mask) {
  const counts = new Array(256).fill(0);
  for (const index of mask) counts[index]++;
  const describe = (name, index) => ({ name, color: colorOf(index), share: showShare(counts[index] / mask.length) });
  return [...about.names.map(describe), ...(counts[INVALID] ? [describe(texts.invalid, INVALID)] : [])];
}

function showShare(share) {
  const format = (value) => value.toLocaleString(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  return share > 0 && share < 0.0005 ? `< ${format(0.001)}` : format(share);
}

function makeRow(name, color, share) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${color})`;
  head.append(swatch, name);
  const cell = document.createElement("td");
  cell.textContent = share;
  row.append(head, cell);
  return row;
}

function colorOf(index) {
  return about.colors[index] ?? [128, 128, 128];
}

// The class indices at the size in which they are shown.
function shrinkMask(mask, height, width, shownHeight, shownWidth) {
  const shrunk = new Uint8Array(shownHeight * shownWidth);
  for (let row = 0; row < shownHeight; row++) {
    const line = Math.floor(((row + 0.5) * height) / shownHeight) * width;
    for (let column = 0; column < shownWidth; column++) {
      shrunk[row * shownWidth + column] = mask[line + Math.floor(((column + 0.5) * width) / shownWidth)];
    }
  }
  return shrunk;
}

// Regions in the colours of their classes, or only their outlines, which are inside them; the background is clear.
function paintClasses(mask, width, isOutline) {
  const image = new ImageData(width, mask.length / width);
  const reach = Math.round(Math.max(width, image.height) / OUTLINE_SHARE) || 1;
  mask.forEach((index, place) => {
    if (index === about.background || (isOutline && (index === INVALID || !isBorder(mask, width, place, reach)))) return;
    image.data.set([...colorOf(index), 255], 4 * place);
  });
  return image;
}

// Whether another class is within so many pixels to the left, right, above or below.
function isBorder(mask, width, place, reach) {
  const column = place % width;
  for (let away = 1; away <= reach; away++) {
    if (column >= away && mask[place - away] !== mask[place]) return true;
    if (column + away < width && mask[place + away] !== mask[place]) return true;
    const [above, below] = [mask[place - away * width], mask[place + away * width]];
    if ((above ?? mask[place]) !== mask[place] || (below ?? mask[place]) !== mask[place]) return true;
  }
  return false;
}

// ---- What people do ------------------------------------------------------------------------------------------------

const chooser = document.getElementById("files");
chooser.addEventListener("change", () => {
  take(chooser.files);
  chooser.value = ""; // so that the same file can be chosen again
});
opacity.addEventListener("input", () => shown.forEach((draw) => draw()));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
start();
