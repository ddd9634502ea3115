"""Teacher and student: differences between ways to learn as classes grow, from the record of ff_synthetic/train.py.

    python viz/ff_synthetic.py [RECORD ...] [--out DIR]     RECORD: a folder in runs/, or a record.jsonl (default: the
                                                            committed ones); DIR: ff_synthetic/figures

differences.png   DTG-FF minus each of the paper's three others, teacher by teacher, beside the paper (its Figure 6)
factors.png       detached or not, z^2/T or z, random or learned heads: what each is worth, from the eight cells
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from viz import style

OTHERS = {"bp": "one head, BP", "deepsup": "all heads, BP", "ensemble": "four networks, BP"}
PAPER = {  # Table 4: K -> DTG-FF minus each, mean and sd over five seeds, points
    5: {"bp": (0.38, 0.84), "deepsup": (-0.23, 0.58), "ensemble": (-1.74, 1.26)},
    10: {"bp": (1.20, 1.26), "deepsup": (0.84, 0.99), "ensemble": (-1.60, 1.09)},
    15: {"bp": (1.44, 0.60), "deepsup": (0.48, 0.62), "ensemble": (-2.06, 0.28)},
    20: {"bp": (1.32, 1.05), "deepsup": (0.55, 1.20), "ensemble": (-1.86, 1.16)},
    30: {"bp": (3.39, 2.36), "deepsup": (1.57, 1.45), "ensemble": (-1.54, 1.11)},
    50: {"bp": (2.63, 1.27), "deepsup": (2.00, 0.95), "ensemble": (-0.75, 0.51)},
}
PAPER_GAPS = {  # Table 5: K -> test accuracy and train minus test, percent
    5: {"bp": (83.8, 15.9), "ensemble": (85.9, 14.1), "deepsup": (84.4, 15.0), "dtg": (84.2, 14.5)},
    10: {"bp": (77.6, 22.3), "ensemble": (80.4, 19.6), "deepsup": (78.0, 21.5), "dtg": (78.8, 17.9)},
    15: {"bp": (76.0, 23.9), "ensemble": (79.5, 20.5), "deepsup": (77.0, 22.4), "dtg": (77.5, 18.4)},
    20: {"bp": (77.6, 22.2), "ensemble": (80.8, 19.2), "deepsup": (78.4, 20.7), "dtg": (79.0, 15.0)},
    30: {"bp": (65.2, 34.2), "ensemble": (70.1, 29.9), "deepsup": (67.0, 30.5), "dtg": (68.6, 17.5)},
    50: {"bp": (72.9, 27.1), "ensemble": (76.3, 23.7), "deepsup": (73.6, 25.7), "dtg": (75.6, 15.6)},
}
CORNERS = {"dtg": "local-squares-random", "deepsup": "through-plain-learned"}
CORNERS |= {cell: name for name, cell in CORNERS.items()}
FACTORS = {  # position in a cell's name: the two levels, what going from the second to the first is called
    0: ("local", "through", "detached, not through all layers", style.FF, "o-"),
    1: ("squares", "plain", "z²/T, not z", style.POS, "s--"),
    2: ("random", "learned", "random, not learned heads", style.BP, "^:"),
}


def load(paths):
    """The cells of these records, see `collect`."""
    found = collect([record.read(path) for path in paths])
    if not found:
        raise record.RecordError(f"{' '.join(map(str, paths))}: no finished cell of ff_synthetic/train.py")
    return found


def collect(runs):
    """Records, lists of lines -> {(method, K): {draw: line}}; the two corners of the paper also as cells."""
    found = {}
    for line in (line for run in runs for line in run):
        if "method" in line and "draw" in line:
            found.setdefault((line["method"], line["K"]), {})[line["draw"]] = line
    for (method, K), by_draw in list(found.items()):
        if method in CORNERS:
            found[CORNERS[method], K] = by_draw | found.get((CORNERS[method], K), {})
    return found


def differences(found, other, K):
    """DTG-FF minus the other method, test accuracy in points, teacher by teacher -> (n,)."""
    ours, theirs = found.get(("dtg", K), {}), found.get((other, K), {})
    both = sorted(ours.keys() & theirs.keys())
    return np.array([100 * (ours[draw]["test_acc"] - theirs[draw]["test_acc"]) for draw in both])


def half_width(values):
    """Half of the 95 % interval of a mean, normal approximation."""
    return 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0


def contrast(found, n_boot=10000, seed=42):
    """The paper's pre-specified trend: mean of DTG-FF minus deepsup at K 30 and 50, less that at K up to 20
    -> points, and the 95 % interval of bootstrap resamples of both groups."""
    low, high = (
        np.concatenate([differences(found, "deepsup", K) for K in some]) for some in ((5, 10, 15, 20), (30, 50))
    )
    if not len(low) or not len(high):
        return None
    rng = np.random.default_rng(seed)
    means = [some[rng.integers(0, len(some), (n_boot, len(some)))].mean(axis=1) for some in (low, high)]
    return high.mean() - low.mean(), *np.percentile(means[1] - means[0], [2.5, 97.5])


def draw_differences(found):
    """One panel for each of the others."""
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 4.4), layout="constrained", sharey=True)
    Ks = sorted({K for method, K in found if method == "dtg"})
    for ax, (other, text) in zip(axes, OTHERS.items(), strict=True):
        for i, K in enumerate(Ks):
            values = differences(found, other, K)
            if not len(values):
                continue
            ax.plot([i] * len(values), values, "o", color=style.FF, alpha=0.35, markersize=5)
            label = "ours: mean, 95 %" if i == 0 else None
            ax.errorbar(i, values.mean(), half_width(values), fmt="D", color=style.FF, capsize=4, label=label)
            if K in PAPER:
                label = "the paper" if i == 0 else None
                ax.plot(
                    i + 0.25, PAPER[K][other][0], "s", color=style.BP, markerfacecolor="none", markersize=8, label=label
                )
        style.reference(ax, 0, None)
        ax.set_xticks(range(len(Ks)), Ks)
        ax.set_xlabel("classes K")
        ax.set_title(f"minus {text}")
    axes[0].set_ylabel("DTG-FF's test accuracy, points")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    fig.suptitle("Students of a random teacher: what local learning gains or loses", fontsize=13)
    return fig


def factor_effects(found, K):
    """{position: effects (n,) in points}: the mean over the other two factors of the first level minus the second."""
    cells = {method: by_draw for (method, k), by_draw in found.items() if k == K and method.count("-") == 2}
    if len(cells) < 8:
        return {}
    draws = sorted(set.intersection(*(set(by_draw) for by_draw in cells.values())))
    acc = {name: np.array([100 * by_draw[d]["test_acc"] for d in draws]) for name, by_draw in cells.items()}
    effects = {}
    for position, (first, second, *_) in FACTORS.items():
        levels = {
            level: [v for name, v in acc.items() if name.split("-")[position] == level] for level in (first, second)
        }
        effects[position] = np.mean(levels[first], axis=0) - np.mean(levels[second], axis=0)
    return effects


def draw_factors(found):
    """Main effects of the three factors against K."""
    Ks = [K for K in sorted({K for _, K in found}) if factor_effects(found, K)]
    fig, ax = plt.subplots(figsize=(9.6, 4.6), layout="constrained")
    for position, (*_, text, color, form) in FACTORS.items():
        effects = [factor_effects(found, K)[position] for K in Ks]
        means, widths = [e.mean() for e in effects], [half_width(e) for e in effects]
        shift = 0.08 * (position - 1)
        ax.errorbar(np.arange(len(Ks)) + shift, means, widths, fmt=form, color=color, capsize=4, label=text)
    style.reference(ax, 0, None)
    ax.set_xticks(range(len(Ks)), Ks)
    ax.set_xlabel("classes K")
    ax.set_ylabel("effect on test accuracy, points")
    ax.set_title("What carries the difference: eight cells, mean over teachers, 95 %")
    style.legend_below(ax, 3)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("records", nargs="*", metavar="RECORD", help="default: results/ff_synthetic/*.jsonl")
    parser.add_argument("--out", metavar="DIR", default=ROOT / "ff_synthetic" / "figures")
    options = parser.parse_args()
    found = load(options.records or sorted((ROOT / "results" / "ff_synthetic").glob("*.jsonl")))
    out, drawn = style.folder(options.out), []
    if any(method == "dtg" for method, _ in found):
        style.save(draw_differences(found), out / "differences.png")
        drawn.append("differences.png")
    if any(factor_effects(found, K) for _, K in found):
        style.save(draw_factors(found), out / "factors.png")
        drawn.append("factors.png")
    print(f"figures in {out}: {', '.join(drawn) or 'none'}")


if __name__ == "__main__":
    style.run(main)
