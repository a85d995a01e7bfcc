import { h, table, terms } from "./core.js";
import { mountCurves } from "./curves.js";

const overviewList = (lines, properties = {}) => lines.length > 0 && h("ul", properties, lines.map((line) => h("li", {}, line)));
const overviewFolded = (title, ...inner) => h("details", {}, h("summary", {}, title), inner);

function overviewPromise({ kind, text, failed, lines }) {
  return h("div", { class: `promise ${kind}` }, h("p", {}, h("span", { class: "sign", "aria-hidden": "true" }), text), overviewList(failed),
    lines.length > 0 && overviewFolded(`${lines.length} checks`, overviewList(lines)));
}

function overviewTop(view) {
  const number = view.headline, moving = view.progress && h("div", { class: "control" }, h("progress", { max: 1, value: view.progress.share, "aria-label": "Progress of the training" }), view.progress.text);
  return [
    view.alarms.length > 0 && h("div", { class: "alarm", role: "alert" }, view.alarms.map(({ title, text }) => [h("h2", {}, title), h("p", {}, text)]).flat()),
    h("div", { class: "headline" },
      number ? h("div", {}, h("p", { class: "number" }, number.text), h("p", { class: "what" }, view.what), h("p", { class: "between" }, number.interval, h("span", { class: "muted" }, ` n = ${number.n}; ${number.how}`)))
        : h("div", {}, h("p", { class: "number none" }, "no number yet")),
      overviewPromise(view.promise)),
    moving, terms(view.facts),
    view.alerts.length > 0 && h("div", { class: "alert", role: "note", "aria-label": "Warnings" }, overviewList(view.alerts)),
  ];
}

const overviewNumbers = ({ numbers, decided }) => [
  numbers.length > 0 && table("Every number that this run reports", ["name", "split", { text: "value", num: true }, "interval", "unit", { text: "n", num: true }, "how"],
    numbers.map((m) => [m.name, m.split, h("strong", {}, m.text), m.interval || "none", m.unit, m.n, m.how])),
  decided.length > 0 && h("h3", {}, "Decided for you"), overviewList(decided, { class: "notes" }),
];

const overviewSettings = ({ settings, environment, made, verify }) => [
  overviewFolded("Settings: marked ones were chosen in the recipe, the others are at their default", h("div", { class: "columns" }, settings.map((group) =>
    h("table", { class: "settings" }, h("caption", {}, group.name), h("tbody", {}, group.settings.map((one) =>
      h("tr", { class: one.chosen && "set" }, h("th", { scope: "row", title: one.meaning }, one.key), h("td", {}, one.value, one.chosen && one.default != null && h("span", { class: "muted" }, ` default ${one.default}`))))))))),
  overviewFolded("Environment", terms(environment)),
  overviewFolded("Commands", h("p", {}, "The command that made this run:"), h("pre", { tabindex: 0 }, made), h("p", {}, "The command that recomputes its numbers:"), h("pre", { tabindex: 0 }, verify)),
];

// Returns as well update(view), for a run that still trains: a part is made anew only where it says something else, so that nobody loses their place.
export async function mountOverview(root, view, page, state) {
  const parts = [overviewTop, overviewNumbers, overviewSettings].map((make) => ({ make, box: h("div", { class: "moving" }), was: "" }));
  const below = h("div", { class: "moving" });
  let curves = null;
  async function update(other) {
    for (const part of parts) {
      const open = [...part.box.querySelectorAll("details")].map((one) => one.open), made = h("div", {}, part.make(other));
      if (made.textContent === part.was) continue;
      part.was = made.textContent, part.box.replaceChildren(...made.children);
      part.box.querySelectorAll("details").forEach((one, i) => (one.open = open[i] ?? false));
    }
    if (!other.curves) return;
    if (curves) curves.update(other.curves);
    else curves = await mountCurves(below, other.curves, page, state.curves ?? {});
  }
  root.append(parts[0].box, below, parts[1].box, parts[2].box);
  await update(view);
  return { update, state: () => ({ curves: curves?.state() }) };
}
