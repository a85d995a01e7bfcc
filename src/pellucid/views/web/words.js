import { arrows, button, choice, figure, fill, h, keyed, latest, notes, overlay, picture, pressed, ringed } from "./core.js";
import { rounded, shown, steered, surface, table, unpack, within } from "./core.js";

// A caption whose words are buttons: the pressed one's map lies over the picture; the weight of the patch under the mark is said.
// state {picture, set, word, at}: word -1 is the photograph alone; at is a patch [row, column].
export async function mountWords(root, view, page, state) {
  const now = { picture: 0, set: 0, word: 0, at: null, ...state };
  const caption = h("h3", { dir: "auto" });
  const said = h("div");
  const own = h("details");
  const readout = h("p.readout");
  const wait = latest();
  let one, photo, maps;

  async function load(i) {
    const next = view.pictures[i];
    const found = await wait(picture(next.photo), unpack(next.maps));
    if (!found) return; // another was chosen meanwhile
    if (one) {
      now.word = 0;
      now.at = null;
    }
    now.picture = i;
    one = next;
    [photo, maps] = found;
    caption.textContent = one.caption || "no word";
    fill(
      words,
      ["photo", ...one.words.map(({ text }) => text)].map((text, b) => button(h("bdi", text), () => press(b - 1))),
    );
    fill(
      own,
      h("summary", `own captions · ${one.file}`),
      h(
        "ul.own",
        one.references.map((text) => h("li", { dir: "auto" }, text)),
      ),
    );
    own.hidden = !one.references.length;
    canvas.style.aspectRatio = one.size[1] / one.size[0];
    press(Math.min(now.word, one.words.length - 1));
  }
  function press(index) {
    now.word = index;
    const word = one.words[index];
    [...words.children].forEach((entry, i) => {
      pressed(entry, i - 1 === index);
      entry.tabIndex = i - 1 === index ? 0 : -1; // the words are one stop of the tab key
    });
    const shows = word
      ? `“${word.text}”, ${word.after}: the map is highest ${word.place}; arrow keys move the mark`
      : `${one.file}, the photograph`;
    canvas.setAttribute("aria-label", shows);
    fill(said, word && wordSaid(word), h("p.muted", `${one.missing} ${one.scales[now.set]} ${one.notes}`));
    read();
  }
  function wordSaid({ text, after, place, share, scores }) {
    const heads = ["measure", { text: "map", num: true }, { text: "centre prior", num: true }];
    return [
      h("p", h("strong", h("bdi", text)), ` ${after}; highest ${place}. ${share}`),
      scores.length ? table("The map of this word", heads, scores) : h("p.muted", "Not measured for this word."),
    ];
  }
  function along(down, across) {
    press(within(now.word + 1 + down + across, one.words.length) - 1);
    words.children[now.word + 1].focus();
  }
  function map() {
    const [rows, columns] = one.grid;
    const begin = (now.set * one.words.length + now.word) * rows * columns;
    return maps.subarray(begin, begin + rows * columns);
  }
  function read() {
    redraw();
    readout.textContent = now.word < 0 ? "" : now.at ? patchSaid(now.at) : "Point at a patch, or move the mark with the arrow keys.";
    return readout.textContent;
  }
  function patchSaid([row, column]) {
    const [rows, columns] = one.grid;
    const weight = (map()[row * columns + column] / 65535) * one.most[now.set];
    return `Row ${row + 1} of ${rows}, column ${column + 1} of ${columns}: ${rounded(weight)} of the attention of “${one.words[now.word].text}”`;
  }
  function paint(context, width, height, { paper, ink }) {
    if (!one) return;
    if (now.word < 0) return photo && context.drawImage(photo, 0, 0, width, height);
    const roots = Float32Array.from(map(), (value) => Math.sqrt(value / 65535));
    overlay(context, photo, roots, 0, one.grid, one.view, 1, width, height);
    if (!now.at) return;
    const [top, left] = one.view;
    const [high, wide] = one.grid.map((n, i) => (one.view[2 + i] * (i ? width : height)) / n);
    ringed(context, paper, ink, [left * width + now.at[1] * wide, top * height + now.at[0] * high, wide, high]);
  }
  function go(at) {
    now.at = at;
    return read();
  }
  const { canvas, redraw } = surface(paint, steered({ grid: () => [...one.grid, ...one.view], at: () => now.at, go }));

  const words = h("div.controls.tight", { role: "group", "aria-label": "Word whose map is shown", onkeydown: keyed(arrows(along)) });
  const pictures = view.pictures.map(({ file, caption }) => `${file}: ${caption}`);
  const sets = choice("Maps", view.sets, now.set, (set) => {
    now.set = set;
    press(now.word);
  });
  const cell = (content) => (content?.text ? shown(content) : (content ?? "–"));
  fill(
    root,
    [view.how, ...view.sentences].map((text) => h("p", text)),
    h("div.controls", choice("Picture", pictures, now.picture, load), sets),
    caption,
    words,
    h("div.sides", figure("Where the decoder looked", canvas, readout), said),
    own,
    view.tables.map(({ caption, heads, rows }) =>
      table(
        caption,
        heads,
        rows.map((row) => row.map(cell)),
      ),
    ),
    notes(view.notes),
  );
  if (view.pictures.length) await load(now.picture);
  return { state: () => now };
}
