"""Records and checkpoints: a run is a folder with record.jsonl, checkpoint.npz, snapshots, and can be killed anywhere.

record.jsonl: first line what was run and on what; one line per epoch; last line the result. The checkpoint holds the
weights, the optimisers' state, the generators' states and the length of the record, and replaces its predecessor in one
step, so after a crash the record is cut back to the checkpoint and the run goes on as if nothing had happened.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common import ROOT
from common.arrays import host, like


class RecordError(Exception):
    """A run folder that cannot be read; the message says what to do."""


def new_run(out, seed):
    """Make and return a new folder out/<time>-seed<seed> (with -2, -3, ... behind it where that exists)."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
    for n in range(1, 1000):
        folder = Path(out) / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise RecordError(f"no free name for a run folder in {out}")


def machine(threads, xp=np):
    """What the numbers of a run depend on besides its settings: processor, system, versions, threads; the GPU, if the
    array module xp works on one."""
    import numba

    gpu = {}
    if xp is not np:
        name = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
        gpu = {"gpu": name, "cupy": xp.__version__}
    return gpu | {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "threads": threads,
    }


def _cpu_name():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit():
    """The commit of the code that runs, with "+" behind it when files differ from it; None outside a git checkout."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def command():
    """The command line as typed, from the repository root's point of view."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return " ".join(["python", name, *sys.argv[1:]])


def append(folder, line):
    """Write one line (a dict) to the folder's record and to the disk."""
    with open(Path(folder) / "record.jsonl", "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(line, default=_plain) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def read(path):
    """The lines of a record (a run folder or a .jsonl file) as dicts, without a last line that is not whole.

    Raises RecordError for anything else.
    """
    path = Path(path)
    path = path / "record.jsonl" if path.is_dir() else path
    try:
        *lines, _ = path.read_text(encoding="utf-8").split("\n")  # a line that was written whole ends with a newline
        if not lines:
            raise RecordError(f"{path} holds no whole line: the run of this record was stopped as it began")
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist: name a run folder or a record.jsonl") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a record: {error}") from None


def save_arrays(path, arrays, meta):
    """Write arrays (name -> array) and meta (JSON) in one step: the old file stands until the new one is whole."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, __meta__=np.frombuffer(json.dumps(meta, default=_plain).encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_arrays(path):
    """What `save_arrays` wrote -> arrays, meta. Raises RecordError when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(arrays.pop("__meta__").tobytes())
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist") from None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        raise RecordError(f"{path} is damaged ({type(error).__name__})") from None


def state_of(name, layers, opts):
    """What lives between steps, as arrays: parameters, layer state, optimiser state and number of steps."""
    arrays = {}
    for i, (layer, opt) in enumerate(zip(layers, opts, strict=True)):
        for kind, values in (("params", layer.params), ("state", layer.state), ("opt", opt.state)):
            arrays |= {f"{name}/{i}/{kind}/{key}": host(value) for key, value in values.items()}
        arrays[f"{name}/{i}/t"] = np.int64(opt.t)
    return arrays


def restore(name, layers, opts, arrays):
    """Put what `state_of` collected back in place."""
    for i, (layer, opt) in enumerate(zip(layers, opts, strict=True)):
        for kind, values in (("params", layer.params), ("state", layer.state), ("opt", opt.state)):
            for key in values:
                values[key][...] = like(values[key], arrays[f"{name}/{i}/{kind}/{key}"])
        opt.t = int(arrays[f"{name}/{i}/t"])


def save_checkpoint(folder, arrays, meta):
    """Save a checkpoint that also knows how long the record is at this moment."""
    length = (Path(folder) / "record.jsonl").stat().st_size
    save_arrays(Path(folder) / "checkpoint.npz", arrays, meta | {"record_bytes": length})


def cut(folder, lines):
    """Cut the folder's record back to its first lines."""
    path = Path(folder) / "record.jsonl"
    with open(path, "r+b") as file:
        for _ in range(lines):
            file.readline()
        file.truncate(file.tell())


def load_checkpoint(folder):
    """-> arrays, meta of the folder's checkpoint, after cutting the record back to the moment it was saved."""
    folder = Path(folder)
    arrays, meta = load_arrays(folder / "checkpoint.npz")
    record = folder / "record.jsonl"
    if not record.exists() or record.stat().st_size < meta["record_bytes"]:
        raise RecordError(f"{record} is shorter than its checkpoint says: it cannot be resumed")
    with open(record, "r+b") as file:
        file.truncate(meta["record_bytes"])
    return arrays, meta
