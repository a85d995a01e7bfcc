import {
  VIRIDIS,
  cellWords,
  choice,
  figure,
  fill,
  h,
  notes,
  raster,
  ringed,
  rounded,
  shades,
  steered,
  surface,
  unpacked,
  within,
} from "./core.js";

const POSITIONS_SHADES = shades(VIRIDIS);

// Small maps in a table, and beside it the one that is pointed at. state {sheet, map, at}: at is a cell [row, column] of the map.
export async function mountPositions(root, view, page, state) {
  const sheets = await unpacked(view.sheets);
  const now = { sheet: 0, map: 0, at: [0, 0], ...state };
  let hover = null; // a map and a place in it, which last as long as a mouse is there
  const here = () => hover ?? now;
  const said = h("p.readout");
  const scale = h("p.reading");
  const sheet = () => sheets[now.sheet];
  const lines = () => Math.ceil(sheet().labels.length / sheet().columns);
  const placed = (i) => [Math.floor(i / sheet().columns), i % sheet().columns];

  function drawn(i) {
    const { grid, values } = sheet();
    return raster(grid, (at) => POSITIONS_SHADES[values[i * grid[0] * grid[1] + at]]);
  }
  function paintAll(context, width, height, { paper, mark }) {
    const [high, wide] = [height / lines(), width / sheet().columns];
    const box = (i, [row, column] = placed(i)) => [column * wide + 1, row * high + 1, wide - 2, high - 2];
    context.imageSmoothingEnabled = false;
    sheet().labels.forEach((_, i) => context.drawImage(drawn(i), ...box(i)));
    ringed(context, paper, mark, box(here().map));
  }
  function paintOne(context, width, height, { paper, ink, mark }) {
    const { grid, sits } = sheet();
    const [high, wide] = [height / grid[0], width / grid[1]];
    const box = ([row, column]) => [column * wide + 2, row * high + 2, wide - 4, high - 4];
    context.imageSmoothingEnabled = false;
    const { map, at } = here();
    context.drawImage(drawn(map), 0, 0, width, height);
    if (sits[map]) ringed(context, paper, ink, box(sits[map]));
    ringed(context, paper, mark, box(at));
  }

  function read() {
    const { grid, values, low, high, labels, key, origin, what } = sheet();
    const { map, at } = here();
    const byte = values[(map * grid[0] + at[0]) * grid[1] + at[1]];
    said.textContent = `${labels[map]}, ${key} ${cellWords(at, origin)}: ${what} ${rounded(low + (byte / 255) * (high - low))}`;
    all.redraw();
    one.redraw();
    return said.textContent;
  }
  // A mouse that moves shows a place as long as it is there; a press, a finger and the keys stay at it.
  function go(map, at, event) {
    const { grid, labels } = sheet();
    const to = { map: within(map, labels.length - 1), at: at.map((index, i) => within(index, grid[i] - 1)) };
    hover = event?.type === "pointermove" && event.pointerType === "mouse" ? to : null;
    if (!hover) Object.assign(now, to);
    return read();
  }
  const onpointerleave = () => {
    hover = null;
    read();
  };
  // The table of maps is one grid of all their cells, in which an arrow passes a whole map.
  const all = surface(paintAll, {
    ...steered({
      grid: () => [lines() * sheet().grid[0], sheet().columns * sheet().grid[1]],
      at: () => placed(here().map).map((at, i) => at * sheet().grid[i] + here().at[i]),
      go: ([row, column], event) => {
        const { columns, grid } = sheet();
        return go(Math.floor(row / grid[0]) * columns + Math.floor(column / grid[1]), [row % grid[0], column % grid[1]], event);
      },
      step: () => sheet().grid,
    }),
    onpointerleave,
    "aria-label": "A map of each place. Arrow keys choose one.",
  });
  const one = surface(paintOne, {
    ...steered({ grid: () => sheet().grid, at: () => here().at, go: (at, event) => go(here().map, at, event) }),
    onpointerleave,
    "aria-label": "The chosen map. Arrow keys move through its values.",
  });
  function choose(i) {
    now.sheet = i;
    const { columns, grid } = sheet();
    all.canvas.style.aspectRatio = (columns * grid[1]) / (lines() * grid[0]);
    one.canvas.style.aspectRatio = grid[1] / grid[0];
    scale.textContent = sheet().scale;
    go(now.map, now.at);
  }

  const names = sheets.map(({ name }) => name);
  fill(
    root,
    choice("Shown", names, now.sheet, choose),
    h(
      "div.sides",
      figure("All maps, each at its own place", all.canvas, h("p.reading", "A press keeps a map.")),
      figure("The map that is pointed at", one.canvas, said, scale),
    ),
    notes(view.notes),
  );
  choose(now.sheet);
  return { state: () => now };
}
