// What all views share: elements, arrays, numbers, colours, canvases, pointing, controls. Text always goes in as text, never as markup.

export const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const DARK = matchMedia("(prefers-color-scheme: dark)");

// ── elements ──

// Give an element other children: texts, elements and lists of them; null and false are none. Returns the element.
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

// An element: h("p.muted", {title: "…"}, "text", other), the properties where there are some. on… are listeners, other properties attributes;
// true: present, false or null: absent.
export function h(tag, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  const properties = children[0]?.constructor === Object ? children.shift() : {};
  if (classes[0]) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [of, text] of Object.entries(value)) element.style.setProperty(of, text);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  return fill(element, children);
}

export const figure = (title, ...children) => h("figure", h("figcaption", h("strong", title)), children);

export const notes = (lines) =>
  lines?.length > 0 &&
  h(
    "ul.notes",
    lines.map((line) => h("li", line)),
  );

// A number of the data: value and interval, with how it was computed on hover.
export const shown = (number) =>
  number
    ? h(
        "span",
        { title: `${number.how}; n = ${number.n}` },
        h("strong", number.text),
        number.interval && h("span.muted", ` (${number.interval})`),
      )
    : "n/a";

// [[name, number or text], …] as a list of terms.
export const terms = (pairs) =>
  h(
    "dl.terms-row",
    pairs.map(([name, value]) => h("div", h("dt", name), h("dd", typeof value === "object" ? shown(value) : value))),
  );

// A table that scrolls within its own box.
export const scrolled = (label, ...inner) => h("div.scroll", { role: "region", "aria-label": label, tabindex: 0 }, inner);

// A table: heads are texts, or {text, num} over numbers; rows of cells (texts or elements), the first of each its heading.
export function table(caption, heads, rows) {
  const cell = (tag, content, i, scope) => h(tag, { scope, class: heads[i].num && "num" }, content);
  const line = (row) =>
    h(
      "tr",
      row.map((content, i) => (i ? cell("td", content, i) : cell("th", content, i, "row"))),
    );
  const top = h(
    "tr",
    heads.map((head, i) => cell("th", head.text ?? head, i, "col")),
  );
  return scrolled(caption, h("table", h("caption", caption), h("thead", top), h("tbody", rows.map(line))));
}

// ── arrays and pictures ──

const KINDS = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, float32: Float32Array };

// A text in base64 -> its bytes.
function decoded(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i); // Uint8Array.from takes many times as long
  return bytes;
}

// {dtype, shape, base64, deflate} -> its typed array with a property `shape`.
export async function unpack(array) {
  const bytes = decoded(array.base64);
  const stream = array.deflate && new Response(bytes).body.pipeThrough(new DecompressionStream("deflate-raw"));
  const data = new KINDS[array.dtype](stream ? await new Response(stream).arrayBuffer() : bytes.buffer);
  data.shape = array.shape;
  return data;
}

// A copy of lists and objects whose arrays are unpacked.
export async function unpacked(of) {
  if (!of || typeof of !== "object") return of;
  if (of.base64 != null) return unpack(of);
  const values = await Promise.all(Object.values(of).map(unpacked));
  return Array.isArray(of) ? values : Object.fromEntries(Object.keys(of).map((key, i) => [key, values[i]]));
}

// One asker of what takes a while: of several calls the latest gets what it waits for, an earlier one that ends later null.
export function latest() {
  let turn = 0;
  return async (...coming) => {
    const mine = ++turn;
    const found = await Promise.all(coming);
    return mine === turn ? found : null;
  };
}

// A data URI -> an image that can be drawn at once; null -> null.
export async function picture(uri) {
  if (!uri) return null;
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

// The same as a bitmap, which is decoded once and off the page's own thread, and which the canvas scales without decoding it again.
export const bitmap = async (uri) => uri && createImageBitmap(new Blob([decoded(uri.split(",")[1])]));

// A tile of an atlas {src, side, columns} as an image of its own; image: the decoded atlas.
export function tile(image, { side, columns }, i) {
  const canvas = new OffscreenCanvas(side, side);
  canvas.getContext("2d").drawImage(image, -(i % columns) * side, -Math.floor(i / columns) * side);
  return canvas;
}

// ── numbers ──

// A number as readers see it, as pellucid.run.rounded writes it.
export function rounded(value, unit = "fraction") {
  if (value == null || Number.isNaN(value)) return "n/a";
  if (unit === "count") return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ","); // the first toLocaleString of a page takes 10 ms
  if (unit === "seconds") return value.toFixed(value < 100 ? 1 : 0);
  if (unit !== "rate") return value.toFixed(4);
  const [digits, power] = value.toExponential(2).split("e").map(Number);
  if (value === 0 || (power >= -4 && power <= 2)) return String(Number(value.toPrecision(3)));
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

// A whole number from 0 to most.
export const within = (value, most) => Math.min(Math.max(Math.floor(value), 0), most);

// Resolves when the next frame was drawn.
export const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

// ── colours ──

// Those of the page as it stands: of light or dark, and of print.
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["paper", "raised", "ink", "muted", "line", "grid", "bad", "mark"];
  return { ...Object.fromEntries(names.map((name) => [name, of(name)])), s: [0, 1, 2, 3, 4, 5, 6].map((i) => of(`s${i}`)) };
}

// That of class style i; -1 is all others.
export const hue = (style, palette) => (style < 0 ? palette.muted : palette.s[style % 7]);

export const hex = (text) => [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16));

// 256 colours, red, green, blue each, linear between evenly spaced ones.
function ramp(stops) {
  const found = new Uint8ClampedArray(256 * 3);
  const at = stops.split(" ").map(hex);
  for (let i = 0; i < 256; i++) {
    const x = (i / 255) * (at.length - 1);
    const k = Math.min(Math.floor(x), at.length - 2);
    found.set(
      at[k].map((from, c) => from + (x - k) * (at[k + 1][c] - from)),
      3 * i,
    );
  }
  return found;
}
// 17 of matplotlib's inferno and viridis: at most 7 of 255 from theirs.
export const INFERNO = ramp(
  "000004 0b0724 210c4a 3c0965 57106d 70196e 89226a a32b61 bb3755 d14644 e35932 f1711e f98d0a fcab0f f9ca32 f2e865 fcffa4",
);
export const VIRIDIS = ramp(
  "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26818e 21908c 1f9f88 28ae80 3ebc74 5dc963 82d34c abdc32 d5e21a fde725",
);

// A pixel of a raster; alpha is its highest byte.
export const pixel = (red, green, blue, alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
const shade = (map, value, alpha) => pixel(...map.subarray(3 * value, 3 * value + 3), alpha);
export const shades = (map) => Uint32Array.from({ length: 256 }, (_, value) => shade(map, value));

const sheets = {};
// A canvas of rows x columns pixels, colour(i) the i-th, row by row. The next of its size draws over it, unless it gets a canvas of its own.
export function raster([rows, columns], colour, canvas = (sheets[[rows, columns]] ??= new OffscreenCanvas(columns, rows))) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colour(i);
  context.putImageData(image, 0, 0);
  return canvas;
}

// ── canvases ──

const shownSurfaces = new Set(); // what redraws those that have a size: one that leaves the page loses it, and nothing holds it here
DARK.addEventListener("change", () => shownSurfaces.forEach((redraw) => redraw()));

// A canvas that follows its box, the screen's pixels and the colour scheme: draw(context, width, height, colours) in CSS pixels. Returns
// {canvas, redraw}: redraw() paints in the next frame, once for many calls; redraw.now() at once.
export function surface(draw, properties = {}) {
  const canvas = h("canvas", { role: "img", ...properties });
  const context = canvas.getContext("2d");
  let width = 0;
  let height = 0;
  let waiting = 0;
  const now = () => {
    waiting = 0;
    if (!width || !height) return;
    context.reset();
    context.scale(canvas.width / width, canvas.width / width);
    context.font = "12px system-ui, sans-serif";
    draw(context, width, height, colours());
  };
  const redraw = () => (waiting ||= requestAnimationFrame(now));
  redraw.now = now;
  new ResizeObserver(([{ contentRect }]) => {
    ({ width, height } = contentRect);
    shownSurfaces[width && height ? "add" : "delete"](redraw);
    const scale = Math.min(devicePixelRatio || 1, 3);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    now();
  }).observe(canvas);
  return { canvas, redraw };
}

// A line through points [x, y]; null is a gap.
export function stroke(context, points) {
  context.beginPath();
  points.forEach((point, i) => point && context[points[i - 1] ? "lineTo" : "moveTo"](...point));
  context.stroke();
}

// The path of a circle.
export function circle(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
}

// The path, or the box [x, y, width, height], as a mark that is seen on any ground.
export function ringed(context, paper, colour, box) {
  if (box) {
    context.beginPath();
    context.rect(...box);
  }
  for (const [style, width] of [
    [paper, 5],
    [colour, 2.5],
  ]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }
}

// Per shape its lines as points (x, y) in half-widths, in the order of report/planes.py; the first five are filled.
const SHAPES = [
  [],
  [[-0.9, -0.9, 0.9, -0.9, 0.9, 0.9, -0.9, 0.9]],
  [[0, -1, 1, 1, -1, 1]],
  [[0, -1, 1, 0, 0, 1, -1, 0]],
  [[0, 1, 1, -1, -1, -1]],
  [
    [-1, 0, 1, 0],
    [0, -1, 0, 1],
  ],
  [
    [-0.8, -0.8, 0.8, 0.8],
    [-0.8, 0.8, 0.8, -0.8],
  ],
];
SHAPES.push([...SHAPES[5], ...SHAPES[6]]);

// The mark of class style i (-1: other) around (x, y), of half-width r: a colour and a shape.
export function mark(context, style, x, y, r, palette) {
  const shape = Math.max(style, 0) % 8;
  context.fillStyle = context.strokeStyle = hue(style, palette);
  context.lineWidth = Math.max(r / 2.5, 1);
  circle(context, x, y, shape ? 0 : style < 0 ? r / 2 : r);
  for (const line of SHAPES[shape])
    for (let i = 0; i < line.length; i += 2) context[i ? "lineTo" : "moveTo"](x + line[i] * r, y + line[i + 1] * r);
  if (shape < 5) context.fill();
  else context.stroke();
}

// A map (grid [rows, columns] of numbers at `from` of values) over its photograph, as figures.overlays.overlay has it, but each patch one even square
// of colour: a photo in greys, weight .35 to .8 of the colour from 0 to `most`, what the model did not see at a quarter of its light.
// photo: an image or null; view: [top, left, height, width] as fractions of the photo, which fills the canvas of width x height.
export function overlay(context, photo, values, from, grid, view, most, width, height) {
  const seen = [view[1] * width, view[0] * height, view[3] * width, view[2] * height];
  context.save();
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  if (photo) {
    context.globalAlpha = 0.25;
    context.drawImage(photo, 0, 0, width, height);
    context.globalAlpha = 1;
    context.beginPath();
    context.rect(...seen);
    context.clip();
    context.drawImage(photo, 0, 0, width, height);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(...seen);
    context.globalCompositeOperation = "source-over";
  }
  context.imageSmoothingEnabled = false;
  const colour = (i) => {
    const share = most > 0 ? Math.min(values[from + i] / most, 1) : 0;
    return shade(INFERNO, Math.round(255 * share), photo ? 255 * (0.35 + 0.45 * share) : 255);
  };
  context.drawImage(raster(grid, colour), ...seen);
  context.restore();
}

// ── pointing ──

let voice;
// Say a line to screen readers.
export function announce(text) {
  voice ||= document.body.appendChild(h("p.unseen", { role: "status", "aria-live": "polite" }));
  voice.textContent = text;
}

// The place of a pointer event in CSS pixels of the element's own box.
export function place(event, element = event.currentTarget) {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// A listener for a mouse that leaves: a finger leaves when it is lifted, and what it pointed at stays.
export const mouseLeft = (gone) => (event) => event.pointerType === "mouse" && gone();

// A listener that calls what keys has for the key.
export const keyed = (keys) => (event) => {
  if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key](event);
};

// Keys that call go(rows, columns, event) with the step of an arrow.
export const arrows = (go) => ({
  ArrowUp: (event) => go(-1, 0, event),
  ArrowDown: (event) => go(1, 0, event),
  ArrowLeft: (event) => go(0, -1, event),
  ArrowRight: (event) => go(0, 1, event),
});

export const POINTED = { tabindex: 0, role: "application" };

// Properties of a canvas over whose cells a pointer, a finger and the arrow keys go, with Shift by ten. grid() is [rows, columns] and where they lie,
// [top, left, height, width] in fractions of the canvas; at() the cell [row, column] from which the arrows go, if any; step() what an arrow passes.
// go(cell, event) goes there and gives the line to say.
export function steered({ grid, at, go, step = () => [1, 1], keys = {} }) {
  const reach = (cell, event) =>
    go(
      cell.map((value, i) => within(value, grid()[i] - 1)),
      event,
    );
  const point = (event) => {
    const [rows, columns, top = 0, left = 0, height = 1, width = 1] = grid();
    const [x, y] = place(event);
    const { clientWidth, clientHeight } = event.currentTarget;
    reach([((y / clientHeight - top) / height) * rows, ((x / clientWidth - left) / width) * columns], event);
  };
  const move = (down, across, event) => {
    const far = event.shiftKey ? 10 : 1;
    const [row, column] = at() ?? [grid()[0] >> 1, grid()[1] >> 1];
    announce(reach([row + down * far * step()[0], column + across * far * step()[1]], event));
  };
  return { ...POINTED, onpointermove: point, onpointerdown: point, onkeydown: keyed({ ...arrows(move), ...keys }) };
}

export const cellWords = ([row, column], [top, left] = [1, 1]) => `row ${row + top}, column ${column + left}`;

// ── controls: native ones, so that keyboard and screen readers know them ──

let made = 0;
const unique = () => `control-${++made}`;

export const button = (label, press, properties = {}) => h("button", { type: "button", onclick: press, ...properties }, label);
export const pressed = (one, on) => one.setAttribute("aria-pressed", on);

// A button of a legend: a sample of what draw draws, and a text; press() gives whether it is on.
export function legendButton(draw, text, on, press) {
  const sample = surface(draw, { role: "presentation" }).canvas;
  const one = button([sample, text], () => pressed(one, press()));
  pressed(one, on);
  return one;
}

// A slider over texts; change(i) at each step. set(i) moves it.
export function slider(label, texts, start, change) {
  const id = unique();
  const output = h("output", { for: id });
  const input = h("input", {
    type: "range",
    id,
    max: texts.length - 1,
    value: start,
    autocomplete: "off",
    oninput: () => set(+input.value),
  });
  const tell = (i) => {
    output.textContent = texts[i];
    input.setAttribute("aria-valuetext", texts[i]);
  };
  const set = (i) => {
    input.value = i;
    tell(i);
    change(+input.value);
  };
  tell(start);
  return Object.assign(h("div.control", { hidden: texts.length < 2 }, h("label", { for: id }, label), input, output), { set, input });
}

// A choice among texts as a drop-down list; change(i).
export function choice(label, texts, start, change) {
  const id = unique();
  const options = texts.map((text, i) => h("option", { selected: i === start }, text));
  const input = h("select", { id, autocomplete: "off", onchange: () => change(input.selectedIndex) }, options);
  return Object.assign(h("div.control", { hidden: texts.length < 2 }, h("label", { for: id }, label), input), { input });
}

// A switch; change(whether it is on).
export function toggle(label, on, change) {
  const input = h("input", { type: "checkbox", checked: on, autocomplete: "off", onchange: () => change(input.checked) });
  return h("label.control", input, label);
}

// A box whose buttons are one stop of the tab key, at first the start-th: arrows go from one to another. Returns the box.
export function roving(box, start) {
  const stops = [...box.querySelectorAll("button")];
  const stop = (at) => stops.forEach((one, i) => (one.tabIndex = i === at ? 0 : -1));
  const step = (down, across) => {
    const to = within(stops.indexOf(document.activeElement) + down + across, stops.length - 1);
    stop(to);
    stops[to].focus();
  };
  box.onkeydown = keyed(arrows(step));
  stop(start);
  return box;
}

// Pictures [{src, alt, lines}] as a gallery; press(i, button), where given, makes each a button. Not every browser gives a pressed button the focus.
export function gallery(items, press) {
  const entry = ({ src, alt, lines }, i) => {
    const image = src ? h("img", { src, alt, loading: "lazy" }) : h("span.blank", "no picture was kept");
    const inner = [
      image,
      h(
        "span.lines",
        (lines ?? []).map((line) => h("span", line)),
      ),
    ];
    return h("li", press ? button(inner, ({ currentTarget }) => press(i, currentTarget), { class: "tile" }) : inner);
  };
  return h("ul.gallery", items.map(entry));
}
