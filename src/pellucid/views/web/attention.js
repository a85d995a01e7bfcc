import { h, unpack, picture, rounded, table, terms, notes, shown, surface, place, overlay, slider, choice, gallery, announce, INFERNO } from "./core.js";

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, sheets = {};
export const POINTED = { tabindex: 0, role: "application", class: "pointed" };
// Calls step(rows, columns) where the key is an arrow.
export const arrowed = (event, step) => event.key in ARROWS && (event.preventDefault(), step(...ARROWS[event.key]));
export const within = (value, most) => Math.min(Math.max(Math.floor(value), 0), most);
export const cellWords = ([row, column], [top, left] = [1, 1]) => `row ${row + top}, column ${column + left}`;
// Where a pointer is on a canvas: (y, x) in fractions.
export const pointed = (event) => place(event).map((at, i) => at / event.currentTarget[i ? "clientHeight" : "clientWidth"]).reverse();

// A map of bytes as a canvas of one pixel each; the next of its size draws over it.
export function byteMap(values, from, [gh, gw], colours) {
  const { context, pixels } = (sheets[[gh, gw]] ??= { context: new OffscreenCanvas(gw, gh).getContext("2d"), pixels: new ImageData(gw, gh) });
  for (let i = 0; i < 4 * gh * gw; i++) pixels.data[i] = i % 4 < 3 ? colours[3 * values[from + (i >> 2)] + (i % 4)] : 255;
  context.putImageData(pixels, 0, 0);
  return context.canvas;
}

// A copy of lists and objects whose arrays are unpacked.
async function unpacked(of) {
  if (!of || typeof of !== "object" || of.base64) return of?.base64 ? unpack(of) : of;
  const values = await Promise.all(Object.values(of).map(unpacked));
  return Array.isArray(of) ? values : Object.fromEntries(Object.keys(of).map((key, i) => [key, values[i]]));
}

export async function mountAttention(root, view, page, state) {
  const { pictures, layers, class_token } = view, methods = await unpacked(view.methods), middle = [0.5, 0.5], last = layers.length - 1;
  const now = { picture: Math.max(pictures.findIndex((of) => of.attention), 0), method: 0, step: "", layer: last, head: 0, query: class_token ? null : middle, ...state };
  let photo, held, hover, turn = 0;
  const one = () => pictures[now.picture], stepOf = ({ steps }) => steps.find(({ name }) => name === now.step) ?? steps.at(-1);

  const map = surface((context, width, height) => {
    if (!turn) return;
    const { maps } = stepOf(methods[now.method]), [, gh, gw] = maps.shape;
    overlay(context, photo, maps, now.picture * gh * gw, [gh, gw], one().view, 255, [0, 0, width, height]);
  });
  const reading = (text) => h("p", { class: "reading" }, text), weights = h("span"), worth = h("div"), scores = h("div");
  function showMap() {
    const method = methods[now.method], { name, beside, own, largest } = stepOf(method), mine = own[now.picture];
    map.canvas.setAttribute("aria-label", `${method.name} over ${one().file}, ${name}`);
    worth.replaceChildren(
      mine.some(Boolean) ? terms(mine.map((text, i) => [beside[i][0], text ? `${text} (${beside[i][1]})` : "n/a"])) : "Not measured: this picture has no mask.",
      reading(`${method.how} Brightest patch: ${rounded(largest[now.picture])} of the map.`));
    scores.replaceChildren(table(`Means over all pictures, ${name}`, view.heads, methods.flatMap((of) =>
      stepOf(of).measures.map(([name, value, kind, verdict, ...baselines]) => [of.name, name, shown(value), ...baselines, h("span", { class: `verdict ${kind}` }, verdict)]))));
    map.redraw();
  }
  function setMethod(i) {
    const names = methods[i].steps.map(({ name }) => name);
    now.method = i;
    weights.replaceChildren(slider("Weights", names, names.indexOf(stepOf(methods[i]).name), (at) => ((now.step = names[at]), showMap())));
    showMap();
  }

  // A query is a place (y, x) in what the model saw, as layers may have other grids; null is the class token.
  const query = () => hover ?? now.query, rowsOf = (layer) => held[layer][query() ? "patch" : "class"], most = () => Math.max(...held.map((_, i) => rowsOf(i).rows.shape[0]));
  // The row of the query in a layer and head; in the mean of the heads where that head is not held.
  function find(layer, head) {
    const { rows, scale, rest } = rowsOf(layer), [count, q, k] = rows.shape, { grid } = layers[layer], at = query()?.map((x, i) => within(x * grid[i], grid[i] - 1));
    if (head >= count) head = 0;
    const row = head * q + (at ? at[0] * grid[1] + at[1] : 0);
    return { rows, grid, at, count, head, from: row * k, top: scale[row], rest: rest[row] };
  }
  const said = h("p", { class: "readout" });
  const row = surface((context, width, height, { paper, mark }) => {
    if (!held) return;
    const { rows, grid, at, from, head, top, rest } = find(now.layer, now.head), [y, x, down, across] = one().view, best = rows.indexOf(255, from) - from;
    overlay(context, photo, rows, from, grid, one().view, 255, [0, 0, width, height]);
    for (const [colour, line] of at ? [[paper, 5], [mark, 2.5]] : []) {
      context.strokeStyle = colour, context.lineWidth = line;
      context.strokeRect((x + (at[1] / grid[1]) * across) * width, (y + (at[0] / grid[0]) * down) * height, (across / grid[1]) * width, (down / grid[0]) * height);
    }
    said.textContent = `${at ? `Patch in ${cellWords(at)}` : "Class token"}, ${head ? `head ${head}` : "mean of the heads"}: `
      + `${top ? `most on ${cellWords([within(best / grid[1], grid[0]), best % grid[1]])}, ${rounded(top)} of the attention; ` : ""}${rounded(rest)} on ${view.elsewhere}.`;
  }, { ...POINTED, "aria-label": view.pointing, onpointermove: (event) => look(aim(event)), onpointerleave: () => look(), onpointerdown: (event) => ask(aim(event)), onkeydown: (event) => {
    const { grid, at = grid.map((n) => n >> 1) } = find(now.layer, 0);
    if (event.key === "Escape") ask(class_token ? null : middle), say();
    arrowed(event, (...by) => (ask(at.map((x, i) => (within(x + by[i], grid[i] - 1) + 0.5) / grid[i])), say()));
  } });
  const aim = (event) => pointed(event).map((at, i) => (at - one().view[i]) / one().view[2 + i]);
  const ask = (place) => ((now.query = place), (asked.input.selectedIndex = place && class_token ? 1 : 0), look());
  const say = () => (row.redraw.now(), announce(said.textContent));

  const cells = surface((context, width, height, { mark }) => {
    if (!held) return;
    const wide = width / layers.length, high = height / most(), chosen = find(now.layer, now.head).head;
    context.imageSmoothingEnabled = false;
    held.forEach((_, i) => {
      for (let head = 0; head < find(i, 0).count; head++) {
        const { rows, from, grid } = find(i, head);
        context.drawImage(byteMap(rows, from, grid, INFERNO), i * wide + 2, head * high + 2, wide - 4, high - 4);
      }
    });
    context.strokeStyle = mark, context.lineWidth = 3;
    context.strokeRect(now.layer * wide + 1.5, chosen * high + 1.5, wide - 3, high - 3);
  }, { ...POINTED, "aria-label": view.reading, onpointerdown: (event) => choose(...pointed(event).map((at, i) => at * (i ? layers.length : most()))),
    onkeydown: (event) => arrowed(event, (dy, dx) => (choose(now.head + dy, now.layer + dx), say())) });
  const choose = (head, i) => ((now.head = within(head, most() - 1)), layer.set(within(i, last)));
  function look(at) {
    hover = at;
    if (held) cells.canvas.style.aspectRatio = layers.length / most(), row.redraw(), cells.redraw();
  }
  const layer = last >= 0 && slider("Layer", layers.map(({ name }) => name), now.layer, (i) => ((now.layer = i), look()));
  const asked = choice("Query", class_token ? ["class token", "patch"] : ["patch"], now.query && class_token ? 1 : 0, (i) => ask(i ? middle : null));

  const strip = h("div", { class: "thumbs" }, gallery(pictures.map((of) => ({ src: of.photo, alt: of.file })), pick)), name = h("p"), flags = h("div");
  const figure = (title, controls, ...rest) => h("figure", {}, h("figcaption", {}, h("strong", {}, title)), h("div", { class: "controls" }, controls), rest);
  const attention = h("div", {}, row.canvas, said, reading(view.pointing), cells.canvas, reading(view.reading));
  async function pick(i) {
    const mine = ++turn, found = await Promise.all([pictures[i].photo && picture(pictures[i].photo), unpacked(pictures[i].attention)]);
    if (mine !== turn) return;
    [photo, held] = found, now.picture = i;
    strip.querySelectorAll("button").forEach((button, at) => button.setAttribute("aria-pressed", at === i));
    name.textContent = one().title, flags.replaceChildren(notes(one().flags) || ""), attention.hidden = !held;
    for (const { canvas } of [map, row]) canvas.style.aspectRatio = photo ? photo.width / photo.height : 1;
    if (methods.length) setMethod(now.method);
    look();
  }
  root.append(strip, name, h("div", { class: "sides" },
    methods.length ? figure("Map", [choice("Method", methods.map((of) => of.name), now.method, setMethod), weights], map.canvas, last < 0 || worth) : "",
    last < 0 ? worth : figure("Attention", [layer, asked], attention)), flags, scores, notes(view.notes) || "");
  await pick(now.picture);
  return { state: () => now };
}
