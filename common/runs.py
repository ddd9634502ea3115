"""A run from command line to last record line: what every script does in the same way around its own loop.

open_run          a new folder, or an interrupted one and what its checkpoint holds
Run.restore       that checkpoint, put back;    Run.checkpoint    a new one, after an epoch
Clock             how long the rest will take
positive, ...     settings that cannot work, said in one line before anything is computed
"""

import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common import ROOT, arrays, cli, data, record
from common.evaluate import mean_sd


@dataclass
class Run:
    """A run that is about to train: settings, data and their split, folder, epochs done, what its checkpoint held."""

    cfg: object
    ds: data.Dataset
    split: object
    folder: Path
    done: int = 0
    saved: tuple | None = None
    xp: object = np  # the array module that it computes with
    when: float = 0.0  # of the last checkpoint, a time.perf_counter(), and
    took: float = 0.0  # how long it took, in seconds

    def restore(self, nets, rngs):
        """Move nets (name -> layers, optimisers) to where the run computes, and put the checkpoint, if there is one,
        into them and into generators (name -> one)."""
        if self.xp is not np:
            move(self.xp, nets)
        if self.saved:
            found, states = self.saved
            for name, (layers, opts) in nets.items():
                record.restore(name, layers, opts, found)
            for name, rng in rngs.items():
                rng.bit_generator.state = states[name]
            self.saved = None

    def checkpoint(self, epoch, nets, rngs):
        """Save everything that lives between two epochs, unless that would take more than a twentieth of the time.

        The last epoch's is always saved.
        """
        begin = time.perf_counter()
        if epoch < self.cfg.n_epochs and self.took > 0.1 and begin - self.when < 20 * self.took:
            return
        found = {}
        for name, (layers, opts) in nets.items():
            found |= record.state_of(name, layers, opts)
        states = {name: rng.bit_generator.state for name, rng in rngs.items()}
        record.save_checkpoint(self.folder, found, {"epoch": epoch, "rngs": states})
        self.when = time.perf_counter()
        self.took = self.when - begin

    def finish(self, options, layers, figures):
        """After the last line: these layers' weights and state, if --save asks for them, and this script's figures."""
        if options.save:
            parts = [(i, layer.params | layer.state) for i, layer in enumerate(layers)]
            found = {f"{i}/{k}": arrays.host(p) for i, part in parts for k, p in part.items()}
            record.save_arrays(options.save, found, {"dataset": self.ds.name})
        if options.figures:
            cli.draw(figures, self.folder)


def open_run(cfg, options, threads, name, load, check, split):
    """Check the settings, load the data, make the folder (or take up options.resume) and write what is run, on what.

    name: folder in runs/; load(name, cfg, options) -> data set, see `images`; check(cfg, ds) raises UsageError;
    split(ds, cfg) -> what the run trains on, with `about`: what the record's first line says of it.
    """
    xp = arrays.module(getattr(options, "device", "cpu"))
    machine = record.machine(threads, xp)
    if not options.resume:
        ds = load(options.dataset, cfg, options)
        check(cfg, ds)
        run = Run(cfg, ds, split(ds, cfg), record.new_run(options.out or ROOT / "runs" / name, cfg.seed))
        dataset = {"name": ds.name, "sha256": ds.sha256, "note": ds.note, "class_names": list(ds.class_names)}
        first = {"command": record.command(), "config": asdict(cfg), "dataset": dataset | run.split.about}
        record.append(run.folder, first | {"machine": machine, "commit": record.commit()})
    else:
        run = _resumed(cfg, options, load, check, split, machine)
    run.xp = xp
    if xp is not np:
        run.split.to(xp)
    n, unit = run.split.about["train"], getattr(run.split, "unit", "images")
    where = machine.get("gpu", f"{threads} threads")
    print(f"{n} {unit} of {run.ds.name} ({run.ds.source}), seed {run.cfg.seed}, {where} -> {run.folder}")
    sys.stdout.flush()
    return run


def _resumed(cfg, options, load, check, split, machine):
    folder = Path(options.resume)
    lines = record.read(folder)
    if set(lines[0].get("config", ())) != set(asdict(cfg)):
        raise cli.UsageError(f"{folder} is no run of this script in this version: it cannot be resumed")
    if "final" in lines[-1]:
        raise cli.UsageError(f"{folder} is finished: nothing to resume")
    cfg = type(cfg)(**lines[0]["config"])
    ds = load(lines[0]["dataset"]["name"], cfg, options)
    if ds.sha256 != lines[0]["dataset"]["sha256"]:
        raise cli.UsageError(f"{folder} was trained on other data: {ds.source} is not what its record names")
    check(cfg, ds)
    run = Run(cfg, ds, split(ds, cfg), folder)
    if (folder / "checkpoint.npz").exists():
        found, meta = record.load_checkpoint(folder)
        run.done, run.saved = meta["epoch"], (found, meta["rngs"])
    else:  # killed before its first checkpoint: the seed makes the same network again
        record.cut(folder, 1)
    same = machine == lines[0]["machine"]
    note = "the same machine" if same else "another machine, versions or threads: expect other roundings"
    record.append(folder, {"resumed_after_epoch": run.done, "machine": machine, "same_machine": same})
    print(f"Resuming {folder} after epoch {run.done}, on {note}.")
    return run


def move(xp, nets):
    """Replace everything that lives between the steps of nets (name -> layers, optimisers) by xp's arrays."""
    for layer, opt in [pair for layers, opts in nets.values() for pair in zip(layers, opts, strict=True)]:
        arrays.move(xp, layer.params, layer.state, opt.state)


def images(auto):
    """A loader for `open_run`: the data set of that name, or what --dataset auto means here."""
    return lambda name, cfg, options: data.load(name, options.data_dir, auto=auto)


def threads(options):
    """Set the number of threads; a resumed run has as many as before, for BLAS rounds differently on another number."""
    if options.resume and not options.threads:
        options.threads = min(record.read(options.resume)[0]["machine"]["threads"], os.cpu_count())
    return cli.set_threads(options.threads)


class Clock:
    """Seconds since the first epoch of this process, and an estimate of the seconds left."""

    def __init__(self, done, n_epochs):
        self.done, self.n_epochs, self.begin = done, n_epochs, time.perf_counter()

    def seconds(self):
        return time.perf_counter() - self.begin

    def __call__(self, seconds, epoch):
        """What stands at the end of an epoch's line: its seconds of training, and those left in all."""
        left = self.seconds() / (epoch - self.done) * (self.n_epochs - epoch)
        return f"{seconds:.1f} s, {left:.0f} s left"


def epoch_line(epoch, cfg, log):
    """An epoch in one line, for people: losses of the layers, errors in percent."""
    losses = " ".join(f"{loss:.3f}" for loss in np.atleast_1d(log["loss"]))
    found = []
    for key in ("train", "val"):
        accs = [log[key][name] for name in ("acc", "softmax_acc") if name in log.get(key, {})]
        if accs:
            found.append(f"{key} {'/'.join(f'{100 * (1 - acc):.2f}' for acc in accs)} %")
    return f"epoch {epoch:3d}/{cfg.n_epochs}  loss {losses}  error {'  '.join(found)}"


def report(what, percents):
    """Several seeds in one line."""
    if len(percents) > 1:
        mean, sd = mean_sd(percents)
        print(f"{what} {mean:.2f} ± {sd:.2f} % (mean ± sd over {len(percents)} seeds)")


def peak_gb():
    """The most memory that this process has ever held, in GB; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def cost(clock, layers):
    """What a run's last line says of its price: learned numbers, peak memory, seconds since its first epoch."""
    parameters = sum(p.size for layer in layers for p in layer.params.values())
    return {"parameters": parameters, "peak_gb": peak_gb(), "seconds": clock.seconds()}


def numbers(text):
    """ "500,300" -> [500, 300]."""
    return [int(part) for part in text.split(",")]


def check_numbers(flag, text):
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise cli.UsageError(f"{flag} {text}: give whole numbers like 1000,1000")


def at_least(cfg, least, *names):
    for name in names:
        if not least <= getattr(cfg, name) < np.inf:
            raise cli.UsageError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must be {least} or more")


def positive(cfg, *names):
    for name in names:
        if not 0 < getattr(cfg, name) < np.inf:
            raise cli.UsageError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must be more than 0")
