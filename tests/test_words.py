"""Where a captioner looked for each word: steps, beams, prompts and loops against one pass over the finished caption, on the three kinds of transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pellucid.data.text import build_tokenizer
from pellucid.errors import UsageError
from pellucid.inside.attention import record
from pellucid.inside.deletion import randomised
from pellucid.inside.words import Spoken, WordMaps, caption_maps, chosen, forced_maps, given_maps, merged, queries, word_maps
from pellucid.models.captioner import Captioner, Generation
from pellucid.models.captioners import build_captioner
from pellucid.run import Vocabulary
from pellucid.schema.captioning import TextSection

CLOSE = 1e-5
APART = 0.1
PAD, START, TOKENS = 0, 1, 30
KINDS = ("encoder-decoder", "blip", "git")
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def encoder_decoder() -> Any:
    from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    vision = ViTConfig(image_size=32, patch_size=8, **SIZE)
    words = BertConfig(vocab_size=TOKENS, is_decoder=True, add_cross_attention=True, max_position_embeddings=32, **SIZE)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, words)
    config.decoder_start_token_id, config.pad_token_id = START, PAD
    return VisionEncoderDecoderModel(config)


def blip() -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration

    signs = {"bos_token_id": START, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": PAD}
    text = {"vocab_size": TOKENS, "encoder_hidden_size": 32, "max_position_embeddings": 32} | signs | SIZE
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 8} | SIZE))


def git() -> Any:
    from transformers import GitConfig, GitForCausalLM

    vision = {"image_size": 32, "patch_size": 8} | SIZE
    config = GitConfig(vision_config=vision, vocab_size=TOKENS, max_position_embeddings=64, bos_token_id=START, eos_token_id=2, pad_token_id=PAD, **SIZE)
    return GitForCausalLM(config)


MAKERS: dict[str, Callable[[], Any]] = {"encoder-decoder": encoder_decoder, "blip": blip, "git": git}


def made(kind: str, seed: int = 0, scale: float = 0.35) -> Any:
    """A model with random weights so large that its attention is peaked, in eval mode."""
    torch.manual_seed(seed)
    model = MAKERS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, scale)
    return model.eval()


class Speaker:
    """One way into the three kinds: `generate` with transformers' own search, `loop` by hand without a cache, `forced` over a finished caption."""

    def __init__(self, kind: str, images: Tensor, *, beams: int = 1, prompt: tuple[int, ...] = (START,), end: int = 2, steps: int = 7, seed: int = 1) -> None:
        self.kind, self.images, self.beams, self.end, self.steps = kind, images, beams, end, steps
        self.model = made(kind, seed)
        self.prompt = torch.tensor(prompt).expand(len(images), -1)
        self.wide = {} if kind == "encoder-decoder" and images.shape[-1] == images.shape[-2] else {"interpolate_pos_encoding": True}

    def generate(self) -> Spoken:
        options = {
            "max_new_tokens": self.steps, "num_beams": self.beams, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
            **self.wide,
        }  # fmt: skip
        tokens = {"pad_token_id": PAD, "eos_token_id": self.end}
        if self.kind == "encoder-decoder":
            out = self.model.generate(pixel_values=self.images, decoder_input_ids=self.prompt, **tokens, **options)
        elif self.kind == "blip":
            self.model.config.text_config.sep_token_id = self.end
            closed = torch.cat([self.prompt, self.prompt[:, :1]], dim=1)  # BLIP cuts the last token of a prompt off
            out = self.model.generate(pixel_values=self.images, input_ids=closed, **options)
        else:
            out = self.model.generate(pixel_values=self.images, input_ids=self.prompt, **tokens, **options)
        return self.cut(out.sequences[:, self.prompt.shape[1] :]), out.beam_indices if self.beams > 1 else None

    def cut(self, tokens: Tensor) -> Tensor:
        """-1 behind the end."""
        ended = (tokens == self.end).cumsum(1) - (tokens == self.end).long() > 0
        return tokens.masked_fill(ended, -1)

    def logits(self, words: Tensor) -> Tensor:
        """(B, N, V) of one pass over prompt and words, no cache."""
        if self.kind == "encoder-decoder":
            return self.model(pixel_values=self.images, decoder_input_ids=words, use_cache=False, **self.wide).logits
        if self.kind == "blip":
            seen = self.model.vision_model(self.images, **self.wide).last_hidden_state
            return self.model.text_decoder(input_ids=words, encoder_hidden_states=seen, use_cache=False).logits
        return self.model(input_ids=words, pixel_values=self.images, use_cache=False, **self.wide).logits[:, -words.shape[1] :]

    def loop(self) -> Spoken:
        """Greedy by hand: the whole prefix through the model for every token."""
        words = self.prompt
        for _ in range(self.steps):
            words = torch.cat([words, self.logits(words)[:, -1].argmax(-1, keepdim=True)], dim=1)
        return self.cut(words[:, self.prompt.shape[1] :]), None

    def forced(self, tokens: Tensor) -> Tensor:
        return self.logits(torch.cat([self.prompt, tokens[:, :-1].clamp_min(PAD)], dim=1))

    def maps(self, way: Callable[[], Spoken] | None = None, **options: Any) -> WordMaps:
        return word_maps(self.model, way or self.generate, self.forced, **options)

    def one_pass(self, maps: WordMaps) -> WordMaps:
        return forced_maps(self.model, self.forced, torch.from_numpy(maps.tokens))


def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(3))


def apart(a: WordMaps, b: WordMaps) -> float:
    return float(np.abs(a.maps - b.maps).max())


# ── steps, beams, prompts, loops ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_that_of_the_step_which_gave_its_token(kind: str, beams: int) -> None:
    """Captions of different lengths in one batch; the control one step off, and beams without their indices, are far away."""
    first = Speaker(kind, images(), beams=beams)
    speaker = Speaker(kind, images(), beams=beams, end=int(first.generate()[0][1, 3]))  # what caption 1 says fourth ends captions
    maps = speaker.maps()
    lengths = [maps.length(b) for b in range(3)]
    assert len(set(lengths)) > 1
    assert maps.agreement.shape == (3,)
    assert maps.agreement.max() < CLOSE
    whole = speaker.one_pass(maps)
    assert whole.layers == maps.layers
    assert len(maps.layers) == 2
    assert maps.maps.shape == (3, 2, 4, max(lengths), 4, 4)
    assert maps.maps.dtype == np.float32
    assert apart(maps, whole) < CLOSE
    for b, T in enumerate(lengths):
        assert not maps.maps[b, :, :, T:].any()
        if T > 1:
            assert np.abs(maps.maps[b, :, :, 1:T] - whole.maps[b, :, :, : T - 1]).max() > APART
    if beams > 1:
        first_beams = (torch.arange(3) * beams)[:, None].expand(-1, max(lengths))
        mixed = speaker.maps(lambda: (speaker.generate()[0], first_beams), differs=np.inf)
        assert mixed.agreement.max() > APART
        assert apart(mixed, whole) > APART
        with pytest.raises(UsageError, match=r"has 9 rows for 3 pictures: of beams, beam_indices say which row gave each token"):
            speaker.maps(lambda: (speaker.generate()[0], None))
        with pytest.raises(UsageError, match=r"has 9 rows, there is no row 11"):
            speaker.maps(lambda: (speaker.generate()[0], first_beams + 5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_without_a_cache_gives_the_maps_of_generate(kind: str) -> None:
    """Every pass holds the whole prefix; only its last row is of the token that it gives."""
    speaker = Speaker(kind, images())
    maps, by_hand = speaker.maps(), speaker.maps(speaker.loop)
    assert (maps.tokens == by_hand.tokens).all()
    assert by_hand.agreement.max() < CLOSE
    assert apart(maps, by_hand) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_several_tokens_shifts_nothing(kind: str) -> None:
    speaker = Speaker(kind, images(), prompt=(START, 7, 12, 5))
    for way in (speaker.generate, speaker.loop):
        maps = speaker.maps(way)
        assert maps.agreement.max() < CLOSE
        assert maps.maps.shape[3] == maps.tokens.shape[1] == 7
    # The prompt's own rows would be these: as far off as a wrong step.
    longer = forced_maps(speaker.model, lambda t: speaker.logits(torch.cat([speaker.prompt[:, :1], t[:, :-1]], dim=1)), torch.from_numpy(
        np.concatenate([np.broadcast_to(speaker.prompt[:, 1:].numpy(), (3, 3)), maps.tokens], axis=1)
    ))  # fmt: skip
    assert np.abs(longer.maps[:, :, :, 3:] - maps.maps).max() < CLOSE
    assert np.abs(longer.maps[:, :, :, :7] - maps.maps).max() > APART


def test_a_prompt_that_is_fed_token_by_token_is_refused_with_picture_token_and_layer() -> None:
    speaker = Speaker("encoder-decoder", images(), prompt=(START, 7, 12))

    def loop() -> Spoken:
        for length in (1, 2):
            speaker.logits(speaker.prompt[:, :length])
        return speaker.loop()

    where = (
        r"picture \d, output token \d \(number \d+\), decoder\.bert\.encoder\.layer\.\d\.crossattention\.self: its map differs by 0\.\d+ from that of one pass"
    )
    with pytest.raises(UsageError, match=where + r".* more than 0\.0001, so it may belong to another step and is not drawn"):
        speaker.maps(loop)


def test_the_refusal_names_the_first_token_that_differs_most() -> None:
    speaker = Speaker("encoder-decoder", images())
    tokens, _ = speaker.generate()
    other = tokens.clone()
    other[2, 4] = (other[2, 4] + 1) % TOKENS  # the model has said something else: every later map differs
    with pytest.raises(UsageError, match=r"picture 2, output token [56] "):
        speaker.maps(lambda: (speaker.generate() and other, None))


@pytest.mark.parametrize("kind", ["encoder-decoder", "git"])
def test_the_maps_are_the_librarys_own_weights(kind: str) -> None:
    """An oracle apart from the recorder: explicit attention that the model itself returns."""
    speaker = Speaker(kind, images())
    maps = speaker.maps()
    words = torch.cat([speaker.prompt, torch.from_numpy(maps.tokens[:, :-1])], dim=1)
    with torch.no_grad():
        if kind == "git":
            given = speaker.model(input_ids=words, pixel_values=speaker.images, output_attentions=True, use_cache=False).attentions
        else:
            speaker.model.set_attn_implementation("eager")
            given = speaker.model(pixel_values=speaker.images, decoder_input_ids=words, output_attentions=True).cross_attentions
    expected = torch.stack(given, 1)[..., -words.shape[1] :, 1:17].unflatten(-1, (4, 4)).numpy()  # class token at 0, then 4 x 4 patches
    assert np.abs(maps.maps - expected).max() < CLOSE


# ── where the patches lie ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_picture_has_a_wide_grid(kind: str) -> None:
    speaker = Speaker(kind, images(16, 40))
    maps = speaker.maps()
    assert maps.grid == (2, 5)
    assert maps.agreement.max() < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_the_class_token_and_of_words_is_kept_apart(kind: str) -> None:
    maps = Speaker(kind, images()).maps()
    assert (maps.maps >= 0).all()
    assert np.abs(maps.maps.sum((-2, -1)) + maps.prefix - maps.picture).max() < CLOSE
    assert maps.prefix.max() > 0.01
    assert [site.picture.prefix for site in maps.sites] == [("class",)] * 2
    picture, prefix = maps.share(1)
    assert picture.shape == prefix.shape == (maps.length(1),)
    if kind == "git":
        assert maps.picture.min() < 0.9  # words are looked at too
    else:
        assert np.abs(maps.picture - 1).max() < CLOSE


def test_a_decoder_that_looks_at_no_picture_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    model = BertLMHeadModel(BertConfig(vocab_size=TOKENS, is_decoder=True, **SIZE)).eval()
    tokens = torch.tensor([[5, 6]])

    def run(given: Tensor) -> Any:
        return model(input_ids=given, use_cache=False)

    with pytest.raises(UsageError, match=r"expected a decoder that looks at a picture by cross-attention, or GIT; no attention does so in each of 2 steps"):
        word_maps(model, lambda: (run(tokens) and run(tokens) and tokens, None), run)


def test_tokens_that_are_no_captions_are_refused() -> None:
    speaker = Speaker("blip", images())

    def said(tokens: Tensor) -> Spoken:
        speaker.generate()
        return tokens, None

    for wrong, message in [
        (torch.zeros(3, 0, dtype=torch.int64), r"expected output tokens \(B, T\) int64, at least one of each caption; got \(3, 0\)"),
        (torch.tensor([[5, -1, 6]]), r"expected nothing but -1 behind the end"),
    ]:
        with pytest.raises(UsageError, match=message):
            speaker.maps(partial(said, wrong))
    with pytest.raises(UsageError, match=r"beam_indices: expected one row of the batch for each of \(3, 7\) tokens, got \(3, 2\)"):
        speaker.maps(lambda: (speaker.generate()[0], torch.zeros(3, 2, dtype=torch.int64)))


# ── our captioner ─────────────────────────────────────────────────────────────────────────────────────────────


def captioner(kind: str, size: tuple[int, int] = (32, 32)) -> Captioner:
    """A Captioner around a model of transformers, or around a convolutional encoder with a grid of stride 8."""
    vocabulary = Vocabulary(TOKENS, START, 2, PAD, 8, "by hand")
    if kind != "ours":
        return Captioner(made(kind), vocabulary).eval()
    torch.manual_seed(1)
    built = build_captioner(
        "pellucid/captioner", vocabulary=vocabulary, encoder="timm/resnet10t", encoder_stride=8,
        decoder={"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2.0, "drop_rate": 0.1}, pretrained=False,
        options={"channels": [8, 16, 24, 32], "stem_width": 8}, image_size=size, weights=None, backbone_weights=None,
    )  # fmt: skip
    model = built.module
    assert isinstance(model, Captioner)
    with torch.no_grad():
        for parameter in model.get_submodule(model.decoder).parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.35)
    return model.eval()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", [*KINDS, "ours"])
def test_a_captioner_gives_captions_and_maps_at_once(kind: str, beams: int) -> None:
    model, x = captioner(kind), images()
    how = Generation(max_length=8, num_beams=beams)
    plain = model.generate(x, how).tokens.numpy()
    maps = caption_maps(model, x, how)
    T = maps.tokens.shape[1]
    assert (maps.tokens == plain[:, :T]).all()
    assert (plain[:, T:] == -1).all()
    assert maps.agreement.max() < CLOSE
    assert maps.grid == model.grid((32, 32)) == (4, 4)
    whole = given_maps(model, x, plain)
    assert apart(maps, whole) < CLOSE
    assert np.isnan(whole.agreement).all()
    assert all(layer.startswith(f"{model.decoder}.") for layer in maps.layers)
    assert np.abs(maps.maps[:, :, :, 1:] - whole.maps[:, :, :, :-1]).max() > APART


@pytest.mark.parametrize("kind", ["ours", "git"])
def test_a_caption_that_ends_early_has_no_maps_behind_its_end(kind: str) -> None:
    """The captioner hands out max_length columns; steps end with the caption."""
    model, x = captioner(kind), images()[:1]
    said = model.generate(x, Generation(max_length=8)).tokens[0].tolist()
    model.end = next(token for i, token in enumerate(said) if i and token not in said[:i])
    for beams in (1, 3):
        maps = caption_maps(model, x, Generation(max_length=8, num_beams=beams))
        assert 1 < maps.tokens.shape[1] == maps.maps.shape[3] == maps.length(0)
        assert maps.agreement.max() < CLOSE
    assert caption_maps(model, x, Generation(max_length=8)).length(0) < 8


def test_our_captioner_has_a_wide_grid_and_nothing_before_it() -> None:
    model = captioner("ours", (32, 64))
    maps = caption_maps(model, images(32, 64), Generation(max_length=6))
    assert maps.grid == model.grid((32, 64)) == (4, 8)
    assert not maps.prefix.any()
    assert np.abs(maps.maps.sum((-2, -1)) - 1)[:, :, :, 0].max() < CLOSE


def test_the_model_with_random_weights_looks_elsewhere_for_the_same_captions() -> None:
    model, x = captioner("ours"), images()
    maps = caption_maps(model, x, Generation(max_length=8))
    stranger = given_maps(randomised(model, 5), x, maps.tokens)  # type: ignore[arg-type]
    assert stranger.layers == maps.layers
    assert (stranger.tokens == maps.tokens).all()
    assert apart(maps, stranger) > APART


def test_a_grid_that_the_model_states_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.models.captioner import Layout

    model = captioner("ours")
    monkeypatch.setattr(model, "layout", lambda size: Layout((2, 8), 0))
    with pytest.raises(UsageError, match=r"its 16 keys lie on \(4, 4\) behind 0 tokens, and the model states 16 on \(2, 8\)"):
        caption_maps(model, images(), Generation(max_length=6))


def test_captions_are_found_in_eval_mode_and_the_mode_comes_back() -> None:
    model = captioner("ours").train()
    model.model.encoder.eval()
    maps = caption_maps(model, images(), Generation(max_length=6))
    assert maps.agreement.max() < CLOSE
    assert model.training
    assert not model.model.encoder.training


# ── layers, heads, words ──────────────────────────────────────────────────────────────────────────────────────


def test_layers_and_heads_are_chosen_or_averaged() -> None:
    values = np.random.default_rng(0).random((3, 4, 5, 2, 6)).astype(np.float32)
    assert np.allclose(chosen(values), values.astype(np.float64).mean((0, 1)), atol=1e-7)
    assert np.allclose(chosen(values, "last"), values[2].mean(0), atol=1e-6)
    assert np.allclose(chosen(values, [0, 2], [3]), (values[0, 3] + values[2, 3]) / 2, atol=1e-7)
    assert np.array_equal(chosen(values, [1], [0]), values[1, 0])
    with pytest.raises(UsageError, match=r"layers: the decoder has 3, counted from 0; there is no layer 3"):
        chosen(values, [0, 3])
    with pytest.raises(UsageError, match=r"heads: a layer has 4, counted from 0; there is no head -1, 7"):
        chosen(values, "mean", [-1, 7])


def test_pieces_are_merged_into_words_by_mean_or_sum_and_signs_are_in_no_word() -> None:
    maps = np.random.default_rng(0).random((2, 6, 3, 3)).astype(np.float32)
    spans = [(0, 1), (2, 5)]  # a sign at 1, the end at 5
    mean, total = merged(maps, spans), merged(maps, spans, "sum")
    assert mean.shape == (2, 2, 3, 3)
    assert np.array_equal(mean[:, 0], maps[:, 0])
    assert np.allclose(mean[:, 1], (maps[:, 2] + maps[:, 3] + maps[:, 4]) / 3, atol=1e-7)
    assert np.allclose(total[:, 1], 3 * mean[:, 1], atol=1e-6)
    later = merged(maps, spans, offset=1)
    assert np.array_equal(later[:, 0], maps[:, 1])
    assert np.allclose(later[:, 1], maps[:, 3:6].mean(1), atol=1e-7)
    assert np.isnan(merged(maps, spans, offset=2)[:, 1]).all()
    assert merged(maps, []).shape == (2, 0, 3, 3)
    with pytest.raises(UsageError, match=r"expected pieces of a word among 6 tokens, got those from 5 to before 7"):
        merged(maps, [(5, 7)])


def test_skis_comes_out_as_one_word_with_one_map() -> None:
    """WordPiece cuts it into "ski" and "##s"; both steps are of one word, whose query is the word before."""
    section = TextSection.model_validate({"tokenizer": {"name": "word_pieces", "size": 38}})
    captions = ["a ski.", "two ski.", "a man on one ski.", "cats and a man.", "two cats."]
    tokenizer = build_tokenizer(section, captions)
    tokens = tokenizer.encode("a man on skis.")
    words = tokenizer.words(tokens)
    assert [word for word, _, _ in words if word != "."] == ["a", "man", "on", "skis"]
    (_, first, behind) = words[3]
    assert behind - first >= 2
    assert tokenizer.text_of(tokens[behind - 1]) == "##s"
    spans = [(begin, end) for _, begin, end in words]
    maps = np.random.default_rng(0).random((len(tokens), 2, 2)).astype(np.float32)
    assert np.allclose(merged(maps, spans)[3], maps[first:behind].mean(0), atol=1e-7)
    assert all(end < len(tokens) for _, end in spans)  # the end sign is in no word
    asked = queries(tokens, spans, tokenizer.text_of, tokenizer.vocabulary.start)
    assert asked[0] == "[BOS]"
    assert asked[1] == tokenizer.text_of(tokens[spans[1][0] - 1])


def test_nothing_is_left_on_the_model() -> None:
    model = captioner("ours")
    caption_maps(model, images(), Generation(max_length=4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with record(model, rows="last") as recording:
        model(images(), torch.tensor([[START]] * 3))
    assert recording.records
    assert isinstance(model, nn.Module)
