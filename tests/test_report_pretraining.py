"""The page, the figures and the comparison of a pre-training, and what commands that cannot do anything with it say; on fabricated runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pellucid import intervals, recipe
from pellucid.compare import compare
from pellucid.errors import RunError, UsageError
from pellucid.figures import chart_figure, collapse_figure, write_pretraining_figures
from pellucid.predictions import FeaturePredictions
from pellucid.readings import nearest, neighboured_rows, pretraining_charts
from pellucid.report import render
from pellucid.report.pretraining import read_worth
from pellucid.representation import COLLAPSED_SPREAD, knn_votes
from pellucid.run import DONE, RUNNING, DataRecord, Measurement, Run, RunRecord, SplitRecord
from test_report import Page

RECIPE = """
task: pretraining
data: {{source: scenes, train: 60, val: 40, image_size: 32}}
model: {{name: timm/mobilenetv1_100, options: {{channel_multiplier: 0.25}}}}
method: {method}
augment: {{random_resized_crop: [0.2, 1.0]}}
train:
  batch_size: 20
  phases: [{{epochs: 4, optimizer: {{name: adamw, lr: 0.002}}}}]
seed: {seed}
"""
CLASSES = ["ring", "star", "<b>cross</b>"]
TRAINED, UNTRAINED, PIXELS = 0.8, 0.4, 0.35
COLLAPSE = "collapse: since epoch 1 the projections of different images are nearly the same."


def features(n: int, seed: int, skill: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(labels (n,), features (n, 8)) around a point for each class."""
    random = np.random.default_rng([seed, n])
    labels = np.arange(n) % len(CLASSES)
    points = np.random.default_rng(5).normal(size=(len(CLASSES), 8)) * skill
    return labels.astype(np.int64), (points[labels] + random.normal(size=(n, 8))).astype(np.float32)


def accuracy(name: str, value: float, n: int = 40, split: str = "val") -> Measurement:
    interval = intervals.wilson(round(value * n), n)
    return Measurement(name, value, "fraction", split, n, 1, "as it was measured", interval.pair, interval.how)


def make_run(
    path: Path,
    *,
    method: str = "{name: simclr}",
    classes: Sequence[str] = CLASSES,
    alarms: Sequence[str] = (),
    status: str = DONE,
    skill: float = 3.0,
    seed: int = 1,
    pictures: bool = True,
    with_val: bool = True,
) -> Run:
    """A run folder of a pre-training of 60 images, measured on 40."""
    text = RECIPE.format(method=method, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = RunRecord("0.1.0", status, "pretraining", ["pellucid", "train", "r.yaml"], "2026-11-20T10:00:00+00:00", alarms=list(alarms))
    run = Run.create(path, record=record, recipe=recipe.loads(text), recipe_text=text)
    labels, found = features(40, seed, skill)
    bank_labels, bank = features(60, seed + 1, skill)
    sizes = {"train": bank_labels, **({"val": labels} if with_val else {})}
    splits = {k: SplitRecord(k, len(v), "ab" * 16, np.bincount(v % len(classes), minlength=len(classes)).tolist()) for k, v in sizes.items()}
    data = DataRecord("scenes", list(classes), splits, [], [], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], "model")
    run.write_data(data, {k: [(f"{k}/{i}.png", int(label), "cd" * 16) for i, label in enumerate(v % len(classes))] for k, v in sizes.items()})
    run.write_environment({"device": "cpu", "threads": 1})
    lines: list[dict[str, Any]] = []
    for epoch in range(5):
        common = {"epoch": epoch, "step": 3 * epoch}
        if epoch:
            lines.append({"kind": "train", **common, "loss": 3.0 - 0.2 * epoch, "accuracy": None, "lr": 0.002, "micro_batch_size": 10})
        knn = {"knn_accuracy": 0.4 + 0.1 * epoch} if len(classes) > 1 else {}
        if with_val:
            lines.append({"kind": "val", **common, "alignment": 0.2 * epoch, "uniformity": -0.5 * epoch, **knn})
        lines.append({"kind": "watch", **common, "spread": 0.05 + 0.2 * epoch, "rank": 1.0 + 10 * epoch, "num_dims": 128, "num_images": 40})
    run.append_metrics(lines)
    if status == DONE and with_val:
        one_class = len(classes) < 2
        nothing = np.empty(0, np.int64)
        views = np.random.default_rng(3).normal(size=(2, 40, 4)).astype(np.float32)
        banked = (nothing, nothing, bank[:0]) if one_class else (np.arange(60), bank_labels, bank)
        run.write_feature_predictions("val", FeaturePredictions([f"val/{i}.png" for i in range(40)], labels % len(classes), found, views, *banked))
        accuracies = {f"{name}{of}": value for of, value in (("", TRAINED), ("[untrained]", UNTRAINED), ("[pixels]", PIXELS)) for name in ("knn_accuracy",)}
        record.measurements = [] if one_class else [accuracy(name, value) for name, value in accuracies.items()]
        record.measurements.append(Measurement("uniformity", -2.0, "nats", "val", 40, 1, "log of a mean"))
    record.epoch, record.step, record.total_steps = 4, 12, 12
    run.write_record(record)
    if pictures:
        _draw(run)
    return run


def _draw(run: Run) -> None:
    names = [f"val/{row:06d}{ending}" for row in range(40) for ending in ("", *(f"-near-{i}" for i in range(1, 6)))]
    names += [f"train/{row:06d}{ending}" for row in (3, 7) for ending in ("", "-view-1", "-view-2")]
    for name in names:
        file = run.thumbnails / f"{name}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (200, 30, 30)).save(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return render(run)


def section(page: str, name: str) -> str:
    """The text of a section, without tags."""
    found = re.search(rf'<section id="{name}".*?</section>', page, flags=re.DOTALL)
    assert found is not None, name
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", found[0])))


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_whole_offline_and_small(page: str) -> None:
    assert not Page(page).open  # every tag is closed
    assert len(page) < 5_000_000
    assert "http://" not in page
    assert "https://" not in page
    assert "<b>cross</b>" not in page
    assert "&lt;b&gt;cross&lt;/b&gt;" in page


def test_alarms_stand_above_the_number_and_a_healthy_run_has_none(tmp_path: Path, page: str) -> None:
    collapsed = render(make_run(tmp_path / "run", alarms=[COLLAPSE], pictures=False))
    assert 'class="alarm"' not in page
    assert collapsed.index('role="alert"') < collapsed.index('class="headline"')
    assert "<h2>Collapse</h2><p>Since epoch 1 the projections" in collapsed


def test_alarms_of_an_unfinished_run_are_shown(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run", alarms=[COLLAPSE], status=RUNNING, pictures=False))
    assert "<h2>Collapse</h2>" in page
    assert "not finished" in page
    assert "written when the training is finished" in section(page, "method")


def test_accuracies_stand_beside_baselines_with_intervals_n_and_chance(page: str) -> None:
    text = section(page, "worth")
    assert "after pre-training same backbone untrained raw pixels" in text
    for value in (TRAINED, UNTRAINED, PIXELS):
        low, high = intervals.wilson(round(value * 40), 40).pair
        assert f"{value:.4f} {low:.4f} – {high:.4f} n\xa0=\xa040".replace("\xa0", " ") in text.replace("\xa0", " ")
    assert "Chance is 0.3333, 1 / 3: one of the classes at random" in text


@pytest.mark.parametrize(
    ("trained", "untrained", "pixels", "expected"),
    [
        (0.8, 0.4, 0.3, "is above the same backbone untrained (0.4000) and raw pixels (0.3000), beyond their intervals."),
        (0.8, 0.75, 0.3, "is not shown to be above both baselines: it is above raw pixels (0.3000), and not to be told from the same backbone untrained (0.7500)"),
        (0.4, 0.4, 0.9, "it is below raw pixels (0.9000), and not to be told from the same backbone untrained (0.4000) (intervals overlap). It is not shown to be"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_intervals(trained: float, untrained: float, pixels: float, expected: str) -> None:
    values = {"knn_accuracy": trained, "knn_accuracy[untrained]": untrained, "knn_accuracy[pixels]": pixels}
    worth = read_worth({f"val/{name}": accuracy(name, value) for name, value in values.items()}, "val", 3)
    assert worth is not None
    assert expected in worth.sentences[0]
    assert ("not shown to be above chance (0.3333)" in worth.sentences[0]) == (trained < 0.5)


def test_a_number_just_inside_the_others_interval_is_not_above() -> None:
    first = accuracy("knn_accuracy", 0.5)
    apart = replace(accuracy("knn_accuracy[pixels]", 0.3), interval=(0.2, first.interval[0] - 1e-9))  # type: ignore[index]
    touching = replace(apart, interval=(0.2, first.interval[0]))  # type: ignore[index]
    for other, above in ((apart, True), (touching, False)):
        worth = read_worth({"val/knn_accuracy": first, "val/knn_accuracy[pixels]": other}, "val", 100)
        assert worth is not None
        assert ("is above raw pixels" in worth.sentences[0]) == above


def test_charts_hold_the_epochs_from_0_the_levels_and_the_region_of_collapse(run: Run, page: str) -> None:
    charts = {c.name: c for c in pretraining_charts(run.metrics(), run.measurements, method="simclr", num_classes=3)}
    assert list(charts) == ["loss", "knn_accuracy", "spread", "rank", "alignment", "uniformity"]
    assert charts["knn_accuracy"].curves[0].x == [0, 1, 2, 3, 4]
    assert charts["knn_accuracy"].curves[0].y == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert [(level.name, level.y[0]) for level in charts["knn_accuracy"].levels] == [
        ("same backbone untrained", UNTRAINED), ("raw pixels", PIXELS), ("chance", pytest.approx(1 / 3)),
    ]  # fmt: skip
    assert charts["spread"].collapsed == COLLAPSED_SPREAD
    assert charts["rank"].collapsed == pytest.approx(1 + 0.02 * 40)  # of 40 images and 128 dimensions
    assert page.count('class="ground"') == 2
    assert "Shaded: collapse, below 1.8." in page


def test_the_region_of_collapse_ends_at_its_value_on_the_axis(page: str) -> None:
    drawn = re.search(r'aria-label="Spread of the projections.*?</svg>', page, flags=re.DOTALL)
    assert drawn is not None
    y, height = (float(v) for v in re.search(r'class="ground" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', drawn[0]).groups())  # type: ignore[union-attr]
    assert height / (height + y - 12) == pytest.approx(COLLAPSED_SPREAD, abs=0.01)  # the axis goes from 0 to 1 and begins 12 below the top


def test_neighbours_stand_in_order_with_their_classes_and_the_share_over_all_images(run: Run, page: str) -> None:
    p, text = run.feature_predictions("val"), section(page, "neighbours")
    unit = [a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True) for a in (p.features, p.bank)]
    cosines = unit[0] @ unit[1].T
    row = int(neighboured_rows(p.labels)[0])
    best = np.argsort(-cosines[row])[:5]
    shown = f"{CLASSES[p.labels[row]]} val image " + " ".join(f"{CLASSES[p.bank_labels[b]]} cosine {cosines[row, b]:.4f}" for b in best)
    assert shown in text
    share = np.mean([[p.bank_labels[b] == p.labels[i] for b in np.argsort(-cosines[i])[:5]] for i in range(40)])
    assert f"Of all 40 images, {share:.4f} of these neighbours" in text
    assert "drawn at random would be in 0.3333" in text
    assert page.count("<img") >= 6 * 6 + 2 * 3


def test_nearest_takes_the_lower_row_of_equals_and_all_of_a_small_bank() -> None:
    bank = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]], np.float32)
    places, cosines = nearest(np.array([[3.0, 0.0]], np.float32), bank)
    assert places.tolist() == [[1, 2, 0]]
    assert cosines.tolist() == [[1.0, 1.0, 0.0]]
    assert nearest(np.empty((0, 2), np.float32), bank)[0].shape == (0, 3)


def test_images_with_neighbours_are_of_as_many_classes_as_there_are() -> None:
    labels = np.repeat(np.arange(3), [30, 30, 30])
    assert np.bincount(labels[neighboured_rows(labels)]).tolist() == [2, 2, 2]
    assert neighboured_rows(np.zeros(2, np.int64)).tolist() == [0, 1]


def test_pictures_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run", pictures=False))
    assert Page(page).text.count("no picture was kept") == 36
    assert 'id="views"' not in page


def test_method_labels_and_batch_norm_are_told(tmp_path: Path, page: str) -> None:
    text = section(page, "method")
    assert "SimCLR (Chen et al. 2020" in text
    assert "No label reached the loss" in text
    assert "statistics are of the two views of 10 images, a part of the batch of 20" in text
    byol = section(render(make_run(tmp_path / "byol", method="{name: byol, predictor_hidden: null}", pictures=False)), "method")
    assert "This run is without its predictor: without it the paper reports collapse." in byol
    assert "of one view of 10 images" in byol
    assert "The target network takes those of its own batch" in byol


def test_the_recipe_lines_start_from_the_backbone_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    assert "The file of the backbone is missing." in section(render(run), "method")
    run.backbone_weights.write_bytes(b"")
    lines = unescape(re.search(r"<code>(model:.*?)</code>", render(run), flags=re.DOTALL)[1])  # type: ignore[index]
    rest = "task: classification\ndata: {source: scenes, train: 60, val: 40, image_size: 32}\ntrain:\n  batch_size: 20\n  phases: [{epochs: 1, optimizer: {name: sgd, lr: 0.1}}]\n"
    made = recipe.loads(lines + rest)
    assert made.model.weights == str(run.backbone_weights)
    assert made.model.options == {"channel_multiplier": 0.25}


def test_a_run_of_one_class_says_that_labels_measure_nothing(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run", classes=["unlabelled"]))
    assert 'id="worth"' not in page
    assert 'id="neighbours"' not in page
    assert "of one class alone" in section(page, "method")
    assert "-2.0000" in section(page, "numbers")


def test_a_run_without_val_has_its_loss_and_spread(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run", with_val=False))
    assert "Training loss" in page
    assert "Spread of the projections" in page
    assert "Shaded: collapse, below 1.8." in page, "of the 40 images that were watched"
    assert "k-NN accuracy on val" not in page
    assert "measured nothing, because there is no val and no test split" in section(page, "method")


def test_features_of_training_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    p = run.feature_predictions("val")
    run.write_feature_predictions("val", replace(p, bank_rows=p.bank_rows + 1))
    with pytest.raises(RunError, match=r"val\.npz: its labels or rows are beyond the classes and training images"):
        render(run)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_hold_the_curves_levels_and_the_region_of_collapse(run: Run) -> None:
    charts = pretraining_charts(run.metrics(), run.measurements, method="simclr", num_classes=3)
    (axes,) = chart_figure([charts[1]]).axes
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn["features of the backbone"] == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert drawn["same backbone untrained"] == [UNTRAINED] * 2
    assert drawn["chance"] == pytest.approx([1 / 3] * 2)
    spread, rank = collapse_figure(charts).axes
    for one, top in ((spread, COLLAPSED_SPREAD), (rank, 1.8)):
        assert one.patches[0].get_extents().transformed(one.transData.inverted()).y1 == pytest.approx(top)
    with pytest.raises(ValueError, match="no curve has a point"):
        collapse_figure([])


def test_a_run_leaves_its_figures_in_three_formats(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    monkeypatch.setattr("pellucid.figures.pretraining.save", lambda figure, path: [path])  # drawing them takes seconds
    names = [path.name for path in write_pretraining_figures(Run(tmp_path / "run"))]
    assert names == ["loss", "knn_accuracy", "collapse", "alignment_uniformity", "learning_rate"]


# ── other commands ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_difference_of_two_pre_trainings_is_paired_over_their_images(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"skill-{s}", skill=s, method=f"{{name: simclr, temperature: {s}}}", pictures=False) for s in (3.0, 0.5)]
    right = []
    for run in runs:
        p = run.feature_predictions("val")
        votes = knn_votes(p.features, p.bank, p.bank_labels, num_classes=3, neighbours=20, temperature=0.07)
        right.append(votes.argmax(axis=1) == p.labels)
    assert right[0].mean() > right[1].mean()
    rows = {row.name: row for row in compare(runs, baseline="skill-0.5", metric="val/knn_accuracy").rows}
    difference = rows["skill-3.0"].difference
    assert difference is not None
    assert difference.interval == pytest.approx(intervals.paired(*right).pair)


def test_pre_trainings_of_other_images_have_no_interval(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, method=f"{{name: simclr, temperature: {t}}}", pictures=False) for name, t in (("a", 0.1), ("b", 0.2))]
    p = runs[0].feature_predictions("val")
    runs[0].write_feature_predictions("val", replace(p, files=[f"other/{name}" for name in p.files]))
    rows = compare(runs, baseline="b", metric="val/knn_accuracy").rows
    assert [row.words for row in rows if not row.baseline] == ["no interval: the features are not of the same images in the same order"]


def test_evaluate_and_export_say_what_to_do_instead(run: Run) -> None:
    from pellucid.evaluate import evaluate, export_run

    with pytest.raises(
        UsageError, match=r"measured against its own training images.*`pellucid verify`.*model\.weights: .*backbone\.safetensors and freeze: backbone"
    ):
        evaluate(run, "elsewhere")
    with pytest.raises(UsageError, match=r"gives no logits.*`pellucid export RUN --backbone` writes its backbone"):
        export_run(run, None, "onnx")


def test_maps_of_a_class_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    from pellucid.look import look_into
    from pellucid.models import save_weights
    from pellucid.tasks import MODELS

    run = make_run(tmp_path / "run", pictures=False)
    save_weights(MODELS["pretraining"](run.recipe, len(CLASSES))[0].module, run.final_weights, {})
    image = tmp_path / "image.png"
    PIL.Image.new("RGB", (32, 32)).save(image)
    with pytest.raises(UsageError, match=r"names no class.*model\.weights: .*; timm/mobilenetv1_100 has no attention that could be shown"):
        look_into(run.path, [image], tmp_path / "out")
    with pytest.raises(UsageError, match=r"--map grad_cam: .*every map but attention and rollout asks what a model saw of one"):
        look_into(run.path, [image], tmp_path / "out", methods=["grad_cam"])
    assert not (tmp_path / "out").exists()


def test_alarms_are_printed_beside_the_numbers(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from pellucid.printing import print_measurements, print_run

    collapsed = make_run(tmp_path / "run", alarms=[COLLAPSE], pictures=False)
    print_measurements(collapsed)
    assert capsys.readouterr().out.splitlines()[-1] == f"ALARM {COLLAPSE}"
    print_run(collapsed, True)
    assert json.loads(capsys.readouterr().out)["alarms"] == [COLLAPSE]
    print_run(run, True)
    assert "alarms" not in json.loads(capsys.readouterr().out)
