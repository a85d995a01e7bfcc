"""Schedules, parameter groups, SAM, clipping, averaging and the loss scale against definitions and torch's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pellucid import optim
from pellucid.recipe import ConstantSchedule, CosineSchedule, LinearSchedule, NoamSchedule, OptimizerSection, Schedule, StepSchedule


def rates(schedule: Schedule, total: int = 100, steps_per_epoch: int = 10) -> list[float]:
    return [optim.learning_rate(schedule, peak=0.5, step=s, total_steps=total, steps_per_epoch=steps_per_epoch) for s in range(total)]


def torch_rates(make: object, total: int = 100) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_torchs() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=100, eta_min=0.01))
    assert rates(CosineSchedule(name="cosine", min_lr=0.01)) == pytest.approx(expected, rel=1e-9)


def test_linear_is_torchs() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=100))
    assert rates(LinearSchedule(name="linear", min_lr=0.05)) == pytest.approx(expected, rel=1e-9)


def test_step_is_torchs() -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[30, 60], gamma=0.2))
    assert rates(StepSchedule(name="step", milestones=[3, 6], gamma=0.2)) == pytest.approx(expected, rel=1e-9)


def test_noam_is_the_papers_equation_up_to_scale() -> None:
    ours = rates(NoamSchedule(name="noam", warmup_steps=20))
    paper = [min((s + 1) ** -0.5, (s + 1) * 20**-1.5) for s in range(100)]
    assert ours == pytest.approx([0.5 * p / max(paper) for p in paper], rel=1e-9)


def test_noam_exponential_loses_gamma_each_epoch_after_the_warm_up() -> None:
    ours = rates(NoamSchedule(name="noam", warmup_steps=20, decay="exponential", gamma=0.9))
    assert ours[19] == pytest.approx(0.5)
    assert ours[29] == pytest.approx(0.45)
    assert ours[99] == pytest.approx(0.5 * 0.9**8)


def test_warm_up_rises_in_a_line_to_the_peak_and_epochs_equal_steps() -> None:
    by_steps = rates(CosineSchedule(name="cosine", warmup_steps=20))
    assert by_steps[:20] == pytest.approx([0.5 * (s + 1) / 20 for s in range(20)])
    assert rates(CosineSchedule(name="cosine", warmup_epochs=2)) == by_steps
    assert set(rates(ConstantSchedule(name="constant"))) == {0.5}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def test_groups_split_decay_and_layer_rates() -> None:
    module = small()
    ids = {name: 0 if name[0] in "01" else 1 for name, _ in module.named_parameters()}
    settings = OptimizerSection(name="adamw", lr=1e-3, weight_decay=0.1, exclude_norm_bias=True, layer_decay=0.5)
    groups = optim.parameter_groups(module, settings, ids)
    found = {name: (g["weight_decay"], g["lr_scale"]) for g in groups for name in g["names"]}
    assert found == {
        "0.weight": (0.1, 0.5), "0.bias": (0.0, 0.5), "1.weight": (0.0, 0.5), "1.bias": (0.0, 0.5), "3.weight": (0.1, 1.0), "3.bias": (0.0, 1.0),
    }  # fmt: skip
    optimizer = optim.build_optimizer(groups, settings)
    optim.set_learning_rate(optimizer, 0.2)
    assert {g["lr"] for g in optimizer.param_groups} == {0.2, 0.1}


@pytest.mark.parametrize("excluded", [True, False])
def test_lars_is_its_equation_and_leaves_out_what_byol_leaves_out(excluded: bool) -> None:
    """You et al. 2017, alg. 1: local rate = trust |w| / (|g| + decay |w|); biases and norms without both (Grill et al. 2020, sec. 3.3)."""
    module = small().double()
    settings = OptimizerSection(name="lars", lr=0.5, weight_decay=0.1, momentum=0.8, trust_coefficient=0.02, exclude_norm_bias=excluded)
    optimizer = optim.build_optimizer(optim.parameter_groups(module, settings, dict.fromkeys(dict(module.named_parameters()), 0)), settings)
    optim.make_state(optimizer)
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    moving = {name: torch.zeros_like(w) for name, w in weights.items()}
    for k in range(4):
        optim.set_learning_rate(optimizer, 0.5 / (k + 1))
        module.zero_grad()
        module(torch.linspace(-1, 2, 12, dtype=torch.float64).view(2, 6)).square().sum().backward()
        for name, p in module.named_parameters():
            assert p.grad is not None
            w, step = weights[name], p.grad.clone()
            if p.ndim > 1 or not excluded:
                norm, size = math.sqrt(float((w**2).sum())), math.sqrt(float((p.grad**2).sum()))
                local = 0.02 * norm / (size + 0.1 * norm) if norm > 0 else 1.0
                step = local * (p.grad + 0.1 * w)
            moving[name] = 0.8 * moving[name] + step
            weights[name] = w - 0.5 / (k + 1) * moving[name]
        optimizer.step()
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-8, atol=1e-10)


def test_lars_adapts_without_decay_too() -> None:
    module, settings = small(), OptimizerSection(name="lars", lr=1.0, momentum=0.0, trust_coefficient=0.5)
    optimizer = optim.build_optimizer(optim.parameter_groups(module, settings, dict.fromkeys(dict(module.named_parameters()), 0)), settings)
    before = [p.detach().clone() for p in module.parameters()]
    module(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()
    for old, new in zip(before, module.parameters(), strict=True):
        if old.norm() > 0:
            assert float((old - new.detach()).norm() / old.norm()) == pytest.approx(0.5, rel=1e-5)


def _loss(weights: list[torch.Tensor]) -> torch.Tensor:
    return ((weights[0] * weights[0]).sum() * weights[1].sin().sum() + (weights[1] ** 4).sum()).double()


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_gradient_is_that_of_its_definition_in_float64(adaptive: bool) -> None:
    start = [torch.linspace(-1, 1, 6), torch.linspace(0.2, 0.9, 4)]
    ours = [nn.Parameter(w.clone()) for w in start]
    _loss(ours).backward()
    before = [w.detach().clone() for w in ours]
    saved = optim.sam_perturb(ours, rho=0.05, adaptive=adaptive)
    for w in ours:
        w.grad = None
    _loss(ours).backward()
    optim.sam_restore(saved)
    assert all(torch.equal(w, b) for w, b in zip(ours, before, strict=True))

    exact = [w.double().requires_grad_() for w in start]
    g = torch.autograd.grad(_loss(exact), exact)
    scaled = [gi * w.abs() if adaptive else gi for gi, w in zip(g, exact, strict=True)]
    norm = math.sqrt(sum(float((s.detach() ** 2).sum()) for s in scaled))
    moved = [(w + 0.05 * (s * w.abs() if adaptive else s) / norm).detach().requires_grad_() for w, s in zip(exact, scaled, strict=True)]
    for w, expected in zip(ours, torch.autograd.grad(_loss(moved), moved), strict=True):
        torch.testing.assert_close(w.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_clipping_is_torchs() -> None:
    ours, theirs = small(), small()
    for module in (ours, theirs):
        module(torch.ones(2, 6)).square().sum().backward()
    optim.clip_gradients(list(ours.parameters()), 0.1)
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_average_is_torchs_ema() -> None:
    module = small()
    average = copy.deepcopy(module)
    oracle = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    oracle.update_parameters(module)
    for _ in range(3):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1)
        optim.update_average(list(average.state_dict().values()), list(module.state_dict().values()), 0.9)
        oracle.update_parameters(module)
    for a, b in zip(average.parameters(), oracle.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_loss_scale_unscales_every_pass_halves_on_overflow_and_grows_again() -> None:
    scale = optim.LossScale(enabled=True)
    weight = nn.Parameter(torch.ones(3))
    for _ in range(2):  # SAM: two backward passes in one step
        weight.grad = None
        (weight.sum() * 2 * scale.scale).backward()
        assert scale.unscale([weight])
        assert weight.grad.tolist() == [2.0] * 3
    weight.grad = torch.tensor([1.0, float("inf"), 0.0])
    assert not scale.unscale([weight])
    scale.update(finite=False)
    assert scale.scale == 2.0**15
    for _ in range(2000):
        scale.update(finite=True)
    assert scale.scale == 2.0**16
