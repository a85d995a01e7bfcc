from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from fabricate import make_run
from pellucid import intervals, overlap, recipe
from pellucid.compare import Comparison, Row, compare, expand, summarize_seeds, to_html, to_json, to_text
from pellucid.errors import RunError, UsageError
from pellucid.palettes import MaskFormat
from pellucid.predictions import CONFIDENCE_BINS, MaskPredictions
from pellucid.run import DONE, DataRecord, Measurement, Run, RunRecord, SplitRecord

LOW_RATE = ["train.phases.0.optimizer.lr=3e-4"]
SMALL_BATCH = ["train.batch_size=8"]


def make_seeds(folder: Path, skill: float, overrides: list[str] | None = None, *, seeds: int = 3) -> Path:
    for seed in range(1, seeds + 1):
        make_run(folder / f"seed-{seed}", seed=seed, skill=skill, overrides=overrides or [])
    (folder / "seeds.json").write_text(json.dumps({"runs": [f"seed-{seed}" for seed in range(1, seeds + 1)]}))
    return folder


def row(comparison: Comparison, name: str) -> Row:
    return {row.name: row for row in comparison.rows}[name]


def accuracies(folder: Path) -> list[float]:
    return [run.measurements["val/accuracy"].value for run in expand([folder])]


def test_a_folder_of_seeds_stands_for_its_runs(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "vit", 3.0)
    single = make_run(tmp_path / "other").path
    assert [run.path for run in expand([folder, single])] == [folder / "seed-1", folder / "seed-2", folder / "seed-3", single]


def test_a_damaged_list_of_seeds_and_a_foreign_folder_are_errors(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text('{"run": []}')
    with pytest.raises(RunError, match=r"seeds\.json: expected the runs of `pellucid train --seeds`"):
        expand([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="expected a run folder"):
        expand([tmp_path / "empty"])


def test_runs_that_differ_only_in_seed_are_one_row_with_mean_spread_and_t_interval(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "vit", 2.0)
    (found,) = compare(expand([folder])).rows
    values = accuracies(folder)
    assert len(set(values)) > 1
    assert found.name == "vit"
    assert found.seeds == (1, 2, 3)
    assert found.measurement is not None
    assert found.spread is not None
    assert found.measurement.interval is not None
    assert found.measurement.value == pytest.approx(np.mean(values), abs=1e-15)
    assert found.spread.value == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert found.measurement.interval == pytest.approx(scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values)), abs=1e-12)
    assert found.measurement.interval_how == "95 % t interval over 3 seeds"


def test_one_run_keeps_its_interval_over_samples_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "vit")
    (found,) = compare([run]).rows
    assert found.measurement == run.record.measurements[0]
    assert found.spread is None
    assert "Wilson interval over 120 samples" in to_html(compare([run]))
    assert "120 samples" in to_text(compare([run]), width=200)


def test_only_differing_settings_are_columns_and_rows_are_sorted_best_first(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "low", skill=1.0, overrides=LOW_RATE),
        make_run(tmp_path / "high", skill=6.0),
        make_run(tmp_path / "mid", skill=3.0, overrides=SMALL_BATCH),
    ]
    found = compare(runs)
    assert set(found.settings) == {"train.batch_size", "train.phases.0.optimizer.lr"}
    assert [r.name for r in found.rows] == ["high", "mid", "low"]
    assert row(found, "low").settings == {"train.batch_size": "16", "train.phases.0.optimizer.lr": "0.0003"}
    assert [r.name for r in compare(runs, metric="loss").rows] == ["high", "mid", "low"], "the lower loss is the better one"
    losses = [r.measurement.value for r in compare(runs, metric="loss").rows if r.measurement]
    assert losses == sorted(losses)


def test_difference_of_rows_of_seeds_has_a_welch_interval(tmp_path: Path) -> None:
    good, poor = make_seeds(tmp_path / "good", 3.0), make_seeds(tmp_path / "poor", 1.0, LOW_RATE)
    found = row(compare(expand([good, poor]), baseline="poor"), "good")
    expected = scipy.stats.ttest_ind(accuracies(good), accuracies(poor), equal_var=False).confidence_interval(0.95)
    assert found.difference is not None
    assert found.difference.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.difference.value == pytest.approx(np.mean(accuracies(good)) - np.mean(accuracies(poor)), abs=1e-12)
    assert found.words.startswith("better than poor by +")
    assert "3 and 3 seeds" in found.words


def test_difference_of_single_runs_on_the_same_samples_is_paired(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", skill=2.2), make_run(tmp_path / "two", skill=2.1, seed=2, overrides=LOW_RATE)
    right = [run.predictions("val").logits.argmax(axis=1) == run.predictions("val").labels for run in (one, two)]
    found = row(compare([one, two], baseline="two"), "one")
    assert found.difference is not None
    assert found.difference.interval == pytest.approx(intervals.paired(*right).pair, abs=1e-15)
    assert found.difference.interval_how == "95 % paired interval over the same 120 samples"
    assert "not distinguishable from two with n = 120 samples: anything between -" in found.words


def test_a_worse_row_says_worse(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one", skill=6.0), make_run(tmp_path / "two", skill=0.5, overrides=LOW_RATE)]
    assert row(compare(runs, baseline="one"), "two").words.startswith("worse than one by -")


def test_a_difference_without_interval_says_why(tmp_path: Path) -> None:
    runs = [*expand([make_seeds(tmp_path / "seeds", 3.0)]), make_run(tmp_path / "one", overrides=LOW_RATE)]
    found = row(compare(runs, baseline="one"), "seeds")
    assert found.words == "no interval: 3 seeds here and 1 in one; train both under two or more seeds"
    assert found.difference is not None
    assert found.difference.interval is None
    pair = [make_run(tmp_path / "a"), make_run(tmp_path / "b", overrides=LOW_RATE)]
    assert "loss is not right or wrong sample by sample" in row(compare(pair, baseline="b", metric="loss"), "a").words
    pair[1].predictions_file("val").unlink()
    assert "the predictions of b are missing" in row(compare(pair, baseline="b"), "a").words


def test_the_last_comparable_row_is_the_baseline_unless_one_is_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "low", skill=1.0), make_run(tmp_path / "high", skill=6.0, overrides=LOW_RATE)]
    assert [r.name for r in compare(runs).rows if r.baseline] == ["low"]
    assert [r.name for r in compare(runs, baseline=str(tmp_path / "high")).rows if r.baseline] == ["high"]
    assert not any(r.baseline for r in compare(runs[:1]).rows)


def test_the_final_row_is_marked_in_every_form(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "low", skill=1.0), make_run(tmp_path / "high", overrides=LOW_RATE)]
    found = compare(runs, final="low")
    assert [r.name for r in found.rows if r.final] == ["low"]
    assert "low (final" in to_text(found, width=200)
    assert ">final<" in to_html(found)
    assert [r["final"] for r in to_json(found)["rows"]] == [False, True]


def test_a_name_that_is_not_compared_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "vit-small"), make_run(tmp_path / "resnet", overrides=LOW_RATE)]
    with pytest.raises(UsageError, match=r"--final vit-smal: not among the compared runs\. Did you mean 'vit-small'\? Known: vit-small, resnet\."):
        compare(runs, final="vit-smal")
    with pytest.raises(UsageError, match=r"--metric acuracy: no finished run has it\. .*Known: val/accuracy, val/loss\."):
        compare(runs, metric="acuracy")
    with pytest.raises(UsageError, match="nothing to compare"):
        compare([])


def test_a_run_on_other_data_is_marked_and_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", overrides=SMALL_BATCH), make_run(tmp_path / "c", skill=60.0, data_seed=5, overrides=LOW_RATE)]
    found = compare(runs)
    other = row(found, "c")
    assert found.rows[-1] is other
    assert not other.comparable
    assert other.difference is None
    assert "not comparable: measured on other samples" in other.words
    assert "content hash of val differs" in other.words
    assert "other data" in to_text(found, width=200)
    assert "other data" in to_html(found)


def test_equal_recipes_on_changed_data_are_two_rows(tmp_path: Path) -> None:
    assert len(compare([make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=2, data_seed=5)]).rows) == 2


def test_unfinished_runs_stay_in_the_table(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "vit", 2.0)
    make_run(folder / "seed-4", seed=4, status="interrupted")
    stopped = make_run(tmp_path / "stopped", status="failed", overrides=LOW_RATE)
    found = compare([*expand([folder]), Run(folder / "seed-4"), stopped])
    assert row(found, "vit").status == "3 of 4 finished"
    assert row(found, "vit").seeds == (1, 2, 3)
    assert "seed-4 (seed 4) is interrupted at epoch 3, step 12; it has no number" in row(found, "vit").notes
    assert row(found, "stopped").measurement is None
    assert found.rows[-1].name == "stopped"
    assert "failed" in to_text(found, width=200)
    assert "failed" in to_html(found)
    assert "no run is finished yet" in compare([stopped]).notes[0]


def test_a_repeated_seed_and_a_repeated_folder_count_once(tmp_path: Path) -> None:
    one, again = make_run(tmp_path / "one"), make_run(tmp_path / "again")
    found = compare([one, one, again])
    assert found.rows[0].values == (one.record.measurements[0].value,)
    assert found.rows[0].spread is None
    assert "again repeats seed 1; it counts once" in found.rows[0].notes
    assert "given more than once" in found.notes[0]


def test_equal_folder_names_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "x/try"), make_run(tmp_path / "y/try", overrides=LOW_RATE), make_run(tmp_path / "z", overrides=SMALL_BATCH)]
    assert {r.name for r in compare(runs).rows} == {"x/try", "y/try", "z"}
    with pytest.raises(UsageError, match="--baseline try: stands for"):
        compare(runs, baseline="try")


def test_a_metric_that_some_runs_lack_is_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", split="test", overrides=LOW_RATE)]
    found = compare(runs, metric="test/accuracy")
    assert row(found, "a").measurement is None
    assert "a has no test/accuracy" in row(found, "a").notes
    assert "share no number" in compare(runs).notes[0]


@pytest.mark.parametrize("width", [40, 80, 110, 220])
def test_text_keeps_to_its_width_and_loses_nothing(tmp_path: Path, width: int) -> None:
    runs = [make_run(tmp_path / "one", skill=2.0), make_run(tmp_path / "two", skill=2.0, seed=2, overrides=[*LOW_RATE, *SMALL_BATCH])]
    text = to_text(compare(runs), width=width)
    assert max(map(len, text.splitlines())) <= width
    for run in runs:
        assert str(run.record.measurements[0]) in text
    flat = " ".join(text.split())
    assert "0.0003" in flat
    assert "batch_size" in flat
    assert "lr" in flat
    assert "not distinguishable" in flat


def test_json_is_plain_and_carries_full_precision(tmp_path: Path) -> None:
    found = compare(expand([make_seeds(tmp_path / "vit", 2.0), make_run(tmp_path / "one", overrides=LOW_RATE).path]))
    plain = json.loads(json.dumps(to_json(found)))
    assert plain["metric"] == "val/accuracy"
    by_name = {r["name"]: r for r in plain["rows"]}
    assert by_name["vit"]["values"] == accuracies(tmp_path / "vit")
    assert by_name["vit"]["seeds"] == [1, 2, 3]


def test_html_draws_each_run_and_each_learning_rate_and_escapes_names(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "<b>bold"),
        *expand([make_seeds(tmp_path / "vit", 2.0, LOW_RATE)]),
        make_run(tmp_path / "stopped", status="interrupted", overrides=SMALL_BATCH),
    ]
    page = to_html(compare(runs))
    assert "<b>" not in page
    assert "&lt;b&gt;bold" in page
    assert page.count("<script") == 2, "the data and the script of the view that moves"
    assert page.count('aria-label="Learning rate of') == 3
    overlay = page[page.index('aria-label="Validation accuracy') :]
    assert overlay[: overlay.index("</svg>")].count("<title>vit</title>") == 3, "one line a seed"


def test_seeds_are_summed_up_number_by_number(tmp_path: Path) -> None:
    folder = make_seeds(tmp_path / "vit", 2.0)
    found = {summary.key: summary for summary in summarize_seeds(expand([folder]))}
    values = accuracies(folder)
    accuracy = found["val/accuracy"]
    assert next(iter(found)) == "val/accuracy"
    assert "val/loss" in found
    assert (accuracy.mean, accuracy.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert accuracy.values == tuple(values)
    assert accuracy.seeds == (1, 2, 3)
    assert str(accuracy).startswith(f"val/accuracy: {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} over 3 seeds, ")


def test_an_interval_of_a_fraction_over_seeds_ends_at_one(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed, skill=6.0) for seed in (1, 2)]
    for run, value in zip(runs, (1.0, 0.9), strict=True):
        record = run.record
        record.measurements = [Measurement("accuracy", value, "fraction", "val", 120, run.recipe.seed, "by hand")]
        run.write_record(record)
    assert summarize_seeds(runs)[0].interval[1] == 1.0
    found = compare(runs).rows[0].measurement
    assert found is not None
    assert found.interval is not None
    assert found.interval[1] == 1.0


def test_a_summary_of_equal_seeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two or more runs of different seeds, got the seeds 1, 1"):
        summarize_seeds([make_run(tmp_path / "a"), make_run(tmp_path / "b")])


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────

OF_MASKS = """
task: segmentation
data: {source: scenes, train: 60, val: 40, image_size: 64}
model: {name: pellucid/fcn32s}
train: {batch_size: 16, phases: [{epochs: 6, optimizer: {name: adamw, lr: 1.0e-3}}]}
"""
THINGS = ("background", "car", "tree", "bus")


def make_masks(
    path: Path,
    right: float,
    *,
    seed: int = 1,
    overrides: list[str] | None = None,
    n: int = 30,
    without: int = 3,
    data: str = "cd" * 16,
    classes: tuple[str, ...] = THINGS,
    codes: tuple[int, ...] = (0, 1, 2, 3),
) -> Run:
    """A run of a segmentation whose share of right pixels is about `right`. The class numbered `without` is in no mask and never predicted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "masks.yaml").write_text(OF_MASKS)
    made = recipe.load(path.parent / "masks.yaml", [f"seed={seed}", *(overrides or [])])
    assert made.scoring is not None
    truth, noise = np.random.default_rng(5), np.random.default_rng([seed, 6])
    confusion = np.zeros((n, 5, 4), np.int64)
    shares = truth.dirichlet(np.ones(5), n)
    for i in range(n):
        for c in range(5):
            pixels, wrong = round(900 * shares[i, c]), np.ones(4)
            wrong[without] = 0
            chances = wrong / wrong.sum() if c == 4 else (1 - right) * wrong / wrong.sum() + right * np.eye(4)[c]
            if c != without:
                confusion[i, c] = noise.multinomial(pixels, chances / chances.sum())
    found = MaskPredictions(
        [f"{i}.png" for i in range(n)],
        confusion=confusion,
        loss=np.ones(n),
        boundary=np.zeros((n, 4, 4), np.int64),
        calibration=np.zeros((n, CONFIDENCE_BINS, 3)),
        digests=np.zeros((n, 16), np.uint8),
        masks=(b"",) * n,
    )
    record = RunRecord("0.1.0", DONE, "segmentation", ["pellucid", "train", "masks.yaml"], "2026-11-20T10:00:00+00:00")
    record.measurements = overlap.measure_masks(found, classes=classes, scoring=made.scoring, split="val", seed=seed, note="by hand")
    run = Run.create(path, record=record, recipe=made, recipe_text=OF_MASKS)
    mask_format = MaskFormat("L", list(codes), [255])
    split = SplitRecord("val", n, data, [n, 0, 0, 0], confusion.sum(axis=(0, 2)).tolist())
    run.write_data(DataRecord("scenes", list(classes), {"val": split}, [], [], [0.5] * 3, [0.25] * 3, "model", mask_format), {})
    run.write_mask_predictions("val", found, list(classes), mask_format)
    return run


def cells(comparison: Comparison, name: str) -> dict[str, str]:
    """{class: what the text shows} of a row."""
    assert comparison.classes is not None
    place = [row.name for row in comparison.rows].index(name)
    shown = zip(comparison.classes.classes, comparison.classes.rows[place], strict=True)
    return {of: cell.lack if cell.measurement is None else f"{cell.measurement}{' *' * cell.best}" for of, cell in shown}


def test_each_class_has_its_mean_and_spread_over_seeds_and_the_best_is_marked(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_masks(tmp_path / "good" / f"seed-{seed}", 0.9, seed=seed)
        make_masks(tmp_path / "poor" / f"seed-{seed}", 0.5, seed=seed, overrides=LOW_RATE)
    found = compare([Run(tmp_path / name / f"seed-{seed}") for name in ("poor", "good") for seed in (1, 2, 3)])
    assert [r.name for r in found.rows] == ["good", "poor"]
    assert found.classes is not None
    assert (found.classes.family, found.classes.classes) == ("iou", THINGS)
    values = [Run(tmp_path / "good" / f"seed-{seed}").measurements["val/iou[car]"].value for seed in (1, 2, 3)]
    car = found.classes.rows[0][1]
    assert car.measurement is not None
    assert car.spread is not None
    assert (car.measurement.value, car.spread.value) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-15)
    assert car.values == tuple(values)
    assert [cell.best for cell in found.classes.rows[0]] == [True, True, True, False]
    assert not any(cell.best for cell in found.classes.rows[1])
    assert cells(found, "poor")["bus"] == "absent"


def test_the_numbers_of_classes_stand_in_text_json_and_html(tmp_path: Path) -> None:
    found = compare([make_masks(tmp_path / "good", 0.9), make_masks(tmp_path / "poor", 0.5, overrides=LOW_RATE)])
    text = to_text(found, width=120, per_class=True)
    header, _, good, poor = text[text.index("\niou  ") + 1 :].splitlines()[:4]
    assert header.split() == ["iou", *THINGS]
    assert good.split() == ["good", *[word for shown in cells(found, "good").values() for word in shown.split()]]
    assert (good.count("*"), poor.count("*"), poor.split()[-1]) == (3, 0, "absent")
    assert "iou of each class" not in to_text(found, width=120)
    plain = json.loads(json.dumps(to_json(found)))["classes"]
    assert plain["family"] == "iou"
    assert plain["rows"]["poor"]["bus"] == {"value": None, "spread": None, "values": [], "best": False, "lack": "absent"}
    assert plain["rows"]["good"]["car"]["value"] == found.rows[0].scored[0].measurements["val/iou[car]"].value
    page = to_html(found)
    table = page[page.index('id="classes"') :]
    assert table.count(">absent<") == 2
    assert table.count(">best<") == 3
    assert ">30 images<" in page


@pytest.mark.parametrize("width", [24, 44, 60])
def test_many_classes_stand_in_tables_below_each_other(tmp_path: Path, width: int) -> None:
    found = compare([make_masks(tmp_path / "good", 0.9), make_masks(tmp_path / "poor", 0.5, overrides=LOW_RATE)])
    text = to_text(found, width=width, per_class=True)
    text = text[text.index("iou of each class") :]
    assert max(map(len, text.splitlines())) <= width
    for name in ("good", "poor"):
        assert all(shown in text for shown in cells(found, name).values())
    assert all(name in text for name in THINGS)


def test_classes_of_recall_belong_to_accuracy_and_a_loss_has_none(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", overrides=LOW_RATE)]
    found = compare(runs)
    assert found.classes is not None
    assert (found.classes.family, found.classes.classes) == ("recall", ("cat", "dog", "owl"))
    of_loss = compare(runs, metric="loss")
    assert of_loss.classes is None
    assert 'id="classes"' not in to_html(of_loss)
    assert to_json(of_loss)["classes"] is None
    with pytest.raises(UsageError, match=r"--per-class: val/loss has no numbers of single classes here; --metric miou \(iou of each class\) or accuracy"):
        to_text(of_loss, per_class=True)


def test_a_class_that_a_run_does_not_know_is_not_absent_and_other_names_on_the_same_data_are_said(tmp_path: Path) -> None:
    one = make_masks(tmp_path / "one", 0.9)
    two = make_masks(tmp_path / "two", 0.8, overrides=LOW_RATE, classes=("background", "vehicle", "tree", "bus"))
    found = compare([one, two])
    assert (cells(found, "two")["car"], cells(found, "one")["vehicle"]) == ("no such class", "no such class")
    assert cells(found, "two")["bus"] == "absent"
    line = "two and one were measured on the same data under other class names: vehicle in two alone, car in one alone; columns go by name"
    assert found.classes is not None
    assert found.classes.notes == (line,)
    assert line in to_text(found, width=200, per_class=True)
    assert line not in to_text(found, width=200), "without the columns there is nothing to say about them"
    plain = json.loads(json.dumps(to_json(found)))["classes"]
    assert (plain["notes"], plain["rows"]["two"]["car"]["lack"]) == ([line], "no such class")
    assert f">{line}<" in to_html(found)
    assert to_html(found).count(">no such class<") == 2


def test_equal_names_for_other_values_are_said_and_other_data_is_not(tmp_path: Path) -> None:
    one = make_masks(tmp_path / "one", 0.9)
    swapped = make_masks(tmp_path / "swapped", 0.8, overrides=LOW_RATE, codes=(0, 2, 1, 3))
    found = compare([one, swapped]).classes
    assert found is not None
    line = "swapped and one were measured on the same data, but car, tree stand for other values of the masks in one than in the other; columns go by name"
    assert found.notes == (line,)
    elsewhere = make_masks(tmp_path / "elsewhere", 0.7, overrides=["seed=1", *LOW_RATE], data="ef" * 16, classes=("a", "b", "c", "d"))
    of_both = compare([one, elsewhere]).classes
    assert of_both is not None
    assert of_both.notes == ()


def test_a_row_without_a_number_has_none_of_its_classes(tmp_path: Path) -> None:
    one, two = make_masks(tmp_path / "one", 0.9), make_masks(tmp_path / "two", 0.8, overrides=LOW_RATE)
    record = two.record
    record.status = "running"
    two.write_record(record)
    assert set(cells(compare([one, two]), "two").values()) == {"n/a"}


def test_a_class_that_some_seeds_lack_is_said(tmp_path: Path) -> None:
    make_masks(tmp_path / "a" / "seed-1", 0.9, seed=1)
    make_masks(tmp_path / "a" / "seed-2", 0.9, seed=2, without=0)
    found = compare([Run(tmp_path / "a" / f"seed-{seed}") for seed in (1, 2)])
    text = to_text(found, width=200, per_class=True)
    assert "a: 1 of 2 seeds have iou[bus]; their mean is shown" in text
    assert "a: 1 of 2 seeds have iou[background]" in text


@pytest.mark.parametrize("metric", ["miou", "iou[car]", "pixel_accuracy"])
def test_the_difference_of_two_runs_of_masks_is_paired_over_images(tmp_path: Path, metric: str) -> None:
    """The bootstrap from its definition: summed matrices of the drawn images, one image after the other."""
    one, two = make_masks(tmp_path / "one", 0.80), make_masks(tmp_path / "two", 0.79, seed=2, overrides=LOW_RATE)
    found = row(compare([one, two], baseline="two", metric=metric), "one")
    assert found.difference is not None
    assert found.difference.interval_how == "95 % paired bootstrap interval over the same 30 images (1,000 resamples, seed 0)"
    confusions = [run.mask_predictions("val").confusion for run in (one, two)]

    def number(confusion: np.ndarray) -> float:
        valid = confusion[:4].astype(float)
        if metric == "pixel_accuracy":
            return float(np.trace(valid) / valid.sum())
        ious = [valid[c, c] / (valid[c].sum() + valid[:, c].sum() - valid[c, c]) for c in range(3)]
        return float(np.mean(ious)) if metric == "miou" else float(ious[1])

    random, differences = np.random.Generator(np.random.PCG64(0)), []
    for _ in range(1000):
        images = random.integers(0, 30, size=30)
        differences.append(number(sum(confusions[0][i] for i in images)) - number(sum(confusions[1][i] for i in images)))
    assert found.difference.interval == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=1e-12)
    assert "n = 30 images" in found.words


def test_masks_of_other_images_have_no_paired_interval_and_a_loss_of_masks_says_why(tmp_path: Path) -> None:
    one, two = make_masks(tmp_path / "one", 0.8), make_masks(tmp_path / "two", 0.7, n=29, overrides=LOW_RATE)
    assert row(compare([one, two], baseline="two"), "one").words == "no interval: the predictions are not of the same masks in the same order"
    assert "loss is not right or wrong" in row(compare([one, two], baseline="two", metric="loss"), "one").words
    two.predictions_file("val").unlink()
    assert "the predictions of two are missing" in row(compare([one, two], baseline="two"), "one").words


def test_masks_scored_by_another_convention_are_not_compared(tmp_path: Path) -> None:
    runs = [
        make_masks(tmp_path / "standard", 0.6),
        make_masks(tmp_path / "again", 0.7, overrides=LOW_RATE),
        make_masks(tmp_path / "foreground", 0.95, overrides=["scoring.convention=foreground"]),
    ]
    found = compare(runs)
    other = row(found, "foreground")
    assert found.rows[-1] is other, "the better number stands last, as it is another one"
    assert (other.comparable, other.other, other.difference) == (False, "scoring", None)
    assert other.words == (
        "not comparable: masks are scored by another convention than in standard (foreground here, standard there); the keys of scoring in both recipes must say "
        "the same"
    )
    assert "foreground (other scoring)" in to_text(found, width=250)
    assert ">other scoring<" in to_html(found)
    assert "*" not in "".join(cells(found, "foreground").values()), "nothing of it is best"
    assert [cells(found, "foreground")[name] for name in ("background", "bus")] == ["left out", "absent"]
    assert not row(compare(runs, baseline="foreground"), "again").comparable


def test_conventions_of_other_names_that_say_the_same_are_compared(tmp_path: Path) -> None:
    """There is no class unknown, so deepglobe is standard; tiles are how masks are predicted and not how they are scored."""
    same = ["scoring.convention=deepglobe", "scoring.tile_overlap=0.5"]
    found = compare([make_masks(tmp_path / "a", 0.6), make_masks(tmp_path / "b", 0.7, overrides=same)])
    assert all(r.comparable for r in found.rows)
