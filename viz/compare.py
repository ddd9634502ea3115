"""Runs beside each other, from their records alone: final accuracies, paired differences and curves.

    python viz/compare.py RUN RUN ... [--out FILE]    RUN: a run folder or a record.jsonl; FILE: compare.png

Runs that differ in nothing but the seed are one group, called A, B, C, ... in the order of the command line and
described by the settings in which the groups differ (–: a record from before there was this setting). Differences are
taken seed by seed, over the seeds that both sides finished. ± is the sample standard deviation.
"""

import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from common.evaluate import mean_sd
from viz import style
from viz.results import spread

NETS = {"ff": ("FF", "-"), "bp": ("BP", "--")}  # name and line style: here a colour is a group, not a method
COLORS = [style.FF, style.BP, style.POS, style.NEG, *(style.layer(i)["color"] for i in (2, 0, 1))]
LEGEND_WIDTH = 105  # characters


class Run:
    """One record: data set, settings without the seed, seed, curves and final test accuracy of each net, in %."""

    def __init__(self, path):
        self.path = path
        lines = record.read(path)
        try:
            first, epochs = lines[0], [line for line in lines if "epoch" in line]
            self.dataset, self.settings = first["dataset"]["name"], dict(first["config"])
            self.seed = self.settings.pop("seed")
            self.n_classes = len(first["dataset"].get("class_names", range(10)))
            self.key = "val_acc" if any("val_acc" in line["ff"] for line in epochs) else "train_acc"
            self.epochs = [line["epoch"] for line in epochs]
            nets = [net for net in NETS if any(net in line for line in epochs)]
            self.curves = {net: [100 * line[net][self.key] for line in epochs] for net in nets}
            self.finished = "final" in lines[-1]
            self.test = {net: 100 * lines[-1]["final"][net]["test_acc"] for net in nets} if self.finished else {}
            if self.finished and not epochs:
                raise KeyError("ff")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise record.RecordError(f"{path} is not a run of ff_cifar_lc/train.py") from None


class Group:
    """Runs that differ in nothing but the seed."""

    def __init__(self, runs, i):
        self.runs, self.letter = sorted(runs, key=lambda run: run.seed), chr(ord("A") + i % 26) + "'" * (i // 26)
        self.begun = [run for run in self.runs if run.epochs]
        self.nets = [net for net in NETS if any(net in run.curves for run in self.runs)]
        self.settings = {"dataset": runs[0].dataset, **runs[0].settings}

    def test(self, net):
        """Seed -> final test accuracy of the runs that finished."""
        return {run.seed: run.test[net] for run in self.runs if net in run.test}

    def name(self, others):
        """The settings in which the groups differ; of a single group, its data set."""
        keys = dict.fromkeys(key for other in others for key in other.settings)
        differ = [key for key in keys if any(o.settings.get(key, "–") != self.settings.get(key, "–") for o in others)]
        return " ".join(f"{key}={self.settings.get(key, '–')}" for key in differ) or self.settings["dataset"]


def grouped(runs):
    """Groups in the order in which they were named."""
    found = []
    for run in runs:
        same = next((g for g in found if (g[0].dataset, g[0].settings) == (run.dataset, run.settings)), None)
        if same is None:
            found.append(same := [])
        for other in same:
            if other.seed == run.seed:
                raise record.RecordError(f"{other.path} and {run.path} are the same run: settings and seed {run.seed}")
        same.append(run)
    return [Group(same, i) for i, same in enumerate(found)]


def seeds(n, kind=""):
    return f"{n} {kind}seed{'' if n == 1 else 's'}"


def table(groups):
    """One line per group and net."""
    rows = [("group", "net", "seeds", "test accuracy, %", "settings")]
    for group in groups:
        for net in group.nets:
            test = list(group.test(net).values())
            rows.append((group.letter, NETS[net][0], str(len(test)), spread(test), group.name(groups)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]


def difference(what, a, b):
    """a - b, two dicts seed -> accuracy in %, over the seeds that both have."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return f"{what}  no shared seeds"
    mean, sd = mean_sd([a[seed] - b[seed] for seed in shared])
    sd = "" if np.isnan(sd) else f" ± {sd:.2f}"
    return f"{what}  {mean:+.2f}{sd} points ({seeds(len(shared), 'shared ')})"


def differences(groups):
    """The first group against every other one, then FF against BP within each group."""
    first, *others = groups
    lines = []
    for other in others:
        for net in [net for net in other.nets if net in first.nets]:
            what = f"{NETS[net][0]}: {other.letter} - {first.letter}"
            lines.append(difference(what, other.test(net), first.test(net)))
    for group in groups:
        if "bp" in group.nets:
            lines.append(difference(f"{group.letter}: FF - BP", group.test("ff"), group.test("bp")))
    return lines


def unfinished(groups):
    """One line per run without a final line."""
    for group in groups:
        for run in group.runs:
            if not run.finished:
                last, all_epochs = (run.epochs or [0])[-1], run.settings.get("n_epochs", "?")
                where = f"{run.path} ({group.letter}, seed {run.seed})"
                yield f"{where}: unfinished after epoch {last} of {all_epochs}, so in no number above"


def curves(ax, groups):
    """Left: every run thin, the mean of its group thick."""
    for group, color in zip(groups, COLORS, strict=False):
        whole = [run for run in group.begun if run.finished] or group.begun
        for net in group.nets:
            line = {"color": color, "linestyle": NETS[net][1], "marker": "."}
            for run in group.begun:
                ax.plot(run.epochs, run.curves[net], **line, linewidth=0.8, markersize=2, alpha=0.5)
            n = min(len(run.epochs) for run in whole)  # an unfinished run would bend the mean where it ends
            mean = np.mean([run.curves[net][:n] for run in whole], axis=0)
            ax.plot(whole[0].epochs[:n], mean, **line, linewidth=2.4, markersize=7)
    for net in dict.fromkeys(net for group in groups for net in group.nets):
        ax.plot([], [], color="#000000", linestyle=NETS[net][1], label=NETS[net][0])
    for n in sorted({run.n_classes for group in groups for run in group.begun}):
        style.reference(ax, 100 / n, f"chance ({100 / n:.3g} %)")
    keys = {group.letter: group.begun[0].key for group in groups if group.begun}
    train = [letter for letter, key in keys.items() if key == "train_acc"]
    some = f"; {', '.join(train)}: training" if 0 < len(train) < len(keys) else ""
    ax.set_ylim(bottom=0)
    ax.set_ylabel(f"{'training' if len(train) == len(keys) else 'validation'} accuracy (%{some})")
    last = max(run.epochs[-1] for group in groups for run in group.begun)
    style.epoch_axis(ax, max(last, 2))  # an axis around a single epoch would have ticks at 0.96 and 1.04
    ax.set_title("While training\n(thin: one seed, thick: mean)")
    style.legend_below(ax, 3)


def finals(ax, groups):
    """Right: one column per group and net."""
    columns = [(group, net, color) for group, color in zip(groups, COLORS, strict=False) for net in group.nets]
    small = {"fontsize": 11 if len(columns) < 7 else 8.5}
    for x, (group, net, color) in enumerate(columns):
        test = np.array(list(group.test(net).values()))
        if len(test):
            across = x + np.linspace(-0.2, 0.2, len(test)) if len(test) > 1 else [x]
            ax.plot(across, test, "o", color=color, markerfacecolor=color if net == "ff" else "none")
            ax.hlines(test.mean(), x - 0.38, x + 0.38, color=color, linewidth=2.4)
            place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
            ax.annotate(f"{test.mean():.1f}", (x, test.max()), **place, **small)
    ax.set_xticks(range(len(columns)), [f"{group.letter}\n{NETS[net][0]}" for group, net, _ in columns], **small)
    ax.set_xlim(-0.6, len(columns) - 0.4)
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.12)
    ax.set_ylabel("test accuracy (%)")
    ax.set_title("After the last epoch\n(dots: seeds, bar and number: mean)")
    if not any(group.test(net) for group, net, _ in columns):
        ax.text(0.5, 0.5, "no finished run", ha="center", transform=ax.transAxes, color=style.CHANCE)
        ax.set_yticks([])


def picture(groups):
    """Curves and final accuracies side by side, the groups' settings in full width below."""
    names = []
    for group in groups:
        n = sum(not run.finished for run in group.runs)
        name = f"{group.letter}: {group.name(groups)} ({seeds(len(group.runs))}{f', {n} unfinished' if n else ''})"
        names.append(textwrap.fill(name, LEGEND_WIDTH, subsequent_indent="    "))
    lines = sum(name.count("\n") + 1 for name in names)
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.9 + 0.2 * lines), layout="constrained", width_ratios=(1.15, 1))
    fig.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    curves(axes[0], groups)
    finals(axes[1], groups)
    handles = [plt.Line2D([], [], color=color, linewidth=4) for _, color in zip(groups, COLORS, strict=False)]
    fig.legend(handles, names, loc="outside lower left", handlelength=1.5)
    data = ", ".join(dict.fromkeys(group.settings["dataset"] for group in groups))
    fig.suptitle(f"Accuracy on {data}", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder or a record.jsonl")
    parser.add_argument("--out", metavar="FILE", default="compare.png", help="the PNG (default: %(default)s)")
    options = parser.parse_args()
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        parser.error(f"--out {out}: the picture is a PNG, so call it .png")
    groups = grouped([Run(path) for path in options.runs])
    if not any(group.begun for group in groups):
        raise record.RecordError("nothing to compare yet: none of these runs has finished an epoch")
    print("\n".join(table(groups)), end="\n\n")
    if lines := differences(groups):
        print("Paired differences of test accuracy:", *lines, sep="\n", end="\n\n")
    for line in unfinished(groups):
        print(line)
    if len(groups) > len(COLORS):
        raise record.RecordError(f"no picture: it can tell {len(COLORS)} groups apart, these runs are {len(groups)}")
    style.folder(out.parent)
    style.save(picture(groups), out)
    print(f"picture: {out}")


if __name__ == "__main__":
    style.run(main)
