"""Memory and throughput of a training step: Forward-Forward, naive and pipelined, against backpropagation.

    FF naive          a block's output is computed again after its step (--no-pipelined)
    FF pipelined      what was computed before the step is handed on: nothing is kept but two neighbours' activities
    BP                one head; all activities are kept until the error comes back
    BP, 2 or 4 parts  gradient accumulation: the batch in micro-batches
    BP, recomputed    activation checkpointing: only what enters each block is kept

Every cell is a process of its own, one after the other. Activations: the most bytes that arrays take up during a step
beyond what is there before it (weights, optimisers, images), counted at every allocation, after a step that does not
count. Resident: the most that the system says the process has held, compiler included, before anything is counted. With
--device cuda: what CuPy's pool has taken from the card for the step. A cell that memory does not suffice for says so.

    python benchmarks/audit.py [--quick]                     VGG8, 11, 13 at 32 x 32, batches of 32 and 128, width 0.25
    python benchmarks/audit.py --depth                       4 to 32 equal blocks: what grows with depth
    python benchmarks/audit.py --large                       VGG11 at 224 x 224, small batches
    [--width 0.25] [--device cpu] [--out FILE]               FILE: a .jsonl for viz/audit.py
"""

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, arrays, cli, compilation, record, runs  # before NumPy, see common/__init__.py

# isort: split
import importlib.util

import numpy as np

METHODS = {
    "FF naive": {"pipelined": False},
    "FF pipelined": {},
    "BP": {"credit": "bp"},
    "BP, 2 parts": {"credit": "bp", "accumulate": 2},
    "BP, 4 parts": {"credit": "bp", "accumulate": 4},
    "BP, recomputed": {"credit": "bp", "recompute": True},
}


def script():
    spec = importlib.util.spec_from_file_location("ff_cnn_train", ROOT / "ff_cnn" / "train.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for n in (4, 8, 16, 32):  # one width, one resolution: only depth differs
        module.BACKBONES[f"equal{n}"] = ([256] * n, [])
    return module


def measure(cell):
    """One cell, in this process -> what the record says of it."""
    cnn = script()
    xp = arrays.module(cell["device"])
    threads = cli.set_threads(0)
    compilation.announce("local")
    settings = METHODS[cell["method"]]
    cfg = cnn.Config(backbone=cell["backbone"], width=cell["width"], batch_size=cell["batch"], **settings)
    rng = np.random.default_rng(0)
    x = xp.asarray(rng.standard_normal((cell["batch"], cell["side"], cell["side"], 3)).astype(np.float32))
    labels = xp.asarray(rng.integers(0, 10, cell["batch"]))
    net = cnn.Net(cfg, x.shape[1:], 10, np.random.default_rng(0))
    if xp is not np:
        runs.move(xp, {"net": net.layers})
    take = lambda: cnn.STEPS[cfg.credit](net, x, labels, cfg, rng)  # noqa: E731
    line = dict(cell)
    take()  # compiles, and makes what lives between steps
    seconds = []
    for _ in range(cell["repeats"]):
        begin = time.perf_counter()
        arrays.host(take())
        seconds.append(time.perf_counter() - begin)
    line["images_per_second"] = cell["batch"] / float(np.median(seconds))
    line["resident"] = runs.peak_gb() if xp is np else None  # before what is counted slows everything down
    if xp is np:
        tracemalloc.start()
        take()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        take()
        line["activations"] = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    else:
        xp.get_default_memory_pool().free_all_blocks()
        before = xp.get_default_memory_pool().total_bytes()
        take()
        line["activations"] = xp.get_default_memory_pool().total_bytes() - before
    return line | {"machine": record.machine(threads, xp)}


def cells(args):
    if args.depth:
        shapes = [(f"equal{n}", 32, 32) for n in (4, 8, 16, 32)]
    elif args.large:
        shapes = [("vgg11", 224, batch) for batch in (2, 4)]
    else:
        backbones = ("vgg8",) if args.quick else ("vgg8", "vgg11", "vgg13")
        shapes = [(name, 32, batch) for name in backbones for batch in ((32,) if args.quick else (32, 128))]
    for backbone, side, batch in shapes:
        for method in METHODS:
            cell = {"method": method, "backbone": backbone, "side": side, "batch": batch, "width": args.width}
            if not (method == "BP, 4 parts" and batch < 4):
                yield cell | {"device": args.device, "repeats": args.repeats}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="steps whose median is printed")
    parser.add_argument("--quick", action="store_true", help="VGG8 and one batch size alone")
    parser.add_argument("--depth", action="store_true", help="4 to 32 equal blocks")
    parser.add_argument("--large", action="store_true", help="VGG11 at 224 x 224")
    parser.add_argument("--out", metavar="FILE", help="append the cells to this .jsonl")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(json.loads(args.cell)), default=float))
        return
    shown, found = None, []
    for cell in cells(args):
        command = [sys.executable, __file__, "--cell", json.dumps(cell)]
        done = subprocess.run(command, capture_output=True, text=True)
        of_memory = done.returncode == -9 or "MemoryError" in done.stderr  # killed by the system, or NumPy, or CuPy
        if done.returncode and not of_memory:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise cli.UsageError(f"{cell['method']}, {cell['backbone']}, batch {cell['batch']}: {lines[-1]}")
        line = cell | {"error": "out of memory"} if of_memory else json.loads(done.stdout.strip().splitlines()[-1])
        line |= {"command": record.command(), "commit": record.commit()}
        found.append(line)
        head = f"{line['backbone']} x {line['width']:g}, {line['side']} x {line['side']}, batches of {line['batch']}"
        if head != shown:
            shown = head
            print(f"\n{head} ({args.device})")
        if of_memory:
            print(f"  {line['method']:16s} out of memory", flush=True)
        else:
            resident = f"{line['resident']:.2f} GB resident" if line["resident"] else ""
            rate = f"{line['images_per_second']:8.1f} images/s"
            text = f"{line['activations'] / 1e6:9.1f} MB activations  {rate}  {resident}"
            print(f"  {line['method']:16s} {text}", flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    if args.depth:
        of = {(line["method"], line["backbone"]): line.get("activations", np.inf) for line in found}
        for method in METHODS:
            print(f"  {method:16s} 32 blocks take {of[method, 'equal32'] / of[method, 'equal4']:.2f} x what 4 take")
        if of["FF pipelined", "equal32"] > 1.1 * of["FF pipelined", "equal4"]:
            raise SystemExit("pipelined FF grows with depth")


if __name__ == "__main__":
    cli.run(main)
