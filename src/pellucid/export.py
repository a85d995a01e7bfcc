"""A trained model as one file for other programs: ONNX for runtimes, safetensors for PyTorch, its backbone for other tasks. Each is checked before it appears.

An ONNX file takes float32 RGB images (B, 3, H, W) of one size and any B, scaled to [0, 1] and normalised by the mean and std that stand in its
metadata beside the class names (each as JSON), and gives logits (B, C), or (B, C, H, W) where classes are of pixels. It is run by onnxruntime on the same
images as the PyTorch model; if their logits differ by more than `TOLERANCE`, no file is left.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import MissingError, PellucidError, UsageError
from pellucid.files import replacing
from pellucid.models.backbone_file import BackboneFacts, backbone_state
from pellucid.models.weights import read_weights, save_weights
from pellucid.recipe import DataSection
from pellucid.run import Run

TOLERANCE = 1e-3  # largest difference of logits, as a fraction of the largest logit
BATCHES = (1, 3)  # sizes at which an export is compared: neither is the size it was traced with
_TRACED_BATCH = 2
_LARGEST_ONNX = 2 * 1000**3  # bytes; a protobuf file cannot be larger


@dataclass(frozen=True)
class ExportResult:
    """A file that was written and how it compares with the model it came from.

    difference: largest absolute difference of logits (onnx) or of weights (safetensors). scale: largest absolute logit or weight of the model.
    compared: number of images (onnx) or tensors (safetensors). decided: how often a class is chosen in them, once an image or once a pixel of each, which
    `of` says; of safetensors the tensors. same_argmax: how many of `decided` are of the same class (onnx), or equal (safetensors). left_out: paths of the
    layers that a backbone does not have.
    """

    file: Path
    format: str
    num_bytes: int
    compared: int
    difference: float
    scale: float
    same_argmax: int
    decided: int
    of: str
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was written, and the comparison."""
        if self.format == "safetensors":
            without = [f"without the classifier, {', '.join(self.left_out)}"] if self.left_out else []
            return [f"{self.file}: {self.num_bytes / 1e6:.1f} MB", *without, f"{self.same_argmax} of {self.compared} tensors read back equal, bit for bit"]
        decided = f"{self.decided:,} {self.of}" + (f" of {self.compared:,} images" if self.of != "images" else "")
        return [
            f"{self.file}: {self.num_bytes / 1e6:.1f} MB",
            f"onnxruntime and PyTorch on {self.compared} images: logits differ by at most {self.difference:.1e} (largest logit {self.scale:.3g}), "
            f"same class for {self.same_argmax:,} of {decided}",
        ]


def export_onnx(
    module: nn.Module,
    out: str | Path,
    *,
    image_size: tuple[int, int],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    opset: int = 18,
    images: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportResult:
    """Write `module` as an ONNX file, compared with it on `images` (n, 3, H, W; normalised) or on seeded random ones.

    Raises MissingError without the extra `export`, UsageError beyond 2 GB and PellucidError when the model cannot be traced or the logits differ.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _LARGEST_ONNX:
        raise UsageError(f"{out}: {size / 1e9:.1f} GB of weights do not fit an ONNX file (2 GB at most). Use the format safetensors.")
    facts = {
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        "image_size": json.dumps(list(image_size)),
        "mean": json.dumps([float(value) for value in mean]),
        "std": json.dumps([float(value) for value in std]),
        "input": "float32 RGB (B, 3, H, W): pixels in [0, 1], minus mean, divided by std",
        **(metadata or {}),
    }
    with _evaluating(module), replacing(out) as temporary:
        program = _trace(module, image_size, opset)
        shape = "(B, C, H, W)" if len(program.model.graph.outputs[0].shape) == 4 else "(B, C)"
        program.model.metadata_props.update({"output": f"logits {shape} in the order of class_names", **facts})
        program.save(temporary, external_data=False)
        ours, theirs = _logits(module, temporary, image_size, images)
        difference, scale = float((ours - theirs).abs().max()), float(ours.abs().max())
        if not difference <= TOLERANCE * scale:  # a NaN is a difference
            raise PellucidError(
                f"{out}: the exported model's logits differ from PyTorch's by {difference:.2e}, expected at most {TOLERANCE:g} of the largest logit "
                f"{scale:.3g}. No file was written. Try another opset, or the format safetensors."
            )
    same = ours.argmax(dim=1) == theirs.argmax(dim=1)  # (n,), or (n, H, W) of a segmentation
    of = "images" if same.ndim == 1 else "pixels"
    return ExportResult(out, "onnx", out.stat().st_size, len(ours), difference, scale, int(same.sum()), same.numel(), of)


def export_safetensors(weights: nn.Module | Mapping[str, Tensor], out: str | Path, metadata: Mapping[str, str] | None = None) -> ExportResult:
    """Write the weights of a module, or tensors by name, and text about them, read back and compared bit for bit."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    own = {name: tensor.detach().cpu() for name, tensor in state.items()}
    with replacing(out, suffix=".safetensors") as temporary:
        save_weights(own, temporary, metadata)
        written = read_weights(temporary)
        unequal = [name for name, tensor in own.items() if name not in written or not same_bits(tensor, written[name])]
        if unequal or len(written) != len(own):
            names = ", ".join(unequal[:5])
            raise PellucidError(f"{out}: expected {len(own)} tensors to read back as they were, {len(unequal)} differ: {names}. No file was written.")
    scale = max((float(tensor.abs().max()) for tensor in own.values() if tensor.numel()), default=0.0)
    return ExportResult(out, "safetensors", out.stat().st_size, len(own), 0.0, scale, len(own), len(own), "tensors")


def export_backbone(module: nn.Module, out: str | Path, facts: BackboneFacts, *, backbone: str = "") -> ExportResult:
    """Write the backbone of `module` as models/backbone_file.py describes it, read back and compared bit for bit. backbone: its path in `module`."""
    result = export_safetensors(backbone_state(module, classifier=facts.classifier, backbone=backbone), out, facts.metadata())
    return replace(result, left_out=facts.classifier)


def backbone_facts(run: Run, classifier: Sequence[str]) -> BackboneFacts:
    """What the backbone file of a run says of itself. classifier: paths of the layers that the file leaves out."""
    recipe, data = run.recipe, run.data
    (red, green, blue), (red_std, green_std, blue_std) = data.mean, data.std
    return BackboneFacts(
        model=recipe.model.name,
        options=recipe.model.options,
        classifier=tuple(classifier),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        image_size=recipe.data.size,
        task=recipe.task,
        method=recipe.method.name if recipe.method is not None else "backbone frozen" if recipe.model.freeze == "backbone" else "supervised",
        data=_set_name(recipe.data),
        run=run.name,
        pellucid=run.record.pellucid,
    )


def _set_name(data: DataSection) -> str:
    """A short name of a data set: its folder, of flowers/train.csv flowers; its source where it is no path."""
    if not isinstance(data.train, str) or ":" in data.source:
        return data.source
    path = Path(data.train)
    return path.parent.name or path.name if path.stem == "train" else path.name


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equality that holds for NaN too."""
    one, other = one.contiguous(), other.contiguous()
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _require(*packages: str) -> None:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        raise MissingError(f"export to ONNX needs {', '.join(absent)}: pip install 'pellucid[export]'")


def _trace(module: nn.Module, image_size: tuple[int, int], opset: int) -> Any:
    """torch's ONNX program of a model for any number of images."""
    example = torch.zeros(_TRACED_BATCH, 3, *image_size, device=_device(module))
    with _quiet():
        try:
            return torch.onnx.export(
                module,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = next((line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()), type(error).__name__)
            raise PellucidError(f"{type(module).__name__} cannot be exported to ONNX: {reason} Use the format safetensors.") from error


def _logits(module: nn.Module, file: Path, image_size: tuple[int, int], images: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits of the model and those of the file, of the same images in batches of `BATCHES` and what is left."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    if images is None or not len(images):
        images = torch.randn(sum(BATCHES), 3, *image_size, generator=torch.Generator().manual_seed(0))
    images = images.float().cpu()
    while len(images) < sum(BATCHES):
        images = torch.cat([images, images])
    expected, found = [], []
    for batch in images.split([*BATCHES, len(images) - sum(BATCHES)]):
        if len(batch):
            with torch.no_grad():
                expected.append(module(batch.to(_device(module))).float().cpu())
            found.append(torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0]))
    return torch.cat(expected), torch.cat(found)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part in the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own internals; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
