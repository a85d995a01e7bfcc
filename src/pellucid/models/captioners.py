"""Captioners by name: `pellucid/captioner` on a timm encoder, and `transformers/<hub id or folder>` of three kinds.

`pellucid/captioner` is a timm model cut at one stride (grid_encoder.py) and BERT's decoder (Devlin et al. 2019) with cross-attention, its input and output
embeddings tied. transformers publishes vision encoder-decoders, BLIP and GIT. Either comes as a `Captioner`, which says how it is spoken with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pellucid.errors import MissingError, UsageError, WeightsError
from pellucid.models.backbone_file import load_into
from pellucid.models.backbones import Built, normalization, tuples
from pellucid.models.captioner import KINDS, Captioner, Vocabulary
from pellucid.models.hub import transformers_folder
from pellucid.models.named import Named, random_start
from pellucid.models.stages import fill_stages, whole_of
from pellucid.models.weights import load_weights

OWN = "pellucid/captioner"
Pretrained = bool | Literal["backbone"]

_GENERATES = (  # settings of transformers that change what is found
    "max_length", "max_new_tokens", "min_length", "num_beams", "length_penalty", "no_repeat_ngram_size", "early_stopping", "repetition_penalty",
    "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "do_sample",
)  # fmt: skip


# ── names ──
def is_captioner(target: str) -> bool:
    """Whether a folder or `transformers/<hub id, folder or model type>` is a captioner of a kind that is known, by its config.json; loads no weights.

    False also where that file cannot be had: who builds the model says what is missing.
    """
    home, _, rest = target.partition("/")
    model = rest if home == "transformers" else target
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if home != "transformers":
            return False
        if "/" not in model:
            return model in KINDS and model != "vision-encoder-decoder"  # which is nothing without its parts
        try:
            folder = transformers_folder(target, model, weights=False)
        except (MissingError, UsageError):
            return False
    try:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _kind_of(stated) is not None


def _kind_of(stated: Any) -> str | None:
    """The class of transformers that a config.json is of, where that is a captioner: BLIP also names models that answer or compare."""
    kind = KINDS.get(stated.get("model_type", "")) if isinstance(stated, dict) else None
    named = (stated.get("architectures") or [kind]) if kind else [None]
    return kind if kind in named else None


# ── building ──
def build_captioner(
    name: str,
    *,
    vocabulary: Vocabulary,
    encoder: str | None,
    encoder_stride: int | None,
    decoder: Mapping[str, Any] | None,
    pretrained: Pretrained,
    options: Mapping[str, Any],
    image_size: tuple[int, int],
    weights: Path | None,
    backbone_weights: Path | None,
    start_weights: bool = True,
) -> Built:
    """The captioner `name` that speaks in `vocabulary`, on the CPU, in training mode; its module is a Captioner.

    encoder (timm/<name>), encoder_stride (pixels a cell, None: the last level), decoder (depth, embed_dim, num_heads, mlp_ratio, drop_rate) and
    backbone_weights (file of a classifier or of its backbone) belong to pellucid/captioner. pretrained: True for published weights of the whole,
    "backbone" for those of the encoder. options: of the encoder's constructor, or values of the transformers config. weights: file of a whole captioner, or
    a folder in the hub's layout, from which the config comes too. start_weights: False leaves the weights as they are drawn, in the same shapes.
    Random weights come from torch's global generator.

    Raises UsageError (unknown name, a setting that the model cannot take), MissingError (files neither cached nor reachable) and WeightsError (do not fit).
    """
    if pretrained and (weights is not None or backbone_weights is not None):
        raise UsageError(f"{name}: expected published weights or those of a file, got both. Give one of model.pretrained, weights and backbone_weights.")
    home, _, model = name.partition("/")
    if name == OWN:
        return _build_own(
            vocabulary, encoder, encoder_stride, decoder or {}, pretrained, {key: tuples(value) for key, value in options.items()}, image_size, weights,
            backbone_weights, start_weights,
        )  # fmt: skip
    if home != "transformers" or not model:
        raise UsageError(f"model.name: expected {OWN} or transformers/<hub id or folder>, a captioner; got {name!r}.")
    if encoder is not None or encoder_stride is not None or decoder is not None or backbone_weights is not None or pretrained == "backbone":
        raise UsageError(f"{name} brings its own parts: encoder, encoder_stride, decoder, backbone_weights and pretrained: backbone belong to {OWN}.")
    return _build_transformers(name, vocabulary, bool(pretrained), options, image_size, weights, start_weights)[0]


# ── pellucid ──
def _build_own(
    vocabulary: Vocabulary,
    encoder: str | None,
    stride: int | None,
    decoder: Mapping[str, Any],
    pretrained: Pretrained,
    options: dict[str, Any],
    image_size: tuple[int, int],
    weights: Path | None,
    backbone_weights: Path | None,
    start_weights: bool,
) -> Built:
    from transformers import BertLMHeadModel, VisionEncoderDecoderModel

    from pellucid.models.grid_encoder import build_grid_encoder, sized
    from pellucid.models.huggingface import collected

    if encoder is None or not encoder.startswith("timm/"):
        raise UsageError(f"model.encoder: {OWN} needs the backbone that sees the picture, timm/<name>; got {encoder!r}.")
    if pretrained is True:
        raise UsageError(f"{OWN} has no published weights of the whole model. Give `pretrained: backbone` for those of its encoder, or weights: FILE.")
    mean, std = normalization(encoder)
    model, notes = encoder.removeprefix("timm/"), list[str]()
    arguments = sized(model, options, image_size, notes)
    with collected(notes):
        config = _bert(vocabulary, **decoder)
        eye = build_grid_encoder(model, stride=stride, embed_dim=config.hidden_size, options=arguments, notes=notes)
        whole = VisionEncoderDecoderModel(encoder=eye, decoder=BertLMHeadModel(config))  # type: ignore[arg-type]
    module = Captioner(whole, vocabulary)
    vocabulary_wide = ("model.decoder.bert.embeddings.word_embeddings", "model.decoder.cls.predictions.decoder", "model.decoder.cls.predictions.bias")
    built = Built(module, mean, std, vocabulary_wide, notes, f"{module.eye}.stages")
    if start_weights and (pretrained or backbone_weights is not None):
        built = _with_backbone(built, eye.stages, model, bool(pretrained), arguments, options, backbone_weights)
    if start_weights and weights is not None:
        notes += load_weights(module, weights, classifier=()).lines()
    rows, columns = module.grid(image_size)
    notes.append(f"the decoder looks at {rows}x{columns} cells of {encoder}")
    module.train()
    return built


def _bert(
    vocabulary: Vocabulary, *, depth: int = 2, embed_dim: int = 128, num_heads: int = 4, mlp_ratio: float = 4.0, drop_rate: float = 0.1, **unknown: Any
) -> Any:
    """BERT's configuration of a decoder with cross-attention."""
    from transformers import BertConfig

    if unknown:
        raise UsageError(f"model.decoder: expected depth, embed_dim, num_heads, mlp_ratio and drop_rate; got {', '.join(unknown)}.")
    if embed_dim % num_heads:
        raise UsageError(f"model.decoder.num_heads: expected a number that divides embed_dim {embed_dim}; got {num_heads}.")
    return BertConfig(
        vocab_size=vocabulary.size, hidden_size=embed_dim, num_hidden_layers=depth, num_attention_heads=num_heads,
        intermediate_size=round(mlp_ratio * embed_dim), hidden_dropout_prob=drop_rate, attention_probs_dropout_prob=drop_rate,
        max_position_embeddings=vocabulary.max_length + 1, type_vocab_size=1,
        pad_token_id=vocabulary.pad, bos_token_id=vocabulary.start, eos_token_id=vocabulary.end, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip


def _with_backbone(
    built: Built, stages: Any, model: str, pretrained: bool, arguments: Mapping[str, Any], options: Mapping[str, Any], file: Path | None
) -> Built:
    """The captioner with its encoder's weights: timm's published ones, or those of a file, with the normalisation that they were trained with."""
    notes = built.notes
    whole = replace(built, module=whole_of(model, pretrained=pretrained, options=arguments, notes=notes), classifier=(), notes=[])
    if file is not None:
        whole, report = load_into(whole, file, name=f"timm/{model}", options=options)
        notes += [*whole.notes, *report.lines()]
    notes += fill_stages(stages, whole.module, model=model, file=file.name if file is not None else f"timm/{model}")
    return replace(built, mean=whole.mean, std=whole.std, normalized_by=whole.normalized_by)


# ── transformers ──
def captioner_folder(name: str, weights: Path | None = None) -> Path | None:
    """The folder with config.json and the tokeniser's files of `transformers/<name>`: `weights` where that is one; None for a model type."""
    from pellucid.models.huggingface import source_folder

    if weights is not None and weights.is_dir():
        return source_folder(f"transformers/{weights}", str(weights), False)
    return source_folder(name, name.removeprefix("transformers/"), False)


def build_named_captioner(
    name: str, *, vocabulary: Vocabulary, pretrained: bool, weights: Path | None, image_size: tuple[int, int] | None, options: Mapping[str, Any], seed: int
) -> Named:
    """`transformers/<name>` as `named.build_named` describes it, whole: its module is a Captioner in eval mode. image_size: None for the model's own."""
    with random_start(seed):
        built, preparation = _build_transformers(name, vocabulary, pretrained, options, image_size, weights, True)
    sentence = f"random weights, seed {seed}"
    if pretrained or weights is not None:
        sentence = f"published weights {name.removeprefix('transformers/')}" if weights is None else f"weights of {weights}"
    return Named(name, built.module.eval(), sentence, preparation, None, None, built.notes)


def _build_transformers(
    name: str, vocabulary: Vocabulary, pretrained: bool, options: Mapping[str, Any], image_size: tuple[int, int] | None, weights: Path | None, start: bool
) -> tuple[Built, Any]:
    """(captioner, how it wants photographs prepared). The shapes do not depend on `start`, so that a run's weights fit."""
    import transformers

    from pellucid.models.huggingface import building, collected, config_of, loaded, preparation_of, set_image_size, source_folder

    model, notes = name.removeprefix("transformers/"), list[str]()
    published = pretrained or weights is not None
    with collected(notes):
        source = str(weights) if weights is not None and weights.is_dir() else model
        folder = source_folder(name, source, published and start and (weights is None or weights.is_dir()))
        config = config_of(name, source, folder, options)
        kind = _checked_kind(name, config)
        _fit_vocabulary(name, config, vocabulary, published)
        if image_size is not None and not published:
            set_image_size(config, image_size)
        if published and start:
            whole, complete = loaded(name, getattr(transformers, kind), config, weights if weights is not None else folder, notes)  # type: ignore[arg-type]
            if not complete:
                raise WeightsError(f"{weights}: expected the weights of a whole {kind}; some of its tensors are missing, which would leave it partly random.")
        else:
            with building(name, options):
                whole = getattr(transformers, kind)(config)
        module = Captioner(whole, vocabulary)
        eye = module.get_submodule(module.eye)
        preparation = preparation_of(name, folder, config, eye, notes).at(image_size)
    notes += _overridden(name, whole, vocabulary) if published else []
    rows, columns = module.grid(preparation.size)
    notes.append(f"the decoder looks at {rows}x{columns} cells of {type(eye).__name__}")
    untrained = tuple(path for path, _ in module.named_modules() if path.startswith(f"{module.eye}.") and path.endswith(".pooler"))
    return Built(module.train(), preparation.mean, preparation.std, (), notes, module.eye, untrained), preparation


def _checked_kind(name: str, config: Any) -> str:
    """The class that a configuration is of; UsageError names the three. An encoder that states its widths by stages gets the one that is handed on."""
    kind = _kind_of({"model_type": config.model_type, "architectures": config.architectures})
    if kind is None:
        what = f"a {(config.architectures or [config.model_type])[0]}"
        raise UsageError(
            f"{name}: expected a captioner of transformers: a vision encoder-decoder, BLIP or GIT (model_type {', '.join(KINDS)}); it is {what}. "
            "Choose another model."
        )
    eye = getattr(config, "encoder", None)
    if eye is not None and not hasattr(eye, "hidden_size") and getattr(eye, "hidden_sizes", None):
        eye.hidden_size = eye.hidden_sizes[-1]  # VisionEncoderDecoderModel asks for it, convolutional encoders do not have it
    return kind


def _fit_vocabulary(name: str, config: Any, vocabulary: Vocabulary, published: bool) -> None:
    """Random weights are drawn for this vocabulary; published ones have their own, into which the tokeniser's must fit (UsageError)."""
    text: Any = next(part for part in (getattr(config, "decoder", None), getattr(config, "text_config", None), config) if hasattr(part, "vocab_size"))
    if not published:
        text.vocab_size = vocabulary.size
        text.pad_token_id, text.bos_token_id, text.eos_token_id = vocabulary.pad, vocabulary.start, vocabulary.end
        if hasattr(text, "sep_token_id"):
            text.sep_token_id = vocabulary.end
    elif vocabulary.size > text.vocab_size:
        raise UsageError(
            f"{name}: its published weights speak {text.vocab_size:,} tokens, the tokeniser {vocabulary.size:,}. Set text.tokenizer to {{name: transformers}}, "
            "which is the model's own, or pretrained: false."
        )


def _overridden(name: str, whole: Any, vocabulary: Vocabulary) -> list[str]:
    """What a model was published to generate by and does not here, in words."""
    holder = whole.text_decoder if hasattr(whole, "text_decoder") else whole
    stated = {**holder.generation_config.to_diff_dict(), **whole.generation_config.to_diff_dict()}
    lost = {key: stated[key] for key in _GENERATES if stated.get(key) is not None}
    notes = [f"{name}: published to generate by {json.dumps(lost, default=str)}; the settings of generation count instead"] if lost else []
    start = stated.get("decoder_start_token_id")
    if isinstance(start, int) and start != vocabulary.start:
        notes.append(f"{name}: published to begin captions after token {start}; here after {vocabulary.start}, the tokeniser's")
    return notes
