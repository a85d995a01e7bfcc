"""Weights on disk: read them, fit them to a model with every difference listed, and write them.

A `.safetensors` file holds tensors and nothing else. A `.pth`, `.pt`, `.bin` or `.ckpt` file is a pickle and is read with torch's restricted
unpickler: a file that would execute code is refused and the offending name is given.

`load_weights` finds the state dict inside common wrappers (`state_dict`, `model`, …), strips the prefix under which most names match
(`module.`, `backbone.`, …), leaves classifier tensors of another class count as they were initialised, and resizes position embeddings. What
it did stands in a `WeightsReport`; what it cannot do without a random start somewhere in the backbone is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from torchvision.models.vision_transformer import interpolate_embeddings

from pellucid.errors import MissingError, WeightsError
from pellucid.files import replacing

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "teacher",
    "student",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
)
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")

# Tensors that a constructor computes rather than draws: a file may lack them and training still starts where the file ends.
_COMPUTED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
# torchvision's published DenseNets were saved when module names could hold a dot: denselayer1.norm.1 is denselayer1.norm1 today.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")
_LISTED = 20


class Reshape(NamedTuple):
    """A tensor that was resized on its way into the model."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    how: str


@dataclass(frozen=True)
class WeightsReport:
    """What became of each tensor of a weights file.

    loaded: tensors copied into the model, reshaped ones included. missing: tensors of the model that the file lacks (classifier, or computed by the
    constructor). unexpected: tensors of the file that the model has no place for. skipped_head: classifier tensors of another class count.
    """

    file: str
    loaded: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[Reshape] = field(default_factory=list)
    skipped_head: list[str] = field(default_factory=list)
    prefix: str = ""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each thing that a reader should know; the first says how many tensors were loaded."""
        found = [f"{self.file}: {self.loaded} tensors loaded" + (f", prefix {self.prefix!r} stripped" if self.prefix else "")]
        found += [f"{item.name}: {_shape(item.before)} resized to {_shape(item.after)} ({item.how})" for item in self.reshaped]
        if self.skipped_head:
            found.append(f"classifier of another class count, freshly initialised: {', '.join(self.skipped_head)}")
        computed = Counter(name.rpartition(".")[2] for name in self.missing if name.endswith(_COMPUTED))
        missing = [name for name in self.missing if not name.endswith(_COMPUTED)] + [f"{number} x {name}" for name, number in computed.items()]
        if missing:
            found.append(f"not in the file, left as initialised: {', '.join(missing)}")
        if self.unexpected:
            found.append(f"in the file, without a place in the model: {', '.join(self.unexpected)}")
        return found + self.notes


# ── reading ──
def read_weights(path: str | Path, *, entry: str | None = None) -> dict[str, Tensor]:
    """{name: tensor} of a file, on the CPU, prefixes kept. `entry` chooses where a checkpoint holds several state dicts."""
    return _read(Path(path), entry)[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file."""
    path = _existing(Path(path))
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise WeightsError(_unreadable(path, error)) from None


def _read(path: Path, entry: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name, and notes about where in the file they were."""
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path, device="cpu"), []
        except safetensors.SafetensorError as error:
            raise WeightsError(_unreadable(path, error)) from None
    if path.suffix not in PICKLES:
        raise WeightsError(f"{path}: expected a .safetensors, .pth or .pt file, got {path.suffix or 'no suffix'!r}")
    return _state_dict(_unpickle(path), path, entry)


def _existing(path: Path) -> Path:
    if not os.path.isfile(path):  # False too for a name that no file can have
        raise MissingError(f"{path}: no such weights file. Check the path; in a recipe it starts at the recipe file.")
    return path


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: cannot be read as weights, the file is truncated or of another kind ({reason}). Download or save it again."


def _unpickle(path: Path) -> Any:
    """What a pickle holds, read without executing anything from it."""
    try:
        # timm's and DeiT's training checkpoints keep their command line as a Namespace: plain attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.search(r"GLOBAL (\S+)", str(error))
        if names is None:
            raise WeightsError(_unreadable(path, error)) from None
        raise WeightsError(
            f"{path}: refused, loading it would execute code: it refers to {names.group(1)}. Expected a file of tensors. "
            "If you trust its origin, save its state_dict() as .safetensors and give that file."
        ) from None
    except Exception as error:  # a foreign file raises EOFError, KeyError, RuntimeError and others from inside torch
        raise WeightsError(_unreadable(path, error)) from None


def _state_dict(loaded: Any, path: Path, entry: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside a loaded checkpoint, and a note when it was wrapped or had other things beside the tensors."""
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: expected a state dict (names and tensors), got {type(loaded).__name__}")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    wrapped = {str(name): value for name, value in loaded.items() if name in WRAPPERS and _holds_tensors(value)}
    if entry is not None:
        if entry not in loaded:
            raise WeightsError(f"{path}: no entry {entry!r}; the file has {', '.join(map(str, loaded)) or 'none'}")
        wrapped, tensors = {entry: loaded[entry]}, {}
    if tensors:
        others = [str(name) for name in loaded if str(name) not in tensors]
        return tensors, [f"not tensors, left out: {', '.join(others)}"] if others else []
    if not wrapped:
        found = ", ".join(map(str, loaded)) or "an empty mapping"
        raise WeightsError(f"{path}: no state dict found; expected tensors at the top or under one of {', '.join(WRAPPERS)}, got {found}")
    if len(wrapped) > 1:
        raise WeightsError(f"{path}: holds several state dicts ({', '.join(wrapped)}) and nothing says which. Save the one that is meant as a file of its own.")
    name, inner = next(iter(wrapped.items()))
    state, notes = _state_dict(inner, path, None)
    return state, [f"state dict taken from the entry {name!r}", *notes]


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a state dict, or wraps one. A mapping that holds itself is looked at once."""
    waiting, seen = [value], set()
    while waiting:
        inner = waiting.pop()
        if not isinstance(inner, Mapping) or id(inner) in seen:
            continue
        seen.add(id(inner))
        if any(isinstance(item, Tensor) for item in inner.values()):
            return True
        waiting += [inner[name] for name in WRAPPERS if name in inner]
    return False


# ── fitting ──
@dataclass(frozen=True)
class _Fit:
    """How a file's tensors meet a model's.

    `tensors` have the model's names and shapes; `wrong` are shapes that cannot be reconciled, `other_kind` types of numbers.
    """

    tensors: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    skipped_head: list[str]
    reshaped: list[Reshape]
    wrong: list[str]
    prefix: str = ""
    other_kind: list[str] = field(default_factory=list)

    @property
    def matched(self) -> int:
        return len(self.tensors) + len(self.skipped_head) + len(self.wrong) + len(self.other_kind)


def load_weights(
    module: nn.Module, path: str | Path, *, classifier: Sequence[str], allow_head_mismatch: bool = True, entry: str | None = None
) -> WeightsReport:
    """Copy a file's tensors into `module`; the report lists all that did not go in as it was.

    classifier: path prefixes of the head. Its tensors may be absent or of another class count unless `allow_head_mismatch` is False. Raises
    MissingError (no file) and WeightsError (unreadable, does not fit, a backbone tensor is missing or of another shape).
    """
    path = Path(path)
    state, notes = _read(path, entry)
    return load_state(module, state, file=path.name, classifier=classifier, allow_head_mismatch=allow_head_mismatch, notes=notes)


def load_state(
    module: nn.Module, state: Mapping[str, Tensor], *, file: str, classifier: Sequence[str], allow_head_mismatch: bool = True, notes: Sequence[str] = ()
) -> WeightsReport:
    """`load_weights` for tensors in memory; `file` names them in messages."""
    notes = list(notes)
    head = tuple(classifier) if allow_head_mismatch else ()
    fit = _fit(module, dict(state), head)
    if _faults(fit, head):
        fit, filtered = _with_timm_filter(module, dict(state), fit, head)
        notes += filtered
    _raise_misfit(module, state, fit, file, head)
    own = module.state_dict()
    kinds = Counter(f"{tensor.dtype} to {own[name].dtype}".replace("torch.", "") for name, tensor in fit.tensors.items() if tensor.dtype != own[name].dtype)
    notes += [f"{number} tensors converted from {kind}" for kind, number in kinds.items()]
    module.load_state_dict(fit.tensors, strict=False)  # strictness is ours: everything that is not strict stands in the report
    return WeightsReport(file, len(fit.tensors), fit.missing, fit.unexpected, fit.reshaped, fit.skipped_head, fit.prefix, notes)


def _fit(module: nn.Module, state: dict[str, Tensor], head: tuple[str, ...]) -> _Fit:
    """Each tensor of the model beside the file's tensor of the same name."""
    own = module.state_dict()
    prefix, sources = _sources(list(state), set(own))
    fit = _Fit({}, [], [name for name in state if name not in set(sources.values())], [], [], [], prefix)
    for name, target in own.items():
        if name not in sources:
            fit.missing.append(name)
            continue
        tensor = state[sources[name]]
        if not _has_numbers_for(tensor, target):
            kind = f"{tensor.dtype} on {tensor.device}".replace("torch.", "").removesuffix(" on cpu")
            fit.other_kind.append(f"{name}: the model has {str(target.dtype).removeprefix('torch.')}, the file {kind}")
            continue
        if tensor.shape != target.shape and under(name, head):
            fit.skipped_head.append(f"{name} {_shape(tensor.shape)}")
            continue
        resized, how = _resize_positions(module, name, tensor, target)
        if resized.shape != target.shape:
            fit.wrong.append(f"{name}: the model has {_shape(target.shape)}, the file {_shape(tensor.shape)}")
            continue
        if how:
            fit.reshaped.append(Reshape(name, tuple(tensor.shape), tuple(target.shape), how))
        fit.tensors[name] = resized
    return fit


def _sources(names: list[str], own: set[str]) -> tuple[str, dict[str, str]]:
    """(prefix, {model name: file name}): the prefix is the one under which most names match, the shortest of equals."""
    current = {name: _OLD_DENSENET.sub(r"\1\2", name) for name in names}
    matches = Counter({"": 0})
    for name in current.values():
        parts = name.split(".")
        matches.update(".".join(parts[:i]) + "." * (i > 0) for i in range(len(parts)) if ".".join(parts[i:]) in own)
    prefix = max(matches, key=lambda candidate: (matches[candidate], -len(candidate)))
    sources = {new.removeprefix(prefix): name for name, new in current.items() if new.startswith(prefix) and new.removeprefix(prefix) in own}
    for name, new in current.items():  # a head saved beside a prefixed backbone
        if new in own:
            sources.setdefault(new, name)
    return prefix, sources


def _has_numbers_for(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor's numbers can stand in the place of the model's: floats for floats, and real data behind them."""
    real = tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_complex()
    return real and (tensor.is_floating_point() or not target.is_floating_point())


def _resize_positions(module: nn.Module, name: str, tensor: Tensor, target: Tensor) -> tuple[Tensor, str]:
    """A learned position embedding (1, N, D) resized to another grid, and how; anything else comes back as it is, with ''."""
    if tensor.shape == target.shape or tensor.ndim != 3 or target.ndim != 3 or tensor.shape[0] != 1 or tensor.shape[2] != target.shape[2]:
        return tensor, ""
    if name == "encoder.pos_embedding" and isinstance(module, TorchvisionViT):
        if not _is_square(tensor.shape[1] - 1):
            return tensor, ""
        moved = interpolate_embeddings(module.image_size, module.patch_size, {name: tensor})  # type: ignore[arg-type]
        return moved[name], "bicubic, torchvision interpolate_embeddings"
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if name == "pos_embed" and grid is not None:
        prefix_tokens = 0 if getattr(module, "no_embed_class", False) else int(getattr(module, "num_prefix_tokens", 0))
        if not _is_square(tensor.shape[1] - prefix_tokens):
            return tensor, ""
        return resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix_tokens), "bicubic, timm resample_abs_pos_embed"
    return tensor, ""


def _is_square(number: int) -> bool:
    return number > 0 and round(number**0.5) ** 2 == number


def _with_timm_filter(module: nn.Module, state: dict[str, Tensor], fit: _Fit, head: tuple[str, ...]) -> tuple[_Fit, list[str]]:
    """The better of `fit` and what timm's own checkpoint filter (older key layouts, relative position tables) makes of the file."""
    home = sys.modules[type(module).__module__]
    convert: Callable[..., dict[str, Tensor]] | None = getattr(home, "checkpoint_filter_fn", None)
    if convert is None or not home.__name__.startswith("timm."):
        return fit, []
    renamed = {name.removeprefix(fit.prefix): tensor for name, tensor in state.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"timm\.layers\.interpolate")  # about its own use of torch
            converted = dict(convert(dict(renamed), module))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return fit, []  # the file is not one that timm knows; the fit without it is reported in full
    better = _fit(module, converted, head)
    if len(_faults(better, head)) >= len(_faults(fit, head)):
        return fit, []
    changed = [
        Reshape(name, tuple(renamed[name].shape), tuple(tensor.shape), "timm checkpoint filter")
        for name, tensor in better.tensors.items()
        if name in renamed and renamed[name].shape != tensor.shape
    ]
    lost = sorted(set(renamed) - set(converted))
    notes = [f"timm's checkpoint filter renamed or dropped: {', '.join(lost)}"] if lost else []
    return replace(better, reshaped=better.reshaped + changed, prefix=fit.prefix), notes


def _faults(fit: _Fit, head: tuple[str, ...]) -> list[str]:
    """Names that keep a model from starting where the file ends."""
    return fit.wrong + fit.other_kind + [name for name in fit.missing if not under(name, head) and not name.endswith(_COMPUTED)]


def _raise_misfit(module: nn.Module, state: Mapping[str, Tensor], fit: _Fit, file: str, head: tuple[str, ...]) -> None:
    if 2 * fit.matched < len(state) or not (fit.tensors or fit.wrong or fit.other_kind):
        raise WeightsError(
            f"{file}: does not fit the model: {fit.matched} of {len(state)} tensors match by name. The file has "
            f"{_listed(list(state), 3)}; the model {_listed(list(module.state_dict()), 3)}. Check model.name and model.options."
        )
    missing = [name for name in _faults(fit, head) if name not in fit.wrong and name not in fit.other_kind]
    faults = []
    if fit.wrong:
        faults.append(f"{len(fit.wrong)} of another shape: {_listed(fit.wrong, len(fit.wrong))}")
    if fit.other_kind:
        faults.append(f"{len(fit.other_kind)} without numbers that fit: {_listed(fit.other_kind)}")
    if missing:
        faults.append(f"{len(missing)} missing from the file (training would start from random parts): {_listed(missing)}")
    if faults:
        raise WeightsError(f"{file}: tensors do not fit the model; {'; '.join(faults)}. Check model.name, model.options and image_size.")


def under(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted path is one of `prefixes` or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _listed(names: Sequence[str], limit: int = _LISTED) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"


# ── writing ──
def save_weights(weights: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file through a temporary file and a rename. Same tensors and metadata: same bytes.

    Tensors that share memory are each written whole: safetensors has no references, and loading restores both with equal values.
    """
    path = Path(path)
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in state.items()}
    data = safetensors.torch.save(tensors, metadata={"format": "pt", **(metadata or {})})
    # safetensors writes its metadata in the order of a hash map that differs between processes: sort it, so that equal weights are equal files.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[8 + size :])
