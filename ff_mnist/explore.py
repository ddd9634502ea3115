"""What each choice is worth on MNIST: the same short run with one thing changed, on held-out images.

Tables of variants, each line a change of one reference run. Settings are chosen here, on the validation images; no test
image is ever looked at. Everything is run by the scripts' own functions.

    normalisation   what the next layer sees, times theta, times sum or mean of squares: where people lose days
    losses          threshold, margin and softmax; negatives; layer collaboration; peer normalisation
    rates           learning rates of train.py at both sizes
    recipe          a whole run of Hinton's program, and one number of it changed
    jitter          the numbers of train.py --jitter 2, at full width: a case for --device cuda
    unsupervised    learning rate and number of blurs of unsupervised.py; unsupervised-long: the best of both, longer
    local           learning rate of unsupervised.py --local
    recurrent       learning rate and sizes of recurrent.py --blind; -wide: wider, longer, and not blind; -deep: deeper
    amsga           what AMSGA's paper leaves open: normalisation, learning rate, threshold, readings of its text
    amsga-paper     its paper's recipe, full batch, and its baseline: what is handed on; a case for --device cuda
    amsga-fashion   the same on Fashion-MNIST
    amsga-tuning    learning rate and threshold with all four parts and with none, the same choice for both
    amsga-parts     all four parts of amsga.py, each left out, each alone, none
    hff             scale, margin, prototypes and votes of hff.py; hff-cifar10: the same on CIFAR-10; hff-long and
                    hff-cifar10-long: what needs a whole run to tell
    rates-of-all    the learning rate of every script on one network and budget, for the table that compares them: asked
                    with --dataset mnist, fashion-mnist or cifar10
    dtg             learning rates, decay, dropout of dtg_mlp.py; dtg-long: those that need a whole run to tell;
                    dtg-ladder: its paper's ablation (all on CIFAR-10)

Run
    python ff_mnist/explore.py --table normalisation --seeds 0-2
    python ff_mnist/explore.py --resume runs/ff_mnist_losses/RUN                go on after the last line
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, runs, tables  # before NumPy, see common/__init__.py

# isort: split
import amsga
import backprop
import dtg_mlp
import hff
import numpy as np
import recurrent
import train
import unsupervised

from common.arrays import host
from common.evaluate import accuracy
from common.split import Split


@dataclass
class Config(tables.Config):
    validation: int = 10000  # training images held out, all of which judge


# Adam's steps do not depend on the gradient's size, which sum and mean change a thousandfold.
SHORT = {"sizes": "500,500,500", "n_epochs": 10, "optimiser": "adam", "weight_decay": 0.0, "schedule": "linear"}
ALL = {"negatives": "all"}
RATES = (0.002, 0.001, 0.0005)
# Of the last epoch, in a variant's line.
LOGGED = ("loss", "silent", "mined", "by_the_rules", "false_negatives", "temperature", "theta", "head_loss")
HFF = [
    ("reference", "reference", {}),
    *(("scale", f"scale {s:g}", {"scale": s}) for s in (5.0, 10.0, 20.0, 80.0)),
    *(("margin", f"margin {m:g}", {"margin": m}) for m in (0.1, 0.3)),
    *(("prototypes", f"{n} for each class", {"per_class": n}) for n in (2, 5)),
    *(("learning rate", f"learning rate {lr:g}", {"lr": lr}) for lr in (0.0003, 0.003)),
    *(("dropout", f"dropout {d:g}", {"dropout": d}) for d in (0.1, 0.2, 0.5)),
    *(("weight decay", f"weight decay {d:g}", {"weight_decay": d}) for d in (0.01, 0.1)),
    *(("shifts", f"shifts up to {n}", {"jitter": n}) for n in (1, 2)),
]


def full_batch(preset, baseline):
    """What the paper does not say, in a whole run of its recipe, and of its baseline's: settings, lines of variants."""
    readings = [
        ("handed on as it is", {"norm": "none"}),
        ("mean square 1", {"norm": "rms"}),
        ("length 1", {"norm": "length"}),
        ("handed on as it is, sum of squares", {"norm": "none", "goodness": "sum"}),
    ]
    own = [("all parts", f"all parts, {name}", settings) for name, settings in readings]
    off = amsga.PRESETS[baseline]
    return amsga.PRESETS[preset], own + [("none", f"baseline, {name}", off | settings) for name, settings in readings]


D3 = {"head": "layers", "head_norm": "none", "lambda_ff": 1.0}  # App. D.3, as far as it says; row by row below
TABLES = {
    "normalisation": (
        SHORT,
        [
            ("reference", "reference", {}),
            *(
                (
                    f"{goodness} of squares",
                    f"{goodness}, {name}, theta {theta:g}",
                    {"goodness": goodness, "norm": norm, "theta": theta},
                )
                for goodness in ("sum", "mean")
                for norm, name in (("rms", "mean square 1"), ("length", "length 1"), ("none", "not normalised"))
                for theta in (0.01, 0.1, 1.0, 2.0)
                if (goodness, norm, theta) != ("sum", "rms", 1.0)
            ),
        ],
    ),
    "losses": (
        SHORT,
        [
            ("reference", "reference", {}),
            ("negatives", "uniform negatives", {"negatives": "uniform"}),
            ("negatives", "all nine wrong labels", ALL),
            *(
                (
                    "margin loss",
                    f"margin, {kind} negatives, beta {b:g}",
                    {"loss": "margin", "negatives": kind, "beta": b},
                )
                for kind in ("hard", "uniform", "all")
                for b in (0.03, 0.3, 1.0)
            ),
            *(
                ("softmax loss", f"softmax over labels, beta {b:g}", ALL | {"loss": "softmax", "beta": b})
                for b in (0.03, 0.3, 1.0)
            ),
            *(("threshold loss", f"threshold, beta {b:g}", {"beta": b}) for b in (0.03, 0.3)),
            *(("collaboration", f"gamma {c:g}", {"collaborate": c}) for c in (0.1, 0.3, 0.5, 0.7, 1.0)),
            *(("peers", f"peer normalisation {p:g}", {"peer": p}) for p in (0.0, 0.003, 0.3)),
        ],
    ),
    "rates": (
        {"n_epochs": 10},
        [
            (sizes, f"{sizes}, learning rate {lr:g}", {"sizes": sizes, "lr": lr})
            for sizes in ("1000,1000,1000", "2000,2000,2000,2000")
            for lr in RATES
        ],
    ),
    "recipe": (  # its reference is the program
        {"n_epochs": 60, "sizes": "1000,1000,1000", "weight_decay": 0.001},
        [
            ("reference", "reference", {}),
            ("weight decay", "weight decay 0.003", {"weight_decay": 0.003}),
            ("learning rate", "learning rate 0.002", {"lr": 0.002}),
            ("peers", "peer normalisation 0.1", {"peer": 0.1}),
            *(("threshold", f"theta {theta:g}", {"theta": theta}) for theta in (0.1, 0.3)),
            *(("loss", f"margin loss, beta {b:g}", {"loss": "margin", "beta": b}) for b in (0.3, 1.0)),
        ],
    ),
    "jitter": (
        {"n_epochs": 40, "jitter": 2},
        [
            ("reference", "reference", {}),
            *(("weight decay", f"weight decay {d:g}", {"weight_decay": d}) for d in (0.001, 0.0003)),
            ("learning rate", "learning rate 0.002, weight decay 0.001", {"lr": 0.002, "weight_decay": 0.001}),
        ],
    ),
    "unsupervised": (
        {"n_epochs": 6, "lr": 0.001, "blurs": 6},
        [
            *(("learning rate", f"learning rate {lr:g}", {"lr": lr}) for lr in RATES),
            ("weight decay", "weight decay 0.003", {"weight_decay": 0.003}),
            *(("blurs", f"{n} blurs", {"blurs": n}) for n in (2, 4, 9, 14)),
        ],
    ),
    "unsupervised-long": (
        {"n_epochs": 20},
        [
            ("both", f"learning rate {lr:g}, {n} blurs", {"lr": lr, "blurs": n})
            for lr, n in ((0.0005, 6), (0.0005, 2), (0.0005, 1), (0.001, 2), (0.00025, 2))
        ],
    ),
    "local": (
        {"n_epochs": 10, "local": True, "blurs": 6},
        [("learning rate", f"learning rate {lr:g}", {"lr": lr}) for lr in (0.004, *RATES)],
    ),
    "recurrent": (
        {"n_epochs": 5, "sizes": "1000,1000", "lr": 0.002, "weight_decay": 0.001, "blind": True},
        [
            *(("learning rate", f"learning rate {lr:g}", {"lr": lr}) for lr in (0.003, *RATES[:2])),
            ("label", "the label one-hot as it is", {"label": 0.1}),
            ("weight decay", "weight decay 0.003", {"weight_decay": 0.003}),
            ("peers", "peer normalisation 0.1", {"peer": 0.1}),
            *(("sizes", f"units {n}", {"sizes": n}) for n in ("500,500", "1000,1000,1000")),
            ("both", "weight decay 0.003, peer normalisation 0.1", {"weight_decay": 0.003, "peer": 0.1}),
        ],
    ),
    "recurrent-wide": (
        {"n_epochs": 12},
        [
            ("sizes", "units 1000,1000", {"sizes": "1000,1000", "lr": 0.002}),
            ("sizes", "units 1000,1000, before the label too", {"sizes": "1000,1000", "lr": 0.002, "blind": True}),
            ("sizes", "units 2000,2000", {"sizes": "2000,2000", "lr": 0.001}),
            ("sizes", "units 2000,2000, learning rate 0.0005", {"sizes": "2000,2000", "lr": 0.0005}),
            ("sizes", "units 2000,2000, label 0.3", {"sizes": "2000,2000", "lr": 0.001, "label": 0.3}),
        ],
    ),
    "recurrent-deep": (
        {"n_epochs": 12, "lr": 0.001},
        [
            ("steps", "units 1000,1000, five steps", {"sizes": "1000,1000", "lr": 0.002, "steps": 5}),
            ("sizes", "units 1000,1000,1000, learning rate 0.002", {"sizes": "1000,1000,1000", "lr": 0.002}),
            ("sizes", "units 1000,1000,1000", {"sizes": "1000,1000,1000"}),
        ],
    ),
    "amsga": (
        {"n_epochs": 15},
        [
            ("reference", "reference", {}),
            *(
                (f"norm {norm}", f"{norm}, learning rate {lr:g}", {"norm": norm, "lr": lr})
                for norm in ("none", "rms", "length")
                for lr in (0.001, 0.003, 0.01, 0.03, 0.1)
                if (norm, lr) != ("none", amsga.Config.lr)
            ),
            *(("threshold", f"theta {t:g}", {"theta": t}) for t in (0.5, 1.0, 4.0, 8.0)),
            ("vote", "all but the first layer", {"vote": "upper"}),
            *(("mining", f"by the {who} layer", {"mining_layer": who}) for who in ("first", "last")),
            ("depth", "l/L of the algorithm", {"depth": "algorithm"}),
            ("scales", "eq. 2 over the batch", {"local_mean": "batch"}),
            ("negatives", "shuffled labels", {"negatives": "shuffle"}),
            *(("batch", f"batches of {n}", {"batch_size": n}) for n in (100, 2500)),
            *(("clipping", f"norm {c:g}", {"clip": c}) for c in (0.03, 1e9)),
        ],
    ),
    "amsga-paper": full_batch("paper", "baseline"),
    "amsga-fashion": full_batch("paper-fashion", "baseline-fashion"),
    "amsga-tuning": (
        {"n_epochs": 30},
        [
            (name, f"{name}, learning rate {lr:g}, theta {t:g}", settings | {"lr": lr, "theta": t})
            for name, settings in (("all parts", {}), ("none", amsga.BASELINE))
            for lr in (0.003, 0.01, 0.03, 0.1)
            for t in (1.0, 2.0, 4.0)
        ],
    ),
    "amsga-parts": (  # both the best of amsga-tuning
        {"n_epochs": 30, "lr": 0.01, "theta": 4.0},
        [
            ("reference", "reference", {}),
            *(("left out", f"without {part}", {part: False}) for part in amsga.BASELINE),
            *(("alone", f"{part} alone", amsga.BASELINE | {part: True}) for part in amsga.BASELINE),
            ("none", "none", amsga.BASELINE),
            ("threshold", "all, theta 8", {"theta": 8.0}),
            ("threshold", "none, theta 8", amsga.BASELINE | {"theta": 8.0}),
        ],
    ),
    "hff": ({"n_epochs": 10}, HFF),
    "hff-long": (
        {"n_epochs": 60, "jitter": 1},
        [
            ("reference", "reference", {}),
            *(("shifts", f"shifts up to {n}", {"jitter": n}) for n in (0, 2)),
            *(("scale", f"scale {s:g}", {"scale": s}) for s in (20.0, 80.0)),
            ("prototypes", "2 for each class", {"per_class": 2}),
            ("weight decay", "weight decay 0.1", {"weight_decay": 0.1}),
            ("dropout", "dropout 0.2", {"dropout": 0.2}),
            ("sizes", "units 2000,2000,2000", {"sizes": "2000,2000,2000"}),
        ],
    ),
    "hff-cifar10": ({"n_epochs": 10, "jitter": 4, "flip": True}, HFF),  # 4: what convolutional networks usually get
    "hff-cifar10-long": (
        hff.PRESETS["cifar10"] | {"dropout": 0.0},
        [
            ("reference", "reference", {}),
            *(("shifts", f"shifts up to {n}", {"jitter": n}) for n in (0, 2)),
            *(("dropout", f"dropout {d:g}", {"dropout": d}) for d in (0.1, 0.3)),
            ("weight decay", "weight decay 0.1", {"weight_decay": 0.1}),
            ("prototypes", "5 for each class", {"per_class": 5}),
            ("sizes", "units 3000,3000,3000", {"sizes": "3000,3000,3000"}),
            ("batch", "batches of 100, learning rate 0.001", {"batch_size": 100, "lr": 0.001}),
        ],
    ),
    "rates-of-all": (
        {"n_epochs": 20},
        [
            (
                name,
                f"{name}, learning rate {lr:g}",
                {"script": script, "sizes": "1000,1000" if script == "recurrent" else "1000,1000,1000", "lr": lr}
                | settings,
            )
            for name, script, settings, rates in (
                ("train.py", "train", {}, (0.0005, 0.001, 0.002)),
                (
                    "train.py --loss margin",
                    "train",
                    {"loss": "margin", "beta": 0.3, "optimiser": "adam", "peer": 0.0, "weight_decay": 0.0},
                    RATES,
                ),
                ("unsupervised.py", "unsupervised", {"blurs": 1}, (0.00025, 0.0005, 0.001)),
                ("recurrent.py", "recurrent", {}, (0.001, 0.002)),
                ("amsga.py", "amsga", {}, (0.01, 0.03, 0.1)),
                ("hff.py", "hff", {}, (0.0003, 0.001, 0.003)),
                ("dtg_mlp.py", "dtg_mlp", {}, (0.0003, 0.001, 0.003)),
                ("dtg_mlp.py --detach", "dtg_mlp", {"detach": True}, (0.0003, 0.001, 0.003)),
                ("backprop.py", "backprop", {"standard": True}, (0.0001, 0.0003, 0.001)),
            )
            for lr in rates
        ],
    ),
    "dtg": (
        dtg_mlp.PRESETS["cifar10"] | {"n_epochs": 10},
        [
            ("reference", "reference", {}),
            *(("learning rate", f"learning rate {lr:g}", {"lr": lr}) for lr in (0.0003, 0.003)),
            ("norm", "nothing between layers", {"norm": "none"}),
            *(("weight decay", f"weight decay {d:g}", {"weight_decay": d}) for d in (0.01, 0.1)),
            ("paper", "rate and decay of D.1", {"lr": 0.0002, "weight_decay": 0.001}),
            ("augmentation", "images as they are", {"jitter": 0, "flip": False}),
            *(("augmentation", f"shifts up to {n}", {"jitter": n}) for n in (2, 4)),
            ("batch", "batches of 250, learning rate 0.002", {"batch_size": 250, "lr": 0.002}),
            *(("dropout", f"dropout {d:g}", {"dropout": d, "head_dropout": d}) for d in (0.1, 0.2)),
            ("smoothing", "label smoothing 0.1", {"smoothing": 0.1}),
            *(("lambda", f"lambda {v:g}", {"lambda_ff": v}) for v in (0.01, 1.0)),
        ],
    ),
    "dtg-long": (
        dtg_mlp.PRESETS["cifar10"],
        [
            ("reference", "reference", {}),
            *(("augmentation", f"shifts up to {n}", {"jitter": n}) for n in (2, 4)),
            *(("dropout", f"dropout {d:g}", {"dropout": d, "head_dropout": d}) for d in (0.1, 0.2, 0.3)),
            ("smoothing", "label smoothing 0.1", {"smoothing": 0.1}),
            ("both", "dropout 0.2, label smoothing 0.1", {"dropout": 0.2, "head_dropout": 0.2, "smoothing": 0.1}),
            ("paper", "rate and decay of D.1", {"lr": 0.0002, "weight_decay": 0.001}),
            ("learning rate", "learning rate 0.0003", {"lr": 0.0003}),
            ("BP", "lambda 0: backpropagation alone", {"lambda_ff": 0.0}),
        ],
    ),
    "dtg-ladder": (
        dtg_mlp.PRESETS["cifar10"] | {"n_epochs": 20, "jitter": 4},
        [
            ("1", "BatchNorm everywhere, shared", {"norm": "batch", "head": "none", "dynamic": False}),
            (
                "1",
                "BatchNorm everywhere, right and wrong apart",
                {"norm": "batch-halves", "head": "none", "dynamic": False},
            ),
            ("2", "pure FF", {"head": "none", "dynamic": False}),
            ("3", "DTG-FF, head on the last layer", D3 | {"head": "last"}),
            ("4", "head on all layers but the last", D3),
            ("5", "lambda 0.1", D3 | {"lambda_ff": 0.1}),
            ("6", "LayerNorm before the head", D3 | {"lambda_ff": 0.1, "head_norm": "layer"}),
            ("7", "BatchNorm before the head", D3 | {"lambda_ff": 0.1, "head_norm": "batch"}),
            ("detached", "the same, the head hands nothing back", D3 | {"head_norm": "batch", "detach": True}),
            ("BP", "the same, lambda 0: backpropagation alone", D3 | {"lambda_ff": 0.0, "head_norm": "batch"}),
        ],
    ),
}


def ask_backprop(net, data, some, labels, cfg):
    return {"bp": {"acc": accuracy(host(backprop.predict(net.layers, some, data, cfg)), host(labels))}}


def ask_train(net, data, some, labels, cfg):
    scores, _ = train.evaluate(net, some, labels, cfg, data.n_classes)
    return {"ff": {"acc": scores["acc"], "layer_acc": scores["layer_acc"]}, "softmax": {"acc": scores["softmax_acc"]}}


def ask_recurrent(net, data, some, labels, cfg):
    scores, _ = recurrent.evaluate(net, some, labels, cfg, data.n_classes)
    return {"ff": {"acc": scores["acc"]}}


def ask_unsupervised(net, data, some, labels, cfg):
    return {"softmax": {"acc": accuracy(unsupervised.predict(net, some, cfg), labels)}}


def ask_amsga(net, data, some, labels, cfg):
    scores, _ = amsga.evaluate(net, some, labels, cfg, data.n_classes)
    return {"ff": {"acc": scores["acc"], "votes": scores["votes"], "layer_acc": scores["layer_acc"]}}


def ask_hff(net, data, some, labels, cfg):
    scores, _ = hff.evaluate(net, some, labels, cfg, data.mean_sd)
    return {"ff": {"acc": scores["acc"], "votes": scores["votes"], "layer_acc": scores["layer_acc"]}}


def ask_dtg(net, data, some, labels, cfg):
    return {"softmax": {"acc": dtg_mlp.evaluate(net, some, labels, cfg, data.mean_sd, data.n_classes)["acc"]}}


METHODS = {
    "train": (train, ask_train),
    "unsupervised": (unsupervised, ask_unsupervised),
    "recurrent": (recurrent, ask_recurrent),
    "amsga": (amsga, ask_amsga),
    "hff": (hff, ask_hff),
    "dtg_mlp": (dtg_mlp, ask_dtg),
    "backprop": (backprop, ask_backprop),
}
SCRIPTS = {"local": "unsupervised", "dtg": "dtg_mlp"}  # by how a table's name begins, where that is no method


def method(table, settings):
    """The script that a variant is a run of, and how it is asked. Takes "script" out of settings."""
    kind = table.partition("-")[0]
    return METHODS[settings.pop("script", SCRIPTS.get(kind, kind if kind in METHODS else "train"))]


def run_variant(settings, cfg, ds, seed, xp=np):
    """Train one variant -> what its line in the record says: accuracies on all held-out images, from 0 to 1."""
    script, ask = method(cfg.table, settings)
    chosen = replace(script.Config(), **settings, seed=seed, validation=cfg.validation, eval_subset=1000)
    chosen.train_subset = cfg.train_subset or chosen.train_subset
    chosen.n_epochs = cfg.n_epochs or chosen.n_epochs
    script.check(chosen, ds)
    data = Split(ds, chosen)
    shape = ds.x_train.shape[1:] if script is unsupervised else data.size
    net = script.Net(chosen, shape, data.n_classes, np.random.default_rng([seed, 0]))
    if xp is not np:
        data.to(xp)
        runs.move(xp, net.parts)
    rng, seconds = np.random.default_rng([seed, 3]), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # some of these ways to learn blow up: that is a result
        for epoch in range(1, chosen.n_epochs + 1):
            log = script.train_epoch(net, data, rng, chosen, epoch)
            seconds += log["seconds"]
        on_train = ask(net, data, *(part[:1000] for part in data.train), chosen)
        on_val = ask(net, data, *data.val, chosen)
    line = {"config": asdict(chosen), "seconds": seconds} | {k: log[k] for k in LOGGED if k in log}
    for key, scores in on_val.items():
        line[key] = {"train_acc": on_train[key]["acc"], "val_acc": scores.pop("acc")} | scores
    return line


def load(name, options):
    """The data set of --dataset; auto: the one that the table is about."""
    cifar10 = ("hff-cifar10", "hff-cifar10-long", "dtg", "dtg-long", "dtg-ladder")
    auto = {"amsga-fashion": "fashion-mnist"} | dict.fromkeys(cifar10, "cifar10")
    return tables.images(auto.get(options.table, "mnist"))(name, options)


def main():
    tables.run(__doc__, TABLES, run_variant, "ff_mnist", load, ("dense", "local"), Config, True)


if __name__ == "__main__":
    cli.run(main)
