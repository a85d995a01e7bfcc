"""A backbone leaves a run as a plain file and another model starts from it: same tensors, same normalisation, and no other architecture."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
import yaml
from torch import Tensor, nn

from pellucid import recipe as recipes
from pellucid.errors import InterruptedError, MissingError, UsageError, WeightsError
from pellucid.evaluate import export_run_backbone
from pellucid.files import file_hash
from pellucid.models import Built, build_classifier, read_metadata, read_weights, save_weights
from pellucid.models.backbone_file import BackboneFacts, load_into, normalized_as, read_facts, save_backbone
from pellucid.models.segmenters import build_segmenter
from pellucid.run import Run
from pellucid.train import resume, train
from pellucid.verify import verify

Options = dict[str, Any]
MEAN, STD = (0.41, 0.32, 1 / 3), (0.21, 0.27, 2 / 7)
VIT: Options = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}
NARROW: Options = {"channel_multiplier": 0.25, "pad_type": "same", "bn_eps": 1e-3}
MODELS: list[tuple[str, Options]] = [("timm/test_resnet", {}), ("timm/test_vit", VIT), ("timm/mobilenetv1_100", NARROW), ("torchvision/mobilenet_v3_small", {})]


def built(name: str, options: Options, classes: int = 3) -> Built:
    return build_classifier(name, num_classes=classes, pretrained=False, options=options, drop_rate=None, drop_path_rate=None, image_size=(32, 32))


def facts_of(name: str, options: Options, classifier: tuple[str, ...], **changes: Any) -> BackboneFacts:
    facts = BackboneFacts(name, dict(options), classifier, MEAN, STD, (32, 32), "pretraining", "simclr", "pretrain", "run-1", "0.5.0")
    return dataclasses.replace(facts, **changes)


def saved(name: str, options: Options, path: Path, **changes: Any) -> dict[str, Tensor]:
    """The state dict of a model of seven classes whose backbone is written to `path`."""
    torch.manual_seed(7)
    model = built(name, options, classes=7)
    save_backbone(model.module, path, facts_of(name, options, model.classifier, **changes))
    return model.module.state_dict()


def under(name: str, paths: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


# ── the file ──
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_model_starts_from_the_backbone_of_another_class_count(tmp_path: Path, name: str, options: Options) -> None:
    state = saved(name, options, tmp_path / "b.safetensors")
    torch.manual_seed(1)
    target = built(name, options)
    before = {key: value.clone() for key, value in target.module.state_dict().items()}
    started, report = load_into(target, tmp_path / "b.safetensors", name=name, options=options)
    assert any(not torch.equal(before[key], state[key]) for key in before if not under(key, target.classifier))
    for key, value in started.module.state_dict().items():
        assert torch.equal(value, before[key] if under(key, target.classifier) else state[key]), key
    assert sorted(report.missing) == sorted(key for key in before if under(key, target.classifier))
    assert (report.unexpected, report.skipped_head, report.reshaped, report.prefix) == ([], [], [], "")
    assert (started.mean, started.std) == (MEAN, STD)
    assert started.normalized_by == f"stated in b.safetensors (the backbone of {name}, pretraining (simclr) on pretrain)"
    assert started.notes[-1] == f"b.safetensors: the backbone of {name}, pretraining (simclr) on pretrain, run run-1"


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_the_file_has_the_layout_of_its_library_without_the_classifier(tmp_path: Path, name: str) -> None:
    saved(name, {}, tmp_path / "b.safetensors")
    home, _, model = name.partition("/")
    plain = timm.create_model(model, num_classes=2) if home == "timm" else torchvision.models.get_model(model, num_classes=2)
    found = plain.load_state_dict(read_weights(tmp_path / "b.safetensors"), strict=False)
    assert (sorted(found.missing_keys), found.unexpected_keys) == (["fc.bias", "fc.weight"], [])


def test_facts_come_back_as_they_were_and_equal_backbones_are_equal_files(tmp_path: Path) -> None:
    saved("timm/test_vit", VIT, tmp_path / "a.safetensors")
    saved("timm/test_vit", VIT, tmp_path / "b.safetensors")
    assert read_facts(tmp_path / "a.safetensors") == facts_of("timm/test_vit", VIT, ("head",))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    metadata = read_metadata(tmp_path / "a.safetensors")
    assert {key: metadata[key] for key in ("model", "classifier", "std", "pellucid")} == {
        "model": "timm/test_vit", "classifier": '["head"]', "std": json.dumps(list(STD)), "pellucid": "0.5.0",
    }  # fmt: skip


class Online(nn.Module):
    """A pre-training module: the backbone without its classifier, and a projector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("test_resnet", num_classes=0)
        self.projector = nn.Linear(int(self.backbone.num_features), 8)


def test_the_backbone_of_a_larger_module_leaves_without_its_path(tmp_path: Path) -> None:
    module = Online()
    save_backbone(module, tmp_path / "b.safetensors", facts_of("timm/test_resnet", {}, ("fc",)), backbone="backbone")
    started, report = load_into(built("timm/test_resnet", {}), tmp_path / "b.safetensors", name="timm/test_resnet", options={})
    own = started.module.state_dict()
    assert all(torch.equal(own[key], value) for key, value in module.backbone.state_dict().items())
    assert report.missing == ["fc.weight", "fc.bias"]


def test_a_module_of_a_classifier_alone_has_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Sequential: nothing but its classifier \(0\) has tensors: there is no backbone to save"):
        save_backbone(nn.Sequential(nn.Linear(2, 2)), tmp_path / "b.safetensors", facts_of("timm/test_vit", {}, ("0",)))
    assert list(tmp_path.iterdir()) == []


# ── what does not fit ──
def test_another_architecture_is_refused_with_both_names(tmp_path: Path) -> None:
    saved("timm/test_vit", VIT, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_into(built("timm/test_resnet", {}), tmp_path / "b.safetensors", name="timm/test_resnet", options={})
    assert str(caught.value) == (
        "b.safetensors: the backbone of timm/test_vit, pretraining (simclr) on pretrain; the model is timm/test_resnet, another architecture. "
        f"Set model.name: timm/test_vit with options {json.dumps(VIT, sort_keys=True)}, or give weights of timm/test_resnet."
    )


def test_the_same_tensors_of_another_home_are_another_architecture(tmp_path: Path) -> None:
    """timm's and torchvision's ResNets have the same names; of other pairs (efficientnet_b0, tf_efficientnet_b0) the padding differs."""
    saved("timm/test_resnet", {}, tmp_path / "b.safetensors", model="torchvision/test_resnet")
    with pytest.raises(WeightsError, match=r"the backbone of torchvision/test_resnet, .*; the model is timm/test_resnet, another architecture"):
        load_into(built("timm/test_resnet", {}), tmp_path / "b.safetensors", name="timm/test_resnet", options={})


def test_a_tag_of_published_weights_is_no_other_architecture(tmp_path: Path) -> None:
    saved("timm/test_resnet", {}, tmp_path / "b.safetensors", model="timm/test_resnet.r160_in1k")
    assert load_into(built("timm/test_resnet", {}), tmp_path / "b.safetensors", name="timm/test_resnet", options={})[1].loaded > 0


@pytest.mark.parametrize(
    ("changes", "theirs", "mine"),
    [
        ({"num_heads": 4}, "num_heads: 2", "num_heads: 4"),  # of the same shapes, and another function
        ({"embed_dim": 48, "num_heads": 4}, "embed_dim: 32, num_heads: 2", "embed_dim: 48, num_heads: 4"),
        ({"qk_norm": True, "drop_rate": 0.5}, "qk_norm: not given", "qk_norm: true"),
    ],
)
def test_other_options_are_refused_with_both_values_and_the_remedy(tmp_path: Path, changes: Options, theirs: str, mine: str) -> None:
    saved("timm/test_vit", VIT, tmp_path / "b.safetensors")
    other = VIT | changes
    with pytest.raises(WeightsError) as caught:
        load_into(built("timm/test_vit", other), tmp_path / "b.safetensors", name="timm/test_vit", options=other)
    wanted = VIT | {key: value for key, value in changes.items() if key == "drop_rate"}
    assert str(caught.value) == (
        f"b.safetensors: the backbone of timm/test_vit, pretraining (simclr) on pretrain, was trained with the options {theirs}; the model has {mine}. "
        f"Tensors of equal shape would be another function. Set model.options: {json.dumps(wanted, sort_keys=True)}, or give weights of those options."
    )
    assert load_into(built("timm/test_vit", wanted), tmp_path / "b.safetensors", name="timm/test_vit", options=wanted)[1].loaded > 0


def test_options_of_image_size_and_dropout_are_told_and_fit(tmp_path: Path) -> None:
    saved("timm/test_vit", VIT, tmp_path / "b.safetensors")
    dropped = VIT | {"attn_drop_rate": 0.1, "dynamic_img_size": True}
    notes = load_into(built("timm/test_vit", dropped), tmp_path / "b.safetensors", name="timm/test_vit", options=dropped)[0].notes
    assert notes[-1] == f"b.safetensors: trained with options {json.dumps(VIT, sort_keys=True)}, the model has {json.dumps(dropped, sort_keys=True)}"


def test_a_file_without_facts_leaves_the_models_own_normalisation(tmp_path: Path) -> None:
    model = built("timm/test_resnet", {}, classes=7)
    torch.save(model.module.state_dict(), tmp_path / "w.pth")
    save_weights(model.module, tmp_path / "w.safetensors", {"mean": "[0.1, 0.2, 0.3]"})
    for file in ("w.pth", "w.safetensors"):
        target = built("timm/test_resnet", {})
        started, report = load_into(target, tmp_path / file, name="timm/test_resnet", options={})
        assert started is target
        assert started.normalized_by == "the model's own"
        assert len(report.skipped_head) == 2
    with pytest.raises(MissingError, match=r"none.safetensors: no such weights file"):
        load_into(built("timm/test_resnet", {}), tmp_path / "none.safetensors", name="timm/test_resnet", options={})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("backbone", "2", "version 2 instead of 1"),
        ("mean", None, "'mean' is missing"),
        ("mean", "[0.1, 0.2]", r"mean \[0.1, 0.2\] instead of a list of 3 finite numbers"),
        ("mean", "[true, false, true]", r"mean \[true, false, true\] instead of a list of 3 finite numbers"),
        ("mean", '["0.1", "0.2", "0.3"]', "instead of a list of 3 finite numbers"),
        ("mean", f"[0.1, 0.2, 1{400 * '0'}]", "mean .{60}… instead of a list of 3 finite numbers"),
        ("mean", 3000 * "[" + 3000 * "]", "lists within lists, too deep to be read"),
        ("std", "[0.1, 0.2, 0.0]", r"std \[0.1, 0.2, 0.0\] instead of numbers above 0"),
        ("std", "[0.1, 0.2, NaN]", "instead of a list of 3 finite numbers"),
        ("options", "[]", r"options \[\] instead of a mapping"),
        ("image_size", "32", "image_size 32 instead of a list of 2 finite numbers"),
        ("image_size", "[1e400, 3]", "instead of a list of 2 finite numbers"),
        ("image_size", "[32.5, 0]", r"image_size \[32.5, 0\] instead of whole pixels, 1 or more"),
        ("classifier", '"head"', 'classifier "head" instead of a list of names'),
        ("classifier", "[1]", r"classifier \[1\] instead of a list of names"),
        ("classifier", "{", "Expecting property name"),
    ],
)
def test_facts_that_were_changed_are_an_error(tmp_path: Path, key: str, value: str | None, said: str) -> None:
    facts = facts_of("timm/test_resnet", {}, ("fc",)).metadata()
    changed = {name: text for name, text in (facts | {key: value}).items() if text is not None}
    save_weights({"conv1.weight": torch.zeros(2)}, tmp_path / "b.safetensors", changed)
    with pytest.raises(
        WeightsError, match=f"b.safetensors: expected what a backbone file of Pellucid says of itself: .*{said}.*`pellucid export RUN --backbone`"
    ):
        read_facts(tmp_path / "b.safetensors")


# ── runs that start from one ──
def recipe_from(file: Path, small: str, **data: object) -> recipes.Recipe:
    values = yaml.safe_load(small)
    values["model"]["weights"] = str(file)
    values["data"] |= data
    return recipes.loads(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("backbones") / "b.safetensors"
    saved("timm/test_vit", VIT, file)
    return file


def test_a_run_is_normalised_as_its_backbone_was_and_says_so(vit_file: Path, small_recipe: str, tmp_path: Path) -> None:
    run = train(recipe_from(vit_file, small_recipe), out=tmp_path / "run", quiet=True, figures=False)
    assert (run.data.mean, run.data.std) == (list(MEAN), list(STD))
    assert run.data.normalize == "stated in b.safetensors (the backbone of timm/test_vit, pretraining (simclr) on pretrain)"
    assert f"pixels are normalised by mean [0.41, 0.32, 0.3333], std [0.21, 0.27, 0.2857], {run.data.normalize}" in run.record.notes
    assert "not in the file, left as initialised: head.weight, head.bias" in run.record.notes


def test_a_recipe_with_its_own_normalisation_keeps_it_and_is_told(vit_file: Path, small_recipe: str, tmp_path: Path) -> None:
    recipe = recipe_from(vit_file, small_recipe, normalize="imagenet")
    run = train(recipes.override(recipe, ["train.phases.0.epochs=1"]), out=tmp_path / "run", quiet=True, figures=False)
    assert (run.data.mean, run.data.normalize) == ([0.485, 0.456, 0.406], "ImageNet's")
    (line,) = [note for note in run.record.notes if note.startswith("pixels are normalised")]
    assert line.startswith(
        "pixels are normalised by mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225] (data.normalize); the weights were trained with mean [0.41, "
    )


def test_a_resumed_run_needs_the_file_no_more_and_ends_in_the_same_bits(
    vit_file: Path, small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(shutil.copy(vit_file, tmp_path / "b.safetensors"))
    recipe = recipe_from(file, small_recipe)
    unbroken = train(recipe, out=tmp_path / "unbroken", quiet=True, figures=False)
    loop = sys.modules["pellucid.loop"]
    real, done = loop._after_step, []

    def stop(*arguments: object) -> None:
        real(*arguments)
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_after_step", stop)
    with pytest.raises(InterruptedError):
        train(recipe, out=tmp_path / "broken", quiet=True, figures=False)
    monkeypatch.undo()
    file.unlink()
    run = resume(tmp_path / "broken", quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(unbroken.final_weights)
    assert (run.path / "data.json").read_bytes() == (unbroken.path / "data.json").read_bytes()
    assert run.data.mean == list(MEAN)
    assert verify(run).ok


# ── export ──
def test_the_backbone_of_a_run_is_exported_and_another_run_starts_from_it(
    small_run: Path, small_recipe: str, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "deep" / "b.safetensors"
    code, text, _ = pellucid("export", small_run, "--backbone", "--out", out)
    assert code == 0
    size, without, compared = text.splitlines()
    assert size.startswith(f"{out}: 0.")
    assert without == "without the classifier, head"
    final, written = read_weights(Run(small_run).final_weights), read_weights(out)
    assert compared == f"{len(written)} of {len(written)} tensors read back equal, bit for bit"
    assert written.keys() == final.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(value, final[key]) for key, value in written.items())
    facts, run = read_facts(out), Run(small_run)
    assert facts is not None
    assert (facts.task, facts.method, facts.data, facts.run) == ("classification", "supervised", "scenes", "small")
    assert (facts.model, facts.options, facts.image_size, facts.classifier) == ("timm/test_vit", VIT, (32, 32), ("head",))
    assert (list(facts.mean), list(facts.std), facts.pellucid) == (run.data.mean, run.data.std, run.record.pellucid)
    second = train(
        recipes.override(recipe_from(out, small_recipe, normalize="dataset"), ["train.phases.0.epochs=1"]), out=tmp_path / "run", quiet=True, figures=False
    )
    assert any(note == "b.safetensors: the backbone of timm/test_vit, classification (supervised) on scenes, run small" for note in second.record.notes)


def test_export_says_what_it_wrote_as_json_and_refuses_what_it_cannot(copied_run: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    code, text, _ = pellucid("export", copied_run, "--backbone", "--json")
    found = json.loads(text)
    assert (code, found["format"], found["left_out"]) == (0, "safetensors", ["head"])
    assert Path(found["file"]) == copied_run / "backbone.safetensors"
    code, _, err = pellucid("export", copied_run, "--backbone", "--format", "onnx")
    assert (code, "--backbone writes safetensors, which other recipes start from; leave --format out" in err) == (2, True)
    code, _, err = pellucid("export", copied_run, "--backbone", "--out", copied_run / "b.onnx")
    assert (code, f"--out: a backbone is a .safetensors file, got {copied_run / 'b.onnx'}" in err) == (2, True)


def test_a_frozen_backbone_does_not_claim_that_its_run_trained_it(copied_run: Path) -> None:
    values = yaml.safe_load((copied_run / "resolved.yaml").read_text())
    values["model"]["freeze"] = "backbone"
    (copied_run / "resolved.yaml").write_text(yaml.safe_dump(values))
    facts = read_facts(export_run_backbone(Run(copied_run), None).file)
    assert facts is not None
    assert facts.origin == "the backbone of timm/test_vit, classification (backbone frozen) on scenes"


def as_pretraining(folder: Path) -> Run:
    """A run folder whose recipe says that it is a pre-training."""
    values = yaml.safe_load((folder / "resolved.yaml").read_text())
    values |= {"task": "pretraining", "method": {"name": "simclr"}}
    del values["loss"]
    (folder / "resolved.yaml").write_text(yaml.safe_dump(values))
    return Run(folder)


def test_a_pre_training_gives_the_file_that_it_left(copied_run: Path, tmp_path: Path) -> None:
    run = as_pretraining(copied_run)
    with pytest.raises(MissingError, match=r"backbone.safetensors: the run has no backbone file. Is it finished\? `pellucid resume"):
        export_run_backbone(run, None)
    saved("timm/test_vit", VIT, run.backbone_weights)
    result = export_run_backbone(run, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == run.backbone_weights.read_bytes()
    assert result.left_out == ("head",)


def test_a_segmenter_has_no_backbone_of_its_librarys_layout(masked_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"the encoder of smp/Unet is cut into stages .*a backbone file comes from a classification or a pretraining"):
        export_run_backbone(Run(masked_folder), None)


@pytest.fixture
def masked_folder(copied_run: Path) -> Path:
    """A run folder whose recipe says that it is a segmentation."""
    values = yaml.safe_load((copied_run / "resolved.yaml").read_text())
    values |= {"task": "segmentation", "model": {"name": "smp/Unet", "encoder": "tu-test_resnet"}}
    (copied_run / "resolved.yaml").write_text(yaml.safe_dump(values))
    return copied_run


# ── segmentation ──
@pytest.mark.parametrize(
    ("name", "encoder", "source", "path"),
    [
        ("smp/Unet", "tu-test_resnet", "timm/test_resnet", "encoder.model"),
        ("smp/FPN", "mobilenet_v2", "torchvision/mobilenet_v2", "encoder"),
        ("torchvision/lraspp_mobilenet_v3_large", None, "torchvision/mobilenet_v3_large", "backbone"),
    ],
)
def test_a_segmenter_starts_from_a_backbone_file_and_takes_its_normalisation(tmp_path: Path, name: str, encoder: str | None, source: str, path: str) -> None:
    file = tmp_path / "b.safetensors"
    state = saved(source, {}, file)
    given: dict[str, Any] = {"num_classes": 4, "pretrained": False, "encoder": encoder, "options": {}, "image_size": (64, 64)}
    plain = build_segmenter(name, **given)
    assert plain.normalized_by == "the model's own"
    assert plain.mean != MEAN
    model = build_segmenter(name, **given, backbone_weights=file)
    own = model.module.get_submodule(path).state_dict()
    for key, value in own.items():
        assert torch.equal(value, state.get(key, state.get(f"features.{key}"))), key  # type: ignore[arg-type]
    assert (model.mean, model.std) == (MEAN, STD)
    assert model.normalized_by == f"stated in b.safetensors (the backbone of {source}, pretraining (simclr) on pretrain)"


def test_a_model_keeps_its_normalisation_where_the_file_states_none(tmp_path: Path) -> None:
    model = built("timm/test_resnet", {})
    torch.save(model.module.state_dict(), tmp_path / "w.pth")
    assert normalized_as(model, tmp_path / "w.pth") is model
