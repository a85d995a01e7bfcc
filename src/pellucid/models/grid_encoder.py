"""A timm model as the eye of a captioner: its features at one stride, as a row of tokens that know where they lie.

Each cell of the grid of features (B, C, gh, gw) becomes a token of the decoder's width: a linear projection, LayerNorm, and a two-dimensional position
embedding that is added, since attention does not see the order of its keys. The positions are sines and cosines of the cell's centre, half of the width
for the row and half for the column, as in DETR (Carion et al. 2020); they are fixed and relative to the picture's sides, so that any size and aspect has
them and one place has one code at every size. DETR's wavelengths reach 10,000 times the side, where all cells look alike; here they go from two sides down
to a sixteenth of one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from pellucid.errors import UsageError
from pellucid.models.backbones import constructing, timm_config, timm_says
from pellucid.models.stages import of_width, takes

_LONGEST, _SHORTEST = 2.0, 1 / 16  # wavelengths of the positions, in sides of the picture


class GridConfig(transformers.PretrainedConfig):
    """What an encoder-decoder of transformers asks of its encoder: hidden_size, the width of a token."""

    model_type = "pellucid_grid"

    def __init__(self, hidden_size: int = 128, **kwargs: Any) -> None:
        self.hidden_size = hidden_size
        super().__init__(**kwargs)


# transformers builds the configuration of an encoder-decoder from the types of its two parts.
transformers.AutoConfig.register(GridConfig.model_type, GridConfig, exist_ok=True)


class GridEncoder(transformers.PreTrainedModel):
    """Tokens (B, gh·gw, embed_dim) of images (B, 3, H, W): the last feature map of `stages`, its cells row by row.

    stages: a timm model built with features_only and one level. channels: of that level; channels_last: whether it gives (B, gh, gw, C).
    """

    config_class = GridConfig
    base_model_prefix = "grid"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # the library names it in tuples and states another type

    def __init__(self, stages: nn.Module, *, channels: int, embed_dim: int, channels_last: bool) -> None:
        super().__init__(GridConfig(hidden_size=embed_dim))
        self.stages = stages
        self.projection = nn.Linear(channels, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.channels_last = channels_last

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: timm's and torch's own start is kept, transformers would draw another."""

    def features(self, images: Tensor) -> Tensor:
        """The grid of features (B, gh, gw, C) of images (B, 3, H, W)."""
        found: Tensor = self.stages(images)[-1]
        return found if self.channels_last else found.permute(0, 2, 3, 1)  # B, gh, gw, C

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """The tokens as `last_hidden_state`; what else an encoder-decoder hands down (return_dict, output_attentions) changes nothing here."""
        features = self.features(pixel_values)
        height, width = features.shape[1:3]
        tokens = self.norm(self.projection(features)).flatten(1, 2)  # B, gh·gw, D
        return BaseModelOutput(last_hidden_state=tokens + positions(height, width, tokens.shape[-1]).to(tokens))  # type: ignore[arg-type]


def positions(height: int, width: int, embed_dim: int) -> Tensor:
    """Codes (height·width, embed_dim) float32 of the cells of a grid, row by row: sin and cos of the row, then of the column; embed_dim a multiple of 4."""
    count = embed_dim // 4
    ratio = (_SHORTEST / _LONGEST) ** (1 / max(1, count - 1))
    wavelengths = _LONGEST * ratio ** torch.arange(count, dtype=torch.float64)  # sides of the picture

    def codes(length: int) -> Tensor:
        centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        angles = 2 * math.pi * centres[:, None] / wavelengths
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # length, D/2

    rows, columns = codes(height)[:, None], codes(width)[None]
    return torch.cat([rows.expand(height, width, -1), columns.expand(height, width, -1)], dim=2).flatten(0, 1).float()


# ── building ──
def build_grid_encoder(model: str, *, stride: int | None, embed_dim: int, options: Mapping[str, Any], notes: list[str]) -> GridEncoder:
    """timm's `model` cut at `stride` (pixels a cell; None: its last level), with random weights from torch's global generator.

    options: further arguments of its constructor. Raises UsageError for a model that gives no grid, a stride that it does not have, an option that it does
    not take, and a width that positions cannot be written in.
    """
    name = f"timm/{model}"
    if embed_dim % 4:
        raise UsageError(f"decoder.embed_dim: expected a multiple of 4, sines and cosines of row and column; got {embed_dim}. Give {-(-embed_dim // 4) * 4}.")
    reserved = next((key for key in ("features_only", "out_indices", "num_classes", "pretrained") if key in options), None)
    if reserved is not None:
        raise UsageError(f"{name}: {reserved} is not an option of a captioner's encoder; encoder_stride says where it is cut. Remove it.")
    arguments = dict(options)
    stages: Any
    with timm_says(notes), of_width(model.split(".")[0], arguments):
        level = _level(model, stride, arguments)
        with _cutting(name, arguments):
            stages = timm.create_model(model, features_only=True, out_indices=(level,), **arguments)
    channels_last = getattr(getattr(stages, "output_fmt", None), "value", "NCHW") == "NHWC"
    return GridEncoder(stages, channels=stages.feature_info.channels()[-1], embed_dim=embed_dim, channels_last=channels_last)


def sized(model: str, options: Mapping[str, Any], image_size: tuple[int, int], notes: list[str]) -> dict[str, Any]:
    """`options` with those about size: any where position embeddings can be interpolated, `image_size` (height, width) for models that take one alone."""
    config = timm_config(model)
    if config is None or not config.fixed_input_size or "img_size" in options or options.get("dynamic_img_size"):
        return dict(options)
    if "dynamic_img_size" not in options and takes(model, "dynamic_img_size"):
        notes.append(f"timm/{model}: position embeddings are interpolated to the size of each image (dynamic_img_size)")
        return {**options, "dynamic_img_size": True}
    notes.append(f"timm/{model} is built for images of {image_size[0]}x{image_size[1]} pixels")
    return {**options, "img_size": image_size}


def _level(model: str, stride: int | None, arguments: Mapping[str, Any]) -> int:
    """The last level of timm's feature maps of that stride; UsageError lists those that there are."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _cutting(f"timm/{model}", arguments):
        cut: Any = timm.create_model(model, features_only=True, **arguments)
        levels = [int(entry["reduction"]) for entry in cut.feature_info.info]
    wanted = levels[-1] if stride is None else stride
    if wanted not in levels:
        there = ", ".join(str(found) for found in sorted(set(levels)))
        raise UsageError(f"model.encoder_stride: timm/{model} has features at strides of {there} pixels, got {stride}. Choose one of these.")
    return len(levels) - 1 - levels[::-1].index(wanted)


@contextmanager
def _cutting(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """timm's complaint as ours; what it warns of its own use of torch is kept away."""
    with constructing(f"{name} as features of a grid", arguments), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.")
        yield
