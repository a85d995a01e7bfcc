"""Verification of a captioning run: its captions and numbers, recomputed twice by paths that training did not take.

1. *From the stored captions*: the tokens of every sample through tokenizer.json and the tokenizers library alone give the captions of the table; the pictures'
   own captions have the hashes that samples/<split>.csv states; every number again by the plain loops of `verify_caption_numbers`, likelihoods by exact sums;
   what each number says of itself is that of `verify_caption_texts`.
2. *From checkpoint and data*: the tokeniser is made anew from the training captions; images are decoded anew and normalised by torchvision's own transforms.
   Captions are found again and have the same tokens; the log probability of each comes from one pass over it, in float64, in which every token of a greedy
   caption must be the likeliest after those before it. Log probabilities of the pictures' own captions are the same bits, or the numbers agree within the
   tolerance. So do those of the baselines, which no file of the run holds: the training captions counted anew, the nearest picture by all distances.

Shared with training, with oracles in the tests: decoding and resizing, the model and its `generate`, how a tokeniser is made from captions. Never imports the
training loop.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy.spatial.distance
import scipy.stats
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torchvision.transforms import v2

from pellucid.data.dataset import Dataset, Split
from pellucid.data.images import resize
from pellucid.errors import MissingError, PellucidError, RunError
from pellucid.models.captioner import Captioner
from pellucid.predictions import CaptionPredictions
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Run, Vocabulary, rounded
from pellucid.runtime import DECIDES_BITS, Runtime, describe
from pellucid.tasks.captioning import MOST_NUMBERS, generation_of, with_tokenizer
from pellucid.verify_caption_numbers import recompute_captions, recompute_distinct, recompute_most_frequent
from pellucid.verify_caption_texts import text_line
from pellucid.verify_features import raw_pixels
from pellucid.verify_numbers import EXACT, Line, number_lines

Progress = Callable[[str, int, int], None]
_T = TypeVar("_T")

LISTED = 5  # samples that a line names
PIXEL_BATCH = 64  # pictures whose raw pixels are taken at once
EQUAL = 1e-9  # of the largest squared length: pictures whose squared distances differ by rounding are equally near
ROWS = 256  # pictures whose distances to all training pictures are made at once
NEAR, REDUCED = 1e-3, 0.1  # nats a token: what another kernel moves in float32, and where the network ran in bf16 or fp16
WIDE = {"cider": 10.0, "length": 10.0}  # numbers that reach further than 1, for which the tolerance is as many times wider
BASELINES, BESIDE = ("most_frequent", "nearest"), ("cider", "bleu_4", "exact_match")  # the baselines and the numbers that each of them has
DRAWS = 1000  # of intervals
STORED, ANEW = "from the stored captions", "from checkpoint and data"


@dataclass(frozen=True)
class Cutter:
    """The tokeniser of a run by the tokenizers library alone. left_out: tokens that stand for no text."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    left_out: frozenset[int]

    @classmethod
    def of(cls, run: Run) -> Cutter:
        """RunError where tokenizer.json is missing or not the tokeniser that data.json describes."""
        file, vocabulary = run.tokenizer_file, run.data.vocabulary
        if vocabulary is None:
            raise RunError(f"{run.path}: data.json does not say what the tokens of captions are; the file was changed")
        try:
            text = file.read_text("utf-8")
            tokenizer, stated = Tokenizer.from_str(text), json.loads(text)
        except Exception as error:  # the library raises bare Exceptions
            raise RunError(f"{file.name}: no tokeniser can be read from it: {error}") from None
        if (size := 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)) != vocabulary.size:
            raise RunError(f"{file.name}: it has {size:,} tokens, data.json says {vocabulary.size:,}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        named = {token["id"] for token in stated["added_tokens"] if token["special"] and token["content"] != stated["model"].get("unk_token")}
        unknown = tokenizer.token_to_id(stated["model"].get("unk_token") or "")
        return cls(tokenizer, vocabulary, frozenset((named | {vocabulary.start, vocabulary.end, vocabulary.pad}) - {unknown}))

    def text(self, tokens: Iterable[int]) -> str:
        """The caption of output tokens: up to the end, without those that stand for no text."""
        kept = []
        for token in tokens:
            if token in (self.vocabulary.end, -1):
                break
            if token not in self.left_out and token < self.vocabulary.size and self.tokenizer.id_to_token(token) is not None:
                kept.append(token)
        return str(self.tokenizer.decode(kept, skip_special_tokens=False)).strip()

    def tokens(self, text: str) -> list[int]:
        """The tokens of a caption, the end included, cut to the longest that is learned."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        del found[self.vocabulary.max_length - 1 :]
        return [*found, self.vocabulary.end]


# ── from the stored captions ──────────────────────────────────────────────────────────────────────────────────


def stored_caption_checks(run: Run, progress: Progress | None = None) -> list[Line]:
    """The lines about tokens, captions, own captions, numbers and intervals of every split that is evaluated."""
    try:
        cutter = Cutter.of(run)
    except RunError as error:
        return [("tokeniser", False, f"MISMATCH {error}")]
    lines: list[Line] = []
    for name in (split for split in run.data.splits if split != "train"):
        try:
            found, own = run.caption_predictions(name), run.captions(name)
        except RunError as error:
            lines.append((f"predictions {name}", False, f"MISMATCH {error}"))
            continue
        if progress is not None:
            progress(f"verifying captions of {name}", 0, len(found.files))
        lines += [_row_line(run, name, found), _token_line(name, found, cutter.vocabulary), _caption_line(run, name, found, cutter)]
        lines += [_reference_line(run, name, own)]
        if list(own) != found.files:
            continue  # told by the lines above: there is nothing to compare captions with
        lines.append(_counted_line(name, found, own, cutter))
        wanted = [m for m in run.record.measurements if m.split == name]
        lines.append(text_line(run, name, wanted, found, generation_of(run.recipe, cutter.vocabulary)))
        wanted = [m for m in wanted if not _is_baseline(m.name)]  # what no file of the run holds is recomputed from the data alone
        numbers, intervals = numbers_of(found, list(own.values()), cutter, draws=DRAWS)
        lines += number_lines(numbers, wanted, name, STORED, EXACT)
        lines.append(_interval_line(wanted, name, intervals, len(own), run.recipe.seed, "numbers", EXACT))
    return lines


def _is_baseline(name: str) -> bool:
    return name.endswith(tuple(f"[{baseline}]" for baseline in BASELINES))


def _listed(what: str, faults: Sequence[str], fine: str) -> Line:
    """One line: `fine` where nothing is wrong, else the first faults."""
    if not faults:
        return what, True, f"ok {what}: {fine}"
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return what, False, f"MISMATCH {what}: {'; '.join(faults[:LISTED])}{more}"


def _row_line(run: Run, name: str, found: CaptionPredictions) -> Line:
    """Each sample of the split has exactly one row."""
    recorded = [file for file, _, _ in run.samples(name)]
    wrong = [new for old, new in zip(recorded, found.files, strict=False) if old != new]
    detail = f"first difference at {wrong[0]}" if wrong else f"{len(found.files)} rows for {len(recorded)} samples"
    faults = [] if recorded == found.files else [f"rows are not those of samples/{name}.csv ({detail})"]
    return _listed(f"{name} predictions", faults, f"one row for each of {len(recorded):,} samples")


def _token_line(name: str, found: CaptionPredictions, vocabulary: Vocabulary) -> Line:
    """Tokens are of the vocabulary, and each caption is ended once or as long as one may be."""
    faults = []
    for file, row in zip(found.files, found.tokens.tolist(), strict=True):
        tokens = [token for token in row if token >= 0]
        odd = [token for token in tokens if token >= vocabulary.size]  # a model that learned little may say the start sign again
        if odd:
            faults.append(f"{file}: {odd[0]} is no token of a caption")
        elif len(tokens) > vocabulary.max_length:
            faults.append(f"{file}: {len(tokens)} tokens, a caption has at most {vocabulary.max_length}")
        elif vocabulary.end in tokens[:-1]:
            faults.append(f"{file}: tokens behind its end")
        elif tokens[-1:] != [vocabulary.end] and len(tokens) < vocabulary.max_length:
            faults.append(f"{file}: its caption has no end")
    return _listed(f"{name} tokens", faults, f"captions of at most {vocabulary.max_length} of {vocabulary.size:,} tokens, ended or cut there")


def _caption_line(run: Run, name: str, found: CaptionPredictions, cutter: Cutter) -> Line:
    """The table for readers says what the tokens say."""
    table, what = run.predictions_file(name).with_suffix(".csv"), f"{name} captions"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        return what, False, f"MISMATCH {what}: predictions/{table.name} cannot be read: {error}"
    if header != ["file", "caption"] or [row[0] for row in rows if row] != found.files or any(len(row) != 2 for row in rows):
        return what, False, f"MISMATCH {what}: the rows of predictions/{table.name} are not file and caption of each sample"
    texts = [cutter.text(row) for row in found.tokens.tolist()]
    faults = [
        f"the caption of {file} is {caption!r} in predictions/{table.name}, its tokens say {text!r}"
        for (file, caption), text in zip(rows, texts, strict=True)
        if caption != text
    ]
    return _listed(what, faults, f"those of the tokens, by tokenizer.json, of {len(texts):,} samples")


def _reference_line(run: Run, name: str, own: Mapping[str, Sequence[str]]) -> Line:
    """The pictures' own captions have the hashes that stand behind the + of samples/<split>.csv."""
    stated = {file: content.partition("+")[2] for file, _, content in run.samples(name)}
    faults = [f"there are none of {file}" for file in stated if file not in own] + [f"{file} is no sample" for file in own if file not in stated]
    faults += [
        f"the captions of {file} are not those of samples/{name}.csv"
        for file, texts in own.items()
        if file in stated and hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() != stated[file]
    ]
    if not faults and list(own) != list(stated):
        faults.append("they are not in the order of the samples")
    count = sum(map(len, own.values()))
    return _listed(f"{name} own captions", faults, f"{count:,} captions of {len(own):,} samples have the hashes of samples/{name}.csv")


def _counted_line(name: str, found: CaptionPredictions, own: Mapping[str, Sequence[str]], cutter: Cutter) -> Line:
    """The loss is over as many tokens as the pictures' own captions have."""
    faults = [
        f"{file}: {stored} tokens counted, its own captions have {count}"
        for (file, texts), stored in zip(own.items(), found.counted.tolist(), strict=True)
        if stored != (count := sum(len(cutter.tokens(text)) for text in texts))
    ]
    return _listed(f"{name} counted tokens", faults, f"{int(found.counted.sum()):,} of the samples' own captions, their ends included")


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def numbers_of(
    found: CaptionPredictions, references: Sequence[Sequence[str]], cutter: Cutter, *, draws: int = 0
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:  # fmt: skip
    """({name: number}, {name: interval}) of all that captions and likelihoods say of a split, but for the baselines. draws: of the intervals, 0: none."""
    candidates = [cutter.text(row) for row in found.tokens.tolist()]
    again = recompute_captions(candidates, references, draws=draws)
    counted = math.fsum(found.counted.tolist())
    numbers = {"loss": math.fsum(found.loss.tolist()) / counted, "token_accuracy": math.fsum(found.correct.tolist()) / counted} if counted else {}
    return _named(again.values, len(candidates)) | numbers | {"distinct": recompute_distinct(candidates)}, _named(again.intervals, len(candidates))


def _named(numbers: Mapping[str, _T], n: int) -> dict[str, _T]:
    """The same by the names of measurements; without CIDEr-D of a single picture, all of whose n-grams weigh nothing."""
    return {"cider" if name == "cider_d" else name: value for name, value in numbers.items() if name != "cider_d" or n > 1}


def _beside(candidates: Sequence[str], references: Sequence[Sequence[str]], baseline: str) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """({name[baseline]: number}, {name[baseline]: interval}) of captions that need no network."""
    again = recompute_captions(candidates, references)
    values, intervals = _named(again.values, len(candidates)), _named(again.intervals, len(candidates))
    ours = {name: f"{name}[{baseline}]" for name in BESIDE if name in values}
    return {ours[name]: values[name] for name in ours}, {ours[name]: intervals[name] for name in ours}


def _interval_line(
    measurements: Sequence[Measurement], split: str, intervals: Mapping[str, tuple[float, float]], n: int, seed: int, what: str, tolerance: float
) -> Line:
    """n, seed and intervals: exact matches have SciPy's Wilson interval, likelihoods and the share of different captions none, the others a bootstrap."""
    faults = []
    for m in measurements:
        if m.n != n or m.seed != seed:
            faults.append(f"{m.key}: n {m.n}, seed {m.seed} reported; n {n}, seed {seed} recomputed")
        exact = intervals.get(m.name) if n > 1 else None
        if m.name.startswith("exact_match") and n > 1:
            matched = scipy.stats.binomtest(min(n, max(0, round(m.value * n))), n).proportion_ci(confidence_level=0.95, method="wilson")
            exact = (float(matched.low), float(matched.high))
        if (exact is None) != (m.interval is None):
            faults.append(f"{m.key}: {'an interval where none belongs' if exact is None else 'no interval'}")
        elif exact is not None and m.interval is not None and max(abs(a - b) for a, b in zip(exact, m.interval, strict=True)) > tolerance * _width(m.name):
            reported, again = (f"{rounded(low, m.unit)} to {rounded(high, m.unit)}" for low, high in (m.interval, exact))
            faults.append(f"{m.key}: interval {reported} reported, {again} recomputed")
    return _listed(f"{split} {what}", faults, "n, seed and intervals recomputed")


# ── from checkpoint and data ──────────────────────────────────────────────────────────────────────────────────


def anew_caption_checks(
    run: Run, dataset: Dataset, module: nn.Module, runtime: Runtime, tolerance: float, progress: Progress | None
) -> tuple[list[Line], list[float | None]]:
    """Lines about the run's tokeniser, and about its model on images decoded now; and of each split the share of pictures with other bits than in the run.

    0.0 is bit-equal: same tokens, same log probabilities of own captions; None where the run has nothing to compare with. Splits whose samples are not those of
    the run are left out: the data check names them. Without the training split neither tokeniser nor baselines are made anew.
    """
    assert isinstance(module, Captioner)
    try:
        cutter = Cutter.of(run)
    except RunError:
        return [], []  # told from the stored captions
    module.eval()
    lines = [_tokeniser_line(run, dataset)] if "train" in dataset.splits else []
    shares: list[float | None] = []
    for name in run.prediction_splits:
        if name not in dataset.splits:
            continue
        anew = _Anew(run, run.recipe, runtime, dataset, name, cutter, module, progress)
        stored = _stored(run, name)
        found, again = anew.predictions(stored.tokens if stored is not None else None)
        wanted = [m for m in run.record.measurements if m.split == name]
        own = [m for m in wanted if not _is_baseline(m.name)]
        lines += _wide_lines(numbers_of(found, anew.references, cutter)[0], own, name, tolerance)
        lines += _baseline_lines(anew, [m for m in wanted if _is_baseline(m.name)], tolerance)
        shares.append(None if stored is None else _share_of_others(stored, found))
        if stored is not None:
            lines += [_same_line(anew, stored, found), *_score_lines(anew, stored, again), _likelihood_line(name, stored, found)]
    return lines, shares


def _stored(run: Run, name: str) -> CaptionPredictions | None:
    """The predictions of the run; None where they cannot be read, or are no captions of its samples, which is told from the stored captions."""
    try:
        found = run.caption_predictions(name)
    except RunError:
        return None
    vocabulary = run.data.vocabulary
    of_samples = found.files == [file for file, _, _ in run.samples(name)] and found.tokens.shape[1] > 0
    return found if of_samples and vocabulary is not None and (found.tokens[:, 0] >= 0).all() and found.tokens.max() < vocabulary.size else None


def _width(name: str) -> float:
    return WIDE.get(name.partition("[")[0], 1.0)


def _wide_lines(numbers: Mapping[str, float], measurements: Sequence[Measurement], split: str, tolerance: float) -> list[Line]:
    """Lines of numbers made anew, each within the tolerance, of those that reach further than 1 as many times the tolerance."""
    lines: list[Line] = []
    for width in (1.0, *dict.fromkeys(WIDE.values())):
        some = {name: value for name, value in numbers.items() if _width(name) == width}
        said = [m for m in measurements if _width(m.name) == width]
        lines += number_lines(some, said, split, ANEW, max(tolerance * width, EXACT))
    return lines


def _tokeniser_line(run: Run, dataset: Dataset) -> Line:
    """The tokeniser that the recipe gives of the training captions is that of the run."""
    file = run.tokenizer_file.name
    try:
        made = with_tokenizer(run.recipe, dataset).tokenizer
    except MissingError as error:
        return "tokeniser", True, f"tokeniser: the one that the recipe names is not here, so {file} is not compared with it: {error}"
    except PellucidError as error:
        return "tokeniser", False, f"MISMATCH tokeniser: cannot be made anew from the training captions: {error}"
    assert made is not None
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / file)
        again, stored = (json.loads(path.read_text("utf-8")) for path in (Path(folder) / file, run.tokenizer_file))
    old, new = (Tokenizer.from_str(json.dumps(stated)).get_vocab(with_added_tokens=True) for stated in (stored, again))
    faults = [f"{token!r} is {old.get(token, 'missing')} in {file}, of the training captions {new.get(token, 'missing')}"
              for token in sorted(old.keys() | new.keys()) if old.get(token) != new.get(token)]  # fmt: skip
    faults += [f"{part} is not as made anew" for part in again if part != "model" and again[part] != stored.get(part)]
    faults += [] if faults or again == stored else [f"the model in {file} is not as made anew"]
    stated, vocabulary = run.data.vocabulary, made.vocabulary
    faults += [f"{f.name} of data.json is {getattr(stated, f.name)!r}, of the training captions {getattr(vocabulary, f.name)!r}"
               for f in fields(vocabulary) if getattr(stated, f.name, None) != getattr(vocabulary, f.name)]  # fmt: skip
    return _listed("tokeniser", faults, f"{len(new):,} tokens, the same as made anew from the training captions")


def _baseline_lines(anew: _Anew, measurements: Sequence[Measurement], tolerance: float) -> list[Line]:
    """Numbers and intervals of the baselines; none where the training pictures are not those of the run."""
    name, references = anew.name, anew.references
    if "train" not in anew.dataset.splits:
        return []
    train = anew.texts("train")
    common = recompute_most_frequent([text for texts in train for text in texts])
    near = [train[row][0] for row in anew.nearest()]
    numbers: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for baseline, captions in (("most_frequent", [common] * len(references)), ("nearest", near)):
        values, bounds = _beside(captions, references, baseline)
        numbers |= values
        intervals |= bounds
    lines = _wide_lines(numbers, measurements, name, tolerance)
    return [*lines, _interval_line(measurements, name, intervals, len(references), anew.recipe.seed, "baselines", max(tolerance, EXACT))]


@dataclass(frozen=True)
class Given:
    """What a model says of captions that are given. score: (n,) float64, log probability of each; short: (n,) float64 nats, at least 0, by which the log
    probability of one of its tokens falls short of that of the likeliest in its place, at most."""

    score: np.ndarray
    short: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Given]) -> Given:
        return cls(np.concatenate([part.score for part in parts]), np.concatenate([part.short for part in parts]))


@dataclass(frozen=True)
class _Anew:
    """One split of a run, decoded now, in the batches of the run's evaluation."""

    run: Run
    recipe: Recipe
    runtime: Runtime
    dataset: Dataset
    name: str
    cutter: Cutter
    module: Captioner
    progress: Progress | None

    @property
    def split(self) -> Split:
        return self.dataset.splits[self.name]

    def texts(self, split: str) -> list[tuple[str, ...]]:
        """The captions of each sample of a split, as the data has them now."""
        captions = self.dataset.splits[split].captions
        assert captions is not None, "the data set of a captioning has captions"
        return list(captions.texts)

    @cached_property
    def references(self) -> list[tuple[str, ...]]:
        return self.texts(self.name)

    @torch.inference_mode()
    def predictions(self, given: np.ndarray | None) -> tuple[CaptionPredictions, Given | None]:
        """(what the run keeps of the split, made anew; what the model says of the captions (n, T) that are `given`)."""
        size, generation = max(1, min(self.run.record.evaluation_batch_size, len(self.split))), generation_of(self.recipe, self.cutter.vocabulary)
        parts: list[CaptionPredictions] = []
        said: list[Given] = []
        for start in range(0, len(self.split), size):
            rows = range(start, min(start + size, len(self.split)))
            images = self._inputs(self.name, rows).to(self.runtime.device).contiguous(memory_format=self.runtime.memory_format)
            with self.runtime.autocast():
                generated = self.module.generate(images, generation)
                memory = self.module.encode(images)
            own = self._likelihoods(memory, [[self.cutter.tokens(text) for text in self.references[row]] for row in rows])
            parts.append(_table([self.split.names[row] for row in rows], generated.tokens.cpu().numpy(), generated.scores.cpu().numpy(), own))
            if given is not None:
                said.append(self._given(memory, given[rows.start : rows.stop]))
            self._tell(f"verifying captions of {self.name}", rows.stop, len(self.split))
        return CaptionPredictions.joined(parts, np.arange(len(self.split))), Given.joined(said) if given is not None else None

    def _inputs(self, split: str, rows: Iterable[int]) -> Tensor:
        """(B, 3, H, W) float32 of pictures that are decoded now, cropped and normalised by torchvision."""
        d, data, images = self.recipe.data, self.run.data, self.dataset.splits[split]
        prepare = v2.Compose([v2.CenterCrop(list(d.size)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
        arrays = [np.array(resize(images.open(row), d.size, d.fit, d.resize_size, d.interpolation)) for row in rows]
        return torch.stack([prepare(torch.from_numpy(array).permute(2, 0, 1)) for array in arrays])

    def _logits(self, memory: Tensor, captions: Sequence[Sequence[int]], owners: Sequence[int]) -> Tensor:
        """(R, T, V) float32, [r, t] about token t of caption r, each read behind the start and the tokens before it; memory row owners[r] is its picture."""
        vocabulary = self.cutter.vocabulary
        read = [[vocabulary.start, *tokens[:-1]] for tokens in captions]
        width = max(map(len, read))
        padded = torch.tensor([[*tokens, *[vocabulary.pad] * (width - len(tokens))] for tokens in read])
        with self.runtime.autocast():
            return self.module.decode(memory, padded.to(self.runtime.device), torch.tensor(owners, device=self.runtime.device)).float()

    def _likelihoods(self, memory: Tensor, captions: Sequence[Sequence[Sequence[int]]]) -> list[np.ndarray]:
        """For each picture (t, 2) float32 of the tokens of all its captions: log probability, and 1 where it is the likeliest.

        As many captions at once as training takes: other shapes would give other bits.
        """
        rows = [(owner, tokens) for owner, own in enumerate(captions) for tokens in own]
        at_once = max(1, MOST_NUMBERS // (max(len(tokens) for _, tokens in rows) * self.cutter.vocabulary.size))
        found: list[list[list[float]]] = [[] for _ in captions]
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            logits = self._logits(memory, [tokens for _, tokens in part], [owner for owner, _ in part])
            log_p, likeliest = logits.log_softmax(-1).cpu().numpy(), logits.argmax(-1).cpu().numpy()
            for place, (owner, tokens) in enumerate(part):
                found[owner] += [[float(log_p[place, t, token]), float(likeliest[place, t] == token)] for t, token in enumerate(tokens)]
        return [np.array(own, np.float32) for own in found]

    def _given(self, memory: Tensor, tokens: np.ndarray) -> Given:
        """What the model says of captions (B, T), one for each row of `memory`."""
        captions = [[token for token in row if token >= 0] for row in tokens.tolist()]
        scores, short = [], []
        for i, caption in enumerate(captions):
            log_p = self._logits(memory, [caption], [i])[0].double().log_softmax(-1).cpu()
            own = log_p[torch.arange(len(caption)), torch.tensor(caption)]
            scores.append(math.fsum(own.tolist()))
            if self.cutter.vocabulary.unknown is not None:  # is never taken
                log_p[:, self.cutter.vocabulary.unknown] = -math.inf
            short.append(float((log_p.max(-1).values - own).max()))
        return Given(np.array(scores), np.array(short))

    def nearest(self) -> list[int]:
        """For each picture the row of the training picture with the least distance of raw pixels, the first of equal ones."""
        bank, points = self._pixels("train"), self._pixels(self.name)
        found: list[int] = []
        for start in range(0, len(points), ROWS):
            squared = scipy.spatial.distance.cdist(points[start : start + ROWS], bank, "sqeuclidean")
            least = squared.min(axis=1, keepdims=True)
            found += np.argmax(squared <= least + EQUAL * max(1.0, float(np.square(bank).sum(axis=1).max())), axis=1).tolist()
        return found

    def _pixels(self, split: str) -> np.ndarray:
        """(n, 768) float64 raw pixels of a split."""
        total, parts = len(self.dataset.splits[split]), []
        for start in range(0, total, PIXEL_BATCH):
            rows = range(start, min(start + PIXEL_BATCH, total))
            parts.append(raw_pixels(self._inputs(split, rows)).astype(np.float64))
            self._tell(f"verifying the nearest pictures of {self.name}", rows.stop, total)
        return np.concatenate(parts)

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


def _table(files: list[str], tokens: np.ndarray, scores: np.ndarray, own: Sequence[np.ndarray]) -> CaptionPredictions:
    """The table of some pictures, from likelihoods (t, 2) of each."""
    digests = [hashlib.blake2b(np.ascontiguousarray(each[:, 0]).tobytes(), digest_size=16).digest() for each in own]
    counted, correct = [len(each) for each in own], [int(each[:, 1].sum()) for each in own]
    loss = [-math.fsum(each[:, 0].tolist()) for each in own]
    return CaptionPredictions(
        files, tokens.astype(np.int64), scores.astype(np.float64), np.array(loss, np.float64), np.array(counted, np.int64), np.array(correct, np.int64),
        np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
    )  # fmt: skip


def _captions_of(found: CaptionPredictions) -> list[list[int]]:
    """The tokens of each caption, without what stands behind the end."""
    return [[token for token in row if token >= 0] for row in found.tokens.tolist()]


def _same_machine(run: Run, runtime: Runtime) -> bool:
    """Whether this machine should give the bits of the run's."""
    now, then = describe(runtime), run.environment
    return all(now[key] == then.get(key) for key in DECIDES_BITS)


def _share_of_others(stored: CaptionPredictions, found: CaptionPredictions) -> float:
    """Share of pictures with another caption or other log probabilities of their own captions."""
    other = [a != b for a, b in zip(_captions_of(stored), _captions_of(found), strict=True)]
    return float((np.array(other, bool) | (stored.digests != found.digests).any(axis=1)).mean())


def _same_line(anew: _Anew, stored: CaptionPredictions, found: CaptionPredictions) -> Line:
    """Captions found again have the same tokens: all of them where the machine gives the same bits, elsewhere their share is stated."""
    name, n, what = anew.name, len(found.files), f"{anew.name} captions {ANEW}"
    other = [i for i, (a, b) in enumerate(zip(_captions_of(stored), _captions_of(found), strict=True)) if a != b]
    if not other:
        return what, True, f"ok {what}: the same tokens for each of {n:,} pictures"
    if not _same_machine(anew.run, anew.runtime) and (stored.digests != found.digests).any():
        return (
            what,
            True,
            f"ok {what}: {len(other):,} of {n:,} pictures ({len(other) / n:.1%}) have another caption on this machine, {found.files[other[0]]} the first",
        )
    texts = ((anew.cutter.text(table.tokens[i].tolist()) for table in (stored, found)) for i in other)
    faults = [f"of {found.files[i]} the run holds {old!r}, the model says {new!r}" for i, (old, new) in zip(other, texts, strict=True)]
    return _listed(what, faults, name)


def _score_lines(anew: _Anew, stored: CaptionPredictions, again: Given | None) -> list[Line]:
    """The log probability of each caption of the run, from one pass over it; and that a greedy one has the likeliest token each time."""
    assert again is not None
    n, near = len(stored.files), REDUCED if anew.runtime.precision in ("bf16", "fp16") else NEAR
    lengths = np.array([max(1, len(tokens)) for tokens in _captions_of(stored)])
    apart = np.abs(stored.score - again.score)
    faults = [f"of {stored.files[i]} {stored.score[i]:.4f} nats reported, {again.score[i]:.4f} recomputed" for i in np.flatnonzero(apart > near * lengths)]
    largest = f"largest difference {apart.max(initial=0.0):.2g} nats"
    lines = [_listed(f"{anew.name} scores", faults, f"log probabilities of {n:,} captions from one pass over each, {largest}")]
    generation = anew.recipe.generation
    assert generation is not None
    if generation.num_beams == 1 and not generation.no_repeat_ngram_size and not generation.min_length:
        faults = [f"of {stored.files[i]} a token is {again.short[i]:.2g} nats less likely than another" for i in np.flatnonzero(again.short > near)]
        lines.append(_listed(f"{anew.name} greedy captions", faults, f"every token of {n:,} captions is the likeliest after those before it"))
    return lines


def _likelihood_line(name: str, stored: CaptionPredictions, found: CaptionPredictions) -> Line:
    """How near log probabilities of own captions are to those of the run; the loss over them is a number of its own."""
    equal = bool((stored.digests == found.digests).all())
    apart = np.abs(stored.loss - found.loss) / np.maximum(1, found.counted)
    said = "the same bits" if equal else f"largest difference of a picture's mean {apart.max(initial=0.0):.2g} nats"
    return f"{name} likelihoods", True, f"ok {name} log probabilities of own captions {ANEW}: {said}"
