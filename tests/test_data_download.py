"""Mirrors that misbehave, on a loopback server: each ends in one line, and nothing half-written keeps a final name."""

import errno
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import download
from common.data.download import MirrorError, Remote, fetch, locked
from common.data.formats import DataError

DATA = b"\x1f\x8b" + os.urandom(300_000)
SIZE, CHECK = len(DATA), f"sha256:{hashlib.sha256(DATA).hexdigest()}"


class Server:
    """A mirror on 127.0.0.1. behave(request, data) answers; `log` keeps (path, Range or "") of each request."""

    def __init__(self, files=None, behave=None):
        self.files, self.behave, self.log = files or {}, behave or plain, []
        self.released = threading.Event()  # set at the end: lets a handler that stalls go
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.log.append((self.path, self.headers.get("Range", "")))
                try:
                    server.behave(self, server.files.get(self.path.lstrip("/"), DATA))
                except OSError:  # the client hung up
                    pass
                self.close_connection = True

            def log_message(self, *_):
                pass

            released = server.released

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


def headers(request, status, length, **more):
    request.send_response(status)
    for key, value in {"Content-Length": length, **more}.items():
        if value is not None:
            request.send_header(key.replace("_", "-"), str(value))
    request.end_headers()


def plain(request, data):
    headers(request, 200, len(data))
    request.wfile.write(data)


def ranges(request, data, etag='"v1"'):
    """A server that can continue: Range, If-Range and ETag."""
    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
    if request.headers.get("If-Range", etag) != etag:
        start = 0
    if start >= len(data):
        return headers(request, 416, 0)
    place = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
    headers(request, 206 if start else 200, len(data) - start, ETag=etag, **place)
    request.wfile.write(data[start:])


def html(request, data):
    headers(request, 200, 30, Content_Type="text/html")
    request.wfile.write(b"<!doctype html>log in please..")


def status(code):
    return lambda request, data: headers(request, code, 0)


def truncated(request, data):
    headers(request, 200, len(data))
    request.wfile.write(data[:200_000])


def silent(request, data):
    request.released.wait(5)


def stalls(request, data):
    headers(request, 200, len(data))
    request.wfile.write(data[:200_000])
    request.wfile.flush()
    request.released.wait(5)


def drips(request, data):
    headers(request, 200, len(data))
    for i in range(500):
        request.wfile.write(data[i : i + 1])
        request.wfile.flush()
        if request.released.wait(0.01):
            break


def loops(request, data):
    headers(request, 302, 0, Location=request.path + "x")


def endless_redirect_body(request, data):
    if request.path.endswith("x"):
        return plain(request, data)
    headers(request, 302, None, Location=request.path + "x")
    while not request.released.is_set():
        request.wfile.write(bytes(1 << 16))


def lying_length(request, data):
    headers(request, 200, 100)
    request.wfile.write(data)


def no_length_and_endless(request, data):
    headers(request, 200, None)
    request.wfile.write(data[:2])
    while not request.released.is_set():
        request.wfile.write(bytes(1 << 16))


def other_length(request, data):
    headers(request, 200, 7 << 40)
    request.wfile.write(data)


def empty(request, data):
    headers(request, 200, 0)


def wrong(request, data):
    plain(request, data[:-1] + b"!")


@pytest.fixture
def serve(monkeypatch):
    """serve(files, behave) -> Server; all are closed at the end. Proxies of this machine are left out."""
    monkeypatch.setenv("NO_PROXY", "*")
    servers = []

    def start(files=None, behave=None):
        servers.append(Server(files, behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def lively_locks(monkeypatch):
    monkeypatch.setattr(download, "HEARTBEAT", 0.05)
    monkeypatch.setattr(download, "POLL", 0.02)


@pytest.fixture
def impatient(monkeypatch):
    """For the tests that wait for a timeout; the others keep the real ones, lest a busy machine make them fail."""
    monkeypatch.setattr(download, "STALL", 0.4)
    monkeypatch.setattr(download, "FIRST_PIECE", 0.6)


def remote(server, check=CHECK, size=SIZE, name="a.gz"):
    return Remote(server.url + name, name, check, size)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_good_mirror_is_asked_once(serve, tmp_path):
    server = serve()
    for _ in range(2):
        assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert server.log == [("/a.gz", "")]
    assert listing(tmp_path) == ["a.gz"]


BAD = {
    "503": (status(503), "HTTP 503"),
    "404": (status(404), "HTTP 404"),
    "html": (html, "web page"),
    "empty": (empty, "empty file"),
    "wrong checksum": (wrong, "wrong checksum"),
    "redirect loop": (loops, "redirect loop"),
    "no answer": (silent, "no answer within 0.6 s"),
    "stalled": (stalls, "stalled"),
    "drips": (drips, "no data within 0.6 s"),
    "truncated": (truncated, "ended too early|ended after"),
    "short by its own length": (lying_length, "ended after|checksum|announces 100"),
    "announces 7 TB": (other_length, "announces"),
    "endless": (no_length_and_endless, "sends more than"),
    "another format": (lambda request, data: plain(request, b"PK" + data), "not a .gz file|announces"),
    "unasked part": (status(206), "HTTP 206"),
    "redirect to a file": (lambda r, d: headers(r, 302, 0, Location="file:///etc/passwd"), "InvalidSchema"),
}


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_bad_mirrors(serve, tmp_path, monkeypatch, request, case, sized):
    behave, complaint = BAD[case]
    if behave in (silent, stalls, drips):
        request.getfixturevalue("impatient")
    monkeypatch.setattr(download, "MAX_BYTES", 1 << 20)
    server = serve(behave=behave)
    with pytest.raises(MirrorError, match=complaint) as error:
        fetch(remote(server, size=SIZE if sized else 0), tmp_path)
    assert "\n" not in str(error.value)
    assert "a.gz" not in listing(tmp_path)
    if case not in ("stalled", "truncated", "short by its own length"):  # where continuing makes sense
        assert listing(tmp_path) == []


def test_unreachable_and_unknown_hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MirrorError, match="connection refused|no connection|no answer"):  # Windows takes its time
        fetch(Remote(f"http://127.0.0.1:{port}/a.gz", "a.gz"), tmp_path)

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(MirrorError, match="host name not found"):
        fetch(Remote("http://example.org/a.gz", "a.gz"), tmp_path)


def test_a_name_server_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(5) and [])
    start = time.monotonic()
    with pytest.raises(MirrorError, match="no answer within 0.3 s"):
        fetch(Remote("http://example.org/a.gz", "a.gz"), tmp_path, patience=0.3)
    assert time.monotonic() - start < 2
    release.set()


def test_the_body_of_a_redirect_is_not_read(serve, tmp_path):
    server = serve(behave=endless_redirect_body)
    assert fetch(remote(server), tmp_path).read_bytes() == DATA


def test_a_dropped_connection_is_continued_at_once(serve, tmp_path):
    def behave(request, data):
        if len(server.log) > 1:
            return ranges(request, data)
        headers(request, 200, len(data), ETag='"v1"')
        request.wfile.write(data[:200_000])

    server = serve(behave=behave)
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    first, second = server.log
    assert int(second[1][6:-1]) > 100_000
    assert listing(tmp_path) == ["a.gz"]


def leave_part(folder, data, etag=None):
    (folder / "a.gz.part").write_bytes(data)
    if etag is not None:
        (folder / "a.gz.part.etag").write_text(etag)


def test_resume_by_range(serve, tmp_path):
    server = serve(behave=ranges)
    leave_part(tmp_path, DATA[:250_000], '"v1"')
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert server.log == [("/a.gz", "bytes=250000-")]
    assert listing(tmp_path) == ["a.gz"]


def test_a_newer_version_on_the_server_is_fetched_whole(serve, tmp_path):
    server = serve(behave=ranges)
    leave_part(tmp_path, b"\x1f\x8b of yesterday", '"v0"')
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert len(server.log) == 1


@pytest.mark.parametrize("behave", [plain, lambda r, d: ranges(r, d) if "Range" not in r.headers else plain(r, d)])
def test_a_server_that_ignores_range(serve, tmp_path, behave):
    server = serve(behave=behave)
    leave_part(tmp_path, DATA[:250_000])
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert len(server.log) == 1


def test_a_server_that_answers_another_range(serve, tmp_path):
    def behave(request, data):
        if "Range" not in request.headers:
            return plain(request, data)
        headers(request, 206, len(data) - 5, Content_Range=f"bytes 5-{len(data) - 1}/{len(data)}")
        request.wfile.write(data[5:])

    server = serve(behave=behave)
    leave_part(tmp_path, DATA[:250_000])
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert [r for _, r in server.log] == ["bytes=250000-", ""]


def test_a_resumed_file_with_a_wrong_checksum_is_fetched_once_from_zero(serve, tmp_path):
    server = serve(behave=ranges)
    leave_part(tmp_path, bytes(250_000))
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert [r for _, r in server.log] == ["bytes=250000-", ""]


def test_a_part_that_is_complete_or_too_long(serve, tmp_path):
    server = serve(behave=ranges)
    leave_part(tmp_path, DATA)
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert server.log == []
    (tmp_path / "a.gz").unlink()
    leave_part(tmp_path, DATA)
    assert fetch(remote(server, size=0), tmp_path).read_bytes() == DATA  # 416, then from zero
    (tmp_path / "a.gz").unlink()
    leave_part(tmp_path, DATA + b"more")
    assert fetch(remote(server), tmp_path).read_bytes() == DATA


def test_without_a_checksum_only_a_server_with_versions_continues(serve, tmp_path):
    server = serve(behave=ranges)
    leave_part(tmp_path, DATA[:250_000])
    assert fetch(remote(server, check="", size=0), tmp_path).read_bytes() == DATA
    (tmp_path / "a.gz").unlink()
    leave_part(tmp_path, DATA[:250_000], '"v1"')
    assert fetch(remote(server, check="", size=0), tmp_path).read_bytes() == DATA
    assert [r for _, r in server.log] == ["", "bytes=250000-"]


def test_a_file_that_rotted_in_the_cache_is_fetched_again(serve, tmp_path):
    server = serve()
    (tmp_path / "a.gz").write_bytes(DATA[:-1] + b"?")
    assert fetch(remote(server), tmp_path).read_bytes() == DATA


def test_a_slow_mirror_is_given_up_but_its_part_kept(serve, tmp_path, monkeypatch):
    def slow(request, data):
        headers(request, 200, len(data), ETag='"v1"')
        for i in range(0, len(data), 70_000):
            request.wfile.write(data[i : i + 70_000])
            time.sleep(0.1)

    monkeypatch.setattr(download, "SLOW_AFTER", 0.15)
    server = serve(behave=slow)
    with pytest.raises(download.TooSlow, match="kB/s"):
        fetch(remote(server), tmp_path, least=1e9)
    assert listing(tmp_path) == ["a.gz.part", "a.gz.part.etag"]
    server.behave = ranges
    assert fetch(remote(server), tmp_path).read_bytes() == DATA
    assert server.log[1][1].startswith("bytes=")


def test_full_disk(serve, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "open", lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(DataError, match="cannot write .*: free some space there, or let FF_CACHE"):
        fetch(remote(serve()), tmp_path)
    assert listing(tmp_path) == []


# ---- the lock


def test_the_lock_goes_from_one_to_the_next(tmp_path, capsys):
    path, inside, order = tmp_path / "a.lock", [], []

    def work(name):
        with locked(path, "a"):
            inside.append(name)
            assert len(inside) == 1
            time.sleep(0.1)
            inside.remove(name)
            order.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == [0, 1, 2] and listing(tmp_path) == []
    assert capsys.readouterr().err.count("waiting") <= 2  # one line each


def test_the_lock_goes_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a.lock", "a"):
        1 / 0  # noqa: B018
    assert listing(tmp_path) == []


@contextmanager
def foreign_lock(path, age, holder="1 another-machine 0 token"):
    path.write_text(holder)
    os.utime(path, (time.time() - age, time.time() - age))
    yield


def test_a_lock_without_a_heartbeat_is_taken_over(tmp_path):
    path = tmp_path / "a.lock"
    with foreign_lock(path, age=download.STALE + 1), locked(path, "a"):
        assert path.read_text().split()[0] == str(os.getpid())
    assert listing(tmp_path) == []


def test_a_lock_with_a_heartbeat_is_respected(tmp_path, capsys):
    path, got = tmp_path / "a.lock", threading.Event()

    def wait():
        with locked(path, "a"):
            got.set()

    with foreign_lock(path, age=0):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.2)
        path.unlink()
        assert got.wait(10)
        thread.join()
    assert capsys.readouterr().err == f"a: process 1 on another-machine is getting it; waiting (lock: {path})\n"


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can ask whether a process lives without ending it")
def test_the_lock_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = tmp_path / "a.lock"
    with foreign_lock(path, age=0, holder=f"{gone.pid} {socket.gethostname()} 0 token"), locked(path, "a"):
        pass


def test_the_holder_shows_signs_of_life_and_does_not_remove_the_lock_of_another(tmp_path):
    path = tmp_path / "a.lock"
    with locked(path, "a"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert abs(time.time() - path.stat().st_mtime) < 10
        path.write_text("1 another-machine 0 token")  # taken over while we were frozen
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0
    assert path.read_text() == "1 another-machine 0 token"
