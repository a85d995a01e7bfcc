"""The attention of all patches of a few pictures: that of the model written out, what fits of a large one, and what verify says of changed files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from pellucid.atlas import write_atlas
from pellucid.attention_findings import AttentionFindings, KeptAttention, KeptLayer, has_attention, load_attention
from pellucid.data.sources import load_dataset
from pellucid.errors import RunError
from pellucid.files import file_hash
from pellucid.inside import whole_attention as module
from pellucid.inside.whole_attention import whole_attention
from pellucid.neighbour_findings import NEIGHBOUR_ARRAYS
from pellucid.run import Run
from pellucid.tasks import load_model, runtime_of
from pellucid.train import train
from pellucid.verify import verify
from pellucid.verify_inside import anew_checks, open_kept, stored_checks


def vit(**options: object) -> nn.Module:
    torch.manual_seed(1)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4, **options}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings).eval()
    with torch.no_grad():  # sharper than at the start, so that rows differ
        for name, p in model.named_parameters():
            if "qkv.weight" in name:
                p.mul_(8)
    return model


def images(n: int = 2, side: int = 32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(2))


def written_out(model: nn.Module, image: Tensor) -> list[np.ndarray]:
    """(h, N, N) of each block: softmax of q kT / sqrt(d) in float64, from the tokens that enter its attention."""
    entered: list[Tensor] = []
    handles = [block.attn.register_forward_pre_hook(lambda _, given: entered.append(given[0].detach())) for block in model.blocks]
    with torch.no_grad():
        model(image[None])
    for handle in handles:
        handle.remove()
    found = []
    for block, x in zip(model.blocks, entered, strict=True):
        attn, (_, N, D) = block.attn, x.shape
        qkv = (x.double() @ attn.qkv.weight.double().T + attn.qkv.bias.double()).view(N, 3, attn.num_heads, D // attn.num_heads)
        q, k, _ = (part.transpose(0, 1) for part in qkv.unbind(1))
        found.append((q @ k.transpose(1, 2) / (D // attn.num_heads) ** 0.5).softmax(-1).detach().numpy())
    return found


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_rows_are_those_of_the_equations(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 2000)  # a few patches at a time
    model, x = vit(**options), images()
    found, why = whole_attention(model, x)
    assert found is not None
    assert not why
    classed = "class_token" not in options
    before = (1 if classed else 0) + int(options.get("reg_tokens", 0))  # type: ignore[call-overload]
    assert found.findings.class_token is classed
    assert [(layer.heads, layer.grid, layer.averaged) for layer in found.findings.layers] == [(3, (4, 4), False)] * 3
    for i in range(2):
        for j, A in enumerate(written_out(model, x[i])):
            rows = A[:, before:, before:]
            largest = rows.max(axis=2, keepdims=True)
            assert (np.abs(found.weights(i, j) - rows) <= largest * (0.5 / 255 + 1e-4)).all()
            np.testing.assert_allclose(found.arrays[f"scale/{i}/{j}"], largest[..., 0], rtol=1e-4)
            np.testing.assert_allclose(found.arrays[f"rest/{i}/{j}"], A[:, before:, :before].sum(axis=2), atol=1e-5)
            assert (found.arrays[f"rows/{i}/{j}"].max(axis=2) == 255).all()
            if classed:
                np.testing.assert_allclose(found.arrays[f"class/{i}/{j}"], A[:, 0, before:], atol=1e-5)
            else:
                assert f"class/{i}/{j}" not in found.arrays


def test_rows_of_windows_lie_in_their_window() -> None:
    torch.manual_seed(1)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, img_size=32, window_size=4, embed_dim=12, depths=(2, 1), num_heads=(2, 2), num_classes=3
    ).eval()
    found, _ = whole_attention(model, images(1))
    assert found is not None
    assert [(layer.module, layer.grid) for layer in found.findings.layers] == [
        ("layers.0.blocks.0.attn", (8, 8)), ("layers.0.blocks.1.attn", (8, 8)), ("layers.1.blocks.0.attn", (4, 4))
    ]  # fmt: skip
    rows = found.weights(0, 0).reshape(2, 8, 8, 8, 8)
    assert rows[:, 1, 2, :4, :4].min() > 0
    assert rows[:, 1, 2, 4:].max() == rows[:, 1, 2, :, 4:].max() == 0
    np.testing.assert_allclose(rows.sum(axis=(3, 4)), 1.0, atol=0.02)
    assert not found.findings.class_token
    assert max(found.arrays["rest/0/0"].max(), found.arrays["rest/0/1"].max()) < 1e-5


def test_what_is_too_large_is_averaged_then_cut_and_always_said() -> None:
    model, x = vit(), images(6)
    one = 3 * 3 * (16 * 16 + 8 * 16 + 4 * 16)  # bytes of a picture with every head of every layer
    whole, _ = whole_attention(model, x, most_bytes=6 * one)
    four, _ = whole_attention(model, x, most_bytes=6 * one - 1)
    averaged, _ = whole_attention(model, x, most_bytes=4 * one - 1)
    last, _ = whole_attention(model, x, most_bytes=one // 9)
    assert whole is not None
    assert four is not None
    assert averaged is not None
    assert last is not None
    assert (len(whole.findings.pictures), whole.findings.notes) == (6, [])
    assert sum(array.nbytes for array in whole.arrays.values()) == 6 * one
    assert four.findings.notes == ["attention of patches is kept of the first 5 of 6 pictures"]
    assert averaged.findings.notes == ["heads are averaged: those of every layer take more than 0 MB"]
    assert [(layer.heads, layer.averaged) for layer in averaged.findings.layers] == [(1, True)] * 3
    np.testing.assert_allclose(averaged.weights(0, 1), whole.weights(0, 1).mean(axis=0, keepdims=True), atol=0.004)
    assert [layer.module for layer in last.findings.layers] == ["blocks.2.attn"]
    assert any("of 3 layers the last layer is kept" in note for note in last.findings.notes)
    nothing, why = whole_attention(model, x, most_bytes=100)
    assert nothing is None
    assert "no attention of patches is kept: one picture of its last layer alone takes more" in why[0]


def test_a_model_without_attention_has_none_and_one_that_hides_it_says_so() -> None:
    assert whole_attention(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images(1)) == (None, [])
    hidden = timm.create_model("cait_xxs24_224", pretrained=False, img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    found, why = whole_attention(hidden, images(1))
    assert found is None
    assert "no attention of patches is kept: attention that ran could not be recorded" in why[0]


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def kept_of() -> KeptAttention:
    found, _ = whole_attention(vit(depth=1), images(1))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("scale/0/0"), r"attention\.npz: scale/0/0: the array is missing"),
        (lambda a: a.update({"rows/0/0": a["rows/0/0"][:2]}), r"rows/0/0: expected uint8 \(3, 16, 16\), shares from 0 to 1; got uint8 \(2, 16, 16\)"),
        (lambda a: a.update({"rest/0/0": a["rest/0/0"] + 2}), r"rest/0/0: expected float32 \(3, 16\), shares from 0 to 1"),
        (lambda a: a.update({"class/0/0": a["class/0/0"] * np.float32(np.nan)}), r"class/0/0: expected float32"),
        (lambda a: a.update({"rows/1/0": a["rows/0/0"]}), r"rows/1/0: belongs to no picture and layer of attention\.json"),
    ],
)
def test_a_changed_array_is_an_error_with_its_key(change: Callable[[dict], None], said: str, tmp_path: Path) -> None:
    found = kept_of()
    arrays = dict(found.arrays)
    change(arrays)
    found.findings.save(tmp_path, arrays)
    with pytest.raises(RunError, match=said):
        load_attention(tmp_path)


def test_a_changed_record_is_an_error_with_its_place(tmp_path: Path) -> None:
    found = kept_of()
    with pytest.raises(RunError, match=r"attention\.json: expected the attention of some pictures; there is no such file"):
        load_attention(tmp_path)
    found.findings.save(tmp_path, dict(found.arrays))
    assert has_attention(tmp_path)
    assert load_attention(tmp_path, 1).findings == found.findings
    with pytest.raises(RunError, match=r"pictures: expected places below 0 in the findings, got \[0\]"):
        load_attention(tmp_path, 0)
    layer = KeptLayer("blocks.0.attn", 0, False, (4, 4))
    AttentionFindings("0", "", [layer], [0], True).save(tmp_path, dict(found.arrays))
    with pytest.raises(RunError, match=r"layers: blocks\.0\.attn has 0 heads on 4 x 4 patches"):
        load_attention(tmp_path)
    replace(found.findings, pictures=[0, 0]).save(tmp_path, dict(found.arrays))
    with pytest.raises(RunError, match="pictures that each stand there once"):
        load_attention(tmp_path)


# ── a run and verify ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Run:
    """A run that keeps everything that views need; tests put back what they change."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "r.yaml").write_text(small_recipe + "inside: {samples: 4, features: 6, epochs: [last], methods: [attention], projections: [], neighbours: 12}\n")
    return train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)


@pytest.fixture
def changed(run: Run) -> object:
    """`changed(name, change)` changes an .npz or .json file of inside/ and every hash with it; afterwards all is as it was."""
    before = {path: path.read_bytes() for path in [run.path / "run.json", *run.inside.glob("*.*"), run.probe_atlas]}

    def edit(name: str, change: Callable[[dict], None]) -> None:
        path = run.inside / name
        if name.endswith(".json"):
            value = json.loads(path.read_text())
            change(value)
            path.write_text(json.dumps(value))
        else:
            with np.load(path) as arrays:
                value = {key: arrays[key].copy() for key in arrays}
            change(value)
            np.savez(path, **value)
        record = json.loads((run.path / "run.json").read_text())
        record["files"][f"inside/{name}"] = file_hash(path)
        (run.path / "run.json").write_text(json.dumps(record))

    yield edit
    for path, content in before.items():
        path.write_bytes(content)


def mismatches(run: Run, *, anew: bool) -> str:
    """What verify says of the inside of a run that does not hold, from the files or also from checkpoint and data."""
    kept, lines = open_kept(run)
    assert kept is not None
    lines += stored_checks(kept)
    if anew:
        runtime = runtime_of(run)
        lines += anew_checks(kept, load_dataset(run.recipe.data, seed=run.recipe.seed), runtime.place(load_model(run)), runtime)
    return "\n".join(text for _, ok, text in lines if not ok)


def test_an_untouched_run_verifies_with_all_that_views_need(run: Run) -> None:
    found = verify(run)
    assert [text for text in found.lines() if "MISMATCH" in text] == []
    assert found.promise == "bit-equal"
    said = "\n".join(found.lines())
    for what in ("attention of patches", "neighbours", "neighbours of val", "pictures of probe", "pictures of neighbours", "neighbours, features of train"):
        assert f"ok inside {what}:" in said
    assert load_attention(run.inside, 4).findings.pictures == [0, 1, 2, 3]


def test_changed_attention_is_a_mismatch(run: Run, changed: Callable[[str, Callable], None]) -> None:
    def one_row(arrays: dict) -> None:
        arrays["rows/2/1"][1, 3] = arrays["rows/2/1"][1, 3][::-1]

    changed("attention.npz", one_row)
    assert "MISMATCH inside attention of patches: picture 2, blocks.1.attn: a row differs by" in mismatches(run, anew=True)


def test_attention_that_was_left_out_is_a_mismatch(run: Run, changed: Callable[[str, Callable], None]) -> None:
    for name in ("attention.json", "attention.npz"):
        (run.inside / name).unlink()
    assert "MISMATCH inside attention of patches: the model has attention, and none was kept" in mismatches(run, anew=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["mistakes"]["val"][0]["near"][0].update(cosine=0.1), "a cosine differs by"),
        (lambda f: f["mistakes"]["val"][0]["near"].reverse(), "they are not the most similar ones in their order"),
        (lambda f: f["mistakes"]["val"].reverse(), "they are not in the order of their confidence"),
        (lambda f: f["mistakes"].pop("val"), "mistakes/val: belongs to nothing in neighbours.json"),
        (lambda f: f["files"].reverse(), "its names are not those of samples/train.csv"),
    ],
)
def test_changed_neighbours_are_a_mismatch(change: Callable[[dict], None], said: str, run: Run, changed: Callable[[str, Callable], None]) -> None:
    changed("neighbours.json", change)
    assert said in mismatches(run, anew=False)


def test_changed_features_and_pictures_are_a_mismatch(run: Run, changed: Callable[[str, Callable], None]) -> None:
    changed(NEIGHBOUR_ARRAYS, lambda a: a.update(features=a["features"][::-1].copy()))
    write_atlas(run.probe_atlas, [np.full((32, 32, 3), 250, np.uint8)] * 6, 32)
    found = mismatches(run, anew=True)
    assert "MISMATCH inside neighbours, features of train: " in found
    assert "MISMATCH inside neighbours of val: " in found
    assert "MISMATCH inside pictures of probe: " in found
    run.probe_atlas.write_bytes((run.inside / "neighbours.webp").read_bytes())
    assert "inside pictures of probe: it is 768 x 64 pixels, expected 6 x 1 tiles of 32" in mismatches(run, anew=True)
