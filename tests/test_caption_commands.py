"""What people type for a captioning run: captions of pictures, its numbers elsewhere, a file, runs and settings side by side."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import pellucid as package
from captioning_runs import RECIPE
from fabricate_captions import make_run
from pellucid import intervals, recipe
from pellucid.caption_scores import bleu, cider_d, tokens_of
from pellucid.compare import compare
from pellucid.data import scenes
from pellucid.errors import UsageError
from pellucid.evaluate import evaluate, export_run, export_run_backbone
from pellucid.models.weights import read_weights
from pellucid.paired_runs import number_of_captions, scores_of
from pellucid.run import Run
from pellucid.study_file import learned
from pellucid.study_record import SettingRecord, StudyFolder, StudyRecord
from pellucid.study_table import study_table

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as files with captions.csv, which names splits, and others.csv, which does not; and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("files")
    rows = []
    for split, count in (("train", 24), ("val", 8), ("test", 6)):
        for i in range(count):
            PIL.Image.fromarray(scenes.draw(i, split=split, image_size=(32, 32)).image).save(folder / f"{split}-{i}.png")
            text = scenes.caption(i, split=split, image_size=(32, 32))
            rows += [(split, f"{split}-{i}.png", text), (split, f"{split}-{i}.png", f"there is {text}")]
    for name, chosen in (("captions.csv", rows), ("others.csv", [row for row in rows if row[0] == "test"])):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(
                [["split", "filename", "caption"], *chosen] if name == "captions.csv" else [["filename", "caption"], *(r[1:] for r in chosen)]
            )
    source = "{source: captions, train: captions.csv, val: captions.csv, image_size: 32}"
    text = RECIPE.replace("{source: scenes, train: 64, val: 24, image_size: 32}", source).replace("epochs: 4", "epochs: 1").replace("drawn: 3", "drawn: 0")
    (folder / "recipe.yaml").write_text(text)
    package.train(folder / "recipe.yaml", out=folder / "run", quiet=True, figures=False)
    return folder


@pytest.fixture(scope="module")
def run(files: Path) -> Run:
    return Run(files / "run")


# ── predict ──
def test_predict_writes_captions_as_csv_and_json(files: Path, tmp_path: Path, pellucid: Command) -> None:
    pictures = [files / "val-0.png", files / "test-1.png"]
    code, out, _ = pellucid("predict", files / "run", *pictures)
    assert code == 0
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["filename"] for row in rows] == [str(picture) for picture in pictures]
    stored = {row["file"]: row["caption"] for row in csv.DictReader((files / "run/predictions/val.csv").read_text().splitlines())}
    assert rows[0]["caption"] == stored["val-0.png"]
    expected = {row["filename"]: row["caption"] for row in rows}
    code, out, _ = pellucid("predict", files / "run", *pictures, "--json")
    assert json.loads(out) == expected
    for name in ("captions.json", "captions.csv"):
        code, out, _ = pellucid("predict", files / "run", *pictures, "--out", tmp_path / name)
        assert (code, out.strip()) == (0, str(tmp_path / name))
    assert json.loads((tmp_path / "captions.json").read_text()) == expected
    assert list(csv.DictReader((tmp_path / "captions.csv").read_text().splitlines())) == rows


@pytest.mark.parametrize("option", ["--confidence", "--overwrite"])
def test_predict_refuses_what_belongs_to_masks(option: str, files: Path, pellucid: Command) -> None:
    code, _, err = pellucid("predict", files / "run", files / "val-0.png", option)
    assert code == 2
    assert f"{option} belongs to segmentation" in err


# ── evaluate ──
def test_evaluate_gives_the_numbers_of_the_run_on_its_own_pictures_again(files: Path, run: Run) -> None:
    found = {m.name: m for m in evaluate(run, str(files / "captions.csv"), split="val")}
    own = {m.name: m for m in run.record.measurements}
    assert found.keys() == own.keys()
    assert "cider[nearest]" in found
    for name, measurement in found.items():
        assert measurement.value == pytest.approx(own[name].value, abs=1e-6)
        assert (measurement.split, measurement.n) == ("data", 8)


def test_evaluate_without_the_training_pictures_leaves_the_baselines_out_and_says_so(files: Path, run: Run, tmp_path: Path) -> None:
    whole = evaluate(run, str(files / "others.csv"))
    elsewhere = Path(shutil.copytree(files, tmp_path / "elsewhere"))
    text = (elsewhere / "run/resolved.yaml").read_text()
    (elsewhere / "run/resolved.yaml").write_text(text.replace(str(files), str(elsewhere)))
    (elsewhere / "train-3.png").unlink()
    told: list[str] = []
    found = evaluate(Run(elsewhere / "run"), str(files / "others.csv"), told=told.append)
    assert [(m.name, m.value) for m in found] == [(m.name, m.value) for m in whole if "[" not in m.name]
    assert len(told) == 1
    assert told[0].startswith("without the baselines, which come from the training pictures: ")
    shutil.copy(files / "train-4.png", elsewhere / "train-3.png")
    evaluate(Run(elsewhere / "run"), str(files / "others.csv"), told=told.append)
    assert "have changed since run was trained" in told[1]


def test_evaluate_asks_for_a_split_where_a_file_names_several(files: Path, run: Run) -> None:
    with pytest.raises(UsageError, match=r"train \(48 captions\), val \(16 captions\), test \(12 captions\)\. Choose one with --split"):
        evaluate(run, str(files / "captions.csv"))
    with pytest.raises(UsageError, match=r"--split tset: .* has no such split; it names .* Did you mean 'test'\?"):
        evaluate(run, str(files / "captions.csv"), split="tset")
    with pytest.raises(UsageError, match="it names none: leave --split out"):
        evaluate(run, str(files / "others.csv"), split="test")


def test_evaluate_says_that_pictures_were_trained_on(files: Path, run: Run) -> None:
    told: list[str] = []
    found = evaluate(run, str(files / "captions.csv"), split="train", told=told.append)
    assert "24 of the 24 pictures stand in the training data of run too: the numbers are no measure of new pictures" in told
    assert "24 of its 24 images were trained on" in found[0].how


# ── export ──
def test_a_captioner_is_exported_whole_and_nothing_else_of_it(run: Run, tmp_path: Path) -> None:
    result = export_run(run, tmp_path / "whole.safetensors", "safetensors")
    assert result.same_argmax == result.compared == len(read_weights(result.file))
    with pytest.raises(UsageError, match="words one after the other, .* --format safetensors` writes the whole model"):
        export_run(run, tmp_path / "model.onnx", "onnx")
    with pytest.raises(UsageError, match="the encoder timm/test_resnet is cut at one stride, so that it is no whole model of its library"):
        export_run_backbone(run, tmp_path / "backbone.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.safetensors"]


# ── side by side ──
def fabricated(path: Path, seed: int = 1, lr: float = 0.002, **also: object) -> Run:
    made = make_run(path, words=False, thumbnails=(), **also)  # type: ignore[arg-type]
    changed = made.recipe.model_dump()
    changed["seed"] = seed
    changed["train"]["phases"][0]["optimizer"]["lr"] = lr
    recipe.save(recipe.Recipe.model_validate(changed), path / "resolved.yaml")
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two captioners on the same pictures; the second says another thing of the first ten."""
    folder = tmp_path_factory.mktemp("pair")
    return fabricated(folder / "one"), fabricated(folder / "two", lr=0.01, found=dict.fromkeys(range(10), "a red ring"))


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "paired_bootstrap", functools.partial(intervals.paired_bootstrap, draws=60))


def said(run: Run) -> list[str]:
    return [row["caption"] for row in csv.DictReader(run.predictions_file("val").with_suffix(".csv").read_text().splitlines())]


def slow_number(run: Run, name: str, rows: np.ndarray) -> float:
    """From the captions themselves; CIDEr-D weighs by the whole set."""
    candidates, references = said(run), list(run.captions("val").values())
    if name == "cider":
        return float(cider_d(candidates, references)[rows].mean())
    if name == "loss":
        p = run.caption_predictions("val")
        return sum(p.loss[i] for i in rows) / sum(int(p.counted[i]) for i in rows)
    return bleu([candidates[i] for i in rows], [references[i] for i in rows])[3]


@pytest.mark.parametrize("name", ["cider", "bleu_4", "loss"])
def test_two_captioners_are_compared_by_a_bootstrap_over_the_pictures_that_both_captioned(name: str, pair: tuple[Run, Run], few_draws: None) -> None:
    rows = {row.name: row for row in compare(pair, metric=f"val/{name}", baseline="one").rows}
    difference = rows["two"].difference
    twin = intervals.paired_bootstrap(lambda i: slow_number(pair[1], name, i) - slow_number(pair[0], name, i), 40)
    assert difference is not None
    assert difference.interval == pytest.approx(twin.pair, abs=1e-9)
    assert "over the same 40 pictures" in difference.interval_how


def test_exact_matches_are_right_or_wrong(pair: tuple[Run, Run]) -> None:
    rows = {row.name: row for row in compare(pair, metric="val/exact_match", baseline="one").rows}
    right = [[tokens_of(text) == tokens_of(own[0]) for text, own in zip(said(run), run.captions("val").values(), strict=True)] for run in pair]
    assert rows["two"].difference is not None
    assert rows["two"].difference.interval == pytest.approx(intervals.paired(right[1], right[0]).pair, abs=1e-12)


def test_numbers_of_a_whole_set_and_of_baselines_have_no_interval(pair: tuple[Run, Run]) -> None:
    for name in ("distinct", "cider[nearest]"):
        rows = {row.name: row for row in compare(pair, metric=f"val/{name}", baseline="one").rows}
        assert rows["two"].words == f"no interval: {name} does not follow from single pictures; train both under two or more seeds"


def test_captioners_on_other_captions_are_not_compared(pair: tuple[Run, Run], tmp_path: Path) -> None:
    other = fabricated(tmp_path / "other", lr=0.03, references={0: ["something else"]})
    rows = {row.name: row for row in compare([pair[0], other], metric="val/cider", baseline="one").rows}
    assert rows["other"].words == "no interval: the pictures have not the same captions of their own"
    data = json.loads((other.path / "data.json").read_text())
    data["splits"]["val"]["hash"] = "ef" * 16
    (other.path / "data.json").write_text(json.dumps(data))
    rows = {row.name: row for row in compare([pair[0], other], metric="val/cider", baseline="one").rows}
    assert rows["other"].other == "data"
    assert rows["other"].words == "not comparable: measured on other pictures or captions than one (the content hash of val differs)"


def test_scores_of_a_run_are_kept_until_its_captions_change(tmp_path: Path) -> None:
    run = fabricated(tmp_path / "run")
    assert scores_of(run, "val") is scores_of(run, "val")
    before = number_of_captions(run, "val", "exact_match")(np.arange(40))
    table = run.predictions_file("val").with_suffix(".csv")
    table.write_text(table.read_text().replace("a red ring above", "a dog above"))
    assert number_of_captions(run, "val", "exact_match")(np.arange(40)) < before == 0.5


# ── study ──
@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Two settings of a captioning under two seeds."""
    record = StudyRecord("0.1.0", "captions", "base.yaml", "val/cider", [1, 2], [SettingRecord("A", "plain"), SettingRecord("B", "beams")], "A")
    folder = StudyFolder.create(tmp_path_factory.mktemp("study") / "study", record, "recipe: base.yaml\n")
    for name, lr, wrong in (("A", 0.002, (10, 8)), ("B", 0.01, (4, 6))):
        for seed in (1, 2):
            folder.run_folder(name, seed).parent.mkdir(parents=True, exist_ok=True)
            fabricated(folder.run_folder(name, seed), seed, lr, found=dict.fromkeys(range(wrong[seed - 1]), "a red ring"))
    return folder


@pytest.mark.parametrize("name", ["cider", "exact_match"])
def test_a_study_of_captioners_has_an_interval_over_pictures(name: str, study: StudyFolder, few_draws: None) -> None:
    record = StudyRecord("0.1.0", "captions", "base.yaml", f"val/{name}", [1, 2], study.record.settings, "A")
    table = study_table(StudyFolder.create(study.path, record, ""))
    row = next(row for row in table.rows if row.row.name == "B")
    b, a = (list(study.runs(setting).values()) for setting in ("B", "A"))
    if name == "exact_match":
        twin = intervals.paired_shares(*(np.mean([scores_of(run, "val").exact for run in side], axis=0) for side in (b, a)))
    else:
        twin = intervals.paired_bootstrap(lambda i: (sum(slow_number(r, name, i) for r in b) - sum(slow_number(r, name, i) for r in a)) / 2, 40)
    assert row.over_images is not None
    assert row.over_images.interval == pytest.approx(twin.pair, abs=1e-9)
    assert table.classes is None


def test_a_study_measures_what_captioning_has_and_hands_on_whole_weights(files: Path, tmp_path: Path, pellucid: Command) -> None:
    assert learned("own", Run(files / "run").recipe) == Path("shared/own/checkpoints/final.safetensors")
    text = f"recipe: {files / 'recipe.yaml'}\nseeds: [1, 2]\nmeasure: val/miou\nsettings:\n  A: {{}}\n  B: {{set: {{generation.num_beams: 3}}}}\n"
    (tmp_path / "study.yaml").write_text(text)
    code, _, err = pellucid("study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "a captioning has no number 'miou'" in err
    (tmp_path / "study.yaml").write_text(text.replace("val/miou", "val/cider").replace("generation.num_beams: 3", "model.encoder: timm/test_resnte"))
    code, _, err = pellucid("study", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "setting B" in err
    assert "test_resnet" in err
