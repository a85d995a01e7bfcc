import { announce, arrows, button, choice, fill, gallery, h, hue, keyed, legendButton, mark, mouseLeft, notes, place } from "./core.js";
import {
  POINTED,
  STILL,
  bitmap,
  circle,
  drawn,
  rounded,
  slider,
  surface,
  table,
  terms,
  tile,
  toggle,
  unpack,
  unpacked,
  within,
} from "./core.js";

const FEATURES_MOVE = 400; // milliseconds of the way from epoch to epoch
const FEATURES_STAY = 900; // milliseconds at each epoch while playing
const FEATURES_CLOSEST = 16; // largest zoom
const FEATURES_REACH = 14; // pixels from the pointer to the point that it finds, at most
const FEATURES_LISTED = 96; // pictures of a list, at most
const FEATURES_KEYS =
  "Arrow keys go from point to point, + and − zoom, 0 shows all, Enter chooses, Escape clears. Dragging chooses a box of pictures. With Shift, arrows and dragging move the plane; Ctrl and the wheel zoom.";

const featuresCount = (i) => `${rounded(i, "count")} ${i === 1 ? "picture" : "pictures"}`;

// A projection with its points, at[2 (epoch n + i)] and the place after it, in levels of 12 bits, of which `high` has the upper four of both.
async function featuresPlane(projection) {
  const { low, high } = await unpacked({ low: projection.low, high: projection.high });
  const at = new Uint16Array(low.length);
  for (let i = 0; i < at.length; i++) at[i] = low[i] + 256 * ((high[i >> 1] >> (4 * (i & 1))) & 15);
  return { ...projection, at };
}

// ── pixels of our own, which are copied many times quicker than by drawImage ──

// What draw(context) draws, as {width, height, all}.
function featuresPixels(width, height, draw) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  draw(context);
  return { width, height, all: new Uint32Array(context.getImageData(0, 0, width, height).data.buffer) };
}

// Copies the part of height and width `side` at (column, row) of some pixels to around (x, y) of others, as far as it lies in them.
function featuresPut(from, column, row, side, to, x, y) {
  x = Math.round(x - side / 2);
  y = Math.round(y - side / 2);
  const begin = Math.max(-x, 0);
  const end = Math.min(side, to.width - x);
  for (let v = Math.max(-y, 0); v < side && y + v < to.height; v++) {
    let source = (row + v) * from.width + column + begin;
    let target = (y + v) * to.width + x + begin;
    for (let u = begin; u < end; u++, source++, target++) {
      const pixel = from.all[source];
      if (pixel > 0x80000000 || (pixel && !to.all[target])) to.all[target] = pixel; // alpha is the highest byte
    }
  }
}

// Marks of radius r and tiles of width `side`, dense pixels to a CSS pixel: put(i, style, bright, x, y) of point i at (x, y) in CSS pixels.
function featuresBrush(view, sheet, image, r, side, dense, palette) {
  const { atlas } = view;
  const size = Math.ceil(2 * (r + 1) * dense);
  const middle = size / dense / 2;
  const to = { width: image.width, height: image.height, all: new Uint32Array(image.data.buffer) };
  const marks = {};
  for (const style of new Set(view.styles)) {
    const dot = (alpha) =>
      featuresPixels(size, size, (context) => {
        context.globalAlpha = alpha;
        context.scale(dense, dense);
        mark(context, style, middle, middle, r, palette);
      });
    const frame = (context) => {
      context.fillStyle = hue(style, palette);
      context.fillRect(0, 0, side + 4, side + 4);
    };
    marks[style] = [dot(0.16), dot(1), side && featuresPixels(side + 4, side + 4, frame)];
  }
  const [wide, high] = side ? [sheet.width, sheet.height].map((length) => Math.round((length * side) / atlas.side)) : [];
  const tiles = side && featuresPixels(wide, high, (context) => context.drawImage(sheet, 0, 0, wide, high));
  return (i, style, bright, x, y) => {
    const away = side && bright ? side / 2 : 0; // the mark stands at the corner of its picture
    if (away) {
      featuresPut(marks[style][2], 0, 0, side + 4, to, x * dense, y * dense);
      featuresPut(tiles, (i % atlas.columns) * side, Math.floor(i / atlas.columns) * side, side, to, x * dense, y * dense);
    }
    featuresPut(marks[style][bright], 0, 0, size, to, x * dense - away, y * dense - away);
  };
}

export async function mountFeatures(root, view, page, state) {
  const { classes, files, atlas } = view;
  let sheet = null;
  let coming;
  const pictured = () => (coming ??= bitmap(atlas?.src).then((image) => (sheet = image)));
  if (state?.pictures || state?.chosen?.length) pictured();
  const [labels, ...planes] = await Promise.all([unpack(view.labels), ...view.projections.map(featuresPlane)]);
  const n = labels.length;
  const styles = Int16Array.from(labels, (label) => view.styles[label]);
  // Mixed, so that no class lies over all others.
  const order = Uint32Array.from({ length: n }, (_, i) => i).sort((a, b) => ((a * 40503) & 65535) - ((b * 40503) & 65535));
  const seen = { plane: 0, epoch: planes[0].panels.length - 1, pictures: false, zoom: 1, x: null, y: null, lit: [], chosen: [], ...state };
  await coming; // dots do not wait for their pictures
  const plane = () => planes[seen.plane];
  const last = () => plane().panels.length - 1;
  const said = (i) => [classes[labels[i]], files[i] ?? `picture ${i + 1}`];

  // ── the plane: point i is at left + k now[2 i], top - k now[2 i + 1] ──
  const now = new Float32Array(2 * n);
  const from = new Float32Array(2 * n); // where the movement began
  let began = -Infinity;
  let moving = true;
  let under = -1; // the point that is pointed at
  let drag = null;
  let image, brush, made;
  let [width, height, k, left, top] = [1, 1, 1, 0, 0];
  const X = (i) => left + k * now[2 * i];
  const Y = (i) => top - k * now[2 * i + 1];
  const undimmed = (i) => !seen.lit.length || seen.lit.includes(styles[i]);
  const inView = (i) => X(i) >= 0 && X(i) <= width && Y(i) >= 0 && Y(i) <= height;

  function fit() {
    const [across, up] = plane().span;
    k = seen.zoom * Math.min((width - 56) / across, (height - 56) / up);
    left = width / 2 - k * (seen.x ?? across / 2);
    top = height / 2 + k * (seen.y ?? up / 2);
  }
  function move() {
    const share = STILL.matches ? 1 : Math.min((performance.now() - began) / FEATURES_MOVE, 1);
    const eased = share * (2 - share);
    const to = plane().at;
    const start = 2 * n * seen.epoch;
    for (let i = 0; i < 2 * n; i++) now[i] = from[i] + eased * (to[start + i] - from[i]);
    moving = share < 1;
    if (moving) redraw();
  }
  function paint(context, wide, high, palette) {
    [width, height] = [wide, high];
    fit();
    if (moving) move();
    const dense = canvas.width / width;
    const r = Math.min((n > 4000 ? 2.2 : n > 800 ? 3.2 : 4.2) * seen.zoom ** 0.3, 8);
    // In steps, as all tiles are drawn anew for each; and no more than 16 million pixels of them.
    const closer = 15 * 2 ** (Math.round(Math.log2(seen.zoom)) / 2) * dense;
    const side = seen.pictures && sheet && !(moving && n > 4000) ? Math.floor(Math.min(closer, Math.sqrt(16e6 / n))) : 0;
    const key = `${[r, side, dense, palette.ink, canvas.width, canvas.height]}`;
    if (key !== made) {
      image = context.createImageData(canvas.width, canvas.height);
      brush = featuresBrush(view, sheet, image, r, side, dense, palette);
      made = key;
    }
    new Uint32Array(image.data.buffer).fill(0);
    const bright = Uint8Array.from(styles, (style) => !seen.lit.length || seen.lit.includes(style));
    for (const pass of seen.lit.length ? [0, 1] : [1]) for (const i of order) if (bright[i] === pass) brush(i, styles[i], pass, X(i), Y(i));
    context.putImageData(image, 0, 0);
    paintOver(context, palette, (side * 0.7) / dense || r);
  }
  // Rings around what is chosen and pointed at, the box that is dragged, and the names of the axes.
  function paintOver(context, palette, r) {
    const ring = (i, wide) => {
      context.lineWidth = wide;
      circle(context, X(i), Y(i), r + wide + 1);
      context.stroke();
    };
    context.strokeStyle = palette.ink;
    if (seen.chosen.length < 2000) seen.chosen.forEach((i) => ring(i, 1.5));
    if (under >= 0) ring(under, 3);
    if (drag?.box) {
      context.lineWidth = 1.5;
      context.setLineDash([5, 4]);
      context.strokeRect(...drag.box);
    }
    context.fillStyle = palette.muted;
    context.textAlign = "center";
    context.fillText(plane().axes[0], width / 2, height - 8);
    context.rotate(-Math.PI / 2);
    context.fillText(plane().axes[1], -height / 2, 16);
  }

  // ── what is seen of it ──
  function zoom(times, x = width / 2, y = height / 2) {
    fit();
    const [column, row] = [(x - left) / k, (top - y) / k];
    const was = seen.zoom;
    seen.zoom = Math.min(Math.max(was * times, 1), FEATURES_CLOSEST);
    k *= seen.zoom / was;
    seen.x = column + (width / 2 - x) / k;
    seen.y = row - (height / 2 - y) / k;
    redraw();
  }
  function pan(dx, dy) {
    fit();
    seen.x = (width / 2 - dx - left) / k;
    seen.y = (top - height / 2 + dy) / k;
    fit();
    redraw();
  }
  function all() {
    Object.assign(seen, { zoom: 1, x: null, y: null });
    redraw();
  }
  const info = h("div.pointed");
  const list = h("div.moving");
  function small(i) {
    const one = h("canvas", { width: atlas.side, height: atlas.side, role: "img", "aria-label": said(i).join(", ") });
    one.getContext("2d").drawImage(tile(sheet, atlas, i), 0, 0);
    return one;
  }
  function point(i, aloud) {
    under = i;
    redraw();
    if (i < 0) fill(info, h("p.muted", "Point at a picture to see it."));
    else fill(info, sheet && small(i), h("p", h("strong", said(i)[0]), h("br"), said(i)[1]));
    if (aloud && i >= 0) announce(said(i).join(", "));
  }
  function inside([x, y, wide, high]) {
    const there = (i) => X(i) >= x && X(i) <= x + wide && Y(i) >= y && Y(i) <= y + high;
    return [...styles.keys()].filter((i) => there(i) && undimmed(i));
  }
  function choose(found, aloud = true) {
    const counts = classes.map((name, label) => [name, found.filter((i) => labels[i] === label).length]);
    const tally = counts.filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
    const listed = found.slice(0, FEATURES_LISTED).map((i) => ({ src: sheet && small(i).toDataURL(), alt: said(i)[1], lines: said(i) }));
    const chosen = `${featuresCount(found.length)} chosen`;
    seen.chosen = found;
    redraw();
    const parts = () => [
      h(
        "p.controls",
        h("strong", chosen),
        button("Clear", () => {
          choose([]);
          canvas.focus(); // the button is gone
        }),
      ),
      table(
        "The chosen pictures by class",
        ["class", { text: "pictures", num: true }],
        tally.map(([name, count]) => [name, rounded(count, "count")]),
      ),
      gallery(listed),
      found.length > FEATURES_LISTED && `These are the first ${FEATURES_LISTED} of ${featuresCount(found.length)}.`,
    ];
    fill(list, found.length > 0 && parts());
    if (aloud) announce([chosen, ...tally.slice(0, 5).map(([name, count]) => `${count} ${name}`)].join(", "));
  }
  const swap = (i) => i >= 0 && choose(seen.chosen.includes(i) ? seen.chosen.filter((other) => other !== i) : [...seen.chosen, i]);

  // ── pointer and keys ──
  function over(event) {
    const [x, y] = place(event, canvas);
    if (drag) return dragTo(x, y);
    let best = -1;
    let least = FEATURES_REACH ** 2;
    for (let i = 0; i < n; i++) {
      const far = (X(i) - x) ** 2 + (Y(i) - y) ** 2;
      if (far < least && undimmed(i)) [best, least] = [i, far];
    }
    if (best !== under) point(best);
  }
  function dragTo(x, y) {
    drag.moved ||= Math.hypot(x - drag.x, y - drag.y) > 4;
    if (drag.pans) pan(x - drag.was[0], y - drag.was[1]);
    else if (drag.moved) drag.box = [Math.min(x, drag.x), Math.min(y, drag.y), Math.abs(x - drag.x), Math.abs(y - drag.y)];
    drag.was = [x, y];
    redraw();
  }
  function down(event) {
    if (event.buttons > 1) return; // the menu of the right button is no choice
    over(event);
    const [x, y] = place(event, canvas);
    drag = { x, y, was: [x, y], pans: event.shiftKey || way.input.selectedIndex === 1 };
    canvas.setPointerCapture(event.pointerId);
  }
  function up() {
    if (!drag) return;
    const { box, moved } = drag;
    drag = null;
    if (box) choose(inside(box));
    else if (!moved) swap(under);
  }
  function wheel(event) {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // else the page could not be scrolled over the plane
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...place(event, canvas));
  }
  // The nearest point in a direction, of those in view; from the middle where none is pointed at.
  function next(down, across) {
    const [x, y] = under < 0 ? [width / 2, height / 2] : [X(under), Y(under)];
    let best = under;
    let least = Infinity;
    for (let i = 0; i < n; i++) {
      const ahead = (X(i) - x) * across + (Y(i) - y) * down;
      const aside = Math.abs((X(i) - x) * down + (Y(i) - y) * across);
      const far = Math.abs(ahead) + 2 * aside;
      if (i !== under && far < least && (under < 0 || (ahead > 0 && aside <= ahead)) && inView(i) && undimmed(i)) [best, least] = [i, far];
    }
    return best;
  }
  const step = (down, across, event) =>
    event.shiftKey ? pan(-across * width * 0.15, -down * height * 0.15) : point(next(down, across), true);
  const closer = () => zoom(1.5);
  const farther = () => zoom(1 / 1.5);
  const keys = { ...arrows(step), "+": closer, "=": closer, "-": farther, 0: all, Enter: () => swap(under), Escape: () => choose([]) };
  const { canvas, redraw } = surface(paint, {
    ...POINTED,
    class: "plane",
    onpointermove: over,
    onpointerdown: down,
    onpointerup: up,
    onpointercancel: () => (drag = null),
    onpointerleave: mouseLeft(() => drag || point(-1)),
    onwheel: wheel,
    onkeydown: keyed(keys),
  });

  // ── controls ──
  const numbers = h("div");
  const how = h("p.muted");
  function go(epoch, jump) {
    const { panels, measures, title } = plane();
    from.set(now);
    began = jump ? -Infinity : performance.now();
    moving = true;
    seen.epoch = epoch;
    fill(numbers, terms(measures.map((of, i) => [of.name, panels[epoch].numbers[i] && { ...of, ...panels[epoch].numbers[i] }])));
    how.textContent = plane().how;
    canvas.setAttribute("aria-label", `${featuresCount(n)} as points, ${title}, epoch ${panels[epoch].epoch}. ${FEATURES_KEYS}`);
    redraw();
  }
  const epochs = () =>
    slider(
      "Epoch",
      plane().panels.map((panel) => `epoch ${panel.epoch}`),
      seen.epoch,
      (i) => go(i),
    );
  let steps = epochs();
  let playing = 0;
  function stop() {
    clearInterval(playing);
    playing = 0;
    play.textContent = "Play";
  }
  const onward = () => (seen.epoch < last() && root.isConnected ? steps.set(seen.epoch + 1) : stop());
  const play = button(
    "Play",
    () => {
      if (playing) return stop();
      play.textContent = "Pause";
      playing = setInterval(onward, FEATURES_STAY);
      if (seen.epoch === last()) steps.set(0);
    },
    { hidden: !last() },
  );
  function project(i) {
    const old = steps;
    stop();
    all();
    seen.plane = i;
    seen.epoch = within(seen.epoch, last());
    steps = epochs();
    old.replaceWith(steps);
    go(seen.epoch, true);
  }
  const way = choice("Dragging", ["chooses", "moves the plane"], 0, () => {});
  const pictures = toggle("Pictures", seen.pictures, async (on) => {
    seen.pictures = on;
    await pictured();
    redraw();
  });
  function entry(style) {
    const mine = classes.filter((_, label) => view.styles[label] === style);
    const name = style < 0 ? `${mine.length} other ${mine.length === 1 ? "class" : "classes"}` : mine[0];
    const sample = (context, wide, high, palette) => mark(context, style, wide / 2, high / 2, 5, palette);
    return legendButton(sample, name, seen.lit.includes(style), () => {
      const was = seen.lit.length;
      seen.lit = seen.lit.filter((other) => other !== style);
      if (seen.lit.length === was) seen.lit.push(style);
      redraw();
      return seen.lit.includes(style);
    });
  }
  const shown = [...new Set(view.styles)].sort((a, b) => (a < 0) - (b < 0) || a - b);

  go(seen.epoch, true);
  move();
  point(-1);
  choose(seen.chosen, false);
  const beside = h("div.moving");
  const controls = [
    choice(
      "Plane",
      planes.map((of) => of.title),
      seen.plane,
      project,
    ),
    steps,
    play,
    atlas && pictures,
    way,
  ];
  fill(root, h("div.controls", controls), h("figure.beside-plane", h("figcaption", h("strong", view.about)), canvas, beside));

  // What would delay the first picture: all that stands beside and under it, and the pictures where points are dots.
  async function rest() {
    await drawn();
    const buttons = h(
      "div.controls",
      button("+", closer, { "aria-label": "Zoom in" }),
      button("−", farther, { "aria-label": "Zoom out" }),
      button("Show all", all),
      button("Choose what is in view", () => choose(inside([0, 0, width, height]))),
    );
    const legend = h("div.legend", { role: "group", "aria-label": "Classes; press one to dim the others" }, shown.map(entry));
    fill(beside, info, buttons, legend, h("p.reading", FEATURES_KEYS));
    root.append(numbers, how, list, notes(view.notes) || "");
    await pictured();
    point(under);
  }
  return { state: () => ({ ...seen }), rest: rest() };
}
