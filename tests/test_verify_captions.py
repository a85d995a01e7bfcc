"""Verify, of captions: an untouched run holds to the bit by two paths; whatever was forged in captions, tokens, references or numbers is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from captioning_runs import change_arrays, change_json, change_measurements, change_table, copy_of, resign, tiny_run
from pellucid import verify_captions
from pellucid.data.dataset import Dataset
from pellucid.data.sources import load_dataset
from pellucid.data.text import CaptionTokenizer, build_tokenizer
from pellucid.models.weights import read_weights, save_weights
from pellucid.run import Run, Vocabulary
from pellucid.schema.captioning import TextSection
from pellucid.tasks import load_model, runtime_of
from pellucid.tasks.captioning import nearest_pictures
from pellucid.train import train
from pellucid.verify import BIT_EQUAL, SAME_DEVICE, verify
from pellucid.verify_captions import Cutter, anew_caption_checks, stored_caption_checks

NUMBERS = {"cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "exact_match", "token_accuracy", "loss", "length", "distinct"}
BASELINES = {f"{name}[{other}]" for name in ("cider", "bleu_4", "exact_match") for other in ("most_frequent", "nearest")}
FORGED = "scenes-val-000003.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory)


@pytest.fixture(scope="module")
def dataset(made: Run) -> Dataset:
    return load_dataset(made.recipe.data, seed=made.recipe.seed, captions=True)


@pytest.fixture
def copied(made: Run, tmp_path: Path) -> Run:
    return copy_of(made, tmp_path)


def wrong(run: Run) -> list[str]:
    """The mismatches of the first path."""
    lines = stored_caption_checks(run)
    assert all(line.startswith("ok " if ok else "MISMATCH ") for _, ok, line in lines), lines
    return [line for _, ok, line in lines if not ok]


def wrong_anew(run: Run, dataset: Dataset) -> tuple[list[str], list[float | None]]:
    """The mismatches of the second path, and the share of pictures with other bits."""
    runtime = runtime_of(run)
    lines, shares = anew_caption_checks(run, dataset, runtime.place(load_model(run)), runtime, 0.005, None)
    return [line for _, ok, line in lines if not ok], shares


def change_predictions(run: Run, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    change_arrays(run.predictions_file("val"), change)


# ── the whole ──


def test_an_untouched_run_holds_to_the_bit(made: Run) -> None:
    found = verify(made)
    assert found.ok, found.lines()
    assert found.promise == BIT_EQUAL
    assert found.lines()[-1] == "promise: bit-equal (all captions and log probabilities are the same bits)"
    twice = {f"number val/{name} {path}" for name in NUMBERS for path in ("from the stored captions", "from checkpoint and data")}
    assert twice | {f"number val/{name} from checkpoint and data" for name in BASELINES} <= {check.what for check in found.checks}
    assert {check.what for check in found.checks} >= {"tokeniser", "val scores", "val greedy captions", "val baselines", "val numbers"}


def test_a_run_with_beams_holds_and_says_nothing_of_the_likeliest_token(made: Run, tmp_path: Path) -> None:
    settings = ["generation.num_beams=3", "generation.length_penalty=0.5", "data.train=16", "data.val=3", "train.phases.0.epochs=1", "words.drawn=0"]
    settings += ["train.keep=best", "train.ema={}"]
    run = train(made.recipe, overrides=settings, out=tmp_path / "run", quiet=True, figures=False)
    found = verify(run)
    assert (found.ok, found.promise) == (True, BIT_EQUAL), found.lines()
    assert "val greedy captions" not in {check.what for check in found.checks}
    assert run.record.selected == "epoch 1, the best cider on val, moving average of the weights"
    assert "length penalty 0.5" in run.measurements["val/cider"].how
    assert run.measurements["val/cider"].how.endswith("selected on this split, hence optimistic")
    change_json(run.path / "run.json", lambda record: record.update(selected="epoch 2, the best cider on val, moving average of the weights"))
    assert any(line.startswith("MISMATCH val texts: the weights are said to be those of 'epoch 2, ") for line in wrong(run))


def test_a_run_of_one_val_picture_holds_without_cider_and_intervals(made: Run, tmp_path: Path) -> None:
    settings = ["data.train=16", "data.val=1", "train.phases.0.epochs=1", "words.drawn=0"]
    run = train(made.recipe, overrides=settings, out=tmp_path / "run", quiet=True, figures=False)
    assert {m.name for m in run.measurements.values()} == (NUMBERS | BASELINES) - {"cider", "cider[most_frequent]", "cider[nearest]"}
    assert verify(run).ok, verify(run).lines()


# ── what a forger changes, all hashes made anew ──


def _caption(run: Run) -> None:
    change_table(run.path / "predictions/val.csv", lambda rows: rows[4].__setitem__(1, "a red circle left of a blue square"))


def _token(run: Run) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["tokens"][3, 1] = next(token for token in range(4, 30) if token != arrays["tokens"][3, 1])

    change_predictions(run, change)


def _token_and_caption(run: Run) -> None:
    _token(run)
    text = Cutter.of(run).text(run.caption_predictions("val").tokens[3].tolist())
    change_table(run.path / "predictions/val.csv", lambda rows: rows[4].__setitem__(1, text))


def _reference(run: Run) -> None:
    change_json(run.path / "samples/val.captions.json", lambda own: own[FORGED].__setitem__(0, "a red circle left of a blue square"))


def _tokenizer(run: Run) -> None:
    """Two words are exchanged."""

    def change(stated: dict[str, Any]) -> None:
        vocabulary = stated["model"]["vocab"]
        a, b = list(vocabulary)[4:6]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    change_json(run.tokenizer_file, change)


def _measurement(name: str, field: str, change: Callable[[Any], Any]) -> Callable[[Run], None]:
    return lambda run: change_measurements(run, lambda named: named[name].__setitem__(field, change(named[name][field])))


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (_caption, [f"MISMATCH val captions: the caption of {FORGED} is 'a red circle left of a blue square' in predictions/val.csv, its tokens say "]),
        (_token, [f"MISMATCH val captions: the caption of {FORGED} is ", f"MISMATCH val captions from checkpoint and data: of {FORGED} the run holds "]),
        (
            _token_and_caption,
            [
                f"MISMATCH val captions from checkpoint and data: of {FORGED} the run holds ",
                f"MISMATCH val scores: of {FORGED} ",
                f"MISMATCH val greedy captions: of {FORGED} a token is ",
            ],
        ),
        (_reference, [f"MISMATCH val own captions: the captions of {FORGED} are not those of samples/val.csv"]),
        (_tokenizer, ["MISMATCH val captions: the caption of ", "MISMATCH tokeniser: '"]),
        (_measurement("rouge_l", "value", lambda x: x + 1e-4), ["MISMATCH val/rouge_l from the stored captions: reported "]),
        (_measurement("loss", "value", lambda x: x - 1e-4), ["MISMATCH val/loss from the stored captions: reported "]),
        (_measurement("cider[nearest]", "value", lambda x: x - 0.1), ["MISMATCH val/cider[nearest] from checkpoint and data: reported "]),
        (_measurement("bleu_4[most_frequent]", "value", lambda x: x / 2), ["MISMATCH val/bleu_4[most_frequent] from checkpoint and data: reported "]),
        (_measurement("cider", "interval", lambda x: [x[0] + 1e-3, x[1]]), ["MISMATCH val numbers: val/cider: interval "]),
        (_measurement("exact_match", "interval", lambda x: None), ["MISMATCH val numbers: val/exact_match: no interval"]),
        (_measurement("cider", "how", lambda x: x.replace("greedily", "by 5 beams")), ["MISMATCH val texts: val/cider says of itself 'CIDEr-D"]),
        (_measurement("loss", "how", lambda x: x + "; on new images"), ['MISMATCH val texts: val/loss says of itself "mean negative']),
        (_measurement("cider[nearest]", "how", lambda x: "the best that is known"), ["MISMATCH val texts: val/cider[nearest] says of itself 'the best"]),
        (_measurement("bleu_4", "interval_how", lambda x: "99 % interval"), ["MISMATCH val texts: the interval of val/bleu_4 says of itself '99 % interval'"]),
        (_measurement("meteor", "n", lambda x: 500), ["MISMATCH val numbers: val/meteor: n 500, seed 1 reported; n 24, seed 1 recomputed"]),
        (_measurement("cider[nearest]", "interval", lambda x: [0.0, 0.2]), ["MISMATCH val baselines: val/cider[nearest]: interval "]),
        (lambda run: change_measurements(run, lambda named: named.pop("bleu_4")), ["MISMATCH run.json: bleu_4 of val is missing (from the stored captions)"]),
        (
            lambda run: change_measurements(run, lambda named: named.pop("cider[nearest]")),
            ["MISMATCH run.json: cider[nearest] of val is missing (from checkpoint and data)"],
        ),
        (
            lambda run: change_measurements(run, lambda named: named.update(spice=named["bleu_1"] | {"name": "spice"})),
            ["MISMATCH val/spice from the stored captions: there is no such number to recompute"],
        ),
    ],
)
def test_what_was_forged_is_named_though_every_hash_fits(copied: Run, dataset: Dataset, forge: Callable[[Run], None], said: list[str]) -> None:
    forge(copied)
    resign(copied)
    lines = wrong(copied)
    if not all(any(line.startswith(part) for line in lines) for part in said):
        lines += wrong_anew(copied, dataset)[0]
    assert [any(line.startswith(part) for line in lines) for part in said] == [True] * len(said), lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a["score"].__setitem__(3, a["score"][3] - 0.1), f"MISMATCH val scores: of {FORGED} -"),
        (lambda a: a["loss"].__setitem__(3, a["loss"][3] + 0.1), "MISMATCH val/loss from the stored captions"),
        (lambda a: a["correct"].__setitem__(3, 0), "MISMATCH val/token_accuracy from the stored captions"),
        (lambda a: a["counted"].__setitem__(3, 99), f"MISMATCH val counted tokens: {FORGED}: 99 tokens counted, its own captions have "),
        (lambda a: a["tokens"].__setitem__((3, 0), 3), f"MISMATCH val tokens: {FORGED}: tokens behind its end"),
        (lambda a: a["tokens"].__setitem__((3, 0), 2), f"MISMATCH val captions: the caption of {FORGED} is "),
        (lambda a: a["tokens"].__setitem__((3, 0), 1 << 40), f"MISMATCH val tokens: {FORGED}: {1 << 40} is no token of a caption"),
        (lambda a: a.update(tokens=np.where(a["tokens"] == 3, -1, a["tokens"])), "MISMATCH val tokens: scenes-val-0000"),
        (lambda a: a["name"].__setitem__(3, "other.png"), "MISMATCH val predictions: rows are not those of samples/val.csv (first difference at other.png)"),
        (lambda a: a.pop("score"), "MISMATCH "),
    ],
)
def test_arrays_that_were_forged_are_named(copied: Run, dataset: Dataset, change: Callable[[dict[str, np.ndarray]], None], said: str) -> None:
    change_predictions(copied, change)
    lines = wrong(copied) or wrong_anew(copied, dataset)[0]
    assert any(line.startswith(said) for line in lines), lines


def test_pictures_that_stand_in_two_splits_are_said_of_every_number(copied: Run) -> None:
    rows = copied.samples("train")
    change_table(copied.path / "samples/val.csv", lambda table: table[1].__setitem__(-1, rows[0][2]))
    lines = wrong(copied)
    assert any("; 1 of its 24 images stand in another split too, so that it is no measure of new images" in line for line in lines), lines


def test_captions_that_changed_in_the_data_are_named_as_captions(copied: Run) -> None:
    """The forger changes the samples of the run: the data has the captions that it always had."""

    def change(rows: list[list[str]]) -> None:
        row = next(row for row in rows if FORGED in row)
        row[-1] = row[-1][:-32] + "0" * 32

    change_table(copied.path / "samples/val.csv", change)
    resign(copied)
    lines = verify(copied).lines()
    assert f"MISMATCH val data: the captions of {FORGED} changed" in lines, lines


def test_files_without_a_hash_are_told(copied: Run) -> None:
    record = copied.record
    for name in ("tokenizer.json", "samples/val.captions.json"):
        del record.files[name]
    copied.write_record(record)
    lines = verify(copied).lines()
    assert {"MISMATCH run.json: it holds no hash of tokenizer.json", "MISMATCH run.json: it holds no hash of samples/val.captions.json"} <= set(lines)


def test_a_tokenizer_that_cannot_be_read_is_one_mismatch(copied: Run, dataset: Dataset) -> None:
    copied.tokenizer_file.write_text("{}")
    (line,) = wrong(copied)
    assert line.startswith("MISMATCH tokenizer.json: no tokeniser can be read from it: ")
    assert wrong_anew(copied, dataset) == ([], [])


def test_a_vocabulary_of_other_size_is_told(copied: Run) -> None:
    change_json(copied.path / "data.json", lambda data: data["vocabulary"].update(size=7))
    (line,) = wrong(copied)
    assert line.startswith("MISMATCH tokenizer.json: it has ")
    assert line.endswith(" tokens, data.json says 7")


def test_what_data_json_says_of_the_tokens_is_compared_with_the_training_captions(copied: Run, dataset: Dataset) -> None:
    change_json(copied.path / "data.json", lambda data: data["vocabulary"].update(how="a dictionary"))
    lines, _ = wrong_anew(copied, dataset)
    assert any(line.startswith("MISMATCH tokeniser: how of data.json is 'a dictionary', of the training captions 'one token a word: ") for line in lines), lines


def test_other_weights_are_told_by_numbers_and_captions(copied: Run, dataset: Dataset) -> None:
    tensors = read_weights(copied.final_weights)
    save_weights({name: tensor * 0.5 if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}, copied.final_weights)
    lines, shares = wrong_anew(copied, dataset)
    assert shares == [1.0]
    assert any(line.startswith("MISMATCH val/loss from checkpoint and data") for line in lines), lines


def test_other_log_probabilities_of_own_captions_are_another_promise_and_no_mismatch(copied: Run) -> None:
    change_predictions(copied, lambda arrays: arrays["digests"].__setitem__(3, 0))
    resign(copied)
    found = verify(copied)
    assert (found.ok, found.promise) == (True, SAME_DEVICE), found.lines()
    assert found.lines()[-1] == "promise: same device class (4.2% of the images have other captions and log probabilities)"


def test_on_another_machine_other_captions_are_a_share_and_no_mismatch(copied: Run, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    _token_and_caption(copied)
    monkeypatch.setattr(verify_captions, "_same_machine", lambda run, runtime: False)
    (line,) = [line for line in wrong_anew(copied, dataset)[0] if line.startswith("MISMATCH val captions from checkpoint and data")]
    assert f"of {FORGED} the run holds" in line  # all own captions have the same bits: it is the same machine
    change_predictions(copied, lambda arrays: arrays["digests"].__setitem__(3, 0))
    runtime = runtime_of(copied)
    lines, shares = anew_caption_checks(copied, dataset, runtime.place(load_model(copied)), runtime, 0.005, None)
    assert shares == [1 / 24]
    assert (
        f"ok val captions from checkpoint and data: 1 of 24 pictures (4.2%) have another caption on this machine, {FORGED} the first"
        in [line for _, ok, line in lines if ok]
    )  # fmt: skip


def test_without_the_training_captions_neither_tokeniser_nor_baselines_are_made_anew(made: Run, dataset: Dataset) -> None:
    runtime = runtime_of(made)
    lines, shares = anew_caption_checks(made, replace(dataset, splits={"val": dataset.splits["val"]}), runtime.place(load_model(made)), runtime, 0.005, None)
    assert shares == [0.0]
    assert all(ok for _, ok, _ in lines)
    assert not [what for what, _, _ in lines if what == "tokeniser" or "[" in what]


# ── the parts against slow twins ──


def _bytes() -> CaptionTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(["a café on skis, isn't it"], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], show_progress=False))
    return CaptionTokenizer(tokenizer, Vocabulary(tokenizer.get_vocab_size(), 0, 0, 0, 12, "bytes"))


@pytest.mark.parametrize("kind", ["words", "word_pieces", "bytes"])
def test_captions_and_tokens_by_the_library_alone_are_those_of_training(kind: str, copied: Run) -> None:
    texts = ["a man on skis, jumping", "two dogs don't run; they sleep [EOS] here", "a café"]
    made = _bytes() if kind == "bytes" else build_tokenizer(TextSection.model_validate({"tokenizer": {"name": kind, "size": 60}, "max_length": 12}), texts)
    made.save(copied.tokenizer_file)
    change_json(copied.path / "data.json", lambda data: data.update(vocabulary=json.loads(json.dumps(vars(made.vocabulary)))))
    cutter, random = Cutter.of(copied), np.random.default_rng(0)
    for text in [*texts, "zebras ski", ""]:
        assert cutter.tokens(text) == made.encode(text)
    for _ in range(50):
        tokens = random.integers(-1, made.vocabulary.size, size=8).tolist()
        tokens = tokens[: tokens.index(-1)] if -1 in tokens else tokens
        assert cutter.text(tokens) == made.decode(tokens)


def test_the_nearest_picture_by_all_distances_is_that_of_training(made: Run, dataset: Dataset) -> None:
    runtime = runtime_of(made)
    module: Any = load_model(made)
    anew = verify_captions._Anew(made, made.recipe, runtime, dataset, "val", Cutter.of(made), module, None)
    bank, points = anew._pixels("train"), anew._pixels("val")
    slow = [min(range(len(bank)), key=lambda row: float(((bank[row] - point) ** 2).sum())) for point in points]
    assert anew.nearest() == slow == nearest_pictures(bank, points).tolist()


def test_equally_near_pictures_are_the_first_of_them(made: Run, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = load_model(made)
    anew = verify_captions._Anew(made, made.recipe, runtime_of(made), dataset, "val", Cutter.of(made), module, None)
    table = {"train": np.array([[9.0, 9.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), "val": np.array([[0.0, 0.0], [0.0, 1.0]])}
    monkeypatch.setattr(verify_captions._Anew, "_pixels", lambda self, split: table[split])
    assert anew.nearest() == [1, 1]
