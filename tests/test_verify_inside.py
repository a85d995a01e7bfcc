"""Verify, inside the model: what was not touched holds, and whatever was touched is named, also when all hashes were made to fit again."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.manifold
import timm
import torch
import torchvision
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from drawn_folders import RECIPE, draw_data
from pellucid.data.dataset import Dataset
from pellucid.data.sources import load_dataset
from pellucid.files import file_hash
from pellucid.findings import MapKind
from pellucid.inside.deletion import masked_areas, randomised
from pellucid.inside.faithfulness import MEASURES, patch_target, shuffled
from pellucid.inside.projection import project
from pellucid.inside.survey import fitting, maps_of
from pellucid.run import Run
from pellucid.snapshots import evenly
from pellucid.tasks import load_model, runtime_of
from pellucid.train import train
from pellucid.verify import verify
from pellucid.verify_inside import anew, anew_checks, maps, open_kept, planes, scores, stored_checks

Command = Callable[..., tuple[int, str, str]]
INSIDE = "inside: {samples: 6, features: 48, epochs: [first, last], projections: [pca, tsne]}\n"


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Run:
    """A run of drawn scenes, which have masks; read only."""
    folder = tmp_path_factory.mktemp("looked")
    (folder / "r.yaml").write_text(small_recipe + INSIDE)
    return train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)


@pytest.fixture(scope="module")
def unmasked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a folder of pictures without masks, one of them from outside; read only."""
    folder = tmp_path_factory.mktemp("unmasked")
    data = draw_data(folder / "data", "folder")
    text = RECIPE.format(source="folder", train=data / "train", val=data / "val")
    text += f"inside: {{images: [{data / 'train' / 'star' / '02.jpg'}], samples: 5, features: 0, epochs: [last], methods: [attention, grad_cam]}}\n"
    (folder / "r.yaml").write_text(text)
    return train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)


@pytest.fixture(scope="module")
def scenes_of(looked: Run) -> Dataset:
    return load_dataset(looked.recipe.data, seed=looked.recipe.seed)


@pytest.fixture
def damaged(looked: Run, tmp_path: Path) -> Run:
    """A copy that a test may damage."""
    return Run(shutil.copytree(looked.path, tmp_path / "copy"))


def accept(run: Run) -> None:
    """Write the present hashes into run.json, as somebody would who covers a change."""
    record = json.loads((run.path / "run.json").read_text())
    record["files"] = {name: file_hash(run.path / name) for name in record["files"] if (run.path / name).is_file()}
    (run.path / "run.json").write_text(json.dumps(record))


def edit_findings(run: Run, change: Callable[[dict], None]) -> None:
    path = run.inside / "findings.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    accept(run)


def edit_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], None], run: Run) -> None:
    with np.load(path) as arrays:
        changed = {name: arrays[name].copy() for name in arrays}
    change(changed)
    np.savez(path, **changed)
    accept(run)


def of_files(run: Run) -> list[str]:
    """The mismatches that need no model."""
    kept, lines = open_kept(run)
    return [text for _, ok, text in [*lines, *(stored_checks(kept) if kept else [])] if not ok]


def of_model(run: Run, dataset: Dataset) -> list[str]:
    """The mismatches that model and data show, whatever the files say among themselves."""
    kept, _ = open_kept(run)
    assert kept is not None
    runtime = runtime_of(run)
    return [text for _, ok, text in anew_checks(kept, dataset, runtime.place(load_model(run)), runtime) if not ok]


def assert_line(lines: list[str], *words: str) -> None:
    """Some line holds all the words."""
    assert any(all(word in text for word in words) for text in lines), (words, lines)


# ── what was not touched ──────────────────────────────────────────────────────────────────────────────────────


def test_an_untouched_run_holds_and_says_how_each_number_was_recomputed(looked: Run) -> None:
    found = verify(looked)
    assert found.ok, [text for text in found.lines() if text.startswith("MISMATCH")]
    lines = [text for text in found.lines() if text.startswith("ok inside")]
    for method in ("attention", "rollout", "relevance"):
        assert_line(lines, f"inside {method}: 6 maps recomputed written out without fused kernels")
        assert_line(lines, f"inside random weights, {method}: 6 maps")
    for measure in scores.MEASURES:
        assert_line(lines, f"inside {measure}[grad_cam]: ", "4 baselines and 4 margins")
        assert_line(lines, f"inside {measure}[rollout, epoch 1]: ", "4 baselines and 4 margins recomputed from the maps of its snapshot")
    assert_line(lines, "inside pca-each: coordinates are scikit-learn's")
    assert_line(lines, "inside tsne, epoch 2: k-NN")
    assert_line(lines, "inside features: 24 x 32 of epoch 2 recomputed")
    assert found.promise == "bit-equal"


def test_pictures_without_masks_hold_by_deletion(unmasked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify(unmasked)
    assert found.ok, [text for text in found.lines() if text.startswith("MISMATCH")]
    assert_line(found.lines(), "ok inside deletion[attention]: ", "3 baselines and 3 margins recomputed from the model")
    monkeypatch.setattr(anew, "MOST_WORK", 0.0)
    assert_line(verify(unmasked).lines(), "ok inside insertion[grad_cam]: the first 2 of 6 pictures recomputed; all, and the baselines, would take too long")


def test_a_run_that_was_not_looked_into_has_no_such_lines(small_run: Path) -> None:
    assert not [text for text in verify(str(small_run)).lines() if "inside" in text]


# ── what was touched ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_ends_with_3_and_names_the_score(damaged: Run, pellucid: Command) -> None:
    def better(found: dict) -> None:
        found["scores"][0]["value"]["value"] += 0.01

    edit_findings(damaged, better)
    code, out, _ = pellucid("verify", damaged.path)
    assert code == 3
    assert_line([text for text in out.splitlines() if text.startswith("MISMATCH")], "inside pointing[attention]", "reported", "recomputed")


def pick(found: dict, method: str, measure: str) -> dict:
    return next(score for score in found["scores"] if (score["method"], score["measure"]) == (method, measure))


def test_changed_numbers_in_the_findings_are_named(damaged: Run) -> None:
    def change(f: dict) -> None:
        pick(f, "attention", "mass")["baselines"]["centre"]["value"] = 0.0
        pick(f, "attention", "rank")["margins"]["uniform"]["value"] = 0.5
        pick(f, "attention", "iou")["value"]["interval"] = [0.0, 1.0]
        pick(f, "rollout", "mass")["value"]["n"] = 600
        pick(f, "rollout", "rank")["higher_is_better"] = False
        f["images"][2]["scores"]["rollout"]["auc"] = 1.0
        f["images"][2]["artefacts"]["rollout"]["entropy"] = 0.1
        f["images"][3]["flags"] = ["attention: all is well"]
        f["projections"][0]["panels"][0]["knn_accuracy"]["value"] = 1.0
        f["projections"][1]["panels"][1]["trustworthiness"]["value"] = 0.9999
        f["projections"][2]["panels"][1]["plane_silhouette"]["value"] = 0.9
        f["epochs"] = []
        f["over_epochs"][0]["scores"][2]["value"]["value"] = 0.5
        f["over_epochs"][1]["scores"].pop(0)

    edit_findings(damaged, change)
    lines = of_files(damaged)
    assert_line(lines, "mass[attention, centre]: reported 0.0000, recomputed")
    assert_line(lines, "rank[attention] - uniform: reported 0.5000, recomputed")
    assert_line(lines, "iou[attention]: an interval where none belongs")
    assert_line(lines, "mass[rollout]: name, n, seed, split and unit are", "600")
    assert_line(lines, "rank[rollout]: it says the wrong way is up")
    assert_line(lines, "auc[rollout] reported 1.0000", "entropy of rollout reported 0.1000", "its flags do not follow")
    assert_line(lines, "inside pca-last, epoch 1: knn_accuracy: reported 1.0000")
    assert_line(lines, "inside pca-each, epoch 2: trustworthiness: reported 0.9999")
    assert_line(lines, "inside tsne, epoch 2: plane_silhouette: reported 0.9000")
    assert_line(lines, "epochs [] reported, there are snapshots of [1, 2]; ", "pointing[attention, epoch 2] is missing")
    assert_line(lines, "rank[attention, epoch 1]: reported 0.5000, recomputed")
    assert len(lines) == 11, lines  # and no other


def test_what_was_left_out_or_added_is_named(damaged: Run) -> None:
    def change(f: dict) -> None:
        score = pick(f, "attention", "iou")
        score["baselines"].pop("shuffled")
        score["margins"].pop("shuffled")
        f["scores"] = [*f["scores"], pick(f, "rollout", "auc"), {**pick(f, "rollout", "mass"), "measure": "beauty"}]
        f["scores"].remove(pick(f, "attention", "mass"))
        f["images"][1]["scores"]["attention"].pop("rank")
        f["projections"][1]["panels"].pop(0)
        f["projections"].pop(0)

    edit_findings(damaged, change)
    lines = of_files(damaged)
    assert_line(lines, "inside iou[attention]: shuffled is missing; - shuffled is missing")
    assert_line(lines, "mass[attention] is missing", "auc[rollout] stands there twice", "beauty[rollout] belongs to no map")
    assert_line(lines, "rank[attention] is missing")
    assert_line(lines, "inside projections: pca-last is missing")
    assert_line(lines, "inside pca-each: panels of epochs [2], features of [1, 2]")
    assert len(lines) == 5, lines


def test_findings_of_the_model_are_compared_with_it(damaged: Run, scenes_of: Dataset) -> None:
    def change(found: dict) -> None:
        found["images"][0]["confidence"] += 0.1
        found["images"][1]["label"] = "square" if found["images"][1]["label"] != "square" else "star"
        found["images"][2]["view"][0] = 3.0

    edit_findings(damaged, change)
    lines = of_model(damaged, scenes_of)
    assert_line(lines, "confidence", "its label is", "size and view are")


def test_prefix_shares_and_the_layer_are_compared_with_the_model(damaged: Run, scenes_of: Dataset) -> None:
    edit_findings(damaged, lambda f: f["images"][3]["artefacts"]["rollout"].update(prefix_share=0.0))
    assert_line(of_model(damaged, scenes_of), "prefix_share of rollout reported 0.0000")
    edit_findings(damaged, lambda f: f["maps"][0].update(layer="blocks.0.attn"))
    assert_line(of_model(damaged, scenes_of), "MISMATCH inside attention", "differs by")
    assert_line(of_model(damaged, scenes_of), "its layer is blocks.0.attn, the last one is blocks.1.attn")


def test_an_image_that_was_left_out_is_named(damaged: Run, scenes_of: Dataset) -> None:
    last = [image.file for image in open_kept(damaged)[0].findings.images][-1]  # type: ignore[union-attr]
    edit_findings(damaged, lambda f: f["images"].pop())
    assert_line(of_model(damaged, scenes_of), f"{last} is missing")


def test_a_method_that_was_left_out_with_all_its_traces_is_named(damaged: Run, scenes_of: Dataset) -> None:
    def drop(found: dict) -> None:
        found["maps"] = [kind for kind in found["maps"] if kind["method"] != "relevance"]
        found["scores"] = [score for score in found["scores"] if score["method"] != "relevance"]
        for of in found["over_epochs"]:
            of["scores"] = [score for score in of["scores"] if score["method"] != "relevance"]
        for image in found["images"]:
            image["scores"].pop("relevance")
            image["artefacts"].pop("relevance")
            image["flags"] = [flag for flag in image["flags"] if not flag.startswith("relevance")]

    edit_findings(damaged, drop)
    assert of_files(damaged) == []
    assert_line(of_model(damaged, scenes_of), "relevance is missing")


def test_changed_arrays_are_named_by_what_is_made_of_them(damaged: Run, scenes_of: Dataset) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["maps/attention"][1] = np.roll(arrays["maps/attention"][1], 1, axis=1)
        arrays["random/rollout"][2] = arrays["maps/rollout"][2]
        arrays["target/4x4"][3] = ~arrays["target/4x4"][3]
        arrays["scores/grad_cam/mass"][0] += 0.1
        arrays["projection/pca-last"][0, 5] += 0.2 * np.abs(arrays["projection/pca-last"]).max()
        arrays["heads/blocks.1.attn"][0] = 0.0

    edit_arrays(damaged.inside / "arrays.npz", change, damaged)
    names = [image.file for image in open_kept(damaged)[0].findings.images]  # type: ignore[union-attr]
    lines = of_files(damaged)
    assert_line(lines, "inside mass[grad_cam]", f"{names[0]}: kept")
    assert_line(lines, "inside randomisation[rollout]")
    assert_line(lines, "inside auc[attention]", names[1])
    assert_line(lines, "inside pca-last: coordinates differ")
    assert not [text for text in lines if "pca-each" in text or "tsne" in text]
    anew_lines = of_model(damaged, scenes_of)
    assert_line(anew_lines, "inside attention", f"{names[1]}: differs by")
    assert_line(anew_lines, "inside random weights, rollout", f"{names[2]}: differs by")
    assert_line(anew_lines, f"{names[3]}: its target on 4 x 4 patches")
    assert_line(anew_lines, "its heads differ")
    assert not [text for text in anew_lines if "grad_cam" in text or "relevance" in text]


def test_a_changed_layout_of_tsne_shows_in_its_numbers(damaged: Run) -> None:
    edit_arrays(damaged.inside / "arrays.npz", lambda a: a["projection/tsne"].__setitem__(1, a["projection/tsne"][1][::-1]), damaged)
    assert_line(of_files(damaged), "inside tsne, epoch 2:", "neighbours_kept: reported")


def test_changed_snapshots_are_named(damaged: Run, scenes_of: Dataset) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["features"][[3, 4]] = arrays["features"][[4, 3]]
        arrays["maps/attention"][0] = arrays["maps/attention"][1]

    edit_arrays(damaged.snapshot_file(2), change, damaged)
    lines = of_files(damaged)
    assert_line(lines, "maps of attention at epoch 2 are not those of its snapshot")
    assert_line(lines, "inside pca-last: coordinates differ")
    lines = of_model(damaged, scenes_of)
    assert_line(lines, "inside features", "differs by")
    assert_line(lines, "maps of attention at epoch 2 are not those of the final weights")
    edit_arrays(damaged.snapshots / "probe.npz", lambda a: a["rows"].__setitem__(0, a["rows"][0] + 0) or a["labels"].__setitem__(0, 5), damaged)
    assert_line(of_model(damaged, scenes_of), "inside probe: its labels are not those of the data")
    assert_line(of_files(damaged), "the labels of the probe are not those of snapshots/probe.npz")


def test_files_without_a_hash_or_gone_are_named(damaged: Run) -> None:
    record = json.loads((damaged.path / "run.json").read_text())
    for name in ("inside/findings.json", "snapshots/epoch-0001.npz"):
        record["files"].pop(name)
    (damaged.path / "run.json").write_text(json.dumps(record))
    lines = of_files(damaged)
    assert_line(lines, "MISMATCH run.json: it holds no hash of inside/findings.json")
    assert_line(lines, "MISMATCH run.json: it holds no hash of snapshots/epoch-0001.npz")
    damaged.snapshot_file(1).unlink()
    assert_line(of_files(damaged), "the recipe asks for epochs [1, 2], there are [2]")


def test_damaged_files_are_mismatches_and_no_tracebacks(damaged: Run, scenes_of: Dataset) -> None:
    whole = (damaged.inside / "arrays.npz").read_bytes()
    (damaged.inside / "arrays.npz").write_bytes(whole[: len(whole) // 2])
    assert_line(of_files(damaged), "MISMATCH inside/arrays.npz: cannot be read")
    assert not verify(damaged).ok
    (damaged.inside / "arrays.npz").write_bytes(whole)
    for key, shape in (("maps/attention", (6, 2)), ("projection/pca-last", (2, 3, 2)), ("scores/rollout/auc", ())):
        edit_arrays(damaged.inside / "arrays.npz", lambda a, k=key, s=shape: a.update({k: np.zeros(s, np.float32)}), damaged)
    edit_arrays(damaged.inside / "arrays.npz", lambda a: a.pop("valid/4x4"), damaged)
    lines = of_files(damaged)
    assert_line(lines, "inside attention: cannot be recomputed")
    assert_line(lines, "expected finite coordinates (2, 24, 2)")
    assert of_model(damaged, scenes_of)
    (damaged.snapshots / "probe.npz").write_bytes(b"")
    assert of_files(damaged)
    assert of_model(damaged, scenes_of)
    (damaged.inside / "findings.json").write_text("{}")
    assert_line(of_files(damaged), "MISMATCH inside: ", "not readable as JSON of a run")


def test_a_changed_deletion_is_named(unmasked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(shutil.copytree(unmasked.path, tmp_path / "copy"))
    dataset = load_dataset(run.recipe.data, seed=run.recipe.seed)

    def lower(found: dict) -> None:  # a baseline and its margin, so that they fit each other
        score = next(s for s in found["scores"] if (s["method"], s["measure"]) == ("grad_cam", "deletion"))
        score["baselines"]["centre"]["value"] += 0.1
        score["margins"]["centre"]["value"] -= 0.1

    edit_findings(run, lower)
    assert of_files(run) == []
    assert_line(of_model(run, dataset), "inside deletion[grad_cam]", "deletion[grad_cam, centre]: reported")
    edit_arrays(run.inside / "arrays.npz", lambda a: a["scores/attention/insertion"].__setitem__(1, 0.9), run)
    assert_line(of_files(run), "inside insertion[attention] of the set", "reported")
    monkeypatch.setattr(anew, "MOST_WORK", 0.0)
    assert_line(of_model(run, dataset), "inside insertion[attention]", "0.9000, recomputed")


# ── the separate paths are right ──────────────────────────────────────────────────────────────────────────────


def test_measures_with_ties_are_means_over_all_orders() -> None:
    """rank and iou against every order of tied patches; both paths agree."""
    random = np.random.default_rng(0)
    for _ in range(8):
        relevance = random.integers(0, 3, (2, 3)).astype(float)
        target, valid = random.random((2, 3)) < 0.5, np.ones((2, 3), bool)
        found = scores.measured(relevance, target, valid)
        if not target.any():
            assert all(math.isnan(x) for x in found.values())
            continue
        values = (relevance if relevance.any() else np.ones((2, 3))).ravel()
        ranks, overlaps = [], []
        for order in itertools.permutations(range(6)):
            if any(values[a] < values[b] for a, b in itertools.pairwise(order)):
                continue
            marks = target.ravel()[list(order)]
            ranks.append(marks[: target.sum()].mean())
            num = next(n for n in range(1, 7) if values[list(order[:n])].sum() >= 0.6 * values.sum() - 1e-9)
            overlaps.append(marks[:num].sum() / (num + target.sum() - marks[:num].sum()))
        assert found["rank"] == pytest.approx(np.mean(ranks), abs=1e-12)
        assert found["iou"] == pytest.approx(np.mean(overlaps), abs=1e-12)


@pytest.mark.parametrize(("size", "grid"), [((12, 8), (3, 4)), ((10, 14), (4, 3))])
def test_measures_and_targets_agree_with_those_of_training(size: tuple[int, int], grid: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    masks = [random.choice([0, 1, 255], size, p=[0.5, 0.3, 0.2]).astype(np.uint8) for _ in range(6)] + [np.zeros(size, np.uint8)]
    ours, theirs = [scores.target_of(mask, grid) for mask in masks], [patch_target(mask, grid) for mask in masks]
    for (target, valid), other in zip(ours, theirs, strict=True):
        assert np.array_equal(target, other.target)
        assert np.array_equal(valid, other.valid)
    stack = random.integers(0, 4, (7, *grid)).astype(np.float64)
    targets, valid = (np.stack(part) for part in zip(*ours, strict=True))
    single, mixed = scores.table(stack, targets, valid), scores.shuffled_table(stack, targets, valid)
    for name, measure in MEASURES.items():
        np.testing.assert_allclose(single[name], [measure(m, t) for m, t in zip(stack, theirs, strict=True)], atol=1e-12)
        np.testing.assert_allclose(mixed[name], shuffled(measure, stack, theirs), atol=1e-12)


def test_numbers_of_a_plane_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 60)
    points, plane = random.normal(size=(60, 5)) + labels[:, None], random.normal(size=(60, 2))
    space, k = planes.in_space(points), 7
    near, shown = planes.neighbours(space, k), planes.neighbours(planes.on_plane(plane), k)
    right = [KNeighborsClassifier(k).fit(np.delete(points, i, 0), np.delete(labels, i)).predict(points[i : i + 1])[0] == labels[i] for i in range(60)]
    assert planes.knn_accuracy(near, labels).value == pytest.approx(np.mean(right))  # two classes and odd k: no equal votes
    assert planes.trustworthiness(space, shown, k).value == pytest.approx(sklearn.manifold.trustworthiness(points, plane, n_neighbors=k), abs=1e-12)
    silhouette = planes.silhouette(space, labels)
    assert silhouette is not None
    assert silhouette.value == pytest.approx(silhouette_score(points, labels), abs=1e-9)
    assert silhouette.high - silhouette.low < 1e-4


@pytest.mark.parametrize("kind", ["plain", "lattice", "equal", "one class"])
def test_what_training_reports_lies_within_the_bounds(kind: str) -> None:
    """Equal distances, equal points: float32 may put either first, and no report may be called wrong for it."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 3, 40)
    features = [random.normal(size=(40, 6)).astype(np.float16) + step * np.eye(3, 6, dtype=np.float16)[labels] for step in (0, 3)]
    if kind == "lattice":
        features = [x.round() for x in features]
    if kind == "equal":
        features[1][20:] = features[1][0]
    if kind == "one class":
        labels[:] = 0
    found = project(features, labels, epochs=[1, 2], method="pca", fit="each", seed=1)
    for x, plane, panel in zip(features, found.coordinates, found.panels, strict=True):
        space, flat = planes.in_space(planes.centred(x)), planes.on_plane(plane.astype(np.float64))
        near, shown = planes.neighbours(space, 10), planes.neighbours(flat, 10)
        assert planes.knn_accuracy(near, labels).hold(panel.knn_accuracy.value, 1e-6)
        assert planes.neighbours_kept(near, shown, 10).hold(panel.neighbours_kept.value, 1e-6)
        assert planes.trustworthiness(space, shown, 10).hold(panel.trustworthiness.value, 1e-6)
        for bounds, told in ((planes.silhouette(space, labels), panel.silhouette), (planes.silhouette(flat, labels), panel.plane_silhouette)):
            assert (bounds is None) == (told is None)
            assert bounds is None or told is None or bounds.hold(told.value, 1e-6)
        if kind == "plain":  # where nothing is equal, the bounds leave no room
            assert not planes.knn_accuracy(near, labels).hold(panel.knn_accuracy.value + 1 / 40, 1e-6)
            assert not planes.neighbours_kept(near, shown, 10).hold(panel.neighbours_kept.value + 1 / 400, 1e-6)


def models() -> dict[str, Callable[[], nn.Module]]:
    small = {"num_classes": 4, "embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8}
    return {
        "class token": lambda: timm.create_model("test_vit", **small),
        "no class token": lambda: timm.create_model("test_vit", **small, class_token=False, global_pool="avg"),
        "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **small),
        "registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **small),
        "rotary": lambda: timm.create_model("eva02_tiny_patch14_224", **small),
        "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=4),
        "convolutions": lambda: timm.create_model("resnet10t", num_classes=4),
    }


@pytest.mark.parametrize("name", models())
def test_plain_maps_are_those_of_the_recorder(name: str) -> None:
    torch.manual_seed(0)
    model = models()[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a model as it is made looks everywhere alike, and some have a classifier of zeros
            parameter += 0.2 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 32, 32)
    targets = torch.tensor([1, 3])
    methods, _ = fitting(model, images[:1])
    assert methods == ["grad_cam"] if name == "convolutions" else set(methods) >= {"attention", "rollout", "relevance"}
    pairs = [(model, model), (maps.with_random_weights(model, 5), randomised(model, 5))]
    for plain, recorded in pairs:
        wanted = {method: maps_of(method, recorded, images, targets=targets) for method in methods}
        kinds = {method: MapKind(method, m.layer, (m.values.shape[1], m.values.shape[2]), m.how) for method, m in wanted.items()}
        found = maps.plainly(plain, images, [1, 3], kinds)
        for method, m in wanted.items():
            np.testing.assert_allclose(found.maps[method], m.values, atol=2e-5 * m.values.max() + float(found.slack[method].max()))
            if m.prefix_share is not None:
                np.testing.assert_allclose(found.shares[method], m.prefix_share, atol=1e-6)
        other = maps.plainly(plain, images.flip(0), [1, 3], kinds)  # the control: maps of the other image differ
        assert all(np.abs(other.maps[method] - wanted[method].values).max() > 1e-3 * wanted[method].values.max() for method in methods)
    assert not any(module._forward_hooks for module in model.modules())


def test_areas_with_ties_are_those_of_training() -> None:
    torch.manual_seed(0)
    model = models()["class token"]().eval()
    images = torch.randn(2, 3, 32, 32)
    relevance = np.random.default_rng(0).integers(0, 3, (2, 4, 4)).astype(np.float64)
    wanted = masked_areas(model, images, relevance, torch.tensor([0, 2]), steps=10, batch_size=8)
    for i, target in enumerate((0, 2)):
        found = scores.areas(model, images[i : i + 1], relevance[i], target, most_steps=10)
        assert found == {name: pytest.approx(values[i], abs=1e-6) for name, values in wanted.items()}


@pytest.mark.parametrize("count", [0, 1, 5, 12, 50])
def test_the_rows_that_a_recipe_asks_for_are_those_of_training(count: int) -> None:
    labels = np.random.default_rng(4).integers(0, 4, 12)
    assert maps.chosen_rows(labels, count) == evenly(labels, count).tolist()


def test_pictures_that_were_exchanged_are_named(damaged: Run) -> None:
    first, second = (damaged.inside / "images" / f"{i}.webp" for i in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    lines = [text for text in verify(damaged).lines() if text.startswith("MISMATCH")]
    assert_line(lines, "inside/images/0.webp: the file changed since the run")
    assert_line(lines, "inside/images/1.webp: the file changed since the run")


def test_other_classes_weights_or_model_in_the_findings_are_named(damaged: Run) -> None:
    edit_findings(damaged, lambda f: f["classes"].reverse())
    assert_line(of_files(damaged), "MISMATCH inside model", "classes ['ring', 'cross'")
    edit_findings(damaged, lambda f: f.update(weights="published weights", model="timm/vit_giant"))
    assert_line(of_files(damaged), "weights published weights, the run has final weights, last epoch", "model timm/vit_giant")
