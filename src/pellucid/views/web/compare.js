import { announce, choice, h, button, notes, place, surface } from "./core.js";
import { lineChart } from "./plot.js";

// A view of views/compare.py. What is under the pointer or has the focus is lit in table and lines; a pressed run stays chosen, and the curves show it.
export async function mountCompare(root, view, page, state) {
  const { rows, columns, axes, charts, pictures } = view, seen = { by: 0, up: null, chosen: [], chart: 0, picture: 0, sides: [], map: 0, ...state };
  let lit = -1;
  const body = h("tbody"), said = h("p", { class: "reading" }), name = (i) => rows[i].cells[0][0];
  const heads = columns.map((head, k) => h("th", { scope: "col", class: head.num && "num", title: head.title }, button(head.text, () => sort(k,
    seen.by === k && !seen.up))));
  const trs = rows.map((row, i) => h("tr", { onpointerenter: () => light(i), onpointerleave: () => light(-1), onfocusin: () => light(i) },
    row.cells.map(([text], k) =>
    k ? h("td", { class: columns[k].num ? "num" : text.length > 28 && "long" }, text)
      : h("th", { scope: "row" }, button(text, () => press(i)), row.marks.map((mark) => h("span", { class: "badge plain" }, mark))))));

  function sort(k, up) {
    Object.assign(seen, { by: k, up });
    const order = rows.map((_, i) => i).sort((a, b) => {
      const [x, y] = [a, b].map((i) => rows[i].cells[k][1]);
      return (x == null) - (y == null) || (up ? 1 : -1) * (typeof x === "number" && typeof y === "number" ? x - y : `${x}`.localeCompare(y, "en",
        { numeric: true }));
    });
    heads.forEach((head, i) => (i === k ? head.setAttribute("aria-sort", up ? "ascending" : "descending") : head.removeAttribute("aria-sort")));
    body.replaceChildren(...order.map((i) => trs[i]));
  }
  const light = (i, aloud) => {
    lit = i, (said.textContent = rows[i] ? [name(i), ...axes.map((axis) => `${axis.name} ${axis.texts[i]}`)].join(" · ") : "\u00a0");
    trs.forEach((tr, k) => {
      tr.classList.toggle("lit", k === i || seen.chosen.includes(k));
      tr.querySelector("button").setAttribute("aria-pressed", seen.chosen.includes(k));
    });
    lines?.redraw(), aloud && announce(said.textContent);
  };
  const press = (i) => {
    seen.chosen = seen.chosen.includes(i) ? seen.chosen.filter((k) => k !== i) : [...seen.chosen, i];
    light(i), draw();
  };

  const X = (k, width) => 70 + (k * (width - 140)) / Math.max(axes.length - 1, 1), Y = (at, height) => height - 16 - at * (height - 66);
  const lines = axes.length > 1 && surface((context, width, height, palette) => {
    const one = (i, strong) => {
      context.strokeStyle = strong ? palette.ink : palette.s[i % 7], context.lineWidth = strong ? 3 : 1.5, context.globalAlpha = strong ? 1 : 0.6,
        context.beginPath();
      axes.forEach(({ at }, k) => at[i] != null && context[axes[k - 1]?.at[i] != null ? "lineTo" : "moveTo"](X(k, width), Y(at[i], height)));
      context.stroke();
    };
    rows.forEach((_, i) => one(i)), [...seen.chosen, lit].forEach((i) => rows[i] && one(i, true));
    context.font = "12px system-ui, sans-serif", (context.lineWidth = 1), (context.textAlign = "center");
    axes.forEach(({ name, ticks }, k) => {
      context.strokeStyle = palette.muted, context.strokeRect(X(k, width), 50, 0, height - 66), (context.fillStyle = palette.ink), context.fillText(name, X(k,
        width), k % 2 ? 34 : 16, 132);
      for (const [at, text] of ticks) {
        const wide = Math.min(context.measureText(text).width, 90) + 4;
        context.globalAlpha = 0.8, (context.fillStyle = palette.paper), context.fillRect(X(k, width) - wide / 2, Y(at, height) - 8, wide, 15);
        context.globalAlpha = 1, (context.fillStyle = palette.muted), context.fillText(text, X(k, width), Y(at, height) + 4, 90);
      }
    });
  }, { class: "parallel", tabindex: 0, role: "application", style: { "min-width": `${axes.length * 110}px` },
    "aria-label": `Settings and number of ${rows.length} rows, a line each, over the axes ${axes.map((axis) => axis.name).join(", ")}. Up and down go through the rows, Enter chooses.` });
  if (lines) {
    const box = lines.canvas;
    box.onpointermove = box.onpointerdown = (event) => {
      const [x, y] = place(event), at = ((x - 70) / (box.clientWidth - 140)) * (axes.length - 1), k = Math.min(Math.max(Math.floor(at), 0), axes.length - 2);
      const away = rows.map((_, i) => Math.abs(Y(axes[k].at[i] + (at - k) * (axes[k + 1].at[i] - axes[k].at[i]), box.clientHeight) - y)),
        least = Math.min(...away);
      light(least < 24 ? away.indexOf(least) : -1);
    };
    box.onpointerleave = () => light(-1), (box.onclick = () => rows[lit] && press(lit));
    box.onkeydown = (event) => {
      const order = [...body.children].map((tr) => trs.indexOf(tr)), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) light(order[Math.min(Math.max(order.indexOf(lit) + step, 0), rows.length - 1)], true);
      else if (event.key === "Enter" && rows[lit]) press(lit);
      else return;
      event.preventDefault();
    };
  }

  const chart = charts.length && lineChart({ ...charts[seen.chart], curves: [] });
  function draw() {
    const of = charts[seen.chart], wanted = seen.chosen.length ? seen.chosen : view.first;
    chart && chart.set({ ...of, curves: of.curves.filter((line) => wanted.includes(line.row)) });
  }

  const pair = h("div", { class: "beside" }), sides = h("div", { class: "controls" });
  function side(focus) {
    const one = pictures[seen.picture], there = rows.map((_, i) => i).filter((i) => one.sides[i]), both = there.map(name);
    const at = [0, 1].map((k) => (there.includes(seen.sides[k]) ? seen.sides[k] : there[k])), maps = one.sides[at[0]].maps.map((map) => map[0]);
    sides.replaceChildren(...["Left", "Right"].map((label, k) => choice(label, both, there.indexOf(at[k]), (to) => ((seen.sides = at.with(k, there[to])),
      side(k)))), choice("Map", maps, Math.min(seen.map, maps.length - 1), (k) => ((seen.map = k), side(2))));
    sides.children[focus]?.input.focus();
    const figure = (src, title, text) => h("figure", {}, src && h("img", { src, alt: `${title}: ${one.file}` }), h("figcaption", {}, h("strong", {}, title),
      text.map((line) => h("span", { dir: "auto" }, line))));
    pair.replaceChildren(figure(one.photo, one.file, one.lines), one.truth ? figure(one.truth, "ground truth", []) : "", ...at.map((i) => {
      const [of, uri, text] = one.sides[i].maps.find((map) => map[0] === maps[seen.map]) ?? one.sides[i].maps[0] ?? ["", null, ""];
      return figure(uri, name(i), [...one.sides[i].lines, `${of} ${text}`]);
    }));
  }
  const part = (title, ...children) => root.append(h("h3", {}, title), ...children);
  root.append(h("div", { class: "scroll", role: "region", "aria-label": "Runs and their numbers", tabindex: 0 }, h("table", { class: "rows" }, h("caption",
    {}, view.caption), h("thead", {}, h("tr", {}, heads)), body)));
  if (lines) part("Settings and number", h("div", { class: "scroll" }, lines.canvas), said);
  if (chart) part("Curves", choice("Number", charts.map((of) => of.title), seen.chart, (i) => ((seen.chart = i), draw())), chart.element);
  if (pictures.length) part("The same picture in two models", choice("Picture", pictures.map((one) => one.file), seen.picture, (i) => ((seen.picture = i),
    side())), sides, pair), side();
  root.append(notes(view.notes) || "");
  body.append(...trs), seen.up != null && sort(seen.by, seen.up);
  seen.chosen.splice(0).forEach(press), light(-1), draw();
  return { state: () => ({ ...seen }) };
}
