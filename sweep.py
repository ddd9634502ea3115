"""A grid of runs of one script: seeds times settings, every cell a process of its own, on this machine or on many.

    python sweep.py ff_mnist/hff.py --seeds 0-4 --set scale 20 40 --set lr 0.001 0.0003 -- --validation 0
    python sweep.py ff_mnist/train.py --seeds 0-2 --set sizes 500,500 1000,1000 --set jitter 0 2
    python sweep.py ff_mnist/dtg_mlp.py --seeds 0-4 --set detach on off --jobs 2
    python sweep.py ff_mnist/hff.py --seeds 0-9 --out /shared/sweep --scheduler tcp://host:8786        a Dask cluster

--set NAME VALUE ...: a setting of the script (its --help lists them) and the values to try; on and off for those that
are on or off. Behind -- stand flags that all cells share. A cell is a folder in --out; the same command again, with the
same --out, runs what is missing, goes on with what was interrupted, and leaves alone what is finished. At the end a
table: mean and sample standard deviation over the seeds.

With --scheduler the cells go to the workers of a running Dask cluster, which need this repository at the same path and
a file system that holds --out for all (pip install -r requirements-cluster.txt). A lock on every cell sees to it that
no two processes write one record: if a worker dies and its run lives on, whoever gets the cell next waits for that run.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from common import cli, record
from common.evaluate import mean_sd


def grid(settings, seeds):
    """[[name, value, ...], ...], seeds -> cells, each a dict name -> value (text) and "seed"; the first varies slowest.

    Raises UsageError for a setting without values, or one that is given twice.
    """
    names = [name for name, *_ in settings]
    for name, *values in settings:
        if not values or len(set(values)) < len(values) or names.count(name) > 1 or name.strip("-") == "seed":
            raise cli.UsageError(f"--set {' '.join([name, *values])}: a setting once, with different values behind it")
    every = itertools.product(*([(name.lstrip("-"), value) for value in values] for name, *values in settings))
    return [dict(some) | {"seed": str(seed)} for some in every for seed in seeds]


def flags(cell):
    """{"lr": "0.1", "flip": "off", "seed": "3"} -> ["--lr", "0.1", "--no-flip", "--seed", "3"]."""
    words = []
    for name, value in cell.items():
        name = name.replace("_", "-")
        words += {"on": [f"--{name}"], "off": [f"--no-{name}"]}.get(value, [f"--{name}", value])
    return words


def folder_name(cell):
    """A name for the cell's folder, the same for the same settings."""
    text = "_".join(f"{name}-{value}" for name, value in cell.items())
    return "".join(c if c.isalnum() or c in "-_.,+" else "-" for c in text)


RUN_FLAGS = ("--device", "--data-dir", "--threads", "--save", "--figures", "--no-figures")  # not in a run's record


def apart(words):
    """-> those of the words that say how to run, which a resumed run needs again; and those that say what is run."""
    how, what, value_of = [], [], None
    for word in words:
        if word.startswith("--"):
            value_of = how if word.partition("=")[0] in RUN_FLAGS else what
        (what if value_of is None else value_of).append(word)
    return how, what


def run_cell(folder, script, words):
    """Run one cell, unless it has been: the script with these words -> {"final": ...} or {"error": one line}.

    Whoever holds the lock is the only one to write here. The run inherits it, so it is held as long as the run lives,
    also when this process does not.
    """
    try:
        return _run_cell(Path(folder), script, words)
    except (OSError, ValueError, record.RecordError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _run_cell(folder, script, words):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        held = []
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
            held = [lock.fileno()]
        except ImportError:  # Windows: start one sweep at a time
            pass
        how, settings = apart(words)
        what = json.dumps(
            [Path(script).relative_to(ROOT).as_posix() if Path(script).is_relative_to(ROOT) else script, settings]
        )
        said = folder / "what.json"
        if said.exists() and said.read_text(encoding="utf-8") != what:
            raise ValueError(f"{folder} holds a run of something else: give another --out")
        said.write_text(what, encoding="utf-8")
        found = sorted(folder.glob("*/record.jsonl"))
        if len(found) > 1:
            raise ValueError(f"{folder} holds {len(found)} runs: keep one")
        if found and "final" in (last := record.read(found[0])[-1]):
            return {"final": last["final"], "seconds": 0.0}
        begin = time.perf_counter()
        go_on = ["--resume", str(found[0].parent), *how] if found else [*words, "--out", str(folder)]
        keep = {"pass_fds": held} if held else {}
        with open(folder / "output.txt", "a", encoding="utf-8") as out:
            done = subprocess.run([sys.executable, script, *go_on], stdout=out, stderr=subprocess.STDOUT, **keep)
        for path in folder.glob("*/record.jsonl"):
            if "final" in (last := record.read(path)[-1]):  # whatever became of its figures
                return {"final": last["final"], "seconds": time.perf_counter() - begin}
        lines = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"error": f"exit code {done.returncode}: {lines[-1] if lines else 'no output'}"}


def here(cells, jobs):
    """Run the cells (name -> arguments of run_cell) on this machine -> yields name, result as they come."""
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(run_cell, *arguments): name for name, arguments in cells.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # Ctrl-C ends the runs; those that wait do not begin
        pool.shutdown(cancel_futures=True)


def on_worker(root, *arguments):
    """run_cell, on a machine whose Python has not heard of this repository yet."""
    sys.path.insert(0, root)
    import sweep

    return sweep.run_cell(*arguments)


def on_cluster(cells, address):
    """The same on the workers of a Dask cluster; what a worker leaves undone when it dies, another one takes up."""
    try:
        from distributed import Client
        from distributed import as_completed as as_they_come
    except ImportError:
        raise cli.UsageError("--scheduler needs Dask: pip install -r requirements-cluster.txt") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise cli.UsageError(f"--scheduler {address}: no scheduler answers ({error})") from None
    with client:
        futures = {
            client.submit(on_worker, str(ROOT), *arguments, pure=False, retries=3): name
            for name, arguments in cells.items()
        }
        for future in as_they_come(futures):
            if future.status == "finished":
                yield futures[future], future.result()
            else:
                yield futures[future], {"error": f"the worker failed: {future.exception()}"}


def scores(final, path=()):
    """The accuracies on test images in a record's last line: {"test.acc": 0.98, ...}."""
    found = {}
    for key, value in final.items():
        here = (*path, key)
        if isinstance(value, dict):
            found |= scores(value, here)
        elif isinstance(value, int | float) and key.endswith("acc") and any("test" in part for part in here):
            found[".".join(here)] = value
    return found


def table(cells, results):
    """One line for each setting: n, and mean and sd over its seeds of every accuracy on test images, in percent."""
    groups = {}
    for name, cell in cells.items():
        if "final" in results.get(name, {}):
            key = "  ".join(f"{k} {v}" for k, v in cell.items() if k != "seed") or "as it is"
            groups.setdefault(key, []).append(scores(results[name]["final"]))
    lines, width = [], max(map(len, groups), default=0)
    for key, found in groups.items():
        parts = []
        for name in found[0]:
            mean, sd = mean_sd([100 * one[name] for one in found if name in one])
            parts.append(f"{name} {mean:.2f}" + (f" ± {sd:.2f}" if len(found) > 1 else "") + " %")
        lines.append(f"{key:{width}s}  n {len(found)}  {'  '.join(parts)}")
    return "\n".join(lines)


def processors():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main():
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    words, shared = words[:at], words[at + 1 :]
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", help="ff_mnist/train.py, say")
    parser.add_argument("--seeds", type=cli.seed_list, default=[0], metavar="0-4", help="default: 0")
    parser.add_argument(
        "--set", nargs="+", action="append", default=[], metavar="NAME VALUE", help="a setting's values"
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, on this machine (default: 1)")
    parser.add_argument("--out", metavar="DIR", help="where the cells' folders are (default: a new one in runs/sweep)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster: run the cells on its workers")
    options = parser.parse_args(words)
    script = Path(options.script).resolve()
    if not script.is_file():
        raise cli.UsageError(f"{options.script} does not exist: name a script like ff_mnist/train.py")
    if options.jobs < 1:
        raise cli.UsageError("--jobs: 1 or more")
    every = grid(options.set, options.seeds)
    cells = {folder_name(cell): cell for cell in every}
    if len(cells) < len(every):
        raise cli.UsageError("--set: two values would have folders of one name")
    out = Path(options.out or ROOT / "runs" / "sweep" / time.strftime("%Y%m%d-%H%M%S")).resolve()
    own = list(shared)
    if options.jobs > 1 and not options.scheduler and not any(word.startswith("--threads") for word in own):
        own += ["--threads", str(max(1, processors() // options.jobs))]  # they share this machine
    arguments = {name: (str(out / name), str(script), [*own, *flags(cell)]) for name, cell in cells.items()}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "sweep.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"command": record.command(), "cells": list(cells), "commit": record.commit()}) + "\n")
    print(f"{len(cells)} cells of {options.script} -> {out}", flush=True)
    results, bar = {}, cli.progress(range(len(cells)), "cells")
    steps = iter(bar)
    running = on_cluster(arguments, options.scheduler) if options.scheduler else here(arguments, options.jobs)
    for name, result in running:
        next(steps, None)
        results[name] = result
        said = result.get("error") or "  ".join(f"{k} {100 * v:.2f} %" for k, v in scores(result["final"]).items())
        print(f"{name}  {said}  {result.get('seconds', 0):.0f} s", flush=True)
    print(table(cells, results))
    failed = [name for name, result in results.items() if "error" in result]
    if failed:
        raise cli.UsageError(f"{len(failed)} of {len(cells)} cells failed; {out}/CELL/output.txt says why: {failed[0]}")


if __name__ == "__main__":
    cli.run(main)
