"""Captioning as a whole: the loss is that of all tokens of the batch, numbers are those of the captions, bits stay."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gradients import apart, flat, reader_of, stage_of, training_of, window_gradients, windows_of
from pellucid import recipe as recipes
from pellucid import step, trial
from pellucid.data.loader import Window, ordered_windows, pack_images
from pellucid.data.scenes import draw
from pellucid.distributed import ALONE
from pellucid.errors import DivergedError, InterruptedError
from pellucid.losses import PADDING, token_cross_entropy
from pellucid.memory import forward_cost, training_inputs
from pellucid.models import train_mode
from pellucid.models.captioner import Captioner
from pellucid.models.weights import read_weights
from pellucid.predictions import CaptionPredictions
from pellucid.prepare import Training
from pellucid.results import predict_split
from pellucid.run import Run
from pellucid.tasks.caption_numbers import BASELINES, NUMBERS, measure_captions
from pellucid.tasks.captioning import Captioning, TokenTable, nearest_pictures
from pellucid.train import resume, train

MODEL = "{name: pellucid/captioner, encoder: timm/test_vit, decoder: {depth: 1, embed_dim: 32, num_heads: 2, drop_rate: 0.0}}"
SMALL = f"""\
task: captioning
data: {{source: scenes, train: 24, val: 8, image_size: 32}}
model: {MODEL}
text: {{max_length: 16}}
words: {{drawn: 1}}
train:
  batch_size: 8
  threads: 1
  phases: [{{epochs: 2, optimizer: {{name: adamw, lr: 2.0e-3}}}}]
"""
DROPOUT = "model.decoder.drop_rate=0.1"
SGD = "train.phases=[{epochs: 1, optimizer: {name: sgd, lr: 0.05}, schedule: {name: constant}}]"
OOM = torch.OutOfMemoryError("injected")
WORDS = ("a", "dog", "runs", "over", "green", "grass", "while", "two", "children", "watch", "it", "from", "the", "old", "bench")
COUNTS = (3, 1, 2, 1, 5, 2, 1, 3, 1, 2)  # captions of each of ten training pictures


def spoken(i: int, k: int) -> str:
    """Caption k of picture i: 1 to 6 words."""
    return " ".join(WORDS[(3 * i + 5 * k + j) % len(WORDS)] for j in range(1 + (i + 2 * k) % 6))


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe of drawn pictures with captions in a table, one to five each; batches of 4, 4 and 2."""
    folder = tmp_path_factory.mktemp("captions")
    rows = [("split", "filename", "caption")]
    for split, count in (("train", 10), ("val", 5)):
        for i in range(count):
            scene = draw(i, split=split, image_size=(32, 32))
            Image.fromarray(scene.image).save(folder / f"{split}{i}.png")
            rows += [(split, f"{split}{i}.png", spoken(i + (split == "val"), k)) for k in range(COUNTS[i])]
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = folder / "captions.csv"
    return SMALL.replace("source: scenes, train: 24, val: 8", f"source: captions, train: {table}, val: {table}").replace("batch_size: 8", "batch_size: 4")


@pytest.fixture(scope="module")
def training(captions: str, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training of `captions` before its first step, whose weights are three times what is drawn, so that words and pictures make a difference; read only."""
    t = training_of(captions, tmp_path_factory.mktemp("training") / "run", [], ALONE)
    with torch.no_grad():
        for parameter in t.module.parameters():
            parameter.mul_(3.0)
    return t


@pytest.fixture(scope="module")
def whole(captions: str, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The gradient of the first window of `captions` in one pack."""
    return gradient_of(captions, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SMALL with dropout; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "r.yaml").write_text(SMALL)
    return train(folder / "r.yaml", overrides=[DROPOUT], out=folder / "run", quiet=True, figures=False).path


def task_of(t: Training) -> Captioning:
    assert isinstance(t.task, Captioning)
    return t.task


def captioner_of(t: Training) -> Captioner:
    assert isinstance(t.module, Captioner)
    return t.module


# ── the loss of tokens ────────────────────────────────────────────────────────────────────────────────────────


def defined_loss(logits: Tensor, target: int, smoothing: float) -> Tensor:
    """() float64 -sum_v q_v log p_v of one token, with q = (1 - eps) onehot + eps / V (Szegedy et al. 2016, eq. 7)."""
    log_p = [value - torch.logsumexp(logits, 0) for value in logits]
    return -sum(((1 - smoothing) * (v == target) + smoothing / len(logits)) * log_p[v] for v in range(len(logits)))  # type: ignore[return-value]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_sum_over_tokens_that_are_there(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 4, 7, generator=generator)).requires_grad_()
    targets = torch.randint(0, 7, (3, 4), generator=generator)
    targets[1, 2:], targets[2] = PADDING, PADDING
    twin = logits.detach().double().requires_grad_()
    expected = sum(defined_loss(twin[r, t], int(targets[r, t]), smoothing) for r in range(3) for t in range(4) if targets[r, t] != PADDING)
    found = token_cross_entropy(logits, targets, label_smoothing=smoothing)
    assert found.detach().item() == pytest.approx(expected.detach().item(), rel=1e-6)  # type: ignore[union-attr]
    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[union-attr]
    assert logits.grad is not None
    assert twin.grad is not None
    assert apart(logits.grad.double(), twin.grad) < 1e-6
    assert not logits.grad[2].any()


def test_a_pack_of_padding_alone_costs_nothing_and_moves_nothing() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    found = token_cross_entropy(logits, torch.full((2, 3), PADDING), label_smoothing=0.1)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.detach().item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_tables_of_tokens_are_those_of_a_plain_loop(training: Training) -> None:
    tokenizer, own = training.dataset.tokenizer, training.dataset.splits["train"].captions
    assert tokenizer is not None
    assert own is not None
    table, v = TokenTable(own, tokenizer), tokenizer.vocabulary
    every = [(i, tokenizer.encode(text)) for i, texts in enumerate(own.texts) for text in texts]
    assert len(every) == sum(COUNTS)
    rows = np.array([4, 0, 7])
    chosen, owners = table.all_of(rows)
    expected = [(place, number) for place, row in enumerate(rows) for number, (i, _) in enumerate(every) if i == row]
    assert list(zip(owners.tolist(), chosen.tolist(), strict=True)) == expected
    assert table.lengths(chosen).tolist() == [len(every[number][1]) for _, number in expected]
    longest = max(len(every[number][1]) for _, number in expected)
    tokens = table.padded(chosen)
    assert tokens.tolist() == [[v.start, *every[n][1], *[v.pad] * (longest - len(every[n][1]))] for _, n in expected]
    assert table.targets(chosen, tokens).tolist() == [[*every[n][1], *[PADDING] * (longest - len(every[n][1]))] for _, n in expected]
    nothing, none = table.all_of(np.empty(0, np.int64))
    assert (len(nothing), len(none), table.padded(nothing).shape) == (0, 0, (0, 2))


# ── the gradient ──────────────────────────────────────────────────────────────────────────────────────────────


def learned(t: Training, window: Window) -> list[tuple[int, list[int]]]:
    """(place in the window, tokens with their end) of each caption that a window learns, from the recipe's words alone."""
    own, tokenizer = t.dataset.splits["train"].captions, t.dataset.tokenizer
    assert own is not None
    assert tokenizer is not None
    assert t.recipe.text is not None
    encoded = [[tokenizer.encode(text) for text in own.texts[row]] for row in window.rows.tolist()]
    if t.recipe.text.captions == "one":
        table, (chosen, _) = task_of(t)._tables["train"], task_of(t)._chosen(window, 0, len(window))
        return [(i, encoded[i][int(number - table.first[row])]) for i, (number, row) in enumerate(zip(chosen, window.rows, strict=True))]
    return [(i, tokens) for i, several in enumerate(encoded) for tokens in several]


def defined_gradient(t: Training, window: Window) -> Tensor:
    """d/dw of the mean loss of a token over the window, in float64: picture by picture, caption by caption, token by token from those before it."""
    twin = copy.deepcopy(captioner_of(t)).double().train()
    stored = [t.pixels["train"].image(int(row)) for row in window.rows]
    images = task_of(t)._augment(pack_images(stored), samples=window.draws, epoch=window.epoch).double()
    losses = []
    for place, tokens in learned(t, window):
        memory = twin.encode(images[place : place + 1])
        for position, token in enumerate(tokens):
            logits = twin.decode(memory, torch.tensor([[twin.start, *tokens[:position]]]))
            losses.append(defined_loss(logits[0, -1], token, t.recipe.loss.label_smoothing))
    (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
    return flat(list(twin.parameters()))


@pytest.mark.parametrize("taught", ["all", "one"])
def test_the_gradient_is_that_of_all_tokens_however_the_batch_is_cut(captions: str, tmp_path: Path, taught: str) -> None:
    changes = [f"text.captions={taught}", "loss.label_smoothing=0.1", "augment={random_crop: 2}"]
    t = training_of(captions, tmp_path / "twin", changes, ALONE)
    windows = windows_of(t)[1:]  # 4 and 2
    expected = [defined_gradient(t, window) for window in windows]
    found = window_gradients(captions, tmp_path / "loop", [*changes, "train.micro_batch_size=3"])[1:]
    assert max(apart(a, b) for a, b in zip(found, expected, strict=True)) < 1e-6
    weights = [t.task.window_weight(window) for window in windows]
    assert weights == [sum(len(tokens) for _, tokens in learned(t, window)) for window in windows]
    assert weights[0] != 2 * weights[1], "windows differ in their tokens, not in their pictures alone"


def test_the_loss_of_a_window_is_the_same_sum_however_it_is_cut(training: Training) -> None:
    (window, *_) = windows_of(training)
    sums = []
    for micro in (4, 3, 1):
        packs = [training.task.loss(training.module, pack) for pack in reader_of(training).packs(window, micro)]
        sums.append((sum(float(pack.loss.detach()) for pack in packs), sum(int(pack.correct) for pack in packs), sum(pack.counted for pack in packs)))  # type: ignore[arg-type]
    assert sums[1] == pytest.approx(sums[0], rel=1e-6)
    assert sums[2] == pytest.approx(sums[0], rel=1e-6)
    assert sums[0][2] == training.task.window_weight(window)


def test_a_long_caption_beside_it_changes_no_loss_of_a_caption(training: Training) -> None:
    module = captioner_of(training).eval()
    table = task_of(training)._tables["train"]
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    chosen = np.argsort(table.lengths(np.arange(len(table.ends) - 1)), kind="stable")
    together = table.padded(chosen)
    targets = table.targets(chosen, together)
    logits = module(images, together[:, :-1], torch.zeros(len(chosen), dtype=torch.int64)).detach()
    for row, caption in enumerate(chosen):
        alone = table.padded(chosen[row : row + 1])
        own = token_cross_entropy(module(images, alone[:, :-1]).detach(), table.targets(chosen[row : row + 1], alone), label_smoothing=0.0)
        beside = token_cross_entropy(logits[row : row + 1], targets[row : row + 1], label_smoothing=0.0)
        assert float(beside) == pytest.approx(float(own), rel=1e-5), caption
    assert together.shape[1] > 1 + int(table.lengths(chosen[:1])[0]), "the shortest is padded"


def drawing_one(t: Training, *, seed: int) -> Captioning:
    """The task of a training, with one caption a picture and another seed."""
    return Captioning(recipes.override(t.recipe, ["text.captions=one", f"seed={seed}"]), t.dataset, t.runtime, t.mean, t.std)


def test_one_caption_of_a_picture_is_drawn_by_seed_epoch_and_sample_alone(training: Training) -> None:
    task, other = drawing_one(training, seed=1), drawing_one(training, seed=2)
    table = task._tables["train"]
    rows = np.arange(10)
    drawn = []
    for epoch in range(400):
        window = Window(epoch, 0, rows, rows)
        chosen, owners = task._chosen(window, 0, 10)
        assert owners.tolist() == rows.tolist()
        drawn.append(chosen)
    backwards = Window(7, 3, rows[::-1].copy(), rows[::-1].copy())
    assert task._chosen(backwards, 0, 10)[0][::-1].tolist() == drawn[7].tolist(), "wherever the sample stands"
    assert task._chosen(Window(7, 0, rows, rows), 4, 6)[0].tolist() == drawn[7][4:6].tolist(), "however the window is cut"
    for row, several in enumerate(COUNTS):
        counted = Counter((int(chosen[row]) - int(table.first[row])) for chosen in drawn)
        assert set(counted) == set(range(several))
        assert max(abs(count - 400 / several) for count in counted.values()) < 4 * math.sqrt(400 / several)
    assert other._chosen(Window(7, 0, rows, rows), 0, 10)[0].tolist() != drawn[7].tolist()


# ── what follows a step ───────────────────────────────────────────────────────────────────────────────────────


def take_steps(t: Training) -> Iterator[None]:
    """One step after the other of the first epoch."""
    stage, reader = stage_of(t), reader_of(t)
    step.make_room(t, stage)
    train_mode(t.module, t.frozen)
    for window in windows_of(t):
        step.take_step(t, stage, reader, window)
        t.at.step += 1
        yield


def test_the_moving_average_of_tied_weights_moves_once(captions: str, tmp_path: Path) -> None:
    t = training_of(captions, tmp_path / "run", ["train.ema={decay: 0.5}", "train.phases.0.optimizer.lr=0.1"], ALONE)
    assert t.average is not None
    shared = Counter(tensor.data_ptr() for tensor in t.average.state_dict().values())
    assert max(shared.values()) == 2, "input and output embeddings are one"
    expected = {name: value.double().clone() for name, value in t.module.state_dict().items()}
    for number, _ in enumerate(take_steps(t)):
        decay = min(0.5, (1 + number) / (10 + number))
        for name, value in t.module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in t.average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_frozen_backbone_keeps_its_bits_while_the_decoder_learns(captions: str, tmp_path: Path) -> None:
    t = training_of(captions, tmp_path / "run", ["model.freeze=backbone"], ALONE)
    before = {name: value.clone() for name, value in t.module.state_dict().items()}
    for _ in take_steps(t):
        pass
    moved = {name for name, value in t.module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith(f"{t.built.backbone}.")]
    assert any(name.startswith(f"{t.built.backbone}.") for name in before)
    assert any("crossattention" in name for name in moved)


def gradient_of(text: str, folder: Path, *changes: str) -> Tensor:
    return window_gradients(text, folder, changes)[0]


def test_lower_precision_and_recomputed_blocks_give_the_gradient(captions: str, whole: Tensor, tmp_path: Path) -> None:
    assert apart(gradient_of(captions, tmp_path / "again", "train.activation_checkpointing=true"), whole) < 1e-6
    rounded = apart(gradient_of(captions, tmp_path / "bf16", "train.precision=bf16"), whole)
    assert 1e-5 < rounded < 0.05


def failing(monkeypatch: pytest.MonkeyPatch, *, most: int) -> None:
    """From now on packs of more pictures find no room."""
    real = Captioning.loss

    def loss(self: Captioning, module: nn.Module, pack: Any) -> Any:
        if len(pack) > most:
            raise OOM
        return real(self, module, pack)

    monkeypatch.setattr(Captioning, "loss", loss)


def test_memory_that_runs_out_in_the_trial_shrinks_the_micro_batch_and_moves_nothing(captions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = training_of(captions, tmp_path / "run", [], ALONE)
    before = {name: value.clone() for name, value in t.module.state_dict().items()}
    monkeypatch.setattr(trial, "_could_be_close", lambda t: True)
    failing(monkeypatch, most=1)
    trial.find_micro_batch(t, windows_of(t)[0])
    assert (t.micro, t.record.evaluation_batch_size) == (1, 1)
    assert any(note.startswith("the micro-batch is 1: a trial step with 4 images ran out of memory; the batch stays 4.") for note in t.record.notes)
    assert all(torch.equal(value, before[name]) for name, value in t.module.state_dict().items())


def test_memory_that_runs_out_in_a_step_keeps_its_gradient(captions: str, whole: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, most=2)
    assert apart(gradient_of(captions, tmp_path / "short"), whole) < 1e-6


def test_the_memory_of_a_picture_is_what_autograd_keeps_of_it(training: Training) -> None:
    """Counted on the meta device beside two pictures on this one, with as many captions of as many tokens."""
    t, own, kept = training, {p.untyped_storage().data_ptr() for p in training.module.parameters()}, dict[int, int]()
    inputs = training_inputs(t.module, t.recipe, torch.zeros(2, 3, 32, 32))
    assert [part.shape for part in inputs] == [(2, 3, 32, 32), (2 * max(COUNTS), 7), (2 * max(COUNTS),)], "of the most captions, with 6 words and the end"

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = t.module(*inputs)
    counted = forward_cost(t.module, t.recipe, [])[0]
    assert counted == t.activations
    assert counted == pytest.approx(sum(kept.values()) / 2 + 4 * output.numel(), rel=0.1)


# ── predictions and numbers ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def found(training: Training) -> CaptionPredictions:
    """What the untrained captioner says of the five pictures of val, two at a time."""
    split = training.dataset.splits["val"]
    return task_of(training).predictions(training.module, split, training.pixels["val"], ordered_windows(5, 2), workers=0)


def log_probabilities(t: Training, row: int, tokens: Sequence[int], never: int | None = None) -> list[tuple[float, bool]]:
    """(log probability in float64, whether it is the likeliest but for `never`) of each token after those before it, for a picture of val."""
    module = captioner_of(t)
    twin = copy.deepcopy(module).double().eval()
    pixels = torch.from_numpy(np.array(t.pixels["val"].image(row))).permute(2, 0, 1)[None].double() / 255
    image = (pixels - torch.tensor(t.mean).view(3, 1, 1)) / torch.tensor(t.std).view(3, 1, 1)
    seen = []
    for position, token in enumerate(tokens):
        logits = twin(image.double(), torch.tensor([[module.start, *tokens[:position]]]))[0, -1].detach()
        likeliest = max((v for v in range(len(logits)) if v != never), key=lambda v: float(logits[v]))
        seen.append((float(logits.log_softmax(0)[token]), likeliest == token))
    return seen


def test_likelihoods_are_those_of_each_token_after_those_before_it(training: Training, found: CaptionPredictions) -> None:
    own, tokenizer = training.dataset.splits["val"].captions, training.dataset.tokenizer
    assert own is not None
    assert tokenizer is not None
    for row in range(5):
        seen = [pair for text in own.texts[row] for pair in log_probabilities(training, row, tokenizer.encode(text))]
        assert found.loss[row] == pytest.approx(-sum(value for value, _ in seen), rel=1e-5)
        assert (found.counted[row], found.correct[row]) == (len(seen), sum(likeliest for _, likeliest in seen))
        said = [token for token in found.tokens[row].tolist() if token >= 0]
        greedy = log_probabilities(training, row, said, never=tokenizer.unknown)
        assert found.score[row] == pytest.approx(sum(value for value, _ in greedy), rel=1e-5)
        assert all(likeliest for _, likeliest in greedy)
    assert found.files == [f"val{i}.png" for i in range(5)]


@pytest.mark.parametrize("beams", [1, 3])
def test_no_caption_says_that_a_word_is_unknown_however_likely_that_is(captions: str, tmp_path: Path, beams: int) -> None:
    t = training_of(captions, tmp_path / "run", [f"generation.num_beams={beams}", "text.tokenizer.min_count=3"], ALONE)
    assert t.dataset.tokenizer is not None
    unknown = t.dataset.tokenizer.unknown
    assert unknown == t.dataset.tokenizer.vocabulary.unknown == 1
    with torch.no_grad():
        t.module.get_parameter("model.decoder.cls.predictions.bias")[unknown] = 50.0
    found = task_of(t).predictions(t.module, t.dataset.splits["val"], t.pixels["val"], ordered_windows(5, 4), workers=0)
    assert (found.tokens != unknown).all()
    assert (found.score < -40 * (found.tokens >= 0).sum(axis=1)).all(), "the likelihood is that of the model, which would rather have said so"


def test_own_captions_a_few_at_a_time_are_the_same(training: Training, found: CaptionPredictions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.tasks.captioning.MOST_NUMBERS", 1)
    split = training.dataset.splits["val"]
    one = task_of(training).predictions(training.module, split, training.pixels["val"], ordered_windows(5, 2), workers=0)
    np.testing.assert_allclose(one.loss, found.loss, rtol=1e-6)
    assert (one.counted.tolist(), one.correct.tolist()) == (found.counted.tolist(), found.correct.tolist())


def test_numbers_of_an_epoch_are_those_that_are_reported_and_all_have_their_names(training: Training, found: CaptionPredictions) -> None:
    reported = training.task.measure(found, "val", "as it is")
    assert sorted(m.name for m in reported) == sorted(NUMBERS)
    assert reported[0].name == training.task.headline
    assert all(m.n == 5 and m.split == "val" and m.seed == 1 and "as it is" in m.how for m in reported if "[" not in m.name)
    values = {m.name: m.value for m in reported}
    for name, value in training.task.quick(found).items():
        assert value == pytest.approx(values[name], rel=1e-12), name
    assert "captions found greedily, without the sign for unknown words, at most 16 tokens" in reported[0].how


def test_a_single_picture_has_no_cider(training: Training, found: CaptionPredictions) -> None:
    """All n-grams of the only picture stand in every document, and weigh nothing."""
    one = CaptionPredictions.joined([found], np.array([2]))
    baselines = {name: ["a dog"] for name in BASELINES}
    reported = measure_captions(["a dog"], [["a dog", "a cat"]], one, baselines, split="val", seed=1, found="", note="")
    assert {m.name for m in reported} == {name for name in NUMBERS if not name.startswith("cider")}
    assert all(m.interval is None for m in reported), "nor an interval over pictures"
    assert next(m.value for m in reported if m.name == "exact_match") == 1.0


def test_nearest_pictures_are_those_of_a_double_loop_and_ties_take_the_first() -> None:
    random = np.random.default_rng(0)
    bank = random.normal(size=(40, 12)).astype(np.float32)
    bank[7] = bank[31]
    points = np.concatenate([random.normal(size=(20, 12)).astype(np.float32), bank[[31, 7, 3]]])
    expected = []
    for point in points.astype(np.float64):
        distances = [math.sqrt(sum((a - b) ** 2 for a, b in zip(point, other, strict=True))) for other in bank.astype(np.float64)]
        expected.append(distances.index(min(distances)))
    for at_once in (256, 6):
        assert nearest_pictures(bank, points, at_once=at_once).tolist() == expected
    assert expected[-3:] == [7, 7, 3]
    assert nearest_pictures(bank, points[:0]).tolist() == []


def test_baselines_are_the_commonest_caption_and_that_of_the_nearest_picture(training: Training) -> None:
    task, own = task_of(training), training.dataset.splits["train"].captions
    assert own is not None
    counted = Counter(text for texts in own.texts for text in texts)
    (commonest,) = set(task._most_frequent(5))
    assert counted[commonest] == max(counted.values())

    def small(split: str, row: int) -> np.ndarray:
        """16 x 16 means of 2 x 2 pixels, in [0, 1] over the recipe's std."""
        pixels = training.pixels[split].image(row).astype(np.float64) / 255 / np.array(training.std)
        return pixels.reshape(16, 2, 16, 2, 3).mean((1, 3))

    train_pictures = [small("train", row) for row in range(10)]
    for row, caption in enumerate(task._nearest("val")):
        distances = [float(((small("val", row) - other) ** 2).sum()) for other in train_pictures]
        assert caption == own.texts[int(np.argmin(distances))][0]


@pytest.mark.parametrize("beams", [1, 3])
def test_weights_that_diverged_are_an_error_and_not_a_caption(captions: str, tmp_path: Path, beams: int) -> None:
    t = training_of(captions, tmp_path / "run", [f"generation.num_beams={beams}"], ALONE)
    with torch.no_grad():
        for parameter in t.module.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"the model gives NaN or infinite log probabilities for 5 of 5 val images, val0\.png the first"):
        predict_split(t, t.module, "val", keep=True)


# ── a run as its user sees it ─────────────────────────────────────────────────────────────────────────────────


def test_a_run_keeps_captions_tokeniser_and_maps_of_words_and_hashes_all_of_them(scenes_run: Path) -> None:
    run = Run(scenes_run)
    assert (run.record.status, run.record.step) == ("done", 6)
    assert not [note for note in run.record.notes if "could not be" in note], run.record.notes
    kept = {"predictions/val.npz", "predictions/val.csv", "samples/val.captions.json", "tokenizer.json", "inside/words.json", "inside/words.npz"}
    assert kept | {"checkpoints/final.safetensors", "data.json"} <= set(run.record.files)
    own = run.captions("val")
    predictions = run.caption_predictions("val")
    assert predictions.files == list(own)
    assert [len(texts) for texts in own.values()] == [1] * 8
    assert own[predictions.files[3]] == (draw(3, split="val", image_size=(32, 32)).caption,)
    with run.predictions_file("val").with_suffix(".csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == predictions.files
    assert {m.name for m in run.record.measurements if m.split == "val"} >= set(NUMBERS)
    assert run.data.vocabulary is not None
    assert (run.data.vocabulary.max_length, run.data.vocabulary.captions) == (16, 1)
    assert run.report_file.is_file()
    assert next(iter(run.measurements)) == "val/cider"


def test_predict_gives_the_captions_of_the_predictions(scenes_run: Path, tmp_path: Path) -> None:
    run, kept = Run(scenes_run), Run(scenes_run).caption_predictions("val")
    for i in (0, 5):
        Image.fromarray(draw(i, split="val", image_size=(32, 32)).image).save(tmp_path / f"{i}.png")
    with run.predictions_file("val").with_suffix(".csv").open(newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    for i, prediction in zip((0, 5), run.predict([tmp_path / "0.png", tmp_path / "5.png"]), strict=True):
        assert prediction.caption == captions[i]
        assert list(prediction.tokens) == [token for token in kept.tokens[i].tolist() if token >= 0]
        assert prediction.score == pytest.approx(kept.score[i], rel=1e-5)
    wide = Image.fromarray(draw(1, split="val", image_size=(48, 80)).image)
    (other,) = run.predict([wide])
    assert other.tokens


def bits(run: Run) -> dict[str, str]:
    """Hashes of what a run found; not of what its recipe, its clock and its machine say."""
    parts = ("checkpoints", "predictions", "samples", "inside/words.npz", "tokenizer")
    return {name: value for name, value in run.record.files.items() if name.startswith(parts)}


def test_an_interrupted_run_without_workers_resumes_to_the_bits_of_an_unbroken_one_with_two(
    scenes_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pellucid.loop as loop

    real, taken = loop.take_step, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal taken
        taken += 1
        real(*arguments)
        if taken == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(InterruptedError, match="interrupted at step 4 of 6"):
        train(recipes.loads(SMALL), overrides=[DROPOUT, "data.workers=0"], out=tmp_path / "run", quiet=True, figures=False)
    monkeypatch.undo()
    run = resume(tmp_path / "run", quiet=True, figures=False)
    assert bits(run) == bits(Run(scenes_run))
    assert len(bits(run)) == 8


@pytest.mark.proof
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SMALL.replace("train: 24", "train: 400"))
    whole = train(tmp_path / "r.yaml", out=tmp_path / "whole", quiet=True, figures=False)
    command = [sys.executable, "-m", "pellucid", "train", "r.yaml", "-q", "--out", "killed", "-s", "train.checkpoint_seconds=0"]
    process = subprocess.Popen(command, cwd=tmp_path)
    for _ in range(1200):
        if list((tmp_path / "killed" / "checkpoints").glob("step-*")):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert Run(tmp_path / "killed").record.status == "running"
    assert bits(resume(tmp_path / "killed", quiet=True, figures=False)) == bits(whole)


@pytest.mark.proof
def test_a_run_in_bf16_with_a_frozen_backbone_beams_and_an_average_ends_whole(tmp_path: Path) -> None:
    changes = [
        "train.precision=bf16", "model.freeze=backbone", "train.activation_checkpointing=true", "train.ema={decay: 0.9}", "train.keep=best",
        "generation={num_beams: 2, no_repeat_ngram_size: 2}", "text.tokenizer={name: word_pieces, size: 60}", "train.early_stop={patience: 1}",
    ]  # fmt: skip
    run = train(recipes.loads(SMALL), overrides=changes, out=tmp_path / "run", quiet=True)
    assert run.record.status == "done"
    assert "the best cider on val, moving average of the weights" in run.record.selected
    assert "captions found by 2 beams" in run.measurements["val/cider"].how
    assert all(torch.isfinite(value).all() for value in read_weights(run.final_weights).values())
