import { fill, h, notes } from "./core.js";
import { lineChart } from "./plot.js";

// state {hidden: {name of a chart: [names of lines]}}. Returns as well update(view), for a run that still trains.
export async function mountCurves(root, view, page, state) {
  const charts = new Map();
  const figures = h("div.figures");
  const below = h("div");
  function update(other) {
    for (const one of other.charts) {
      const chart = { ...one, x: one.x_label, y: one.y_label };
      if (charts.has(one.name)) charts.get(one.name).set(chart);
      else {
        charts.set(one.name, lineChart(chart, state.hidden?.[one.name]));
        figures.append(charts.get(one.name).element);
      }
    }
    fill(below, notes(other.notes));
  }
  update(view);
  root.append(figures, below);
  return { update, state: () => ({ hidden: Object.fromEntries([...charts].map(([name, chart]) => [name, chart.hidden()])) }) };
}
