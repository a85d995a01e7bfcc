"""Damaged weights files: they load whole, or are an error that names the file; nothing in them runs."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from damaged import Damaged, damage
from judged import counts, judged, malicious, refused
from pellucid.errors import WeightsError
from pellucid.models.weights import load_weights, read_weights, save_weights

# ── weights ───────────────────────────────────────────────────────────────────────────────────────────────────


class Small(nn.Module):
    """A backbone with a buffer of every kind and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 3)


def good_weights(folder: Path) -> list[Path]:
    folder.mkdir()
    state = Small().state_dict()
    save_weights(state, folder / "a.safetensors", {"step": "3"})
    torch.save(state, folder / "b.pth")
    torch.save({"model": state, "epoch": 3}, folder / "c.pt")
    torch.save(state, folder / "d.pth", _use_new_zipfile_serialization=False)
    return sorted(folder.iterdir())


@counts(80, 200)
def test_damaged_weights_load_whole_or_are_an_error_with_the_file(count: int, tmp_path: Path) -> None:
    """A flipped bit within the numbers of a file without hashes can be seen by nobody; names, shapes and types cannot change unseen."""
    good = good_weights(tmp_path / "good")
    contents = [file.read_bytes() for file in good]
    for i in range(count):
        rng = random.Random(f"weights-{i}")
        how, data = damage(contents[i % len(good)], rng, contents)
        file = tmp_path / f"w{i}{good[i % len(good)].suffix}"
        file.write_bytes(data)
        case, module = Damaged(f"weights-{i}", how, file.name, data), Small()
        with judged(case):
            before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            report: list[Any] = []
            if refused(lambda f=file, m=module, r=report: r.append(load_weights(m, f, classifier=["fc"])), file.name) is None:
                assert {n: (t.shape, t.dtype) for n, t in module.state_dict().items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
                absent = [name for name in report[0].missing if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
                assert absent == []
            else:
                assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items()), "half of it was loaded"
        file.unlink()


def header(text: dict[str, Any] | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file: the length of its header, the header, the numbers."""
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


@pytest.mark.parametrize(
    "data",
    [
        b"", bytes(8), b"\xff" * 16, header(b"{}", length=2**63 - 1), header(b"{}", length=10**8), header(b"hello"), header(b"[" * 100_000), header(b'{"\xff": 1}'), header({"__metadata__": {"a": 1}}),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)), header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}}), header({"a": {"dtype": "F6_E2M3", "shape": [16], "data_offsets": [0, 12]}}, bytes(12)),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(12)),
        header({"body.0.weight": {"dtype": "I32", "shape": [4, 3, 3, 3], "data_offsets": [0, 432]}}, bytes(432)), header({"body.0.weight": {"dtype": "C64", "shape": [4, 3, 3, 3], "data_offsets": [0, 864]}}, bytes(864)),
    ],
)  # fmt: skip
def test_a_header_of_absurd_sizes_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "absurd.safetensors"
    file.write_bytes(data)
    with judged(Damaged("by hand", "header", file.name, data)):
        assert refused(lambda: load_weights(Small(), file, classifier=["fc"]), file.name) is not None


def holds_itself(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop.update(dict.fromkeys(("model", "state_dict", "net", "ema", "teacher", "student", "module", "weights"), loop))
    return loop


@pytest.mark.parametrize(
    "content",
    [
        holds_itself, lambda state: [1, 2], lambda state: torch.ones(3), lambda state: {"model": {"epoch": 3}}, lambda state: {n: t.to(torch.complex64) for n, t in state.items()},
        lambda state: {n: t.to(torch.int32) for n, t in state.items()}, lambda state: {n: t.bool() for n, t in state.items()}, lambda state: {n: t.to("meta") for n, t in state.items()},
        lambda state: {n: t.to_sparse() for n, t in state.items()}, lambda state: {"state_dict": state, "model": state}, lambda state: {n: torch.zeros(1).expand(2**40) for n in state},
    ],
)  # fmt: skip
def test_a_pickle_of_other_things_than_weights_is_refused(content: Callable[[dict[str, torch.Tensor]], Any], tmp_path: Path) -> None:
    file = tmp_path / "odd.pth"
    torch.save(content(Small().state_dict()), file)
    with judged(Damaged("by hand", "pickle", file.name, file.read_bytes())), pytest.raises(WeightsError, match=r"odd\.pth"):
        load_weights(Small(), file, classifier=["fc"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("which", range(4))
def test_weights_that_would_run_code_are_refused(which: int, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "malicious.pth"
    for content in ({"body.0.weight": torch.ones(1), "x": malicious(tmp_path / "executed")[which]}, malicious(tmp_path / "executed")[which]):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        for action in (lambda: read_weights(file), lambda: load_weights(Small(), file, classifier=["fc"])):
            with pytest.raises(WeightsError, match=r"malicious\.pth: refused, loading it would execute code: it refers to"):
                action()
    assert not (tmp_path / "executed").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "executed").exists(), "the file would have done it"
