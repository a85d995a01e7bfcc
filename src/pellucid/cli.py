"""The command line: reads arguments, calls one function, prints what came back.

Results go to stdout, progress and errors to stderr. Everything heavy is imported inside the command that needs it, so
that `pellucid --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid import __version__
from pellucid.errors import MismatchError, MissingError, PellucidError, RunError, UsageError
from pellucid.printing import (
    measurement_table,
    print_data_report,
    print_json,
    print_labels,
    print_masks,
    print_measurements,
    print_note,
    print_plan,
    print_run,
    rank,
)

app = typer.Typer(
    name="pellucid", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train a vision model from one recipe, see what is inside it, and prove every number it reports.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
recipes_app = typer.Typer(no_args_is_help=True, help="Recipes that come with Pellucid.")
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a value of the recipe, e.g. -s train.batch_size=64. Repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Where to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0.0, help="Largest absolute difference of a recomputed number.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; the entry point exits with it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = app(arguments, standalone_mode=False, prog_name="pellucid")
    except (PellucidError, KeyboardInterrupt) as error:
        if debug:
            raise
        return _told(error)
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # typer's own usage errors
            error.show()
            code = 2
        elif debug:
            raise
        elif isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        elif isinstance(error, OSError) and error.filename is not None:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)
            code = 2
        else:
            print(f"pellucid: internal error: {type(error).__name__}: {error}\nThe same command with --debug shows where. Please report it.", file=sys.stderr)
            code = 1
    return int(code or 0)


def entry() -> None:
    """The `pellucid` command."""
    # Idle OpenMP threads look a thousand times for work, some microseconds, and then sleep. Looking for long, the default of
    # GNU's OpenMP, makes a step 2 to 9 times slower as soon as anything else runs; sleeping at once makes a small network 1.7 times
    # slower on an idle machine (docs/log.md). Must be set before torch is imported; whoever set one of them keeps their value.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ["OMP_WAIT_POLICY"] = "passive"
    sys.exit(main())


def _told(error: BaseException) -> int:
    if isinstance(error, PellucidError):
        print(f"process {rank()}: " * bool(rank()) + (str(error) if str(error) else type(error).__name__), file=sys.stderr)
        return error.exit_code
    print("interrupted", file=sys.stderr)
    return 130


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


# ── train ─────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def demo(out: Out = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Train a small ViT on drawn scenes, verify it and write the report: about 4 minutes on 2 cores."""
    from pellucid.train import train as train_
    from pellucid.verify import verify as verify_

    run = train_(_shipped("demo"), out=out, quiet=quiet, command=["pellucid", "demo"])
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


@app.command()
def train(
    recipe: RecipeFile,
    set_: Set = None,
    out: Out = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Train under this many consecutive seeds and report mean, spread and interval.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe; prints the numbers and, as last line, the run folder."""
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


@app.command()
def resume(run: RunFolder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Continue an interrupted run, or a set of seeds, at the last checkpoint."""
    from pellucid.train import resume as resume_
    from pellucid.train import resume_seeds

    if (run / "seeds.json").exists():
        _print_seeds(resume_seeds(run, quiet=quiet), as_json)
        return
    finished = resume_(run, quiet=quiet)
    if not as_json and not rank():
        print_measurements(finished)
    print_run(finished, as_json)


@app.command()
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
    from pellucid.plan import plan as plan_
    from pellucid.progress import Progress

    checked = recipes.load(recipe, set_ or [])
    with Progress(quiet=quiet) as progress:
        found = plan_(checked, timing=timing, formats=formats, progress=progress)
    if as_json:
        print_json({**asdict(found), "resolved": checked.model_dump(mode="json")})
    else:
        print_plan(found, checked.train.batch_size)


@app.command()
def validate(recipe: RecipeFile, set_: Set = None, as_json: AsJson = False) -> None:
    """Check a recipe: every fault with file:line:column. Model names are checked too; data is what `plan` reads."""
    from pellucid import recipe as recipes
    from pellucid.models import normalization
    from pellucid.models.segmenters import check_segmenter

    checked = recipes.load(recipe, set_ or [])
    if checked.masked:
        check_segmenter(checked.model.name, checked.model.encoder)
    else:
        normalization(checked.model.name)  # raises with the nearest name when there is no such model
    if as_json:
        print_json({"recipe": str(recipe), "valid": True})
    else:
        print(f"{recipe}: valid")


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def verify(
    run: RunFolder,
    tolerance: Tolerance = 0.005,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train again from the recipe and compare.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Recompute every reported number twice: from the predictions, and from checkpoint and data. Exit 3 on a mismatch."""
    from pellucid.progress import Progress
    from pellucid.run import Run
    from pellucid.verify import verify as verify_

    opened = Run(run)
    if retrain:
        verification = _retrained(opened, tolerance, quiet)
    else:
        with Progress(quiet=quiet) as progress:
            verification = verify_(opened, tolerance=tolerance, progress=progress)
        verification.save(opened)
        _renew_report(opened)
    if as_json:
        print_json({**asdict(verification), "result": verification.result})
    else:
        print("\n".join(verification.lines()))
        print(f"{verification.result}: {run} ({len(verification.checks)} checks, {sum(not c.ok for c in verification.checks)} failed)")
    if not verification.ok:
        raise MismatchError(f"{run}: " + "; ".join(c.line for c in verification.checks if not c.ok))


def _renew_report(run: Any) -> None:
    """The report with the new verdict; a run too damaged to draw is still judged."""
    try:
        run.report()
    except PellucidError as error:
        print(f"the report could not be written: {error}", file=sys.stderr)


def _retrained(run: Any, tolerance: float, quiet: bool) -> Any:
    import tempfile

    from pellucid.recipe import override
    from pellucid.run import DONE
    from pellucid.train import train as train_
    from pellucid.verify import compare_retrained

    if run.record.status != DONE:
        raise RunError(f"{run.path}: the run is {run.record.status}; only a finished run can be compared with a second training.")
    recipe = override(run.recipe, [f"train.threads={run.environment['threads']}"])  # the number of threads decides the bits
    with tempfile.TemporaryDirectory() as folder:
        return compare_retrained(run, train_(recipe, out=Path(folder) / "again", quiet=quiet, figures=False), tolerance)


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="A run folder; with --masks also a recipe (YAML).")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="PATH", help="Labelled images as the run's source has them: a folder, a CSV for table, a folder of pairs, or of masks alone."
        ),
    ] = None,
    masks: Annotated[Path | None, typer.Option("--masks", metavar="DIR", help="Score these predicted masks, without any model.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="--masks without --data: split of the recipe with the true masks; default: val.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The run's numbers on other labelled images of the same classes, or those of a folder of predicted masks."""
    from pellucid.progress import Progress
    from pellucid.run import Run

    if split is not None and (masks is None or data is not None):
        raise UsageError("--split names a split of the recipe that --masks are scored against; it goes with --masks and without --data")
    run = None if target.is_file() else Run(target)
    with Progress(quiet=quiet) as progress:
        if masks is not None:
            from pellucid import recipe as recipes
            from pellucid.mask_folders import evaluate_masks

            source = run or recipes.load(target)
            measurements = evaluate_masks(source, masks, data=data, split=split or "val", told=print_note, progress=progress)
        elif run is None or data is None:
            missing = "a recipe has no model: give a run folder, or --masks" if run is None else "give --data PATH (images for the run's model) or --masks"
            raise UsageError(f"{target}: {missing} DIR (masks that are predicted already)")
        else:
            from pellucid.evaluate import evaluate as evaluate_

            measurements = evaluate_(run, str(data), progress=progress)
    if as_json:
        given = {"data": data, "masks": masks, "split": (split or "val") if masks is not None and data is None else None}
        print_json({"run" if run else "recipe": str(target), **{k: str(v) for k, v in given.items() if v}, "measurements": [asdict(m) for m in measurements]})
    else:
        print(measurement_table(measurements))


@app.command()
def predict(
    run: RunFolder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Images and folders of images.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="PATH", help="CSV to write; of a segmentation run the folder for its masks.")] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Segmentation: also write <mask>_confidence.png, 8-bit grey.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Segmentation: replace files in --out; never true masks or what training reads.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Label images: CSV with filename, label and confidence. Of a segmentation run: a mask for each, and the share of each class."""
    from pellucid.run import Run

    opened = Run(run)
    if opened.recipe.masked:
        from pellucid.evaluate import write_masks
        from pellucid.progress import Progress

        if out is None:
            raise UsageError(f"{run} predicts masks: give --out DIR, the folder to write them into")
        with Progress(quiet=quiet) as progress:
            written = write_masks(opened, paths, out, confidence=confidence, overwrite=overwrite, told=print_note, progress=progress)
            print_masks(written, opened.data.classes, as_json)
        return
    if confidence:
        raise UsageError("--confidence writes pictures beside masks and belongs to segmentation; the confidence of a label stands in the CSV")
    if overwrite:
        raise UsageError("--overwrite replaces masks and belongs to segmentation; a CSV is written anew in any case")
    predictions = opened.predict([str(path) for path in paths])
    print_labels(predictions, out, as_json)


@app.command()
def inside(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or a model: timm/<name>, torchvision/<name>, transformers/<name>.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Photographs and folders of them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for figures, arrays.npz and findings.json.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the model, e.g. -s pretrained=false or -s image_size=384.")
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help="attention, rollout, relevance, grad_cam, integrated_gradients or occlusion. Repeatable; default: the first four that fit."),
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Path of the layer for attention and grad_cam; default: the last that tells something.")] = None,
    explained: Annotated[
        str | None, typer.Option("--class", help="Segmentation: the class whose maps are drawn; default: the largest, or best scored.")
    ] = None,
    masks: Annotated[Path | None, typer.Option("--masks", metavar="PATH", help="Folder with <name>.png for each photograph, or one file for one.")] = None,
    mask_target: Annotated[list[int] | None, typer.Option("--mask-target", help="Value of the masks that is the target; default: all above 0.")] = None,
    mask_ignore: Annotated[list[int] | None, typer.Option("--mask-ignore", help="Value of the masks that counts neither way.")] = None,
    deletion: Annotated[bool, typer.Option("--deletion/--no-deletion", help="Without masks, score by deletion and insertion: some hundred passes.")] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What is inside a model: maps over photographs, each with its measures and baselines; heads; position embeddings."""
    from pellucid.look import look_into, summary
    from pellucid.progress import Progress
    from pellucid.tables import table

    with Progress(quiet=quiet) as progress:
        found = look_into(
            target, images, out, overrides=set_ or [], methods=maps, layer=layer, masks=masks, mask_target=mask_target, mask_ignore=mask_ignore or [],
            explained=explained, deletion=deletion, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({"out": str(out), **asdict(found)})
        return
    for line in [*found.notes, *(f"{image.file}: {flag}" for image in found.images for flag in image.flags)]:
        print(f"note: {line}", file=sys.stderr)
    print(table(["map", "measure", "mean", "95 % interval", "baselines"], summary(found)))
    print(out)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: model.onnx or model.safetensors in the run folder.")] = None,
    format_: Annotated[str, typer.Option("--format", help="onnx or safetensors.")] = "onnx",
    as_json: AsJson = False,
) -> None:
    """Write the model as ONNX or safetensors after checking that it gives the same logits."""
    from pellucid.evaluate import export_run
    from pellucid.run import Run

    if format_ not in ("onnx", "safetensors"):
        raise UsageError(f"--format: expected onnx or safetensors, got {format_!r}")
    result = export_run(Run(run), out, format_)
    if as_json:
        print_json(asdict(result))
    else:
        print("\n".join(result.lines()))


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def report(run: RunFolder, out: Out = None, as_json: AsJson = False) -> None:
    """Write the report of a run: one HTML file, offline."""
    from pellucid.report import write_report
    from pellucid.run import Run

    page = write_report(Run(run), out=out)
    if as_json:
        print_json({"report": str(page), "bytes": page.stat().st_size})
    else:
        print(page)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders made by train --seeds.")],
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="RUN", help="The row that differences refer to; default: the last row.")] = None,
    final: Annotated[str | None, typer.Option("--final", metavar="RUN", help="Mark this run as the final one.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="The number to sort by, e.g. val/accuracy; default: the headline.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also a table of the number class by class: iou of miou, recall of accuracy.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the comparison as HTML.")] = None,
    as_json: AsJson = False,
) -> None:
    """One table of differing settings and numbers, with differences and their intervals; class by class too when asked."""
    from pellucid import compare as compare_
    from pellucid.compare import expand, to_html, to_json, to_text

    comparison = compare_(expand(runs), baseline=baseline, final=final, metric=metric)
    text = "" if as_json else to_text(comparison, per_class=per_class)
    if out is not None:
        out.write_text(to_html(comparison), encoding="utf-8")
    if as_json:
        print_json(to_json(comparison))
    else:
        print(text)
        if out is not None:
            print(out)


# ── data, recipes, machine ────────────────────────────────────────────────────────────────────────────────────


@data_app.command("check")
def data_check(recipe: RecipeFile, set_: Set = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Every image and label that would cause trouble, by name. Exit 2 when training would refuse to start."""
    from pellucid import recipe as recipes
    from pellucid.data.check import check
    from pellucid.errors import DataError
    from pellucid.progress import Progress

    checked = recipes.load(recipe, set_ or [])
    with Progress(quiet=quiet) as progress:
        found = check(checked.data, seed=checked.seed, masks=checked.masked, least=checked.least_size, progress=progress)
    if as_json:
        print_json(asdict(found))
    else:
        print_data_report(found)
    fatal = [problem for problem in found.problems if problem.fatal]
    if whole := [problem.kind for problem in fatal if not problem.file]:
        raise DataError(f"training would refuse to start: {', '.join(whole)}. What stands above says how to go on.")
    if fatal and checked.data.on_bad == "refuse":
        raise DataError(f"training would refuse to start: {len(fatal)} bad images. Repair or remove them, or set data.on_bad: skip to leave them out by name.")


@recipes_app.command("ls")
def recipes_ls(as_json: AsJson = False) -> None:
    """The recipes that come with Pellucid, with their first line."""
    from pellucid.tables import table

    rows = [(name, path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")) for name, path in _recipes().items()]
    if as_json:
        print_json({"recipes": dict(rows)})
    else:
        print(table(["recipe", "command, hardware, time, expected number"], rows))


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="A name of `recipes ls`.")],
    to: Annotated[Path, typer.Argument(help="File or folder to copy to.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Copy a recipe (and the one that it extends) to change it."""
    source = _shipped(name)
    target = to / source.name if to.is_dir() else to
    parent = _extended(source)
    copies = [(source, target), *([(parent, target.parent / parent.name)] if parent else [])]
    texts = {copy: origin.read_text(encoding="utf-8") for origin, copy in copies}
    for copy, text in texts.items():
        if copy.exists() and (copy == target or copy.read_text(encoding="utf-8") != text):
            raise UsageError(f"{copy}: the file exists; choose another name")
    for copy, text in texts.items():
        copy.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"recipe": str(target)})
    else:
        print(target)


@recipes_app.command("schema")
def recipes_schema() -> None:
    """The JSON schema of a recipe, for editors."""
    from pellucid.recipe import json_schema

    print_json(json_schema())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine has: versions, devices, extras, caches."""
    from pellucid.doctor import examine

    findings = examine()
    if as_json:
        print_json({f.name: f.value for f in findings})
        return
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'lack'} {finding.name}: {finding.value}{'' if finding.ok or not finding.remedy else '  → ' + finding.remedy}")


def _recipes() -> dict[str, Path]:
    """{name: file} of the shipped recipes: beside the package when installed, at the top of a checkout otherwise."""
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise MissingError("the recipes that come with Pellucid are not installed. Install it again with pip.")


def _shipped(name: str) -> Path:
    from pellucid.errors import did_you_mean

    found = _recipes()
    if name not in found:
        raise UsageError(f"there is no recipe {name!r}.{did_you_mean(name, found)} `pellucid recipes ls` shows all.")
    return found[name]


def _extended(recipe: Path) -> Path | None:
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.startswith("extends:"):
            return recipe.parent / line.partition(":")[2].strip()
    return None


if __name__ == "__main__":
    entry()
