import {
  POINTED,
  announce,
  arrows,
  button,
  choice,
  fill,
  h,
  keyed,
  mouseLeft,
  notes,
  place,
  pressed,
  scrolled,
  stroke,
  surface,
  within,
} from "./core.js";
import { lineChart } from "./plot.js";

const COMPARE_EDGE = 70; // pixels beside the first and the last axis
const COMPARE_REACH = 24; // pixels from the pointer to the line that it finds

// The text within so many pixels: what stands in the middle of a longer one is left out.
function compareShort(context, text, most) {
  const fits = (one) => context.measureText(one).width <= most;
  let kept = text.length;
  let short = text;
  while (!fits(short) && kept > 2) {
    kept--;
    short = `${text.slice(0, Math.ceil(kept / 2))}…${text.slice(-Math.floor(kept / 2))}`;
  }
  return short;
}

// A line per row over the axes of settings: {canvas, redraw}. light(i, aloud) and press(i) tell what is pointed at and chosen; strong() gives the rows
// that are drawn over all others, sorted() the rows in the order of the table, lit() that which is pointed at.
function compareLines({ rows, axes }, light, press, strong, sorted, lit) {
  const X = (k, width) => COMPARE_EDGE + (k * (width - 2 * COMPARE_EDGE)) / (axes.length - 1);
  const Y = (at, height) => height - 16 - at * (height - 66);
  function paintAxis(context, { name, ticks }, k, width, height, { paper, ink, muted }) {
    const x = X(k, width);
    context.strokeStyle = muted;
    context.lineWidth = 1;
    stroke(context, [
      [x, Y(0, height)],
      [x, Y(1, height)],
    ]);
    context.fillStyle = ink;
    context.fillText(compareShort(context, name, 132), x, k % 2 ? 34 : 16);
    for (const [at, text] of ticks) {
      const short = compareShort(context, text, 90);
      const wide = context.measureText(short).width + 6;
      context.fillStyle = paper;
      context.fillRect(x - wide / 2, Y(at, height) - 8, wide, 16);
      context.fillStyle = muted;
      context.fillText(short, x, Y(at, height) + 4);
    }
  }
  function paint(context, width, height, palette) {
    const line = (i) =>
      stroke(
        context,
        axes.map(({ at }, k) => (at[i] == null ? null : [X(k, width), Y(at[i], height)])),
      );
    context.lineWidth = 1.5;
    context.globalAlpha = 0.6;
    rows.forEach((_, i) => {
      context.strokeStyle = palette.s[i % 7];
      line(i);
    });
    context.lineWidth = 3;
    context.globalAlpha = 1;
    context.strokeStyle = palette.ink;
    strong().forEach(line);
    context.textAlign = "center";
    axes.forEach((axis, k) => paintAxis(context, axis, k, width, height, palette));
  }
  function over(event) {
    const { clientWidth, clientHeight } = canvas;
    const [x, y] = place(event);
    const at = ((x - COMPARE_EDGE) / (clientWidth - 2 * COMPARE_EDGE)) * (axes.length - 1);
    const k = within(at, axes.length - 2);
    const between = (i) => {
      const [from, to] = [axes[k].at[i], axes[k + 1].at[i]];
      return from == null || to == null ? Infinity : from + (at - k) * (to - from); // no line is drawn to what has no value
    };
    const away = rows.map((_, i) => Math.abs(Y(between(i), clientHeight) - y));
    const least = Math.min(...away);
    light(least < COMPARE_REACH ? away.indexOf(least) : -1);
  }
  const choose = () => rows[lit()] && press(lit());
  const step = (down, across) => light(sorted()[within(sorted().indexOf(lit()) + down + across, rows.length - 1)], true);
  const { canvas, redraw } = surface(paint, {
    ...POINTED,
    class: "parallel",
    style: { "min-width": `${axes.length * 110}px` },
    "aria-label": `Settings and number of ${rows.length} rows, a line each, over the axes ${axes.map(({ name }) => name).join(", ")}. Up and down go through the rows, Enter chooses.`,
    onpointermove: over,
    onpointerdown: over,
    onpointerleave: mouseLeft(() => light(-1)),
    onclick: choose,
    onkeydown: keyed({ ...arrows(step), Enter: choose }),
  });
  return { canvas, redraw };
}

// One picture as two of the rows have it: {sides, pair, show}.
function comparePictures({ rows, pictures }, seen) {
  const sides = h("div.controls");
  const pair = h("div.beside");
  const name = (i) => rows[i].cells[0][0];
  function figure(src, title, lines, file) {
    const text = lines.map((line) => h("span", { dir: "auto" }, line));
    return h("figure", src && h("img", { src, alt: `${title}: ${file}` }), h("figcaption", h("strong", title), text));
  }
  // focus: which of the choices was used, and keeps the focus.
  function show(focus) {
    const one = pictures[seen.picture];
    const there = rows.map((_, i) => i).filter((i) => one.sides[i]);
    const at = [0, 1].map((k) => (there.includes(seen.sides[k]) ? seen.sides[k] : there[k]));
    const maps = one.sides[at[0]].maps.map(([map]) => map);
    const side = (label, k) =>
      choice(label, there.map(name), there.indexOf(at[k]), (to) => {
        seen.sides = at.with(k, there[to]);
        show(k);
      });
    const map = choice("Map", maps, Math.min(seen.map, maps.length - 1), (to) => {
      seen.map = to;
      show(2);
    });
    const half = (i) => {
      const { maps: own, lines } = one.sides[i];
      const [of, uri, text] = own.find(([map]) => map === maps[seen.map]) ?? own[0] ?? ["", null, ""];
      return figure(uri, name(i), [...lines, `${of} ${text}`], one.file);
    };
    fill(sides, side("Left", 0), side("Right", 1), map);
    sides.children[focus]?.input.focus();
    fill(
      pair,
      h("div", { title: one.file }, figure(one.photo, one.file.split(/\/|\\/).at(-1), one.lines, one.file)),
      one.truth && figure(one.truth, "ground truth", [], one.file),
      at.map(half),
    );
  }
  return { sides, pair, show };
}

// A view of views/compare.py. What is under the pointer or has the focus is lit in table and lines; a pressed run stays chosen, and the curves show it.
export async function mountCompare(root, view, page, state) {
  const { rows, columns, axes, charts, pictures } = view;
  const seen = { by: 0, up: null, chosen: [], curve: 0, picture: 0, sides: [], map: 0, ...state };
  const body = h("tbody");
  const said = h("p.reading");
  let lit = -1;

  // ── the table ──
  const heads = columns.map(({ text, num, title }, k) => {
    const press = button(text, () => sort(k, seen.by === k && !seen.up));
    return h("th", { scope: "col", class: num && "num", title }, press);
  });
  const lines = rows.map(({ cells, marks }, i) => {
    const run = button(cells[0][0], () => press(i));
    const first = h(
      "th",
      { scope: "row" },
      run,
      marks.map((mark) => h("span.badge.plain", mark)),
    );
    const others = cells.slice(1).map(([text], k) => {
      const { num, text: head } = columns[k + 1];
      return h("td", { class: num ? "num" : text.length > 28 && "long", "data-head": head }, text);
    });
    return h(
      "tr",
      { onpointerenter: () => light(i), onpointerleave: mouseLeft(() => light(-1)), onfocusin: () => light(i) },
      first,
      others,
    );
  });
  function sort(k, up) {
    Object.assign(seen, { by: k, up });
    const compared = (x, y) => (typeof x === "number" && typeof y === "number" ? x - y : `${x}`.localeCompare(y, "en", { numeric: true }));
    const order = rows
      .map((_, i) => i)
      .sort((a, b) => {
        const [x, y] = [a, b].map((i) => rows[i].cells[k][1]);
        return (x == null) - (y == null) || (up ? 1 : -1) * compared(x, y); // what has no value is last either way
      });
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[k].setAttribute("aria-sort", up ? "ascending" : "descending");
    fill(
      body,
      order.map((i) => lines[i]),
    );
  }

  // ── what is lit and chosen ──
  function light(i, aloud) {
    lit = i;
    said.textContent = rows[i] ? [rows[i].cells[0][0], ...axes.map(({ name, texts }) => `${name} ${texts[i]}`)].join(" · ") : "\u00a0";
    lines.forEach((line, k) => {
      line.classList.toggle("lit", k === i || seen.chosen.includes(k));
      pressed(line.querySelector("button"), seen.chosen.includes(k));
    });
    parallel?.redraw();
    if (aloud) announce(said.textContent);
  }
  function press(i) {
    const rest = seen.chosen.filter((k) => k !== i);
    seen.chosen = rest.length < seen.chosen.length ? rest : [...rest, i];
    light(i);
    draw();
  }
  const strong = () => [...seen.chosen, lit].filter((i) => rows[i]);
  const sorted = () => [...body.children].map((line) => lines.indexOf(line));
  const parallel = axes.length > 1 ? compareLines(view, light, press, strong, sorted, () => lit) : null;

  const chart = charts.length > 0 && lineChart({ ...charts[seen.curve], curves: [] });
  function draw() {
    const wanted = seen.chosen.length ? seen.chosen : view.first;
    if (!chart) return;
    const of = charts[seen.curve];
    const curves = of.curves.filter(({ row }) => wanted.includes(row));
    chart.set({ ...of, curves, note: curves.length ? "" : "None of the chosen runs has this number." });
  }
  const number = choice(
    "Number",
    charts.map(({ title }) => title),
    seen.curve,
    (i) => {
      seen.curve = i;
      draw();
    },
  );
  const two = comparePictures(view, seen);
  const one = choice(
    "Picture",
    pictures.map(({ file }) => file),
    seen.picture,
    (i) => {
      seen.picture = i;
      two.show();
    },
  );

  const runs = h("table.rows", h("caption", view.caption), h("thead", h("tr", heads)), body);
  fill(
    root,
    scrolled("Runs and their numbers", runs),
    h("h3", "What the differences mean"),
    h(
      "dl.words",
      rows.map(({ cells, words }) => h("div", h("dt", cells[0][0]), h("dd", words))),
    ),
    parallel && [h("h3", "Settings and number"), scrolled("Settings and number, a line a row", parallel.canvas), said],
    chart && [h("h3", "Curves"), number, chart.element],
    pictures.length > 0 && [h("h3", "The same picture in two models"), one, two.sides, two.pair],
    notes(view.notes),
  );
  fill(body, lines);
  if (seen.up != null) sort(seen.by, seen.up);
  if (pictures.length) two.show();
  light(-1);
  draw();
  return { state: () => ({ ...seen }) };
}
