import { announce, button, choice, gallery, h, notes, place, rounded, surface, table, terms } from "./core.js";

// A view of views/mistakes.py. Its pictures stand in the page's [data-part="mistakes"] where there is one, else below the confusion.
export async function mountMistakes(root, view, page, state) {
  const { classes, cells, items, filed, groups, wrong } = view, seen = { cell: "", only: 0, open: -1, ...state }, counts = new Map(), sums = {};
  for (let k = 0; k < cells.length; k += 3) counts.set(`${cells[k]},${cells[k + 1]}`, cells[k + 2]), (sums[cells[k]] = (sums[cells[k]] ?? 0) + cells[k + 2]);
  const part = !page.live && document.querySelector('[data-part="mistakes"]'), below = part ? h("div", { class: "moving" }) : root;
  const under = h("p", { role: "status" }), box = h("div"), opened = h("section", { class: "opened", tabindex: -1 });
  const share = (key) => counts.get(key) / sums[key.split(",")[0]] || 0;
  const told = (key, [i,
    j] = key.split(",")) => `${classes[i]} taken for ${classes[j]}: ${rounded(counts.get(key) ?? 0, "count")} ${view.of}, ${rounded(share(key))} of the label’s`;
  const press = (key) => (Object.assign(seen, { only: 0, cell: key === seen.cell ? "" : key }), (filter.input.selectedIndex = 0), show());
  const cell = (key, text, more) => button(text, () => press(key), { "data-cell": key, title: told(key), "aria-label": told(key), ...more });
  const filter = choice("Class", ["all classes", ...wrong.map((i) => classes[i])], seen.only, (only) => (Object.assign(seen, { only, cell: "" }), show())),
    all = button("Show all", () => press(""));
  const matrix = classes.length > 20 ? mistakesCanvas(classes.length, counts, share, told, cell, press, seen) : [];
  root.append(...view.lead.map((line) => h("p", {}, line)), ...matrix);
  if (classes.length && !matrix[0]) root.append(h("div", { class: "matrix" },
    table(`Rows are labels, columns predictions${view.of === "pixels" ? ", in percent of the label’s" : ""}. Press a confusion for its pictures.`, ["",
      ...classes.map((name) => h("span", {}, name))],
    classes.map((name, i) => [name, ...classes.map((_, j) => {
      const key = `${i},${j}`, n = counts.get(key) ?? 0, p = share(key);
      return cell(key, view.of === "samples" ? rounded(n, "count") : n && p < 0.005 ? "<1" : Math.round(100 * p), { disabled: !n || i === j,
        class: p > 0.55 && "hot", style: { "--p": `${100 * p}%` } });
    })]))));
  below.append(h("div", { class: "controls" }, filter, under, all), opened, box, notes(view.notes) || "");
  if (part) part.prepend(below), part.classList.add("alive");

  const pictures = (entries) => gallery(entries.map(([i, file, lines]) => ({ src: items[i]?.pictures[0][1], alt: file, lines })), (k) => open(entries[k][0],
    document.activeElement));
  function show() {
    const every = items.map((item, i) => [i, item.file, item.lines]), key = seen.cell;
    const there = filed[key]?.map(([i, file, text]) => [i, file, [file,
      text]]) ?? every.filter(([i]) => (key ? `${items[i].cell}` === key : !seen.only || items[i].cell.includes(wrong[seen.only - 1])));
    under.textContent = `${key && `${told(key)}. `}${there.length} listed.`, (under.hidden = groups.length), (all.hidden = !key && !seen.only);
    box.replaceChildren(...(groups.length ? groups.flatMap(([name, list]) => [h("h3", {}, name), pictures(list.map((i) => every[i]))]) : [pictures(there)]));
    root.querySelectorAll("[data-cell]").forEach((one) => one.setAttribute("aria-pressed", one.dataset.cell === key));
    matrix.redraw?.();
  }
  function open(i, from) {
    const item = items[(seen.open = i)], close = button("Close", () => (open(-1), from?.focus()));
    if ((opened.hidden = !item)) return;
    opened.setAttribute("aria-label", item.heading), (opened.onkeydown = (event) => event.key === "Escape" && close.click());
    opened.replaceChildren(h("h3", { dir: "auto" }, item.heading), close, gallery(item.pictures.map(([name, src]) => ({ src, alt: `${item.file}: ${name}`,
      lines: [src ? name : item.missing] }))),
      h("div", {}, h("p", { class: "path" }, item.file), terms(item.facts), item.top[0] ? table("Most probable classes", ["class", { text: "probability",
        num: 1 }], item.top) : ""),
      ...(item.near[0] ? [h("h4", {}, "Most similar training pictures, by features"), h("p", {}, item.said), gallery(item.near.map(([k, name, text,
        file]) => ({ src: view.tiles[k], alt: file, lines: [name, text] })))] : []));
    from && opened.focus();
  }
  show(), open(seen.open);
  return { state: () => seen };
}

// Many classes: ink is the square root of the share of the label's, so that rare confusions are seen; beside it the most frequent ones.
function mistakesCanvas(C, counts, share, told, cell, press, seen) {
  let at = [0, 0];
  const said = h("p", { class: "muted" }, "Rows are labels, columns predictions; ink is the square root of the share of the label’s."), { canvas,
    redraw } = surface((context, width, height, colours) => {
    const x = width / C, put = (key, draw, wide) => ([i, j] = key.split(","), context[draw](j * x, i * x, wide, wide));
    let i, j;
    context.fillStyle = colours.s[0], (context.lineWidth = 2);
    for (const key of counts.keys()) (context.globalAlpha = Math.sqrt(share(key))), put(key, "fillRect", Math.max(x, 1));
    for (const [key, colour] of [[`${at}`, colours.ink], [seen.cell, colours.s[1]]]) (context.globalAlpha = 1), (context.strokeStyle = colour),
      key && put(key, "strokeRect", x);
  }, { tabindex: 0, role: "application", class: "pixels", "aria-label": `Confusion matrix of ${C} classes. Arrow keys move, Enter shows pictures.` });
  const go = (...to) => ((at = to.map((v) => Math.min(Math.max(v, 0), C - 1))), (said.textContent = told(`${at}`)), redraw());
  canvas.onpointermove = canvas.onpointerdown = (event) => go(...place(event).map((v) => Math.floor((v / canvas.clientWidth) * C)).reverse());
  canvas.onclick = () => press(`${at}`);
  canvas.onkeydown = (event) => {
    const [i, j] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[event.key] ?? [];
    if (i == null) return;
    event.preventDefault(), i || j ? (go(at[0] + i, at[1] + j), announce(said.textContent)) : canvas.click();
  };
  const pairs = [...counts.keys()].filter((key) => key.split(",")[0] !== key.split(",")[1]).sort((a, b) => counts.get(b) - counts.get(a)).slice(0, 15);
  return Object.assign([h("div", { class: "beside" }, h("figure", {}, canvas, said), h("ol", { class: "notes" }, pairs.map((key) => h("li", {}, cell(key,
    told(key))))))], { redraw });
}
