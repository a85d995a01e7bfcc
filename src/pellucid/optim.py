"""Parameter groups, optimisers, learning rates as functions of the step, SAM and the loss scale of fp16."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from pellucid.recipe import (
    CosineSchedule,
    LinearSchedule,
    NoamSchedule,
    OptimizerSection,
    PhaseSection,
    Schedule,
    StepSchedule,
)


def warmup_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Steps of the linear warm-up; a fraction of an epoch is at least one step."""
    return schedule.warmup_steps or math.ceil(schedule.warmup_epochs * steps_per_epoch)


def schedule_notes(phases: Sequence[PhaseSection], steps_per_epoch: int) -> list[str]:
    """A line for each phase whose schedule does not come to what it says."""
    notes = []
    for i, phase in enumerate(phases, 1):
        total, warmup = phase.epochs * steps_per_epoch, warmup_steps(phase.schedule, steps_per_epoch)
        if warmup >= total:
            notes.append(f"phase {i}: the warm-up of {warmup} steps is not shorter than the phase of {total}; the learning rate only rises")
        late = [m for m in phase.schedule.milestones if m >= phase.epochs] if isinstance(phase.schedule, StepSchedule) else []
        if late:
            notes.append(f"phase {i}: milestones {late} are not reached in {phase.epochs} epochs")
    return notes


def learning_rate(schedule: Schedule, *, peak: float, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Learning rate of step `step` (from 0) of a phase with `total_steps` steps."""
    warmup = warmup_steps(schedule, steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match schedule:
        case CosineSchedule():  # Loshchilov and Hutter 2017, eq. 5, one cycle
            return schedule.min_lr + (peak - schedule.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case LinearSchedule():
            return peak + (schedule.min_lr - peak) * progress
        case NoamSchedule(decay="inverse_sqrt"):  # Vaswani et al. 2017, eq. 3, scaled so that its maximum is `peak`
            return peak * math.sqrt(warmup / (step + 1))
        case NoamSchedule():
            return peak * schedule.gamma ** ((step + 1 - warmup) / steps_per_epoch)
        case StepSchedule():
            passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
            return peak * schedule.gamma**passed
        case _:
            return peak


def parameter_groups(module: nn.Module, settings: OptimizerSection, layer_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Groups of trainable parameters with `weight_decay`, `lr_scale`, `always_adapt` and `names`.

    lr_scale = layer_decay^(top - layer), 1 for the classifier. always_adapt: whether lars scales the rate by the tensor's norm: not where
    exclude_norm_bias leaves biases and normalisation out, of decay and adaptation alike (Grill et al. 2020, sec. 3.3). Order is that of
    named_parameters, so that a saved optimiser state finds its parameters again.
    """
    top = max(layer_ids.values(), default=0)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        excluded = settings.exclude_norm_bias and parameter.ndim <= 1
        decay = 0.0 if excluded else settings.weight_decay
        scale = settings.layer_decay ** (top - layer_ids[name]) if settings.layer_decay < 1.0 else 1.0
        key = (decay, scale, excluded and settings.name == "lars")
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale, "always_adapt": not key[2]})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], settings: OptimizerSection) -> torch.optim.Optimizer:
    """The optimiser of a phase, fused kernels on."""
    match settings.name:
        case "adam":
            return torch.optim.Adam(groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
        case "lars":  # timm's: SGD with each tensor's rate scaled by trust_coefficient |w| / (|g| + decay |w|) (You et al. 2017, alg. 1)
            return Lars(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, trust_coeff=settings.trust_coefficient)


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the moments, all 0, that the optimiser's first step would make on its way.

    torch makes them group by group and updates each group at once: memory that ran out in the second group would leave the
    first one moved. The bits are the same: a momentum of 0 decays to 0.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.SGD | Lars):
                if group["momentum"] and "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
            elif len(state) < 3:  # none, or half of it when memory ran out
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters that the optimiser moves, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def global_norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm over all tensors together; () float32."""
    if not tensors:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def clip_gradients(parameters: list[Tensor], max_norm: float) -> None:
    """Scale all gradients so that their joint L2 norm is at most `max_norm` (Pascanu et al. 2013)."""
    grads = gradients(parameters)
    scale = (max_norm / (global_norm(grads) + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)


@torch.no_grad()
def sam_perturb(parameters: list[Tensor], *, rho: float, adaptive: bool) -> list[tuple[Tensor, Tensor]]:
    """Move the weights uphill by rho g / |g| (Foret et al. 2021, eq. 2); returns (parameter, copy of what it was).

    adaptive: rho w^2 g / | |w| g | (Kwon et al. 2021, eq. 5, without the bias term), which does not change when layers
    are rescaled. `sam_restore` puts the copies back, so the weights are afterwards the same bits as before.
    """
    moved = [(p, p.grad) for p in parameters if p.grad is not None]
    saved = [(p, p.detach().clone()) for p, _ in moved]
    directions = [g * p.abs() if adaptive else g for p, g in moved]
    scale = rho / (global_norm(directions) + 1e-12)
    try:
        for (parameter, _), direction in zip(moved, directions, strict=True):
            parameter.add_((direction * parameter.abs() if adaptive else direction) * scale)
    except RuntimeError:  # out of memory half way
        sam_restore(saved)
        raise
    return saved


@torch.no_grad()
def sam_restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    """Put the weights back to the bits that they had before `sam_perturb`."""
    for parameter, old in saved:
        parameter.copy_(old)


@torch.no_grad()
def update_average(average: list[Tensor], current: list[Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) current, in place, for floating tensors; others are copied."""
    floating = [(a, c) for a, c in zip(average, current, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [c.to(a.dtype) for a, c in floating], 1.0 - decay)
    for a, c in zip(average, current, strict=True):
        if not a.is_floating_point():
            a.copy_(c)


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018, section 3.2).

    Ours rather than torch.amp.GradScaler because SAM unscales twice within a step, which GradScaler refuses.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = 2.0**16 if enabled else 1.0
        self.good_steps = 0

    @torch.no_grad()
    def unscale(self, parameters: list[Tensor]) -> bool:
        """Divide the gradients by the scale; True when all of them are finite. Call once for each backward pass."""
        if not self.enabled:
            return True
        grads = gradients(parameters)
        torch._foreach_mul_(grads, 1.0 / self.scale)
        return bool(torch.isfinite(global_norm(grads)))

    def update(self, finite: bool) -> None:
        """Halve the scale after an overflow, double it after 2,000 steps without one."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale * 0.5, 1.0)
        elif self.good_steps == 2000:
            self.scale, self.good_steps = self.scale * 2.0, 0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
