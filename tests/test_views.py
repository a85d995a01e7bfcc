"""What report and explorer share: numbers and arrays as JSON, one script out of the modules, and a page that fetches nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rjsmin

from browser import Watched, chromium, needs_chromium
from pellucid.errors import UsageError
from pellucid.report import page as reports
from pellucid.report import write_report
from pellucid.run import Measurement, Run, rounded
from pellucid.views import bundle, encoding, to_json
from pellucid.views.shorten import shorten, tokens

WEB = sorted(path.name for path in (Path(bundle.__file__).parent / "web").iterdir())


# ── the bundle ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_report_and_what_it_shares_with_the_explorer_have_at_most_60_kilobytes() -> None:
    style = len(bundle.style().encode())
    shared = len(bundle.minified(bundle.MODULES).encode()) + style
    report = len(bundle.script("report").encode()) + style
    assert shared < report <= bundle.MOST_BYTES, f"{shared} bytes of modules and style, {report} with the report's entry"


def test_every_module_is_in_the_bundle() -> None:
    assert {f"{name}.js" for name in (*bundle.MODULES, *bundle.ENTRIES)} | {"view.css"} == set(WEB)


@pytest.mark.parametrize("entry", bundle.ENTRIES)
def test_no_name_stands_twice_in_the_bundle_and_no_module_syntax_is_left(entry: str) -> None:
    script = bundle.joined((*bundle.MODULES, entry))
    names = re.findall(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", re.sub(r"(?m)^[ \t]+.*", "", script), re.MULTILINE)
    assert len(names) > 20
    assert not re.findall(r"^(?:import|export)\b", script, re.MULTILINE)


def test_an_import_over_several_lines_is_left_out_too() -> None:
    text = 'import {\n  h,\n  table,\n} from "./core.js";\nconst x = 1;\n'
    assert bundle._IMPORT.findall(text) == ["core"]
    assert bundle._IMPORT.sub("", text) == "const x = 1;\n"


def faults_of_templates(text: str) -> list[tuple[int, str]]:
    """(line, what is wrong) of a module's templates, which rjsmin reads as long as they are on one line and none is within another."""
    found, depth = [], 0
    for token in tokens(re.sub(r"(?m)(^|[ ])//.*$", "", text)):
        depth += (token.text == "${") - (token.text == "}" and token.within == "$")
        if token.text == "`" and depth:
            found.append((token.line, "a template within a template"))
        if token.within == "`" and "\n" in token.text:
            found.append((token.line, "a template over several lines"))
    return sorted(set(found))


def test_no_template_is_nested_or_longer_than_a_line() -> None:
    faults = {name: faults_of_templates(bundle.source(name)) for name in WEB if name.endswith(".js")}
    assert {name: found for name, found in faults.items() if found} == {}
    assert faults_of_templates("const a = 1;\nconst x = `${a ? `b ${a}` : 1}`;\nconst y = `a\nb`;\n") == [
        (2, "a template within a template"),
        (3, "a template over several lines"),
    ]


def test_modules_import_only_what_comes_before_them() -> None:
    for name in (*bundle.MODULES, *bundle.ENTRIES):
        text = bundle.source(f"{name}.js")
        assert len(re.findall(r"^import ", text, re.MULTILINE)) == len(bundle._IMPORT.findall(text)), f"{name}.js has an import that the bundler does not know"
        assert " as " not in "".join(re.findall(r"^import .*", text, re.MULTILINE)), f"{name}.js renames what it imports"


def test_unknown_entry_is_named() -> None:
    with pytest.raises(UsageError, match="expected one of report, explore, got 'x'"):
        bundle.script("x")


@pytest.mark.parametrize("name", [name for name in WEB if name.endswith(".js")])
def test_scripts_never_write_markup_and_only_the_explorer_asks_a_server(name: str) -> None:
    text = bundle.source(name)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|XMLHttpRequest|WebSocket|sendBeacon|importScripts", text
    )
    assert name == "explore.js" or not re.search(r"\bfetch\(", text)


# ── short names ──


def test_tokens_together_are_the_script() -> None:
    for entry in bundle.ENTRIES:
        script = rjsmin.jsmin(bundle.joined((*bundle.MODULES, entry)))
        assert "".join(token.text for token in tokens(script)) == script


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("const width=1;f(width);", "let a=1;f(a);"),
        ("const width=1;box.width=width;", "let width=1;box.width=width;"),
        ("const width=1;f({width});", "let width=1;f({width});"),
        ("const width=1;f({high:width});", "let a=1;f({high:a});"),
        ("const width=1;f({width:2},width);", "let width=1;f({width:2},width);"),
        ("let width;const f=(x)=>{width=x};", "let a,f=(x)=>{a=x};"),
        ("let width;const f=({width=1})=>width;", "let width,f=({width=1})=>width;"),
        ("const data=1;f(`data-${data} (${data})`);", "let a=1;f(`data-${a} (${a})`);"),
        ('const data=1;f("data",data);', 'let a=1;f("data",a);'),
        ("const data=1;f('[data=\"x\"]',data);", "let a=1;f('[data=\"x\"]',a);"),
        ("function read(event){document(event);}", "function b(a){document(a)}"),
        ("const a=1;const width=a;", "let a=1,b=a;"),
        ("const items=[1,[2,],];", "let a=[1,[2]];"),
        ("const items=[,];const text=/;}[,)]/;", "let a=[,],b=/;}[,)]/;"),
        ("const a=1;const[b,c]=f(a);g();const d=2;", "let a=1,[b,c]=f(a);g();let d=2;"),
        ("const f=()=>{const x=1;const y=x;return y}\nconst g=`${f(1)};const x=`;", "let f=()=>{let x=1,y=x;return y},g=`${f(1)};const x=`;"),
        ("const a=1\nf();const b=2;", "let a=1\nf();let b=2;"),
        ("for(const x of y){const z=x;h(z)}let q=1;", "for(let x of y){let z=x;h(z)}let q=1;"),
    ],
)
def test_names_of_the_page_get_short_and_declarations_are_joined(script: str, expected: str) -> None:
    assert shorten(script) == expected


# ── the data format ──────────────────────────────────────────────────────────────────────────────────────────────


def test_data_cannot_end_its_script_element() -> None:
    text = to_json({"label": "</script><script>alert(1)</script><!--"})
    assert "<" not in text
    assert json.loads(text) == {"label": "</script><script>alert(1)</script><!--"}


def test_a_bare_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"value": float("nan")})


def test_array_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="expected one of uint8, .*got float64"):
        encoding.array(np.zeros(3))


def test_number_carries_its_texts_and_how_it_was_computed() -> None:
    found = encoding.number(Measurement("accuracy", 0.93216, "fraction", "val", 1234, 1, "right among all", (0.9, 0.95), "Wilson"))
    assert found == {
        "name": "accuracy", "text": "0.9322", "interval": "0.9000 – 0.9500", "unit": "fraction", "split": "val", "n": "1,234",
        "how": "right among all; Wilson", "value": 0.93216,
    }  # fmt: skip
    assert encoding.number(None) is None
    assert encoding.number(Measurement("x", float("nan"), "fraction", "val", 0, 1, "0/0"))["value"] is None  # type: ignore[index]


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────

CORE = "rounded, unpack, INFERNO, VIRIDIS, h"


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of playwright with the functions of core.js as window.core."""
    script = re.sub(r"(?m)^export ", "", bundle.source("core.js"))
    file = tmp_path_factory.mktemp("core") / "core.html"
    file.write_text(f'<!doctype html><title>core</title><script type="module">{script}\nwindow.core = {{ {CORE} }};</script>', encoding="utf-8")
    with chromium() as browser:
        watched = Watched(browser)
        page = watched.open(file)
        page.wait_for_function("window.core")
        yield page
        assert not watched.errors


@needs_chromium
@pytest.mark.parametrize("dtype", encoding.DTYPES)
def test_arrays_arrive_in_the_page_as_they_were(core: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 200, (3, 5, 7)).astype(dtype), np.zeros((40, 50), dtype), np.array([], dtype)):
        sent = encoding.array(values)
        assert sent.get("deflate", False) or values.any() or not values.size
        found = core.evaluate("async (sent) => { const a = await core.unpack(sent); return [a.constructor.name, a.shape, [...a]]; }", sent)
        kind = {"float32": "Float32Array"}.get(dtype, f"{'Ui' if dtype[0] == 'u' else 'I'}nt{dtype[-2:] if dtype[-1] != '8' else '8'}Array")
        assert found == [kind, list(values.shape), values.ravel().tolist()]


@needs_chromium
def test_page_rounds_as_pellucid_does(core: Any) -> None:
    rng = np.random.default_rng(1)
    values = [0.0, 1.0, 0.00004, 12.3456, 99.94, 100.4, 1234567.4, *(rng.random(200) * 10.0 ** rng.integers(-6, 7, 200)).tolist()]
    for unit in ("fraction", "nats", "count", "seconds", "rate"):
        found = core.evaluate("([values, unit]) => values.map((value) => core.rounded(value, unit))", [values, unit])
        assert found == [rounded(value, unit) for value in values], unit
    assert core.evaluate("() => [core.rounded(null), core.rounded(NaN)]") == ["n/a", "n/a"]


@needs_chromium
@pytest.mark.parametrize("name", ["inferno", "viridis"])
def test_colours_of_maps_are_those_of_the_figures(core: Any, name: str) -> None:
    import matplotlib

    found = np.array(core.evaluate(f"() => [...core.{name.upper()}]"), np.float64).reshape(256, 3)
    assert np.abs(found - 255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).max() <= 7


@needs_chromium
def test_text_goes_into_the_page_as_text(core: Any) -> None:
    assert core.evaluate("() => core.h('p', {}, '<script>alert(1)</script>').innerHTML") == "&lt;script&gt;alert(1)&lt;/script&gt;"


# ── the size of a report ─────────────────────────────────────────────────────────────────────────────────────────


def test_report_that_would_be_too_large_says_so_and_writes_nothing(copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match=r"the report would have 0\.\d MB, and a report has at most 0 MB\. --max-points 500 asks for fewer"):
        write_report(Run(copied_run), out=tmp_path / "page.html", max_points=1000)
    assert not (tmp_path / "page.html").exists()


def test_report_lets_nothing_run_but_its_own_script(copied_run: Path) -> None:
    page = reports.render(Run(copied_run))
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert ([f"script-src {bundle.integrity(script)}" in policy[1] for script in scripts] or [True]) == [True]
