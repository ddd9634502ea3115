"""The command line: flags made from a script's Config, threads, one-line errors, progress."""

import argparse
import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

from common import ROOT


class UsageError(Exception):
    """Something the user can mend; the message is one clear line that says how."""


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes end in one line and exit code 2."""

    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")


def parse(config_class, doc, argv=None, choices=None, presets=None, device=False, seeds=(0,)):
    """Flags from a flat dataclass (its comments are the help texts) and those every script has -> config, options.

    choices: field -> its allowed values. presets: name -> other defaults for some fields; flags still win.
    device: whether the script also runs on a GPU, with --device cuda. seeds: where neither --seed nor --seeds is given.
    options: seeds (list of int), dataset, data_dir, out, resume, threads, figures, save (and preset, if there are any).
    """
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    helps = _comments(config_class)
    settings = parser.add_argument_group("settings")
    for field in dataclasses.fields(config_class):
        flag, kind = "--" + field.name.replace("_", "-"), typing.get_type_hints(config_class)[field.name]
        if field.name == "seed":
            continue
        if kind is bool:
            settings.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=field.default, help=helps[field.name]
            )
        else:
            text = f"{helps[field.name]} (default: {field.default})"
            allowed = (choices or {}).get(field.name)
            name = None if allowed else kind.__name__
            settings.add_argument(flag, type=kind, default=field.default, choices=allowed, metavar=name, help=text)
    run = parser.add_argument_group("run")
    usual = ",".join(map(str, seeds))
    run.add_argument("--seed", type=int, metavar="int", help=f"random seed of the run (default: {usual})")
    run.add_argument("--seeds", type=seed_list, metavar="0-4", help="several runs, one after the other: 0-4 or 0,3,7")
    run.add_argument("--dataset", default="auto", metavar="name", help="auto (default), or the name of a data set")
    run.add_argument("--data-dir", metavar="DIR", help="archives you already have (also: environment FF_DATA)")
    run.add_argument("--out", metavar="DIR", help="where run folders go (default: runs/ in the repository)")
    run.add_argument("--resume", metavar="RUN", help="go on with an interrupted run folder, with its own settings")
    run.add_argument("--threads", type=int, default=0, metavar="int", help="processor threads (default: all)")
    if device:
        text = "cpu (default), or cuda: a GPU, by CuPy (not among the requirements)"
        run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=text)
    figures = "draw the figures at the end (default: yes)"
    run.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True, help=figures)
    run.add_argument("--save", metavar="FILE", help="also write the trained weights to this .npz file")
    if presets:
        text = "other defaults: " + "; ".join(f"{name}: {_flags(preset)}" for name, preset in presets.items())
        run.add_argument("--preset", choices=presets, help=text)
        parser.set_defaults(**presets.get(parser.parse_args(argv).preset, {}))
    options = vars(parser.parse_args(argv))
    if options["resume"] and options["seeds"]:
        raise UsageError("--resume continues one run: leave out --seeds")
    if options["seed"] is None:
        options["seed"] = (options["seeds"] or seeds)[0]
        options["seeds"] = options["seeds"] or list(seeds)
    options["seeds"] = options["seeds"] or [options["seed"]]
    config = config_class(**{f.name: options.pop(f.name) for f in dataclasses.fields(config_class)})
    if min(options["seeds"]) < 0 or len(set(options["seeds"])) < len(options["seeds"]):
        raise UsageError("--seed and --seeds: seeds are different numbers from 0 up")
    if options["save"] and (len(options["seeds"]) > 1 or not Path(options["save"]).resolve().parent.is_dir()):
        raise UsageError(f"--save {options['save']}: one run, one file, in a folder that exists")
    return config, argparse.Namespace(**options)


def _flags(preset):
    """{"n_epochs": 4, "flip": False} -> "--n-epochs 4 --no-flip"."""
    words = []
    for name, value in preset.items():
        name = name.replace("_", "-")
        words.append(f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}")
    return " ".join(words)


def seed_list(text):
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = map(int, match.groups())
        if first <= last:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        return [int(n) for n in text.split(",")]
    raise argparse.ArgumentTypeError(f"'{text}' is neither a range like 0-4 nor a list like 0,3,7")


def _comments(config_class):
    """field name -> the comment behind it in the source, of the class itself or of one that it extends."""
    sources = "".join(inspect.getsource(c) for c in reversed(config_class.__mro__) if dataclasses.is_dataclass(c))
    found = dict(re.findall(r"^ +(\w+): .*?# (.*)$", sources, re.MULTILINE))
    return {field.name: found[field.name].replace("%", "%%") for field in dataclasses.fields(config_class)}


def set_threads(threads):
    """Hold numba and BLAS to this many threads (0: all) and return the number. Raises UsageError."""
    import numba
    from threadpoolctl import threadpool_limits

    most = numba.config.NUMBA_NUM_THREADS
    if not 0 <= threads <= most:
        raise UsageError(f"--threads {threads}: this machine offers 1 to {most}")
    threads = threads or most
    numba.set_num_threads(threads)
    threadpool_limits(threads)
    return threads


def progress(items, label):
    """A tqdm bar over items, on a terminal only."""
    from tqdm import tqdm

    return tqdm(items, desc=label, leave=False, disable=None, unit="batch")


def draw(script, folder):
    """Draw a run's figures with the script (a path from the repository's root), in a process of its own."""
    if subprocess.run([sys.executable, str(ROOT / script), str(folder)]).returncode:
        raise UsageError(f"the run is complete, its figures are not: python {script} {folder} draws them again")


def run(main):
    """Call main(); what the user can mend ends with one line on stderr and exit code 2, Ctrl-C with 130."""
    from common.data import DataError
    from common.record import RecordError

    try:
        main()
    except (UsageError, DataError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; --resume with the run's folder goes on from its last checkpoint", file=sys.stderr)
        sys.exit(130)
