"""Captioners of a few thousand random weights, of the three kinds of transformers and our own, and the words that they speak."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from pellucid.models.captioner import Captioner
from pellucid.models.captioners import build_captioner

SIZE = (32, 32)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
EYE: dict[str, Any] = {**SMALL, "image_size": 32, "patch_size": 16}
NAMES: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "drop_rate": 0.1}
RESNET = {"channels": [8, 16, 24, 32], "stem_width": 8}  # of timm/resnet10t


@dataclass(frozen=True)
class Words:
    """A vocabulary of 12 words: so few that captions end."""

    size: int = 12
    start: int = 1
    end: int = 2
    pad: int = 0
    max_length: int = 10


def gpt(**also: Any) -> transformers.GPT2Config:
    return transformers.GPT2Config(vocab_size=12, n_embd=32, n_layer=2, n_head=2, n_positions=32, add_cross_attention=True, **{**NAMES, **also})


def encoder_decoder(eye: transformers.PretrainedConfig | None = None, **also: Any) -> nn.Module:
    parts = transformers.ViTConfig(**EYE) if eye is None else eye, gpt(**also)
    return transformers.VisionEncoderDecoderModel(transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts))


def blip() -> nn.Module:
    text = {**SMALL, **NAMES, "vocab_size": 12, "encoder_hidden_size": 32, "projection_dim": 32, "max_position_embeddings": 32, "sep_token_id": 2}
    return transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config={**EYE, "initializer_range": 0.02}, projection_dim=32)
    )


def git() -> nn.Module:
    return transformers.GitForCausalLM(transformers.GitConfig(vision_config=EYE, vocab_size=12, max_position_embeddings=32, **SMALL, **NAMES))


def own(encoder: str = "timm/resnet10t", stride: int | None = 16, **also: Any) -> Captioner:
    settings: dict[str, Any] = {"options": RESNET if encoder == "timm/resnet10t" else {}, "image_size": SIZE, "weights": None, "backbone_weights": None}
    built = build_captioner(
        "pellucid/captioner", vocabulary=Words(), encoder=encoder, encoder_stride=stride, decoder=DECODER, pretrained=False, **{**settings, **also}
    )
    assert isinstance(built.module, Captioner)
    return built.module


KINDS = {"encoder-decoder": encoder_decoder, "blip": blip, "git": git}


def captioner(kind: str, *, seed: int = 2, scale: float = 5.0, look: float = 10.0) -> Captioner:
    """A captioner of a kind in eval mode; its matrices are `scale` times what the library draws, where it looks at the picture `look` times that, so that
    pictures and words make a difference.
    """
    return copy.deepcopy(_captioner(kind, seed, scale, look))


@functools.cache
def _captioner(kind: str, seed: int, scale: float, look: float) -> Captioner:
    torch.manual_seed(seed)
    made = own() if kind == "own" else Captioner(KINDS[kind](), Words())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and "stages" not in name:
                parameter.mul_(scale * (look if "crossattention" in name or "encoder.projection" in name else 1.0))
    return made.eval()


def pictures(count: int = 3, size: tuple[int, int] = SIZE, seed: int = 3) -> torch.Tensor:
    """Images (count, 3, H, W), each of its own four colours in four corners, with noise."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.nn.functional.interpolate(4 * torch.randn(count, 3, 2, 2, generator=generator), size)
    return corners + torch.randn(count, 3, *size, generator=generator)


def captions(rows: int = 4, length: int = 7) -> torch.Tensor:
    """(rows, length) tokens that begin with the start; the second row ends early and is padded."""
    tokens = torch.randint(3, 12, (rows, length), generator=torch.Generator().manual_seed(5))
    tokens[:, 0] = Words.start
    tokens[1:2, 3], tokens[1:2, 4:] = Words.end, Words.pad
    return tokens


def saved(model: Any, folder: Path, **processor: Any) -> Path:
    """A folder in the hub's layout with the model and what is done to its photographs."""
    model.save_pretrained(folder)
    chosen = {"size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **processor}
    transformers.ViTImageProcessor(**chosen).save_pretrained(folder)
    return folder
