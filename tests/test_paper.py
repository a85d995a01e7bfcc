"""A report on paper: which browser prints, what is said without one, and that the pages hold what the report shows."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, needs_chromium
from fabricate import make_run
from fabricate_inside import make_findings
from pellucid import paper
from pellucid.errors import MissingError, PellucidError
from pellucid.paper import count_pages, find_browser, print_page
from pellucid.report import write_report
from pellucid.run import Run


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a browser."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(paper, "PLACES", ())


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_without_a_browser_the_way_to_one_and_by_hand_is_said(nowhere: None, pellucid: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no browser to print with: looked for chromium, .* on PATH\. Get one: apt-get install chromium, .*press Ctrl-P"):
        find_browser()
    run = make_run(tmp_path / "run")
    code, out, error = pellucid("report", run.path, "--pdf")
    assert (code, out) == (4, "")
    assert "PELLUCID_BROWSER" in error
    assert not run.report_file.exists()


def test_a_browser_that_is_named_is_the_one_that_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: None) -> None:
    named = program(tmp_path / "mine", "exit 0")
    assert find_browser(named) == named
    with pytest.raises(MissingError, match="no-such: expected a browser that can be started"):
        find_browser(tmp_path / "no-such")
    monkeypatch.setattr(paper, "PLACES", ("{NOT_SET_HERE}/chrome.exe", "{HERE}/mine"))
    monkeypatch.setenv("HERE", str(tmp_path))
    assert find_browser() == named


def test_a_browser_that_prints_nothing_is_an_error_with_its_last_word(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>page</p>")
    (tmp_path / "page.pdf").write_text("as before")
    for script, said in (("echo 'no display' >&2; exit 1", "wrote no file; its last word: no display"), ("for a; do case $a in --print-to-pdf=*) echo hello > \"${a#*=}\";; esac; done", "wrote no page")):  # fmt: skip
        with pytest.raises(PellucidError, match=said):
            print_page(tmp_path / "page.html", tmp_path / "page.pdf", browser=program(tmp_path / "browser", script))
    assert (tmp_path / "page.pdf").read_text() == "as before"


def test_a_browser_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>page</p>")
    browser = program(tmp_path / "browser", f"PATH=/usr/bin:/bin; sleep 60 & echo $! > {tmp_path / 'child'}; wait")
    with pytest.raises(PellucidError, match="did not finish printing within 0.5 seconds and was ended"):
        print_page(tmp_path / "page.html", tmp_path / "page.pdf", browser=browser, seconds=0.5)
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError):  # it is gone
        while Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < end, "what was killed still runs"
            time.sleep(0.01)


def test_pages_are_counted_in_plain_and_in_packed_objects() -> None:
    packed = zlib.compress(b"<</Type /Page /Parent 1 0 R>> <</Type/Pages>> <</Type /Page>>")
    assert count_pages(b"%PDF-1.5\n<</Type /Page\n/x 1>> <</Type /Pages>>\n%%EOF") == 1
    assert count_pages(b"%PDF-1.5\n<</Type /ObjStm>>\nstream\n" + packed + b"\nendstream\n%%EOF\n") == 2
    assert count_pages(b"<html>") == count_pages(b"") == count_pages(b"%PDF-1.5 <</Type /Page>> cut") == 0


def test_only_root_prints_without_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--no-sandbox" not in paper._options(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--no-sandbox" in paper._options(tmp_path)


@needs_chromium
def test_report_on_paper_has_the_still_pictures_of_what_moves_and_leaves_no_profile(pellucid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    make_findings(run.path / "inside")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    code, out, _ = pellucid("report", run.path, "--pdf", "--out", tmp_path / "handed-in.html")
    assert (code, out.split()) == (0, [str(tmp_path / "handed-in.html"), str(tmp_path / "handed-in.pdf")])
    assert 3 <= count_pages((tmp_path / "handed-in.pdf").read_bytes()) <= 40
    assert not list((tmp_path / "temporary").iterdir())


@needs_chromium
def test_print_shows_projections_and_hides_what_needs_a_screen(tmp_path: Path) -> None:
    from browser import Watched, chromium

    run = make_run(tmp_path / "run")
    make_findings(run.path / "inside")
    page_file = write_report(Run(run.path))
    with chromium() as browser:
        watched = Watched(browser, viewport={"width": 690, "height": 980})
        page = watched.open(page_file)
        page.emulate_media(media="print")
        shown = page.inner_text("body")
        wide = page.evaluate("[...document.querySelectorAll('table')].filter((t) => t.getBoundingClientRect().width > innerWidth).map((t) => t.className)")
        moving = page.evaluate("[...document.querySelectorAll('.moving, nav')].filter((e) => getComputedStyle(e).display !== 'none').length")
        watched.keep("report-print", full_page=True)
    assert "k-NN accuracy" in shown
    assert re.search("trustworthiness", shown)
    assert wide == []
    assert moving == 0
    assert watched.errors == []
    assert CHROMIUM is not None


def test_a_browser_by_its_path_is_the_one_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pellucid: Any) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "path").mkdir()
    mine, other = program(tmp_path / "here" / "x.sh", "echo mine; exit 1"), program(tmp_path / "path" / "x.sh", "echo other; exit 1")
    monkeypatch.chdir(tmp_path / "here")
    assert find_browser("x.sh") == mine
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert (find_browser("./x.sh"), find_browser("x.sh")) == (mine, other)
    run = make_run(tmp_path / "run")
    code, _, error = pellucid("report", run.path, "--pdf", "--browser", "./x.sh")
    assert code == 1
    assert f"{mine} was to print" in error


def test_a_process_that_outlives_the_browser_does_not_hold_the_command(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>page</p>")
    for ends in ("exit 0", "sleep 30"):
        started = time.monotonic()
        with pytest.raises(PellucidError, match="wrote no file|did not finish"):
            print_page(tmp_path / "page.html", tmp_path / "page.pdf", browser=program(tmp_path / "b", f"setsid sleep 8 &\n{ends}"), seconds=0.5)
        assert time.monotonic() - started < 5


def test_out_names_the_page_or_the_pdf_and_never_one_over_the_other(tmp_path: Path, pellucid: Any) -> None:
    run, script = make_run(tmp_path / "run"), "for a; do case $a in --print-to-pdf=*) printf '%%PDF-1.4 /Type /Page %%%%EOF' > \"${a#*=}\";; esac; done"
    browser = program(tmp_path / "browser", script)
    code, out, _ = pellucid("report", run.path, "--pdf", "--browser", browser, "--out", tmp_path / "new" / "c.pdf")
    assert (code, out.split()) == (0, [str(tmp_path / "new" / "c.html"), str(tmp_path / "new" / "c.pdf")])
    assert (tmp_path / "new" / "c.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "new" / "c.pdf").read_bytes().startswith(b"%PDF")
    code, _, error = pellucid("report", run.path, "--out", tmp_path / "d.pdf")
    assert (code, (tmp_path / "d.pdf").exists()) == (2, False)
    assert "d.pdf: the report is an HTML page; expected another ending, or --pdf" in error


def test_an_out_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, pellucid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("pellucid.report.write_report", lambda *_, **__: pytest.fail("the work was begun"))
    for command in (["report", run.path], ["figure", run.path, "curves"]):
        code, _, error = pellucid(*command, "--out", tmp_path / "file" / "below" / "a.svg")
        assert code == 2
        assert f"{tmp_path / 'file'}: expected a folder that can be written to, it is a file" in error
    code, _, error = pellucid("report", run.path, "--out", tmp_path)
    assert code == 2
    assert f"expected a file for the report, and {tmp_path} is a folder" in error
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert "it cannot be; --out names another place" in pellucid("report", run.path)[2]
