"""What our two deviations from the write-up's code change: two ways to train times two ways to predict, seed by seed.

Idea
    The write-up's public code differs from train.py --preset write-up in two places. It predicts with mean(h) although
    every layer is trained on mean(h^2); and it computes each layer's activity a second time, after that layer's update,
    and hands on the second one. Here all four combinations run under the same seeds, everything else as in that preset
    (FF only).

Run
    python ff_cifar_lc/deviations.py --seeds 0-4      3 minutes; the table, and a record of it
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, cli, compilation, data, record  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import train

from common.evaluate import accuracy, in_batches, mean_sd
from common.goodness import ff_loss, normalise
from common.labels import write_slot, wrong_labels
from common.optim import Adam


def second_pass_step(layers, opts, images, labels, cfg, rng, n_classes):
    """train.ff_step_pairs, but each layer hands on what it answers after its update."""
    B = len(images)
    both = np.concatenate([labels, wrong_labels(labels, n_classes, rng)])
    h = write_slot(np.concatenate([images, images]), both, cfg.slot_rows, n_classes)
    t = np.repeat(np.float32([1, -1]), B)
    for layer, opt in zip(layers, opts, strict=True):
        y, cache = layer.forward(h)
        _, _, dy = ff_loss(y, t, cfg.threshold)
        _, grads = layer.backward(dy, cache)
        opt.step(grads)
        h = normalise(layer.forward(h, train=False)[0])
    return np.zeros((len(layers), 3))  # no log


def mean_activity(layers, images, cfg, n_classes):
    """The write-up's vote: mean(h) of every layer for every label. (N, H, W, C) -> (n_layers, N, n_classes)."""
    votes = np.empty((len(layers), len(images), n_classes), np.float32)
    for rows in in_batches(len(images), 128):
        for label in range(n_classes):
            x = images[rows].copy()
            h = write_slot(x, np.full(len(x), label), cfg.slot_rows, n_classes)
            for i, layer in enumerate(layers):
                y, _ = layer.forward(h, train=False)
                votes[i, rows, label] = y.mean(axis=(1, 2, 3))
                h = normalise(y)
    return votes


def main():
    argv = ["--preset", "write-up", *sys.argv[1:]]
    cfg, options = cli.parse(train.Config, __doc__, argv, train.CHOICES, train.PRESETS)
    if options.resume or options.save:
        raise cli.UsageError("deviations.py knows neither --resume nor --save")
    threads = cli.set_threads(options.threads)
    compilation.announce("local")
    ds = data.load(options.dataset, options.data_dir, auto="cifar10")
    train.check(cfg, ds)
    n_classes = len(ds.class_names)
    folder = record.new_run(options.out or ROOT / "runs" / "ff_cifar_lc_deviations", options.seeds[0])
    first = {"command": record.command(), "seeds": options.seeds, "config": asdict(cfg), "commit": record.commit()}
    first |= {"machine": record.machine(threads), "dataset": {"name": ds.name, "sha256": ds.sha256}}
    record.append(folder, first)

    scores = {}
    for seed in options.seeds:
        cfg.seed = seed
        split = train.Split(ds, cfg)
        for training, step in (("before the update", train.ff_step_pairs), ("after the update", second_pass_step)):
            layers = train_layers(step, split, cfg, ds.x_train.shape[1:], n_classes)
            images, labels = split.floats(split.test[0]), split.test[1]
            for prediction, vote in (("mean(h²)", train.ff_goodness), ("mean(h)", mean_activity)):
                a = accuracy(train.ff_vote(vote(layers, images, cfg, n_classes), cfg), labels)
                scores.setdefault((training, prediction), []).append(a)
                record.append(folder, {"seed": seed, "training": training, "prediction": prediction, "test_acc": a})
                print(f"seed {seed}  activity {training}, prediction by {prediction:8s}  {100 * a:.2f} %", flush=True)
    final = [{"training": t, "prediction": p, "test_acc": values} for (t, p), values in scores.items()]
    record.append(folder, {"final": final})
    print(f"mean ± sd over {len(options.seeds)} seeds -> {folder}")
    for (training, prediction), values in scores.items():
        m, s = mean_sd([100 * a for a in values])
        print(f"  activity {training}, prediction by {prediction:8s}  {m:.2f} ± {s:.2f} %")


def train_layers(step, split, cfg, shape, n_classes):
    """Train as train.py does, from the same seeds, with `step` in ff_step_pairs' place -> the layers."""
    layers = train.build(cfg, shape, n_classes, np.random.default_rng([cfg.seed, 0]), label_units=False)
    ff = layers, [Adam(layer.params, cfg.lr) for layer in layers]
    rngs = {"ff": np.random.default_rng([cfg.seed, 3])}
    for epoch in range(1, cfg.n_epochs + 1):
        train.train_epoch(ff, None, split, rngs, cfg, n_classes, epoch, step)
    return layers


if __name__ == "__main__":
    cli.run(main)
