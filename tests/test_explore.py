"""The explorer: what it answers about runs, also about those that grow, break or vanish, and the page in a browser."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from browser import Watched, chromium, needs_chromium
from explored import Client, serving
from fabricate import make_run
from fabricate_inside import make_findings
from fabricate_segmentation import keep_masks, make_segmentation
from pellucid.errors import RunError
from pellucid.explore import server
from pellucid.explore.live import SOURCES, Shelf
from pellucid.run import Run
from pellucid.study_record import SettingRecord, StudyFolder, StudyRecord
from pellucid.views import EXPLORER, views


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / name, n=60, seed=seed, thumbnails=4).path for name, seed in (("one", 1), ("two", 2))]


@pytest.fixture(scope="module")
def client(two: list[Path]) -> Iterator[Client]:
    with serving(*two) as found:
        yield found


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


# ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_command_prints_its_address_last_answers_without_torch_and_ends_with_130(two: list[Path]) -> None:
    script = (
        "import sys, threading, time, urllib.request\nfrom pellucid.cli import main\nfrom pellucid.explore import server\n"
        "def asked(self):\n"
        "    def ask():\n"
        "        for path in ('/', '/api/runs', '/api/runs/0/views/overview', '/api/offline'):\n"
        "            request = urllib.request.Request(self.address.partition('/?')[0] + path, headers={'Cookie': f'{self.guard.cookie}={self.guard.token}'})\n"
        "            urllib.request.urlopen(request).read()\n"
        "        print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'timm', 'torchvision'}), file=sys.stderr, flush=True)\n"
        "    threading.Thread(target=ask, daemon=True).start()\n"
        "    serve(self)\n"
        "serve, server.Explorer.serve = server.Explorer.serve, asked\n"
        f"sys.exit(main(['explore', {str(two[0])!r}, '--no-browser']))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert "/?token=" in address
        lines = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)
    assert lines == ["note: reads these runs and writes nothing in them; Ctrl-C ends it\n", "[]\n"]
    assert (process.returncode, *rest) == (130, "", "")


def test_starting_takes_less_than_a_second_of_work(two: list[Path]) -> None:
    script = f"import time; begun = time.process_time(); from pellucid.explore.server import Explorer; Explorer([{str(two[0])!r}]); print(time.process_time() - begun)"
    assert float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout) < 1.0


def test_what_is_no_run_is_named(pellucid: Any, tmp_path: Path) -> None:
    code, out, error = pellucid("explore", tmp_path / "nothing", "--no-browser")
    assert (code, out) == (2, "")
    assert "nothing: expected a run folder (one with run.json in it). `pellucid train RECIPE` makes one." in error
    (tmp_path / "recipe.yaml").write_text("task: classification\n")
    file = "recipe.yaml: expected a run folder (one with run.json in it), got a file. `pellucid train RECIPE` makes one."
    assert file in pellucid("explore", tmp_path / "recipe.yaml", "--no-browser")[2]
    for name in ("b", "a", "d", "c"):
        make_run(tmp_path / "runs" / name, n=20)
    inner = ", ".join(str(tmp_path / "runs" / name) for name in "abc")
    for command in ("explore", "report"):
        said = pellucid(command, tmp_path / "runs")[2]
        assert f"{tmp_path / 'runs'}: expected a run folder (one with run.json in it). The runs in it are {inner} and 1 more: name one of them" in said
    (tmp_path / "seeds.json").write_text('{"runs": ["seed-1"]}')
    with pytest.raises(RunError, match="none of its runs was begun"):
        Shelf([tmp_path])


def test_another_host_is_said_with_what_it_means(pellucid: Any, two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.Explorer, "serve", lambda self: self.socket.close())
    code, out, error = pellucid("explore", two[0], "--host", "0.0.0.0", "--no-browser")
    assert code == 0
    assert "whoever can reach this machine and has the address with its token sees these runs" in error
    assert "the connection is not encrypted" in error
    assert "note: --host" not in pellucid("explore", two[0], "--no-browser")[2]
    assert out.startswith("http://")


# ── what it answers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_listed_with_state_number_and_views(client: Client) -> None:
    one, two = client.json("/api/runs")["runs"]
    assert [(r["id"], r["name"], r["task"], r["status"], r["epoch"], r["epochs"]) for r in (one, two)] == [
        (0, "one", "classification", "done", 6, 6), (1, "two", "classification", "done", 6, 6),
    ]  # fmt: skip
    assert one["views"] == ["overview", "mistakes"]
    assert one["headline"]["name"] == "accuracy"
    assert len(one["headline"]["text"]) == 6


def test_every_view_of_the_pages_has_its_source() -> None:
    assert set(views()) - {"curves"} == set(SOURCES)


def test_views_are_those_of_their_builders_and_runs_are_not_written(client: Client, two: list[Path]) -> None:
    before = [state_of(path) for path in two]
    for name, build in views().items():
        assert client.json(f"/api/runs/1/views/{name}")["view"] == json.loads(json.dumps(build(Run(two[1]), EXPLORER))), name
    assert client.json("/api/compare?runs=0,1")["view"] == client.json("/api/compare")["view"]
    assert [state_of(path) for path in two] == before


def test_a_view_without_anything_to_show_is_not_offered_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20)
    (run.inside).mkdir()
    (run.inside / "words.json").symlink_to(run.path / "run.json")  # there, but no words
    shelf = Shelf([run.path])
    assert "words" in shelf.listed()[0]["views"]
    with pytest.raises(RunError):
        shelf.view("0", "words")
    (run.inside / "words.json").unlink()
    assert shelf.view("0", "words").startswith(b'{"view":null')
    assert shelf.listed()[0]["views"] == ["overview", "mistakes"]


def test_runs_of_a_folder_of_seeds_appear_as_they_are_begun(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text('{"runs": ["seed-1", "seed-2", "../elsewhere"]}')
    make_run(tmp_path / "seed-1", n=20)
    shelf = Shelf([tmp_path])
    assert [entry["name"] for entry in shelf.listed()] == ["seed-1"]
    make_run(tmp_path / "seed-2", n=20, seed=2)
    make_run(tmp_path.parent / "elsewhere", n=20)
    assert [entry["name"] for entry in shelf.listed()] == ["seed-1", "seed-2"]


def test_runs_of_a_study_are_those_that_were_begun(tmp_path: Path) -> None:
    settings = [SettingRecord(name, name) for name in ("small", "large")]
    record = StudyRecord("0.1.0", "sizes", "recipe.yaml", "val/accuracy", [1, 2], settings, "small")
    study = StudyFolder.create(tmp_path / "study", record, "")
    for name, seed in (("small", 1), ("large", 1), ("large", 2)):
        make_run(study.run_folder(name, seed), n=20, seed=seed)
    assert [entry["name"] for entry in Shelf([study.path]).listed()] == ["small/seed-1", "large/seed-1", "seed-2"]


def test_damage_is_said_for_its_run_alone(two: list[Path], tmp_path: Path) -> None:
    broken = shutil.copytree(two[0], tmp_path / "broken")
    with serving(broken, two[1]) as client:
        whole = (broken / "run.json").read_text()
        (broken / "run.json").write_text(whole[: len(whole) // 2])
        first, second = client.json("/api/runs")["runs"]
        assert (first["status"], second["status"]) == ("unreadable", "done")
        assert "run.json: not readable as JSON of a run" in first["error"]
        assert client.get("/api/runs/0/views/overview").status == 422
        (broken / "run.json").write_text(whole)
        (broken / "predictions" / "val.npz").write_bytes(b"torn")
        answer = client.get("/api/runs/0/views/mistakes")
        assert (answer.status, "val.npz: cannot be read as predictions" in answer.json["error"]) == (422, True)
        shutil.rmtree(broken)
        assert client.json("/api/runs")["runs"][0]["error"] == f"{broken}: the run folder is gone; it was moved or deleted."
        assert "Was it moved or deleted?" in client.get("/api/runs/0/views/overview").json["error"]
        assert client.get("/api/runs/1/views/overview").status == 200


def test_a_fault_of_ours_is_said_and_ends_nothing(two: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pellucid.views import overview

    def broken(run: Run, room: Any) -> None:
        raise ValueError("expected this")

    with serving(two[0]) as client:
        monkeypatch.setattr(overview, "build", broken)
        answer = client.get("/api/runs/0/views/overview")
        assert answer.status == 500
        assert answer.json["error"].startswith("Pellucid failed here: ValueError: expected this. The terminal shows where.")
        monkeypatch.undo()
        assert client.get("/api/runs/0/views/overview").status == 200
    assert "Traceback" in capsys.readouterr().err


def test_a_view_is_made_once_and_anew_when_its_files_change(two: list[Path], tmp_path: Path) -> None:
    run = Run(shutil.copytree(two[0], tmp_path / "run"))
    shelf = Shelf([run.path])
    overview, mistakes = shelf.view("0", "overview"), shelf.view("0", "mistakes")
    assert shelf.view("0", "overview") is overview
    entry = shelf.listed()[0]
    run.append_metrics([{"kind": "val", "epoch": 7, "step": 28, "loss": 0.5, "accuracy": 0.5, "seconds": 0.2}])
    after = shelf.listed()[0]
    assert (after["version"] != entry["version"], after["kept"] == entry["kept"]) == (True, True)
    assert shelf.view("0", "overview") is not overview
    assert shelf.view("0", "mistakes") is mistakes


# ── a new picture ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.random.default_rng(3).integers(0, 255, (50, 70, 3), np.uint8)).save(path)
    return path


def test_a_picture_gets_the_model_s_own_answer_and_the_run_is_not_written(copied_run: Path, photo: Path) -> None:
    run, before = Run(copied_run), state_of(copied_run)
    (said,) = run.predict([photo])
    with serving(copied_run) as client:
        found = client.post("/api/runs/0/look", photo.read_bytes()).json
        assert found["lines"][0].startswith(f"It says {said.label} {said.confidence:.4f}; then ")
        headline = next(iter(run.measurements.values()))
        assert f"{headline.name} on {headline.split} is {headline}" in found["lines"][-1]
        again = client.post("/api/runs/0/look", photo.read_bytes()).json
    assert again == found
    assert all(view["title"] for view in found["views"].values())
    assert state_of(copied_run) == before


def test_one_picture_at_a_time(two: list[Path], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slowly(self: Any, run: Run, picture: bytes, ending: str) -> bytes:
        begun.set()
        assert may_end.wait(20)
        return b'{"lines": [], "views": {}, "near": null}'

    monkeypatch.setattr(server.Desk, "_asked", slowly)
    with serving(two[0]) as client:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/api/runs/0/look", photo.read_bytes()).status))
        thread.start()
        assert begun.wait(20)
        second = client.post("/api/runs/0/look", photo.read_bytes())
        assert (second.status, second.json["error"]) == (409, "Another picture is being looked at: busy. Send this one again in a moment.")
        assert client.get("/api/runs").status == 200
        may_end.set()
        thread.join()
        assert first == [200]
        assert client.post("/api/runs/0/look", photo.read_bytes()).status == 200


def test_a_run_without_weights_says_so(two: list[Path], photo: Path) -> None:
    with serving(two[0]) as client:
        answer = client.post("/api/runs/0/look", photo.read_bytes())
        assert answer.status == 404
        assert "the run has no final weights. Is it finished?" in answer.json["error"]


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def opened(browser: Any, client: Client, **options: Any) -> tuple[Watched, Any]:
    watched = Watched(browser, **options)
    page = watched.open(client.guard.address)
    page.locator("main:not([aria-busy]) h2").first.wait_for()
    return watched, page


SOON = "((later) => { window.setTimeout = (call, wait, ...rest) => later(call, Math.min(wait, 50), ...rest); })(window.setTimeout)"
# Counts what is written into the head of the page from now on.
WRITTEN = """window.written = 0; new MutationObserver((all) => { window.written += all.length; })
    .observe(document.getElementById("head"), { subtree: true, childList: true, characterData: true, attributes: true })"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with what was found inside."""
    run = make_run(tmp_path_factory.mktemp("full") / "full", n=60, thumbnails=4)
    make_findings(run.path / "inside")
    return run.path


def drop(page: Any, where: str = "main") -> None:
    """Let go of a picture over the page."""
    script = "() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'x.png', { type: 'image/png' })); return data; }"
    page.dispatch_event(where, "drop", {"dataTransfer": page.evaluate_handle(script)})


@needs_chromium
@pytest.mark.browser
def test_views_are_tabs_with_addresses_and_back_works(browser: Any, client: Client) -> None:
    watched, page = opened(browser, client)
    assert client.guard.token not in page.url
    assert page.locator("nav a[aria-current=page]").inner_text() == "Overview"
    page.get_by_role("link", name="Mistakes").press("Enter")
    page.locator("main:not([aria-busy]) h2:focus").wait_for()
    assert page.title() == "Mistakes · one · Pellucid"
    page.get_by_label("Run", exact=True).select_option(index=1)
    page.get_by_role("heading", name="two", level=1).wait_for()
    assert page.url.endswith("#/1/mistakes")
    page.go_back()
    page.get_by_role("heading", name="one", level=1).wait_for()
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("heading", name="Runs side by side").wait_for()
    page.locator("main:not([aria-busy]) h2").wait_for()
    watched.keep("explore-compare")
    page.reload()
    page.get_by_role("heading", name="Runs side by side").wait_for()
    assert not watched.errors
    assert all(request.startswith(f"http://127.0.0.1:{client.port}/") for request in watched.requests)


@needs_chromium
@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window_in_dark_too(browser: Any, client: Client, width: int) -> None:
    watched, page = opened(browser, client, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    watched.keep(f"explore-dark-{width}")
    assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_a_saved_view_opens_without_the_server_and_shows_a_still_picture_on_paper(browser: Any, client: Client, tmp_path: Path) -> None:
    _, page = opened(browser, client)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this view").click()
    assert download.value.suggested_filename == "one-overview.html"
    download.value.save_as(tmp_path / "saved.html")
    watched = Watched(browser)
    saved = watched.open(tmp_path / "saved.html", "overview")
    assert saved.title() == "Overview of one"
    assert saved.locator(".moving canvas").first.is_visible()
    saved.emulate_media(media="print")
    assert not saved.locator(".moving").first.is_visible()
    assert saved.locator(".still img").first.is_visible()
    assert (watched.errors, len(watched.requests)) == ([], 1)


@needs_chromium
@pytest.mark.browser
def test_hostile_names_are_text_in_the_page_and_in_what_is_saved(browser: Any, tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>"
    run = make_run(tmp_path / "<b>bold<b>", classes=["<script>alert(1)</script>", name, "\u202egnp.exe"], n=40, file="{split}/{i:05d}.jpg")
    with serving(run.path) as client:
        watched, page = opened(browser, client)
        page.on("dialog", lambda dialog: pytest.fail("a script of a label ran"))
        assert page.get_by_role("heading", level=1).inner_text() == "<b>bold<b>"
        page.get_by_role("link", name="Mistakes").click()
        page.locator("main:not([aria-busy])").get_by_text("<script>alert(1)</script>").first.wait_for(state="attached")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save this view").first.click()
        download.value.save_as(tmp_path / "saved.html")
        saved = Watched(browser)
        saved.open(tmp_path / "saved.html", "mistakes")
        assert (watched.errors, saved.errors, len(saved.requests)) == ([], [], 1)


@needs_chromium
@pytest.mark.browser
def test_a_picture_is_added_and_shown_while_the_page_can_be_used(browser: Any, two: list[Path], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def slowly(self: Any, run: Run, picture: bytes, ending: str) -> bytes:
        assert may_end.wait(20)
        return b'{"lines": ["It says cat 0.9000."], "views": {}, "near": null}'

    monkeypatch.setattr(server.Desk, "_asked", slowly)
    with serving(two[0]) as client:
        watched, page = opened(browser, client)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add a picture…").press("Enter")
        chooser.value.set_files(photo)
        page.get_by_text("Torch and the model are loaded first").wait_for()
        may_end.set()
        page.get_by_role("heading", name="Your picture").wait_for()
        assert page.locator(".answer").inner_text() == "It says cat 0.9000."
        assert page.url.endswith("#/0/picture")
        assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_an_explorer_that_was_ended_is_said(browser: Any, two: list[Path]) -> None:
    with serving(two[0]) as client:
        _, page = opened(browser, client)
    page.get_by_role("link", name="Mistakes").click()
    page.get_by_text("The explorer does not answer. Start `pellucid explore` again").first.wait_for()
    assert page.get_by_role("alert").count() >= 1
    assert "undefined" not in page.locator("body").inner_text()


@needs_chromium
@pytest.mark.browser
def test_skipping_to_the_content_keeps_run_and_address(browser: Any, client: Client) -> None:
    watched = Watched(browser)
    watched.page.add_init_script(SOON)
    page = watched.open(client.guard.address)
    page.get_by_label("Run", exact=True).select_option(index=1)
    page.get_by_role("heading", name="two", level=1).wait_for()
    page.locator("main:not([aria-busy]) h2").wait_for()
    page.locator(".skip").press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.url.endswith("#/1/overview")
    page.evaluate("location.hash = '#elsewhere'")
    for _ in range(2):  # by the second the first was shown
        with page.expect_response("**/api/runs"):
            pass
    assert page.get_by_role("heading", level=1).inner_text() == "two"
    assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_the_list_of_runs_keeps_the_focus_while_runs_are_chosen_and_change(browser: Any, two: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "growing", status="running")
    with serving(two[0], run.path) as client:
        watched, page = opened(browser, client)
        runs = page.get_by_label("Run", exact=True)
        runs.focus()
        runs.evaluate("(list) => { window.list = list; }")
        runs.press("ArrowDown")
        page.get_by_role("heading", name="growing", level=1).wait_for()
        page.locator("main:not([aria-busy]) h2").wait_for()
        record = run.record
        record.status = "failed"
        run.write_record(record)
        page.locator("option", has_text="growing (failed)").wait_for(state="attached", timeout=10_000)
        assert page.evaluate("document.activeElement === window.list && list.selectedIndex === 1 && list.querySelectorAll('option:enabled').length === 2")
        runs.press("ArrowUp")
        page.get_by_role("heading", name="one", level=1).wait_for()
        assert page.evaluate("document.activeElement === window.list")
        assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_one_run_alone_is_no_choice(browser: Any, full: Path) -> None:
    with serving(full) as client:
        _, page = opened(browser, client)
        assert page.locator("#head select").count() == 1
        assert not page.locator("#head select").is_visible()


@needs_chromium
@pytest.mark.browser
def test_a_picture_for_all_runs_is_refused_with_a_word(browser: Any, client: Client) -> None:
    watched, page = opened(browser, client)
    page.get_by_role("link", name="Compare").click()
    page.locator("main:not([aria-busy]) .rows").wait_for()
    drop(page)
    page.get_by_text("A picture is shown to one run: choose one in the list, then add the picture.").wait_for()
    assert not [request for request in watched.requests if request.endswith("/look")]
    assert not watched.errors


@needs_chromium
@pytest.mark.browser
def test_a_lost_server_is_said_once_until_it_is_back(browser: Any, client: Client) -> None:
    watched = Watched(browser)
    watched.page.add_init_script(SOON)
    page = watched.open(client.guard.address)
    page.locator("main:not([aria-busy]) section").wait_for()
    page.route("**/api/runs", lambda route: route.abort())
    said = page.locator("#head").get_by_text("The explorer does not answer.")
    said.wait_for()
    page.evaluate(WRITTEN)
    for _ in range(3):
        with page.expect_event("requestfailed"):
            pass
    assert page.evaluate("window.written") == 0
    page.unroute("**/api/runs")
    said.wait_for(state="detached")


@needs_chromium
@pytest.mark.browser
def test_a_fault_of_the_page_is_said_in_plain_words_and_traced_in_the_console(browser: Any, client: Client) -> None:
    watched, page = opened(browser, client)
    page.route("**/views/mistakes", lambda route: route.fulfill(json={"view": {"title": "Mistakes"}}))
    page.get_by_role("link", name="Mistakes").click()
    page.get_by_text("This page failed here, which is a fault of Pellucid").wait_for()
    assert len(watched.errors) == 1
    assert "TypeError" in watched.errors[0]


@needs_chromium
@pytest.mark.browser
def test_no_view_of_any_run_shows_a_fault(browser: Any, two: list[Path], full: Path, tmp_path: Path) -> None:
    masks = make_segmentation(tmp_path / "masks", n=4)
    keep_masks(masks.inside)
    with serving(*two, full, masks.path) as client:
        watched, page = opened(browser, client)
        shown = [f"#/{run['id']}/{view}" for run in client.json("/api/runs")["runs"] for view in run["views"]] + ["#/compare"]
        assert {"#/2/features", "#/2/attention", "#/2/positions", "#/3/masks"} < set(shown)
        for at in shown:
            page.evaluate("(at) => { document.querySelector('main').replaceChildren(); location.hash = at; }", at)
            page.locator("main:not([aria-busy]) h2").first.wait_for()
            assert page.locator(".fault:visible").count() == 0, at
            assert ("mIoU" in page.locator(".state").inner_text()) == at.startswith("#/3/")
        assert not watched.errors


@needs_chromium
@pytest.mark.browser
@pytest.mark.parametrize(
    ("view", "said", "never"),
    [
        ("features", ["Plane: ", "Epoch: epoch ", "cat", "owl"], ["Arrow keys", "Clear", "Zoom", "Point at"]),
        ("attention", ["Method: ", "Means over all pictures"], ["arrow keys"]),
        ("positions", ["All maps, each at its own place", "cosine"], []),
        ("mistakes", ["Rows are labels, columns predictions.", "cat\t14\t0\t0"], ["Press", "Close"]),
    ],
)
def test_a_still_picture_says_where_its_controls_stood(browser: Any, full: Path, tmp_path: Path, view: str, said: list[str], never: list[str]) -> None:
    with serving(full) as client:
        watched, page = opened(browser, client)
        page.evaluate("(view) => { document.querySelector('main').replaceChildren(); location.hash = `#/0/${view}`; }", view)
        page.locator("main:not([aria-busy]) h2").first.wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save this view").click()
        download.value.save_as(tmp_path / "saved.html")
        page.emulate_media(media="print")
        assert page.get_by_role("button", name="Save this view").count() == 0
        assert page.locator("input[type=range]:visible, .controls > button:visible").count() == 0
        assert not watched.errors
    saved = Watched(browser, java_script_enabled=False)
    still = saved.open(tmp_path / "saved.html").locator(".still").first
    text = still.inner_text()
    assert [words for words in said if words not in text] == []
    assert [words for words in never if words in text] == []
    assert still.locator("button, select, input, canvas").count() == 0
    saved.keep(f"explore-still-{view}", full_page=True)
