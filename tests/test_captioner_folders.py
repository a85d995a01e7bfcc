"""Captioners are trained from a folder in the hub's layout, and a run goes on from no other."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pellucid.data import scenes
from pellucid.errors import InterruptedError, RunError
from pellucid.files import file_hash, weights_hash
from pellucid.models.weights import read_weights, save_weights
from pellucid.run import Run
from pellucid.train import resume, train
from pellucid.verify import verify
from tiny_captioners import EYE, SIZE, SMALL, saved

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TRAIN = 12
NUMBERS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
RECIPE = f"""\
task: captioning
data: {{source: scenes, train: {TRAIN}, val: 3, image_size: {SIZE[0]}}}
model: {{name: MODEL, SETTING}}
text: {{tokenizer: {{name: transformers}}, max_length: 12}}
words: {{drawn: 1}}
train:
  batch_size: 6
  threads: 1
  phases: [{{epochs: 1, optimizer: {{name: adamw, lr: 3.0e-3}}}}]
"""


def model_of(kind: str, size: int) -> Any:
    """A tiny captioner with random weights that speaks `size` tokens."""
    torch.manual_seed(0)
    if kind == "git":
        return transformers.GitForCausalLM(transformers.GitConfig(vision_config=EYE, vocab_size=size, max_position_embeddings=32, **SMALL, **NUMBERS))
    text = {**SMALL, **NUMBERS, "vocab_size": size, "max_position_embeddings": 32}
    if kind == "blip":
        text |= {"encoder_hidden_size": 32, "projection_dim": 32, "sep_token_id": 3}
        eye = {**EYE, "initializer_range": 0.02}
        return transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=eye, projection_dim=32))
    bert = transformers.BertConfig(**text, is_decoder=True, add_cross_attention=True)
    parts = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(**EYE), bert)
    return transformers.VisionEncoderDecoderModel(parts)


def folder_of(kind: str, folder: Path) -> Path:
    """A folder in the hub's layout with a captioner and a tokeniser that knows the words of drawn scenes."""
    words = sorted({word for i in range(TRAIN) for word in scenes.caption(i, split="train", image_size=SIZE).split()})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    cutter = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    cutter.normalizer, cutter.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    cutter.decoder = decoders.WordPiece()
    saved(model_of(kind, len(vocabulary)), folder)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=cutter, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a vision encoder-decoder; read only."""
    return folder_of("pair", tmp_path_factory.mktemp("hub") / "pair")


def recipe_of(folder: Path, place: Path, setting: str = "") -> Path:
    """A recipe that starts from the folder: as model.weights, or by its name with `setting`."""
    name, setting = (f"transformers/{folder}", setting) if setting else ("transformers/published", f"weights: {folder}")
    (place / "r.yaml").write_text(RECIPE.replace("MODEL", name).replace("SETTING", setting))
    return place / "r.yaml"


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["blip", "git"])
def test_a_folder_is_trained_further_and_verified(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / kind)
    run = train(recipe_of(folder, tmp_path), out=tmp_path / "run", quiet=True, figures=False)
    assert run.record.began_with["model.weights"] == weights_hash(folder)
    assert verify(run).ok


@pytest.mark.proof
def test_a_run_from_a_folder_is_interrupted_and_resumes_to_the_same_bits(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe_of(pair, tmp_path), out=tmp_path / "whole", quiet=True, figures=False)
    loop, taken = sys.modules["pellucid.loop"], 0
    real = loop.take_step  # type: ignore[attr-defined]

    def interrupted(*arguments: Any) -> None:
        nonlocal taken
        taken += 1
        real(*arguments)
        if taken == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(InterruptedError, match="interrupted at step 1 of 2"):
        train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True, figures=False)
    monkeypatch.undo()
    run = resume(tmp_path / "run", quiet=True, figures=False)
    assert file_hash(run.final_weights) == file_hash(whole.final_weights)
    assert verify(run).ok


@pytest.mark.parametrize(("setting", "key"), [("", "model.weights"), ("pretrained: true", "model.name")])
def test_a_run_without_a_checkpoint_goes_on_from_no_other_folder(pair: Path, setting: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise RunError("injected")

    folder = shutil.copytree(pair, tmp_path / "pair")
    monkeypatch.setattr(sys.modules["pellucid.loop"], "take_step", stop)
    with pytest.raises(RunError, match="injected"):
        train(recipe_of(folder, tmp_path, setting), out=tmp_path / "run", quiet=True, figures=False)
    monkeypatch.undo()
    assert Run(tmp_path / "run").record.began_with[key] == weights_hash(pair)
    file = folder / "model.safetensors"
    save_weights({name: value * 2 for name, value in read_weights(file).items()}, file)
    with pytest.raises(RunError, match=rf"pair: the folder of {key} was changed since the run began, .*Put it back, or train anew\."):
        resume(tmp_path / "run", quiet=True, figures=False)
    shutil.copy(pair / "model.safetensors", file)
    (folder / "README.md").write_text("of no account")
    if key == "model.weights":  # once: a whole run takes seconds
        assert resume(tmp_path / "run", quiet=True, figures=False).record.status == "done"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_every_file_that_says_what_a_model_is_counts_and_no_other_does(name: str, pair: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pair, tmp_path / "pair")
    (folder / "README.md").write_text("of no account")
    (folder / "onnx").mkdir()
    assert weights_hash(folder) == weights_hash(pair)
    (folder / name).rename(folder / "put-aside")
    gone = weights_hash(folder)
    (folder / name).write_bytes(b"{}")
    assert len({gone, weights_hash(folder), weights_hash(pair)}) == 3
