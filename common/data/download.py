"""Everything that comes from the network is hostile until its checksum matches.

`fetch` brings one file into a folder or raises `MirrorError` in one line; `locked` lets one process at a time do so.

A worker thread talks to the server and hands 64 kB pieces over a queue; the caller waits for each piece with a
deadline. So one rule covers a name server that never answers, a firewall that swallows packets, a server that sends a
header letter by letter and one that falls silent half way: no piece in time, no more patience. A file grows as
NAME.part, which a later start continues by range; only complete, with the right size and checksum, does it take its
own name, in one atomic step.
"""

import hashlib
import os
import queue
import re
import secrets
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

import requests
import urllib3
from tqdm import tqdm

from common.data.formats import DataError, looks_like_html

# Seconds; module constants so that tests can shorten them.
CONNECT = 5.0  # for a TCP connection
FIRST_PIECE = 20.0  # from the request, name look-up included, to the first piece of the body
STALL = 15.0  # for every further piece, so a mirror below 4 kB/s counts as dead
SLOW_AFTER = 10.0  # before the speed is judged at all
HEARTBEAT = 5.0  # between two signs of life of the holder of a lock
STALE = 60.0  # without a sign of life: the lock may be taken over
POLL = 0.2  # between two looks at a lock of somebody else

FIRST, PIECE = 512, 64 << 10  # bytes
MAX_BYTES = 400 << 20  # of a file whose size is not known beforehand
MAX_REDIRECTS = 5
ATTEMPTS = 3  # of one file from one mirror, when the connection drops on the way
MAKE_ROOM = "free some space there, or let FF_CACHE name a folder on another disk"
MAGIC = {".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK", ".npz": b"PK"}


class Remote(NamedTuple):
    """One file of a mirror: where it is, what it is called here, what it must hash to, how long it is."""

    url: str
    name: str
    check: str = ""  # "md5:<hex>" or "sha256:<hex>"; "": the mirror publishes none
    size: int = 0  # bytes; 0: not known


class MirrorError(Exception):
    """This mirror is of no use now; the message is a few words. `answered`: it did send data, so a network exists."""

    answered = False


class Dropped(MirrorError):
    """The connection ended too early; NAME.part is worth continuing."""

    answered = True


class TooSlow(MirrorError):
    """Below the speed asked for, or fallen silent; NAME.part is worth continuing if no other mirror is better."""

    answered = True


# --------------------------------------------------------------------------------------------------------- one file


def fetch(remote, folder, patience=None, least=0.0, quiet=False):
    """The path of `remote` in `folder`, downloaded unless it lies there already, complete and with the right checksum.

    patience: seconds for the first piece (FIRST_PIECE), least: bytes/s below which a mirror is `TooSlow`.
    Raises MirrorError (try another mirror) or DataError (no mirror would help: the disk is full).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / remote.name, folder / f"{remote.name}.part"
    if final.exists():
        if not remote.check or hash_of(final, remote.check) == remote.check:
            return final
        final.unlink()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            resumed = _stream(remote, part, FIRST_PIECE if patience is None else patience, least, quiet)
        except Dropped:
            if attempt == ATTEMPTS:
                raise
            continue
        if not remote.check or hash_of(part, remote.check) == remote.check:
            _etag(part).unlink(missing_ok=True)
            os.replace(part, final)
            return final
        _discard(part)
        if not resumed:  # a resumed file may be two versions glued together: once more from zero
            break
    raise MirrorError(f"wrong checksum (expected {remote.check})")


def _stream(remote, part, patience, least, quiet):
    """Downloads into `part`, continuing what is there; True if it did continue. Raises MirrorError or DataError."""
    have = _resumable(remote, part)
    if remote.size and have == remote.size:  # stopped between the last byte and the rename
        return True
    headers = {"User-Agent": "forward-forward (educational; python-requests)", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _etag(part).exists():
            headers["If-Range"] = _etag(part).read_text("ascii")
    pieces, stop = queue.Queue(maxsize=16), threading.Event()
    threading.Thread(target=_talk, args=(remote.url, headers, pieces, stop), daemon=True).start()
    try:
        deadline = time.monotonic() + patience
        response = _next(pieces, patience, f"no answer within {patience:.2g} s")
        status = response.status_code
        if status == 416 or (status == 206 and not _continues(response, have)):
            _discard(part)
            if not have:
                raise MirrorError(f"HTTP {status} for a plain request")
            stop.set()
            return _stream(remote, part, patience, least, quiet)  # have is 0 now: at most once
        if status not in (200, 206):
            raise MirrorError(f"HTTP {status}")
        if status == 200:  # the whole file, whether we asked for it or the server does not know ranges
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        limit = remote.size or MAX_BYTES
        piece = _next(pieces, deadline - time.monotonic(), f"no data within {patience:.2g} s")
        if not have:
            _look_at(piece, remote)
        if total > limit or (remote.size and total and total != remote.size):
            raise MirrorError(f"announces {total} bytes instead of {'' if remote.size else 'at most '}{limit}")
        try:
            return _write(remote, part, response, piece, pieces, have, total, limit, least, quiet)
        except OSError as error:
            _discard(part)
            raise DataError(f"cannot write {part} ({error.strerror or error}): {MAKE_ROOM}") from error
    finally:
        stop.set()


def _write(remote, part, response, piece, pieces, have, total, limit, least, quiet):
    """The pieces into `part`; True if they continue an older part."""
    got, started = have, time.monotonic()
    bar = tqdm(desc=remote.name, total=total or None, initial=have, unit="B", unit_scale=True, disable=quiet or None)
    with bar, open(part, "ab" if have else "wb") as file:
        if not have:
            etag = response.headers.get("ETag", "")
            _etag(part).write_text(etag if re.fullmatch(r'"[!-~]*"', etag) else "", "ascii")  # weak ones cannot resume
        while piece is not None:
            got += len(piece)
            if got > limit:
                break
            file.write(piece)
            bar.update(len(piece))
            seconds = time.monotonic() - started
            if least and seconds > SLOW_AFTER and (got - have) / seconds < least:
                raise TooSlow(f"only {(got - have) / seconds / 1e3:.0f} kB/s")
            piece = _next(pieces, STALL, f"stalled: no data for {STALL:.2g} s after {got} bytes", TooSlow, Dropped)
    if got > limit:
        _discard(part)
        raise MirrorError(f"sends more than {limit} bytes")
    if got < (total or remote.size):
        raise Dropped(f"ended after {got} of {total or remote.size} bytes")
    return have > 0


def _talk(url, headers, pieces, stop):
    """The worker: puts the response, its pieces and None (the end) into the queue, or an exception."""

    def put(item):
        while not stop.is_set():
            try:
                return pieces.put(item, timeout=0.2)
            except queue.Full:
                pass

    try:
        with requests.Session() as session:
            # Redirects by hand: requests would read the body of each, however long, into memory.
            session.get_redirect_target = lambda response: None
            for _ in range(MAX_REDIRECTS + 1):
                get = {"headers": headers, "stream": True, "allow_redirects": False, "timeout": (CONNECT, 2 * STALL)}
                with session.get(url, **get) as response:
                    if response.is_redirect:
                        url = urljoin(url, response.headers["Location"])
                        continue
                    put(response)
                    size = FIRST  # small, because the first piece is the sign of life that `auto` waits for
                    while response.ok and not stop.is_set():
                        piece = response.raw.read(size)  # raw: as on the server, not decoded
                        if not piece:
                            break
                        put(piece)
                        size = PIECE
                    return put(None)
            raise requests.TooManyRedirects()
    except Exception as error:  # for the caller to judge, see _next
        put(error)


def _next(pieces, seconds, complaint, late=MirrorError, failed=MirrorError):
    """The next item of the worker. Raises `late` if it does not come in time, `failed` if the network failed."""
    try:
        item = pieces.get(timeout=max(seconds, 0.001))
    except queue.Empty:
        raise late(complaint) from None
    if isinstance(item, (requests.RequestException, urllib3.exceptions.HTTPError, OSError, UnicodeError)):
        raise failed(_in_words(item)) from item
    if isinstance(item, Exception):  # a mistake in this file must not look like a bad mirror
        raise item
    return item


def _in_words(error):
    text = repr(error)
    for sign, words in (
        ("TooManyRedirects", "redirect loop"),
        ("NameResolution", "host name not found"),
        ("getaddrinfo", "host name not found"),
        ("refused", "connection refused"),
        ("ConnectTimeout", "no connection in time"),
        ("Read timed out", "stalled"),
        ("ReadTimeout", "stalled"),
        ("SSL", "TLS error"),
        ("IncompleteRead", "ended too early"),
        ("Proxy", "proxy error"),
        ("unreachable", "network unreachable"),
    ):
        if sign in text:
            return words
    return f"connection failed ({type(error).__name__})"


def _look_at(piece, remote):
    """Raises MirrorError at once, before a byte is written, for an empty file, a web page or another format."""
    suffix = Path(remote.name).suffix
    if not piece:
        raise MirrorError("sends an empty file")
    if looks_like_html(piece):
        raise MirrorError("sends a web page instead of data")
    if not piece.startswith(MAGIC.get(suffix, b"")):
        raise MirrorError(f"sends something that is not a {suffix} file")


def _resumable(remote, part):
    """Bytes of `part` worth continuing. Without a checksum only a server that can compare versions may continue."""
    if not part.exists():
        return 0
    if not _etag(part).exists() or not _etag(part).read_text("ascii"):
        _etag(part).unlink(missing_ok=True)
        if not remote.check:
            _discard(part)
            return 0
    have = part.stat().st_size
    if have > (remote.size or MAX_BYTES):
        _discard(part)
        return 0
    return have


def _continues(response, have):
    """True if a 206 answer starts exactly where our part ends."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return bool(have and found and int(found[1]) == have)


def _etag(part):
    return part.with_name(part.name + ".etag")


def _discard(part):
    part.unlink(missing_ok=True)
    _etag(part).unlink(missing_ok=True)


def hash_of(path, check):
    """The file's hash, written like `check`: with the algorithm that `check` names before its colon."""
    algorithm = check.partition(":")[0]
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


# --------------------------------------------------------------------------------------------- one process at a time


@contextmanager
def locked(path, what, quiet=False):
    """Holds the lock file `path` inside the block; waits, saying so once, while another live process holds it.

    The file names its holder and its time of change is renewed every HEARTBEAT seconds. A lock without a sign of life
    for STALE seconds, or whose process is gone from this machine, is taken over. Two holders at once (a process that
    was frozen for a minute) would cost time, never data: every file that matters is put in place in one atomic step.
    """
    path = Path(path)
    token = f"{os.getpid()} {socket.gethostname()} {time.time():.3f} {secrets.token_hex(8)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = False
    while not _take(path, token):
        if not waiting and not quiet:
            print(f"{what}: process {_holder(path)} is getting it; waiting (lock: {path})", file=sys.stderr)
        waiting = True
        time.sleep(POLL)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, token, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        if _read(path) == token:
            path.unlink(missing_ok=True)


def _take(path, token):
    """True if the lock is ours now."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        if not _stale(path):
            return False
        own = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        own.write_text(token, "utf-8")
        try:
            os.replace(own, path)
        except PermissionError:  # Windows: somebody is just reading it
            own.unlink(missing_ok=True)
            return False
        time.sleep(POLL)  # if others took it over in the same moment, the last one has it
        return _read(path) == token
    except PermissionError:
        if path.exists():  # Windows: it is just being removed
            return False
        raise
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(token)
    return True


def _stale(path):
    try:
        if time.time() - path.stat().st_mtime > STALE:
            return True
    except FileNotFoundError:
        return False
    pid, host, *_ = (*_read(path).split(), "", "")
    if os.name != "posix" or host != socket.gethostname() or not pid.isdecimal():
        return False  # on Windows, asking for a process with os.kill would end it
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it exists and is not ours
        pass
    return False


def _beat(path, token, stop):
    while not stop.wait(HEARTBEAT):
        if _read(path) == token:  # not if somebody took it over
            try:
                os.utime(path)
            except OSError:
                pass


def _holder(path):
    return " on ".join(_read(path).split()[:2]) or "?"


def _read(path):
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
