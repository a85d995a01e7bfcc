"""The views of attention and positions: what they hold, what they leave out where there is no room, and how they answer to pointer and keys."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from browser import FRAMES, Watched, chromium, needs_chromium
from fabricate import make_run
from fabricate_inside import EPOCHS, METHODS, all_scores, make_findings
from pellucid.attention_findings import AttentionFindings, KeptLayer, load_attention
from pellucid.errors import RunError
from pellucid.findings import ARRAYS, IMAGES, EpochScores, Findings, PositionsFinding, Score, load_findings, verdict
from pellucid.report import page, write_report
from pellucid.run import Run
from pellucid.views import Room, attention, bundle, positions, to_json
from test_report import HOSTILE

GRID, HEADS, LAYERS = (4, 5), 3, 4
WIDE = Room(bytes=10_000_000)
MOUNTED = """async ({ view, state }) => {
  const root = document.body.appendChild(document.createElement("div")), mounted = await mountAttention(root, view, { live: false }, state);
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return { state: mounted.state(), said: root.querySelector(".readout").textContent, method: root.querySelector("select").value };
}"""
HOVERED = """async () => {
  const [canvas] = document.querySelectorAll("[data-view=attention] [role=application]"), box = canvas.getBoundingClientRect(), times = [];
  for (let i = 0; i < 30; i++) {
    const before = performance.now(), clientX = box.left + box.width * (0.3 + i / 100), clientY = box.top + box.height * (0.2 + i / 60);
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
    times.push(performance.now() - before);
  }
  return times;
}"""


def decoded(array: dict[str, Any]) -> NDArray[Any]:
    """An array of a view, by zlib."""
    raw = base64.b64decode(array["base64"])
    return np.frombuffer(zlib.decompress(raw, -15) if array.get("deflate") else raw, array["dtype"]).reshape(array["shape"])


def keep_attention(folder: Path, pictures: list[int], *, grid: tuple[int, int] = GRID, layers: int = LAYERS, class_token: bool = True) -> None:
    """Attention of some pictures, drawn at random: every row is shares of 1 that went to patches, and the rest."""
    random, n = np.random.default_rng(0), grid[0] * grid[1]
    arrays: dict[str, NDArray[Any]] = {}
    for i in pictures:
        for at in range(layers):
            rows = random.dirichlet(np.full(n + 1, 0.3), (HEADS, n))
            scale = rows[..., :n].max(axis=-1)
            arrays[f"rows/{i}/{at}"] = np.rint(255 * rows[..., :n] / scale[..., None]).astype(np.uint8)
            arrays[f"scale/{i}/{at}"], arrays[f"rest/{i}/{at}"] = scale.astype(np.float32), rows[..., n].astype(np.float32)
            if class_token:
                arrays[f"class/{i}/{at}"] = random.dirichlet(np.full(n + 1, 0.5), HEADS)[:, :n].astype(np.float32)
    kept = [KeptLayer(f"blocks.{at}.attn", HEADS, False, grid) for at in range(layers)]
    AttentionFindings("0.1.0", "attention of every patch", kept, pictures, class_token, ["kept of some pictures"]).save(folder, arrays)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Findings of three pictures; the attention of the last two was kept."""
    make_findings(tmp_path / "inside")
    keep_attention(tmp_path / "inside", [1, 2])
    return tmp_path / "inside"


def view_of(folder: Path, room: Room = WIDE) -> dict[str, Any]:
    found = attention.of_folder(folder, room)
    assert found is not None
    return found


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_the_kept_weights_and_the_mean_of_their_heads(folder: Path) -> None:
    kept, view = load_attention(folder), view_of(folder)
    for i in (1, 2):
        for at in range(LAYERS):
            weights = kept.weights(i, at)
            mean = np.array([[sum(weights[head, q, k] for head in range(HEADS)) / HEADS for k in range(20)] for q in range(20)])
            held = view["pictures"][i]["attention"][at]["patch"]
            rows, scale, rest = decoded(held["rows"]), decoded(held["scale"]), decoded(held["rest"])
            assert rows.shape == (1 + HEADS, 20, 20)
            found = rows / 255 * scale[..., None]
            assert (np.abs(found - np.concatenate([mean[None], weights])) <= scale[..., None] / 510 + 1e-7).all()
            np.testing.assert_allclose(rest[0], kept.arrays[f"rest/{i}/{at}"].mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(rest + 0 * scale + found.sum(axis=-1), 1, atol=0.03)


def test_what_the_class_token_gives_to_no_patch_is_its_rest(folder: Path) -> None:
    kept, held = load_attention(folder), view_of(folder)["pictures"][2]["attention"][3]["class"]
    weights = kept.arrays["class/2/3"].astype(np.float64)
    rows, scale = decoded(held["rows"]), decoded(held["scale"])
    assert rows.shape == (1 + HEADS, 1, 20)
    np.testing.assert_allclose(rows[1:, 0] / 255 * scale[1:], weights, atol=scale.max() / 500)
    np.testing.assert_allclose(decoded(held["rest"])[:, 0], [1 - weights.mean(axis=0).sum(), *(1 - weights.sum(axis=1))], atol=1e-6)


def test_a_model_without_class_token_is_asked_for_patches_alone(tmp_path: Path) -> None:
    make_findings(tmp_path)
    keep_attention(tmp_path, [0], class_token=False)
    view = view_of(tmp_path)
    assert view["pictures"][0]["attention"][0]["class"] is None
    assert not view["class_token"]
    assert "class token" not in view["pointing"] + view["elsewhere"]


def test_maps_come_back_from_their_bytes_and_largest_values(folder: Path) -> None:
    arrays, view = np.load(folder / ARRAYS), view_of(folder)
    for method in view["methods"]:
        step = method["steps"][-1]
        maps, largest = decoded(step["maps"]), decoded(step["largest"])
        assert (maps.reshape(3, -1).max(axis=1) == 255).all()
        np.testing.assert_allclose(maps / 255 * largest[:, None, None], arrays[f"maps/{method['name']}"], atol=largest.max() / 509)
    assert [method["name"] for method in view["methods"]] == list(METHODS)


def test_each_map_stands_beside_the_hardest_baseline(folder: Path) -> None:
    findings, view = load_findings(folder), view_of(folder)
    names = [head["text"] for head in view["heads"] if isinstance(head, dict)][1:]
    for method in view["methods"]:
        step = method["steps"][-1]
        scores = [score for score in findings.scores if score.method == method["name"]]
        assert [value["text"] for _, value, *_ in step["measures"]] == [str(score.value) for score in scores]
        for (_, _, kind, said, *baselines), (_, beside), score in zip(step["measures"], step["beside"], scores, strict=True):
            assert (said, kind) == verdict(score)
            assert baselines == [str(score.baselines[name]) if name in score.baselines else "–" for name in names]
            hardest = (max if score.higher_is_better else min)(score.baselines.values(), key=lambda m: m.value)
            assert beside.endswith(f", mean over {hardest.n} pictures: {hardest}")
        own = {score.measure: text for score, text in zip(scores, step["own"][1], strict=True)}
        assert own == {"pointing_game": "1.0000", "relevance_mass": "0.4100", "deletion": None}


def test_a_baseline_over_one_picture_is_that_picture_s_own(tmp_path: Path) -> None:
    findings = make_findings(tmp_path)
    findings.scores = [replace(score, baselines={name: replace(m, n=1) for name, m in score.baselines.items()}) for score in findings.scores]
    findings.save(tmp_path)
    assert not [beside for method in view_of(tmp_path)["methods"] for _, beside in method["steps"][-1]["beside"] if "mean" in beside]


def test_what_is_said_of_measures_fits_the_pictures(tmp_path: Path, folder: Path) -> None:
    several = view_of(folder)
    assert (several["caption"], several["unmeasured"]) == ("Means over all pictures", "Not measured: this picture has no mask.")
    findings = make_findings(tmp_path, num_images=1)
    findings.scores = [replace(score, baselines={}, margins={}, value=replace(score.value, n=1)) for score in findings.scores]
    findings.save(tmp_path)
    one = view_of(tmp_path)
    assert (one["caption"], one["unmeasured"]) == ("Measures of this picture", "Not measured: nobody says where the map should be bright.")
    assert {tuple(row[2:4]) for method in one["methods"] for row in method["steps"][-1]["measures"]} == {("open", "one picture allows no verdict")}


def test_only_epochs_that_were_measured_are_shown(tmp_path: Path) -> None:
    method, grid = "attention", METHODS["attention"]
    maps = {f"maps/{method}/{epoch}": np.full((3, *grid), 1 / 24, np.float32) for epoch in EPOCHS}
    findings = make_findings(tmp_path, changed=maps | {f"scores/{method}/pointing_game/3": np.array([1.0, np.nan, 0.25])})
    first = next(score for score in all_scores() if score.method == method)
    findings.over_epochs = [EpochScores(1, [Score(method, "pointing_game", first.value, {})]), EpochScores(3, [first]), EpochScores(6, [])]
    findings.save(tmp_path)
    steps = view_of(tmp_path)["methods"][0]["steps"]
    assert [step["name"] for step in steps] == ["epoch 3", "final weights"]
    assert [own[0] for own in steps[0]["own"]] == ["1.0000", None, "0.2500"]


@pytest.mark.parametrize("room", [2_000_000, 400_000, 100_000, 60_000, 30_000, 16_000])
def test_what_has_no_room_is_left_out_and_said(tmp_path: Path, room: int) -> None:
    make_findings(tmp_path, num_images=6)
    keep_attention(tmp_path, [0, 1, 2, 3], grid=(7, 7), layers=8)
    view = view_of(tmp_path, Room(bytes=room))
    assert len(to_json(view)) <= room
    held = [one["attention"] for one in view["pictures"] if one["attention"]]
    said = " ".join(view["notes"])
    assert view["pictures"]
    assert (len(view["pictures"]) < 6) == (f"{len(view['pictures'])} of 6 pictures are" in said)
    if held:
        heads = decoded(held[0][0]["patch"]["rows"]).shape[0] - 1
        assert (len(held) < 4) == (f"{len(held)} of 4 pictures" in said)
        assert (heads == 0) == ("the mean of the heads" in said)
        assert (len(held[0]) < 8) == (f"{len(held[0])} of 8 layers" in said)
        assert view["layers"][-1]["name"] == "layer 8 of 8, blocks.7.attn"
    else:
        assert "has no room here; `pellucid explore` shows it" in said


def test_pictures_go_before_heads_and_heads_before_layers(tmp_path: Path) -> None:
    make_findings(tmp_path, num_images=4)
    keep_attention(tmp_path, [0, 1, 2, 3], grid=(7, 7), layers=8)
    seen = []
    for room in range(400_000, 20_000, -20_000):
        held = [one["attention"] for one in view_of(tmp_path, Room(bytes=room))["pictures"] if one["attention"]]
        if held:
            seen.append((len(held[0]), decoded(held[0][0]["patch"]["rows"]).shape[0], len(held)))
    assert seen == sorted(seen, reverse=True)
    assert {layers for layers, _, _ in seen} > {8}
    assert {heads for layers, heads, _ in seen if layers == 8} == {1, 1 + HEADS}
    assert len({pictures for layers, heads, pictures in seen if heads > 1}) > 1


def test_a_folder_of_nothing_has_no_view_and_maps_need_no_attention(tmp_path: Path) -> None:
    assert attention.of_folder(tmp_path, WIDE) is None
    assert positions.of_folder(tmp_path, WIDE) is None
    make_findings(tmp_path / "maps")
    view = view_of(tmp_path / "maps")
    assert view["layers"] == []
    assert [one["attention"] for one in view["pictures"]] == [None] * 3
    Findings("0.1.0", "model", "weights", notes=["nothing"]).save(tmp_path / "notes")
    assert attention.of_folder(tmp_path / "notes", WIDE) is None


def test_pictures_that_are_gone_or_damaged_are_said(folder: Path) -> None:
    (folder / IMAGES / "0.webp").unlink()
    (folder / IMAGES / "1.webp").write_bytes(b"RIFF")
    pictures = view_of(folder)["pictures"]
    assert pictures[0]["photo"] is None
    assert pictures[0]["title"].endswith(", no picture was kept")
    assert pictures[1]["title"].endswith(", the picture cannot be read")
    (folder / IMAGES / "0.webp").write_bytes((folder / IMAGES / "2.webp").read_bytes())
    (folder / IMAGES / "1.webp").write_bytes((folder / IMAGES / "2.webp").read_bytes())
    with pytest.raises(RunError, match=r"1\.webp: expected val/00001_cat\.jpg of 150 x 100 pixels or a smaller copy, got 120 x 160; the folder was changed"):
        attention.of_folder(folder, WIDE)


# ── positions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_similarities_come_back_to_within_what_is_said(tmp_path: Path) -> None:
    make_findings(tmp_path)
    view = positions.of_folder(tmp_path, WIDE)
    assert view is not None
    (sheet,) = view["sheets"]
    similarity = np.load(tmp_path / ARRAYS)["positions"].reshape(36, 6, 6)
    found = sheet["low"] + decoded(sheet["values"]) / 255 * (sheet["high"] - sheet["low"])
    assert np.abs(found - similarity).max() <= (1 - similarity.min()) / 510 + 1e-6
    assert f"to within {(1 - similarity.min()) / 510:.4f}" in sheet["scale"]
    assert sheet["labels"][7] == "position row 2, column 2"
    assert all(found[i, row, column] == 1 for i, (row, column) in enumerate(sheet["sits"]))


def test_positions_without_room_are_thinned_evenly_and_said(tmp_path: Path) -> None:
    make_findings(tmp_path, grid=(16, 12))
    view = positions.of_folder(tmp_path, Room(bytes=9_000))
    assert view is not None
    sheet = view["sheets"][0]
    rows, columns = (sorted({sit[i] for sit in sheet["sits"]}) for i in (0, 1))
    assert len(to_json(view)) <= 9_000
    assert len(set(np.diff(rows))) == len(set(np.diff(columns))) == 1 < np.diff(rows)[0]
    assert f"The maps of {len(sheet['sits'])} of 192 positions are drawn, evenly spaced" in view["notes"][0]


def test_tables_of_bias_are_shown_by_head_and_distance(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tables = {f"bias/layers.{i}.attn": random.normal(size=(3, 13, 13)).astype(np.float32) for i in range(4)}
    findings = make_findings(tmp_path, changed=tables | {"positions": None})
    findings.positions = PositionsFinding("relative", "A bias for each distance.")
    findings.save(tmp_path)
    view = positions.of_folder(tmp_path, WIDE)
    assert view is not None
    assert [sheet["name"] for sheet in view["sheets"]] == [f"bias of layers.{i}.attn" for i in range(4)]
    sheet = view["sheets"][2]
    found = sheet["low"] + decoded(sheet["values"]) / 255 * (sheet["high"] - sheet["low"])
    np.testing.assert_allclose(found, tables["bias/layers.2.attn"], atol=(sheet["high"] - sheet["low"]) / 509)
    assert (sheet["origin"], sheet["labels"]) == ([-6, -6], ["head 1", "head 2", "head 3"])
    small = positions.of_folder(tmp_path, Room(bytes=2_200))
    assert small is not None
    assert small["sheets"][-1]["name"] == "bias of layers.3.attn"
    assert f"the last {len(small['sheets'])} of 4 layers" in small["notes"][0]


def test_a_changed_table_of_bias_is_an_error(tmp_path: Path) -> None:
    make_findings(tmp_path, changed={"bias/attn": np.full((2, 3, 3), np.nan, np.float32)})
    with pytest.raises(RunError, match=r"bias/attn: expected finite numbers \(heads, rows, columns\), got float32 \(2, 3, 3\); the file was changed"):
        positions.of_folder(tmp_path, WIDE)


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def written(run: Run) -> Path:
    """The report of a run with the two views alone: those of others are not proved here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "ROOMS", {name: page.ROOMS[name] for name in ("attention", "positions")})
        return write_report(run)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose pictures, attention and positions were kept, one picture with a hostile name."""
    run = make_run(tmp_path_factory.mktemp("seen") / "run")
    findings = make_findings(run.inside)
    findings.images[2] = replace(findings.images[2], file=HOSTILE, label=HOSTILE, flags=[HOSTILE])
    findings.save(run.inside)
    keep_attention(run.inside, [1, 2])
    return written(run)


def opened(browser: Any, report: Path, view: str, **options: Any) -> Iterator[tuple[Watched, Any]]:
    watched = Watched(browser, **options)
    yield watched, watched.open(report, view).locator(f'[data-view="{view}"]')
    assert watched.errors == []
    assert watched.requests == [report.resolve().as_uri()]
    watched.page.close()


def reads(said: Any, start: str) -> None:
    """Wait until a line begins so."""
    said.filter(has_text=re.compile(f"^{start}")).wait_for()


@needs_chromium
def test_a_patch_is_asked_by_pointer_and_by_keys(browser: Any, report: Path) -> None:
    for watched, view in opened(browser, report, "attention"):
        said, photo = view.locator(".readout"), view.get_by_role("application").first
        rows = decoded(view_of(report.parent / "inside")["pictures"][1]["attention"][3]["patch"]["rows"])
        assert said.inner_text().startswith("Class token, mean of the heads: most on row ")
        box = photo.bounding_box()  # the picture is 120 x 160, its middle square was seen, in 4 x 5 patches
        place = {"x": box["width"] * (20 + 120 * 0.5) / 160, "y": box["height"] * 0.1}
        photo.hover(position=place)
        reads(said, "Patch in row 1, column 3")
        best = int(rows[0, 2].argmax())
        assert f"most on row {best // 5 + 1}, column {best % 5 + 1}, " in said.inner_text()
        watched.page.mouse.move(2, 2)
        reads(said, "Class token")
        photo.click(position=place)
        watched.page.mouse.move(2, 2)
        assert said.inner_text().startswith("Patch in row 1, column 3,")
        photo.press("ArrowDown")
        photo.press("ArrowLeft")
        assert said.inner_text().startswith("Patch in row 2, column 2,")
        assert watched.page.locator("p[role=status]").inner_text() == said.inner_text()
        photo.press("Escape")
        assert said.inner_text().startswith("Class token,")
        assert view.get_by_label("Query").input_value() == "class token"


@needs_chromium
def test_layer_and_head_are_chosen_by_pointer_and_by_keys(browser: Any, report: Path) -> None:
    for _, view in opened(browser, report, "attention"):
        said, cells = view.locator(".readout"), view.get_by_role("application").nth(1)
        box = cells.bounding_box()
        cells.click(position={"x": box["width"] * 1.5 / LAYERS, "y": box["height"] * 2.5 / (1 + HEADS)})
        assert view.get_by_role("slider", name="Layer").input_value() == "1"
        reads(said, "Class token, head 2: ")
        held = view_of(report.parent / "inside")["pictures"][1]["attention"][1]["class"]
        best = int(decoded(held["rows"])[2, 0].argmax())
        assert f"row {best // 5 + 1}, column {best % 5 + 1}, {decoded(held['scale'])[2, 0]:.4f} of the attention" in said.inner_text()
        cells.press("ArrowRight")
        cells.press("ArrowDown")
        assert said.inner_text().startswith("Class token, head 3: ")
        assert view.get_by_role("slider", name="Layer").input_value() == "2"


@needs_chromium
def test_pictures_methods_and_hostile_names_are_shown_as_text(browser: Any, report: Path) -> None:
    for watched, view in opened(browser, report, "attention", color_scheme="dark"):
        pictures = view.locator(".thumbs button")
        assert pictures.count() == 3
        pictures.nth(2).focus()
        watched.page.keyboard.press("Enter")
        view.locator('.thumbs li:nth-child(3) button[aria-pressed="true"]').wait_for()
        assert HOSTILE in view.inner_text()
        assert view.locator("script, b").count() == 0
        view.get_by_label("Method").select_option("grad_cam")
        assert view.get_by_role("img", name=f"grad_cam over {HOSTILE}, final weights").count() == 1
        assert not re.search(r"0\.5000 \(the centre prior, mean over \d+ pictures: 0\.5200\)", view.inner_text())
        pictures.first.click()
        view.locator('.thumbs li:nth-child(1) button[aria-pressed="true"]').wait_for()
        assert not view.locator(".readout").is_visible()  # its attention was not kept
        assert not view.get_by_label("Query").is_visible()
        assert view.get_by_text("Not kept of this picture").is_visible()
        assert pictures.filter(has_text="●").count() == 2
        assert [one.get_attribute("tabindex") for one in pictures.all()].count("0") == 1
        pictures.first.press("ArrowRight")
        assert pictures.nth(1).evaluate("e => e === document.activeElement && e.tabIndex === 0")
        assert view.locator("dt span[title]").count() > 0
        watched.keep("attention-dark", full_page=True)


@needs_chromium
def test_what_is_seen_comes_back_from_its_state(browser: Any, report: Path) -> None:
    state = {"picture": 2, "method": 1, "step": "final weights", "layer": 0, "head": 1, "query": [0.9, 0.1]}
    watched = Watched(browser)
    watched.page.add_script_tag(content=bundle.joined((*bundle.MODULES, "report")) + "globalThis.mountAttention = mountAttention;", type="module")
    again = watched.page.evaluate(MOUNTED, {"view": view_of(report.parent / "inside"), "state": state})
    assert again["state"] == state
    assert again["said"].startswith("Patch in row 4, column 1, head 1: ")
    assert again["method"] == "grad_cam"
    assert watched.errors == []
    watched.page.close()


@needs_chromium
def test_a_picture_alone_is_spoken_of_as_one(browser: Any, report: Path, tmp_path: Path) -> None:
    for _, view in opened(browser, report, "attention"):
        assert re.search(r"1\.0000 \([a-z ]+, mean over \d+ pictures: 0\.\d{4}\)", view.inner_text())
        assert "Means over all pictures, final weights" in view.inner_text()
    findings = make_findings(tmp_path, num_images=1)
    findings.scores = [replace(score, baselines={}, margins={}, value=replace(score.value, n=1)) for score in findings.scores]
    findings.save(tmp_path)
    keep_attention(tmp_path, [0])
    one = view_of(tmp_path)
    watched = Watched(browser)
    watched.page.add_script_tag(content=bundle.joined((*bundle.MODULES, "report")) + "globalThis.mountAttention = mountAttention;", type="module")
    watched.page.evaluate(MOUNTED, {"view": one, "state": {}})
    said = watched.page.locator("body").inner_text()
    assert "Not measured: nobody says where the map should be bright." in said
    assert "Measures of this picture, final weights" in said
    assert "all pictures" not in said
    for method in one["methods"]:
        method["steps"][-1]["measures"] = []
    watched.page.evaluate("document.body.replaceChildren()")
    watched.page.evaluate(MOUNTED, {"view": one, "state": {}})
    assert "Measures of this picture" not in watched.page.locator("body").inner_text()
    assert watched.errors == []
    watched.page.close()


@needs_chromium
def test_a_view_that_left_the_page_is_held_by_nothing(browser: Any, report: Path) -> None:
    watched = Watched(browser)
    watched.page.add_script_tag(content=bundle.joined((*bundle.MODULES, "report")) + "globalThis.mountAttention = mountAttention;", type="module")
    watched.page.evaluate(MOUNTED, {"view": view_of(report.parent / "inside"), "state": {}})
    watched.page.evaluate("() => { globalThis.gone = new WeakRef(document.querySelector('canvas')); document.body.replaceChildren(); }")
    watched.page.evaluate(FRAMES)
    session = watched.page.context.new_cdp_session(watched.page)
    session.send("HeapProfiler.collectGarbage")
    assert watched.page.evaluate("gone.deref() === undefined")
    watched.page.close()


@needs_chromium
def test_hover_paints_the_row_of_a_patch_within_50_ms(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_findings(run.inside)
    keep_attention(run.inside, [0], grid=(14, 14), layers=6)
    for watched, view in opened(browser, written(run), "attention"):
        view.get_by_role("application").first.scroll_into_view_if_needed()
        times = watched.page.evaluate(HOVERED)
        assert sorted(times)[len(times) // 2] < 50, times


@needs_chromium
def test_positions_are_read_by_pointer_and_by_keys(browser: Any, report: Path) -> None:
    for watched, view in opened(browser, report, "positions"):
        said, (whole, large) = view.locator(".readout"), view.get_by_role("application").all()
        similarity = np.load(report.parent / "inside" / ARRAYS)["positions"]
        box = whole.bounding_box()
        whole.hover(position={"x": box["width"] * (2 + 4.5 / 6) / 6, "y": box["height"] * (1 + 2.5 / 6) / 6})
        assert said.inner_text().startswith("position row 2, column 3, position row 3, column 5: cosine similarity of two positions ")
        assert abs(float(said.inner_text().split()[-1]) - similarity[1, 2, 2, 4]) < 0.006
        whole.press("ArrowDown")
        large.press("ArrowRight")
        assert said.inner_text().startswith("position row 3, column 3, position row 3, column 6: ")
        assert watched.page.locator("p[role=status]").inner_text() == said.inner_text()
        kept = said.inner_text()
        whole.hover(position={"x": 3, "y": 3})
        reads(said, "position row 1, column 1, position row 1, column 1: ")
        watched.page.mouse.move(2, 2)
        assert said.inner_text() == kept, "a mouse that leaves gives back what was kept"
        whole.click(position={"x": 3, "y": 3})
        watched.page.mouse.move(2, 2)
        assert said.inner_text().startswith("position row 1, column 1, position row 1, column 1: ")
        watched.keep("positions")


@needs_chromium
def test_a_phone_needs_no_sideways_scrolling_and_paper_shows_the_still_pictures(browser: Any, report: Path) -> None:
    for watched, view in opened(browser, report, "attention", viewport={"width": 360, "height": 740}):
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
        watched.keep("attention-phone", full_page=True)
        watched.page.emulate_media(media="print")
        assert view.locator(".still img").first.is_visible()
        assert not view.locator("canvas").first.is_visible()
