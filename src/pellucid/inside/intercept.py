"""Seeing every attention of a model while it runs: unedited, with its fused kernels on, its outputs the same bits.

Three things are put in place for the time of a `with` block and removed behind it. A function mode sees `F.scaled_dot_product_attention`,
softmax and matmul, in Python and in exported graphs. torch's multi-head attention functions are wrapped, because a function mode would turn
their C++ fast path off, whose results differ: inside torch's own layers the mode is off, so that they take the path that they always
take. Hooks on all modules say where in the model the computation stands.

Compiled modules give the output of their compiled code, for which everything is out of the way, and are then run once more as plain
Python to be seen: twice the time. Code compiled as a function is run as plain Python.

Not seen: other threads, TorchScript, flex_attention, softmax written by hand. `Sight.unseen` names the attention modules that ran without
being seen, and modules whose softmax never met values.
"""

from __future__ import annotations

import contextlib
import copy
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from pellucid.errors import UsageError
from pellucid.inside.calls import AttentionCall, Explicit, Fused, fused
from pellucid.inside.multihead import encoder_layer_call, native_call, projected_call

# What an attention module is called. The second kind weighs channels or places of a feature map, without queries and keys.
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
NO_ATTENTION = re.compile(
    r"(Channel|Spatial|SelectiveKernel|Split|Ceca|Eca|Cbam|Cfa|Global|Gather|Residual|Large|Conv)\w*(Attn|Attention)|(Attn|Attention)\w*(Extract|Mask|Bias|Norm|Drop)",
    re.IGNORECASE,
)
CROSS = re.compile(r"cross|encoder_attn|enc_dec|encdec|multihead_attn|attn_pool|attention_pool", re.IGNORECASE)

# torch's own layers, which leave their fast path while a function mode is on.
_OWN_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_SOFTMAX = {"softmax", "softmax.int", "_softmax.default", "_safe_softmax", "_safe_softmax.default", "special_softmax"}
_MATMUL = {"matmul", "__matmul__", "bmm", "matmul.default", "bmm.default", "einsum", "einsum.default"}
# What leaves probabilities what they are, or scales and cuts them after the softmax.
_CARRY = {
    "dropout", "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "view", "reshape", "expand", "squeeze", "unsqueeze",
    "flatten", "unflatten", "nan_to_num", "mul", "__mul__", "masked_fill", "where", "native_dropout", "_to_copy", "alias", "_unsafe_view", "view_as",
    "expand_as",
}  # fmt: skip
_FUSED = {
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
    "_scaled_dot_product_flash_attention_for_cpu": ("query", "key", "value", "dropout_p", "is_causal"),
    "_scaled_dot_product_flash_attention": ("query", "key", "value", "dropout_p", "is_causal"),
    "_scaled_dot_product_efficient_attention": ("query", "key", "value", "attn_mask", "compute_log_sumexp", "dropout_p", "is_causal"),
    "_scaled_dot_product_cudnn_attention": ("query", "key", "value", "attn_mask", "compute_log_sumexp", "dropout_p", "is_causal"),
    "_scaled_dot_product_attention_math": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
}


@dataclass
class _Frame:
    """A module that is running. `call` counts its forward passes; `calls` the attentions so far in this one."""

    path: str
    module: nn.Module
    call: int
    calls: int = 0
    graph: Iterator[str] | None = None
    own: bool = False  # one of torch's own layers
    guard: Any = None


@dataclass
class _Carried:
    """A tensor that holds probabilities: the result of a softmax, or what became of it on the way to the values."""

    tensor: weakref.ref[Tensor]
    origin: Tensor | None
    path: str | None

    @property
    def softmax(self) -> Tensor:
        found = self.tensor() if self.origin is None else self.origin
        assert found is not None
        return found


@dataclass
class Sight:
    """What `watching` knows of a model's run: the modules that are running, the feature maps of its convolutions, what was not seen.

    maps: [(path, (height, width), batch)] of every convolution of the present pass, in order. inputs: {path: shapes of the tensors that a module got, and
    pairs of whole numbers, which state one}.
    """

    paths: dict[int, str]
    stack: list[_Frame] = field(default_factory=list)
    maps: list[tuple[str, tuple[int, int], int]] = field(default_factory=list)
    inputs: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    ran: dict[str, type] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)  # modules in which an attention was seen, with those around them
    seen_at: set[str] = field(default_factory=set)  # the modules themselves
    softmaxes: dict[str, type] = field(default_factory=dict)  # modules with a softmax over the last of four dimensions
    scripted: set[str] = field(default_factory=set)
    passes: dict[str, int] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def unseen(self) -> dict[str, type]:
        """{path: class} of the attention modules that ran and in which no attention was seen."""

        def known(path: str) -> bool:
            return path in self.seen_at or any(path.startswith(f"{other}.") or not other for other in self.seen_at)

        found = {path: kind for path, kind in self.ran.items() if path not in self.seen and not known(path)}
        return found | {path: kind for path, kind in self.softmaxes.items() if not known(path)}


@contextlib.contextmanager
def watching(model: nn.Module, on_call: Callable[[AttentionCall], None]) -> Iterator[Sight]:
    """Call back with every attention of `model` while the block runs; yields what is known of the run.

    `on_call` runs right behind each attention, outside autograd. Everything is removed at the end, after an error too.
    """
    if any(seer.watches(model) for seer in _ACTIVE):
        raise UsageError("this model is being recorded already: a second recording inside the first would see half of it. Record once, with all rows.")
    sight = Sight({}, modules={})
    for name, module in model.named_modules(remove_duplicate=False):
        path = ".".join(part for part in name.split(".") if part != "_orig_mod")
        sight.paths.setdefault(id(module), path)
        sight.modules.setdefault(path, module)
    seer = _Seer(sight, on_call)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_uncompiled(model, seer))
        stack.enter_context(seer.in_place())
        _ACTIVE.append(seer)
        stack.callback(_ACTIVE.remove, seer)
        yield sight


_ACTIVE: list[_Seer] = []


class _Seer:
    """The function mode, the wrapped functions and the hooks of one `watching` block, which can be put out of the way for a while."""

    def __init__(self, sight: Sight, on_call: Callable[[AttentionCall], None]) -> None:
        self.sight, self._on_call = sight, on_call
        self._carried: dict[int, _Carried] = {}
        self._mode = _Mode(self)
        self._originals = (F.multi_head_attention_forward, torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)
        self._busy = False
        self._thread = threading.get_ident()
        self._convolves: dict[int, bool] = {}
        self._fresh = False
        self.away = 0

    def watches(self, model: nn.Module) -> bool:
        """Whether one of the model's modules is watched."""
        return any(id(module) in self.sight.paths for module in model.modules())

    @property
    def _blind(self) -> bool:
        """Whether what happens now is not to be seen: another thread, or compiled code that runs for its output."""
        return bool(self.away) or threading.get_ident() != self._thread

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Watch."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),  # type: ignore[arg-type]
        ]
        F.multi_head_attention_forward = self._multi_head
        torch._native_multi_head_attention = self._native
        torch._transformer_encoder_layer_fwd = self._encoder_layer
        try:
            with self._mode:
                yield
        finally:
            for handle in handles:
                handle.remove()
            F.multi_head_attention_forward, torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd = self._originals
            for frame in reversed(self.sight.stack):  # of a forward pass that an error ended
                _release(frame)
            self.sight.stack.clear()
            self._carried.clear()

    # ── where the computation stands ──

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self.sight.paths.get(id(module))
        if path is None or self._blind:
            return
        if not self.sight.stack and self._has_convolution(module):
            self._fresh = True
        call = self.sight.passes.get(path, 0)
        self.sight.passes[path] = call + 1
        frame = _Frame(path, module, call)
        if isinstance(module, torch.fx.GraphModule):
            frame.graph = iter(_graph_paths(module))
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            self.sight.scripted.add(path)
            if ATTENTION.search(str(getattr(module, "original_name", ""))):
                self.sight.ran[path] = kind
        if ATTENTION.search(kind.__name__) and not NO_ATTENTION.search(kind.__name__):
            self.sight.ran[path] = kind
        self.sight.inputs[path] = [shape for a in args if (shape := _shape(a)) is not None]
        frame.own = any(isinstance(module, layer) and kind.forward is layer.forward for layer in _OWN_LAYERS)
        # Inside torch's own layers the mode is off, so that they take their fast path; modules of others inside them are seen again.
        frame.guard = torch._C.DisableTorchFunction() if frame.own else torch._C._EnableTorchFunction() if self._inside_own() else None
        if frame.guard is not None:
            frame.guard.__enter__()
        self.sight.stack.append(frame)

    def _has_convolution(self, module: nn.Module) -> bool:
        key = id(module)
        if key not in self._convolves:
            self._convolves[key] = any(isinstance(part, nn.Conv2d) for part in module.modules())
        return self._convolves[key]

    def _inside_own(self) -> bool:
        return bool(self.sight.stack) and self.sight.stack[-1].own

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        stack = self.sight.stack
        if self._blind or not stack or stack[-1].module is not module:
            return
        _release(stack.pop())
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor) and output.dim() == 4:
            if self._fresh:  # a new image; a decoder, in whose pass no convolution runs, looks at that of the encoder before
                self.sight.maps.clear()
                self._fresh = False
            self.sight.maps.append((self.sight.paths[id(module)], (output.shape[2], output.shape[3]), len(output)))

    # ── what it computes ──

    def tell(self, form: Any, *, path: str | None = None, cross: bool | None = None) -> None:
        """An attention happened here."""
        stack = self.sight.stack
        if not stack or self._busy or self._blind:
            return
        frame = stack[-1]
        where = path if path is not None else frame.path
        around = tuple(f.path for f in stack)
        self.sight.seen.update(around)
        self.sight.seen.add(where)
        self.sight.seen_at |= {frame.path, where}
        if cross is None:
            cross = bool(CROSS.search(where)) or (form.shape[2] == 1 and form.shape[3] > 1 and "pool" in where.lower())
        call = AttentionCall(where, frame.call, frame.calls, "cross" if cross else "self", around, form)
        frame.calls += 1
        self._busy = True
        try:
            # Without the autocast of the model, which would take the products of float32 in half precision.
            with torch._C.DisableTorchFunction(), torch.autocast(form.device.type, enabled=False):
                self._on_call(call)
        finally:
            self._busy = False

    def after(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Look at a function that was called: the heart of the function mode."""
        plain = name.split(".")[0]
        if plain in _FUSED:
            self.tell(_fused(_FUSED[plain], args, kwargs, result, self._heads()), path=self._graph_path())
        elif name in _SOFTMAX:
            path = self._graph_path()
            if isinstance(result, Tensor) and result.dim() >= 3 and _over_last(args, kwargs, result):
                self._carry(result, result, path)
                if result.dim() >= 4 and self.sight.stack:
                    self.sight.softmaxes.setdefault(self.sight.stack[-1].path, type(self.sight.stack[-1].module))
        elif name in _MATMUL and self._carried:
            for operand in _left_operands(name, args):
                if (carried := self._found(operand)) is not None:
                    del self._carried[id(operand)]
                    self.tell(Explicit(carried.softmax, self._heads()), path=carried.path)
                    break
        elif plain in _CARRY and self._carried:
            for operand in (*args[:3], *kwargs.values()):
                if (carried := self._found(operand)) is not None:
                    changed = result[0] if isinstance(result, tuple) and result else result
                    if isinstance(changed, Tensor) and changed is not operand:
                        self._carry(changed, carried.softmax, carried.path)
                    break

    def _found(self, operand: Any) -> _Carried | None:
        """The probabilities that a tensor holds."""
        carried = self._carried.get(id(operand)) if isinstance(operand, Tensor) else None
        return carried if carried is not None and carried.tensor() is operand else None

    def _carry(self, tensor: Tensor, softmax: Tensor, path: str | None) -> None:
        """Remember that `tensor` holds the probabilities `softmax`, as long as it lives."""
        key = id(tensor)
        kept = None if softmax is tensor else softmax  # a reference to itself would keep it alive
        self._carried[key] = _Carried(weakref.ref(tensor, lambda _: self._carried.pop(key, None)), kept, path)

    def _graph_path(self) -> str | None:
        """The module path that an exported graph states for the attention that runs now."""
        frame = self.sight.stack[-1] if self.sight.stack else None
        if frame is None or frame.graph is None:
            return None
        inner = next(frame.graph, None)
        return None if inner is None else ".".join(part for part in (frame.path, inner) if part)

    def _heads(self) -> int:
        """The number of heads that the module states which runs now; 1 where it states none."""
        for frame in self.sight.stack[-1:]:
            for name in ("num_heads", "num_attention_heads", "n_heads", "nhead", "n_head", "heads"):
                heads = getattr(frame.module, name, None)
                if isinstance(heads, int) and heads > 0:
                    return heads
        return 1

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            result = self._originals[0](*args, **kwargs)
        if (found := projected_call(args, kwargs, result)) is not None:
            self.tell(found, cross=found.query.data_ptr() != found.key.data_ptr())
        return result

    def _native(self, *args: Any, **kwargs: Any) -> Any:
        result = self._originals[1](*args, **kwargs)
        if self.sight.stack and not self._blind:
            self.tell(native_call(args, result), cross=False)
        return result

    def _encoder_layer(self, *args: Any, **kwargs: Any) -> Any:
        result = self._originals[2](*args, **kwargs)
        if self.sight.stack and not self._blind:
            self.tell(encoder_layer_call(args), path=".".join(p for p in (self.sight.stack[-1].path, "self_attn") if p), cross=False)
        return result

    @contextlib.contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        """As if nobody watched: for compiled code, which would be compiled anew for a mode or a hook."""
        kept = dict(hooks._global_forward_pre_hooks), dict(hooks._global_forward_hooks), dict(hooks._global_forward_hooks_always_called)
        self.away += 1
        for registry in (hooks._global_forward_pre_hooks, hooks._global_forward_hooks, hooks._global_forward_hooks_always_called):
            registry.clear()
        F.multi_head_attention_forward, torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd = self._originals
        try:
            with torch.overrides._pop_mode_temporarily(), _stance("default"):
                yield
        finally:
            self.away -= 1
            hooks._global_forward_pre_hooks.update(kept[0])
            hooks._global_forward_hooks.update(kept[1])
            hooks._global_forward_hooks_always_called.update(kept[2])
            F.multi_head_attention_forward = self._multi_head
            torch._native_multi_head_attention = self._native
            torch._transformer_encoder_layer_fwd = self._encoder_layer


class _Mode(TorchFunctionMode):
    """Runs every function as it is and shows it to the seer."""

    def __init__(self, seer: _Seer) -> None:
        super().__init__()
        self._seer = seer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _NAMES or name.split(".")[0] in _NAMES:
            self._seer.after(name, args, kwargs, result)
        return result


_NAMES = _SOFTMAX | _MATMUL | _CARRY | set(_FUSED)


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor its shape; a pair of whole numbers is a shape that somebody states."""
    if isinstance(value, Tensor):
        return None if value.is_nested else tuple(value.shape)
    return value if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int) for v in value) else None


def _release(frame: _Frame) -> None:
    if frame.guard is not None:
        frame.guard.__exit__(None, None, None)
        frame.guard = None


def _fused(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, heads: int) -> Fused:
    given = dict(zip(names, args, strict=False)) | kwargs
    mask = given.get("attn_mask", given.get("attn_bias"))
    output = result[0] if isinstance(result, tuple) else result
    return fused(given["query"], given["key"], given["value"], mask, bool(given.get("is_causal", False)), given.get("scale"), output, heads)


def _over_last(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return isinstance(dim, int) and dim in (-1, result.dim() - 1)


def _left_operands(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """What a product is taken of, that may be probabilities: its left side, of einsum either; its other side has at least three dimensions."""
    if name.startswith("einsum"):
        operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        return [operand for operand in operands if isinstance(operand, Tensor)]
    right = args[1] if len(args) > 1 else None
    return [args[0]] if isinstance(args[0], Tensor) and isinstance(right, Tensor) and right.dim() >= 3 else []


def _graph_paths(graph: torch.fx.GraphModule) -> list[str]:
    """The module path of every softmax and every fused attention of an exported graph, in the order in which it runs."""
    found = []
    for node in graph.graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else str(node.target) if node.op == "call_method" else ""
        if name in _SOFTMAX or name.split(".")[0] in _FUSED:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            found.append(str(stack[-1][0]) if stack else "")
    return found


# ── compiled models ───────────────────────────────────────────────────────────────────────────────────────────


def _stance(name: Literal["default", "force_eager"]) -> Any:
    """torch.compile's way of working for a while; nothing where torch.compile was never used, which takes a second to import."""
    return torch.compiler.set_stance(name) if "torch._dynamo" in sys.modules else contextlib.nullcontext()


@contextlib.contextmanager
def _uncompiled(model: nn.Module, seer: _Seer) -> Iterator[None]:
    """Let compiled modules run twice: as compiled for the output, as plain Python to be seen."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    from torch._dynamo import OptimizedModule

    replaced: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if isinstance(module, OptimizedModule):
            replaced.append((module, "forward", module.__dict__["forward"]))
            object.__setattr__(module, "forward", _both(module.__dict__["forward"], module._orig_mod, module, seer))
        elif module._compiled_call_impl is not None:
            replaced.append((module, "_compiled_call_impl", module._compiled_call_impl))
            object.__setattr__(module, "_compiled_call_impl", _both(module._compiled_call_impl, module._call_impl, module, seer))
        elif (plain := getattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable", None)) is not None:
            replaced.append((module, "forward", module.__dict__["forward"]))
            object.__setattr__(module, "forward", _both(module.__dict__["forward"], plain, module, seer))
    try:
        with _stance("force_eager"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks", UserWarning)
            yield
    finally:
        for module, name, original in replaced:
            object.__setattr__(module, name, original)


def _both(compiled: Callable[..., Any], plain: Callable[..., Any], module: nn.Module, seer: _Seer) -> Callable[..., Any]:
    """Compiled for the output, plain to be seen; the second run finds caches as the first did, and leaves buffers and random numbers as they are."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if seer.away:
            return compiled(*args, **kwargs)
        again = tuple(_own(a) for a in args), {name: _own(a) for name, a in kwargs.items()}
        with seer.out_of_the_way():
            output = compiled(*args, **kwargs)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()] if module.training else []
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            plain(*again[0], **again[1])
            for buffer, before in buffers:
                buffer.copy_(before)
        return output

    return run


def _own(value: Any) -> Any:
    """A value for a second run: tensors as they are, objects that a run may change, such as a cache of keys, copied."""
    if value is None or isinstance(value, (Tensor, str, int, float, bool, torch.dtype, torch.device)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, Tensor) for item in value):
        return value
    try:
        return copy.deepcopy(value)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"a compiled model got a {type(value).__name__} that cannot be copied for a second run: {error}. Record the model uncompiled."
        ) from error
