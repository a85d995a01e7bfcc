import { h, notes } from "./core.js";
import { lineChart } from "./plot.js";

const curvesChart = (of) => ({ ...of, x: of.x_label, y: of.y_label });

// state {hidden: {name of a chart: [names of lines]}}. Returns as well update(view), for a run that still trains.
export async function mountCurves(root, view, page, state) {
  const charts = new Map(), figures = h("div", { class: "figures" }), said = h("div");
  function update(other) {
    for (const of of other.charts) {
      if (charts.has(of.name)) charts.get(of.name).set(curvesChart(of));
      else charts.set(of.name, lineChart(curvesChart(of), { hidden: state.hidden?.[of.name] })), figures.append(charts.get(of.name).element);
    }
    said.replaceChildren(notes(other.notes) || "");
  }
  update(view);
  root.append(figures, said);
  return { update, state: () => ({ hidden: Object.fromEntries([...charts].map(([name, chart]) => [name, chart.hidden()])) }) };
}
