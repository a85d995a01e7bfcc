"""Exports: the file does what the model does, says what it needs, and does not exist when it does not."""

import importlib.util
import json
import sys

import pytest
import timm
import torch
import torchvision.models
from torch import nn

from pellucid import export
from pellucid.errors import MissingError, PellucidError, UsageError
from pellucid.export import export_onnx, export_safetensors
from pellucid.models import read_metadata, read_weights
from pellucid.models.segmenters import build_segmenter

FACTS = {"image_size": (64, 64), "class_names": ["cat", "dög", "eel"], "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}


@pytest.fixture
def onnxruntime():
    return pytest.importorskip("onnxruntime", reason="needs the extra `export`")


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    home, name = name.split("/")
    if home == "torchvision":
        return torchvision.models.get_model(name, num_classes=3)
    return timm.create_model(name, num_classes=3, **({"img_size": 64} if "vit" in name else {}))


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18", "timm/test_efficientnet"])
def test_onnx_gives_the_logits_of_the_model_for_any_batch(tmp_path, onnxruntime, name, capfd):
    module, out = model(name), tmp_path / "model.onnx"
    result = export_onnx(module, out, **FACTS)
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            expected = module.eval()(images)
        (found,) = session.run(None, {"images": images.numpy()})
        assert found.shape == (batch, 3)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-5)
    assert (result.compared, result.same_argmax, result.num_bytes) == (4, 4, out.stat().st_size)
    assert 0.0 <= result.difference <= 1e-3 * result.scale
    assert result.scale > 0
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert result.lines()[1].endswith("same class for 4 of 4 images")
    assert (result.decided, result.of) == (4, "images")
    facts = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert facts["output"] == "logits (B, C) in the order of class_names"


@pytest.mark.parametrize("name", ["smp/Unet", "pellucid/fcn8s"])
def test_a_segmenter_is_compared_pixel_by_pixel_and_says_so(tmp_path, onnxruntime, name):
    torch.manual_seed(0)
    encoder = "tu-test_resnet" if name == "smp/Unet" else None
    options = {"encoder_depth": 3, "decoder_channels": [16, 12, 8]} if encoder else {"channels": 8}
    module = build_segmenter(name, num_classes=3, pretrained=False, encoder=encoder, options=options, image_size=(64, 64)).module
    out = tmp_path / "model.onnx"
    result = export_onnx(module, out, **FACTS)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected = module.eval()(images)
    (found,) = session.run(None, {"images": images.numpy()})
    assert found.shape == (5, 3, 64, 64)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["output"] == "logits (B, C, H, W) in the order of class_names"
    assert (result.compared, result.decided, result.of) == (4, 4 * 64 * 64, "pixels")
    assert 0.999 * result.decided <= result.same_argmax <= result.decided
    assert result.lines()[1].endswith(f"same class for {result.same_argmax:,} of 16,384 pixels of 4 images")


class Tied(nn.Module):
    """Two classes whose logits differ by a hair, in the exported graph the other way round at every second column."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hair = torch.full_like(images[:, :1], 1e-6) * (1 + self.weight)
        columns = torch.arange(images.shape[-1]) % 2 * (2.0 if torch.compiler.is_exporting() else 0.0)
        return torch.cat([torch.ones_like(hair), torch.ones_like(hair) + hair * (1 - columns)], dim=1)


def test_pixels_of_another_class_are_counted(tmp_path, onnxruntime):
    result = export_onnx(Tied(), tmp_path / "model.onnx", **FACTS)
    assert (result.same_argmax, result.decided) == (4 * 64 * 32, 4 * 64 * 64)
    assert "same class for 8,192 of 16,384 pixels of 4 images" in result.lines()[1]


def test_onnx_file_says_classes_and_normalisation(tmp_path, onnxruntime):
    out = tmp_path / "model.onnx"
    export_onnx(model("torchvision/squeezenet1_1"), out, **FACTS, metadata={"run": "a-run"})
    facts = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == ["cat", "dög", "eel"]
    assert json.loads(facts["image_size"]) == [64, 64]
    assert json.loads(facts["mean"]) == [0.5, 0.4, 0.3]
    assert json.loads(facts["std"]) == [0.2, 0.2, 0.1]
    assert facts["run"] == "a-run"


def test_given_images_are_compared_and_modes_are_kept(tmp_path, onnxruntime):
    module = model("torchvision/squeezenet1_1").train()
    module.features.eval()
    result = export_onnx(module, tmp_path / "deep" / "model.onnx", **FACTS, images=torch.rand(7, 3, 64, 64))
    assert result.compared == 7
    assert module.training
    assert not module.features[0].training
    assert module.classifier[0].training


class Drifting(nn.Module):
    """Each call adds to the logits, so that the exported graph and the module disagree."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.shift = shift
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.linear(images.mean(dim=(2, 3)))
        if not torch.compiler.is_exporting():
            logits = logits + self.shift
        return logits


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_export_that_differs_is_an_error_and_leaves_no_file(tmp_path, onnxruntime, shift):
    with pytest.raises(PellucidError, match=r"model.onnx: the exported model's logits differ from PyTorch's by .* No file was written"):
        export_onnx(Drifting(shift), tmp_path / "model.onnx", **FACTS)
    assert list(tmp_path.iterdir()) == []
    assert export_onnx(Drifting(0.0), tmp_path / "model.onnx", **FACTS).same_argmax == 4


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.mean(dim=(2, 3))) * (2.0 if float(images.sum()) > 0 else 1.0)


def test_model_that_cannot_be_traced_is_an_error(tmp_path, onnxruntime):
    with pytest.raises(PellucidError, match=r"Branching cannot be exported to ONNX: .* Use the format safetensors."):
        export_onnx(Branching(), tmp_path / "model.onnx", **FACTS)
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named_with_the_command(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(MissingError) as caught:
        export_onnx(nn.Linear(3, 3), tmp_path / "model.onnx", **FACTS)
    assert str(caught.value) == "export to ONNX needs onnx, onnxscript, onnxruntime: pip install 'pellucid[export]'"
    assert caught.value.exit_code == 4


def test_model_too_large_for_one_file_is_an_error(tmp_path, onnxruntime):
    with torch.device("meta"):
        module = nn.Linear(30_000, 30_000)
    with pytest.raises(UsageError, match=r"3.6 GB of weights do not fit an ONNX file"):
        export_onnx(module, tmp_path / "model.onnx", **FACTS)


def test_safetensors_export_reads_back_bit_for_bit(tmp_path):
    module, out = model("timm/test_efficientnet"), tmp_path / "model.safetensors"
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")  # equal bits, although not equal to itself
    result = export_safetensors(module, out, {"class_names": json.dumps(FACTS["class_names"])})
    assert set(read_weights(out)) == set(module.state_dict())
    assert json.loads(read_metadata(out)["class_names"]) == FACTS["class_names"]
    assert (result.format, result.difference, result.same_argmax, result.of) == ("safetensors", 0.0, result.compared, "tensors")
    assert result.decided == result.compared
    assert result.lines()[1] == f"{result.compared} of {result.compared} tensors read back equal, bit for bit"


def test_safetensors_export_that_reads_back_differently_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "read_weights", lambda path: {name: value + 1 for name, value in read_weights(path).items()})
    with pytest.raises(PellucidError, match="expected 2 tensors to read back as they were, 2 differ: weight, bias"):
        export_safetensors(nn.Linear(2, 2), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
