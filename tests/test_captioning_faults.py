"""What a recipe of captioning may not say, what others may not say of captions, what a saved one holds; and pictures whose sides change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid import recipe as recipes
from pellucid.data.dataset import Captions, Dataset, Split
from pellucid.data.scenes import draw
from pellucid.errors import DataError, RecipeError
from pellucid.run import Vocabulary
from pellucid.tasks.captioning import mirror_notes, suppressed
from pellucid.train import train
from pellucid.verify import verify

MODEL = "{name: pellucid/captioner, encoder: timm/test_vit, decoder: {depth: 1, embed_dim: 32, num_heads: 2, drop_rate: 0.0}}"
SMALL = f"""\
task: captioning
data: {{source: scenes, train: 24, val: 8, image_size: 32}}
model: {MODEL}
text: {{max_length: 16}}
words: {{drawn: 1}}
train:
  batch_size: 8
  threads: 1
  phases: [{{epochs: 2, optimizer: {{name: adamw, lr: 2.0e-3}}}}]
"""
CLASSIFIED = "task: classification\ndata: {source: scenes, train: 40, image_size: 32}\nmodel: {name: timm/test_vit}\ntrain:\n  batch_size: 8\n  phases: [{epochs: 1, optimizer: {name: adam, lr: 1e-3}}]\n"
PUBLISHED = "{name: transformers/blip"
FAULTS: dict[str, tuple[str, str]] = {
    "source": (SMALL.replace("scenes", "digits"), "data: source: captioning needs captions for each image: captions or scenes; digits has none"),
    "masks": (SMALL.replace(MODEL, "{name: pellucid/fcn32s}"), "model: name: pellucid/fcn32s gives masks; captioning takes pellucid/captioner or transformers/<name on the hub or folder>"),
    "home": (SMALL.replace(MODEL, "{name: timm/test_vit}"), "model: name: captioning takes pellucid/<name>, transformers/<name>; got 'timm/test_vit'"),
    "no encoder": (SMALL.replace(MODEL, "{name: pellucid/captioner}"), "model: encoder: pellucid/captioner needs the backbone that sees the picture, timm/<name>; got None"),
    "encoder's home": (SMALL.replace("timm/test_vit", "resnet18"), "model: encoder: pellucid/captioner needs the backbone that sees the picture, timm/<name>; got 'resnet18'"),
    "published whole": (SMALL.replace("drop_rate: 0.0}", "drop_rate: 0.0}, pretrained: true"), "model: pretrained: pellucid/captioner has no published weights; its backbone may have: pretrained: backbone"),
    "published backbone": (SMALL.replace(MODEL, f"{PUBLISHED}, pretrained: backbone}}"), "model: pretrained: backbone belongs to pellucid/captioner; transformers/blip takes true or false"),
    "their encoder": (SMALL.replace(MODEL, f"{PUBLISHED}, encoder: timm/test_vit}}"), "model: encoder belongs to pellucid/captioner; transformers/blip brings its own parts"),
    "their stride": (SMALL.replace(MODEL, f"{PUBLISHED}, encoder_stride: 16}}"), "model: encoder_stride belongs to pellucid/captioner; transformers/blip brings its own parts"),
    "their decoder": (SMALL.replace(MODEL, f"{PUBLISHED}, decoder: {{}}}}"), "model: decoder belongs to pellucid/captioner; transformers/blip brings its own parts"),
    "their backbone": (SMALL.replace(MODEL, f"{PUBLISHED}, backbone_weights: a.pth}}"), "model: backbone_weights belongs to pellucid/captioner; transformers/blip brings its own parts"),
    "head": (SMALL.replace("drop_rate: 0.0}", "drop_rate: 0.0}, head: {}"), "model: head belongs to classification"),
    "cached views": (SMALL.replace("drop_rate: 0.0}", "drop_rate: 0.0}, cached_views: 2"), "model: cached_views belongs to classification"),
    "drop rate": (SMALL.replace("drop_rate: 0.0}", "drop_rate: 0.0}, drop_rate: 0.1"), "model: drop_rate belongs to classification; dropout of the decoder is decoder.drop_rate"),
    "drop path": (SMALL.replace("drop_rate: 0.0}", "drop_rate: 0.0}, drop_path_rate: 0.1"), "model: drop_path_rate belongs to classification"),
    "heads": (SMALL.replace("num_heads: 2", "num_heads: 5"), "model.decoder: num_heads divides embed_dim; got 5 heads of 32"),
    "decoder's key": (SMALL.replace("num_heads: 2", "heads: 2"), "unknown key 'heads' in model.decoder"),
    "tokeniser's source": (SMALL.replace("max_length: 16", "tokenizer: {source: bert}"), "text.tokenizer: source belongs to name: transformers, not to words"),
    "min count": (SMALL.replace("max_length: 16", "tokenizer: {name: word_pieces, min_count: 2}"), "text.tokenizer: min_count belongs to name: words, not to word_pieces"),
    "unknown tokeniser": (SMALL.replace("max_length: 16", "tokenizer: {name: word_piece}"), "text.tokenizer.name: expected words, word_pieces, transformers; got 'word_piece'. Did you mean 'word_pieces'?"),
    "no length": (SMALL.replace("max_length: 16", "max_length: 1"), "text.max_length: "),
    "some captions": (SMALL.replace("max_length: 16", "captions: some"), "text.captions: expected all, one; got 'some'"),
    "penalty": (SMALL + "generation: {length_penalty: 0.5}\n", "generation: length_penalty 0.5 compares beams, and num_beams is 1; give more beams"),
    "least length": (SMALL + "generation: {min_length: 16}\n", "generation: min_length 16 leaves no room below text.max_length 16, the end among it"),
    "no beams": (SMALL + "generation: {num_beams: 0}\n", "generation.num_beams: "),
    "no layers": (SMALL.replace("drawn: 1", "layers: []"), "words.layers"),
    "no such layer": (SMALL.replace("drawn: 1", "layers: [-1]"), "words.layers"),
    "pieces": (SMALL.replace("drawn: 1", "pieces: max"), "words.pieces: expected mean, sum; got 'max'"),
    "mixup": (SMALL + "augment: {mixup: 0.2}\n", "augment: mixup mixes labels of images and belongs to classification"),
    "loss": (SMALL + "loss: {name: dice}\n", "loss: name: captioning is trained with cross_entropy; dice is a loss over pixels and belongs to segmentation"),
    "class weights": (SMALL + "loss: {class_weights: balanced}\n", "loss: class_weights weighs labels, and captions have none; leave it out"),
    "balanced": (SMALL.replace("threads: 1", "balanced_sampling: true"), "train: balanced_sampling draws by label, and captions have none; leave it out"),
    "early stop": (SMALL.replace("threads: 1", "early_stop: {patience: 1, metric: accuracy}"), "train: early_stop.metric: captioning has no accuracy; it has cider, exact_match, loss"),
    "inside": (SMALL + "inside: {samples: 2}\n", "inside: captioning looks at the words of captions: give words: {drawn: 12} instead of inside"),
    "method": (SMALL + "method: {name: byol}\n", "method: method byol belongs to pretraining; the task is captioning"),
    "scoring": (SMALL + "scoring: {}\n", "scoring: scoring says how masks are scored and belongs to segmentation"),
    "probe": (SMALL + "probe: {}\n", "probe: probe measures features of pretraining"),
    "text with labels": (CLASSIFIED + "text: {}\n", "text: text belongs to captioning; the task is classification"),
    "generation with labels": (CLASSIFIED + "generation: {}\n", "generation: generation belongs to captioning; the task is classification"),
    "words with labels": (CLASSIFIED + "words: {}\n", "words: words belongs to captioning; the task is classification"),
    "captions with labels": (CLASSIFIED.replace("source: scenes, train: 40", "source: captions, train: a"), "data: source: captions has captions and no labels; set task: captioning"),
    "decoder with labels": (CLASSIFIED.replace("test_vit}", "test_vit, decoder: {}}"), "model: decoder belongs to pellucid/captioner; the task is classification"),
    "captioner for masks": (CLASSIFIED.replace("classification", "segmentation").replace("timm/test_vit", "pellucid/captioner"), "model: name: pellucid/captioner describes pictures in words; set task: captioning"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_captioning_is_named_with_its_remedy(fault: str) -> None:
    text, expected = FAULTS[fault]
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text)
    assert any(expected in str(problem) for problem in caught.value.problems), [str(problem) for problem in caught.value.problems]


def test_a_saved_captioning_holds_every_value_and_loads_back_equal() -> None:
    recipe = recipes.loads(SMALL)
    again = recipes.loads(recipes.to_yaml(recipe))
    assert again == recipe
    assert recipes.to_yaml(again) == recipes.to_yaml(recipe)
    values = recipes.flat(again)
    assert (values["text.captions"], values["generation.num_beams"], values["words.pieces"], values["model.decoder.mlp_ratio"]) == ("all", 1, "mean", 4.0)


# ── mirrored pictures ─────────────────────────────────────────────────────────────────────────────────────────


def said_of(texts: Sequence[str], *changes: str) -> list[str]:
    """What mirror_notes says of a data set with these training captions, one a picture."""
    n = len(texts)
    split = Split("train", [f"{i}.png" for i in range(n)], np.zeros(n, np.int64), [""] * n, lambda i: pytest.fail("no picture is read"))
    dataset = Dataset(("unlabelled",), {"train": replace(split, captions=Captions([(text,) for text in texts]))})
    return mirror_notes(recipes.override(recipes.loads(SMALL), changes), dataset)


@pytest.mark.parametrize(
    ("change", "word", "name", "sides"),
    [
        ("augment.horizontal_flip=0.5", "left", "horizontal_flip", "left, right …"),
        ("augment.vertical_flip=0.5", "above", "vertical_flip", "above, below …"),
        ("augment.rotation=90", "right", "rotation", "left, right …"),
        ("augment.rotation=90", "below", "rotation", "above, below …"),
    ],
)
def test_changed_sides_are_refused_where_many_captions_name_them_and_told_where_few_do(change: str, word: str, name: str, sides: str) -> None:
    few = [*["a dog"] * 19, f"a dog {word} of it"]
    line = f"augment.{name} changes sides, and 1 of 20 training captions name one ({sides})"
    assert said_of(few, change) == [f"{line}: these are wrong for the pictures that were changed"], "5 % are told"
    with pytest.raises(DataError) as told:
        said_of(few[1:], change)
    assert str(told.value) == f"{line.replace('1 of 20', '1 of 19')}: they would be wrong for the changed pictures; leave {name} out"


def test_nothing_is_said_where_no_side_that_is_named_changes() -> None:
    lying, standing = ["left of a dog"] * 3, ["above a dog"] * 3
    assert said_of(lying + standing) == []
    assert said_of(standing, "augment.horizontal_flip=0.5", "augment.rotation=15") == []
    assert said_of(lying, "augment.vertical_flip=0.5", "augment.rotation=45") == []
    with pytest.raises(DataError, match="leave horizontal_flip and rotation out"):
        said_of(lying, "augment.horizontal_flip=0.5", "augment.rotation=46")


def test_pictures_of_val_and_test_may_have_the_same_names(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        (tmp_path / split).mkdir()
        rows = [("filename", "caption")]
        for i in range(count):
            scene = draw(i, split=split, image_size=(32, 32))
            Image.fromarray(scene.image).save(tmp_path / split / f"{i}.png")
            rows.append((f"{i}.png", scene.caption))
        (tmp_path / f"{split}.csv").write_text("\n".join(",".join(row) for row in rows))
    tables = ", ".join(f"{split}: {tmp_path}/{split}.csv" for split in ("train", "val", "test"))
    text = SMALL.replace("source: scenes, train: 24, val: 8", f"source: captions, image_dir: '{tmp_path}/{{split}}', {tables}").replace(
        "epochs: 2", "epochs: 1"
    )
    (tmp_path / "r.yaml").write_text(text)
    run = train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True, figures=False)
    captions = {split: list(run.captions(split).values()) for split in ("val", "test")}
    assert captions["val"] != captions["test"]
    assert run.measurements["val/cider[nearest]"].value != run.measurements["test/cider[nearest]"].value
    assert verify(run).ok


def test_an_unknown_sign_that_is_the_end_too_is_not_suppressed() -> None:
    assert suppressed(Vocabulary(9, 1, 2, 0, 8, "", unknown=3)) == (3,)
    assert suppressed(Vocabulary(9, 1, 2, 2, 8, "", unknown=2)) == ()  # as CLIP's: its captions would never end
    assert suppressed(Vocabulary(9, 1, 2, 0, 8, "")) == ()
