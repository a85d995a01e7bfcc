"""Captions are those of transformers' generate() and of a slow search without cache; scores and beams say which step gave which token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.models.captioner import Captioner, Generated, Generation
from tiny_captioners import NAMES, SIZE, Words, captioner, pictures

EVERY = ["encoder-decoder", "blip", "git", "own"]
SETTINGS = [
    Generation(6),
    Generation(6, no_repeat_ngram_size=2),
    Generation(6, min_length=4),
    Generation(6, num_beams=4),
    Generation(6, num_beams=3, length_penalty=2.0, no_repeat_ngram_size=2),
    Generation(6, num_beams=3, length_penalty=-1.0, min_length=3),
]
NAMED = [f"beams {s.num_beams} penalty {s.length_penalty:g} no-repeat {s.no_repeat_ngram_size} least {s.min_length}" for s in SETTINGS]

Step = Callable[[list[list[int]]], Tensor]  # prefixes of equal length -> (rows, V) log probabilities of what follows


# ── a slow search: float64, no cache, one picture ──
def allowed(scores: Tensor, prefix: list[int], how: Generation) -> Tensor:
    """Log probabilities with those that the settings forbid at -inf; `prefix` begins with the start."""
    scores = scores.clone()
    n = how.no_repeat_ngram_size
    for i in range(len(prefix) - n + 1) if n else ():
        if prefix[i : i + n - 1] == prefix[len(prefix) - n + 1 :]:
            scores[prefix[i + n - 1]] = -torch.inf
    if len(prefix) - 1 < how.min_length:
        scores[Words.end] = -torch.inf
    return scores


def searched(step: Step, how: Generation) -> list[int]:
    """The tokens that beam search finds, the start left out: of finished captions the best by score over length to the penalty.

    Of the 2 x beams best continuations the first beams may finish; it stops once as many are finished and the best running one is no better.
    """
    running, finished = [(0.0, [Words.start])], list[tuple[float, list[int]]]()
    for length in range(1, how.max_length + 1):
        scores = step([tokens for _, tokens in running])
        every = [
            (score + float(value), [*tokens, token])
            for (score, tokens), row in zip(running, scores, strict=True)
            for token, value in enumerate(allowed(row, tokens, how))
        ]
        best = sorted(every, key=lambda item: -item[0])[: 2 * how.num_beams]
        ends = [tokens[-1] == Words.end or length == how.max_length for _, tokens in best]
        done = [(score / length**how.length_penalty, tokens) for (score, tokens), end in zip(best[: how.num_beams], ends, strict=False) if end]
        finished = sorted(finished + done, key=lambda item: -item[0])[: how.num_beams]
        running = [item for item, end in zip(best, ends, strict=True) if not end][: how.num_beams]
        if not running or (len(finished) == how.num_beams and running[0][0] / length**how.length_penalty <= finished[-1][0]):
            break
    return finished[0][1][1:]


def greedy(step: Step, how: Generation) -> list[int]:
    tokens = [Words.start]
    while len(tokens) <= how.max_length and (len(tokens) == 1 or tokens[-1] != Words.end):
        tokens.append(int(allowed(step([tokens])[0], tokens, how).argmax()))
    return tokens[1:]


def steps_of(module: Captioner, image: Tensor) -> Step:
    """What follows prefixes, by a whole pass over each in float64."""
    memory = module.encode(image.double()[None])

    @torch.no_grad()
    def step(prefixes: list[list[int]]) -> Tensor:
        logits = module.decode(memory, torch.tensor(prefixes), torch.zeros(len(prefixes), dtype=torch.int64))
        return logits[:, -1].log_softmax(-1)

    return step


def plain(found: Generated) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in found.tokens.tolist()]


@pytest.mark.parametrize("how", SETTINGS, ids=NAMED)
@pytest.mark.parametrize("kind", EVERY)
def test_captions_are_those_of_a_slow_search_without_cache(kind: str, how: Generation) -> None:
    module, images = captioner(kind), pictures(2)
    found = plain(module.generate(images, how))
    module.double()
    search = greedy if how.num_beams == 1 else searched
    assert found == [search(steps_of(module, image), how) for image in images]


@pytest.mark.parametrize("how", SETTINGS, ids=NAMED)
@pytest.mark.parametrize("kind", EVERY)
def test_captions_are_those_of_the_plain_model(kind: str, how: Generation) -> None:
    module, images = captioner(kind), pictures()
    found = module.generate(images, how)
    settings: dict[str, Any] = {"max_length": how.max_length + 1, "num_beams": how.num_beams, "do_sample": False, **NAMES}
    settings |= {"length_penalty": how.length_penalty} if how.num_beams > 1 else {}
    settings |= {"no_repeat_ngram_size": how.no_repeat_ngram_size} if how.no_repeat_ngram_size else {}
    settings |= {"min_length": how.min_length + 1} if how.min_length else {}
    settings |= {"decoder_start_token_id": 1} if kind in ("encoder-decoder", "own") else {}
    settings = {key: value for key, value in settings.items() if kind != "blip" or key not in ("eos_token_id", "pad_token_id")}  # BLIP gives its own
    theirs = module.model.generate(pixel_values=images, **settings)[:, 1:].tolist()
    ends = [row.index(Words.end) + 1 if Words.end in row else len(row) for row in theirs]
    assert plain(found) == [row[:end] for row, end in zip(theirs, ends, strict=True)]


@pytest.mark.parametrize("how", [SETTINGS[0], SETTINGS[4]], ids=[NAMED[0], NAMED[4]])
@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_gives_the_captions_that_each_picture_gives_alone(kind: str, how: Generation) -> None:
    module, images = captioner(kind), pictures()
    assert plain(module.generate(images, how)) == [plain(module.generate(image[None], how))[0] for image in images]


def test_settings_and_pictures_make_a_difference_in_these_tests() -> None:
    for how in SETTINGS[1:]:
        found = [plain(captioner(kind).generate(pictures(5), way)) for kind in ("encoder-decoder", "blip") for way in (SETTINGS[0], how)]
        assert any(greedily != other for greedily, other in zip(found[::2], found[1::2], strict=True)), how
        assert any(len(set(map(tuple, captions))) > 3 for captions in found), how


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("beams", [1, 3])
def test_scores_are_the_log_probability_of_the_tokens(kind: str, beams: int) -> None:
    module, images = captioner(kind), pictures()
    found = module.generate(images, Generation(6, num_beams=beams))
    module.double()
    for image, tokens, score in zip(images, plain(found), found.scores, strict=True):
        step = steps_of(module, image)
        wanted = sum(float(step([[Words.start, *tokens[:i]]])[0, token]) for i, token in enumerate(tokens))
        assert float(score) == pytest.approx(wanted, abs=1e-4)
    assert found.scores.dtype == torch.float64


@pytest.mark.parametrize("kind", EVERY)
def test_beam_indices_lead_back_to_the_step_that_gave_each_token(kind: str) -> None:
    module, images, beams = captioner(kind), pictures(), 3
    seen: list[Tensor] = []
    part = module.model.text_decoder if kind == "blip" else module.model
    hook = part.register_forward_hook(lambda _, __, output: seen.append(output.logits[:, -1].detach()))
    found = module.generate(images, Generation(6, num_beams=beams))
    hook.remove()
    assert found.beam_indices is not None
    assert found.beam_indices.shape == found.tokens.shape == (3, 6)
    assert bool(((found.beam_indices < 0) == (found.tokens < 0)).all())
    for image, (tokens, rows) in enumerate(zip(found.tokens, found.beam_indices, strict=True)):
        real = [(int(token), int(row)) for token, row in zip(tokens, rows, strict=True) if token >= 0]
        assert all(image * beams <= row < (image + 1) * beams for _, row in real)
        score = sum(float(seen[step][row].double().log_softmax(-1)[token]) for step, (token, row) in enumerate(real))
        assert score == pytest.approx(float(found.scores[image]), abs=1e-3)


@pytest.mark.parametrize("kind", EVERY)
def test_captions_end_once_and_are_minus_one_behind(kind: str) -> None:
    found = captioner(kind, seed=0).generate(pictures(8), Generation(6, num_beams=4, length_penalty=-3.0)).tokens
    assert found.shape == (8, 6)
    ended = 0
    for row in found.tolist():
        end = row.index(Words.end) if Words.end in row else len(row) - 1
        ended += end < len(row) - 1
        assert all(token >= 0 for token in row[: end + 1])
        assert all(token == -1 for token in row[end + 1 :])
    assert ended


@pytest.mark.parametrize("kind", EVERY)
def test_settings_that_a_model_was_published_with_do_not_count(kind: str) -> None:
    module, images, how = captioner(kind), pictures(), Generation(6)
    before = module.generate(images, how)
    holder = module.model.text_decoder if kind == "blip" else module.model
    published = holder.generation_config
    published.num_beams, published.min_length, published.suppress_tokens = 4, 6, [int(before.tokens[0, 0])]
    after = module.generate(images, how)
    assert torch.equal(before.tokens, after.tokens)
    assert holder.generation_config is published  # and stays the model's own


def test_a_start_that_is_also_the_end_ends_nothing() -> None:
    module = captioner("encoder-decoder")
    module.start = module.end = module.pad = 2
    found = plain(module.generate(pictures(), Generation(6, min_length=3)))
    assert all(len(tokens) >= 4 for tokens in found)
    assert all(Words.end not in tokens[:-1] for tokens in found)


def test_wide_pictures_are_captioned_as_they_are_alone() -> None:
    for kind in EVERY:
        module, images = captioner(kind), pictures(3, (32, 80))
        assert module.grid((32, 80)) == ((2, 5))
        found = module.generate(images, Generation(6, num_beams=3))
        module.double()
        assert plain(found) == [searched(steps_of(module, image), Generation(6, num_beams=3)) for image in images], kind
    assert module.grid(SIZE) == (2, 2)


def test_more_tokens_than_positions_are_refused() -> None:
    module = captioner("encoder-decoder")
    with pytest.raises(UsageError, match=r"text\.max_length: expected at most 32 tokens, the positions of VisionEncoderDecoderModel's decoder; got 33"):
        module.generate(pictures(), Generation(33))
