import { VIRIDIS, button, choice, circle, fill, h, hex, latest, notes, picture, pixel, pressed, raster } from "./core.js";
import { ringed, rounded, shades, shown, slider, steered, surface, table, unpack } from "./core.js";

const MASKS_RIGHT = pixel(178, 190, 200);
const MASKS_WRONG = pixel(200, 70, 0);
const MASKS_STRIPES = [pixel(225, 225, 225), pixel(160, 160, 160)];
const MASKS_FAINT = pixel(90, 90, 90); // where a class is alone, in panels whose colours are of no class
const MASKS_IGNORED = 255;
const MASKS_SURE = shades(VIRIDIS);
const MASKS_RAMP = [...Array(17).keys()]
  .map((i) => Math.round(i * 15.9375))
  .map((i) => `rgb(${VIRIDIS.subarray(3 * i, 3 * i + 3).join()})`);
const [MASKS_TRUTH, MASKS_PREDICTION, MASKS_CONFIDENCE] = [1, 2, 4]; // of the panels that follow
const MASKS_PANELS = ["image", "ground truth", "prediction", "errors", "confidence"];
const masksNeedsTruth = (panel) => panel % 2 === 1; // ground truth and errors

// Panels side by side, each over the image as strongly as asked, with the same place marked in all. state.at: the pixel [row, column] of the masks.
export async function mountMasks(root, view, page, state) {
  const { classes, epochs, pictures } = view;
  const now = { picture: 0, epoch: epochs.length - 1, opacity: 10, alone: null, at: null, ...state };
  const colours = classes.map(({ colour }) => pixel(...hex(colour.slice(1))));
  const drawn = []; // a canvas per panel, as large as the masks
  const name = h("h3");
  const numbers = h("div");
  const readout = h("p.readout");
  const wait = latest();
  let one, photo, truth, predicted, sure, grid, from;

  async function load(i) {
    const next = pictures[i];
    const arrays = [next.truth, next.predicted, next.confidence].map((array) => array && unpack(array));
    const found = await wait(picture(next.photo), ...arrays);
    if (!found) return; // another was chosen meanwhile
    if (one) now.at = null;
    now.picture = i;
    one = next;
    [photo, truth, predicted, sure] = found;
    grid = predicted.shape.slice(1);
    paint();
  }
  function colourOf(panel, i) {
    const [right, p] = [truth?.[i], predicted[from + i]];
    if (masksNeedsTruth(panel) && right === MASKS_IGNORED) return MASKS_STRIPES[(((i % grid[1]) + i / grid[1]) >> 2) % 2];
    if (panel === MASKS_TRUTH) return colours[right];
    if (panel === MASKS_PREDICTION) return colours[p];
    if (panel === MASKS_CONFIDENCE) return MASKS_SURE[sure[from + i]];
    return right === p ? MASKS_RIGHT : MASKS_WRONG;
  }
  // What is not of the class that is shown alone is faint: of other classes almost the image, of errors and confidence grey.
  function faint(panel, i) {
    const predictedIt = panel !== MASKS_TRUTH && predicted[from + i] === now.alone;
    return now.alone !== null && !predictedIt && !(masksNeedsTruth(panel) && truth[i] === now.alone);
  }
  function paint() {
    from = now.epoch * grid[0] * grid[1];
    panels.forEach(({ element, canvas }, panel) => {
      element.hidden = !truth && masksNeedsTruth(panel);
      canvas.style.aspectRatio = grid[1] / grid[0];
      canvas.setAttribute("aria-label", `${MASKS_PANELS[panel]} of ${one.file}, ${epochs[now.epoch]}; arrow keys move the mark`);
      const colour = (i) => {
        if (!faint(panel, i)) return colourOf(panel, i);
        return panel > MASKS_PREDICTION ? MASKS_FAINT : colourOf(panel, i) & 0x18ffffff;
      };
      drawn[panel] = panel > 0 && !element.hidden && raster(grid, colour, new OffscreenCanvas(grid[1], grid[0]));
    });
    fill(name, one.file, h("span.muted", ` ${one.classes} ${one.missing}`));
    fill(numbers, truth ? numbersOf() : "Not measured: this picture has no mask, so that nothing says what is wrong.");
    [...legend.children].forEach((entry, i) => pressed(entry, view.occurring[i] === now.alone));
    read();
  }
  function numbersOf() {
    const heads = [...new Set([now.epoch, epochs.length - 1])];
    const row = (text, n) => [text, ...heads.map((epoch) => shown(one.numbers[epoch][n]))];
    return table("Numbers of this picture", ["number", ...heads.map((epoch) => ({ text: epochs[epoch], num: true }))], view.names.map(row));
  }
  function read() {
    for (const { redraw } of panels) redraw();
    readout.textContent = now.at ? said(now.at) : "Point at a place, or move the mark with the arrow keys, with Shift by ten pixels.";
    return readout.textContent;
  }
  function said([row, column]) {
    const i = row * grid[1] + column;
    const [right, p] = [truth?.[i], predicted[from + i]];
    const own = [row, column].map((at, k) => rounded(Math.floor((at / grid[k]) * one.size[k]) + 1, "count"));
    const judged =
      right === MASKS_IGNORED ? "ignored, " : truth ? `${right === p ? "right" : "wrong"}, truth ${classes[right].name}, ` : "";
    return `Row ${own[0]}, column ${own[1]}: ${judged}predicted ${classes[p].name}, confidence ${rounded(sure[from + i] / 255)}`;
  }

  const panels = MASKS_PANELS.map((title, panel) => {
    const draw = (context, width, height, { paper, ink }) => {
      if (photo) context.drawImage(photo, 0, 0, width, height);
      if (!grid) return;
      context.imageSmoothingEnabled = grid[1] > width;
      context.globalAlpha = now.opacity / 10;
      if (drawn[panel]) context.drawImage(drawn[panel], 0, 0, width, height);
      context.globalAlpha = 1;
      if (!now.at) return;
      circle(context, ((now.at[1] + 0.5) / grid[1]) * width, ((now.at[0] + 0.5) / grid[0]) * height, 7);
      ringed(context, paper, ink);
    };
    const go = (at) => {
      now.at = at;
      return read();
    };
    const part = surface(draw, { ...steered({ grid: () => grid, at: () => now.at, go }), tabindex: panel ? -1 : 0 }); // one mark, one stop
    const scale = panel === MASKS_CONFIDENCE && [
      " 0 ",
      h("span.ramp", { style: { background: `linear-gradient(90deg, ${MASKS_RAMP})` } }),
      " 1",
    ];
    return { ...part, element: h("figure", part.canvas, h("figcaption", title, scale)) };
  });
  const entry = (index) =>
    button([h("span.swatch", { style: { background: classes[index].colour } }), classes[index].name], () => {
      now.alone = now.alone === index ? null : index;
      paint();
    });
  const legend = h("div.controls.tight", { role: "group", "aria-label": "Show one class alone" }, view.occurring.map(entry));
  const over = slider(
    "Opacity over the image",
    [...Array(11).keys()].map((i) => `${10 * i} %`),
    now.opacity,
    (i) => {
      now.opacity = i;
      read();
    },
  );
  const epoch = slider("Epoch", epochs, now.epoch, (i) => {
    now.epoch = i;
    paint();
  });
  const files = pictures.map(({ file }) => file);
  fill(
    root,
    h("p", view.how),
    h("div.controls", choice("Picture", files, now.picture, load), epoch, over),
    name,
    h(
      "div.masks-panels",
      panels.map(({ element }) => element),
    ),
    readout,
    legend,
    numbers,
    notes(view.notes),
  );
  if (pictures.length) await load(now.picture);
  return { state: () => now };
}
