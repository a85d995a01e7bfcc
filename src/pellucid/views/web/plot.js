import { announce, circle, fill, h, keyed, legendButton, mouseLeft, place, rounded, stroke, surface, within } from "./core.js";

const PLOT_DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]]; // with seven colours, as report/charts.py: a pair comes back after 28

// Round numbers around low to high, in steps of 1, 2 or 5 times a power of ten, as report/charts.py.
function plotTicks(low, high) {
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
    high += Math.abs(high) / 2 || 1;
    low -= Math.abs(low) / 2 || 1;
  }
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((of) => rough <= of * power * (1 + 1e-9)) ?? 10);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function plotTick(value, ticks) {
  const most = Math.max(...ticks.map(Math.abs));
  const far = value && (most < 0.01 || most >= 1e7);
  return far ? value.toExponential().replace("+", "") : value.toLocaleString("en-US", { maximumFractionDigits: 10 });
}

function plotStyle(context, style, palette) {
  context.strokeStyle = context.fillStyle = palette.s[style % 7];
  context.lineWidth = 2.2;
  context.setLineDash(PLOT_DASHES[style % 4]);
}

// The points [x, y] of a line that are known.
const plotKnown = (line) => line.y.flatMap((y, i) => (Number.isFinite(y) ? [[line.x[i], y]] : []));

// Where the chart lies: X and Y from values to CSS pixels, the edges of its ground, and the ticks xs and ys.
function plotScale(context, chart, points, all, width, height) {
  const heights = [...points.map((point) => point[1]), ...(chart.shown ?? [])];
  const ys = plotTicks(Math.min(...heights), Math.max(...heights));
  const [bottom, top] = [ys[0], ys.at(-1)];
  let [low, high] = [all[0], all.at(-1)];
  let xs = plotTicks(low, high).filter((x) => Number.isInteger(x) && x >= low && x <= high);
  if (low === high) {
    xs = [low];
    low -= 1;
    high += 1;
  }
  const left = 30 + Math.max(...ys.map((y) => context.measureText(plotTick(y, ys)).width));
  const [right, floor] = [width - 14, height - 44];
  const X = (x) => left + ((x - low) / (high - low)) * (right - left);
  const Y = (y) => floor - ((y - bottom) / (top - bottom)) * (floor - 10);
  return { X, Y, xs, ys, low, high, left, right, floor };
}

// Grid, ticks, the names of the axes, and the ground on which a run has collapsed.
function plotGround(context, palette, chart, { X, Y, xs, ys, left, right, floor }) {
  context.textAlign = "right";
  if (chart.collapsed != null) {
    const top = Y(Math.min(chart.collapsed, ys.at(-1)));
    context.fillStyle = palette.bad;
    context.globalAlpha = 0.12;
    context.fillRect(left, top, right - left, Math.max(floor - top, 0));
    context.globalAlpha = 1;
    context.fillText("collapse", right - 6, floor - 6);
  }
  context.fillStyle = palette.muted;
  for (const y of ys) {
    context.strokeStyle = y === ys[0] ? palette.muted : palette.grid;
    stroke(context, [
      [left, Y(y)],
      [right, Y(y)],
    ]);
    context.fillText(plotTick(y, ys), left - 7, Y(y) + 4);
  }
  context.strokeStyle = palette.muted;
  context.textAlign = "center";
  for (const x of xs) {
    stroke(context, [
      [X(x), floor],
      [X(x), floor + 4],
    ]);
    context.fillText(plotTick(x, xs), X(x), floor + 18);
  }
  context.fillText(chart.x, (left + right) / 2, floor + 37);
  context.save();
  context.rotate(-Math.PI / 2);
  context.fillText(chart.y, -(10 + floor) / 2, 13);
  context.restore();
}

// A chart {title, x, y, unit, note, curves: [{name, style, x, y}], levels, shown, collapsed}: x and y name the axes; null in a curve is a gap; levels are
// lines without dots; shown [low, high] of y are seen at least; at and below `collapsed` the ground is shaded. hidden: names of lines.
// Returns {element, set(chart), hidden()}; set shows other data without rebuilding what a reader is at.
export function lineChart(chart, hide) {
  const hidden = new Set(hide);
  const title = h("strong");
  const key = h("div.legend", { role: "group" });
  const at = h("p.reading", { "data-at": "" });
  const note = h("p.reading");
  let lines = []; // curves, then levels
  let xs; // every x of them
  let cross = null; // the x that is read
  let scale;

  const there = () => lines.filter((line) => !hidden.has(line.name));
  const level = (line) => !chart.curves.includes(line);
  const value = (line, x) => line.y[level(line) ? 0 : line.x.indexOf(x)];
  function said() {
    const values = there()
      .filter((line) => value(line, cross) != null)
      .map((line) => `${line.name} ${rounded(value(line, cross), chart.unit)}`);
    return `${chart.x} ${rounded(cross, "count")}: ${values.join(" · ") || "no value"}`;
  }

  function paintLine(context, line, palette) {
    const { X, Y } = scale;
    const known = plotKnown(line);
    plotStyle(context, line.style, palette);
    stroke(
      context,
      line.y.map((y, i) => (Number.isFinite(y) ? [X(line.x[i]), Y(y)] : null)),
    );
    context.setLineDash([]);
    const dots = level(line) || known.length > 12 ? [] : known;
    const read = cross != null && value(line, cross) != null ? [[cross, value(line, cross)]] : [];
    for (const [x, y] of [...dots, ...read]) {
      circle(context, X(x), Y(y), x === cross ? 4.5 : 3);
      context.fill();
    }
  }
  function paint(context, width, height, palette) {
    const points = (there().length ? there() : lines).flatMap(plotKnown);
    if (!points.length) return;
    scale = plotScale(context, chart, points, xs, width, height);
    plotGround(context, palette, chart, scale);
    context.strokeStyle = palette.ink;
    if (cross != null)
      stroke(context, [
        [scale.X(cross), 10],
        [scale.X(cross), scale.floor],
      ]);
    for (const line of there().reverse()) paintLine(context, line, palette);
  }

  function go(x, aloud) {
    cross = x ?? null;
    at.textContent = cross == null ? "\u00a0" : said();
    redraw();
    if (aloud && cross != null) announce(said());
  }
  function over(event) {
    if (!scale) return;
    const x = scale.low + ((place(event)[0] - scale.left) / (scale.right - scale.left)) * (scale.high - scale.low);
    go(xs.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best), xs[0]));
  }
  const to = (i) => go(xs[within(i, xs.length - 1)], true);
  const keys = {
    ArrowRight: () => to(xs.indexOf(cross) + 1),
    ArrowLeft: () => to(cross == null ? xs.length : xs.indexOf(cross) - 1),
    Home: () => to(0),
    End: () => to(xs.length),
    Escape: () => go(),
  };
  const { canvas, redraw } = surface(paint, {
    class: "chart",
    tabindex: 0,
    role: "application",
    onpointermove: over,
    onpointerdown: over,
    onpointerleave: mouseLeft(() => go()),
    onkeydown: keyed(keys),
  });

  function entry({ name, style }) {
    const sample = (context, width, height, palette) => {
      plotStyle(context, style, palette);
      stroke(context, [
        [0, height / 2],
        [width, height / 2],
      ]);
    };
    return legendButton(sample, name, !hidden.has(name), () => {
      const back = hidden.delete(name);
      if (!back) hidden.add(name);
      go(cross);
      return back;
    });
  }
  function set(other) {
    const names = `${lines.map((line) => line.name)}`;
    chart = { levels: [], ...other };
    lines = [...chart.curves, ...chart.levels];
    xs = [...new Set(lines.flatMap(plotKnown).map(([x]) => x))].sort((a, b) => a - b);
    if (`${lines.map((line) => line.name)}` !== names) fill(key, lines.length > 1 && lines.map(entry));
    title.textContent = chart.title;
    note.textContent = chart.note ?? "";
    key.setAttribute("aria-label", `Lines of ${chart.title}; press one to hide it`);
    const spoken = lines.flatMap((line) => {
      const known = plotKnown(line);
      return known.length ? `${line.name}: from ${rounded(known[0][1], chart.unit)} to ${rounded(known.at(-1)[1], chart.unit)}` : [];
    });
    canvas.setAttribute("aria-label", `${chart.title}, ${chart.y} by ${chart.x}. ${spoken.join("; ")}. Arrow keys read the values.`);
    go(xs.includes(cross) ? cross : null);
  }
  set(chart);
  return { element: h("figure", h("figcaption", title, key), canvas, at, note), set, hidden: () => [...hidden] };
}
