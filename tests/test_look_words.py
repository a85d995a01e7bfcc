"""Where a captioner looked for each word: folders of a run and of models by name hold the maps of the captions that they state, and measures of their own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from captioning_runs import RECIPE, tiny_run
from pellucid import look_words
from pellucid.caption_readings import word_maps
from pellucid.data import scenes
from pellucid.data.sources import load_dataset
from pellucid.errors import RecipeError, UsageError
from pellucid.inside.faithfulness import MEASURES, centre_prior, patch_target
from pellucid.inside.words import WordMaps, caption_maps, given_maps, merged
from pellucid.look import look_into
from pellucid.look_words import _spoken, check_words, evenly, is_spoken, look_into_words, speaker_of, summary
from pellucid.recipe import override
from pellucid.records import read_arrays
from pellucid.run import Run
from pellucid.tasks import load_model
from pellucid.train import train
from pellucid.verify import verify
from pellucid.word_findings import DIFFERS, WordsFindings, load_words
from tiny_captioners import KINDS, pictures, saved

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "a", "ski", "##s", "red", "ring", "on", "snow"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first val scene of the tiny run as a file."""
    path = tmp_path_factory.mktemp("photos") / "scene.png"
    PIL.Image.fromarray(scenes.draw(0, split="val", image_size=(32, 32)).image).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder in the hub's layout with a model of a kind and a tokeniser of 12 words."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            torch.manual_seed(3)
            made[kind] = saved(KINDS[kind](), tmp_path_factory.mktemp(kind))
            (made[kind] / "vocab.txt").write_text("\n".join(VOCABULARY))
            vocab = {token: i for i, token in enumerate(VOCABULARY)}
            transformers.BertTokenizerFast(vocab_file=str(made[kind] / "vocab.txt"), vocab=vocab).save_pretrained(made[kind])  # type: ignore[attr-defined]
        return made[kind]

    return folder


# ── a run ──
def test_a_run_draws_the_captions_that_it_predicted(run: Run) -> None:
    findings = load_words(run.inside)
    with run.predictions_file("val").with_suffix(".csv").open(newline="") as file:
        captions = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    names = [name for name, _, _ in run.samples("val")]
    assert [image.file for image in findings.images] == [names[row] for row in (0, 8, 16)]  # three of 24, evenly
    for image in findings.images:
        assert image.caption == captions[image.file]
        assert " ".join(word.text for word in image.words) == image.caption
        assert image.references == list(run.captions("val")[image.file])
        assert image.agreement < 1e-5
    assert run.record.files["inside/words.json"]
    assert findings.scored == 24


def test_maps_of_a_run_are_those_of_one_pass_over_its_captions(run: Run) -> None:
    findings, speaker = load_words(run.inside), speaker_of(run.path)
    arrays = read_arrays(run.inside / "words.npz", "maps")
    for i, image in enumerate(findings.images):
        picture = PIL.Image.fromarray(scenes.draw((0, 8, 16)[i], split="val", image_size=(32, 32)).image)
        maps = given_maps(speaker.captioner, speaker.subject.inputs([speaker.subject.view(picture)]), np.array([image.tokens]))
        spans = [word.tokens for word in image.words]
        np.testing.assert_allclose(arrays[f"maps/{i}"], merged(maps.of(0), spans), atol=1e-5)
        np.testing.assert_allclose(arrays[f"layers/{i}"], merged(maps.maps[0].mean(1), spans), atol=1e-5)
        np.testing.assert_allclose(arrays[f"maps/{i}"].sum((1, 2)), [word.share for word in image.words], atol=1e-5)


def test_words_of_a_run_are_scored_by_the_things_of_their_pictures(run: Run) -> None:
    findings, arrays = load_words(run.inside), read_arrays(run.inside / "words.npz", "maps")
    captions = load_dataset(run.recipe.data, seed=1, captions=True, fewest_classes=1).splits["val"].captions
    assert captions is not None
    assert captions.things is not None
    known = 0
    for i, (row, image) in enumerate(zip((0, 8, 16), findings.images, strict=True)):
        for k, word in enumerate(image.words):
            masks = {kind: thing.mask for thing in captions.things(row) for kind, names in thing.names.items() if word.text in names}
            assert word.kind in masks if masks else not word.kind
            for kind, mask in masks.items():
                target = patch_target(mask.astype(np.uint8), image.grid)
                assert word.scores["mass"] == pytest.approx(MEASURES["mass"](arrays[f"maps/{i}"][k], target))
                for name in word.scores:
                    assert word.centre[name] == pytest.approx(MEASURES[name](centre_prior(image.grid), target))  # by its own thing
                assert kind == word.kind
                known += 1
    said = [word for text in _captions(run) for word in text.split()]
    placed = {name for row in range(24) for thing in captions.things(row) for names in thing.names.values() for name in names}
    of_all = sum(len(arrays[f"scores/chosen/{kind}/mass"]) for kind in ("noun", "color") if f"scores/chosen/{kind}/mass" in arrays)
    lost = sum(int(part.split()[0]) for note in findings.notes if "no target" in note for part in note.partition(" name ")[0].split(" and "))
    assert of_all + lost == sum(word in placed for word in said) > 0
    score = findings.scores["chosen"][next(iter(findings.scores["chosen"]))][0]
    assert set(score.baselines) == {"uniform", "centre", "shuffled", "random model"}
    assert set(findings.scores) == {"chosen", "0", "1"}


def _captions(run: Run) -> list[str]:
    with run.predictions_file("val").with_suffix(".csv").open(newline="") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def test_a_caption_that_is_found_otherwise_now_keeps_the_maps_of_what_was_predicted(run: Run) -> None:
    speaker = speaker_of(run.path)
    inputs = pictures(2)
    other = np.array([5, 6, 7, 8, speaker.captioner.end, -1, -1])
    spoken, changed = _spoken(speaker, inputs, [None, other])
    maps, b = spoken[1]
    assert changed == 1
    assert maps.tokens[b].tolist() == other[:5].tolist()
    assert maps.agreement[b] < 1e-5
    np.testing.assert_allclose(maps.of(b), given_maps(speaker.captioner, inputs[1:], other[None, :5]).of(0), atol=1e-5)


# ── maps that disagree ──
def disagree(monkeypatch: pytest.MonkeyPatch, *rows: int) -> None:
    """The maps of some pictures of each batch are 0.02 from those of one pass over the whole caption."""
    real = caption_maps

    def found(captioner: Any, images: torch.Tensor, generation: Any, *, differs: float = DIFFERS) -> WordMaps:
        maps = real(captioner, images, generation, differs=differs)
        apart = np.where(np.isin(np.arange(len(images)), rows), 0.02, maps.agreement)
        if apart.max() > differs:
            raise UsageError("its map differs")
        return replace(maps, agreement=apart)

    monkeypatch.setattr(look_words, "caption_maps", found)


def test_a_picture_whose_maps_disagree_is_named_and_the_rest_of_a_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing runs out of memory in the first look into the run, in the second one picture disagrees; scores are those of a run without either."""
    real = look_words.look_into_run
    looks: list[WordsFindings] = []

    def look(*args: Any) -> list[Path]:
        def spent(*_: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(look_words, "_drawn_of_run", spent)
            real(*args)
        looks.append(load_words(args[0].run.inside))
        with monkeypatch.context() as patch:
            disagree(patch, 1)
            files = real(*args)
        looks.append(load_words(args[0].run.inside))
        return files

    monkeypatch.setattr(look_words, "look_into_run", look)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("epochs: 4", "epochs: 1"))
    run = train(tmp_path / "recipe.yaml", out=tmp_path / "run", quiet=True, figures=False)
    none, some = looks
    assert none.images == []
    assert none.notes[-1] == "no picture is drawn: MemoryError: memory ran out"
    assert none.scores == some.scores
    assert some.scores["chosen"]
    names = [name for name, _, _ in run.samples("val")]
    assert [image.file for image in some.images] == [names[0], names[16]]
    assert some.notes[-1].startswith(f"{names[8]} is not drawn: its maps differ by 0.02 from those of one pass over the whole caption, more than 0.0001")
    assert [maps.shape[0] for maps in word_maps(run.inside, some)] == [len(image.words) for image in some.images]
    verified = verify(run)
    assert verified.ok, verified.lines()
    assert any("the 2 that the recipe asks for, with their captions; others are left out" in text for text in verified.lines())


def test_inside_goes_on_without_a_photograph_whose_maps_disagree(
    run: Run, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pellucid: Callable[..., tuple[int, str, str]]
) -> None:
    other = tmp_path / "other.png"
    PIL.Image.fromarray(scenes.draw(1, split="val", image_size=(32, 32)).image).save(other)
    monkeypatch.setattr(look_words, "_draw", lambda *_: None)  # seconds of matplotlib
    with monkeypatch.context() as patch:
        disagree(patch, 0)
        code, out, err = pellucid("inside", run.path, scene, other, "--out", tmp_path / "out", "-q")
    assert code == 0
    assert f"{scene} is not drawn: its maps differ by 0.02" in err
    assert f"{other}: " in out
    findings = load_words(tmp_path / "out")
    assert [image.file for image in findings.images] == [str(other)]
    assert any(note.startswith(str(scene)) for note in findings.notes)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    with monkeypatch.context() as patch:
        disagree(patch, 0, 1)
        code, _, err = pellucid("inside", run.path, scene, other, "--out", tmp_path / "none", "-q")
    assert code == 2
    assert "nothing can be drawn" in err
    assert f"{other} is not drawn" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("setting", "said"), [("layers", "words: layers: the decoder has 2"), ("heads", "words: heads: a layer has")])
def test_a_layer_or_head_that_is_not_there_is_named_before_training(run: Run, setting: str, said: str) -> None:
    check_words(load_model(run), run.recipe)
    with pytest.raises(UsageError, match=said):
        check_words(load_model(run), override(run.recipe, [f"words.{setting}=[9]"]))


def test_rows_are_spread_evenly() -> None:
    assert evenly(24, 3).tolist() == [0, 8, 16]
    assert evenly(2, 3).tolist() == [0, 1]
    assert evenly(0, 3).tolist() == []


def test_a_run_refuses_settings_of_a_model_and_of_a_training(run: Run, scene: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a run: its recipe and its weights say what image_size is\. Remove -s image_size.*; a run takes num_beams"):
        look_into_words(run.path, [scene], tmp_path, overrides=["image_size=64"])
    with pytest.raises(RecipeError, match="drawn belongs to the recipe of a training"):
        look_into_words(run.path, [scene], tmp_path, overrides=["drawn=3"])
    with pytest.raises(RecipeError, match="unknown key 'num_beam'. Did you mean 'num_beams'"):
        look_into_words(run.path, [scene], tmp_path, overrides=["num_beam=3"])
    with pytest.raises(UsageError, match="there is no layer 7"):
        look_into_words(run.path, [scene], tmp_path, overrides=["layers=[7]"])
    assert not list(tmp_path.iterdir())


def test_maps_of_classes_are_refused_for_a_captioner(run: Run, scene: Path, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    with pytest.raises(UsageError, match="says captions and names no class"):
        look_into(run.path, [scene], tmp_path)
    code, _, err = pellucid("inside", run.path, scene, "--out", tmp_path, "--map", "attention")
    assert code == 2
    assert "--map belongs to models that name classes" in err


def test_inside_of_a_run_prints_and_draws_its_words(run: Run, scene: Path, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = pellucid("inside", run.path, scene, "--out", tmp_path, "-q", "-s", "num_beams=2", "-s", "layers=last", "-s", "pieces=sum")
    assert code == 0, err
    findings = load_words(tmp_path)
    assert findings.chosen == [1]
    assert "the pieces of a word added up" in findings.how
    assert f"{scene}: {findings.images[0].caption}" in out
    assert "read before it" in out
    assert "no map is measured" in err
    rows = summary(findings, [read_arrays(tmp_path / "words.npz", "maps")["maps/0"]])
    assert [row[1] for row in rows] == [word.text for word in findings.images[0].words]
    assert all(row[3].startswith("row ") and row[2] in out for row in rows)
    assert {"words.json", "words.npz", "images", "000-scene.png", "000-scene.svg", "000-scene.pdf"} <= {path.name for path in tmp_path.iterdir()}
    laid = sorted(tmp_path.glob("000-scene-[0-9]*.png"))
    assert len(laid) == len(rows)
    with PIL.Image.open(laid[0]) as overlay:
        assert overlay.size == (32, 32)  # the photograph's own


# ── models by name ──
@pytest.mark.parametrize("kind", KINDS)
def test_any_captioner_of_transformers_shows_its_words(kind: str, model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_words, "_draw", lambda *_: None)  # seconds of matplotlib
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(photo)
    target = f"transformers/{model(kind)}"
    assert is_spoken(target)
    found = look_into_words(target, [photo], tmp_path / "out", overrides=["max_length=6", "min_length=4", "num_beams=2", "no_repeat_ngram_size=1"])
    (image,) = found.images
    assert image.size == (40, 60)
    assert image.grid == (2, 2)
    assert image.agreement < 1e-5
    assert "".join(word.text for word in image.words) == image.caption.replace(" ", "")
    maps = read_arrays(tmp_path / "out" / "words.npz", "maps")["maps/0"]
    shares = [word.share for word in image.words]
    np.testing.assert_allclose(maps.sum((1, 2)), shares, atol=1e-5)
    assert all(0 < share <= 1 + 1e-6 for share in shares)
    assert max(shares) < 0.999  # a class token, and of GIT the words, take a part


def test_a_model_by_name_needs_a_tokeniser_and_to_be_a_captioner(model: Callable[[str], Path], tmp_path: Path, scene: Path) -> None:
    with pytest.raises(UsageError, match="is a model type, which has no tokeniser of its own. Give a hub id or a folder, or -s tokenizer=FOLDER"):
        look_into_words("transformers/git", [scene], tmp_path / "out", overrides=["pretrained=false"])
    with pytest.raises(UsageError, match="expected a captioner"):
        look_into_words("timm/resnet10t", [scene], tmp_path / "out")
    with pytest.raises(RecipeError, match="classes belongs to classifiers"):
        look_into_words(f"transformers/{model('blip')}", [scene], tmp_path / "out", overrides=["classes=names.txt"])
    with pytest.raises(UsageError, match="at least one photograph"):
        look_into_words(f"transformers/{model('blip')}", [], tmp_path / "out")
    assert not is_spoken("timm/resnet10t")


def test_random_weights_of_a_seed_say_the_same_again(model: Callable[[str], Path], scene: Path) -> None:
    overrides = ["pretrained=false", "seed=4", "max_length=5"]
    one, other = (speaker_of(f"transformers/{model('blip')}", overrides) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.captioner.parameters(), other.captioner.parameters(), strict=True))
    assert "random weights, seed 4" in one.subject.weights


def test_a_loaded_captioner_is_asked_again_without_figures(run: Run, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, speaker = look_into_words(run.path, [scene], tmp_path / "drawn"), speaker_of(run.path)
    monkeypatch.setattr(look_words, "speaker_of", lambda *_, **__: pytest.fail("loaded anew"))
    found = look_into_words(speaker, [scene], tmp_path / "plain", figures=False)
    assert found == drawn
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["images", "words.json", "words.npz"]
