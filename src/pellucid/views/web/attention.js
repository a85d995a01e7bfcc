import { announce, cellWords, choice, figure, fill, gallery, h, notes, overlay, picture, pressed, raster, ringed, roving } from "./core.js";
import { INFERNO, latest, rounded, shades, shown, slider, steered, surface, table, terms, unpacked, within } from "./core.js";

const ATTENTION_MIDDLE = [0.5, 0.5];
const ATTENTION_KEPT = "●"; // under the small pictures whose attention was kept, where it was not kept of all
const ATTENTION_SHADES = shades(INFERNO);

// Maps of methods beside their scores: {element, scores, show(i, photo)}, which shows picture i.
async function attentionMaps(view, now) {
  const methods = await unpacked(view.methods);
  const stepOf = ({ steps }) => steps.find(({ name }) => name === now.step) ?? steps.at(-1);
  const method = () => methods[now.method];
  const worth = h("div");
  const scores = h("div");
  const weights = h("span");
  let photo = null;
  let ready = false;

  const { canvas, redraw } = surface((context, width, height) => {
    if (!ready) return;
    const { maps } = stepOf(method());
    const [, rows, columns] = maps.shape;
    overlay(context, photo, maps, now.picture * rows * columns, [rows, columns], view.pictures[now.picture].view, 255, width, height);
  });
  function showMap() {
    const { name, beside, own, largest } = stepOf(method());
    const mine = own[now.picture];
    const hows = new Map(methods.flatMap((of) => stepOf(of).measures.map(([measure, value]) => [measure, value.how])));
    const facts = mine.map((text, i) => {
      const [measure, baseline] = beside[i];
      return [h("span", { title: hows.get(measure) }, measure), text ? `${text} (${baseline})` : "n/a"];
    });
    const rows = methods.flatMap((of) =>
      stepOf(of).measures.map(([measure, value, kind, verdict, ...baselines]) => [
        of.name,
        measure,
        shown(value),
        ...baselines,
        h(`span.verdict.${kind}`, verdict),
      ]),
    );
    canvas.setAttribute("aria-label", `${method().name} over ${view.pictures[now.picture].file}, ${name}`);
    fill(
      worth,
      mine.some(Boolean) ? terms(facts) : view.unmeasured,
      h("p.reading", `${method().how} Brightest patch: ${rounded(largest[now.picture])} of the map.`),
    );
    const meanings = h("details", h("summary", "What each measure says"), terms([...hows]));
    fill(scores, rows[0] && [table(`${view.caption}, ${name}`, view.heads, rows), meanings]);
    redraw();
  }
  function setMethod(i) {
    now.method = i;
    const names = method().steps.map(({ name }) => name);
    const change = (at) => {
      now.step = names[at];
      showMap();
    };
    fill(weights, slider("Weights", names, names.indexOf(stepOf(method()).name), change));
    showMap();
  }
  function show(i, image) {
    photo = image;
    ready = true;
    canvas.style.aspectRatio = photo ? photo.width / photo.height : 1;
    setMethod(now.method);
  }
  const chosen = choice(
    "Method",
    methods.map(({ name }) => name),
    now.method,
    setMethod,
  );
  return { element: figure("Where the map is bright", h("div.controls", chosen, weights), canvas, worth), scores, show };
}

// The attention of a patch or of the class token, and below it that of all layers and heads: {element, show(i, photo, held)}.
// now.query is a place (y, x) in what the model saw, as layers may have other grids; null is the class token.
function attentionRows(view, now) {
  const { pictures, layers, class_token } = view;
  const said = h("p.readout");
  let photo, held;
  let hover = null; // a query that lasts as long as the pointer is there
  const query = () => hover ?? now.query;
  const rowsOf = (i) => held[i][query() ? "patch" : "class"];
  const lines = () => Math.max(...held.map((_, i) => rowsOf(i).rows.shape[0]));
  const cellOf = (at, { grid }) => at.map((share, i) => within(share * grid[i], grid[i] - 1));

  // The row of the query in a layer and head; in the mean of the heads where that head is not held.
  function find(i, wanted) {
    const { rows, scale, rest } = rowsOf(i);
    const [count, queries, keys] = rows.shape;
    const { grid } = layers[i];
    const at = query() && cellOf(query(), layers[i]);
    const head = wanted < count ? wanted : 0;
    const row = head * queries + (at ? at[0] * grid[1] + at[1] : 0);
    return { rows, grid, at, count, head, from: row * keys, most: scale[row], rest: rest[row] };
  }
  function reading() {
    const { rows, grid, at, from, head, most, rest } = find(now.layer, now.head);
    const best = rows.indexOf(255, from) - from;
    const asks = at ? `Patch in ${cellWords(at)}` : "Class token";
    const by = head ? `head ${head}` : "mean of the heads";
    const on = `most on ${cellWords([Math.floor(best / grid[1]), best % grid[1]])}, ${rounded(most)} of the attention; `;
    return `${asks}, ${by}: ${most ? on : ""}${rounded(rest)} on ${view.elsewhere}.`;
  }

  // ── one row over the photograph ──
  function paintRow(context, width, height, { paper, mark }) {
    if (!held) return;
    const { rows, grid, at, from } = find(now.layer, now.head);
    const seen = pictures[now.picture].view;
    const [high, wide] = [(seen[2] * height) / grid[0], (seen[3] * width) / grid[1]];
    overlay(context, photo, rows, from, grid, seen, 255, width, height);
    if (at) ringed(context, paper, mark, [seen[1] * width + at[1] * wide, seen[0] * height + at[0] * high, wide, high]);
  }
  function ask(place) {
    now.query = place;
    if (class_token) asked.input.selectedIndex = place ? 1 : 0;
    return look();
  }
  function point(cell, event) {
    const { grid } = layers[now.layer];
    const place = cell.map((at, i) => (at + 0.5) / grid[i]);
    return event.type === "pointermove" ? look(place) : ask(place);
  }
  const row = surface(paintRow, {
    ...steered({
      grid: () => [...layers[now.layer].grid, ...pictures[now.picture].view],
      at: () => query() && cellOf(query(), layers[now.layer]),
      go: point,
      keys: { Escape: () => announce(ask(class_token ? null : ATTENTION_MIDDLE)) },
    }),
    "aria-label": view.pointing,
    onpointerleave: () => look(),
  });

  // ── all of them: layers from left to right, heads from top to bottom ──
  function paintCells(context, width, height, { paper, mark }) {
    if (!held) return;
    const [high, wide] = [height / lines(), width / layers.length];
    context.imageSmoothingEnabled = false;
    held.forEach((_, i) => {
      for (let head = 0; head < find(i, 0).count; head++) {
        const { rows, from, grid } = find(i, head);
        const map = raster(grid, (at) => ATTENTION_SHADES[rows[from + at]]);
        context.drawImage(map, i * wide + 2, head * high + 2, wide - 4, high - 4);
      }
    });
    ringed(context, paper, mark, [now.layer * wide + 2, find(now.layer, now.head).head * high + 2, wide - 4, high - 4]);
  }
  function choose([head, i], event) {
    if (event.type === "pointermove") return;
    now.head = head;
    layer.set(i);
    return said.textContent;
  }
  const cells = surface(paintCells, {
    ...steered({ grid: () => [lines(), layers.length], at: () => [now.head, now.layer], go: choose }),
    "aria-label": view.reading,
  });
  const layer = slider(
    "Layer",
    layers.map(({ name }) => name),
    now.layer,
    (i) => {
      now.layer = i;
      look();
    },
  );
  const asked = choice("Query", class_token ? ["class token", "patch"] : ["patch"], now.query && class_token ? 1 : 0, (i) =>
    ask(i ? ATTENTION_MIDDLE : null),
  );

  function look(at = null) {
    hover = at;
    if (!held) return;
    said.textContent = reading();
    cells.canvas.style.aspectRatio = layers.length / lines();
    row.redraw();
    cells.redraw();
    return said.textContent;
  }
  const controls = h("div.controls", layer, asked);
  const attention = h("div", row.canvas, said, h("p.reading", view.pointing), cells.canvas, h("p.reading", view.reading));
  const none = h("p.muted", `Not kept of this picture; kept of those with ${ATTENTION_KEPT}.`);
  function show(image, found) {
    photo = image;
    held = found;
    controls.hidden = attention.hidden = !held;
    none.hidden = !!held;
    row.canvas.style.aspectRatio = photo ? photo.width / photo.height : 1;
    look();
  }
  return { element: figure("What a patch attends to", controls, attention, none), show };
}

export async function mountAttention(root, view, page, state) {
  const { pictures, layers, class_token, methods } = view;
  const first = Math.max(
    pictures.findIndex((one) => one.attention),
    0,
  );
  const now = {
    picture: first,
    method: 0,
    step: "",
    layer: layers.length - 1,
    head: 0,
    query: class_token ? null : ATTENTION_MIDDLE,
    ...state,
  };
  const maps = methods.length > 0 && (await attentionMaps(view, now));
  const rows = layers.length > 0 && attentionRows(view, now);
  const some = rows && pictures.some((one) => !one.attention);
  const tiles = pictures.map(({ photo, file, attention }) => ({
    src: photo,
    alt: some && attention ? `${file}, attention kept` : file,
    lines: some && attention ? [ATTENTION_KEPT] : [],
  }));
  const strip = roving(h("div.thumbs", gallery(tiles, pick)), now.picture);
  const name = h("p");
  const flags = h("div");
  const wait = latest();

  async function pick(i) {
    const found = await wait(picture(pictures[i].photo), unpacked(pictures[i].attention));
    if (!found) return; // another was picked meanwhile
    const [photo, held] = found;
    now.picture = i;
    strip.querySelectorAll("button").forEach((one, at) => pressed(one, at === i));
    name.textContent = pictures[i].title;
    fill(flags, notes(pictures[i].flags));
    if (maps) maps.show(i, photo);
    if (rows) rows.show(photo, held);
  }
  fill(root, strip, name, h("div.sides", maps && maps.element, rows && rows.element), flags, maps && maps.scores, notes(view.notes));
  await pick(now.picture);
  return { state: () => now };
}
