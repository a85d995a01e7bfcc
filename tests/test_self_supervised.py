"""Networks of pre-training: whole steps of BYOL against a float64 twin, heads as published, what moves and what stands still."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradients import reader_of, stage_of, training_of, windows_of
from pellucid.distributed import ALONE
from pellucid.models import train_mode
from pellucid.models.backbones import Built
from pellucid.models.self_supervised import Byol, SimClr, SimSiam, target_momentum
from pellucid.prepare import Training
from pellucid.step import take_step
from pellucid.view_losses import contrastive
from twin_byol import CHANNELS, TwinByol, backbone

RECIPE = """\
task: pretraining
data: {source: scenes, train: 24, image_size: 16}
model: {name: timm/none}
method: {name: byol, projector_hidden: 12, projector_output: 4, predictor_hidden: 11, momentum: 0.8}
augment: {random_resized_crop: [0.3, 1.0], color_jitter: [0.4, 0.4, 0.2, 0.1]}
train:
  batch_size: 8
  threads: 1
  phases: [{epochs: 2, optimizer: {name: sgd, lr: 0.3, weight_decay: 0.05, exclude_norm_bias: true}}]
"""
pytestmark = pytest.mark.usefixtures("seeded")

HEADS: dict[str, dict[str, Any]] = {
    "byol": {"projector_hidden": 12, "projector_output": 4, "predictor_hidden": 11, "momentum": 0.8, "stop_gradient": True},
    "simclr": {"projector_hidden": 12, "projector_output": 4, "temperature": 0.2},
    "simsiam": {"projector_hidden": 12, "projector_output": 4, "predictor_hidden": 3, "stop_gradient": True},
}


def double_training(folder: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> tuple[Training, list[tuple[Tensor, Tensor]]]:
    """A training of the twin's network before its first step, in float64, and the list that will hold the views of every pack."""
    built = Built(backbone(), (0.5,) * 3, (0.25,) * 3, (), [])
    monkeypatch.setattr("pellucid.tasks.pretraining.build_backbone", lambda *args, **options: (built, CHANNELS))
    t = training_of(RECIPE, folder, overrides, ALONE)
    t.module.double()
    t.__post_init__()  # buffers are other objects now
    seen: list[tuple[Tensor, Tensor]] = []
    real = t.task._augmented  # type: ignore[attr-defined]

    def double(*args: Any) -> tuple[Tensor, Tensor]:
        one, two = real(*args)
        seen.append((one.double(), two.double()))
        return seen[-1]

    monkeypatch.setattr(t.task, "_augmented", double)
    return t, seen


@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize("rule", ["sgd", "lars"])
def test_steps_of_byol_are_those_of_a_float64_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Any, micro: int) -> None:
    """All that a step moves: weights, both networks' running statistics, the target. In packs of 3 each has batch statistics of its own.

    Batches of 8, whose share 1 / 8 is exact in the float32 in which the loop keeps it; the 1e-8 beside the norms of timm's LARS is not in its paper.
    """
    t, seen = double_training(tmp_path / "run", monkeypatch, [f"train.phases.0.optimizer.name={rule}", f"train.micro_batch_size={micro}"])
    twin = TwinByol({name: value.clone() for name, value in t.module.state_dict().items()}, 0.8, rule, lr=0.3, weight_decay=0.05)
    stage = stage_of(t)
    assert t.record.total_steps == 6
    train_mode(t.module, t.frozen)
    for window in windows_of(t):
        seen.clear()
        take_step(t, stage, reader_of(t), window)
        _, sums, weight = t.at.tally.pending[-1]
        assert float(sums.loss) / weight == pytest.approx(twin.step(seen, t.at.step, 6), rel=1e-12 if rule == "sgd" else 1e-10)
        t.at.step += 1
        assert [len(first) for first, _ in seen] == {8: [8], 3: [3, 3, 2]}[micro]
        for name, value in t.module.state_dict().items():
            torch.testing.assert_close(value, twin.state[name], rtol=1e-9, atol=1e-12, msg=name, check_dtype=False)
    assert t.at.step == 3


def test_the_twin_tells_a_target_that_does_not_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t, seen = double_training(tmp_path / "run", monkeypatch, [])
    twin = TwinByol({name: value.clone() for name, value in t.module.state_dict().items()}, 0.8, "sgd", lr=0.3, weight_decay=0.05)
    train_mode(t.module, t.frozen)
    monkeypatch.setattr(t.task, "after_step", lambda *args: None)
    take_step(t, stage_of(t), reader_of(t), windows_of(t)[0])
    twin.step(seen, 0, 6)
    apart = [name for name, value in t.module.state_dict().items() if not torch.allclose(value.double(), twin.state[name].double(), rtol=1e-9, atol=1e-12)]
    assert apart
    assert all(name.startswith("target.") and name.endswith(("weight", "bias")) for name in apart)


def test_the_average_and_its_schedule_are_the_papers_over_ten_steps() -> None:
    module, random = Byol(backbone(), CHANNELS, **{**HEADS["byol"], "momentum": 0.9}).double(), torch.Generator().manual_seed(1)
    assert module.target is not None
    expected = [p.clone() for p in module.target.parameters()]
    kept = []
    for k in range(10):
        with torch.no_grad():
            for p in (*module.backbone.parameters(), *module.projector.parameters()):
                p.add_(torch.randn(p.shape, generator=random, dtype=torch.float64))
        module.after_step(k, 10)
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * k / 10) + 1) / 2
        online = [*module.backbone.parameters(), *module.projector.parameters()]
        expected = [tau * e + (1 - tau) * o for e, o in zip(expected, online, strict=True)]
        for found, e in zip(module.target.parameters(), expected, strict=True):
            torch.testing.assert_close(found, e, rtol=1e-13, atol=1e-13)
        kept.append(target_momentum(0.9, k, 10))
    assert kept[0] == pytest.approx(0.9)
    assert kept == sorted(kept)
    assert target_momentum(0.9, 10, 10) == 1.0
    assert target_momentum(0.9, 5, 10) == pytest.approx(0.95)


# ── heads and gradients ──


def layers(head: nn.Module) -> list[str]:
    """Widths, and what each layer learns beside its weights."""
    found = []
    for layer in head:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            found.append(f"{layer.in_features}-{layer.out_features}{'+b' if layer.bias is not None else ''}")
        elif isinstance(layer, nn.BatchNorm1d):
            found.append(f"norm{'' if layer.affine else ' without scale'}")
            assert (layer.momentum, layer.eps) == (0.1, 1e-5)
        else:
            found.append(type(layer).__name__)
    return found


def test_heads_are_those_of_the_papers() -> None:
    byol, simclr = Byol(backbone(), CHANNELS, **HEADS["byol"]), SimClr(backbone(), CHANNELS, **HEADS["simclr"])
    simsiam = SimSiam(backbone(), CHANNELS, **HEADS["simsiam"])
    assert layers(byol.projector) == ["5-12+b", "norm", "ReLU", "12-4"]  # Grill et al. 2020, sec. 3.3 and their code
    assert layers(byol.predictor) == ["4-11+b", "norm", "ReLU", "11-4"]
    assert layers(simclr.projector) == ["5-12+b", "norm", "ReLU", "12-4", "norm"]
    assert layers(simsiam.projector) == ["5-12", "norm", "ReLU", "12-12", "norm", "ReLU", "12-4", "norm without scale"]  # Chen and He 2021, sec. 3
    assert layers(simsiam.predictor) == ["4-3", "norm", "ReLU", "3-4+b"]
    assert layers(SimClr(backbone(), CHANNELS, **{**HEADS["simclr"], "projector_hidden": None}).projector)[0] == "5-5+b"
    for module in (
        Byol(backbone(), CHANNELS, **{**HEADS["byol"], "predictor_hidden": None}),
        SimSiam(backbone(), CHANNELS, **{**HEADS["simsiam"], "predictor_hidden": None}),
    ):
        assert isinstance(module.predictor, nn.Identity)


def two_views(n: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, 8, 8, generator=random, dtype=torch.float64), torch.randn(n, 3, 8, 8, generator=random, dtype=torch.float64)


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def test_byols_target_takes_batch_statistics_of_its_own_and_no_gradient() -> None:
    module, (first, second) = Byol(backbone(), CHANNELS, **HEADS["byol"]).double().train(), two_views()
    assert module.target is not None
    assert {name.partition(".")[0] for name, p in module.named_parameters() if not p.requires_grad} == {"target"}
    with torch.no_grad():
        for p in module.target.parameters():
            p.mul_(1.5)  # now the target is another network
    online = module.backbone[1].running_mean.clone()  # type: ignore[index, operator]
    module(first, second).sum().backward()
    assert all(p.grad is None for p in module.target.parameters())
    assert module.target[0][1].num_batches_tracked == module.backbone[1].num_batches_tracked == 2  # type: ignore[index]
    torch.testing.assert_close(module.target[0][1].running_mean, 1.5 * module.backbone[1].running_mean)  # type: ignore[index]
    assert not torch.equal(online, module.backbone[1].running_mean)  # type: ignore[arg-type, index]


def test_simclr_puts_both_views_through_the_network_as_one_batch() -> None:
    module, (first, second) = SimClr(backbone(), CHANNELS, **HEADS["simclr"]).double().train(), two_views()
    found = module(first, second)
    one, two = module.projections(torch.cat([first, second])).chunk(2)
    assert torch.equal(found, contrastive(one, two, 0.2))
    apart = contrastive(module.projections(first), module.projections(second), 0.2)
    assert not torch.allclose(found, apart)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_simsiams_gradient_stops_at_the_projection_or_does_not(stop_gradient: bool) -> None:
    """Half the sum of both negative cosines (Chen and He 2021, eq. 2 and 4), the projections constants of it or not."""
    module, (first, second) = SimSiam(backbone(), CHANNELS, **{**HEADS["simsiam"], "stop_gradient": stop_gradient}).double().train(), two_views()
    z = [module.projections(first), module.projections(second)]
    p = [module.predictor(x) for x in z]
    constants = [x.detach() if stop_gradient else x for x in z]

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    expected = -(cosine(p[0], constants[1]) + cosine(p[1], constants[0])) / 2
    found = module(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(module, found.sum()), gradients(module, expected.sum()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_without_stop_gradient_byol_has_no_target_and_gradients_through_both_sides() -> None:
    module, (first, second) = Byol(backbone(), CHANNELS, **{**HEADS["byol"], "stop_gradient": False}).double().train(), two_views()
    assert module.target is None
    assert module.untrained == ()
    z = [module.projections(first), module.projections(second)]
    p = [module.predictor(x) for x in z]

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)) ** 2).sum(1)

    expected = distance(p[0], z[1]) + distance(p[1], z[0])
    found = module(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(module, found.sum()), gradients(module, expected.sum()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    before = [p.clone() for p in module.parameters()]
    module.after_step(0, 10)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_one_view_gives_features_and_two_give_a_loss() -> None:
    for module in (
        Byol(backbone(), CHANNELS, **HEADS["byol"]),
        SimClr(backbone(), CHANNELS, **HEADS["simclr"]),
        SimSiam(backbone(), CHANNELS, **HEADS["simsiam"]),
    ):
        first, second = (view.float() for view in two_views(4))
        assert torch.equal(module.eval()(first), module.backbone(first))
        assert module.train()(first, second).shape == (4,)
        assert module.projections(first).shape == (4, 4)
