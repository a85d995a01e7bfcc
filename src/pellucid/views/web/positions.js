import { h, unpack, rounded, notes, surface, choice, announce, VIRIDIS } from "./core.js";
import { POINTED, arrowed, byteMap, cellWords, pointed, within } from "./attention.js";

// Small maps in a table, and beside it the one that is pointed at.
export async function mountPositions(root, view, page, state) {
  const sheets = await Promise.all(view.sheets.map(async (sheet) => ({ ...sheet, values: await unpack(sheet.values) })));
  const now = { sheet: 0, map: 0, at: [0, 0], ...state }, said = h("p", { class: "readout" }), scale = h("p", { class: "reading" });
  const sheet = () => sheets[now.sheet], lines = () => Math.ceil(sheet().labels.length / sheet().columns);
  const drawn = (i) => byteMap(sheet().values, i * sheet().grid[0] * sheet().grid[1], sheet().grid, VIRIDIS);
  const whole = surface((context, width, height, { mark }) => {
    const wide = width / sheet().columns, high = height / lines(), box = (i) => [(i % sheet().columns) * wide, Math.floor(i / sheet().columns) * high];
    context.imageSmoothingEnabled = false;
    sheet().labels.forEach((_, i) => context.drawImage(drawn(i), ...box(i).map((x) => x + 1), wide - 2, high - 2));
    context.strokeStyle = mark, context.lineWidth = 3;
    context.strokeRect(...box(now.map), wide, high);
  }, { ...POINTED, "aria-label": "A map of each place. Arrow keys choose one.", onkeydown: (event) => arrowed(event, (dy, dx) => go(now.map + dy * sheet().columns + dx, now.at, true)),
    onpointermove: over, onpointerdown: over });
  function over(event) {
    const [y, x] = pointed(event), { columns, grid } = sheet(), row = y * lines(), column = x * columns;
    go(Math.floor(row) * columns + Math.floor(column), [(row % 1) * grid[0], (column % 1) * grid[1]]);
  }
  const large = surface((context, width, height, { paper, mark }) => {
    const { grid: [gh, gw], sits } = sheet(), wide = width / gw, high = height / gh;
    context.imageSmoothingEnabled = false;
    context.drawImage(drawn(now.map), 0, 0, width, height);
    context.lineWidth = 3;
    for (const [at, colour] of [[sits[now.map], paper], [now.at, mark]]) if (at) context.strokeStyle = colour, context.strokeRect(at[1] * wide + 1, at[0] * high + 1, wide - 2, high - 2);
  }, { ...POINTED, "aria-label": "The chosen map. Arrow keys move through its values.", onkeydown: (event) => arrowed(event, (dy, dx) => go(now.map, [now.at[0] + dy, now.at[1] + dx], true)),
    onpointermove: read, onpointerdown: read });
  function read(event) {
    go(now.map, pointed(event).map((at, i) => at * sheet().grid[i]));
  }
  function go(map, at, aloud) {
    const { grid, values, low, high, labels, key, origin, what } = sheet();
    now.map = within(map, labels.length - 1), now.at = at.map((x, i) => within(x, grid[i] - 1));
    const byte = values[(now.map * grid[0] + now.at[0]) * grid[1] + now.at[1]];
    said.textContent = `${labels[now.map]}, ${key} ${cellWords(now.at, origin)}: ${what} ${rounded(low + (byte / 255) * (high - low))}`;
    whole.redraw(), large.redraw();
    if (aloud) announce(said.textContent);
  }
  function choose(i) {
    now.sheet = i;
    const { columns, grid: [gh, gw] } = sheet();
    whole.canvas.style.aspectRatio = (columns * gw) / (lines() * gh), large.canvas.style.aspectRatio = gw / gh;
    scale.textContent = sheet().scale;
    go(now.map, now.at);
  }
  root.append(choice("Shown", sheets.map(({ name }) => name), now.sheet, choose), h("div", { class: "sides" }, whole.canvas, h("div", {}, large.canvas, said, scale)), notes(view.notes) || "");
  choose(now.sheet);
  return { state: () => now };
}
