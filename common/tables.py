"""Tables of variants: the same short run again and again with one thing changed, judged on held-out images.

A table is a dict of settings that make its reference, and lines of (group, name, what differs from the reference). Each
line's result goes into the record at once, so a table that was killed goes on after its last line.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common import ROOT, arrays, cli, compilation, data, record
from common.evaluate import mean_sd


@dataclass
class Config:
    """What every script of tables can be asked for; `table` is set to the script's own first one."""

    seed: int = 0  # random seed: weights, choice and order of images, everything that is drawn
    table: str = ""  # which table (default: the first)
    only: str = ""  # run only the variants whose name contains this text
    train_subset: int = 0  # training images of every variant (0: as many as the table says)
    n_epochs: int = 0  # epochs of every variant (0: as many as the table says)
    validation: int = 5000  # training images held out, all of which judge


def scores(line):
    """name -> percent, of everything in a variant's line that has a validation accuracy."""
    return {k: 100 * v["val_acc"] for k, v in line.items() if isinstance(v, dict) and "val_acc" in v}


def images(auto):
    """A loader for `run`: the data set of that name, or what --dataset auto means here."""
    return lambda name, options: data.load(name, options.data_dir, auto=auto)


def run(doc, tables, run_variant, name, load, kinds, config=Config, device=False):
    """The script: run_variant(settings, cfg, ds, seed) -> a line; name: of the folders in runs/, NAME_TABLE;
    load(data set's name, options) -> data set, for options.table; kinds: of layers, see compilation.py; device: whether
    there is a --device, of which run_variant then gets the array module as well."""
    cfg, options = cli.parse(config, doc, choices={"table": tuple(tables)}, device=device)
    xp = arrays.module(options.device if device else "cpu")
    where = [xp] if device else []
    cfg.table = cfg.table or next(iter(tables))
    seeds, done, wanted = options.seeds, set(), options.dataset
    if options.save:
        raise cli.UsageError("a table has no use for --save")
    if options.resume:
        folder = Path(options.resume)
        lines = record.read(folder)
        if set(lines[0].get("config", ())) != set(asdict(cfg)):
            raise cli.UsageError(f"{folder} is no run of this script in this version: it cannot be resumed")
        if "final" in lines[-1]:
            raise cli.UsageError(f"{folder} is finished: nothing to resume")
        cfg, seeds = config(**lines[0]["config"]), lines[0]["seeds"]
        wanted = lines[0]["dataset"]["name"]
        done = {(line["variant"], line["seed"]) for line in lines if "variant" in line}
        record.cut(folder, len(lines))  # a line that was not written whole goes
        record.append(folder, {"resumed_after": len(done), "commit": record.commit()})
    threads = cli.set_threads(options.threads)
    compilation.announce(*kinds)
    options.table = cfg.table
    ds = load(wanted, options)
    if options.resume and ds.sha256 != lines[0]["dataset"]["sha256"]:
        raise cli.UsageError(f"{folder} was run on other images: {ds.source} is not what its record names")
    variants = [line for line in tables[cfg.table][1] if cfg.only in line[1]]
    if not variants:
        raise cli.UsageError(f"--only '{cfg.only}': no variant of {cfg.table} has that in its name")
    if not 0 < cfg.validation < len(ds.x_train):
        raise cli.UsageError(f"--validation {cfg.validation}: {ds.name} has {len(ds.x_train)} to train on")
    if not options.resume:
        folder = record.new_run(options.out or ROOT / "runs" / f"{name}_{cfg.table}", seeds[0])
        first = {"command": record.command(), "seeds": seeds, "config": asdict(cfg), "commit": record.commit()}
        first |= {"machine": record.machine(threads, xp), "dataset": {"name": ds.name, "sha256": ds.sha256}}
        record.append(folder, first)
    print(f"{len(variants)} variants x {len(seeds)} seeds on {ds.name} -> {folder}", flush=True)
    for seed in seeds:
        for group, variant, settings in variants:
            if (variant, seed) in done:
                continue
            begin = time.perf_counter()
            line = run_variant(tables[cfg.table][0] | settings, cfg, ds, seed, *where)
            record.append(folder, {"variant": variant, "group": group, "seed": seed} | line)
            found = "  ".join(f"{net.upper()} {percent:.2f} %" for net, percent in scores(line).items())
            print(f"seed {seed}  {variant:50s} {found}  {time.perf_counter() - begin:.0f} s", flush=True)
    lines = [line for line in record.read(folder) if "variant" in line]
    record.append(folder, {"final": {"lines": len(lines)}})
    print(f"validation accuracy over {len(seeds)} seed{'s, mean ± sd' if len(seeds) > 1 else ''}")
    for _, variant, _ in variants:
        own = [scores(line) for line in lines if line["variant"] == variant]
        found = []
        for net in own[0]:
            mean, sd = mean_sd([of_seed[net] for of_seed in own])
            found.append(f"{net.upper()} {mean:.2f}{f' ± {sd:.2f}' if len(own) > 1 else ''} %")
        print(f"  {variant:50s} {'  '.join(found)}")
