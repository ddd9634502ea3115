"""Teacher and student: differences between ways to learn as classes grow, from the record of ff_synthetic/train.py.

    python viz/ff_synthetic.py [RECORD ...] [--out DIR]     RECORD: a folder in runs/, or a record.jsonl (default: the
                                                            committed ones); DIR: see --help

differences.png   DTG-FF minus each of the paper's three others, teacher by teacher, beside the paper (its Figure 6)
factors.png       detached or not, z^2/T or z, random or learned heads: what each is worth, and how far that depends on
                  the others, from the eight cells
Other teachers, other ways to start heads: pictures of their own, with that in their names.
"""

import itertools
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
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom
CORNERS = {"dtg": "local-squares-random", "deepsup": "through-plain-learned"}
CORNERS |= {cell: name for name, cell in CORNERS.items()}
FACTORS = {  # position in a cell's name: the two levels, what going from the second to the first is called
    0: ("local", "through", "detached, not through all layers", style.FF, "o-"),
    1: ("squares", "plain", "z²/T, not z", style.POS, "s--"),
    2: ("random", "learned", "random, not learned heads", style.BP, "^:"),
}


def load(paths):
    """-> {kind: cells} of these records, see `kinds`."""
    found = kinds([record.read(path) for path in paths])
    if not found:
        raise record.RecordError(f"{' '.join(map(str, paths))}: no finished cell of ff_synthetic/train.py")
    return found


def kinds(runs):
    """Records, lists of lines -> {kind: cells}: those of one teacher, one way to start heads, one budget, together.

    A kind is named by what is not the script's default: "" for the paper's study.
    """
    usual = {"teacher": "default", "heads": "default", "steps": 8000, "batch_size": 256, "lr": 0.001}
    usual |= {"train_rows": 20000, "test_rows": 5000}
    found = {}
    for run in runs:
        config = usual | run[0].get("config", {})
        name = ", ".join(f"{k.replace('_', ' ')}: {config[k]}" for k, v in usual.items() if config[k] != v)
        found.setdefault(name, []).append(run)
    every = {name: collect(some) for name, some in sorted(found.items())}
    return {name: cells for name, cells in every.items() if cells}


def collect(runs):
    """Records, lists of lines -> {(method, K): {seed: line}}; the two corners of the paper also as cells."""
    found = {}
    for line in (line for run in runs for line in run):
        if "method" in line and "seed" in line:
            found.setdefault((line["method"], line["K"]), {})[line["seed"]] = line
    for (method, K), by_seed in list(found.items()):
        if method in CORNERS:
            found[CORNERS[method], K] = by_seed | found.get((CORNERS[method], K), {})
    return found


def differences(found, other, K):
    """DTG-FF minus the other method, test accuracy in points, teacher by teacher -> (n,)."""
    ours, theirs = found.get(("dtg", K), {}), found.get((other, K), {})
    both = sorted(ours.keys() & theirs.keys())
    return np.array([100 * (ours[seed]["test_acc"] - theirs[seed]["test_acc"]) for seed in both])


def half_width(values):
    """Half of the 95 % interval of a mean, by Student's t: with five teachers 2.78 standard errors, not 1.96."""
    n = len(values)
    return (T_95[n - 2] if n - 2 < len(T_95) else 1.96) * values.std(ddof=1) / n**0.5 if n > 1 else 0.0


def contrast(found, n_boot=10000, seed=42):
    """The paper's pre-specified trend: mean of DTG-FF minus deepsup at K 30 and 50, less that at K up to 20
    -> points, and the 95 % interval of bootstrap resamples of both groups. None unless all six K have as many seeds."""
    every = [differences(found, "deepsup", K) for K in PAPER]
    if not len(every[0]) or len({len(values) for values in every}) > 1:
        return None
    low, high = np.concatenate(every[:4]), np.concatenate(every[4:])
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
                label = "the paper: mean, 95 %" if i == 0 else None
                mean, sd = PAPER[K][other]
                width, look = T_95[3] * sd / 5**0.5, {"color": style.BP, "capsize": 4, "markersize": 7}
                ax.errorbar(i + 0.25, mean, width, fmt="s", markerfacecolor="none", label=label, **look)
        style.reference(ax, 0, None)
        ax.set_xticks(range(len(Ks)), Ks)
        ax.set_xlabel("classes K")
        ax.set_title(f"minus {text}")
    axes[0].set_ylabel("DTG-FF's test accuracy, points")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    fig.suptitle("Students of a random teacher: what local learning gains or loses", fontsize=13)
    return fig


def factor_effects(found, K):
    """{positions: effects (n,) in points} of a design of two levels, three factors: (0,) is the first factor's, the
    mean of its first level less that of its second; (0, 1) is how much of it depends on the second factor, and so on.

    DTG-FF minus deep supervision is the sum of the effects of an odd number of factors: (0,), (1,), (2,), (0, 1, 2).
    """
    cells = {method: by_seed for (method, k), by_seed in found.items() if k == K and method.count("-") == 2}
    if len(cells) < 8:
        return {}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in cells.values())))
    if not seeds:
        return {}
    effects = {}
    for positions in [some for n in (1, 2, 3) for some in itertools.combinations(FACTORS, n)]:
        effects[positions] = np.zeros(len(seeds))
        for name, by_seed in cells.items():
            levels = name.split("-")
            sign = np.prod([1 if levels[p] == FACTORS[p][0] else -1 for p in positions])
            effects[positions] += sign / 4 * np.array([100 * by_seed[seed]["test_acc"] for seed in seeds])
    return effects


def draw_factors(found):
    """The factors' effects against K, and what depends on how they are combined."""
    Ks = [K for K in sorted({K for _, K in found}) if factor_effects(found, K)]
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 5.0), layout="constrained", sharey=True)
    every = [factor_effects(found, K) for K in Ks]
    mixed = dict(zip([(0, 1), (0, 2), (1, 2), (0, 1, 2)], [*style.LAYERS[:3], (style.NEG, ":")], strict=True))
    for positions in every[0]:
        if len(positions) == 1:
            ax, (*_, text, color, form) = axes[0], FACTORS[positions[0]]
        else:
            ax, (color, line), text = axes[1], mixed[positions], " × ".join(FACTORS[p][0] for p in positions)
            form = "sD^v"[list(mixed).index(positions)] + line
        means, widths = zip(*[(e[positions].mean(), half_width(e[positions])) for e in every], strict=True)
        shift = 0.08 * (sum(positions) - 1)
        ax.errorbar(np.arange(len(Ks)) + shift, means, widths, fmt=form, color=color, capsize=4, label=text)
    for ax, title in zip(axes, ("each by itself", "depending on each other"), strict=True):
        style.reference(ax, 0, None)
        ax.set_xticks(range(len(Ks)), Ks)
        ax.set_xlabel("classes K")
        ax.set_title(title)
        style.legend_below(ax, 1)
    axes[0].set_ylabel("effect on test accuracy, points")
    fig.suptitle("What carries the difference: eight cells, mean over teachers, 95 %", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("records", nargs="*", metavar="RECORD", help="default: results/ff_synthetic/*.jsonl")
    parser.add_argument(
        "--out", metavar="DIR", help="default: ff_synthetic/figures, or figures/ in the run that is given"
    )
    options = parser.parse_args()
    every = load(options.records or sorted((ROOT / "results" / "ff_synthetic").glob("*.jsonl")))
    given = Path(options.records[0]) if options.records else ROOT / "ff_synthetic"
    out, drawn = style.folder(options.out or (given if given.is_dir() else given.parent) / "figures"), []
    for kind, found in every.items():
        of_kind = "".join(f"_{word}" for word in kind.replace(":", "").replace(",", "").split())  # "" for the paper's
        if any(len(differences(found, other, K)) for _, K in found for other in OTHERS):
            drawn.append(f"differences{of_kind}.png")
            style.save(draw_differences(found), out / drawn[-1])
        if any(factor_effects(found, K) for _, K in found):
            drawn.append(f"factors{of_kind}.png")
            style.save(draw_factors(found), out / drawn[-1])
    print(f"figures in {out}: {', '.join(drawn) or 'none: they take several methods'}")


if __name__ == "__main__":
    style.run(main)
