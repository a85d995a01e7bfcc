import { h, unpack, picture, VIRIDIS, surface, place, slider, choice, button, announce, rounded, shown, table, notes } from "./core.js";

// Properties of a canvas by which pointer and arrow keys move now.at over a grid, grid() = [columns, rows, top, left, height, width], the last four as
// fractions of the canvas; change() gives the line to say.
export function steered(now, grid, change) {
  const go = (x, y) => ((now.at = [x, y].map((v, i) => Math.floor(Math.min(Math.max(v, 0), grid()[i] - 1)))), change());
  const point = (event) => {
    const [x, y] = place(event), { clientWidth, clientHeight } = event.currentTarget, [columns, rows, top, left, height, width] = grid();
    go(((x / clientWidth - left) / width) * columns, ((y / clientHeight - top) / height) * rows);
  };
  const key = (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], far = event.shiftKey ? 10 : 1;
    const [x, y] = now.at ?? grid().map((n) => n >> 1);
    if (by) event.preventDefault(), announce(go(x + by[0] * far, y + by[1] * far));
  };
  return { tabindex: 0, role: "application", onpointermove: point, onpointerdown: point, onkeydown: key };
}

// The path of a context as a mark that is seen on any ground.
export function ringed(context, { paper, ink }) {
  for (const [colour, width] of [[paper, 5], [ink, 2]]) context.strokeStyle = colour, context.lineWidth = width, context.stroke();
}

const masksPixel = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
const RIGHT = masksPixel(178, 190, 200), WRONG = masksPixel(200, 70, 0), STRIPES = [masksPixel(225, 225, 225), masksPixel(160, 160, 160)];
const LAYERS = ["image", "ground truth", "prediction", "errors", "confidence"];

// Panels side by side, each over the image as strongly as asked, with the same place marked in all.
export async function mountMasks(root, view, page, state) {
  const now = { picture: 0, epoch: view.epochs.length - 1, opacity: 10, alone: null, at: null, ...state }, { classes, epochs } = view, drawn = [];
  const colours = classes.map(({ colour }) => masksPixel(...[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))));
  const sureColours = Array.from({ length: 256 }, (_, v) => masksPixel(...VIRIDIS.subarray(3 * v, 3 * v + 3)));
  let one, photo, truth, predicted, sure, high, wide, from;

  const load = async (i) => {
    const next = view.pictures[i], arrays = [next.truth, next.predicted, next.confidence].map((a) => a && unpack(a));
    const found = await Promise.all([next.photo && picture(next.photo), ...arrays]);
    if (one) now.at = null;
    now.picture = i, one = next, [photo, truth, predicted, sure] = found, [, high, wide] = predicted.shape;
    paint();
  };
  const paint = () => {
    const heads = [...new Set([now.epoch, epochs.length - 1])];
    from = now.epoch * wide * high;
    panels.forEach(({ figure, canvas }, layer) => {
      if (layer) drawn[layer] = pixels(layer);
      figure.hidden = !truth && layer % 2, canvas.style.aspectRatio = `${wide} / ${high}`;
      canvas.setAttribute("aria-label", `${LAYERS[layer]} of ${one.file}, ${epochs[now.epoch]}; arrow keys move the mark`);
    });
    name.replaceChildren(one.file, h("span", { class: "muted" }, ` ${one.classes} ${one.missing}`));
    numbers.replaceChildren(truth ? table("Numbers of this picture", ["number", ...heads.map((e) => ({ text: epochs[e], num: true }))],
      view.names.map((text, n) => [text, ...heads.map((e) => shown(one.numbers[e][n]))]))
      : "Not measured: this picture has no mask, so that nothing says what is wrong.");
    view.seen.forEach((c, i) => legend.children[i].setAttribute("aria-pressed", c === now.alone));
    read();
  };
  // What is not of the class that is shown alone is faint.
  const pixels = (layer) => {
    const data = new ImageData(wide, high), image = new OffscreenCanvas(wide, high), words = new Uint32Array(data.data.buffer), { alone } = now;
    for (let i = 0; i < wide * high; i++) {
      const t = truth?.[i], p = predicted[from + i];
      const word = layer === 1 ? colours[t] : layer === 2 ? colours[p] : layer === 4 ? sureColours[sure[from + i]] : t === p ? RIGHT : WRONG;
      words[i] = layer % 2 && t === 255 ? STRIPES[(((i % wide) + i / wide) >> 2) % 2] : word;
      if (alone !== null && (layer === 1 || p !== alone) && (layer % 2 === 0 || t !== alone)) words[i] &= 0x18ffffff;
    }
    image.getContext("2d").putImageData(data, 0, 0);
    return image;
  };
  const read = () => {
    panels.forEach(({ redraw }) => redraw());
    if (!now.at) return (readout.textContent = "Point at a place, or move the mark with the arrow keys, with Shift by ten pixels.");
    const [x, y] = now.at, i = y * wide + x, t = truth?.[i], p = predicted[from + i], of = (v, size, own) => rounded(Math.floor((v / size) * own), "count");
    const said = !truth ? "" : t === 255 ? "ignored, " : `${t === p ? "right" : "wrong"}, truth ${classes[t].name}, `;
    const where = `Row ${of(y, high, one.size[0])}, column ${of(x, wide, one.size[1])}`;
    return (readout.textContent = `${where}: ${said}predicted ${classes[p].name}, confidence ${rounded(sure[from + i] / 255)}`);
  };
  const panels = LAYERS.map((title, layer) => {
    const part = surface((context, width, height, palette) => {
      if (photo) context.drawImage(photo, 0, 0, width, height);
      context.imageSmoothingEnabled = wide > width, context.globalAlpha = now.opacity / 10;
      if (drawn[layer]) context.drawImage(drawn[layer], 0, 0, width, height);
      context.globalAlpha = 1;
      if (!now.at || !one) return;
      context.beginPath(), context.arc(((now.at[0] + 0.5) / wide) * width, ((now.at[1] + 0.5) / high) * height, 7, 0, 7);
      ringed(context, palette);
    }, steered(now, () => [wide, high, 0, 0, 1, 1], read));
    return { ...part, figure: h("figure", {}, part.canvas, h("figcaption", {}, title)) };
  });
  const name = h("h3"), numbers = h("div"), readout = h("p", { class: "readout" });
  const legend = h("div", { class: "controls tight", role: "group", "aria-label": "Show one class alone" }, view.seen.map((c) =>
    button([h("span", { class: "swatch", style: { background: classes[c].colour } }), classes[c].name],
      () => ((now.alone = now.alone === c ? null : c), paint()))));
  root.append(h("p", {}, view.how), h("div", { class: "controls" },
    choice("Picture", view.pictures.map((p) => p.file), now.picture, load), slider("Epoch", epochs, now.epoch, (e) => ((now.epoch = e), paint())),
    slider("Opacity over the image", [...Array(11).keys()].map((i) => `${10 * i} %`), now.opacity, (i) => ((now.opacity = i), read()))),
  name, h("div", { class: "masks-panels" }, panels.map(({ figure }) => figure)), readout, legend, numbers, notes(view.notes) || "");
  if (view.pictures.length) await load(now.picture);
  return { state: () => now };
}
