// What all views share: elements, arrays, numbers, colours, canvases, controls. Text always goes in as text, never as markup.

export const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const DARK = matchMedia("(prefers-color-scheme: dark)");

// An element: h("p", {class: "muted"}, "text", other). on… are listeners, other properties attributes; true: present, false or null: absent.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

let made = 0;
export const unique = (name) => `${name}-${++made}`;

const KINDS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, float32: Float32Array };

// {dtype, shape, base64, deflate} -> its typed array with a property `shape`.
export async function unpack(array) {
  const bytes = Uint8Array.from(atob(array.base64), (c) => c.charCodeAt(0));
  const stream = array.deflate && new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const data = new KINDS[array.dtype](stream ? await new Response(stream).arrayBuffer() : bytes.buffer);
  data.shape = array.shape;
  return data;
}

// A data URI -> an image that can be drawn at once.
export async function picture(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

// A number as readers see it, as pellucid.run.rounded writes it.
export function rounded(value, unit = "fraction") {
  if (value == null || Number.isNaN(value)) return "n/a";
  if (unit === "count") return Math.round(value).toLocaleString("en-US");
  if (unit === "seconds") return value.toFixed(value < 100 ? 1 : 0);
  if (unit === "rate") {
    const [digits, power] = value.toExponential(2).split("e").map(Number);
    if (value === 0) return "0";
    return power < -4 || power > 2 ? `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}` : String(Number(value.toPrecision(3)));
  }
  return value.toFixed(4);
}

// A number of the data: value and interval, with how it was computed on hover.
export const shown = (number) =>
  number ? h("span", { title: `${number.how}; n = ${number.n}` }, h("strong", {}, number.text), number.interval && h("span", { class: "muted" }, ` (${number.interval})`)) : "n/a";

// [[name, number], …] as a list of terms.
export const terms = (pairs) => h("dl", { class: "terms-row" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "object" ? shown(value) : value))));

// A table: heads [{text, num}], rows of cells (text or elements), the first of each its heading.
export const table = (caption, heads, rows) =>
  h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: head.num && "num" }, head.text ?? head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h(i ? "td" : "th", { scope: i ? null : "row", class: heads[i].num && "num" }, cell)))))));

export const notes = (lines) => lines?.length && h("ul", { class: "notes" }, lines.map((line) => h("li", {}, line)));

// ── colours ──

// Those of the page as it stands: of light or dark, and of print.
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return { paper: of("paper"), raised: of("raised"), ink: of("ink"), muted: of("muted"), line: of("line"), grid: of("grid"), bad: of("bad"), mark: of("mark"), s: [0, 1, 2, 3, 4, 5, 6].map((i) => of(`s${i}`)) };
}

const ramp = (stops) => {
  const table = new Uint8ClampedArray(256 * 3), at = stops.split(" ").map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i - 1, i + 1), 16)));
  for (let i = 0; i < 256; i++) {
    const x = (i / 255) * (at.length - 1), k = Math.min(Math.floor(x), at.length - 2);
    for (let c = 0; c < 3; c++) table[3 * i + c] = at[k][c] + (x - k) * (at[k + 1][c] - at[k][c]);
  }
  return table;
};
// 17 evenly spaced colours of matplotlib's inferno and viridis, linear between: at most 7 of 255 from theirs.
export const INFERNO = ramp("000004 0b0724 210c4a 3c0965 57106d 70196e 89226a a32b61 bb3755 d14644 e35932 f1711e f98d0a fcab0f f9ca32 f2e865 fcffa4");
export const VIRIDIS = ramp("440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26818e 21908c 1f9f88 28ae80 3ebc74 5dc963 82d34c abdc32 d5e21a fde725");

// The mark of class style i (-1: other) around (x, y), of half-width r, in the order of report/planes.py: a colour and a shape.
export function mark(context, style, x, y, r, palette) {
  context.fillStyle = context.strokeStyle = style < 0 ? palette.muted : palette.s[style % 7];
  context.lineWidth = Math.max(r / 2.5, 1);
  context.beginPath();
  const line = (...points) => points.forEach(([dx, dy], i) => context[i ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
  const shape = style < 0 ? 0 : style % 8;
  if (shape === 0) context.arc(x, y, style < 0 ? r / 2 : r, 0, 7);
  if (shape === 1) context.rect(x - r * 0.9, y - r * 0.9, 1.8 * r, 1.8 * r);
  if (shape === 2) line([0, -1], [1, 1], [-1, 1]);
  if (shape === 3) line([0, -1], [1, 0], [0, 1], [-1, 0]);
  if (shape === 4) line([0, 1], [1, -1], [-1, -1]);
  if (shape < 5) return context.fill();
  if (shape !== 6) line([-1, 0], [1, 0]), line([0, -1], [0, 1]);
  if (shape !== 5) line([-0.8, -0.8], [0.8, 0.8]), line([-0.8, 0.8], [0.8, -0.8]);
  context.stroke();
}

// ── canvases ──

// A canvas that follows its box, the screen's pixels and the colour scheme: draw(context, width, height, colours) in CSS pixels. Returns {canvas, redraw}.
// redraw() paints in the next frame, once for many calls; redraw.now() at once.
export function surface(draw, properties = {}) {
  const canvas = h("canvas", { role: "img", ...properties });
  let width = 0, height = 0, waiting = 0;
  const now = () => {
    waiting = 0;
    if (!width || !height) return;
    const context = canvas.getContext("2d"), scale = canvas.width / width;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    draw(context, width, height, colours());
  };
  const redraw = () => (waiting ||= requestAnimationFrame(now));
  redraw.now = now;
  new ResizeObserver(([{ contentRect: box }]) => {
    ({ width, height } = box);
    const scale = Math.min(devicePixelRatio || 1, 3);
    canvas.width = Math.round(width * scale), canvas.height = Math.round(height * scale);
    now();
  }).observe(canvas);
  DARK.addEventListener("change", redraw);
  return { canvas, redraw };
}

// The place of a pointer event in CSS pixels of the element's own box.
export function place(event, element = event.currentTarget) {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// A map (gh x gw numbers at `from` of values) over its photograph, as figures.overlays.overlay has it, but each patch one even square of colour: a photo in
// greys, weight .35 to .8 of the colour from 0 to `most`, what the model did not see at a quarter of its light.
// photo: an image or null; view: [top, left, height, width] as fractions of the photo; at: [x, y, width, height] on the canvas.
export function overlay(context, photo, values, from, [gh, gw], view, most, [x, y, width, height]) {
  context.save();
  context.beginPath(), context.rect(x, y, width, height), context.clip();
  const [top, left, down, across] = [y + view[0] * height, x + view[1] * width, view[2] * height, view[3] * width];
  context.fillStyle = "#000", context.fillRect(x, y, width, height);
  if (photo) {
    context.globalAlpha = 0.25, context.drawImage(photo, x, y, width, height), context.globalAlpha = 1;
    context.beginPath(), context.rect(left, top, across, down), context.clip();
    context.drawImage(photo, x, y, width, height);
    context.globalCompositeOperation = "saturation", context.fillStyle = "#808080", context.fillRect(x, y, width, height);
    context.globalCompositeOperation = "source-over";
  }
  const small = new OffscreenCanvas(gw, gh), pixels = new ImageData(gw, gh);
  for (let i = 0; i < gh * gw; i++) {
    const share = most > 0 ? Math.min(values[from + i] / most, 1) : 0, k = 3 * Math.round(255 * share);
    pixels.data.set([INFERNO[k], INFERNO[k + 1], INFERNO[k + 2], photo ? 255 * (0.35 + 0.45 * share) : 255], 4 * i);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left, top, across, down);
  context.restore();
}

// ── controls: native ones, so that keyboard and screen readers know them ──

// A slider over texts; change(i) at each step. set(i) moves it.
export function slider(label, texts, start, change) {
  const id = unique("slider"), output = h("output", { for: id });
  const input = h("input", { type: "range", id, min: 0, max: texts.length - 1, step: 1, value: start, autocomplete: "off", oninput: () => set(+input.value) });
  const set = (i) => {
    input.value = i;
    output.textContent = texts[i];
    input.setAttribute("aria-valuetext", texts[i]);
    change(+input.value);
  };
  output.textContent = texts[start];
  input.setAttribute("aria-valuetext", texts[start]);
  return Object.assign(h("div", { class: "control", hidden: texts.length < 2 }, h("label", { for: id }, label), input, output), { set, input });
}

// A choice among texts as a drop-down list; change(i).
export function choice(label, texts, start, change) {
  const id = unique("choice");
  const input = h("select", { id, autocomplete: "off", onchange: () => change(input.selectedIndex) }, texts.map((text, i) => h("option", { selected: i === start }, text)));
  return Object.assign(h("div", { class: "control", hidden: texts.length < 2 }, h("label", { for: id }, label), input), { input, set: (i) => ((input.selectedIndex = i), change(i)) });
}

// A switch; change(whether it is on).
export function toggle(label, on, change) {
  const input = h("input", { type: "checkbox", checked: on, autocomplete: "off", onchange: () => change(input.checked) });
  return Object.assign(h("label", { class: "control" }, input, label), { input });
}

export const button = (label, press, properties = {}) => h("button", { type: "button", onclick: press, ...properties }, label);

let voice;
// Say a line to screen readers.
export function announce(text) {
  voice ||= document.body.appendChild(h("p", { class: "unseen", role: "status", "aria-live": "polite" }));
  voice.textContent = text;
}

// Pictures [{src, alt, lines}] as a gallery; press(i), where given, makes each a button.
export const gallery = (items, press) =>
  h("ul", { class: "gallery" }, items.map(({ src, alt, lines }, i) => {
    const inner = [src ? h("img", { src, alt, loading: "lazy" }) : h("span", { class: "blank" }, "no picture was kept"), h("span", { class: "lines" }, (lines ?? []).map((line) => h("span", {}, line)))];
    return h("li", {}, press ? button(inner, () => press(i), { class: "tile" }) : inner);
  }));

// A tile of an atlas {src, side, columns} as an image of its own; image: the decoded atlas.
export function tile(image, atlas, i) {
  const canvas = new OffscreenCanvas(atlas.side, atlas.side);
  canvas.getContext("2d").drawImage(image, -(i % atlas.columns) * atlas.side, -Math.floor(i / atlas.columns) * atlas.side);
  return canvas;
}
