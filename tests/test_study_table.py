from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics

from fabricate_segmentation import make_segmentation
from fabricate_study import SKILL, make_study
from pellucid import intervals
from pellucid.compare import number_of_images
from pellucid.errors import RunError
from pellucid.predictions import Predictions
from pellucid.report.study import listed, minutes
from pellucid.representation import fit_probe, knn_votes
from pellucid.run import Run
from pellucid.study_record import SettingRecord, StudyFolder, StudyRecord
from pellucid.study_table import (
    BETTER,
    NO_DIFFERENCE,
    NO_INTERVAL,
    NOT_COMPARABLE,
    ONE_SEED,
    WORSE,
    StudyRow,
    StudyTable,
    _cross_entropy,
    _macro_f1,
    _over_seeds,
    _pixel_loss,
    _verdict,
    study_table,
    to_json,
    to_markdown,
    to_text,
    write_table,
)
from test_report_pretraining import make_run as make_pretraining

TWO = {"A": 1.6, "C": 2.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return make_study(tmp_path_factory.mktemp("whole") / "study")


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    status = {("B", 2): "failed", ("C", 3): "running", ("E", 3): "", ("R", 2): "", ("R", 3): ""}
    return make_study(tmp_path_factory.mktemp("torn") / "study", status=status, data_seed={"D": 5})


@pytest.fixture(scope="module")
def table(whole: StudyFolder) -> StudyTable:
    return study_table(whole)


@pytest.fixture(scope="module")
def torn_table(torn: StudyFolder) -> StudyTable:
    return study_table(torn)


def row(table: StudyTable, name: str) -> StudyRow:
    return {row.setting.name: row for row in table.rows}[name]


def values(folder: StudyFolder, setting: str, key: str = "val/accuracy") -> list[float]:
    return [run.measurements[key].value for run in folder.runs(setting).values()]


def right(folder: StudyFolder, setting: str) -> np.ndarray:
    """(seeds, n) float64: 1.0 where the largest logit is the label."""
    found = [run.predictions("val") for run in folder.runs(setting).values()]
    return np.array([[float(np.argmax(logits) == label) for logits, label in zip(p.logits, p.labels, strict=True)] for p in found])


def pair(measurement: object) -> tuple[float, float]:
    assert measurement is not None
    found = measurement.interval  # type: ignore[attr-defined]
    assert found is not None
    return found  # type: ignore[no-any-return]


# ── numbers ──


def test_rows_stand_in_the_order_of_the_settings_with_mean_spread_and_t_interval(whole: StudyFolder, table: StudyTable) -> None:
    assert [r.setting.name for r in table.rows] == list(SKILL)
    assert [r.setting.name for r in table.rows if r.row.baseline] == ["A"]
    assert [r.setting.name for r in table.rows if r.row.final] == ["C"]
    for found in table.rows:
        x = values(whole, found.setting.name)
        assert len(set(x)) > 1
        assert found.row.measurement is not None
        assert found.row.spread is not None
        assert found.row.values == tuple(x)
        assert found.row.measurement.value == pytest.approx(sum(x) / 3, rel=1e-12)
        assert found.row.spread.value == pytest.approx(scipy.stats.tstd(x), rel=1e-12)
        expected = scipy.stats.t.interval(0.95, 2, loc=np.mean(x), scale=scipy.stats.sem(x))
        assert pair(found.row.measurement) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["B", "E", "R"])
def test_the_interval_over_seeds_is_that_of_the_paired_t_test(whole: StudyFolder, table: StudyTable, name: str) -> None:
    found, mine, base = row(table, name), values(whole, name), values(whole, "A")
    assert found.row.difference is not None
    assert found.row.difference.value == pytest.approx(np.mean(mine) - np.mean(base), abs=1e-12)
    assert pair(found.row.difference) == pytest.approx(tuple(scipy.stats.ttest_rel(mine, base).confidence_interval(0.95)), abs=1e-9)
    assert found.row.difference.interval_how == "95 % t interval over 3 paired seeds"
    assert found.paired == (1, 2, 3)


@pytest.mark.parametrize("name", ["B", "E", "R"])
def test_the_interval_over_images_is_of_the_mean_over_seeds_with_one_image_more_on_either_side(whole: StudyFolder, table: StudyTable, name: str) -> None:
    """The slow twin: weights of n images, of one image each way with half a weight, and of one without a difference."""
    found = row(table, name)
    differences = right(whole, name).mean(axis=0) - right(whole, "A").mean(axis=0)
    x = np.array([*differences, 1.0, -1.0, 0.0])
    weights = np.array([*np.ones(len(differences)), 0.5, 0.5, 1.0])
    mean = np.average(x, weights=weights)
    error = np.sqrt(np.average((x - mean) ** 2, weights=weights) / weights.sum())
    assert pair(found.over_images) == pytest.approx(scipy.stats.norm.interval(0.95, loc=mean, scale=error), abs=1e-9)
    assert found.over_images is not None
    assert found.over_images.interval_how == "95 % paired interval over the same 240 samples"


def test_loss_is_compared_image_by_image_and_lower_is_better(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", skill=TWO, measure="val/loss", shared=False)
    found = row(study_table(folder), "C")
    loss = {}
    for name in TWO:
        of_seeds = []
        for run in folder.runs(name).values():
            p = run.predictions("val")
            probabilities = scipy.special.softmax(p.logits.astype(np.float64), axis=1)
            of_seeds.append([-np.log(probabilities[i, label]) for i, label in enumerate(p.labels)])
            assert _cross_entropy(p) == pytest.approx(of_seeds[-1], rel=1e-9)
        loss[name] = np.mean(of_seeds, axis=0)
    assert found.row.difference is not None
    assert found.row.difference.value < 0
    assert found.verdict == BETTER
    assert pair(found.over_images) == pytest.approx(tuple(scipy.stats.ttest_rel(loss["C"], loss["A"]).confidence_interval(0.95)), abs=1e-9)


def test_macro_f1_of_some_images_is_that_of_scikit_learn(whole: StudyFolder) -> None:
    p, random = whole.runs("A")[1].predictions("val"), np.random.default_rng(1)
    number = _macro_f1(Predictions(p.files, p.labels, p.logits))
    for size in (240, 40, 5):
        images = random.integers(0, 240, size)
        assert number(images) == pytest.approx(sklearn.metrics.f1_score(p.labels[images], p.logits[images].argmax(axis=1), average="macro"), abs=1e-12)


def test_the_recall_of_a_class_is_compared_over_its_own_images(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", skill=TWO, measure="val/recall[owl]", shared=False)
    found, labels = row(study_table(folder), "C"), folder.runs("A")[1].predictions("val").labels
    of_class = labels == 2
    shares = [right(folder, name).mean(axis=0)[of_class] for name in ("C", "A")]
    assert pair(found.over_images) == pytest.approx(intervals.paired_shares(*shares).pair, abs=1e-12)
    assert found.over_images is not None
    assert found.over_images.interval_how.endswith(f"{int(of_class.sum())} samples")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Two settings of a segmentation under two seeds."""
    settings = [SettingRecord("A", "coarse"), SettingRecord("B", "fine")]
    record = StudyRecord("0.1.0", "masks", "base.yaml", "val/miou", [1, 2], settings, "A")
    folder = StudyFolder.create(tmp_path_factory.mktemp("masks") / "study", record, "recipe: base.yaml\n")
    for name, noise in (("A", (0.5, 0.45)), ("B", (0.1, 0.12))):
        for seed in (1, 2):
            path = folder.run_folder(name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            make_segmentation(path, noise=noise[seed - 1], overrides=[f"seed={seed}"], thumbnails=0)
    return folder


@pytest.mark.parametrize("name", ["miou", "iou[star]", "loss"])
def test_masks_are_compared_by_a_bootstrap_over_the_images_that_both_predicted(masks: StudyFolder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "paired_bootstrap", functools.partial(intervals.paired_bootstrap, draws=100))
    table = study_table(StudyFolder.create(masks.path, replace(masks.record, measure=f"val/{name}"), ""))

    def number(run: Run) -> Callable[[np.ndarray], float]:
        p = run.mask_predictions("val")
        if name != "loss":
            return number_of_images(run, p, name)
        return lambda images: sum(p.loss[i] for i in images) / sum(int(p.confusion[i, :-1].sum()) for i in images)

    b, a = ([number(run) for run in masks.runs(setting).values()] for setting in ("B", "A"))
    twin = intervals.paired_bootstrap(lambda i: (b[0](i) + b[1](i)) / 2 - (a[0](i) + a[1](i)) / 2, 8)
    found = row(table, "B")
    assert pair(found.over_images) == pytest.approx(twin.pair, abs=1e-12)
    assert found.over_images is not None
    assert "paired bootstrap interval over the same 8 images" in found.over_images.interval_how
    assert found.over_images.value < 0.0 if name == "loss" else found.over_images.value > 0.0
    if name == "miou":
        assert twin.low > 0.0
        assert table.dots is not None
        assert table.dots.family == "iou"


def test_the_loss_of_masks_over_all_images_is_that_of_the_run(masks: StudyFolder) -> None:
    run = masks.runs("A")[1]
    p = run.mask_predictions("val")
    assert _pixel_loss(p)(np.arange(8)) == pytest.approx(run.measurements["val/loss"].value, rel=1e-12)
    assert np.isnan(_pixel_loss(replace(p, confusion=np.zeros_like(p.confusion)))(np.arange(8)))


# ── words ──


def between(low: float, high: float) -> intervals.Interval:
    return intervals.Interval(low, high, "")


@pytest.mark.parametrize(
    ("name", "seeds", "images", "expected"),
    [
        ("accuracy", between(0.01, 0.2), between(0.05, 0.1), BETTER),
        ("accuracy", between(-0.01, 0.2), between(0.05, 0.1), NO_DIFFERENCE),
        ("accuracy", between(0.01, 0.2), between(-0.05, 0.1), NO_DIFFERENCE),
        ("accuracy", between(-0.2, -0.01), between(-0.1, -0.02), WORSE),
        ("accuracy", between(-0.2, -0.01), between(0.01, 0.1), NO_DIFFERENCE),
        ("loss", between(-0.2, -0.01), between(-0.1, -0.02), BETTER),
        ("calibration_error", between(0.01, 0.2), None, WORSE),
        ("accuracy", between(0.01, 0.2), None, BETTER),
        ("accuracy", None, between(0.01, 0.2), ONE_SEED),
        ("accuracy", None, between(-0.1, 0.2), ONE_SEED),
        ("accuracy", between(0.1, 0.1), between(0.05, 0.1), NO_DIFFERENCE),
        ("accuracy", between(0.1, 0.1 + 1e-16), None, NO_DIFFERENCE),
        ("loss", between(0.01, 0.2), between(3.0, 3.0), NO_DIFFERENCE),
        ("accuracy", between(0.0, 0.2), between(0.05, 0.1), NO_DIFFERENCE),
        ("accuracy", None, None, NO_INTERVAL),
    ],
)
def test_a_difference_is_shown_only_where_every_interval_has_a_width_and_leaves_out_0(
    name: str, seeds: intervals.Interval | None, images: intervals.Interval | None, expected: str
) -> None:
    assert _verdict(name, seeds, images) == expected


def test_a_difference_that_the_images_alone_would_show_is_not_shown(torn_table: StudyTable) -> None:
    found = row(torn_table, "C")
    assert pair(found.row.difference)[0] < 0 < pair(found.over_images)[0]
    assert found.verdict == NO_DIFFERENCE
    assert found.row.words.startswith("no difference to A shown: -")
    assert found.row.words.endswith("over the images; 0 lies in the interval over seeds")
    assert torn_table.decided.startswith(
        "better, worse: both 95 % intervals of the difference leave out 0 on one side, that over seeds and that over images; a row of one seed is neither"
    )
    assert "\n" not in torn_table.decided


def test_verdicts_are_rarely_wrong_where_seeds_have_an_effect() -> None:
    """Two settings worth the same, 200 images and 3 seeds that each move all images a bit: images alone are wrong often, both intervals seldom."""
    random, draws = np.random.default_rng(0), 400
    wrong = {"images": 0, "one seed": 0, "both": 0}
    for _ in range(draws):
        ease, seeds = random.normal(size=200), 0.3 * random.normal(size=(2, 3, 1))
        right = (ease + 0.5 * random.normal(size=(2, 3, 200)) + seeds > 0).astype(float)
        of_one = intervals.paired_shares(right[0, 0], right[1, 0])
        over_images = intervals.paired_shares(right[0].mean(axis=0), right[1].mean(axis=0))
        over_seeds = _over_seeds((right[0] - right[1]).mean(axis=1).tolist(), "fraction")
        wrong["images"] += not of_one.covers(0.0)
        wrong["one seed"] += _verdict("accuracy", None, of_one) in (BETTER, WORSE)
        wrong["both"] += _verdict("accuracy", over_seeds, over_images) in (BETTER, WORSE)
    assert wrong["images"] > 0.25 * draws
    assert wrong["one seed"] == 0
    assert wrong["both"] < 0.08 * draws


def test_one_seed_is_neither_better_nor_worse_and_says_why(tmp_path: Path) -> None:
    table = study_table(make_study(tmp_path / "study", skill=TWO, seeds=[4], shared=False))
    found = row(table, "C")
    assert found.row.spread is None
    assert found.row.difference is not None
    assert found.row.difference.interval is None
    assert pair(found.over_images)[0] > 0.0
    assert found.verdict == ONE_SEED
    assert found.row.words.startswith("one seed in common with A (4): +")
    assert found.row.words.endswith(" over the images; seeds may differ by more, train both under two or more")
    assert table.decided == "No row is called better or worse: that takes two or more seeds in common with the baseline."
    assert "A and C: one seed, so the interval of the mean is over images, not over seeds" in table.notes


def renamed(folder: StudyFolder, name: str, values: dict[str, dict[int, float]] | None = None) -> StudyFolder:
    """The study measured by a number of another name, which every run has; of the given values where there are some."""
    for setting in (found.name for found in folder.record.settings):
        for seed, run in folder.runs(setting).items():
            made = run.record
            value = values[setting][seed] if values else made.measurements[0].value
            made.measurements = [replace(made.measurements[0], name=name, value=value), *(m for m in made.measurements if m.name != name)]
            run.write_record(made)
    return StudyFolder.create(folder.path, replace(folder.record, measure=f"val/{name}"), "")


def test_a_number_without_an_interval_over_images_goes_by_the_seeds_alone_and_says_so(tmp_path: Path) -> None:
    folder = renamed(
        make_study(tmp_path / "study", skill=TWO, shared=False), "calibration_error", {"A": {1: 0.2, 2: 0.2, 3: 0.21}, "C": {1: 0.1, 2: 0.11, 3: 0.1}}
    )
    table = study_table(folder)
    found = row(table, "C")
    assert found.over_images is not None
    assert found.over_images.interval is None
    assert found.verdict == BETTER
    assert found.row.words.endswith("over the seeds 1, 2 and 3; seeds alone, as calibration_error has no interval over images")
    assert table.decided == "better, worse: the 95 % interval of the difference over seeds leaves out 0; there is none over images."
    alone = row(study_table(StudyFolder.create(folder.path, replace(folder.record, seeds=[2]), "")), "C")
    assert alone.verdict == NO_INTERVAL
    assert alone.row.words == "no interval: one seed in common with A, and calibration_error has no interval over images; train both under two or more seeds"


def test_seeds_that_differ_by_exactly_the_same_show_nothing(tmp_path: Path) -> None:
    """0.7 - 0.6 and 0.3 - 0.2 are not the same float: the interval's width is rounding alone."""
    folder = make_study(tmp_path / "study", skill=TWO, seeds=[1, 2], shared=False)
    found = row(study_table(renamed(folder, "accuracy", {"A": {1: 0.6, 2: 0.2}, "C": {1: 0.7, 2: 0.3}})), "C")
    assert pair(found.row.difference) == pytest.approx((0.1, 0.1))
    assert pair(found.over_images)[0] > 0.0
    assert found.verdict == NO_DIFFERENCE
    assert found.row.words.endswith("; the differences of the seeds are equal, so their interval has no width and shows nothing")


@pytest.mark.parametrize("name", ["knn_accuracy", "linear_accuracy"])
def test_pre_trainings_are_compared_over_images_by_their_stored_features(pre_trainings: StudyFolder, name: str) -> None:
    folder = renamed(pre_trainings, name)
    shares = []
    for setting in ("B", "A"):
        right = []
        for run in folder.runs(setting).values():
            p = run.feature_predictions("val")
            votes = (
                knn_votes(p.features, p.bank, p.bank_labels, 3, 20, 0.07) if name == "knn_accuracy" else fit_probe(p.bank, p.bank_labels, p.features, 3).logits
            )
            right.append([float(np.argmax(vote) == label) for vote, label in zip(votes, p.labels, strict=True)])
        shares.append(np.mean(right, axis=0))
    assert shares[0].mean() > shares[1].mean()
    found = row(study_table(folder), "B")
    assert pair(found.over_images) == intervals.paired_shares(*shares).pair
    run = folder.runs("B")[2]
    p = run.feature_predictions("val")
    run.write_feature_predictions("val", replace(p, files=p.files[::-1]))
    assert row(study_table(folder), "B").row.words.endswith("; seeds alone, as the features are not of the same images in the same order")
    run.write_feature_predictions("val", replace(p, bank=p.bank[:0], bank_rows=p.bank_rows[:0], bank_labels=p.bank_labels[:0]))
    assert row(study_table(folder), "B").row.words.endswith("; seeds alone, as features of training images are not stored")
    run.write_feature_predictions("val", replace(p, features=p.features[::-1]))
    assert pair(row(study_table(folder), "B").over_images)[0] < intervals.paired_shares(*shares).low, "nothing is remembered of another file"


@pytest.fixture
def pre_trainings(tmp_path: Path) -> StudyFolder:
    """Two settings of a pre-training under two seeds."""
    settings = [SettingRecord("A", "weak"), SettingRecord("B", "strong")]
    folder = StudyFolder.create(tmp_path / "study", StudyRecord("0.1.0", "pretrain", "base.yaml", "val/knn_accuracy", [1, 2], settings, "A"), "")
    for name, skill in (("A", 0.5), ("B", 1.5)):
        for seed in (1, 2):
            make_pretraining(folder.run_folder(name, seed), skill=skill, seed=seed, pictures=False)
    return folder


def test_predictions_that_are_gone_or_of_other_images_leave_the_seeds_alone(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", skill=TWO, shared=False)
    run = folder.runs("C")[2]
    p = run.predictions("val")
    run.write_predictions("val", Predictions(p.files[::-1], p.labels, p.logits), run.data.classes)
    assert row(study_table(folder), "C").row.words.endswith("seeds alone, as the predictions are not of the same samples in the same order")
    run.predictions_file("val").unlink()
    assert row(study_table(folder), "C").row.words.endswith("seeds alone, as the predictions of C/seed-2 are missing")


# ── what is not finished, and what cannot be compared ──


def test_unfinished_and_failed_runs_keep_their_place(torn_table: StudyTable) -> None:
    assert [(run.seed, run.status) for run in row(torn_table, "B").runs] == [(1, "done"), (2, "failed"), (3, "done")]
    text = to_text(torn_table, width=200)
    assert "2 of 3 (failed)" in text
    assert "2 of 3 (running)" in text
    assert "1 of 3 (not begun)" in text
    assert "B, seed 2: failed at epoch 3, step 12: the loss is NaN after step 12" in torn_table.notes
    assert "C, seed 3: running at epoch 3, step 12" in torn_table.notes
    assert "E: seed 3 is not begun" in torn_table.notes
    assert "R: the seeds 2 and 3 are not begun" in torn_table.notes


def test_rows_with_fewer_seeds_are_paired_over_those_of_both(torn: StudyFolder, torn_table: StudyTable) -> None:
    found = row(torn_table, "B")
    mine = [run.measurements["val/accuracy"].value for seed, run in torn.runs("B").items() if seed in (1, 3)]
    base = [run.measurements["val/accuracy"].value for seed, run in torn.runs("A").items() if seed in (1, 3)]
    assert found.paired == (1, 3)
    assert found.row.difference is not None
    assert found.row.difference.value == pytest.approx(np.mean(mine) - np.mean(base), abs=1e-12)
    assert pair(found.row.difference) == pytest.approx(tuple(scipy.stats.ttest_rel(mine, base).confidence_interval(0.95)), abs=1e-9)
    assert "B, C, E and R: the difference is over the seeds that A has too, so it is not that of the means in the table" in torn_table.notes


def test_a_row_on_other_data_is_not_compared(torn_table: StudyTable) -> None:
    found = row(torn_table, "D")
    assert found.verdict == NOT_COMPARABLE
    assert found.row.difference is None
    assert found.row.words == "not comparable: measured on other samples than A (the content hash of val differs)"


def test_a_row_trained_on_other_samples_and_seeds_on_different_ones_are_noted(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", skill=TWO, seeds=[1, 2], shared=False)
    for seed, split in ((1, "train"), (2, "val")):
        file = folder.runs("C")[seed].path / "data.json"
        data = json.loads(file.read_text())
        data["splits"][split]["hash"] = "77" * 16
        file.write_text(json.dumps(data))
    notes = study_table(folder).notes
    assert "C: trained on other samples than A (720 here, 720 there)" in notes
    assert "C: its seeds were measured on different samples of val; the mean mixes them" in notes


def test_a_study_of_which_nothing_is_begun_has_a_table(tmp_path: Path) -> None:
    status = {(name, seed): "" for name in TWO for seed in (1, 2)}
    folder = make_study(tmp_path / "study", skill=TWO, seeds=[1, 2], status=status, shared=False)
    table = write_table(folder)
    assert table.decided == "Nothing is compared yet."
    unnamed = write_table(StudyFolder.create(folder.path, replace(folder.record, measure=""), ""))
    assert to_text(unnamed).startswith("transfer: no number yet, mean over seeds")
    assert "no number yet of each setting" in folder.page.read_text()
    assert row(table, "C").row.words == "no number of C to compare yet"
    assert "0 of 2 (not begun)" in (folder.path / "table.txt").read_text()
    assert to_json(table)["rows"][0]["value"] is None
    partly = make_study(tmp_path / "other", skill=TWO, seeds=[1], status={("A", 1): "failed"}, shared=False)
    assert row(study_table(partly), "C").row.words == "no number of A to compare yet"


def test_no_seed_in_common_is_said(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", skill=TWO, seeds=[1, 2], status={("A", 1): "", ("C", 2): ""}, shared=False)
    assert row(study_table(folder), "C").row.words == "no seed in common with A: train both under the same seeds"


def test_a_baseline_that_is_no_setting_is_an_error(whole: StudyFolder, tmp_path: Path) -> None:
    other = StudyFolder.create(tmp_path, replace(whole.record, baseline="Z"), "")
    with pytest.raises(RunError, match="study.json: the baseline 'Z' is none of its settings: A, B, C, D, E, R; the file was changed"):
        study_table(other)
    other = StudyFolder.create(tmp_path, replace(whole.record, final="Y"), "")
    with pytest.raises(RunError, match="the final setting 'Y' is none of its settings"):
        study_table(other)


# ── shared parts and cost ──


def test_a_shared_part_is_named_with_its_minutes_and_what_builds_on_it(table: StudyTable) -> None:
    assert table.notes[0] == "one pre-training (own, seed 1, 24.1 min) stands behind C and E: the spread does not hold that of pre-training"
    assert row(table, "C").seconds == pytest.approx((126 + 246 + 366) / 3)
    line = next(line for line in to_text(table, width=200).splitlines() if line.startswith("C"))
    assert line.endswith("4.1  own 24.1")
    assert table.shared[0].behind == ("C", "E")


def test_a_shared_part_that_is_not_done_is_said(whole: StudyFolder, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", skill=TWO, seeds=[1])
    run = Run(folder.shared_folder("own"))
    run.write_record(replace(run.record, status="failed", error="collapsed", epoch=2, step=30))
    assert study_table(folder).notes[0] == "the shared part own is failed at epoch 2, step 30: collapsed"
    other = StudyFolder.create(tmp_path / "none", folder.record, "")
    assert study_table(other).notes[0] == "the shared part own is not begun; C waits for it"


def test_minutes_have_three_digits_and_never_an_exponent() -> None:
    assert [minutes(seconds) for seconds in (0.5, 8.0, 754.2, 5999.0, 60 * 1250.4)] == ["0.00833", "0.133", "12.6", "100", "1,250"]


def test_names_are_listed_as_people_write_them() -> None:
    assert [listed(names) for names in ([], ["A"], ["A", "B"], ["A", "B", "C"])] == ["", "A", "A and B", "A, B and C"]


# ── what is written ──


def test_the_same_runs_give_the_same_bytes_and_no_path_of_the_machine(whole: StudyFolder, tmp_path: Path) -> None:
    names = ("table.txt", "table.md", "table.json", "study.html")
    write_table(whole)
    first = {name: (whole.path / name).read_bytes() for name in names}
    (whole.path / "table.txt").unlink()
    write_table(whole)
    assert {name: (whole.path / name).read_bytes() for name in names} == first
    assert all(str(whole.path.parent).encode() not in data for data in first.values())


def test_json_holds_the_number_of_each_seed_and_relative_folders(whole: StudyFolder, table: StudyTable) -> None:
    plain = json.loads(json.dumps(to_json(table)))
    found = plain["rows"][2]
    assert found["name"] == "C"
    assert found["values"] == values(whole, "C")
    assert [run["value"] for run in found["runs"]] == values(whole, "C")
    assert [run["folder"] for run in found["runs"]] == [f"runs/C/seed-{seed}" for seed in (1, 2, 3)]
    assert found["difference_over_seeds"]["how"] == "95 % t interval over 3 paired seeds"
    assert found["difference_over_images"]["low"] < found["difference"] < found["difference_over_images"]["high"]
    assert plain["shared"][0]["measurements"]["val/knn_accuracy"]["n"] == 240
    recalls = plain["classes"]["rows"]["B"]["owl"]
    assert recalls["value"] == pytest.approx(np.mean(values(whole, "B", "val/recall[owl]")))


@pytest.mark.parametrize("width", [200, 160, 120, 90, 60, 40])
def test_text_fits_the_width_and_loses_nothing(table: StudyTable, width: int) -> None:
    text = to_text(table, width=width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for word in ("baseline", "final", "own backbone, frozen", "no difference shown", "0.5514", "-0.0062 to +0.0145", "-0.0052 to +0.0135", "own 24.1"):
        assert word in flat


def test_markdown_is_one_table_in_which_names_cannot_break_a_cell(table: StudyTable) -> None:
    odd = replace(table.rows[1], setting=replace(table.rows[1].setting, label="a|b *c*"))
    lines = to_markdown(replace(table, rows=(table.rows[0], odd, *table.rows[2:]))).splitlines()
    cells = [line for line in lines if line.startswith("|")]
    assert len(cells) == 2 + 6
    assert len({line.replace(r"\|", "").count("|") for line in cells}) == 1
    assert r"| B: a\|b \*c\* | 3 |" in cells[3]
    assert lines[0] == "transfer: `val/accuracy`, mean over seeds"
