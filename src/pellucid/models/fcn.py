"""Fully convolutional networks on VGG-16: FCN-32s, FCN-16s and FCN-8s.

Long, Shelhamer and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation" (CVPR; sections 3.2, 4.1 to 4.3): the classifier's fully
connected layers become convolutions (conv6 7x7, conv7 1x1, each with ReLU and dropout), a 1x1 convolution scores the classes, and a transposed
convolution with the weights of bilinear interpolation brings the scores to the pixels. 16s and 8s add scores of pool4 and pool3 on the way.

What differs from the published network:
- The paper pads the image by 100 pixels so that conv6 (without padding) has something to see, and crops the output by an offset. Here conv6 is padded
  by 3, which keeps cell i of the map over pixels 32 i to 32 i + 31; the image is padded with zeros at its bottom and right to a multiple of 32. The
  borders therefore see zeros where the paper's see a padded picture's features, and the map is 1/32 of the image instead of larger.
- Before each transposed convolution the outermost scores are repeated once, so that the interpolation does not fade towards the border.
- All transposed convolutions are trained. The paper fixes the last one.
- The scores of pool4 and pool3 are not scaled. Some published definitions scale them by 0.01 and 0.0001.
- There is no staged training: 16s and 8s start like 32s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torchvision.models
from torch import Tensor, nn

from pellucid.errors import UsageError

STRIDES = (32, 16, 8)
PAPER_CHANNELS = 4096
# Number of the pooling layer: channels that it hands on.
_POOL_CHANNELS = {3: 256, 4: 512}


class FCN(nn.Module):
    """Logits (B, num_classes, H, W) of images (B, 3, H, W), H and W at least 32 pixels.

    stride: of the finest features that are scored. channels: of conv6 and conv7. batch_norm: VGG-16 with BatchNorm in its features. dropout: rate
    after conv6 and conv7. Scores start at zero, as in the paper, transposed convolutions at bilinear interpolation, the rest as torchvision's VGG.
    """

    def __init__(self, num_classes: int, *, stride: Literal[32, 16, 8], channels: int = PAPER_CHANNELS, batch_norm: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        if stride not in STRIDES:
            raise UsageError(f"FCN: expected a stride of 32, 16 or 8, got {stride}.")
        if channels < 1:
            raise UsageError(f"FCN: expected channels of at least 1, got {channels}.")
        self.features = _vgg16_features(batch_norm)
        self.conv6 = nn.Conv2d(512, channels, 7, padding=3)
        self.conv7 = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(channels, num_classes, 1)
        # {"4": …} for 16s, {"4": …, "3": …} for 8s: the pooling layers whose scores are added, coarse to fine.
        pools = [str(pool) for pool in (4, 3)[: STRIDES.index(stride)]]
        self.pool_scores = nn.ModuleDict({pool: nn.Conv2d(_POOL_CHANNELS[int(pool)], num_classes, 1) for pool in pools})
        self.pool_upsampling = nn.ModuleDict({pool: BilinearTransposed(num_classes, 2) for pool in pools})
        self.upsampling = BilinearTransposed(num_classes, stride)
        self._initialise()

    def _initialise(self) -> None:
        for layer in (self.conv6, self.conv7):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for parameter in (*self.score.parameters(), *self.pool_scores.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < 32:
            raise UsageError(f"FCN: expected images of at least 32x32 pixels, got {height}x{width}. Raise data.image_size.")
        x = nn.functional.pad(x, (0, -width % 32, 0, -height % 32))
        pooled: list[Tensor] = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(x)  # after pool1 to pool5: B, C, H / 2, W / 2 to B, 512, H / 32, W / 32
        x = self.dropout(torch.relu(self._wide(x)))
        x = self.dropout(torch.relu(self.conv7(x)))
        scores = self.score(x)  # B, num_classes, H / 32, W / 32
        for pool, score in self.pool_scores.items():
            scores = self.pool_upsampling[pool](scores) + score(pooled[int(pool) - 1])
        logits: Tensor = self.upsampling(scores)
        return logits[..., :height, :width]

    def _wide(self, x: Tensor) -> Tensor:
        """conv6. On a map of one or two cells most taps of its 7x7 kernel meet padding alone, and the CPU's bf16 backward pass leaves their gradient as it
        finds the memory (torch 2.15, docs/log.md): there the padding is made beforehand.
        """
        if min(x.shape[-2:]) > 2:
            wide: Tensor = self.conv6(x)
            return wide
        return nn.functional.conv2d(nn.functional.pad(x, (3, 3, 3, 3)), self.conv6.weight, self.conv6.bias)


class BilinearTransposed(nn.ConvTranspose2d):
    """Maps (B, C, h, w) to (B, C, s h, s w) with a kernel of 2 s, which starts as the bilinear interpolation of each channel."""

    def __init__(self, channels: int, factor: int) -> None:
        # The border is repeated once (factor more pixels on each side) and the kernel reaches half a factor beyond: both are cut off.
        super().__init__(channels, channels, 2 * factor, stride=factor, padding=factor + factor // 2, bias=False)
        offset = (torch.arange(2 * factor) + 0.5) / factor - 1  # distance from the kernel's centre, in cells
        triangle = 1 - offset.abs()
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(channels), range(channels)] = triangle[:, None] * triangle

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        # Slices, not padding mode replicate: its backward pass adds with atomics on CUDA.
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=-2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
        return super().forward(x, output_size)


def _vgg16_features(batch_norm: bool) -> nn.Sequential:
    """The convolutions and poolings of torchvision's VGG-16, initialised as there."""
    builder = torchvision.models.vgg16_bn if batch_norm else torchvision.models.vgg16
    with torch.device("meta"):  # its classifier of 120 million weights is not wanted
        features = builder(weights=None, init_weights=False).get_submodule("features")
    assert isinstance(features, nn.Sequential)
    features = features.to_empty(device="cpu")
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return features


def convolutional(state: Mapping[str, Tensor], channels: int) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors of features, conv6 and conv7; names that have no place) of a VGG-16 classifier's state dict.

    The fully connected fc6 over 512x7x7 and fc7 are conv6 and conv7 with the same numbers (section 3.1) when `channels` is 4096; for other `channels`
    they have no place.
    """
    placed, rest = {}, []
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        target = {"classifier.0": "conv6", "classifier.3": "conv7"}.get(layer)
        if name.startswith("features."):
            placed[name] = tensor
        elif target is None or channels != PAPER_CHANNELS:
            rest.append(name)
        else:
            side = 7 if target == "conv6" else 1
            fully_connected = kind == "weight" and tensor.ndim == 2 and tensor.shape[1] % side**2 == 0
            placed[f"{target}.{kind}"] = tensor.reshape(tensor.shape[0], -1, side, side) if fully_connected else tensor
    return placed, rest
