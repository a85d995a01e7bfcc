"""The house stands as its design draws it: imports go down only, reading a run needs no torch, the public names are there."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pellucid

ROOT = Path(pellucid.__file__).parent

# Top to bottom. A module may import from its own layer and from those below; everything has a place here.
LAYERS = (
    {"cli", "printing", "__main__"},
    {
        "report",
        "paper",
        "paper_asked",
        "paper_figures",
        "paper_galleries",
        "paper_runs",
        "kept",
        "views",
        "explore",
        "verify",
        "verify_inside",
        "verify_masks",
        "verify_mask_findings",
        "verify_pictures",
        "verify_features",
        "verify_numbers",
        "verify_captions",
        "verify_caption_numbers",
        "verify_caption_texts",
        "verify_word_maps",
        "verify_word_scores",
        "verify_words",
        "frozen",
        "compare",
        "paired_runs",
        "study",
        "study_table",
        "study_workers",
        "train",
        "loop",
        "step",
        "trial",
        "prepare",
        "results",
        "snapshots",
        "mask_snapshots",
        "training_bank",
        "plan",
        "evaluate",
        "mask_folders",
        "subjects",
        "look",
        "look_words",
        "doctor",
    },
    {"tasks"},
    {
        "inside",
        "data",
        "checkpoint",
        "optim",
        "figures",
        "export",
        "readings",
        "intervals",
        "progress",
        "tables",
        "run",
        "run_records",
        "study_record",
        "findings",
        "attention_findings",
        "neighbour_findings",
        "atlas",
        "word_findings",
        "caption_scores",
        "porter",
        "caption_readings",
        "mask_findings",
        "overlap",
        "predictions",
        "records",
        "representation",
        "cached",
        "study_readings",
        "memory",
    },
    {"models", "losses", "pixel_losses", "view_losses", "recipe", "schema", "study_file"},
    {"errors", "runtime", "distributed", "files", "palettes", "openmp"},
)
READERS = {  # of runs; they never train
    "verify",
    "verify_inside",
    "verify_masks",
    "verify_mask_findings",
    "verify_pictures",
    "verify_features",
    "verify_numbers",
    "verify_captions",
    "verify_caption_numbers",
    "verify_caption_texts",
    "verify_word_maps",
    "verify_word_scores",
    "verify_words",
    "report",
    "paper",
    "paper_asked",
    "paper_figures",
    "paper_galleries",
    "paper_runs",
    "kept",
    "views",
    "compare",
    "explore",
    "paired_runs",
    "study_readings",
    "study_record",
    "study_table",
}
LOOP = {"train", "loop", "frozen", "step", "trial", "prepare", "results", "snapshots", "mask_snapshots", "training_bank"}


def module_name(file: Path) -> str:
    """`data.loader` for data/loader.py, `data` for data/__init__.py, "" for the package itself."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in ROOT.rglob("*.py")}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: not the bodies of functions, nor what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from at_import(child)


def imports(statements: Iterator[ast.AST]) -> set[str]:
    """The modules of the package that statements import, without `pellucid.`; "" for the package itself."""
    found = set()
    for node in statements:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}".removeprefix("pellucid.") in FILES else str(node.module) for alias in node.names
            ]
        found |= {name.removeprefix("pellucid").removeprefix(".") for name in names if name.split(".")[0] == "pellucid"}
    return found


def layer(module: str) -> int:
    """Number of a module's layer, from the top."""
    head = module.split(".")[0]
    found = [i for i, names in enumerate(LAYERS) if head in names]
    assert found, f"{module} has no place in LAYERS"
    return found[0]


def test_every_module_has_a_place_in_the_house() -> None:
    placed = set().union(*LAYERS)
    assert {name.split(".")[0] for name in FILES if name} <= placed
    assert sum(len(names) for names in LAYERS) == len(placed)


@pytest.mark.parametrize("module", sorted(name for name in FILES if name))
def test_imports_go_down_only(module: str) -> None:
    up = {other for other in imports(at_import(TREES[module])) if other and layer(other) < layer(module)}
    assert not up, f"{module} imports from above: {', '.join(sorted(up))}"


def test_the_reader_of_imports_sees_them() -> None:
    tree = ast.parse("import pellucid.train\nfrom pellucid import recipe as r\nfrom pellucid.data.loader import Reader\ndef f():\n    import pellucid.cli\n")
    assert imports(at_import(tree)) == {"train", "recipe", "data.loader"}
    assert imports(ast.walk(tree)) == {"train", "recipe", "data.loader", "cli"}
    assert layer("cli") < layer("train") < layer("tasks") < layer("data.loader") < layer("models.weights") < layer("errors")


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.split(".")[0] in READERS))
def test_readers_of_runs_never_import_the_loop(module: str) -> None:
    assert LOOP.isdisjoint(imports(ast.walk(TREES[module])))


@pytest.mark.parametrize("module", sorted(name for name in FILES if name.split(".")[0] in ("models", "losses", "pixel_losses", "view_losses")))
def test_models_and_losses_can_be_lifted_out(module: str) -> None:
    known = {name.split(".")[0] for name in imports(ast.walk(TREES[module]))}
    assert known <= {"models", "losses", "pixel_losses", "view_losses", "errors", "files", "distributed"}  # the last stands on errors alone


def test_only_the_run_reaches_up_and_only_when_asked() -> None:
    """`run.predict(...)` and `run.report()` are for people; the imports stand inside those methods."""
    reaching = {
        name: sorted(other for other in imports(ast.walk(tree)) if other and layer(other) < layer(name))
        for name, tree in TREES.items()
        if name and any(other and layer(other) < layer(name) for other in imports(ast.walk(tree)))
    }
    assert reaching == {"run": ["report", "tasks"]}


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "recipe",
        "run",
        "predictions",
        "palettes",
        "findings",
        "attention_findings",
        "neighbour_findings",
        "atlas",
        "mask_findings",
        "overlap",
        "report",
        "compare",
        "intervals",
        "readings",
        "study_record",
        "study_table",
    ],
)
def test_reading_needs_no_torch(module: str) -> None:
    script = (
        f"import sys, pellucid.{module}; print(sorted({{name.split('.')[0] for name in sys.modules}} & {{'torch', 'timm', 'torchvision', 'torchmetrics'}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_exist_and_are_documented() -> None:
    assert sorted(pellucid.__all__) == pellucid.__all__
    assert set(pellucid.__all__) == {
        "Measurement",
        "Recipe",
        "Run",
        "__version__",
        "compare",
        "inside",
        "load_recipe",
        "resume",
        "train",
        "train_seeds",
        "verify",
    }
    for name in pellucid.__all__:
        found = getattr(pellucid, name)
        assert isinstance(found, str) or found.__doc__, name
    with pytest.raises(AttributeError, match="module 'pellucid' has no attribute 'trian'"):
        _ = pellucid.trian


def test_names_that_are_functions_and_modules_stay_functions() -> None:
    for name in ("train", "compare", "verify"):
        module = importlib.import_module(f"pellucid.{name}")
        assert getattr(pellucid, name) is getattr(module, name)
        assert sys.modules[f"pellucid.{name}"] is module is not getattr(pellucid, name)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert pellucid.__version__ == importlib.metadata.version("pellucid")
