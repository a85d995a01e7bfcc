import { h, surface, place, rounded, announce, button } from "./core.js";

const PLOT_DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]]; // with seven colours, as report/charts.py: a pair comes back after 28

// Round numbers around low to high, in steps of 1, 2 or 5 times a power of ten, as report/charts.py.
function plotTicks(low, high) {
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) (high += Math.abs(high) / 2 || 1), (low -= Math.abs(low) / 2 || 1);
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough)), step = power * ([1, 2, 5].find((of) => rough <= of * power * (1 + 1e-9)) ?? 10);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

const plotTick = (value, ticks) => {
  const most = Math.max(...ticks.map(Math.abs));
  return value && (most < 0.01 || most >= 1e7) ? value.toExponential().replace("+", "") : value.toLocaleString("en-US", { maximumFractionDigits: 10 });
};

function plotStroke(context, style, palette, width = 2.2) {
  context.strokeStyle = context.fillStyle = palette.s[style % 7], context.lineWidth = width;
  context.setLineDash(PLOT_DASHES[style % 4]);
}

// A chart {title, x, y, unit, note, curves: [{name, style, x, y}], levels, shown, collapsed}: x and y name the axes; null in a curve is a gap; levels are lines
// without dots; shown [low, high] of y are seen at least; at and below `collapsed` the ground is shaded. options {hidden: [names]}.
// Returns {element, set(chart), hidden()}; set shows other data without rebuilding what a reader is at.
export function lineChart(chart, options = {}) {
  const hidden = new Set(options.hidden), title = h("strong"), key = h("div", { class: "legend", role: "group" }), at = h("p", { class: "reading", "data-at": "" }), note = h("p", { class: "reading" });
  let lines, xs, cross = null, left, right, low, high;
  const known = (line) => line.y.flatMap((y, i) => (Number.isFinite(y) ? [[line.x[i], y]] : []));
  const value = (line, x) => (chart.levels.includes(line) ? line.y[0] : line.y[line.x.indexOf(x)]);
  function said(x) {
    const values = lines.filter((line) => !hidden.has(line.name) && value(line, x) != null).map((line) => `${line.name} ${rounded(value(line, x), chart.unit)}`);
    return `${chart.x} ${rounded(x, "count")}: ${values.join(" · ") || "no value"}`;
  }

  const { canvas, redraw } = surface((context, width, height, palette) => {
    const there = lines.filter((line) => !hidden.has(line.name)), points = (there.length ? there : lines).flatMap(known);
    const heights = [...points.map((p) => p[1]), ...(chart.shown ?? [])], ys = plotTicks(heights.reduce((a, b) => Math.min(a, b), Infinity), heights.reduce((a, b) => Math.max(a, b), -Infinity));
    [low, high] = [xs[0], xs.at(-1)];
    let ticks = plotTicks(low, high).filter((x) => Number.isInteger(x) && x >= low && x <= high);
    if (low === high) (ticks = [low]), (low -= 1), (high += 1);
    context.font = "12px system-ui, sans-serif";
    [left, right] = [30 + Math.max(...ys.map((y) => context.measureText(plotTick(y, ys)).width)), width - 14];
    const floor = height - 44, X = (x) => left + ((x - low) / (high - low)) * (right - left), Y = (y) => floor - ((y - ys[0]) / (ys.at(-1) - ys[0])) * (floor - 10);
    const line = (x0, y0, x1, y1) => (context.beginPath(), context.moveTo(x0, y0), context.lineTo(x1, y1), context.stroke());
    if (chart.collapsed != null) {
      const top = Y(Math.min(chart.collapsed, ys.at(-1)));
      context.fillStyle = palette.bad, context.globalAlpha = 0.12, context.fillRect(left, top, right - left, Math.max(floor - top, 0)), context.globalAlpha = 1;
      context.textAlign = "right", context.fillText("collapse", right - 6, floor - 6);
    }
    context.fillStyle = palette.muted, context.lineWidth = 1;
    for (const y of ys) context.strokeStyle = y === ys[0] ? palette.muted : palette.grid, line(left, Y(y), right, Y(y)), (context.textAlign = "right"), context.fillText(plotTick(y, ys), left - 7, Y(y) + 4);
    context.strokeStyle = palette.muted, context.textAlign = "center";
    for (const x of ticks) line(X(x), floor, X(x), floor + 4), context.fillText(plotTick(x, ticks), X(x), floor + 18);
    context.fillText(chart.x, (left + right) / 2, height - 7);
    context.save(), context.rotate(-Math.PI / 2), context.fillText(chart.y, -(10 + floor) / 2, 13), context.restore();
    if (cross != null) context.strokeStyle = palette.ink, line(X(cross), 10, X(cross), floor);
    for (const of of [...chart.levels, ...chart.curves].filter((of) => there.includes(of))) {
      plotStroke(context, of.style, palette), context.beginPath();
      of.y.forEach((y, i) => Number.isFinite(y) && context[i && Number.isFinite(of.y[i - 1]) ? "lineTo" : "moveTo"](X(of.x[i]), Y(y)));
      context.stroke(), context.setLineDash([]);
      const dots = chart.curves.includes(of) && known(of).length <= 12 ? known(of) : [];
      for (const [x, y] of cross != null && value(of, cross) != null ? [...dots, [cross, value(of, cross)]] : dots) context.beginPath(), context.arc(X(x), Y(y), x === cross ? 4.5 : 3, 0, 7), context.fill();
    }
  }, { class: "chart", tabindex: 0, role: "application", onpointermove: over, onpointerdown: over, onpointerleave: () => go(null), onkeydown: press });

  function go(x, aloud) {
    cross = x, at.textContent = x == null ? "\u00a0" : said(x), redraw();
    if (aloud && x != null) announce(said(x));
  }
  function over(event) {
    const x = low + ((place(event)[0] - left) / (right - left)) * (high - low);
    go(xs.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best)));
  }
  function press(event) {
    const i = cross == null ? -1 : xs.indexOf(cross), to = { ArrowRight: i + 1, ArrowLeft: i < 0 ? xs.length - 1 : i - 1, Home: 0, End: xs.length - 1 }[event.key];
    if (event.key === "Escape") return go(null);
    if (to == null) return;
    event.preventDefault(), go(xs[Math.min(Math.max(to, 0), xs.length - 1)], true);
  }
  function entry({ name, style }) {
    const sample = surface((context, width, height, palette) => (plotStroke(context, style, palette), context.beginPath(), context.moveTo(0, height / 2), context.lineTo(width, height / 2), context.stroke()), { role: "presentation" }).canvas;
    const one = button([sample, name], () => (hidden.delete(name) || hidden.add(name), one.setAttribute("aria-pressed", !hidden.has(name)), go(cross)), { "aria-pressed": String(!hidden.has(name)) });
    return one;
  }
  function set(other) {
    const names = lines?.map((line) => line.name).join("\n");
    chart = { levels: [], ...other }, lines = [...chart.curves, ...chart.levels], xs = [...new Set(lines.flatMap((line) => known(line).map((p) => p[0])))].sort((a, b) => a - b);
    if (lines.map((line) => line.name).join("\n") !== names) key.replaceChildren(...(lines.length > 1 ? lines.map(entry) : []));
    title.textContent = chart.title, note.textContent = chart.note ?? "", key.setAttribute("aria-label", `Lines of ${chart.title}; press one to hide it`);
    const spoken = lines.map((line) => [line.name, known(line)]).filter(([, points]) => points.length).map(([name, points]) => `${name}: from ${rounded(points[0][1], chart.unit)} to ${rounded(points.at(-1)[1], chart.unit)}`);
    canvas.setAttribute("aria-label", `${chart.title}, ${chart.y} by ${chart.x}. ${spoken.join("; ")}. Arrow keys read the values.`);
    go(xs.includes(cross) ? cross : null);
  }
  set(chart);
  return { element: h("figure", {}, h("figcaption", {}, title, key), canvas, at, note), set, hidden: () => [...hidden] };
}
