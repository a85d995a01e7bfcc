"""A study's folder without a training: settings of chosen skill under several seeds, some of them unfinished, and a shared part. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fabricate import make_run
from pellucid.run import DONE
from pellucid.study_record import SettingRecord, SharedRecord, StudyFolder, StudyRecord

LABELS = {
    "A": "from scratch, whole network",
    "B": "supervised backbone, whole network",
    "C": "own backbone, whole network",
    "D": "supervised backbone, frozen",
    "E": "own backbone, frozen",
    "R": "random backbone, frozen",
}
SKILL = {"A": 1.6, "B": 3.2, "C": 2.1, "D": 2.6, "E": 1.65, "R": 0.4}
SEEDS = (1, 2, 3)
ANIMALS = ("cat", "dog", "owl", "hen", "fox", "yak", "elk")


def make_study(
    path: Path,
    *,
    skill: Mapping[str, float] = SKILL,
    seeds: Sequence[int] = SEEDS,
    status: Mapping[tuple[str, int], str] | None = None,
    classes: Sequence[str] = ANIMALS,
    n: int = 240,
    epochs: Mapping[str, int] | None = None,
    data_seed: Mapping[str, int] | None = None,
    measure: str = "val/accuracy",
    baseline: str = "A",
    final: str | None = "C",
    shared: bool = True,
    notes: Sequence[str] = (),
) -> StudyFolder:
    """The folder of a study. status: {(setting, seed): status} of runs that are not done, "" for one that was not begun; data_seed: of settings on other data."""
    settings = [
        SettingRecord(name, LABELS.get(name, ""), {"train.phases.0.epochs": (epochs or {}).get(name, 6)}, ["own"] if shared and name in ("C", "E") else [])
        for name in skill
    ]
    parts = [SharedRecord("own", "../recipes/simclr.yaml")] if shared else []
    record = StudyRecord("0.1.0", "transfer", "../recipes/base.yaml", measure, list(seeds), settings, baseline, final, parts, list(notes))
    folder = StudyFolder.create(path, record, "recipe: ../recipes/base.yaml\n")
    for setting in settings:
        for seed in seeds:
            stands = (status or {}).get((setting.name, seed), DONE)
            if stands:
                overrides = [f"{key}={value}" for key, value in setting.changes.items()]
                run = make_run(
                    folder.run_folder(setting.name, seed),
                    classes=classes, n=n, skill=skill[setting.name], seed=seed, data_seed=(data_seed or {}).get(setting.name, 0), status=stands, overrides=overrides,
                )  # fmt: skip
                made = run.record
                made.seconds = 60.0 * seed * (1 + len(setting.name)) + 6.0
                made.error = "the loss is NaN after step 12" if stands == "failed" else None
                run.write_record(made)
    if shared:
        part = make_run(folder.shared_folder("own"), classes=classes, n=n, skill=1.0)
        made = part.record
        made.task, made.seconds = "pretraining", 1446.0
        made.measurements = [replace(m, name="knn_accuracy") for m in made.measurements if m.name == "accuracy"]
        part.write_record(made)
    return folder
