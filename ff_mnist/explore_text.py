"""Settings of sequence.py, chosen on strings that are held out: learning rates, and which layers the softmax reads.

Every kind of negatives gets the learning rate of the softmax that suits it: a baseline that is badly tuned is no
baseline. Everything is run by the script's own functions.

Run
    python ff_mnist/explore_text.py
    python ff_mnist/explore_text.py --resume runs/ff_mnist_text/RUN             go on after the last line
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, tables  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import sequence


@dataclass
class Config(tables.Config):
    validation: int = 48  # strings held out, all of which judge


WINDOW = {"negatives": "none", "readout": 0}
TABLES = {
    "text": (
        {"n_epochs": 8, "head_lr": 0.01},
        [
            *(
                (kind, f"{kind}, softmax {head:g}", {"negatives": kind, "head_lr": head})
                for kind in ("teacher", "self", "none")
                for head in (0.003, 0.01, 0.03, 0.1)
            ),
            *(
                ("window", f"the window itself, softmax {head:g}", WINDOW | {"head_lr": head})
                for head in (0.01, 0.1, 1)
            ),
            *(
                (kind, f"{kind}, hidden layers {lr:g}", {"negatives": kind, "lr": lr})
                for kind in ("teacher", "self")
                for lr in (0.0003, 0.003)
            ),
            *(("teacher", f"teacher, softmax on {n}", {"negatives": "teacher", "readout": n}) for n in (1, 3)),
        ],
    ),
    "text-low": (  # the lowest rates of the table above were its best
        {"n_epochs": 8, "head_lr": 0.003},
        [
            *(
                (kind, f"{kind}, hidden layers {lr:g}, softmax 0.003", {"negatives": kind, "lr": lr})
                for kind in ("teacher", "self")
                for lr in (0.0003, 0.0001)
            ),
            *(
                (kind, f"{kind}, softmax 0.001", {"negatives": kind, "head_lr": 0.001})
                for kind in ("teacher", "self", "none")
            ),
            ("window", "the window itself, softmax 0.003", WINDOW),
        ],
    ),
}


def run_variant(settings, cfg, text, seed):
    """Train one variant -> what its line in the record says: shares of symbols predicted, from 0 to 1."""
    chosen = replace(sequence.Config(), **settings, seed=seed, validation=cfg.validation)
    chosen.n_epochs = cfg.n_epochs or chosen.n_epochs
    sequence.check(chosen, text)
    parts = sequence.Split(text, chosen).parts
    net = sequence.Net(chosen, np.random.default_rng([seed, 0]))
    rng, seconds = np.random.default_rng([seed, 3]), 0.0
    for epoch in range(1, chosen.n_epochs + 1):
        log = sequence.train_epoch(net, parts["train"], rng, chosen, epoch)
        seconds += log["seconds"]
    acc = {key: float(sequence.accuracy_by_position(net, some, chosen).mean()) for key, some in parts.items()}
    line = {"config": asdict(chosen), "loss": log["loss"], "silent": log["silent"], "seconds": seconds}
    return line | {"softmax": {"train_acc": acc["train"], "val_acc": acc["val"]}}


def load(name, options):
    """The text, cut into strings."""
    return sequence.load("auto", sequence.Config(), options)


def main():
    tables.run(__doc__, TABLES, run_variant, "ff_mnist", load, ("dense",), Config)


if __name__ == "__main__":
    cli.run(main)
