"""Weights files: every tensor is loaded, or listed, or an error; nothing in a file is executed."""

import argparse
import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision.models
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from pellucid.errors import MissingError, WeightsError
from pellucid.models import build_classifier, load_weights, read_metadata, read_weights, save_weights


class Net(nn.Module):
    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, classes)


def filled(module: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for each floating tensor of a state dict."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value.clone() for name, value in module.state_dict().items()}


def same(module: nn.Module, state: dict[str, torch.Tensor], *, but: str = "\0") -> bool:
    own = module.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith(but))


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


# ── finding the tensors ──
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_of_the_model_itself_load_whole(tmp_path, suffix):
    state, file = filled(Net()), tmp_path / f"net{suffix}"
    safetensors.torch.save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    net = Net()
    report = load_weights(net, file, classifier=("head",))
    assert same(net, state)
    assert report.loaded == len(state)
    assert report.lines() == [f"net{suffix}: {len(state)} tensors loaded"]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state", "module", "ema", "model_ema"])
def test_state_dict_is_found_inside_a_wrapper_which_is_named(tmp_path, wrapper):
    state, net = filled(Net()), Net()
    file = saved({"epoch": 3, wrapper: state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "net.pth")
    report = load_weights(net, file, classifier=("head",))
    assert same(net, state)
    assert report.lines()[-1] == f"state dict taken from the entry {wrapper!r}"


def test_two_state_dicts_in_a_file_are_an_error_and_one_can_be_chosen(tmp_path):
    raw, average, net = filled(Net(), 1), filled(Net(), 2), Net()
    file = saved({"model": raw, "model_ema": average}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"holds several state dicts \(model, model_ema\) and nothing says which"):
        load_weights(net, file, classifier=("head",))
    load_weights(net, file, classifier=("head",), entry="model_ema")
    assert same(net, average)
    with pytest.raises(WeightsError, match="no entry 'teacher'; the file has model, model_ema"):
        read_weights(file, entry="teacher")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod.", "student.net."])
def test_prefix_under_which_most_names_match_is_stripped(tmp_path, prefix):
    state, net = filled(Net()), Net()
    others = {"projector.weight": torch.ones(2)}
    report = load_weights(net, saved({prefix + name: value for name, value in state.items()} | others, tmp_path / "net.pth"), classifier=("head",))
    assert same(net, state)
    assert report.prefix == prefix
    assert report.unexpected == ["projector.weight"]
    assert f"prefix {prefix!r} stripped" in report.lines()[0]
    assert "in the file, without a place in the model: projector.weight" in report.lines()


def test_head_saved_beside_a_prefixed_backbone_is_found(tmp_path):
    state, net = filled(Net()), Net()
    file = saved({name if name.startswith("head") else f"backbone.{name}": value for name, value in state.items()}, tmp_path / "net.pth")
    report = load_weights(net, file, classifier=("head",))
    assert same(net, state)
    assert report.unexpected == []


def test_things_beside_the_tensors_are_listed(tmp_path):
    report = load_weights(Net(), saved({**filled(Net()), "version": 2}, tmp_path / "net.pth"), classifier=("head",))
    assert report.notes == ["not tensors, left out: version"]


def test_half_precision_is_converted_and_said(tmp_path):
    state, net = {name: value.half() if value.is_floating_point() else value for name, value in filled(Net()).items()}, Net()
    report = load_weights(net, saved(state, tmp_path / "net.pth"), classifier=("head",))
    assert torch.equal(net.conv.weight, state["conv.weight"].float())
    assert report.notes == ["14 tensors converted from float16 to float32"]


# ── differences ──
def test_classifier_of_another_class_count_stays_as_initialised_and_is_listed(tmp_path):
    state, net = filled(Net(classes=10)), Net(classes=3)
    fresh = net.head.weight.detach().clone()
    report = load_weights(net, saved(state, tmp_path / "net.pth"), classifier=("head",))
    assert same(net, state, but="head")
    assert torch.equal(net.head.weight, fresh)
    assert report.skipped_head == ["head.weight 10x4", "head.bias 10"]
    assert "classifier of another class count, freshly initialised: head.weight 10x4, head.bias 10" in report.lines()
    with pytest.raises(WeightsError, match=r"2 of another shape: head.weight: the model has 3x4, the file 10x4, head.bias"):
        load_weights(net, tmp_path / "net.pth", classifier=("head",), allow_head_mismatch=False)


def test_absent_classifier_is_listed(tmp_path):
    state = {name: value for name, value in filled(Net()).items() if not name.startswith("head")}
    report = load_weights(Net(), saved(state, tmp_path / "net.pth"), classifier=("head",))
    assert report.missing == ["head.weight", "head.bias"]
    assert "not in the file, left as initialised: head.weight, head.bias" in report.lines()


def test_missing_backbone_tensors_are_an_error_that_lists_them(tmp_path):
    state, net = filled(Net()), Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    del state["norm.weight"], state["block.1.running_mean"]
    with pytest.raises(WeightsError, match=r"2 missing from the file \(training would start from random parts\): norm.weight, block.1.running_mean"):
        load_weights(net, saved(state, tmp_path / "net.pth"), classifier=("head",))
    assert same(net, before)


def test_counters_that_older_files_lack_are_no_error(tmp_path):
    state, net = {name: value for name, value in filled(Net()).items() if not name.endswith("num_batches_tracked")}, Net()
    report = load_weights(net, saved(state, tmp_path / "net.pth"), classifier=("head",))
    assert same(net, state)
    assert report.lines()[-1] == "not in the file, left as initialised: 2 x num_batches_tracked"


def test_every_other_shape_difference_is_listed_in_one_error(tmp_path):
    with pytest.raises(WeightsError) as caught:
        load_weights(Net(width=4), saved(filled(Net(width=5)), tmp_path / "net.pth"), classifier=("head",))
    said = str(caught.value)
    assert "12 of another shape: conv.weight: the model has 4x3x3x3, the file 5x3x3x3" in said
    assert "block.1.running_var: the model has 4, the file 5" in said


def test_file_of_another_architecture_does_not_fit(tmp_path):
    with pytest.raises(WeightsError, match=r"does not fit the model: 4 of 81 tensors match by name. The file has .* Check model.name"):
        load_weights(Net(), saved(timm.create_model("test_vit").state_dict() | {"x": torch.ones(1)}, tmp_path / "net.pth"), classifier=("head",))


# ── position embeddings ──
@pytest.mark.parametrize("size", [(96, 96), (128, 64)])
def test_position_embedding_of_timm_is_resized_by_timms_own_function(tmp_path, size):
    source, net = timm.create_model("test_vit"), timm.create_model("test_vit", img_size=size)
    report = load_weights(net, saved(source.state_dict(), tmp_path / "vit.pth"), classifier=("head",))
    grid = [side // 16 for side in size]
    assert torch.equal(net.pos_embed, timm.layers.resample_abs_pos_embed(source.pos_embed, grid, num_prefix_tokens=1))
    assert [(item.name, item.before, item.after) for item in report.reshaped] == [("pos_embed", (1, 101, 64), (1, grid[0] * grid[1] + 1, 64))]
    assert same(net, source.state_dict(), but="pos_embed")
    assert "pos_embed: 1x101x64 resized to" in report.lines()[1]


def test_position_embedding_without_class_token_is_resized_whole(tmp_path):
    options = {"class_token": False, "global_pool": "avg"}
    source, net = timm.create_model("test_vit", **options), timm.create_model("test_vit", img_size=96, **options)
    load_weights(net, saved(source.state_dict(), tmp_path / "vit.pth"), classifier=("head",))
    assert torch.equal(net.pos_embed, timm.layers.resample_abs_pos_embed(source.pos_embed, [6, 6], num_prefix_tokens=0))


def test_position_embedding_of_torchvision_is_resized_as_torchvision_does(tmp_path):
    shape = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16, "num_classes": 3}
    source, net = VisionTransformer(image_size=32, **shape), VisionTransformer(image_size=48, **shape)
    report = load_weights(net, saved(source.state_dict(), tmp_path / "vit.pth"), classifier=("heads.head",))
    wanted = interpolate_embeddings(48, 8, OrderedDict(source.state_dict()))["encoder.pos_embedding"]
    assert torch.equal(net.encoder.pos_embedding, wanted)
    assert net.encoder.pos_embedding.shape == (1, 37, 16)
    assert report.reshaped[0].name == "encoder.pos_embedding"


def test_position_embedding_of_no_square_grid_is_an_error(tmp_path):
    source = timm.create_model("test_vit", img_size=(96, 64)).state_dict()
    with pytest.raises(WeightsError, match="1 of another shape: pos_embed: the model has 1x101x64, the file 1x25x64"):
        load_weights(timm.create_model("test_vit"), saved(source, tmp_path / "vit.pth"), classifier=("head",))


# ── older layouts ──
def test_older_densenet_names_are_understood(tmp_path):
    source = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=3)
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for name, value in filled(source).items()}
    assert set(old) != set(source.state_dict())
    net = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=3)
    report = load_weights(net, saved(old, tmp_path / "densenet.pth"), classifier=("classifier",))
    assert same(net, filled(source))
    assert report.missing == report.unexpected == []


def test_position_tables_of_swin_are_resized_by_timms_filter(tmp_path):
    shape = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 3}
    source = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, **shape)
    net = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, **shape)
    report = load_weights(net, saved(source.state_dict(), tmp_path / "swin.pth"), classifier=("head.fc",))
    tables = {name for name in net.state_dict() if name.endswith("relative_position_bias_table")}
    assert {item.name for item in report.reshaped} == tables
    assert {item.how for item in report.reshaped} == {"timm checkpoint filter"}
    assert all((item.before, item.after) == ((169, heads), (49, heads)) for heads, item in enumerate(report.reshaped, start=1))
    for name in tables:  # the middle of a table is the offset (0, 0), whatever the window
        torch.testing.assert_close(net.state_dict()[name][24], source.state_dict()[name][84])
    assert same(net, {name: value for name, value in source.state_dict().items() if name not in tables})


def test_names_of_the_original_convnext_are_renamed_by_timms_filter_and_said(tmp_path):
    source = filled(timm.create_model("test_convnext", num_classes=3))
    original = {}
    for name, value in source.items():
        old = re.sub(r"^stem\.(\d)", r"downsample_layers.0.\1", name)
        old = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", old)
        old = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", old).replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        original[re.sub(r"^head\.(norm|fc)\.", lambda found: "norm." if found[1] == "norm" else "head.", old)] = value
    net = timm.create_model("test_convnext", num_classes=3)
    report = load_weights(net, saved({"model": original}, tmp_path / "convnext.pth"), classifier=("head.fc",))
    assert same(net, source)
    assert report.loaded == len(source)
    assert report.unexpected == []
    assert "timm's checkpoint filter renamed or dropped: downsample_layers.0.0.bias" in report.lines()[-1]


# ── files that are not weights ──
class Trap:
    """Unpickling this would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_execute_code_is_refused_and_names_it(tmp_path, zipped):
    file = tmp_path / "trap.pth"
    torch.save({**filled(Net()), "x": Trap(tmp_path / "sprung")}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"trap.pth: refused, loading it would execute code: it refers to posix.mkdir\b"):
        read_weights(file)
    assert not (tmp_path / "sprung").exists()


def test_pickled_module_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"refers to torch.nn.modules.linear.Linear. Expected a file of tensors."):
        read_weights(saved(nn.Linear(2, 2), tmp_path / "module.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 50, 0.9])
def test_truncated_file_is_an_error(tmp_path, suffix, kept):
    file = tmp_path / f"net{suffix}"
    state = filled(Net())
    safetensors.torch.save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=f"net{suffix}: cannot be read as weights, the file is truncated or of another kind"):
        read_weights(file)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("photo.pth", b"\x89PNG and so on", "cannot be read as weights"),
        ("notes.pth", b"hello, these are no weights", "cannot be read as weights"),
        ("photo.safetensors", b"\x89PNG and so on", "cannot be read as weights"),
        ("weights.onnx", b"x", r"expected a .safetensors, .pth or .pt file, got '.onnx'"),
    ],
)
def test_foreign_file_is_an_error(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_weights(tmp_path / name)


def test_absent_file_is_missing(tmp_path):
    with pytest.raises(MissingError, match=r"gone.pth: no such weights file. Check the path; in a recipe it starts at the recipe file."):
        load_weights(Net(), tmp_path / "gone.pth", classifier=("head",))


@pytest.mark.parametrize(("content", "said"), [([1, 2], "expected a state dict .* got list"), ({"epoch": 1}, "no state dict found; .* got epoch")])
def test_pickle_without_tensors_is_an_error(tmp_path, content, said):
    with pytest.raises(WeightsError, match=said):
        read_weights(saved(content, tmp_path / "x.pth"))


# ── writing ──
def test_saved_weights_come_back_with_their_metadata(tmp_path):
    net, file = Net(), tmp_path / "net.safetensors"
    save_weights(net, file, {"epoch": "3", "model": "Net"})
    assert {name: value.dtype for name, value in read_weights(file).items()} == {name: value.dtype for name, value in net.state_dict().items()}
    assert same(net, read_weights(file))
    assert read_metadata(file) == {"format": "pt", "epoch": "3", "model": "Net"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


def test_shared_and_strided_tensors_are_saved_whole(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    last = shared.reshape(1, 3, 2, 2).to(memory_format=torch.channels_last)
    save_weights({"a": shared, "b": shared, "c": shared.t(), "d": shared[1], "e": last}, tmp_path / "x.safetensors")
    state = read_weights(tmp_path / "x.safetensors")
    assert torch.equal(state["a"], shared)
    assert torch.equal(state["b"], shared)
    assert torch.equal(state["c"], shared.t())
    assert torch.equal(state["d"], shared[1])
    assert torch.equal(state["e"], shared.reshape(1, 3, 2, 2))


def test_equal_weights_are_equal_files_in_any_process(tmp_path):
    script = (
        "import sys, torch; from pellucid.models.weights import save_weights\n"
        "save_weights({n: torch.ones(i) for i, n in enumerate('cab')}, sys.argv[1], {k: k for k in 'hgfedcba'})"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], check=True)
    for name in ("here", "again"):
        save_weights({n: torch.ones(i) for i, n in enumerate("cab")}, tmp_path / name, {k: k for k in "abcdefgh"})
    assert len({(tmp_path / name).read_bytes() for name in ("here", "again", "there")}) == 1


def test_failed_save_leaves_the_old_file(tmp_path):
    file = tmp_path / "net.safetensors"
    save_weights({"a": torch.ones(2)}, file)
    with pytest.raises((TypeError, ValueError)):
        save_weights({"a": torch.zeros(2)}, file, {"n": 3})
    assert torch.equal(read_weights(file)["a"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


# ── real ImageNet weights ──
@pytest.fixture(scope="module")
def real_weights() -> Path:
    folder = Path(os.environ.get("PELLUCID_DATA") or Path(__file__).parents[2] / "shared" / "data") / "weights"
    if not folder.is_dir():
        pytest.skip("needs the weights of the test data: set PELLUCID_DATA to its folder")
    return folder


def classify(module: nn.Module, image: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.from_numpy(image).permute(2, 0, 1)[None].float())


@pytest.mark.data
def test_real_squeezenet_loads_whole_and_under_another_class_count(real_weights):
    file = real_weights / "squeezenet1_0_deepcompression_torchvision.pth"
    settings = {"pretrained": False, "options": {}, "drop_rate": None, "drop_path_rate": None, "image_size": (64, 64)}
    whole = build_classifier("torchvision/squeezenet1_0", num_classes=1000, **settings)
    report = load_weights(whole.module, file, classifier=whole.classifier)
    assert report.loaded == len(whole.module.state_dict()) == 52
    assert len(report.lines()) == 1
    oracle = torchvision.models.squeezenet1_0()
    oracle.load_state_dict(torch.load(file, weights_only=True))
    image = np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
    assert torch.equal(classify(whole.module, image), classify(oracle, image))
    few = build_classifier("torchvision/squeezenet1_0", num_classes=10, **settings)
    report = load_weights(few.module, file, classifier=few.classifier)
    assert report.loaded == 50
    assert report.skipped_head == ["classifier.1.weight 1000x512x1x1", "classifier.1.bias 1000"]
    assert torch.equal(few.module.features[12].squeeze.weight, oracle.features[12].squeeze.weight)


@pytest.mark.data
def test_real_mobilenet_loads_into_the_narrow_model_and_not_into_the_whole_one(real_weights):
    file = real_weights / "mobilenetv1_025_keras_timm.pth"
    settings = {"num_classes": 1000, "pretrained": False, "drop_rate": None, "drop_path_rate": None, "image_size": (64, 64)}
    built = build_classifier("timm/mobilenetv1_100", options={"channel_multiplier": 0.25, "pad_type": "same", "bn_eps": 1e-3}, **settings)
    built.module.load_state_dict(torch.load(file, weights_only=True), strict=True)
    report = load_weights(built.module, file, classifier=built.classifier)
    assert report.unexpected == report.skipped_head == []
    assert {name.split(".")[-1] for name in report.missing} <= {"num_batches_tracked"}
    whole = build_classifier("timm/mobilenetv1_100", options={}, **settings)
    with pytest.raises(WeightsError, match=r"of another shape: conv_stem.weight: the model has 32x3x3x3, the file 8x3x3x3"):
        load_weights(whole.module, file, classifier=whole.classifier)
