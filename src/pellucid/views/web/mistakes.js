import { button, choice, fill, gallery, h, keyed, notes, pressed, ringed, rounded, steered, surface, table, terms } from "./core.js";

const MISTAKES_TABLE = 20; // classes of a confusion that is a table; with more it is a canvas
const MISTAKES_PAIRS = 15; // of the most frequent confusions, beside the canvas

// The confusion of a view as {count, share, told, keys}; a cell is named "label,prediction".
function mistakesConfusion({ classes, cells, of }) {
  const counts = new Map();
  const sums = {};
  for (let k = 0; k < cells.length; k += 3) {
    const [label, prediction, n] = cells.slice(k, k + 3);
    counts.set(`${label},${prediction}`, n);
    sums[label] = (sums[label] ?? 0) + n;
  }
  const count = (key) => counts.get(key) ?? 0;
  const share = (key) => count(key) / sums[key.split(",")[0]] || 0;
  const told = (key) => {
    const [label, prediction] = key.split(",").map((i) => classes[i]);
    return `${label} taken for ${prediction}: ${rounded(count(key), "count")} ${of}, ${rounded(share(key))} of the label’s`;
  };
  return { count, share, told, keys: [...counts.keys()] };
}

// Every cell a button: cell(key, text, properties) makes it.
function mistakesTable({ classes, of }, { count, share }, cell) {
  const entry = (i, j) => {
    const key = `${i},${j}`;
    const percent = count(key) && share(key) < 0.005 ? "<1" : Math.round(100 * share(key));
    const ink = { style: { "--p": `${100 * share(key)}%` } };
    return cell(key, of === "samples" ? rounded(count(key), "count") : percent, { disabled: !count(key) || i === j, ...ink });
  };
  const caption = `Rows are labels, columns predictions${of === "pixels" ? ", in percent of the label’s" : ""}. Press a confusion for its pictures.`;
  const rows = classes.map((name, i) => [name, ...classes.map((_, j) => entry(i, j))]);
  return h("div.matrix", table(caption, ["", ...classes.map((name) => h("span", name))], rows));
}

// Many classes, and beside them the most frequent confusions: {element, redraw}.
function mistakesCanvas({ classes }, { count, share, told, keys }, cell, press, seen) {
  const n = classes.length;
  const ink = "Rows are labels, columns predictions; ink is the square root of the share of the label’s, so that rare confusions are seen.";
  const said = h("p.readout");
  let at = [0, 0];
  function paint(context, width, height, { paper, mark, s }) {
    const side = width / n;
    const corner = (key) =>
      key
        .split(",")
        .map((i) => i * side)
        .reverse();
    context.fillStyle = s[0];
    for (const key of keys) {
      context.globalAlpha = Math.sqrt(share(key));
      context.fillRect(...corner(key), Math.max(side, 1), Math.max(side, 1));
    }
    context.globalAlpha = 1;
    for (const [key, colour] of [
      [`${at}`, mark],
      [seen.cell, s[1]],
    ])
      if (key) ringed(context, paper, colour, [...corner(key), side, side]);
  }
  function go(to) {
    at = to;
    said.textContent = told(`${at}`);
    redraw();
    return said.textContent;
  }
  const choose = () => press(`${at}`);
  const { canvas, redraw } = surface(paint, {
    ...steered({ grid: () => [n, n], at: () => at, go, keys: { Enter: choose } }),
    onclick: choose,
    class: "pixels",
    "aria-label": `Confusion matrix of ${n} classes. Arrow keys move, Enter shows pictures.`,
  });
  const wrong = keys.filter((key) => key.split(",")[0] !== key.split(",")[1]).sort((a, b) => count(b) - count(a));
  const list = h(
    "ol.notes",
    wrong.slice(0, MISTAKES_PAIRS).map((key) => h("li", cell(key, told(key)))),
  );
  return { element: h("div.beside", h("figure", h("figcaption", ink), canvas, said), list), redraw };
}

// A view of views/mistakes.py. Its pictures stand in the page's [data-part="mistakes"] where there is one, else below the confusion.
export async function mountMistakes(root, view, page, state) {
  const { classes, items, filed, groups, wrong } = view;
  const seen = { cell: "", only: 0, open: -1, ...state };
  const confusion = mistakesConfusion(view);
  const under = h("p", { role: "status" });
  const box = h("div");
  const opened = h("section.opened", { tabindex: -1 });

  function press(key) {
    Object.assign(seen, { only: 0, cell: key === seen.cell ? "" : key });
    filter.input.selectedIndex = 0;
    show();
  }
  function cell(key, text, more) {
    const told = confusion.told(key);
    return button(text, () => press(key), { "data-cell": key, title: told, "aria-label": told, ...more });
  }
  const filter = choice("Class", ["all classes", ...wrong.map((i) => classes[i])], seen.only, (only) => {
    Object.assign(seen, { only, cell: "" });
    show();
  });
  const all = button("Show all", () => press(""));
  const many = classes.length > MISTAKES_TABLE && mistakesCanvas(view, confusion, cell, press, seen);
  const matrix = many ? many.element : classes.length > 0 && mistakesTable(view, confusion, cell);

  // Pictures [index of its item or -1, file, lines].
  function pictures(entries) {
    const tiles = entries.map(([i, file, lines]) => ({ src: items[i]?.pictures[0][1], alt: file, lines }));
    return gallery(tiles, (k, tile) => open(entries[k][0], tile));
  }
  function listed() {
    const key = seen.cell;
    if (filed[key]) return filed[key].map(([i, file, text]) => [i, file, [file, text]]);
    const there = ({ cell }) => (key ? `${cell}` === key : !seen.only || cell.includes(wrong[seen.only - 1]));
    return items.flatMap((item, i) => (there(item) ? [[i, item.file, item.lines]] : []));
  }
  function show() {
    const found = listed();
    under.textContent = [seen.cell && `${confusion.told(seen.cell)}.`, `${found.length} listed.`].filter(Boolean).join(" ");
    under.hidden = groups.length > 0;
    all.hidden = !seen.cell && !seen.only;
    const group = ([name, list]) => [h("h3", name), pictures(list.map((i) => [i, items[i].file, items[i].lines]))];
    fill(box, groups.length ? groups.map(group) : pictures(found));
    for (const one of root.querySelectorAll("[data-cell]")) pressed(one, one.dataset.cell === seen.cell);
    if (many) many.redraw();
  }
  function open(i, from) {
    const item = items[i];
    seen.open = i;
    opened.hidden = !item;
    if (!item) return;
    const close = button("Close", () => {
      open(-1);
      from?.focus();
    });
    opened.setAttribute("aria-label", item.heading);
    opened.onkeydown = keyed({ Escape: () => close.click() });
    fill(opened, h("h3", { dir: "auto" }, item.heading), close, details(item));
    if (from) opened.focus();
  }
  function details({ file, pictures, missing, facts, top, near, said }) {
    const own = pictures.map(([name, src]) => ({ src, alt: `${file}: ${name}`, lines: [src ? name : missing] }));
    const alike = near.map(([tile, name, text, file]) => ({ src: view.tiles[tile], alt: file, lines: [name, text] }));
    const probable = ["class", { text: "probability", num: true }];
    return [
      gallery(own),
      h("div", h("p.path", file), terms(facts), top.length > 0 && table("Most probable classes", probable, top)),
      near.length > 0 && [h("h4", "Most similar training pictures, by features"), h("p", said), gallery(alike)],
    ];
  }

  const part = !page.live && document.querySelector('[data-part="mistakes"]');
  const below = [h("div.controls", filter, under, all), opened, box, notes(view.notes)];
  fill(
    root,
    view.lead.map((line) => h("p", line)),
    matrix,
    !part && below,
  );
  if (part) {
    part.prepend(h("div.moving", below));
    part.classList.add("alive");
  }
  show();
  open(seen.open);
  return { state: () => seen };
}
