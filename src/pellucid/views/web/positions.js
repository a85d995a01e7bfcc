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
    ringed(context, paper, mark, box(now.map));
  }
  function paintOne(context, width, height, { paper, ink, mark }) {
    const { grid, sits } = sheet();
    const [high, wide] = [height / grid[0], width / grid[1]];
    const box = ([row, column]) => [column * wide + 2, row * high + 2, wide - 4, high - 4];
    context.imageSmoothingEnabled = false;
    context.drawImage(drawn(now.map), 0, 0, width, height);
    if (sits[now.map]) ringed(context, paper, ink, box(sits[now.map]));
    ringed(context, paper, mark, box(now.at));
  }

  function go(map, at) {
    const { grid, values, low, high, labels, key, origin, what } = sheet();
    now.map = within(map, labels.length - 1);
    now.at = at.map((index, i) => within(index, grid[i] - 1));
    const byte = values[(now.map * grid[0] + now.at[0]) * grid[1] + now.at[1]];
    said.textContent = `${labels[now.map]}, ${key} ${cellWords(now.at, origin)}: ${what} ${rounded(low + (byte / 255) * (high - low))}`;
    all.redraw();
    one.redraw();
    return said.textContent;
  }
  // The table of maps is one grid of all their cells, in which an arrow passes a whole map.
  const all = surface(paintAll, {
    ...steered({
      grid: () => [lines() * sheet().grid[0], sheet().columns * sheet().grid[1]],
      at: () => placed(now.map).map((at, i) => at * sheet().grid[i] + now.at[i]),
      go: ([row, column]) => {
        const { columns, grid } = sheet();
        return go(Math.floor(row / grid[0]) * columns + Math.floor(column / grid[1]), [row % grid[0], column % grid[1]]);
      },
      step: () => sheet().grid,
    }),
    "aria-label": "A map of each place. Arrow keys choose one.",
  });
  const one = surface(paintOne, {
    ...steered({ grid: () => sheet().grid, at: () => now.at, go: (at) => go(now.map, at) }),
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
    h("div.sides", figure("All maps, each at its own place", all.canvas), figure("The map that is pointed at", one.canvas, said, scale)),
    notes(view.notes),
  );
  choose(now.sheet);
  return { state: () => now };
}
