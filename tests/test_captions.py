"""Images with captions: who says what of which picture, where its things are, and how each fault is worded."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fabricate_captions import make_run
from pellucid.data import scenes
from pellucid.data.captions import CaptionCounts, mirrored_words, nouns
from pellucid.data.check import check
from pellucid.data.dataset import Captions
from pellucid.data.sources import load_dataset
from pellucid.data.text import build_tokenizer
from pellucid.errors import DataError, UsageError
from pellucid.inside.word_scores import things_of
from pellucid.predictions import CaptionPredictions
from pellucid.recipe import DataSection
from pellucid.schema.captioning import TextSection
from pellucid.tasks.caption_numbers import measure_captions

ROWS = [
    ("train", "a.png", "A dog runs."),
    ("train", "b.png", "Two men, skiing"),
    ("train", "a.png", "The dog is fast"),
    ("val", "c.png", "A red ball"),
    ("test", "d.png", "Nothing"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(path, value, size=(20, 30)):
    """An image file of one grey value; size: height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def table(folder, rows=ROWS, header=("split", "filename", "caption"), name="captions.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / name


@pytest.fixture
def folder(tmp_path):
    """A folder with images a, b for training, c and d, and captions.csv of all."""
    for value, (split, name) in enumerate([("train", "a.png"), ("train", "b.png"), ("val", "c.png"), ("test", "d.png")]):
        picture(tmp_path / split / name, 40 * value)
    table(tmp_path)
    return tmp_path


def section(train, val=None, test=None, **settings):
    paths = {name: value if value is None or isinstance(value, float) else str(value) for name, value in (("train", train), ("val", val), ("test", test))}
    return DataSection(source="captions", **paths, **settings)


def load(*paths, **settings):
    return load_dataset(section(*paths, **settings), seed=1, captions=True, fewest_classes=1)


def fault(*paths, **settings):
    with pytest.raises(DataError) as caught:
        load(*paths, **settings)
    return str(caught.value)


def said(split):
    return dict(zip(split.names, split.captions.texts, strict=True))


def told(data):
    return [(p.split, p.file, p.kind, p.detail, p.fatal) for p in data.problems]


def write(file, content):
    file.write_text(json.dumps(content))
    return file


# ── tables ──


def test_one_table_serves_all_splits(folder):
    file = folder / "captions.csv"
    data = load(file, file, file)
    assert said(data.splits["train"]) == {"a.png": ("A dog runs.", "The dog is fast"), "b.png": ("Two men, skiing",)}
    assert said(data.splits["val"]) == {"c.png": ("A red ball",)}
    assert said(data.splits["test"]) == {"d.png": ("Nothing",)}
    assert data.classes == ("unlabelled",)
    assert data.splits["train"].labels.tolist() == [0, 0]
    assert np.asarray(data.splits["val"].open(0)).max() == 80
    assert data.notes == []


def test_what_a_recipe_leaves_aside_is_noted(folder):
    file = folder / "captions.csv"
    assert load(file, file).notes == ["captions: 1 of test in captions.csv are not used: the recipe has no data.test"]


def test_a_table_without_splits_is_taken_whole(folder):
    train = table(folder, [("b.png", "x"), ("a.png", "y ")], ("file", "text"), "train.csv")
    (folder / "words").mkdir()
    val = table(folder / "words", [("c.png", "z")], ("file", "text"), "val.csv")
    data = load(train, val, filename_column="file", caption_column="text", image_dir=str(folder / "{split}"))
    assert said(data.splits["train"]) == {"b.png": ("x",), "a.png": ("y",)}
    assert said(data.splits["val"]) == {"c.png": ("z",)}


def test_images_lie_in_a_folder_of_the_name_of_the_file(folder):
    (folder / "train").rename(folder / "few")
    assert list(load(table(folder, [("a.png", "x")], ("filename", "caption"), "few.csv")).splits["train"].names) == ["a.png"]


def test_a_fraction_divides_pictures_and_not_captions(folder):
    rows = []
    for i in range(40):
        picture(folder / "many" / f"{i}.png", i)
        rows += [(f"{i}.png", f"caption {k} of {i}") for k in range(3)]
    data = load(table(folder, rows, ("filename", "caption"), "many.csv"), 0.4)
    train, val = data.splits["train"], data.splits["val"]
    assert len(train) + len(val) == 40
    assert min(len(train), len(val)) > 5
    for split in (train, val):
        for name, texts in said(split).items():
            assert texts == tuple(f"caption {k} of {name.removesuffix('.png')}" for k in range(3))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("train", "a.png", " "), "captions.csv:7: a.png: the caption is empty"),
        (("train", "", "x"), "captions.csv:7: expected the name of an image file, got ''"),
        (
            ("tran", "a.png", "x"),
            "captions.csv:7: a.png: expected a split, one of train, val, test, restval, validation, valid, dev; got 'tran'. Did you mean 'train'?",
        ),
        (("train", "../a.png", "x"), "captions.csv:7: ../a.png: expected a name below the folder of the images; data.image_dir says which that is"),
        (("train", "/a.png", "x"), "captions.csv:7: /a.png: expected a name below the folder"),
        (("train", "a.png", "x", "y"), "captions.csv:7: a.png: expected 3 cells, got more; a caption with a comma stands in quotes"),
        (("train",), "captions.csv:7: expected the name of an image file, got ''"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(folder, row, words):
    message = fault(table(folder, [*ROWS, row]))
    assert message.startswith(f"1 rows of {folder / 'captions.csv'} cannot be used:")
    assert words in message


def test_files_that_are_not_there_are_named_with_where_they_were_looked_for(folder):
    message = fault(table(folder, [*ROWS, ("train", "e.png", "x"), ("train", "e.png", "y")]))
    assert f"1 of 3 images of train are not in {folder} or {folder / 'train'} or {folder / 'captions'}:" in message
    assert f"{folder / 'captions.csv'}:7: e.png: no such file" in message
    assert "data.image_dir says where the images lie" in message


def test_a_column_that_is_missing_is_named(folder):
    file = table(folder, header=("split", "filename", "captions"))
    assert (
        fault(file)
        == f"{file}:1: expected a column 'caption'; there are: split, filename, captions. Did you mean 'captions'? Name it with data.caption_column."
    )
    assert "Name it with data.filename_column" in fault(file, filename_column="file")


def test_a_file_that_is_not_there_or_broken_is_named(folder):
    message = fault(folder / "caption.csv")
    assert message.startswith(f"{folder / 'caption.csv'}: expected a CSV or JSON file of captions, there is none.")
    assert message.endswith("Did you mean 'captions.csv'?")
    assert "there is a folder" in fault(folder)
    (folder / "open.csv").write_text('split,filename,caption\ntrain,a.png,x\ntrain,b.png,"never closed\ntrain,a.png,y\n')
    assert f"{folder / 'open.csv'}:3: expected a comma-separated table, where a caption with a quote stands in quotes" in fault(folder / "open.csv")
    (folder / "latin.csv").write_bytes("split,filename,caption\ntrain,a.png,Schnürsenkel\n".encode("latin-1"))
    assert "expected a comma-separated table in UTF-8" in fault(folder / "latin.csv")
    (folder / "none.csv").write_text("split,filename,caption\n")
    assert fault(folder / "none.csv") == f"{folder / 'none.csv'}: expected captions, found none"


def test_a_split_that_the_file_has_not_is_named(folder):
    file = table(folder, ROWS[:4])
    assert fault(file, file, file) == f"{file}: expected captions of the split test, found none; it has train 3, val 1. Drop data.test, or correct the splits."


# ── leaks ──


def test_a_picture_in_two_splits_is_refused(folder):
    shutil.copytree(folder / "train", folder / "other")
    message = fault(table(folder, [*ROWS, ("val", "a.png", "again")]), folder / "captions.csv", image_dir=str(folder / "train"))
    assert "c.png: no such file" in message
    (folder / "train" / "c.png").symlink_to(folder / "val" / "c.png")
    (folder / "train" / "e.png").symlink_to(folder / "train" / "b.png")
    file = table(folder, [*ROWS, ("val", "a.png", "again"), ("val", "e.png", "linked")])
    message = fault(file, file, image_dir=str(folder / "train"))
    assert message.startswith("2 pictures stand in two splits:")
    assert f"{folder / 'train' / 'a.png'}: train and val" in message
    assert f"{folder / 'train' / 'e.png'}: train and val" in message
    assert "Give each picture, with all its captions, to one split." in message


def test_one_file_without_splits_for_two_is_refused(folder):
    file = table(folder, [("train/a.png", "x"), ("train/b.png", "y")], ("filename", "caption"))
    assert "The same file without a column that says train, val or test stands for several." in fault(file, file)


def test_the_same_content_in_two_splits_is_a_leak(folder):
    shutil.copy(folder / "train" / "a.png", folder / "val" / "c.png")
    file = folder / "captions.csv"
    assert ("val", "c.png", "leak") in [(p.split, p.file, p.kind) for p in load(file, file).problems]


def test_the_same_picture_under_other_captions_is_told(folder):
    shutil.copy(folder / "train" / "a.png", folder / "train" / "b.png")
    assert ("train", "b.png", "duplicate", "same content as a.png, under other captions", False) in told(load(folder / "captions.csv"))


def test_a_bad_image_is_refused_or_left_out_with_its_captions(folder):
    (folder / "train" / "a.png").write_bytes(b"no picture")
    assert "train: a.png: unreadable" in fault(folder / "captions.csv")
    data = load(folder / "captions.csv", on_bad="skip")
    assert said(data.splits["train"]) == {"b.png": ("Two men, skiing",)}
    assert data.skipped == ["train/a.png"]


# ── what is odd but can be used ──


def test_unequal_numbers_and_repeats_of_captions_are_told(folder):
    rows = [("train", "a.png", "x"), ("train", "a.png", "y"), ("train", "a.png", "x"), ("train", "b.png", "z")]
    data = load(table(folder, rows))
    assert said(data.splits["train"])["a.png"] == ("x", "y", "x")
    assert [(kind, detail, fatal) for _, _, kind, detail, fatal in told(data)] == [
        ("caption_counts", "pictures have different numbers of captions: 1 (1 pictures), 3 (1 pictures); b.png the first that has not 3", False),
        ("caption_repeated", "of 1 of 2 pictures a caption stands more than once, a.png the first: 'x'; all are kept", False),
    ]


def test_check_counts_captions_and_words(folder):
    file = folder / "captions.csv"
    found = check(section(file, file), seed=1, captions=True, fewest_classes=1)
    assert found.captions == {"train": CaptionCounts(3, 10, 9, 1, 2, (3, 3.0, 4)), "val": CaptionCounts(1, 3, 3, 1, 1, (3, 3.0, 3))}
    assert found.notes == ["captions: 1 of test in captions.csv are not used: the recipe has no data.test"]
    assert found.problems == load(file, file).problems
    assert CaptionCounts.of(Captions([])) == CaptionCounts(0, 0, 0, 0, 0, (0, 0.0, 0))


def test_data_check_prints_the_captions(folder, capsys):
    from pellucid.cli.before import data_check

    recipe = folder / "recipe.yaml"
    model = "model: {name: pellucid/captioner, encoder: timm/test_vit}"
    phases = "train:\n  phases:\n    - {epochs: 1, optimizer: {name: adamw, lr: 1e-3}}\n"
    recipe.write_text(f"task: captioning\ndata: {{source: captions, train: captions.csv, val: captions.csv, image_size: 32}}\n{model}\n{phases}")
    data_check(recipe, quiet=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "3", "1", "to", "2", "10", "9", "3", "3", "4"] in lines
    assert ["val", "1", "1", "3", "3", "3", "3", "3"] in lines
    assert any(line[:5] == ["note:", "captions:", "1", "of", "test"] for line in lines)
    assert ["split", "images", "content", "hash"] in lines
    assert not any("unlabelled" in line or "class" in line for line in lines)  # captioning has no classes
    data_check(recipe, as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out)["captions"]["train"]["different"] == 9


# ── JSON ──


def coco(folder, annotations=None, images=None, name="train.json"):
    images = images or [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}]
    default = [{"id": 1, "image_id": 3, "caption": "b one "}, {"id": 2, "image_id": 7, "caption": "a one"}, {"id": 3, "image_id": 3, "caption": "b two"}]
    return write(folder / name, {"images": images, "annotations": default if annotations is None else annotations})


def test_coco_captions_belong_to_the_images_of_their_ids(folder):
    data = load(coco(folder))
    assert said(data.splits["train"]) == {"a.png": ("a one",), "b.png": ("b one", "b two")}


def test_coco_images_without_captions_are_told(folder):
    data = load(coco(folder, [{"id": 1, "image_id": 3, "caption": "b"}]))
    assert told(data) == [("train", "", "no_caption", "1 images have no caption and are not used, a.png the first", False)]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"id": 5, "image_id": 8, "caption": "x"}, "annotation 5: expected the id of one of the 2 images as image_id, got 8"),
        ({"id": 5, "image_id": 7, "caption": 3}, "annotation 5: a.png: expected a caption as text, got 3"),
        ({"id": 5, "image_id": 7, "caption": ""}, "annotation 5: a.png: the caption is empty"),
        ({"id": 5, "image_id": 7, "bbox": [0, 0, 1, 1]}, "annotation 5: expected a caption, got id, image_id, bbox; instances with boxes belong to data.boxes"),
        ({"id": 5, "image_id": [7], "caption": "x"}, "annotation 5: expected the id of one of the 2 images as image_id, got None"),
        ("x", "annotation 0: expected the id of one of the 2 images as image_id, got None"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named(folder, annotation, words):
    assert f"{folder / 'train.json'}: {words}" in fault(coco(folder, [annotation]))


def test_images_of_the_same_id_are_named(folder):
    message = fault(coco(folder, images=[{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "b.png"}]))
    assert "expected an id of its own for each, got 7 for a.png and b.png" in message


def test_broken_json_is_named_with_its_place(folder):
    (folder / "train.json").write_text('{"images": [\n  {"id": 1,}\n]}')
    assert fault(folder / "train.json").startswith(f"{folder / 'train.json'}:2:1")  # the column is another in newer Pythons
    assert "expected COCO captions (images, annotations) or Karpathy's" in fault(folder / "train.json")
    for content, words in (
        ([], "there is no list of images"),
        ({"images": [3]}, "there is no list of images"),
        ({"images": []}, "there are neither annotations"),
    ):
        assert words in fault(write(folder / "train.json", content))


def karpathy(folder, images):
    return write(folder / "dataset.json", {"images": images, "dataset": "coco"})


def test_karpathys_file_serves_all_splits_and_restval_is_train(folder):
    images = [
        {"split": "restval", "filepath": "train", "filename": "a.png", "sentences": [{"raw": "one", "tokens": ["one"]}, {"raw": " two "}]},
        {"split": "train", "filepath": "train2014", "filename": "b.png", "sentences": [{"raw": "three"}]},  # lies without its folder
        {"split": "val", "filename": "c.png", "sentences": [{"raw": "four"}]},
    ]
    file = karpathy(folder, images)
    data = load(file, file)
    assert said(data.splits["train"]) == {"train/a.png": ("one", "two"), "b.png": ("three",)}
    assert said(data.splits["val"]) == {"c.png": ("four",)}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"split": "train", "filename": "a.png", "sentences": []}, "images[0]: a.png: expected sentences, a list of captions, got []"),
        ({"split": "train", "filename": "a.png", "sentences": [{"tokens": ["x"]}]}, "images[0]: a.png: expected a caption as text, got null"),
        ({"split": "training", "filename": "a.png", "sentences": [{"raw": "x"}]}, "got 'training'. Did you mean 'train'?"),
        ({"filename": "a.png", "sentences": [{"raw": "x"}]}, "expected a split, one of train, val, test, restval, validation, valid, dev; got None."),
        ({"split": "train", "sentences": [{"raw": "x"}]}, "images[0]: expected the name of an image file, got None"),
    ],
)
def test_an_image_of_karpathys_that_cannot_be_used_is_named(folder, image, words):
    assert words in fault(karpathy(folder, [image]))


def test_two_pictures_that_lead_to_one_file_are_refused_with_both_rows(folder):
    picture(folder / "1.png", 10)
    images = [{"split": "train", "filepath": place, "filename": "1.png", "sentences": [{"raw": f"a dog, {place}"}]} for place in ("a", "b")]
    message = fault(karpathy(folder, images))
    assert "dataset.json: 1 images of train are files that others are already:" in message
    assert f"images[0]: a/1.png and {folder}/dataset.json: images[1]: b/1.png: both are {folder}/1.png" in message
    assert message.endswith("Put each image where its row says, or give all captions of an image one name.")
    picture(folder / "b" / "1.png", 20)
    assert said(load(karpathy(folder, images)).splits["train"]) == {"1.png": ("a dog, a",), "b/1.png": ("a dog, b",)}


def test_a_link_to_another_picture_is_that_picture(folder):
    (folder / "train" / "same.png").symlink_to(folder / "train" / "a.png")
    file = table(folder, [("train", "train/a.png", "one"), ("train", "train/same.png", "two")], name="linked.csv")
    assert f"linked.csv:2: train/a.png and {file}:3: train/same.png: both are {folder}/train/a.png" in fault(file)


# ── things ──


def instances(folder, annotations, images=None, categories=({"id": 1, "name": "Dog"}, {"id": 2, "name": "person"})):
    images = images or [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}, {"id": 2, "file_name": "x/b.png", "height": 20, "width": 30}]
    return str(write(folder / "boxes.json", {"images": images, "annotations": annotations, "categories": list(categories)}))


def box(image, category, *bbox, **more):
    return {"image_id": image, "category_id": category, "bbox": list(bbox)} | more


def test_things_are_the_boxes_of_a_category_together(folder):
    annotations = [
        box(1, 1, 2, 3, 5, 4),
        box(1, 2, 0, 0, 30, 20),
        box(1, 1, 20.4, 10.6, 4.2, 3),
        box(1, 1, 0, 9, 9, 9, iscrowd=1),
        box(2, 2, 29.9, 19.9, 0.1, 0.1),
    ]
    data = load(folder / "captions.csv", boxes=instances(folder, annotations))
    things = data.splits["train"].captions.things
    dogs, people = things(0)
    assert dogs.names == {"noun": frozenset({"dog", "dogs"})}
    assert people.names == {"noun": frozenset({"person", "people", "persons"})}
    expected = np.zeros((20, 30), bool)
    for y in range(20):
        for x in range(30):
            expected[y, x] = (2 <= x + 0.5 < 7 and 3 <= y + 0.5 < 7) or (20.4 <= x + 0.5 < 24.6 and 10.6 <= y + 0.5 < 13.6)
    np.testing.assert_array_equal(dogs.mask, expected)
    assert people.mask.all()
    (tiny,) = things(1)
    assert np.argwhere(tiny.mask).tolist() == [[19, 29]]  # no centre lies in it: the pixel it lies in


def test_things_follow_their_pictures_into_a_fraction(folder):
    rows, images, annotations = [], [], []
    for i in range(20):
        picture(folder / "many" / f"{i}.png", i)
        rows.append((f"{i}.png", str(i)))
        images.append({"id": i, "file_name": f"{i}.png", "height": 20, "width": 30})
        annotations.append(box(i, 1, i, 0, 1, 20))
    data = load(table(folder, rows, ("filename", "caption"), "many.csv"), 0.5, boxes=instances(folder, annotations, images))
    assert len(data.splits["val"]) > 3
    for split in data.splits.values():
        for k, name in enumerate(split.names):
            (thing,) = split.captions.things(k)
            assert np.flatnonzero(thing.mask.any(axis=0)).tolist() == [int(name.removesuffix(".png"))]


def test_pictures_without_boxes_are_told(folder):
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}]
    data = load(folder / "captions.csv", boxes=instances(folder, [], images))
    assert data.splits["train"].captions.things(1) == []
    detail = "boxes.json says nothing of 1 of 2 images, b.png the first: their words are not scored"
    assert ("train", "", "no_boxes", detail, False) in told(data)


def test_boxes_of_another_size_are_refused(folder):
    images = [{"id": 1, "file_name": "a.png", "height": 30, "width": 20}]
    message = fault(folder / "captions.csv", boxes=instances(folder, [], images))
    assert "1 images have another size than their files, so boxes would lie wrong" in message
    assert "a.png: 20 x 30 (width x height) there, the image file a.png has 30 x 20" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        ({"images": [], "annotations": []}, "there is no 'categories'"),
        (
            {"images": [{"id": 1, "file_name": "a.png", "height": 2, "width": 2}], "annotations": [{"image_id": 4, "bbox": [0, 0, 1, 1]}], "categories": []},
            "there is no 4",
        ),
        ({"images": [{"id": 1, "file_name": "z.png", "height": 2, "width": 2}], "annotations": [], "categories": []}, "it has z.png and the like"),
    ],
)
def test_boxes_that_fit_no_picture_are_refused(folder, content, words):
    if content is not None:
        write(folder / "boxes_train.json", content)
    message = fault(folder / "captions.csv", boxes=str(folder / "boxes_{split}.json"))
    assert "boxes_train.json: expected " in message
    assert words in message


@pytest.mark.parametrize("name", ["words", "word_pieces"])
def test_a_category_of_two_words_and_a_possessive_are_found_in_captions(folder, name):
    categories = [{"id": 1, "name": "fire hydrant"}, {"id": 2, "name": "Person"}]
    data = load(folder / "captions.csv", boxes=instances(folder, [box(1, 1, 0, 0, 4, 4), box(1, 2, 5, 5, 4, 4)], categories=categories))
    caption = "Two fire hydrants stand by a person's t-shirt"
    text = TextSection.model_validate({"tokenizer": {"name": name}, "max_length": 40})
    tokenizer = build_tokenizer(text, [caption])
    words = [word for word, _, _ in tokenizer.words(tokenizer.encode(caption))]
    found = [words[placed.word] for placed in things_of(words, data.splits["train"].captions.things(0))]
    assert found == ["hydrants", "person"]
    assert words[-3:] == ["person", "'s", "t-shirt"]


def test_a_noun_has_its_plain_plural():
    assert {name: sorted(nouns(name) - {name}) for name in ("dog", "bus", "bench", "knife", "skis", "glass", "berry", "toy", "sheep")} == {
        "dog": ["dogs"], "bus": ["buses"], "bench": ["benches"], "knife": ["knives"], "skis": ["ski"], "glass": ["glasses"], "berry": ["berries"],
        "toy": ["toys"], "sheep": [],
    }  # fmt: skip


# ── drawn scenes ──


def test_scenes_have_their_captions_and_two_things():
    data = load_dataset(DataSection(source="scenes", train=12, val=6, image_size=[32, 48]), seed=1, captions=True)
    assert data.classes == scenes.SHAPES
    split = data.splits["val"]
    for i in range(6):
        drawn = scenes.draw(i, split="val", image_size=(32, 48))
        assert split.captions.texts[i] == (drawn.caption,)
        assert split.labels[i] == drawn.label
        things = split.captions.things(i)
        assert [thing.names for thing in things] == [{"noun": {one.shape}, "color": {one.color}} for one in drawn.objects]
        assert not (things[0].mask & things[1].mask).any()
        np.testing.assert_array_equal(things[0].mask | things[1].mask, drawn.mask > 0)
        for thing, one in zip(things, drawn.objects, strict=True):
            rows, columns = np.nonzero(thing.mask)
            top, left, bottom, right = one.box
            assert top <= rows.min() <= rows.max() < bottom
            assert left <= columns.min() <= columns.max() < right
    plain = load_dataset(DataSection(source="scenes", train=12, val=6, image_size=[32, 48]), seed=1)
    assert list(plain.splits["val"].hashes) == list(split.hashes)
    assert plain.splits["val"].captions is None


def test_a_source_without_captions_is_refused():
    with pytest.raises(DataError, match="data.source: digits has no captions; captioning takes captions or scenes"):
        load_dataset(DataSection(source="digits", train=6), seed=1, captions=True)


# ── sides ──


def test_captions_that_name_a_side_are_counted():
    captions = ["a ball left of a box", "RIGHT-hand side", "a bright light", "The dog's righteous", "a cat above it", "stands under a tree"]
    assert mirrored_words(captions) == (2, 6)
    assert mirrored_words(captions, vertical=True) == (2, 6)
    assert mirrored_words([]) == (0, 0)


# ── the numbers of a captioner on other captions ──


def test_evaluate_asks_a_captioner_for_captions(tmp_path):
    from pellucid.cli.numbers import evaluate

    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError) as caught:
        evaluate(run.path, quiet=True)
    words = "give --data PATH (pictures with their captions: a CSV or JSON file, as data.source: captions has them)"
    assert str(caught.value) == f"{run.path}: {words}"


def test_the_baseline_says_that_it_may_be_the_most_typical_caption():
    row = np.ones(2, np.int64)
    predictions = CaptionPredictions(["a", "b"], np.full((2, 1), 2), -np.ones(2), np.ones(2), row, row, np.zeros((2, 16), np.uint8))
    texts = [["a dog"], ["a cat"]]
    numbers = measure_captions(["a dog"] * 2, texts, predictions, {"most_frequent": ["a dog"] * 2}, split="val", seed=0, found="greedily", note="")
    (cider,) = [m for m in numbers if m.name == "cider[most_frequent]"]
    assert "the commonest training caption (where none occurs twice, the most typical) for every picture" in cider.how


# ── real photographs ──


def test_the_real_captions_load(photographs):
    file = photographs / "captions" / "captions.csv"
    data = load(file, file, file)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2600, "val": 300, "test": 300}
    with file.open(newline="") as text:
        rows = [(row["split"], row["filename"], row["caption"].strip()) for row in csv.DictReader(text)]
    again = [(name, file, text) for name, split in data.splits.items() for file, texts in said(split).items() for text in texts]
    assert sorted(again) == sorted(rows)
    assert [p.kind for p in data.problems] == ["caption_repeated"]
