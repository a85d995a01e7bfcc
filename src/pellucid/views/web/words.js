import { h, unpack, picture, surface, overlay, choice, button, rounded, shown, table, notes } from "./core.js";
import { steered, ringed } from "./masks.js";

// A caption whose words are buttons: the pressed one's map lies over the picture; the weight of the patch under the mark is said.
export async function mountWords(root, view, page, state) {
  const now = { picture: 0, set: 0, word: 0, at: null, ...state };
  let one, photo, maps, gh, gw;

  const load = async (i) => {
    const next = view.pictures[i], found = await Promise.all([next.photo && picture(next.photo), unpack(next.maps)]);
    if (one) now.word = 0, now.at = null;
    now.picture = i, one = next, [photo, maps] = found, [gh, gw] = one.grid;
    caption.textContent = one.caption || "no word";
    words.replaceChildren(...["photo", ...one.words.map(({ text }) => text)].map((text, b) => button(h("bdi", {}, text), () => press(b - 1))));
    own.replaceChildren(h("summary", {}, `own captions · ${one.file}`),
      h("ul", { class: "own" }, one.references.map((text) => h("li", { dir: "auto" }, text))));
    canvas.style.aspectRatio = `${one.size[1]} / ${one.size[0]}`;
    press(Math.min(now.word, one.words.length - 1));
  };
  // The words are one stop of the tab key; arrow keys go along them.
  const press = (w) => {
    now.word = w;
    const word = one.words[w];
    [...words.children].forEach((b, i) => (b.setAttribute("aria-pressed", i - 1 === w), (b.tabIndex = i - 1 === w ? 0 : -1)));
    canvas.setAttribute("aria-label", !word ? `${one.file}, the photograph` :
      `“${word.text}”, ${word.after}: the map is highest ${word.place}; arrow keys move the mark`);
    said.replaceChildren(...(word ? [h("p", {}, h("strong", {}, h("bdi", {}, word.text)), ` ${word.after}; highest ${word.place}. ${word.share}`),
      word.scores.length ? table("The map of this word", ["measure", { text: "map", num: true }, { text: "centre prior", num: true }], word.scores)
        : h("p", { class: "muted" }, "Not measured for this word.")] : []),
    h("p", { class: "muted" }, `${one.missing} ${one.scales[now.set]} ${one.notes}`));
    read();
  };
  const along = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    press(Math.min(Math.max(now.word + step, -1), one.words.length - 1));
    words.children[now.word + 1].focus();
  };
  const map = () => maps.subarray((now.set * one.words.length + now.word) * gh * gw).subarray(0, gh * gw);
  const read = () => {
    const word = one.words[now.word], [x, y] = now.at ?? [];
    redraw();
    return (readout.textContent = !word ? "" : !now.at ? "Point at a patch, or move the mark with the arrow keys." :
      `Row ${y + 1} of ${gh}, column ${x + 1} of ${gw}: ${rounded((map()[y * gw + x] / 65535) * one.most[now.set])} of the attention of “${word.text}”`);
  };
  const { canvas, redraw } = surface((context, width, height, palette) => {
    if (!one) return;
    const box = [0, 0, width, height], [top, left, down, across] = one.view, [w, tall] = [(across * width) / gw, (down * height) / gh];
    if (now.word < 0) return photo && context.drawImage(photo, ...box);
    overlay(context, photo, Float32Array.from(map(), (v) => Math.sqrt(v / 65535)), 0, one.grid, one.view, 1, box);
    if (now.at) context.beginPath(), context.rect(left * width + now.at[0] * w, top * height + now.at[1] * tall, w, tall), ringed(context, palette);
  }, steered(now, () => [gw, gh, ...one.view], read));

  const caption = h("h3", { dir: "auto" }), said = h("div"), own = h("details"), readout = h("p", { class: "readout" });
  const words = h("div", { class: "controls tight", role: "group", "aria-label": "Word whose map is shown", onkeydown: along });
  root.append(...[view.how, ...view.sentences].map((text) => h("p", {}, text)), h("div", { class: "controls" },
    choice("Picture", view.pictures.map((p) => `${p.file}: ${p.caption}`), now.picture, load),
    choice("Maps", view.sets, now.set, (set) => ((now.set = set), press(now.word)))),
  caption, words, h("div", { class: "words-pair" }, h("div", {}, canvas, readout), said), own,
  ...view.tables.map(({ caption, heads, rows }) => table(caption, heads, rows.map((row) => row.map((cell) => cell?.text ? shown(cell) : cell ?? "–")))),
  notes(view.notes) || "");
  if (view.pictures.length) await load(now.picture);
  return { state: () => now };
}
