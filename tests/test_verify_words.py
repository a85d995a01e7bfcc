"""Verify, of words: maps by transformers' own attention are the recorded ones; whatever was forged in words, maps or scores is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from captioning_runs import change_arrays, change_json, copy_of, resign, tiny_run
from pellucid.data.dataset import Dataset, Thing
from pellucid.data.sources import load_dataset
from pellucid.inside.faithfulness import PatchTarget
from pellucid.inside.word_scores import ScoredWord, _pairs, score_words, things_of
from pellucid.inside.words import given_maps
from pellucid.models.captioner import Captioner
from pellucid.run import Run, Vocabulary
from pellucid.tasks import load_model, runtime_of
from pellucid.verify import verify
from pellucid.verify_inside import scores
from pellucid.verify_word_maps import agreement_of, looked, paths_of, plain_copy, spread
from pellucid.verify_word_scores import Placed, _kind_lines, _priors, bounds, judged, named_things, over_pictures, shuffled_pairs
from pellucid.verify_words import anew_word_checks, open_words, stored_word_checks
from pellucid.word_findings import PAIRS, load_words

FIRST = "scenes-val-000000.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory)


@pytest.fixture(scope="module")
def dataset(made: Run) -> Dataset:
    return load_dataset(made.recipe.data, seed=made.recipe.seed, captions=True)


@pytest.fixture
def copied(made: Run, tmp_path: Path) -> Run:
    return copy_of(made, tmp_path)


def wrong(run: Run, dataset: Dataset, *, same_bits: bool = False) -> list[str]:
    """The mismatches of the first path, or, where it finds none, of the second."""
    kept, lines = open_words(run)
    if kept is not None:
        lines += stored_word_checks(kept)
    if kept is not None and all(ok for _, ok, _ in lines):
        runtime = runtime_of(run)
        lines += anew_word_checks(kept, dataset, runtime.place(load_model(run)).eval(), runtime, same_bits=same_bits)
    assert all(line.startswith("ok " if ok else "MISMATCH ") for _, ok, line in lines if not line.startswith("words:")), lines
    return [line for _, ok, line in lines if not ok]


def test_words_of_an_untouched_run_hold_and_each_score_is_recomputed(made: Run, dataset: Dataset) -> None:
    kept, _ = open_words(made)
    assert kept is not None
    runtime = runtime_of(made)
    lines = [*stored_word_checks(kept), *anew_word_checks(kept, dataset, runtime.place(load_model(made)).eval(), runtime)]
    assert all(ok for _, ok, _ in lines), lines
    found = {what for what, _, _ in lines}
    reported = {f"words {score.measure}[{score.method}]" for kinds in kept.findings.scores.values() for of in kinds.values() for score in of}
    assert len(reported) >= 15
    assert reported <= found
    assert {"words model", "words captions", "words tokens", "words maps", "words pictures", "words maps anew", "words things", "words scores"} <= found


# ── what a forger changes, all hashes made anew ──


def _words(change: Callable[[dict[str, Any]], None]) -> Callable[[Run], None]:
    return lambda run: change_json(run.inside / "words.json", change)


def _arrays(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Run], None]:
    return lambda run: change_arrays(run.inside / "words.npz", change)


def _shifted(findings: dict[str, Any]) -> None:
    word = findings["images"][0]["words"][1]
    word["tokens"] = [word["tokens"][0] + 1, word["tokens"][1] + 1]


def _all_shifted(findings: dict[str, Any]) -> None:
    for word in findings["images"][0]["words"]:
        word["tokens"] = [place + 1 for place in word["tokens"]]


def _moved(arrays: dict[str, np.ndarray]) -> None:
    """A word's map is turned over, in the layers too."""
    arrays["maps/0"][1] = arrays["maps/0"][1, ::-1, ::-1].copy()
    arrays["layers/0"][:, 1] = arrays["layers/0"][:, 1, ::-1, ::-1].copy()


def _score(layer: str, change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Of the first score of the first kind of a layer."""
    return lambda findings: change(next(iter(findings["scores"][layer].values()))[1])


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (_arrays(_moved), f"MISMATCH words maps anew: {FIRST}: the map of '"),
        (_arrays(lambda arrays: arrays["maps/0"][1].__setitem__((0, 0), 0.9)), f"MISMATCH words maps: {FIRST}: the map of '"),
        (_arrays(lambda arrays: arrays.pop("layers/0")), f"MISMATCH words maps: {FIRST}: layers/0 is missing"),
        (_words(_shifted), f"MISMATCH words tokens: {FIRST}: the tokens 2 to before 3 of '"),
        (_words(_all_shifted), f"MISMATCH words tokens: {FIRST}: "),
        (_words(lambda f: f["images"][0]["words"][1].update(text="zebra")), f"MISMATCH words tokens: {FIRST}: the tokens 1 to before 2 of 'zebra' read '"),
        (_words(lambda f: f["images"][0]["words"][1].update(query="zebra")), f"MISMATCH words tokens: {FIRST}: the query of '"),
        (_words(lambda f: f["images"][0]["words"].pop()), f"MISMATCH words tokens: {FIRST}: token "),
        (_words(lambda f: f["images"][0]["words"][1].update(share=0.5)), f"MISMATCH words maps anew: {FIRST}: attention on the picture for '"),
        (_words(lambda f: f["images"][0].update(caption="a zebra")), f"MISMATCH words captions: {FIRST}: its caption is 'a zebra', its tokens say '"),
        (_words(lambda f: f["images"][0]["tokens"].insert(0, 5)), f"MISMATCH words captions: {FIRST}: "),
        (_words(lambda f: f["images"][0].update(references=["a zebra"])), f"MISMATCH words captions: {FIRST}: its own captions are not those of "),
        (_words(lambda f: f["images"][0].update(agreement=0.01)), f"MISMATCH words model: the map of {FIRST} differs by 0.01 "),
        (_words(lambda f: f.update(chosen=[1])), "MISMATCH words model: chosen layers [1], the run has [0, 1]"),
        (_words(lambda f: f["images"].pop()), "MISMATCH words pictures: scenes-val-000016.png is missing"),
        (_words(lambda f: f.update(scored=500)), "MISMATCH words scores: 500 pictures scored, the recipe asks for 24"),
        (_words(lambda f: f["scores"].pop("1")), "MISMATCH words scores: "),
        (_words(_score("chosen", lambda s: s["value"].update(value=0.9))), "MISMATCH words mass["),
        (_words(_score("0", lambda s: s["baselines"]["uniform"].update(value=0.001))), "MISMATCH words mass["),
        (_words(_score("0", lambda s: s["baselines"]["shuffled"].update(value=0.001))), "MISMATCH words mass["),
        (_words(_score("0", lambda s: s["margins"].pop("centre"))), "MISMATCH words mass["),
        (_words(_score("0", lambda s: s["value"].update(how="share of all words"))), "MISMATCH words mass["),
        (_words(_score("0", lambda s: s["margins"]["shuffled"].update(how="better"))), "MISMATCH words mass["),
        (_words(_score("0", lambda s: s["value"].update(interval_how="99 % interval"))), "MISMATCH words mass["),
        (_words(lambda f: f["images"][0].update(agreement=9e-5)), f"MISMATCH words maps anew: {FIRST}: its maps are said to differ by 9e-05 "),
        (_words(lambda f: f.update(how="the map of the first layer")), "MISMATCH words layers: how is 'the map of the first layer', expected \"the mean over "),
        (_words(lambda f: f["layers"].reverse()), "MISMATCH words layers: the layers are ['model.decoder.bert.encoder.layer.1.crossattention.self', "),
        (_words(lambda f: f["notes"].clear()), "MISMATCH words scores: the notes of words that are in no score are [], expected ['"),
        (_words(lambda f: f.update(notes=[f["notes"][0].replace(" noun", "0 noun")])), "MISMATCH words scores: the notes of words that are in no score are ["),
        (
            lambda run: PIL.Image.new("RGB", (32, 32), (90, 90, 90)).save(run.inside / "images/0.webp"),
            f"MISMATCH words pictures: {FIRST}: inside/images/0.webp ",
        ),
        (lambda run: (run.inside / "images/0.webp").write_bytes((run.inside / "images/1.webp").read_bytes()), f"MISMATCH words pictures: {FIRST}: inside/"),
    ],
)
def test_what_was_forged_in_words_is_named_though_every_hash_fits(copied: Run, dataset: Dataset, forge: Callable[[Run], None], said: str) -> None:
    forge(copied)
    resign(copied)
    lines = wrong(copied, dataset)
    assert any(line.startswith(said) for line in lines), lines


def test_the_score_of_a_drawn_word_that_was_forged_is_named(copied: Run, dataset: Dataset) -> None:
    found = load_words(copied.inside)
    place = next((i, w) for i, image in enumerate(found.images) for w, word in enumerate(image.words) if word.kind)
    change_json(copied.inside / "words.json", lambda f: f["images"][place[0]]["words"][place[1]]["scores"].update(mass=0.99))
    resign(copied)
    word = found.images[place[0]].words[place[1]].text
    (line,) = wrong(copied, dataset)
    assert line.startswith(f"MISMATCH words things: {found.images[place[0]].file}: mass of {word!r} 0.9900 reported, recomputed"[:40])
    assert f"mass of {word!r} 0.9900 reported" in line


def test_measures_of_words_that_were_forged_with_their_means_are_named(copied: Run, dataset: Dataset) -> None:
    """The forger makes array, mean and margins fit each other; the maps of the model say otherwise."""
    kind = next(iter(load_words(copied.inside).scores["chosen"]))
    change_arrays(copied.inside / "words.npz", lambda arrays: arrays.update({f"scores/chosen/{kind}/mass": np.ones_like(arrays[f"scores/chosen/{kind}/mass"])}))
    assert any(line.startswith(f"MISMATCH words mass[{kind}]: ") and "measures of a word differ" in line for line in wrong(copied, dataset))


def _raised(run: Run, much: float) -> str:
    """Every map of the first kind has more mass on its target, in arrays, means, margins and intervals alike; the kind."""
    kind = next(iter(load_words(run.inside).scores["chosen"]))

    def change(findings: dict[str, Any]) -> None:
        score = findings["scores"]["chosen"][kind][1]
        for number in (score["value"], *score["margins"].values()):
            number["value"] += much
            number["interval"] = number["interval"] and [end + much for end in number["interval"]]

    key = f"scores/chosen/{kind}/mass"
    change_arrays(run.inside / "words.npz", lambda arrays: arrays.update({key: arrays[key] + much}))
    change_json(run.inside / "words.json", change)
    return kind


@pytest.mark.parametrize(("much", "same_bits"), [(9e-4, True), (0.02, False)])
def test_a_machine_that_was_made_up_gives_no_room_for_better_scores(copied: Run, dataset: Dataset, much: float, same_bits: bool) -> None:
    change_json(copied.path / "environment.json", lambda stated: stated["libraries"].update(torch="1.0"))
    assert not wrong(copied, dataset, same_bits=same_bits)
    kind = _raised(copied, much)
    assert [line.partition(":")[0] for line in wrong(copied, dataset, same_bits=same_bits)] == [f"MISMATCH words mass[{kind}]"]


def test_verify_takes_equal_bits_for_the_same_machine(copied: Run) -> None:
    change_json(copied.path / "environment.json", lambda stated: stated["libraries"].update(torch="1.0"))
    kind = _raised(copied, 9e-4)
    resign(copied)
    (line,) = [line for line in verify(copied).lines() if line.startswith("MISMATCH")]
    assert line.startswith(f"MISMATCH words mass[{kind}]: ")


def test_a_picture_whose_hash_is_not_kept_is_named(copied: Run) -> None:
    record = copied.record
    del record.files["inside/images/1.webp"]
    copied.write_record(record)
    assert open_words(copied)[1] == [("file inside/images/1.webp", False, "MISMATCH run.json: it holds no hash of inside/images/1.webp")]


def test_words_that_are_gone_are_told_unless_the_run_says_why(copied: Run) -> None:
    record = copied.record
    for name in ("words.json", "words.npz", *(f"images/{i}.webp" for i in range(3))):
        del record.files[f"inside/{name}"]
        (copied.inside / name).unlink()
    copied.write_record(record)
    lines = verify(copied).lines()
    assert "MISMATCH run.json: it holds no hash of inside/words.json" in lines
    assert any(line.startswith("MISMATCH words: ") and "expected where a captioner looked" in line for line in lines)
    record.note("nothing was found of where the captioner looked: memory ran out")
    copied.write_record(record)
    found = verify(copied)
    assert found.ok
    assert "words: nothing was found of where the captioner looked: memory ran out" in found.lines()


# ── the parts against other ways ──


def _models() -> dict[str, Callable[[], Any]]:
    from transformers import (
        BertConfig,
        BertLMHeadModel,
        BlipConfig,
        BlipForConditionalGeneration,
        GitConfig,
        GitForCausalLM,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    words = {"vocab_size": 40, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    seen = {"image_size": 16, "patch_size": 4}
    return {
        "ved": lambda: VisionEncoderDecoderModel(
            encoder=ViTModel(ViTConfig(**small, **seen), add_pooling_layer=False),
            decoder=BertLMHeadModel(BertConfig(**small, **words, is_decoder=True, add_cross_attention=True)),
        ),
        "blip": lambda: BlipForConditionalGeneration(
            BlipConfig(text_config={**small, **words, "encoder_hidden_size": 32, "sep_token_id": 3}, vision_config={**small, **seen}, projection_dim=16)
        ),
        "git": lambda: GitForCausalLM(GitConfig(**small, **words, vision_config={**small, **seen})),
    }


@pytest.mark.parametrize("kind", ["ved", "blip", "git"])
@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_maps_by_transformers_own_attention_are_the_recorded_ones(kind: str, size: tuple[int, int], seeded: None) -> None:
    model = _models()[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)  # peaked, so that steps differ
    captioner = Captioner(model, Vocabulary(40, 2, 3, 0, 12, "drawn")).eval()
    image, tokens = torch.randn(1, 3, *size), [5, 9, 30, 7, 3]
    recorded = given_maps(captioner, image, np.array([tokens]))
    own = looked(plain_copy(captioner), image, tokens)
    assert own.maps.shape == (2, 2, 5, size[0] // 4, size[1] // 4)
    assert np.abs(own.maps - recorded.maps[0]).max() < 1e-5
    assert np.abs(own.maps[:, :, 1:] - recorded.maps[0][:, :, :-1]).max() > 1e-3  # one step off
    assert paths_of(plain_copy(captioner), size) == recorded.layers
    assert 0 <= agreement_of(plain_copy(captioner), image, tokens) < 1e-5


def test_measures_by_many_targets_at_once_are_those_one_by_one() -> None:
    random = np.random.default_rng(0)
    for trial in range(20):
        relevance = random.random((4, 5)) ** 3
        if trial % 4 == 0:
            relevance[0, :3] = relevance[1, 1]  # ties
        targets = random.random((6, 4, 5)) < random.uniform(0.1, 0.9)
        targets[:, 2, 2] = True
        targets[5] = trial % 2 == 0
        targets[5, 0, 0] = True
        valid = np.ones_like(targets)
        slow = scores.table(np.broadcast_to(relevance, targets.shape), targets, valid)
        fast = judged(relevance, targets, valid)
        assert fast.keys() == slow.keys()
        for name in slow:
            np.testing.assert_allclose(fast[name], slow[name], atol=1e-12, err_msg=name)


def test_measures_of_shaken_maps_lie_within_their_bounds_and_these_are_tight() -> None:
    random, rounding = np.random.default_rng(0), 1e-2
    inner = outer = 0
    for trial in range(30):
        relevance = 1 + random.normal(size=(4, 5)) * (0.02 if trial % 2 else 0.5)
        relevance = np.abs(relevance)
        targets = random.random((3, 4, 5)) < 0.4
        targets[:, 1, 1] = True
        valid = np.ones_like(targets)
        if trial % 5 == 0:
            valid[:, 3] = False
            targets &= valid
        found = bounds(relevance, targets, valid, rounding)
        for _ in range(20):
            shaken = judged(relevance * (1 + random.uniform(-rounding, rounding, size=relevance.shape)), targets, valid)
            for name, values in shaken.items():
                assert ((found.low[name] - 1e-12 <= values) & (values <= found.high[name] + 1e-12)).all(), name
        inner += sum(int((found.low[name] == found.high[name]).sum()) for name in shaken)
        outer += sum(int((found.low[name] != found.high[name]).sum()) for name in shaken)
        assert (found.high["mass"] - found.low["mass"] <= rounding).all()
    assert min(inner, outer) > 50


@pytest.mark.parametrize("n", [1, 2, 7, 21, 22, 60, 500, 600, 3000])
def test_words_that_judge_a_map_are_those_of_other_pictures_and_as_in_training(n: int) -> None:
    rows = sorted(np.random.default_rng(n).integers(0, max(1, n // 2), size=n).tolist())
    own = shuffled_pairs(rows)
    assert all(rows[other] != rows[word] for word, others in enumerate(own) for other in others)
    one = np.ones((1, 1), bool)
    targets = [PatchTarget(one, one, one.astype(np.float64))] * n
    assert sorted((word, other) for word, others in enumerate(own) for other in others) == sorted(_pairs(targets, np.array(rows)))


@pytest.mark.parametrize("flat", [False, True])
def test_scores_of_many_words_are_the_same_by_both_paths_of_nearly_equal_patches_too(flat: bool) -> None:
    random, n, weights = np.random.default_rng(0), 600, "final weights, last epoch"
    assert n * 20 > PAIRS  # each is judged by fewer than there are shifts
    drawn = random.random((2, n, 1, 3, 4))
    maps = (1 + 1e-5 * drawn if flat else drawn) / 12  # of model and stranger
    target = (random.random((20, 3, 4)) < 0.3)[np.arange(n) % 20]
    target[:, 1, 1] = True
    whole = np.ones((3, 4), bool)
    words = [ScoredWord(w // 8, "noun", a, PatchTarget(t, whole, t.astype(np.float64)), b) for w, (a, b, t) in enumerate(zip(*maps, target, strict=True))]
    found, arrays = score_words(words, split="val", seed=1, note=f"words of the captions that were found; {weights}")
    again = maps * (1 + 3e-6 * random.uniform(-1, 1, size=maps.shape))  # what another way of computing them moves
    own = [Placed(w // 8, t, whole, a, b) for w, (a, b, t) in enumerate(zip(*again, target, strict=True))]
    kept = SimpleNamespace(findings=SimpleNamespace(scores=found, weights=weights), arrays=arrays, recipe=SimpleNamespace(seed=1), split="val")
    anew: Any = SimpleNamespace(kept=kept, same=True)
    lines = _kind_lines(anew, ("chosen", "noun"), 0, own, shuffled_pairs([word.row for word in own]), _priors(own))
    assert len(lines) == 5
    assert all(ok for _, ok, _ in lines), lines
    if flat:
        moved = judged(maps[0, 0, 0], target, np.ones_like(target))["auc"] - judged(again[0, 0, 0], target, np.ones_like(target))["auc"]
        assert np.abs(moved).max() > 0.01  # rounding alone


def test_an_interval_over_pictures_keeps_the_words_of_a_picture_together() -> None:
    random = np.random.default_rng(0)
    owners = np.repeat(np.arange(30), random.integers(1, 5, size=30))
    values = random.normal(size=30)[owners]  # words of a picture are all alike
    draws = np.random.Generator(np.random.PCG64(0))
    means = []
    for _ in range(1000):
        drawn = draws.integers(0, 30, size=30)
        words = [x for picture in drawn for x in values[owners == picture]]
        means.append(math.fsum(words) / len(words))
    assert over_pictures(values, owners) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)
    assert over_pictures(values[owners < 19], owners[owners < 19]) is None


def test_names_of_several_words_are_found_whole_and_as_in_training() -> None:
    masks = [np.eye(3, dtype=bool), np.fliplr(np.eye(3)).astype(bool)]
    things = [Thing({"noun": frozenset({"fire hydrant", "hydrant"}), "color": frozenset({"red"})}, masks[0]), Thing({"noun": frozenset({"dog"})}, masks[1])]
    words, known = ["A", "Red", "fire", "hydrant", "and", "a", "dog", ",", "a", "hydrant", ",", "a", "cat"], {"noun": {"cat", "dog"}}
    own = [(w, kind, None if mask is None else mask.tolist()) for w, kind, mask in named_things(words, things, known)]
    assert own == [(p.word, p.kind, None if p.mask is None else p.mask.tolist()) for p in things_of(words, things, known)]
    assert [(w, kind) for w, kind, _ in own] == [(3, "noun"), (6, "noun"), (9, "noun"), (12, "noun"), (1, "color")]


def test_rows_are_evenly_apart() -> None:
    assert spread(24, 3) == [0, 8, 16]
    assert spread(2, 5) == [0, 1]
    assert spread(5, 0) == []
