"""Commands that train, and those that say what training would do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import shipped
from pellucid.cli.options import AsJson, Out, Quiet, RecipeFile, RunFolder, Set
from pellucid.errors import MismatchError, PellucidError
from pellucid.printing import print_json, print_measurements, print_plan, print_run, rank


def demo(out: Out = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Train a small ViT on drawn scenes, verify it and write the report: about 4 minutes on 2 cores."""
    from pellucid.train import train as train_
    from pellucid.verify import verify as verify_

    run = train_(shipped.recipe("demo"), out=out, quiet=quiet, command=["pellucid", "demo"])
    if rank():
        return
    verification = verify_(run)
    verification.save(run)
    page = run.report()
    if not as_json:
        print_measurements(run)
        print(f"\nverify: {verification.result}, {verification.promise}")
        print(f"report: {page}")
    print_run(run, as_json)
    if not verification.ok:
        raise MismatchError("\n".join(c.line for c in verification.checks if not c.ok))


def train(
    recipe: RecipeFile,
    set_: Set = None,
    out: Out = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Train under this many consecutive seeds and report mean, spread and interval.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe; prints the numbers and, as last line, the run folder."""
    from pellucid import recipe as recipes

    recipes.load(recipe, set_ or [])  # its faults are told before the seconds that torch takes to be imported
    from pellucid.train import train as train_
    from pellucid.train import train_seeds

    command = ["pellucid", "train", str(recipe), *[part for s in set_ or [] for part in ("-s", s)], *(["--seeds", str(seeds)] if seeds > 1 else [])]
    if seeds == 1:
        run = train_(recipe, overrides=set_ or [], out=out, quiet=quiet, command=command)
        if not as_json and not rank():
            print_measurements(run)
            print(f"report: {run.report_file}")
        print_run(run, as_json)
        return
    _print_seeds(train_seeds(recipe, seeds, overrides=set_ or [], out=out, quiet=quiet, command=command), as_json)


def _print_seeds(runs: Any, as_json: bool) -> None:
    """Mean, spread and interval of each number over the seeds, and the folder as last line."""
    from pellucid.compare import summarize_seeds

    if rank():
        return
    summaries = summarize_seeds(runs)
    folder = runs[0].path.parent
    if as_json:
        print_json({"run": str(folder), "runs": [str(r.path) for r in runs], "measurements": {s.key: asdict(s) for s in summaries}})
        return
    for summary in summaries:
        print(summary)
    print(folder)


def resume(run: RunFolder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Continue an interrupted run, or a set of seeds, at the last checkpoint."""
    from pellucid.run import Run

    of_seeds = (run / "seeds.json").exists()
    if not of_seeds:
        Run(run)  # where there is none, that is told before torch is imported
    from pellucid.train import resume as resume_
    from pellucid.train import resume_seeds

    if of_seeds:
        _print_seeds(resume_seeds(run, quiet=quiet), as_json)
        return
    finished = resume_(run, quiet=quiet)
    if not as_json and not rank():
        print_measurements(finished)
    print_run(finished, as_json)


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A study (YAML): base recipe, settings, seeds.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a value in every setting; NAME:KEY=VALUE in one, or in a shared run. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The study's folder; default: runs/<name of the file>.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs that are trained side by side on this machine.")] = 1,
    on: Annotated[str, typer.Option("--on", metavar="local|ray", help="ray: on an existing Ray cluster (pip install 'pellucid[ray]').")] = "local",
    address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="--on ray: the cluster; auto: that of this machine.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train what is missing of a study and print its table. Safe to interrupt, to repeat and to extend."""
    from pellucid.study import run_study
    from pellucid.study_table import to_json, to_text

    command = ["pellucid", "study", str(file), *[part for s in set_ or [] for part in ("-s", s)]]
    result = run_study(file, out=out, at_once=jobs, on=on, address=address, overrides=set_ or [], quiet=quiet, command=command)
    if as_json:
        print_json({"study": str(result.folder.path), "failed": result.failed, **to_json(result.table)})
    else:
        print(to_text(result.table))
        print(result.folder.path)
    if result.failed:
        raise PellucidError("\n".join(f"{name} failed: {error}" for name, error in result.failed.items()))


def plan(
    recipe: RecipeFile,
    set_: Set = None,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Measure a few steps to estimate the time.")] = True,
    formats: Annotated[bool, typer.Option("--formats", help="Measure fp32 and bf16, contiguous and channels_last: which is fastest here.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Steps, parameters, sizes, memory, time and every resolved value, without training."""
    from pellucid import recipe as recipes

    checked = recipes.load(recipe, set_ or [])
    from pellucid.plan import plan as plan_
    from pellucid.progress import Progress

    with Progress(quiet=quiet) as progress:
        found = plan_(checked, timing=timing, formats=formats, progress=progress)
    if as_json:
        print_json({**asdict(found), "resolved": checked.model_dump(mode="json")})
    else:
        print_plan(found, checked.train.batch_size)


def validate(recipe: RecipeFile, set_: Set = None, as_json: AsJson = False) -> None:
    """Check a recipe: every fault with file:line:column. Model names are checked too; data is what `plan` reads."""
    from pellucid import recipe as recipes

    checked = recipes.load(recipe, set_ or [])
    from pellucid.models import normalization
    from pellucid.models.segmenters import check_segmenter

    if checked.masked:
        check_segmenter(checked.model.name, checked.model.encoder)
    else:
        normalization(checked.model.name)  # raises with the nearest name when there is no such model
    if as_json:
        print_json({"recipe": str(recipe), "valid": True})
    else:
        print(f"{recipe}: valid")
