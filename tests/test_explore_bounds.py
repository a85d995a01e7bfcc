"""The explorer's bounds: what a run folder, a picture or a connection may cost, and what is said beyond it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from explored import Client, serving, stubborn
from fabricate import make_run
from pellucid import records
from pellucid.data.images import resize
from pellucid.errors import DataError, MissingError, RunError
from pellucid.explore import apart, connections, live, server, uploads
from pellucid.explore.apart import Apart, LookError
from pellucid.explore.guard import Guard
from pellucid.explore.live import Shelf, safe
from pellucid.findings import ARRAYS, Findings, PositionsFinding
from pellucid.run import Run
from pellucid.views.positions import has_positions
from test_explore_safety import picture_bytes, png, resident


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", n=30).path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", n=20)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with serving(folder) as found:
        yield found


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "height"), [(1_000_000, 1), (1, 1_000_000), (2_100, 100)])
def test_a_picture_that_is_far_longer_than_wide_is_refused_by_its_header(client: Client, width: int, height: int) -> None:
    answer = client.post("/api/runs/0/look", png(width, height, zlib.compress(bytes((width + 1) * height))))
    assert answer.status == 422
    assert answer.json["error"] == (
        f"The picture has {width:,} x {height:,} pixels; a long side of at most 20 times the short one is taken. Cut it and send it again."
    )


def test_a_panorama_is_taken() -> None:
    assert uploads.checked(picture_bytes(size=(2_000, 100)))[1] == ".png"


def test_a_picture_is_not_resampled_to_more_than_fits() -> None:
    with pytest.raises(DataError, match=r"a picture of 100,000 x 1 pixels would be resampled to 22,400,000 x 224, the limit is 268,435,456 pixels; cut it"):
        resize(PIL.Image.new("RGB", (100_000, 1)), (224, 224), "crop", None, "bilinear")


@pytest.mark.parametrize("error", [MemoryError(), type("Panic", (BaseException,), {})("index out of bounds")])
def test_memory_that_runs_out_and_panics_are_said(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def fails(self: Any, *_: Any) -> bytes:
        raise error

    monkeypatch.setattr(server.Desk, "_asked", fails)
    answer = client.post("/api/runs/0/look", picture_bytes())
    memory = isinstance(error, MemoryError)
    assert answer.status == (422 if memory else 500)
    assert ("Memory ran out. A smaller picture" if memory else "Pellucid failed here: Panic: index out of bounds.") in answer.json["error"]
    assert client.get("/api/runs").status == 200


# ── files of a run ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["resolved.yaml", "metrics.jsonl", "inside/findings.json", "verify.json", "samples/val.csv"])
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(run: Run, name: str) -> None:
    path = run.path / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with serving(run.path) as client:
        begun = time.monotonic()
        for _ in range(3):
            client.get("/api/runs")
        answer = client.get("/api/runs/0/views/overview")
        assert answer.json["error"] == f"{path}: expected a file; the explorer reads nothing else in a run folder. Remove it."
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("name", ["inside", "run.json", "predictions/val.npz"])
def test_a_link_that_leads_to_itself_is_said(run: Run, name: str) -> None:
    shelf, path = Shelf([run.path]), run.path / name
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    with pytest.raises(RunError, match=rf"{name}: a link that leads nowhere: Too many levels of symbolic links. Remove it."):
        shelf.view("0", "overview")
    assert shelf.listed()[0]["name"] == "run"


def test_findings_that_lead_out_are_not_read_for_the_list(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("{}")
    run.inside.mkdir()
    (run.inside / "findings.json").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(live, "load_findings", lambda folder: pytest.fail("read"))
    assert {"features", "attention", "positions"} <= set(Shelf([run.path]).listed()[0]["views"])


@pytest.mark.parametrize(
    "name", ["run.json", "data.json", "metrics.jsonl", "samples/val.csv", "inside/attention.json", "resolved.yaml", "thumbnails/val/000000.webp"]
)
def test_a_file_that_is_too_large_is_refused_before_it_is_read(run: Run, name: str) -> None:
    shelf, path = Shelf([run.path]), run.path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("ab") as file:
        file.truncate(live.MOST_BYTES[path.suffix] + 1)
    with pytest.raises(RunError, match=rf"{name}: has [\d,]+ bytes, expected at most {live.MOST_BYTES[path.suffix]:,}; the file was changed"):
        shelf.view("0", "overview")
    assert ("error" in shelf.listed()[0]) == (name in live.LISTED)


def packed(path: Path, size: int) -> None:
    """A small .npz whose one array has `size` bytes of zeros."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("features.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})  # type: ignore[arg-type]
        for _ in range(0, size, 1 << 22):
            file.write(bytes(1 << 22))


@pytest.mark.parametrize("name", ["inside/attention.npz", "snapshots/probe.npz"])
def test_arrays_that_unpack_to_more_than_fits_are_refused_by_their_directory(run: Run, name: str) -> None:
    packed(run.path / name, live.MOST_ARRAYS)
    before = resident()
    with pytest.raises(RunError, match=rf"{name}: holds arrays of [\d,]+ bytes, expected at most {live.MOST_ARRAYS:,}; the file was changed"):
        safe(run)
    assert resident() - before < 50_000_000


def test_an_archive_whose_directory_is_too_large_or_hidden_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    records.write_arrays(path, {str(i): np.zeros(1) for i in range(50)})
    assert len(records.read_arrays(path, "numbers")) == 50
    assert records.read_arrays(path, "numbers", "3", "none", optional=True).keys() == {"3"}
    assert records.array_names(path, "numbers") == [str(i) for i in range(50)]
    assert records.unpacked_bytes(path) == 50 * (128 + 8)
    with monkeypatch.context() as patch:
        patch.setattr(records, "MOST_DIRECTORY", 1000)
        with pytest.raises(
            RunError, match=r"a.npz: cannot be read as numbers: the directory of the archive has more than 1,000 bytes, or stands not at its end"
        ):
            records.read_arrays(path, "numbers")
    path.write_bytes(path.read_bytes()[:-2] + b"\x04\x00more")
    with pytest.raises(RunError, match="stands not at its end"):
        records.array_names(path, "numbers")


def test_a_failure_is_not_paid_for_again_until_its_files_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fails(run: Run, room: Any) -> Any:
        asked.append(run)
        raise RunError("predictions: damaged")

    monkeypatch.setattr(live, "views", lambda: {"mistakes": fails})
    shelf = Shelf([run.path])
    for _ in range(3):
        with pytest.raises(RunError, match="predictions: damaged"):
            shelf.view("0", "mistakes")
    assert len(asked) == 1
    os.utime(run.path / "predictions" / "val.npz")
    with pytest.raises(RunError):
        shelf.view("0", "mistakes")
    assert len(asked) == 2


def test_a_run_that_cannot_be_read_is_read_once_for_the_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, read = Shelf([run.path]), []
    (run.path / "run.json").write_text("[]")
    monkeypatch.setattr(live, "plain", lambda path, root, at=None: read.append(path.name))
    first = shelf.listed()[0]
    assert "not readable as JSON of a run" in first["error"]
    assert shelf.listed()[0] == first
    assert read.count("run.json") == 1


def test_a_view_that_is_larger_than_its_room_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_ANSWER", 1000)
    with pytest.raises(RunError, match=r"overview: takes [\d,]+ bytes, at most 1,000 are shown"):
        Shelf([run.path]).view("0", "overview")
    with pytest.raises(RunError, match=r"1 runs side by side: takes [\d,]+ bytes"):
        Shelf([run.path]).comparison("0,0,0")


def test_runs_are_laid_side_by_side_once_each(run: Run) -> None:
    shelf = Shelf([run.path])
    assert shelf.comparison("0,0,0") is shelf.comparison("0")


def test_kept_pictures_are_measured_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb, small = tmp_path / "0.webp", tmp_path / "1.webp"
    bomb.write_bytes(png(30_000, 30_000, zlib.compress(bytes(10**6), 9)))
    PIL.Image.new("P", (4, 3)).save(small, "PNG")
    before = resident()
    with pytest.raises(ValueError, match=r"exceeds limit|it has 30,000 x 30,000 pixels, expected at most 67,108,864"):
        records.read_picture(bomb)
    assert resident() - before < 20_000_000
    assert (records.read_picture(small).mode, records.read_picture(small).size) == ("P", (4, 3))
    small.write_bytes(small.read_bytes()[:40])
    with pytest.raises((OSError, ValueError)):
        records.read_picture(small)


@pytest.mark.parametrize(("grid", "tables", "there"), [(None, (), False), (None, ("bias/blocks.0",), True), ((2, 2), (), True)])
def test_positions_are_offered_where_there_is_something(tmp_path: Path, grid: tuple[int, int] | None, tables: tuple[str, ...], there: bool) -> None:
    records.write_arrays(tmp_path / ARRAYS, {name: np.zeros((1, 3, 3), np.float32) for name in (*tables, "maps/attention")})
    found = Findings("0", "vit", "random", positions=PositionsFinding("none", "none", grid))
    assert has_positions(tmp_path, found) is there
    assert not has_positions(tmp_path, Findings("0", "vit", "random"))


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_hundred_half_requests_do_not_lock_the_owner_out(client: Client) -> None:
    half = []
    for _ in range(300):
        half.append(socket.create_connection(("127.0.0.1", client.port), timeout=5))
        half[-1].sendall(b"GET / HTTP/1.1\r\nHost: x")
    begun = time.monotonic()
    assert client.get("/api/runs").status == 200
    assert time.monotonic() - begun < 1
    for stream in half:
        stream.close()


def test_a_connection_without_a_whole_head_is_closed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as stream:
        begun = time.monotonic()
        stream.sendall(b"GET /api/runs HTTP/1.1\r\n")
        time.sleep(0.2)
        stream.sendall(b"Host: x\r\n")  # a letter now and then is no reason to wait
        assert stream.recv(100) == b""
        assert 0.2 < time.monotonic() - begun < 2


@pytest.mark.parametrize(("method", "cookie"), [("POST", False), ("GET", False), ("GET", True)])
def test_a_body_that_nobody_asked_for_ends_the_connection(client: Client, method: str, cookie: bool) -> None:
    head = f"{method} /api/runs HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nTransfer-Encoding: chunked\r\n"
    head += f"Cookie: {client.guard.cookie}={client.guard.token}\r\n" * cookie
    part, sent = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n", 0
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as stream:
        stream.sendall(head.encode() + b"\r\n")
        try:
            for _ in range(100):
                stream.sendall(part)
                sent += 1
        except OSError:  # the server has hung up
            pass
    assert sent < 30


# ── names and tokens ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("other", ["[bad]=x", "a b=\x01", 'q="open', "=", "\xe9=\xff", "x" * 3000])
def test_cookies_of_other_servers_lock_nobody_out(client: Client, other: str) -> None:
    own = f"{client.guard.cookie}={client.guard.token}"
    assert client.raw(f"GET /api/offline HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nCookie: {other.replace(chr(1), '')}; {own}\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


@pytest.mark.parametrize(
    "host", ["]][127.0.0.1:8", "[127.0.0.1]:8", "127.0.0.1:8:8", "127.0.0.1: 8", "127.0.0.1:", "user@127.0.0.1:8", "127.0.0.1/:8", "127.0.0.1:٨"]
)
def test_a_host_is_what_a_browser_writes_or_nothing(host: str) -> None:
    guard = Guard(None, host="127.0.0.1", port=8)  # type: ignore[arg-type]
    assert not guard.is_own(host)
    assert guard.is_own("127.0.0.1:8")
    assert Guard(None, host="::1", port=8).is_own("[::1]:8")  # type: ignore[arg-type]


def test_no_address_is_written_from_the_host_header(client: Client) -> None:
    answer = client.get("/api/runs/", host=f"localhost:{client.port}")
    assert answer.status == 404
    assert "location" not in answer.headers


def test_the_address_that_a_browser_is_started_with_opens_once(client: Client) -> None:
    path = client.guard.address_once().partition(str(client.port))[2]
    assert client.guard.token not in path
    assert client.get(path, cookie=None, host="evil").status == 421  # what is refused does not use it up
    first = client.get(path, cookie=None)
    assert first.status == 200
    again = client.get(path, cookie=None)
    assert again.status == 403
    assert "printed last" in again.text
    assert client.get(path, cookie=first.headers["set-cookie"].partition(";")[0]).status == 200  # a reload


# ── the process that looks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def looking() -> Iterator[Apart]:
    found = Apart()
    yield found
    found.end()


def test_an_answer_has_a_time_limit_and_the_next_picture_a_new_process(looking: Apart, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "LOOK_SECONDS", 0.05)
    for _ in range(2):
        with pytest.raises(LookError, match=r"The picture was not looked at within 0 seconds, so that was ended. `pellucid inside` takes all its time."):
            looking.look(run, picture_bytes(), ".png")
    assert looking._process is None


def test_a_process_that_is_killed_is_said(looking: Apart, run: Run) -> None:
    looking._started()
    threading.Timer(0.3, lambda: looking._process.kill()).start()
    with pytest.raises(LookError, match="The process that looked at the picture ended, as it does where memory runs out"):
        looking.look(run, picture_bytes(), ".png")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made in this test; none is left at its end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def begun(run: Run, temporary: Path) -> bool:
    """Whether `stubborn` has written a picture of this run, or does within seconds."""
    for _ in range(500):
        if (run.path.parent / "begun").exists():
            return len(list(temporary.glob("pellucid-picture-*/picture.png"))) == 1
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", ["late", "killed", "ended"])
def test_a_picture_is_deleted_however_its_process_ends(looking: Apart, run: Run, temporary: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(apart, "answer", stubborn)
    monkeypatch.setattr(apart, "LOOK_SECONDS", 4.0 if how == "late" else 60.0)
    told: list[LookError] = []

    def look() -> None:
        with pytest.raises(LookError) as caught:
            looking.look(run, picture_bytes(), ".png")
        told.append(caught.value)

    thread = threading.Thread(target=look)
    thread.start()
    assert begun(run, temporary)
    if how == "killed":
        looking._process.kill()
    if how == "ended":
        looking.end()
        assert list(temporary.iterdir()) == []  # before the other thread goes on: a signal may leave it no time
    thread.join(20)
    (error,) = told
    words = {"late": "was not looked at within 4 seconds", "killed": "as it does where memory runs out", "ended": "The explorer was ended while this picture"}
    assert words[how] in str(error)
    assert error.status == (503 if how == "ended" else 422)
    assert list(temporary.iterdir()) == []


def test_what_was_ended_looks_at_nothing_more(run: Run, temporary: Path) -> None:
    over = Apart()
    over.end()
    with pytest.raises(LookError, match="The explorer was ended while this picture was looked at"):
        over.look(run, picture_bytes(), ".png")
    assert (over._process, list(temporary.iterdir())) == (None, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_explorer_answers_who_waits_in_words_and_leaves_no_picture(run: Run, temporary: Path, number: signal.Signals) -> None:
    script = (
        "import sys\nfrom explored import stubborn\nfrom pellucid.cli import main\nfrom pellucid.explore import apart\n"
        f"if __name__ == '__main__':\n    apart.answer = stubborn\n    sys.exit(main(['explore', {str(run.path)!r}, '--no-browser']))"
    )
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        address, _, token = process.stdout.readline().strip().partition("/?token=")
        port = address.rpartition(":")[2]
        guard = Guard(None, host="127.0.0.1", port=int(port))  # type: ignore[arg-type]
        guard.token = token
        answers = []
        thread = threading.Thread(target=lambda: answers.append(Client(guard).post("/api/runs/0/look", picture_bytes())))
        thread.start()
        there = begun(run, temporary)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # a terminal sends Ctrl-C to every process of the group
        _, error = process.communicate(timeout=20)
        thread.join(20)
    assert there
    assert [(answer.status, answer.json["error"]) for answer in answers] == [(503, apart.OVER[0])]
    assert (process.returncode, error) == ((130 if number == signal.SIGINT else -number), "note: reads these runs and writes nothing in them; Ctrl-C ends it\n")
    assert list(temporary.iterdir()) == []


def test_an_answer_that_is_cancelled_says_so(client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def cancelled(*_: Any) -> Any:
        raise asyncio.CancelledError

    monkeypatch.setattr(server, "run_in_threadpool", cancelled)
    answer = client.get("/api/runs")
    assert (answer.status, answer.json["error"]) == (503, "The explorer was ended before this was answered. Start `pellucid explore` again.")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "where"), [("transformers/{}", "outside"), ("{}", "outside"), ("transformers/{}", "run/model"), ("timm/vit", "outside")])
def test_a_model_that_is_built_from_a_folder_outside_the_run_is_refused(tmp_path: Path, name: str, where: str) -> None:
    from pellucid.explore.asking import _built_of_itself

    (tmp_path / where).mkdir(parents=True)
    model = SimpleNamespace(model_dump=lambda mode: {"decoder": {"name": name.format(tmp_path / where)}})
    run: Any = SimpleNamespace(path=tmp_path / "run", recipe=SimpleNamespace(model=model))
    if "{}" not in name or where != "outside":
        assert _built_of_itself(run) is None  # type: ignore[func-returns-value]
        return
    with pytest.raises(
        RunError, match=r"its model is built from the folder .*outside; the explorer reads nothing outside a run. `pellucid inside RUN PICTURE` does"
    ):
        _built_of_itself(run)


def test_the_network_is_not_asked(run: Run) -> None:
    with pytest.raises(MissingError, match="a library asked for the network, which the explorer does not use"):
        apart._without_network("socket.getaddrinfo", ("huggingface.co", 443))
    apart._without_network("open", ("file", "r", 0))
