import { fill, h, table, terms } from "./core.js";
import { mountCurves } from "./curves.js";

const overviewList = (lines, tag = "ul") =>
  lines.length > 0 &&
  h(
    tag,
    lines.map((line) => h("li", line)),
  );
const overviewFolded = (title, ...inner) => h("details", h("summary", title), inner);

function overviewPromise({ kind, text, failed, lines }) {
  const sign = h("span.sign", { "aria-hidden": "true" });
  return h(
    `div.promise.${kind}`,
    h("p", sign, text),
    overviewList(failed),
    lines.length > 0 && overviewFolded(`${lines.length} checks`, overviewList(lines)),
  );
}

function overviewNumber({ headline: number, what }) {
  if (!number) return h("div", h("p.number.none", "no number yet"));
  const between = h("p.between", number.interval, h("span.muted", ` n = ${number.n}; ${number.how}`));
  return h("div", h("p.number", number.text), h("p.what", what), between);
}

function overviewProgress({ share, text }) {
  return h("div.control", h("progress", { max: 1, value: share, "aria-label": "Progress of the training" }), text);
}

const overviewTop = (view) => [
  view.alarms.length > 0 &&
    h(
      "div.alarm",
      { role: "alert" },
      view.alarms.map(({ title, text }) => [h("h2", title), h("p", text)]),
    ),
  h("div.headline", overviewNumber(view), overviewPromise(view.promise)),
  view.progress && overviewProgress(view.progress),
  terms(view.facts),
  view.alerts.length > 0 && h("div.alert", { role: "note", "aria-label": "Warnings" }, overviewList(view.alerts)),
];

function overviewNumbers({ numbers, decided }) {
  const heads = ["name", "split", { text: "value", num: true }, "interval", "unit", { text: "n", num: true }, "how"];
  const row = (of) => [of.name, of.split, h("strong", of.text), of.interval || "none", of.unit, of.n, of.how];
  return [
    numbers.length > 0 && h("div.numbers", table("Every number that this run reports", heads, numbers.map(row))),
    decided.length > 0 && [h("h3", "Decided for you"), overviewList(decided, "ul.notes")],
  ];
}

function overviewSetting({ changed, key, value, meaning, default: usual }) {
  const instead = changed && usual != null && h("span.muted", ` default ${usual}`);
  return h("tr", { class: changed && "set" }, h("th", { scope: "row", title: meaning }, key), h("td", value, instead));
}

function overviewSettings({ settings, environment, made, verify }) {
  const group = ({ name, settings }) => h("table.settings", h("caption", name), h("tbody", settings.map(overviewSetting)));
  const command = (text, line) => [h("p", text), h("pre", { tabindex: 0 }, line)];
  return [
    overviewFolded("Settings: marked ones differ from their default", h("div.columns", settings.map(group))),
    overviewFolded("Environment", terms(environment)),
    overviewFolded(
      "Commands",
      command("The command that made this run:", made),
      command("The command that recomputes its numbers:", verify),
    ),
  ];
}

// Returns as well update(view), for a run that still trains: a part is made anew only where it says something else, so that nobody loses their place.
export async function mountOverview(root, view, page, state) {
  const parts = [overviewTop, overviewNumbers, overviewSettings].map((make) => ({ make, box: h("div.moving") }));
  const below = h("div.moving");
  const folds = (part) => [...part.box.querySelectorAll("details")];
  let curves = null;
  async function update(other) {
    for (const part of parts) {
      const open = folds(part).map((one) => one.open);
      const made = h("div", part.make(other));
      if (made.textContent === part.text) continue;
      part.text = made.textContent;
      part.box.replaceChildren(...made.children);
      folds(part).forEach((one, i) => (one.open = open[i] ?? false));
    }
    if (!other.curves) return;
    if (curves) curves.update(other.curves);
    else curves = await mountCurves(below, other.curves, page, state.curves ?? {});
  }
  fill(root, parts[0].box, below, parts[1].box, parts[2].box);
  await update(view);
  return { update, state: () => ({ curves: curves?.state() }) };
}
