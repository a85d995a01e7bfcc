"""The same fabricated points and pictures as pages: Pellucid's, a bare canvas's, plotly's, Altair's. `views.py` measures them.

Drawn scenes wander over a plane from one heap to a heap for each class. Everybody gets the same float32 places, labels and pictures of 24 pixels, and hands
them over in the cheapest way that its own documentation shows. plotly has no pictures beside dots: there its page goes without them.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid import __version__
from pellucid.attention_findings import AttentionFindings, KeptLayer
from pellucid.data import scenes
from pellucid.findings import ARRAYS, IMAGES, Findings, ImageFinding, Panel, ProjectionFinding
from pellucid.records import write_arrays
from pellucid.report.inside import MAX_PLANES, MAX_POINTS
from pellucid.report.planes import legend, plane
from pellucid.report.template import render_template
from pellucid.run import Measurement
from pellucid.views import EXPLORER, Room, View, attention, features
from pellucid.views.snapshot_planes import evenly

SIDE = 24  # pixels of a thumbnail
COLUMNS = 64  # of the atlas of the bare page
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442")  # Okabe and Ito
CANVAS = (760, 620)  # CSS pixels of the plot of the bare page and the peers
MOVE = 400  # ms of the movement between two epochs


@dataclass(frozen=True)
class Points:
    """What is shown. places: (E, p, 2) float32 in [0, 1], y upwards. labels: (p,) int64. images: (p, SIDE, SIDE, 3) uint8."""

    places: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8]

    @classmethod
    def fabricated(cls, count: int, epochs: int, seed: int = 0) -> Points:
        """Scenes in the order of their index, each on its way from a common heap to that of its class, with noise of its own in every epoch."""
        found = [scenes.draw(i, split="val", image_size=(SIDE, SIDE), seed=seed) for i in range(count)]
        labels = np.array([scene.label for scene in found])
        random = np.random.default_rng(seed)
        angles = 2 * np.pi * np.arange(len(scenes.SHAPES)) / len(scenes.SHAPES)
        heaps = np.stack([np.cos(angles), np.sin(angles)], 1)[labels]
        share = np.linspace(0, 1, epochs)[:, None, None]
        own = random.normal(0, 0.45, (count, 2))
        places = share * heaps + own * (1 - 0.5 * share) + random.normal(0, 0.02, (epochs, count, 2))
        low, high = places.min((0, 1)), places.max((0, 1))
        return cls(((places - low) / (high - low)).astype(np.float32), labels, np.stack([scene.image for scene in found]))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return scenes.SHAPES

    @cached_property
    def atlas(self) -> str:
        """All pictures in one WEBP file as a data URI, COLUMNS a row."""
        rows = -(-len(self.images) // COLUMNS)
        whole = np.zeros((rows * COLUMNS, SIDE, SIDE, 3), np.uint8)
        whole[: len(self.images)] = self.images
        return webp(whole.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 3))

    @cached_property
    def thumbnails(self) -> list[str]:
        """Each picture as a data URI of its own, for who cannot take an atlas."""
        return [webp(image) for image in self.images]


def webp(pixels: NDArray[np.uint8]) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "WEBP", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


BARE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,"><title>Bare canvas</title></head><body>
<canvas width="@width@" height="@height@"></canvas><input type="range" min="0" max="@last@" value="0">
<script type="module">
function bytes(base64) {
  const text = atob(base64), found = new Uint8Array(text.length);
  for (let i = 0; i < found.length; i++) found[i] = text.charCodeAt(i);
  return found;
}
const places = new Uint16Array(bytes("@places@").buffer), labels = bytes("@labels@"), colours = @colours@, p = labels.length;
const canvas = document.querySelector("canvas"), context = canvas.getContext("2d"), { width, height } = canvas;
const thumbnails = @thumbnails@, move = @move@;
const atlas = new Image();
atlas.src = "@atlas@";
if (thumbnails) await atlas.decode();
function draw(from, to, share) {
  context.clearRect(0, 0, width, height);
  for (let i = 0; i < p; i++) {
    const a = 2 * (from * p + i), b = 2 * (to * p + i);
    const x = (places[a] + share * (places[b] - places[a])) / 65535 * (width - 24);
    const y = height - 24 - (places[a + 1] + share * (places[b + 1] - places[a + 1])) / 65535 * (height - 24);
    if (thumbnails) context.drawImage(atlas, i % 64 * 24, Math.floor(i / 64) * 24, 24, 24, x, y, 24, 24);
    else context.fillStyle = colours[labels[i]], context.fillRect(x + 9, y + 9, 6, 6);
  }
}
let at = 0, begun = 0;
document.querySelector("input").oninput = (event) => {
  const from = at, to = at = +event.target.value;
  if (!move) return requestAnimationFrame(() => draw(to, to, 1));
  begun = performance.now();
  const frame = (now) => {
    const share = Math.min(Math.max(now - begun, 0) / move, 1);
    draw(from, to, share);
    if (share < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
};
draw(0, 0, 1);
canvas.className = "drawn";
</script></body></html>
"""


def bare(points: Points, *, thumbnails: bool, move: bool = False) -> str:
    """The least page that shows the points: one canvas, one native slider, one atlas, one array of uint16. move: from epoch to epoch in MOVE ms."""
    whole = np.rint(points.places * 65535).astype("<u2")
    values = {
        "width": CANVAS[0], "height": CANVAS[1], "last": len(whole) - 1,
        "places": _base64(whole.tobytes()), "labels": _base64(points.labels.astype(np.uint8).tobytes()),
        "colours": json.dumps(COLOURS), "thumbnails": json.dumps(thumbnails), "move": MOVE if move else 0, "atlas": points.atlas,
    }  # fmt: skip
    page = BARE
    for name, value in values.items():
        page = page.replace(f"@{name}@", str(value))
    return page


def plotly(points: Points, *, thumbnails: bool) -> str:
    """A figure with a slider, plotly.js in it. Dots: frames that carry the places. Thumbnails: images of the layout over transparent points, each step
    names the new place of each image, as plotly has no mark that is a picture."""
    import plotly.graph_objects as go

    x, y = points.places[..., 0], points.places[..., 1]  # float32, which plotly sends as base64
    symbols = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
    marker = {"color": [COLOURS[i] for i in points.labels], "symbol": [symbols[i] for i in points.labels], "size": 6, "opacity": 0 if thumbnails else 1}
    figure = go.Figure(go.Scatter(x=x[0], y=y[0], mode="markers", marker=marker, text=[points.classes[i] for i in points.labels]))
    once = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    if thumbnails:
        size = {"sizex": SIDE / CANVAS[0], "sizey": SIDE / CANVAS[1], "xanchor": "center", "yanchor": "middle", "xref": "x", "yref": "y"}
        figure.update_layout(images=[{"source": uri, "x": float(x[0, i]), "y": float(y[0, i]), **size} for i, uri in enumerate(points.thumbnails)])
        moved = [{f"images[{i}].{axis}": round(float(of[e, i]), 4) for i in range(x.shape[1]) for axis, of in (("x", x), ("y", y))} for e in range(len(x))]
        steps = [{"method": "relayout", "label": str(e + 1), "args": [moved[e]]} for e in range(len(x))]
    else:
        figure.frames = [go.Frame(name=str(e), data=[{"x": x[e], "y": y[e]}]) for e in range(len(x))]
        steps = [{"method": "animate", "label": str(e + 1), "args": [[str(e)], once]} for e in range(len(x))]
    figure.update_layout(
        width=CANVAS[0] + 100, height=CANVAS[1] + 160, sliders=[{"steps": steps, "currentvalue": {"prefix": "Epoch "}, "transition": {"duration": 0}}]
    )
    figure.update_xaxes(range=[-0.05, 1.05]), figure.update_yaxes(range=[-0.05, 1.05])
    return str(figure.to_html(include_plotlyjs=True, auto_play=False))


def altair(points: Points, *, thumbnails: bool) -> str:
    """A chart whose slider is a parameter, Vega in it (`inline=True`), on a canvas. Each point is one row with all its places, so that
    nothing is said twice; its picture stands in its tooltip or is its mark."""
    import altair as alt

    places = np.round(points.places.astype(np.float64), 4)
    rows = [
        {"x": places[:, i, 0].tolist(), "y": places[:, i, 1].tolist(), "class": points.classes[label], "image": points.thumbnails[i]}
        for i, label in enumerate(points.labels)
    ]
    epoch = alt.param(name="epoch", value=1, bind=alt.binding_range(min=1, max=len(places), step=1, name="Epoch "))
    base = alt.Chart(alt.InlineData(values=rows)).transform_calculate(px="datum.x[epoch - 1]", py="datum.y[epoch - 1]")
    x, y = (alt.X("px:Q", scale=alt.Scale(domain=[-0.05, 1.05]), title="x"), alt.Y("py:Q", scale=alt.Scale(domain=[-0.05, 1.05]), title="y"))
    if thumbnails:
        drawn = base.mark_image(width=SIDE, height=SIDE).encode(x=x, y=y, url="image:N", tooltip=["class:N"])
    else:
        colour = alt.Color("class:N", scale=alt.Scale(domain=list(points.classes), range=list(COLOURS[: len(points.classes)])))
        drawn = base.mark_point(filled=True, size=36).encode(x=x, y=y, color=colour, shape="class:N", tooltip=["class:N", "image:N"])
    return str(drawn.add_params(epoch).properties(width=CANVAS[0], height=CANVAS[1]).to_html(inline=True, embed_options={"renderer": "canvas"}))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


# ── Pellucid's pages ─────────────────────────────────────────────────────────────────────────────────────────────


def pellucid(points: Points, *, thumbnails: bool, room: Room | None = None, names: Sequence[str] = ("pca-last",)) -> str:
    """An offline page as `report` writes it: the view of features with its still picture, scripts and style of all views. names: of the projections."""
    epochs = range(1, len(points.places) + 1)
    planes = [(ProjectionFinding(name, "Fabricated places.", [_panel(epoch, len(points.labels)) for epoch in epochs]), points.places) for name in names]
    tiles = [PIL.Image.fromarray(image) for image in points.images]
    files = [f"val/{i:06d}.png" for i in range(len(points.labels))]
    view = features.of_arrays(planes, points.labels, points.classes, files=files, tiles=lambda rows: [tiles[i] for i in rows], room=room)
    whole = view["atlas"] is not None and view["labels"]["shape"] == [len(files)] and len(view["projections"][0]["panels"]) == len(epochs)
    assert whole, f"expected every point in every epoch with its picture, as the others have them: {view['notes']}"
    return offline("features", view, still(points) * len(names), {"pictures": thumbnails})


def still(points: Points) -> str:
    """The picture for paper of one projection, as the report draws it."""
    rows, epochs = evenly(len(points.labels), MAX_POINTS), evenly(len(points.places), MAX_PLANES)
    drawn = [plane(points.places[e][rows].astype(np.float64), points.labels[rows], ((0, 1), (0, 1)), label=f"epoch {e + 1}") for e in epochs]
    return legend(points.classes, others=0) + '<div class="figures planes">' + "".join(f"<figure>{one}</figure>" for one in drawn) + "</div>"


def offline(name: str, view: View, paper: str, state: dict[str, Any]) -> str:
    """The report's frame with one view in it, in the state that a saved view has."""
    page, body, held = render_template("page.html", views={name: view}), "\n<footer>", '{"view":'
    assert page.count(body) == 1, "the place of the view in the frame of a page is gone"
    section = f'<main id="content"><section><div data-view="{name}"><div class="still">{paper}</div></div></section></main>'
    return page.replace(body, section + body, 1).replace(held, f'{{"state":{json.dumps(state)},"view":', 1)


def attention_page(folder: Path, *, side: int, heads: int, layers: int, seed: int = 0) -> str:
    """The view of attention of one picture, of fabricated weights on side x side patches and a class token, kept in a folder as training keeps them."""
    random = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.generic]] = {}
    patches = side * side
    for layer in range(layers):
        weights = random.gamma(0.3, size=(heads, patches + 1, patches + 1)).astype(np.float32)
        weights /= weights.sum(2, keepdims=True)
        rows, largest = weights[:, 1:, 1:], weights[:, 1:, 1:].max(2)
        arrays[f"rows/0/{layer}"] = np.rint(255 * rows / largest[..., None]).astype(np.uint8)
        arrays[f"scale/0/{layer}"], arrays[f"rest/0/{layer}"], arrays[f"class/0/{layer}"] = largest, weights[:, 1:, 0].copy(), weights[:, 0, 1:].copy()
    kept = [KeptLayer(f"blocks.{layer}.attn", heads, False, (side, side)) for layer in range(layers)]
    AttentionFindings(__version__, "fabricated weights", kept, [0], True).save(folder, arrays)
    picture = ImageFinding("val/000000.png", (224, 224), (0, 0, 224, 224), scenes.SHAPES[0], scenes.SHAPES[0], 0.9)
    Findings(__version__, "fabricated", "none", images=[picture]).save(folder)
    write_arrays(folder / ARRAYS, {})
    (folder / IMAGES).mkdir()
    PIL.Image.fromarray(scenes.draw(0, split="val", image_size=(224, 224)).image).save(folder / IMAGES / "0.webp")
    view = attention.of_folder(folder, EXPLORER)
    assert view is not None, "the folder has attention"
    assert len(view["layers"]) == layers, f"expected {layers} layers in the view, got {len(view['layers'])}"
    return offline("attention", view, "", {})


def _panel(epoch: int, n: int) -> Panel:
    """Numbers that say nothing, of the length that real ones have."""
    one = Measurement("k-NN accuracy", 0.9206, "fraction", "val", n, 1, how="k = 20 neighbours by cosine, each image left out in turn", interval=(0.9, 0.94))
    return Panel(epoch, one, one, one, one, one)
