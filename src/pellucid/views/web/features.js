import { h, unpack, picture, terms, notes, mark, surface, place, slider, choice, toggle, gallery, table, button, announce, tile, STILL } from "./core.js";

const FEATURES_MOVE = 400, FEATURES_CLOSEST = 16, FEATURES_LISTED = 96; // milliseconds between epochs; largest zoom; pictures of a list
const FEATURES_KEYS = "Arrow keys go from point to point, + and − zoom, 0 shows all, Enter chooses, Escape clears. Dragging chooses a box of pictures. With Shift, arrows and dragging move the plane; Ctrl and the wheel zoom.";

// A projection with its points, at[2 (epoch n + i)] and the place after it, in levels.
async function featuresPlane(projection) {
  const [low, high] = await Promise.all([unpack(projection.low), unpack(projection.high)]), at = new Uint16Array(low.length);
  for (let i = 0; i < at.length; i++) at[i] = low[i] + 256 * high[i];
  return { ...projection, at };
}

export async function mountFeatures(root, view, page, state) {
  const labels = await unpack(view.labels), n = labels.length, { classes, files, atlas } = view, sheet = atlas && (await picture(atlas.src));
  const planes = await Promise.all(view.projections.map(featuresPlane)), style = Int16Array.from(labels, (label) => view.styles[label]);
  const order = Uint32Array.from({ length: n }, (_, i) => i).sort((a, b) => ((a * 40503) & 65535) - ((b * 40503) & 65535)); // no class lies over all others
  const seen = { plane: 0, epoch: planes[0].panels.length - 1, pictures: false, zoom: 1, x: null, y: null, lit: [], chosen: [], ...state };
  const now = new Float32Array(2 * n), from = new Float32Array(2 * n), plane = () => planes[seen.plane];
  const count = (i) => `${i.toLocaleString("en-US")} ${i === 1 ? "picture" : "pictures"}`, said = (i) => [classes[labels[i]], files[i] ?? `picture ${i + 1}`];
  let began = -Infinity, moving = true, under = -1, drag = null, playing = 0, marks = {}, tiles, dot, image, pixels, made = "", width = 1, height = 1, k = 1, left = 0, top = 0;

  // ── the plane: point i is at left + k now[2 i], top - k now[2 i + 1] ──
  const X = (i) => left + k * now[2 * i], Y = (i) => top - k * now[2 * i + 1];
  function fit() {
    const [across, up] = plane().span;
    k = seen.zoom * Math.min((width - 56) / across, (height - 56) / up), left = width / 2 - k * (seen.x ?? across / 2), top = height / 2 + k * (seen.y ?? up / 2);
  }
  function move() {
    const share = STILL.matches ? 1 : Math.min((performance.now() - began) / FEATURES_MOVE, 1), eased = share * (2 - share), to = plane().at, start = 2 * n * seen.epoch;
    for (let i = 0; i < 2 * n; i++) now[i] = from[i] + eased * (to[start + i] - from[i]);
    if ((moving = share < 1)) redraw();
  }
  // What is copied at each point: bits {all, w}, the part of height and width `side` at (x, y) of it. Pixels of our own are many times quicker than drawImage.
  function put(bits, sx, sy, side, x, y) {
    x = Math.round(x - side / 2), y = Math.round(y - side / 2);
    if (x < 0 || y < 0 || x + side > image.width || y + side > image.height) return;
    for (let v = 0; v < side; v++)
      for (let u = 0, from = (sy + v) * bits.w + sx, to = (y + v) * image.width + x; u < side; u++, from++, to++) {
        const pixel = bits.all[from];
        if (pixel > 0x80000000 || (pixel && !pixels[to])) pixels[to] = pixel; // alpha is the highest byte
      }
  }
  function bits(w, high, draw) {
    const context = new OffscreenCanvas(w, high).getContext("2d");
    draw(context);
    return { w, all: new Uint32Array(context.getImageData(0, 0, w, high).data.buffer) };
  }
  function prepare(context, r, side, dense, palette) {
    const key = [r, side, dense, palette.ink, canvas.width, canvas.height].join();
    if (key === made) return;
    made = key, image = context.createImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer), dot = Math.ceil(2 * (r + 1) * dense);
    const colour = (of) => (of < 0 ? palette.muted : palette.s[of % 7]);
    for (const of of new Set(view.styles)) {
      const drawn = (alpha) => bits(dot, dot, (c) => ((c.globalAlpha = alpha), c.scale(dense, dense), mark(c, of, dot / dense / 2, dot / dense / 2, r, palette)));
      marks[of] = [drawn(0.16), drawn(1), side && bits(side + 4, side + 4, (c) => ((c.fillStyle = colour(of)), c.fillRect(0, 0, side + 4, side + 4)))];
    }
    const times = side / atlas?.side;
    tiles = side && bits(sheet.width * times, sheet.height * times, (c) => c.drawImage(sheet, 0, 0, sheet.width * times, sheet.height * times));
  }
  function paint(context, w, high, palette) {
    (width = w), (height = high), fit();
    if (moving) move();
    const dense = canvas.width / w, r = Math.min((n > 4000 ? 2.2 : n > 800 ? 3.2 : 4.2) * seen.zoom ** 0.3, 8);
    // In steps, as all tiles are drawn anew for each; and no more than 16 million pixels of them.
    const side = seen.pictures && sheet && !(moving && n > 4000) ? Math.floor(Math.min(15 * 2 ** (Math.round(Math.log2(seen.zoom)) / 2) * dense, Math.sqrt(16e6 / n))) : 0;
    prepare(context, r, side, dense, palette);
    pixels.fill(0);
    const bright = Uint8Array.from(style, (of) => !seen.lit.length || seen.lit.includes(of));
    for (const pass of seen.lit.length ? [0, 1] : [1])
      for (const i of order) {
        if (bright[i] !== pass) continue;
        const x = X(i) * dense, y = Y(i) * dense, [, , frame] = marks[style[i]], away = side && pass ? side / 2 : 0;
        if (away) put(frame, 0, 0, side + 4, x, y), put(tiles, (i % atlas.columns) * side, Math.floor(i / atlas.columns) * side, side, x, y);
        put(marks[style[i]][pass], 0, 0, dot, x - away, y - away);
      }
    context.putImageData(image, 0, 0);
    context.strokeStyle = palette.ink, context.fillStyle = palette.muted;
    const ring = (i, wide) => ((context.lineWidth = wide), context.beginPath(), context.arc(X(i), Y(i), ((side * 0.7) / dense || r) + wide + 1, 0, 7), context.stroke());
    if (seen.chosen.length < 2000) seen.chosen.forEach((i) => ring(i, 1.5));
    if (under >= 0) ring(under, 3);
    if (drag?.box) context.lineWidth = 1.5, context.setLineDash([5, 4]), context.strokeRect(...drag.box), context.setLineDash([]);
    context.font = "12px system-ui, sans-serif", context.textAlign = "center", context.fillText(plane().axes[0], w / 2, high - 8);
    context.rotate(-Math.PI / 2), context.fillText(plane().axes[1], -high / 2, 16);
  }
  const { canvas, redraw } = surface(paint, { tabindex: 0, role: "application", class: "plane", onpointermove: over, onpointerdown: down, onpointerup: up, onwheel: wheel, onkeydown: press,
    onpointercancel: () => ((drag = null), redraw()), onpointerleave: () => drag || point(-1) });

  // ── what is seen of it ──
  function zoom(times, px = width / 2, py = height / 2) {
    fit();
    const [x, y] = [(px - left) / k, (top - py) / k], was = seen.zoom;
    seen.zoom = Math.min(Math.max(was * times, 1), FEATURES_CLOSEST), k *= seen.zoom / was;
    seen.x = x + (width / 2 - px) / k, seen.y = y - (height / 2 - py) / k, redraw();
  }
  const pan = (dx, dy) => (fit(), (seen.x = (width / 2 - dx - left) / k), (seen.y = (top - height / 2 + dy) / k), fit(), redraw());
  const all = () => (Object.assign(seen, { zoom: 1, x: null, y: null }), redraw());
  const small = (i) => sheet && h("canvas", { width: atlas.side, height: atlas.side, role: "img", "aria-label": said(i).join(", ") });
  const filled = (canvas, i) => (canvas?.getContext("2d").drawImage(tile(sheet, atlas, i), 0, 0), canvas ?? "");
  const info = h("div", { class: "pointed" }), list = h("div", { class: "moving" });
  function point(i, aloud) {
    under = i, redraw();
    info.replaceChildren(...(i < 0 ? [h("p", { class: "muted" }, "Point at a picture to see it.")] : [filled(small(i), i), h("p", {}, h("strong", {}, said(i)[0]), h("br"), said(i)[1])]));
    if (aloud && i >= 0) announce(said(i).join(", "));
  }
  const inside = (x, y, w, high) => [...style.keys()].filter((i) => X(i) >= x && X(i) <= x + w && Y(i) >= y && Y(i) <= y + high && (!seen.lit.length || seen.lit.includes(style[i])));
  function choose(found, aloud = true) {
    const tally = classes.map((name, label) => [name, found.filter((i) => labels[i] === label).length]).filter((row) => row[1]).sort((a, b) => b[1] - a[1]);
    seen.chosen = found, redraw(), list.replaceChildren();
    if (found.length) list.append(
      h("p", { class: "controls" }, h("strong", {}, `${count(found.length)} chosen`), button("Clear", () => choose([]))),
      table("The chosen pictures by class", ["class", { text: "pictures", num: true }], tally.map(([name, of]) => [name, of.toLocaleString("en-US")])),
      gallery(found.slice(0, FEATURES_LISTED).map((i) => ({ src: sheet && filled(small(i), i).toDataURL(), alt: said(i)[1], lines: said(i) }))),
      found.length > FEATURES_LISTED ? `These are the first ${FEATURES_LISTED} of ${count(found.length)}.` : "");
    if (aloud) announce([`${count(found.length)} chosen`, ...tally.slice(0, 5).map(([name, of]) => `${of} ${name}`)].join(", "));
  }
  const swap = (i) => choose(seen.chosen.includes(i) ? seen.chosen.filter((other) => other !== i) : [...seen.chosen, i]);

  // ── pointer and keys ──
  function over(event) {
    const [x, y] = place(event, canvas);
    if (drag) {
      drag.moved ||= Math.hypot(x - drag.x, y - drag.y) > 4;
      if (drag.pans) pan(x - drag.px, y - drag.py);
      else if (drag.moved) drag.box = [Math.min(x, drag.x), Math.min(y, drag.y), Math.abs(x - drag.x), Math.abs(y - drag.y)];
      return Object.assign(drag, { px: x, py: y }), redraw();
    }
    let best = -1, least = 14 ** 2;
    for (let i = 0; i < n; i++) {
      const far = (X(i) - x) ** 2 + (Y(i) - y) ** 2;
      if (far < least) (best = i), (least = far);
    }
    if (best !== under) point(best);
  }
  function down(event) {
    over(event);
    const [x, y] = place(event, canvas);
    drag = { x, y, px: x, py: y, pans: event.shiftKey || way.input.selectedIndex === 1 };
    canvas.setPointerCapture(event.pointerId);
  }
  function up() {
    const { box, moved } = drag ?? {};
    drag = null;
    if (box) choose(inside(...box));
    else if (!moved && under >= 0) swap(under);
  }
  function wheel(event) {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // else the page could not be scrolled over the plane
    event.preventDefault(), zoom(Math.exp(-event.deltaY / 400), ...place(event, canvas));
  }
  function press(event) {
    const to = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const done = to ? (event.shiftKey ? () => pan(-to[0] * width * 0.15, -to[1] * height * 0.15) : () => point(next(...to), true))
      : { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: all, Enter: () => under >= 0 && swap(under), Escape: () => choose([]) }[event.key];
    if (!done || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(), done();
  }
  // The nearest point in a direction, of those in view; from the middle where none is pointed at.
  function next(dx, dy) {
    const [x, y] = under < 0 ? [width / 2, height / 2] : [X(under), Y(under)];
    let best = under, least = Infinity;
    for (let i = 0; i < n; i++) {
      const ahead = (X(i) - x) * dx + (Y(i) - y) * dy, aside = Math.abs((X(i) - x) * dy + (Y(i) - y) * dx), far = Math.abs(ahead) + 2 * aside;
      if (i !== under && far < least && (under < 0 || (ahead > 0 && aside <= ahead)) && X(i) >= 0 && X(i) <= width && Y(i) >= 0 && Y(i) <= height) (best = i), (least = far);
    }
    return best;
  }

  // ── controls ──
  const numbers = h("div"), how = h("p", { class: "muted" });
  function go(epoch, jump) {
    const { panels, measures, title } = plane();
    from.set(now), (began = jump ? -Infinity : performance.now()), (moving = true), (seen.epoch = epoch);
    numbers.replaceChildren(terms(measures.map((of, i) => [of.name, panels[epoch].numbers[i] && { ...of, ...panels[epoch].numbers[i] }]))), (how.textContent = plane().how);
    canvas.setAttribute("aria-label", `${count(n)} as points, ${title}, epoch ${panels[epoch].epoch}. ${FEATURES_KEYS}`);
    redraw();
  }
  const epochs = () => slider("Epoch", plane().panels.map((panel) => `epoch ${panel.epoch}`), seen.epoch, (i) => go(i));
  const last = () => plane().panels.length - 1, stop = () => (clearInterval(playing), (playing = 0), (play.textContent = "Play"));
  const step = () => (seen.epoch < last() && root.isConnected ? steps.set(seen.epoch + 1) : stop());
  let steps = epochs();
  const play = button("Play", () => {
    if (playing) return stop();
    (play.textContent = "Pause"), (playing = setInterval(step, 900)), seen.epoch === last() && steps.set(0);
  }, { hidden: !last() });
  function project(i) {
    stop(), all(), Object.assign(seen, { plane: i, epoch: Math.min(seen.epoch, planes[i].panels.length - 1) });
    const old = steps;
    old.replaceWith((steps = epochs())), go(seen.epoch, true);
  }
  const way = choice("Dragging", ["chooses", "moves the plane"], 0, () => {});
  function entry(of) {
    const mine = [...classes.keys()].filter((label) => view.styles[label] === of), name = of < 0 ? `${mine.length} other ${mine.length === 1 ? "class" : "classes"}` : classes[mine[0]];
    const sample = surface((context, w, high, palette) => mark(context, of, w / 2, high / 2, 5, palette), { role: "presentation" }).canvas, lit = () => seen.lit.includes(of);
    const one = button([sample, name], () => ((seen.lit = lit() ? seen.lit.filter((other) => other !== of) : [...seen.lit, of]), one.setAttribute("aria-pressed", lit()), redraw()), { "aria-pressed": String(lit()) });
    return one;
  }

  go(seen.epoch, true), move(), point(-1), choose(seen.chosen, false);
  root.append(
    h("div", { class: "controls" }, choice("Plane", planes.map((of) => of.title), seen.plane, project), steps, play, sheet ? toggle("Pictures", seen.pictures, (on) => ((seen.pictures = on), redraw())) : "", way),
    h("figure", { class: "beside-plane" }, h("figcaption", {}, h("strong", {}, view.title)), canvas, h("div", { class: "moving" }, info,
      h("div", { class: "controls" }, button("+", () => zoom(1.5), { "aria-label": "Zoom in" }), button("−", () => zoom(1 / 1.5), { "aria-label": "Zoom out" }), button("Show all", all), button("Choose what is in view", () => choose(inside(0, 0, width, height)))),
      h("div", { class: "legend", role: "group", "aria-label": "Classes; press one to dim the others" }, [...new Set(view.styles)].sort((a, b) => (a < 0) - (b < 0) || a - b).map(entry)), h("p", { class: "reading" }, FEATURES_KEYS))),
    numbers, how, list, notes(view.notes) || "");
  return { state: () => ({ ...seen }) };
}
