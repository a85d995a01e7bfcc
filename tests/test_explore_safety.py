"""The explorer towards strangers: what it refuses, in which words, and that it answers afterwards."""

from __future__ import annotations

import http.client
import io
import json
import os
import pickle
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from explored import Client, serving
from fabricate import make_run
from pellucid.data.images import decode
from pellucid.errors import DataError, RunError, UsageError
from pellucid.explore import guard, uploads
from pellucid.explore.guard import Guard
from pellucid.explore.live import Shelf, safe
from pellucid.explore.server import Explorer
from pellucid.run import Run
from pellucid.views import encoding

HOSTILE = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "\"'`&amp;", "two\nlines", "l" * 10_000, "\u202egnp.exe"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    make_run(path, classes=HOSTILE, n=60, file="{split}/{i:05d}.jpg")
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with serving(folder) as found:
        yield found


@pytest.fixture(autouse=True)
def answers_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, the server is up and knows its run."""
    yield
    if "client" in request.fixturenames:
        assert request.getfixturevalue("client").json("/api/runs")["runs"][0]["name"] == "run"


def png(width: int, height: int, data: bytes) -> bytes:
    """A grey PNG file that states this size and holds these compressed pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/runs/0/views/overview", "/api/offline", "/nothing", "/?token=", "/?token=wrong", "/api/runs?token="])
def test_without_the_token_nothing_is_told(client: Client, path: str) -> None:
    answer = client.get(path, cookie=None)
    assert answer.status == 403
    assert "opens with the whole address that `pellucid explore` printed last" in answer.text
    assert "run" not in answer.text.replace("printed", "")


def test_a_wrong_cookie_is_refused(client: Client) -> None:
    for cookie in (f"{client.guard.cookie}=x", f"other={client.guard.token}", f"{client.guard.cookie}={client.guard.token}x", "=;;=\x7f"):
        assert client.get("/api/runs", cookie=cookie).status == 403


def test_the_first_address_gives_a_cookie_that_scripts_and_other_sites_cannot_use(client: Client) -> None:
    answer = client.get(f"/?token={client.guard.token}", cookie=None)
    assert answer.status == 200
    assert answer.headers["set-cookie"] == f"{client.guard.cookie}={client.guard.token}; Path=/; HttpOnly; SameSite=Strict"
    assert client.get("/", cookie=answer.headers["set-cookie"].partition(";")[0]).status == 200
    assert "set-cookie" not in client.get("/").headers


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {Guard(None, host="127.0.0.1", port=1).token for _ in range(50)}  # type: ignore[arg-type]
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "127.0.0.1:{port}@evil", "", "[::1]"]
)
def test_a_name_of_somebody_else_that_leads_here_gets_nothing(client: Client, host: str) -> None:
    answer = client.get("/api/runs", host=host.format(port=client.port))
    assert answer.status == 421
    assert f"This is a Pellucid explorer at 127.0.0.1, port {client.port}; it answers to no other name." in answer.text


def test_two_hosts_are_refused_and_localhost_is_taken(client: Client) -> None:
    assert client.raw(f"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nHost: evil\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert client.get("/api/runs", host=f"localhost:{client.port}").status == 200


def test_bound_to_every_address_it_takes_numbers_and_its_own_name_alone() -> None:
    found = Guard(None, host="0.0.0.0", port=80)  # type: ignore[arg-type]
    assert [found.is_own(host) for host in ("192.168.1.5", "192.168.1.5:80", "[fe80::1]", socket.gethostname(), "evil.example", "192.168.1.5:81")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip
    assert not guard.is_loopback("0.0.0.0")
    assert guard.is_loopback("127.0.0.2")
    assert guard.is_loopback("::1")


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://127.0.0.1", "http://localhost:1"])
def test_a_picture_is_taken_from_its_own_page_alone(client: Client, origin: str | None) -> None:
    answer = client.post("/api/runs/0/look", b"x", origin=origin)
    assert answer.status == 403
    assert "Only the explorer's own page may send a picture" in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND"])
def test_other_methods_are_refused(client: Client, method: str) -> None:
    answer = client.ask(method, "/api/runs/0/views/overview")
    assert answer.status == 405
    assert answer.json["error"] == f"expected one of GET, HEAD, POST, got {method}"


def test_every_answer_says_what_browsers_must_not_do(client: Client) -> None:
    for answer in (client.get("/"), client.get("/api/runs"), client.get("/nothing"), client.get("/", cookie=None), client.get("/", host="evil")):
        for name, value in guard.HEADERS.items():
            assert answer.headers[name.lower()] == value
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_page_lets_only_its_own_script_run(client: Client) -> None:
    answer = client.get("/")
    assert "connect-src 'self'; base-uri 'none'" in answer.headers["content-security-policy"]
    assert "script-src 'sha256-" in answer.headers["content-security-policy"]
    assert answer.text.count("</script>") == 1, "a script that holds its own end is cut there"
    assert client.guard.token not in answer.text


# ── what may be read ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/runs/0/views/../../../run.json", "/api/runs/0/views/..%2f..%2frun.json", "/api/runs/../0/views/overview",
        "/api/runs/0%2f..%2f..%2fetc/views/overview", "/api/runs/-1/views/overview", "/api/runs/1/views/overview", "/api/runs/9999999999999/views/overview",
        "/api/runs/%C2%B2/views/overview", "/api/runs/0/views/__init__", "/api/runs/0/views/%00", "/run.json", "/api/compare?runs=0,../x", "//etc/passwd",
    ],
)  # fmt: skip
def test_no_address_is_a_path(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert "There is no" in answer.json["error"]
    assert "root:" not in answer.text


@pytest.mark.parametrize("link", ["inside", "predictions/val.npz", "run.json", "resolved.yaml"])
def test_a_link_that_leads_out_of_the_run_is_not_followed(tmp_path: Path, link: str) -> None:
    make_run(tmp_path / "run", n=20)
    (tmp_path / "outside").mkdir()
    (tmp_path / "secret").write_text("root:secret")
    path = tmp_path / "run" / link
    if path.exists():
        path.unlink()
    path.symlink_to(tmp_path / ("outside" if link == "inside" else "secret"))
    with pytest.raises(RunError, match="a link that leads out of the run folder; the explorer reads nothing outside"):
        safe(Run(tmp_path / "run"))
    with serving(tmp_path / "run") as client:
        for name in ("overview", "mistakes"):
            answer = client.get(f"/api/runs/0/views/{name}")
            assert answer.status == 422
            assert "leads out of the run folder" in answer.json["error"]
        assert "secret" not in client.get("/api/runs").text.replace(str(tmp_path), "")


def test_links_inside_a_run_and_to_a_run_are_taken_and_pipes_are_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20)
    (run.path / "also.json").symlink_to("run.json")
    (tmp_path / "link").symlink_to(run.path)
    assert safe(Run(tmp_path / "link")).record.status == "done"
    os.mkfifo(run.path / "predictions" / "test.npz")
    with pytest.raises(RunError, match="test.npz: expected a file; the explorer reads nothing else in a run folder. Remove it."):
        safe(run)


def test_arrays_that_hold_objects_are_refused_without_running_them(tmp_path: Path) -> None:
    run, mark = make_run(tmp_path / "run", n=20), tmp_path / "ran"
    np.savez(run.path / "predictions" / "val.npz", name=np.array([Malicious(mark)], object), label=np.zeros(1, np.int64), logits=np.zeros((1, 3), np.float32))
    with serving(run.path) as client:
        answer = client.get("/api/runs/0/views/mistakes")
        assert answer.status == 422
        assert "Object arrays cannot be loaded" in answer.json["error"]
        assert client.get("/api/runs/0/views/overview").status == 200
    assert not mark.exists()


class Malicious:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_checkpoint_that_is_a_pickle_is_refused_without_running_it(copied_run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    Run(copied_run).final_weights.write_bytes(pickle.dumps(Malicious(mark)))
    with serving(copied_run) as client:
        answer = client.post("/api/runs/0/look", picture_bytes())
        assert answer.status == 422
        assert "final.safetensors" in answer.json["error"]
        assert client.get("/api/runs/0/views/overview").status == 200
    assert not mark.exists()


def test_hostile_names_arrive_as_they_are_and_as_data(client: Client) -> None:
    answer = client.get("/api/runs/0/views/mistakes")
    assert answer.headers["content-type"] == "application/json"
    assert "<" not in answer.text
    assert set(map(encoding.name, HOSTILE)) <= set(strings(answer.json))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)


# ── what may be sent ─────────────────────────────────────────────────────────────────────────────────────────────


def picture_bytes(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_two_gigabytes_that_are_announced_are_refused_at_once(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=5)
    connection.putrequest("POST", "/api/runs/0/look")
    for name, value in (client.headers() | {"Content-Length": str(2 * 10**9)}).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"] == "A picture has at most 20 MB; this one is larger. Scale it down and send it again."


def test_two_gigabytes_that_are_not_announced_take_no_more_memory_than_is_allowed(client: Client) -> None:
    before, sent = resident(), 0
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as stream:
        head = "".join(f"{name}: {value}\r\n" for name, value in (client.headers() | {"Transfer-Encoding": "chunked"}).items())
        stream.sendall(f"POST /api/runs/0/look HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n{head}\r\n".encode())
        part = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        try:
            for _ in range(2_000):
                stream.sendall(part)
                sent += 2**20
        except OSError:  # the server has hung up
            pass
    assert sent < 60_000_000
    assert resident() - before < 120_000_000


def resident() -> int:
    """Bytes of memory that this process, with the server in it, holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_body_that_is_asked_for_nothing_is_not_read(client: Client) -> None:
    assert client.ask("GET", "/api/runs", b"x" * 1000).status == 200
    assert client.ask("GET", "/api/runs", headers={"Content-Length": "99999999999999999999999"}).status in (400, 413)


def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(client: Client) -> None:
    bomb = png(30_000, 30_000, zlib.compress(bytes(10**6), 9))
    before = resident()
    answer = client.post("/api/runs/0/look", bomb)
    assert len(bomb) < 5_000
    assert answer.status == 422
    assert answer.json["error"].startswith("The picture has ")
    assert "at most 50 million are taken" in answer.json["error"]
    assert resident() - before < 50_000_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Nothing was sent: expected the bytes of a picture."),
        (b"no picture", "This is no picture that can be read. Known are JPEG, PNG, WEBP, BMP, GIF, TIFF."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "This is no picture that can be read."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "This is no picture that can be read."),
        (png(7_100, 7_100, b""), "The picture has 7,100 x 7,100 pixels; at most 50 million are taken."),
        (picture_bytes()[:-400], "truncated"),
        (picture_bytes("JPEG", (400, 300))[:9000], "your picture.jpg: truncated"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        uploads.checked(data)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_pictures_of_every_known_format_are_taken_as_they_are(kind: str) -> None:
    data = picture_bytes(kind)
    found, ending = uploads.checked(data)
    assert found == data
    assert ending in uploads.FORMATS.values()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    found, ending = uploads.checked(buffer.getvalue())
    red, green, blue = PIL.Image.open(io.BytesIO(found)).convert("RGB").getpixel((5, 5))  # type: ignore[misc]
    assert (ending, red > 240, green < 15, blue < 15) == (".png", True, True, True)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_turned_upright(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    frames[0].paste("lime", (0, 0, 10, 10))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], exif=exif)
    upright = decode(*uploads.checked(buffer.getvalue()))
    assert upright.size == (10, 20)
    assert [max(range(3), key=upright.getpixel(at).__getitem__) for at in ((5, 3), (5, 17))] == [1, 0]  # type: ignore[union-attr]


def test_slow_clients_keep_nobody_waiting(client: Client) -> None:
    slow = [socket.create_connection(("127.0.0.1", client.port), timeout=5) for _ in range(20)]
    for stream in slow:
        stream.sendall(b"POST /api/runs/0/look HTTP/1.1\r\nHost: ")
    assert client.get("/api/runs").status == 200
    for stream in slow:
        stream.close()


def test_a_port_that_is_taken_is_said(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match=r"cannot listen at 127.0.0.1, port \d+: .* Give another --port"):
        Explorer([folder], port=taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot listen at no.such.host.invalid, port any: .* Give another --host"):
        Explorer([folder], host="no.such.host.invalid")


def test_many_who_ask_at_once_wait_for_one_making(folder: Path) -> None:
    shelf, found = Shelf([folder]), []
    threads = [threading.Thread(target=lambda: found.append(shelf.view("0", "overview"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(body) for body in found}) == 1
