"""The tables of the READMEs, made from committed records: no number stands in a README that no record shows.

    python viz/results.py             rewrite README.md, ff_*/README.md and docs/*.md between their results markers
    python viz/results.py --check     change nothing; exit code 1 and one line when a table is stale

A record is results/<experiment>/<any name>.jsonl, a copy of a finished run's record.jsonl. Runs that differ in nothing
but the seed are one row, as mean ± sd. A table stands between <!-- results:NAME --> and <!-- /results:NAME -->; the
names are the keys of TABLES.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from common.evaluate import mean_sd
from viz import diagnose, ff_cifar_lc_depth, ff_cnn_tables, ff_synthetic, style

# Numbers of the write-up that ff_cifar_lc reproduces, "Forward-Forward on CIFAR-10 with locally-connected layers":
# its headline run (one seed), with the settings and the data that a group must share to stand beside it.
WRITE_UP = {"ff": 22.78, "bp": 38.31, "goodness": [(2.12, 1.84), (2.31, 1.79)]}
WRITE_UP_DATA = "cifar10"
WRITE_UP_CONFIG = {"n_epochs": 10, "n_layers": 2, "channels": 8, "rf": "11,5", "batch_size": 64, "lr": 0.01}
WRITE_UP_CONFIG |= {"threshold": 2.0, "train_subset": 10000, "slot_rows": 3, "skip_first": True, "full_test": True}
WRITE_UP_CONFIG |= {"label": "slot", "negatives": "uniform", "loss": "threshold", "beta": 1.0, "neutral": False}
WRITE_UP_CONFIG |= {"flip": False, "shift": 0, "schedule": "constant", "weight_decay": 0.0, "peer": 0.0}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def groups(folder, kind=""):
    """The records in a folder whose name begins with `kind`, as one list of runs (a run: its lines) for all that share
    settings and data."""
    found = {}
    for path in sorted(folder.glob(f"{kind}*.jsonl")):
        lines = record.read(path)
        if not lines or "final" not in lines[-1]:
            raise record.RecordError(f"{path} has no final line: only finished runs belong in results/")
        settings = {k: v for k, v in lines[0]["config"].items() if k not in ("seed", "snapshot_every")}
        runs = found.setdefault(json.dumps([lines[0]["dataset"]["name"], settings], sort_keys=True), [])
        if any(run[0]["config"]["seed"] == lines[0]["config"]["seed"] for run in runs):
            raise record.RecordError(f"{path} repeats a run (settings and seed) that another record already holds")
        runs.append(lines)
    return [sorted(runs, key=lambda run: run[0]["config"]["seed"]) for runs in found.values()]


def epochs(run):
    return [line for line in run if "epoch" in line]


def spread(values, digits=2, sign=False):
    """ "22.78 ± 0.41", or a single value as it is; a class without test images has no value (NaN)."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return "–"
    mean, sd = mean_sd(values)
    number = f"{mean:+.{digits}f}".replace("-", "−") if sign else f"{mean:.{digits}f}"
    return number + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def command(runs):
    """One command that repeats these runs: without flags that change no number, with all seeds."""
    words = re.sub(r" --(seeds?|out|data-dir|save|resume)[ =]\S+| --(no-)?figures", "", runs[0][0]["command"])
    seeds = runs[0][0].get("seeds") or [run[0]["config"]["seed"] for run in runs]
    if len(seeds) == 1:
        return f"{words} --seed {seeds[0]}"
    dense = seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{words} --seeds {f'{seeds[0]}-{seeds[-1]}' if dense else ','.join(map(str, seeds))}"


def data(runs):
    """The data set, the training images and the epochs."""
    first = runs[0][0]
    images = f"{first['dataset'].get('train') or first['config']['train_subset']:,}".replace(",", " ")
    return f"{first['dataset']['name']}, {images} images, {first['config']['n_epochs']} epochs"


def method(runs):
    """What kind of Forward-Forward these runs are, and their network."""
    config = {"label": "slot", "negatives": "uniform", "neutral": False} | runs[0][0]["config"]  # older records
    if config["negatives"] == "all":
        kind = "all labels"
    else:
        kind = f"pairs, {config['negatives']} negatives" + ("" if config["neutral"] else ", own labels")
    label = "label map" if config["label"] == "map" else "label in a slot"
    fields = config["rf"].split(",")
    fields = [fields[min(i, len(fields) - 1)] for i in range(config["n_layers"])]
    return f"{label}, {kind}", f"fields {', '.join(fields)}, {config['channels']} channels"


def write_up(runs):
    """What the write-up has for these settings, or nothing."""
    first = runs[0][0]
    same = first["dataset"]["name"] == WRITE_UP_DATA and WRITE_UP_CONFIG.items() <= first["config"].items()
    return WRITE_UP if same else {}


def markdown(head, rows):
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def lc_accuracy(all_runs):
    """One row per method and group."""
    head = ["Method", "Network", "Data", "Test accuracy, %", "Write-up, %", "Train accuracy, %", "Training, s"]
    head += ["Command", "Commit"]
    rows = []
    for runs in all_runs:
        n = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        commits = ", ".join(sorted({run[0]["commit"] or "–" for run in runs}))
        for net, name in (("ff", "FF"), ("bp", "BP twin")):
            if net in runs[0][-1]["final"]:
                test = spread([100 * run[-1]["final"][net]["test_acc"] for run in runs])
                train = spread([100 * epochs(run)[-1][net]["train_acc"] for run in runs], 1)
                seconds = np.median([sum(line[net]["seconds"] for line in epochs(run)) for run in runs])
                kind, network = method(runs)
                name = f"FF: {kind}" if net == "ff" else name
                row = [name, network, data(runs), f"{test} ({n})", write_up(runs).get(net, "–"), train]
                rows.append([*row, f"{seconds:.0f}", f"`{command(runs)}`", commits])
    return markdown(head, rows)


def lc_classes(all_runs):
    """Per group one table, one row per class."""
    tables = []
    for runs in all_runs:
        finals = [run[-1]["final"] for run in runs]
        nets = [(net, name) for net, name in (("ff", "FF"), ("bp", "BP twin")) if net in finals[0]]
        n_classes = len(finals[0]["ff"]["per_class"])
        dataset = runs[0][0]["dataset"]
        names = dataset.get("class_names") or (CIFAR10 if dataset["name"] == "cifar10" else range(n_classes))
        rows = []
        for k in range(n_classes):
            scores = [[final[net]["per_class"][k] for final in finals] for net, _ in nets]
            rows.append([names[k], *(spread(100 * np.array(values, float), 1) for values in scores)])
        table = markdown(["Class", *(f"{name}, %" for _, name in nets)], rows)
        if "rank_correlation" in finals[0]:
            rho = spread([final["rank_correlation"] for final in finals])
            table += f"\n\nSpearman's rank correlation of FF and BP over the classes: {rho}."
        tables.append(f"Test accuracy by class, {data(runs)} (`{command(runs)}`):\n\n{table}")
    return "\n\n".join(tables)


def lc_goodness(all_runs):
    """One row per group and layer."""
    rows = []
    for runs in all_runs:
        theirs = write_up(runs).get("goodness", [])
        for i in range(runs[0][0]["config"]["n_layers"]):
            ours = [spread([epochs(run)[-1]["ff"][key][i] for run in runs]) for key in ("g_pos", "g_neg")]
            rows.append([data(runs), i, *ours, "{} / {}".format(*theirs[i]) if theirs else "–", f"`{command(runs)}`"])
    return markdown(["Data", "Layer", "g⁺ (right label)", "g⁻ (wrong label)", "Write-up, g⁺ / g⁻", "Command"], rows)


def source(run):
    """Command and commits of a table; one that was resumed may have several."""
    commits = dict.fromkeys(line["commit"] for line in run if line.get("commit"))
    return f"`{command([run])}`, commit {', '.join(commits)}"


def lc_depth(all_runs):
    """One row per network of the depth table: FF and BP on held-out images, and their difference seed by seed."""
    rows, sources = [], []
    for (run,) in all_runs:
        for channels, depths in sorted(ff_cifar_lc_depth.cells(run).items()):
            for layers, cell in sorted(depths.items()):
                gap = np.subtract(cell["ff"], cell["bp"])
                row = [channels, layers, spread(cell["ff"]), spread(cell["bp"]), spread(gap, sign=True), len(gap)]
                rows.append(row)
        sources.append(source(run))
    head = ["Channels", "Layers", "FF validation accuracy, %", "BP twin, %", "FF minus BP, points", "n"]
    return markdown(head, rows) + "\n\n" + "; ".join(sources)


# in a variant's line, and what its first layer would say alone
NETS = {"ff": "FF", "first": "First layer alone:", "bp": "BP twin", "softmax": "softmax"}
NETS |= {"sum": "sum", "upper": "upper half", "head": "head"}  # ff_cnn
HEAD_LOSS = "training loss of the head, smoothing included"


def effects(all_runs):
    """One row per variant of an exploration: its difference from the reference, seed by seed, for FF and for BP.

    Where the first layer has no vote, what it would say alone is a column too.
    """
    scores, sources = {}, []  # variant -> net -> seed -> percent, of all runs: a later one may add to the table
    losses = {}  # variant -> seed -> training loss of a head
    for (run,) in sorted(all_runs, key=lambda runs: runs[0][0].get("config", {}).get("only", "")):
        variants = [line for line in run if "variant" in line]
        silent = any(line["config"].get("skip_first") for line in variants)
        for line in variants:
            for net in NETS:
                value = line.get(net, {}).get("val_acc")
                if net == "first" and silent:
                    value = line["ff"]["layer_acc"][0]
                if value is not None:
                    of_net = scores.setdefault((line["group"], line["variant"]), {}).setdefault(net, {})
                    of_net[line["seed"]] = 100 * value
            if "head_loss" in line:
                losses.setdefault((line["group"], line["variant"]), {})[line["seed"]] = line["head_loss"]
            if line["variant"] == "reference" and len(line.get("ff", {}).get("layer_acc", ())) > 1 and not silent:
                for i, alone in enumerate(line["ff"]["layer_acc"]):
                    of_net = scores.setdefault(("vote", f"layer {i} alone"), {}).setdefault("ff", {})
                    of_net[line["seed"]] = 100 * alone
        sources.append(source(run))
    if not scores:
        return "No results yet."
    rows, reference = [], scores["reference", "reference"]
    order = list(dict.fromkeys(["reference", *(group for group, _ in scores)]))  # a group's lines stand together
    for (group, name), own in sorted(scores.items(), key=lambda item: order.index(item[0][0])):
        row = [group, name] if group != name else ["", name]
        for net in reference:
            of_net = own.get(net, {})
            effect = [of_net[seed] - reference[net][seed] for seed in of_net]
            row += ["–" if name == "reference" else spread(effect, sign=True), spread(of_net.values())]
        row += [spread(losses.get((group, name), {}).values(), 3)] if losses else []
        rows.append([*row, max(len(of_net) for of_net in own.values())])
    columns = [f"{NETS[net]} {what}" for net in reference for what in ("effect, points", "validation accuracy, %")]
    columns += [HEAD_LOSS] if losses else []
    return markdown(["Group", "What changes", *columns, "n"], rows) + "\n\n" + "; ".join(sources)


def variants(all_runs):
    """One row per variant of a table that has no reference, and data set: what each way to ask the network says."""
    lines = {}  # data set, variant -> a line for each seed
    for (run,) in all_runs:
        for line in run:
            if "variant" in line:
                lines.setdefault((run[0]["dataset"]["name"], line["variant"]), []).append(line)
    if not lines:
        return "No results yet."
    every = [line for own in lines.values() for line in own]
    nets = [net for net in NETS if any(net in line for line in every)]
    logged = {key for line in every for key in line}
    apart, losses, sizes = len({name for name, _ in lines}) > 1, "head_loss" in logged, "parameters" in logged
    rows = []
    for (name, variant), own in lines.items():
        found = [spread([100 * line[net]["val_acc"] for line in own if net in line]) for net in nets]
        found += [spread([line["head_loss"] for line in own if "head_loss" in line], 3)] if losses else []
        found += [f"{own[0]['parameters'] / 1e6:.2f} M" if "parameters" in own[0] else "–"] if sizes else []
        rows.append([*([name] if apart else []), variant, *found, len(own)])
    columns = [f"{NETS[net]} validation accuracy, %" for net in nets] + [HEAD_LOSS] * losses + ["Parameters"] * sizes
    head = [*(["Data"] if apart else []), "Variant", *columns, "n"]
    return markdown(head, rows) + "\n\n" + "; ".join(source(run) for (run,) in all_runs)


def lc_deviations(all_runs):
    """One row per way to train and to predict, over the seeds of one comparison."""
    rows = []
    for (run,) in all_runs:
        for line in run[-1]["final"]:
            test = spread([100 * a for a in line["test_acc"]])
            n = len(line["test_acc"])
            rows.append([line["training"], line["prediction"], f"{test} ({n} seeds)", f"`{command([run])}`"])
    return markdown(["Activity handed on", "Prediction by", "Test accuracy, %", "Command"], rows)


# What Hinton (2022) prints, or, in brackets, what his published program reaches: script, settings, error in percent.
HINTON = [
    ("train", {"jitter": 2, "sizes": "2000,2000,2000,2000"}, "0.64"),
    ("train", {"jitter": 0, "sizes": "2000,2000,2000,2000"}, "1.36"),
    ("train", {"jitter": 0, "sizes": "1000,1000,1000"}, "(1.44)"),
    ("unsupervised", {"local": False}, "1.37"),
    ("unsupervised", {"local": True}, "1.16"),
    ("recurrent", {"steps": 8, "first": 3, "last": 5, "damping": 0.3, "blind": False}, "1.31"),
    ("backprop", {"jitter": 0}, "1.4"),
]
USUAL = {"loss": "threshold", "negatives": "hard", "norm": "rms", "goodness": "sum", "collaborate": 0.0}  # in the paper
MNIST_NAMES = {"train": "supervised, label in the input", "unsupervised": "hybrid negatives, softmax on top"}
MNIST_NAMES |= {"recurrent": "label on top, eight time steps", "backprop": "backpropagation"}  # in the tables' order


def script(run):
    """ "train" for a run of ff_mnist/train.py."""
    return Path(run[0]["command"].split()[1]).stem


def training(runs):
    """Seconds of training, the median on every kind of machine: "3729; NVIDIA H200: 37"."""
    found = {}
    for run in runs:
        found.setdefault(run[0]["machine"].get("gpu", ""), []).append(sum(line["seconds"] for line in epochs(run)))
    return "; ".join(f"{gpu}: {np.median(found[gpu]):.0f}".removeprefix(": ") for gpu in sorted(found))


def mnist_errors(all_runs):
    """One row per script and settings: test errors of its read-outs beside the paper's."""
    head = ["Experiment", "Network", "Data", "Test error, %", "by one pass, %", "Paper, %", "n", "Training, s"]
    rows, order = [], list(MNIST_NAMES)
    some = [runs for runs in all_runs if script(runs[0]) in MNIST_NAMES]
    for runs in sorted(some, key=lambda runs: order.index(script(runs[0]))):
        name, config = script(runs[0]), runs[0][0]["config"]
        test = [run[-1]["final"]["test"] for run in runs]
        softmax = spread([100 * (1 - t["softmax_acc"]) for t in test]) if "softmax_acc" in test[0] else "–"
        usual = runs[0][0]["dataset"]["name"] == "mnist" and USUAL.items() <= (USUAL | config).items()
        paper = next((e for of, some, e in HINTON if usual and of == name and some.items() <= config.items()), "–")
        sizes = "local fields" if config.get("local") else config["sizes"].replace(",", ", ")
        kind = MNIST_NAMES[name] + (f", shifts up to {config['jitter']}" if config.get("jitter") else "")
        kind += ", --blind" if name == "recurrent" and config.get("blind", True) else ""  # before there was a choice
        kind += "".join(f", {k} {config[k]}" for k, v in USUAL.items() if config.get(k, v) != v)
        row = [kind, sizes, data(runs), spread([100 * (1 - t["acc"]) for t in test]), softmax, paper, len(runs)]
        rows.append(
            [*row, training(runs), f"`{command(runs)}`", ", ".join(sorted({run[0]["commit"] or "–" for run in runs}))]
        )
    return markdown([*head, "Command", "Commit"], rows) if rows else "No results yet."


def mnist_summary(all_runs):
    """For the main README: one row per experiment of the paper, error by goodness or by the softmax, beside its own."""
    rows = []
    for *row, seconds in [line.strip("| ").split(" | ")[:8] for line in mnist_errors(all_runs).splitlines()[2:]]:
        if row[5] != "–":
            rows.append([*row, re.sub(r"\d+$|\d+(?=;)", lambda found: f"{int(found[0]) / 60:.1f}", seconds)])
    head = ["ff_mnist", "Network", "Data", "Test error, %", "by one pass, %", "Paper, %", "n", "Minutes"]
    return markdown(head, rows) if rows else "No results yet."


def sequence_table(all_runs):
    """One row per kind of negatives: characters predicted."""
    rows = []
    for runs in all_runs:
        if script(runs[0]) == "sequence":
            finals, config = [run[-1]["final"] for run in runs], runs[0][0]["config"]
            found = [
                spread([100 * f[part]["acc"] for f in finals]) if part in finals[0] else "–"
                for part in ("train", "val")
            ]
            guess = 100 * np.mean(finals[0]["train"]["unigram_by_position"])
            kind = config["negatives"] if config["readout"] else "no hidden layers"
            kind = "none: random hidden layers" if kind == "none" else kind
            rows.append([kind, *found, f"{guess:.2f}", len(runs), f"`{command(runs)}`"])
    head = ["Negatives", "Predicted, training strings, %", "held-out strings, %", "The commonest, %", "n", "Command"]
    return markdown(head, rows) if rows else "No results yet."


# What the papers of the dense descendants print, percent: script, data set, settings, accuracy.
DESCENDANTS = [
    ("amsga", "mnist", {"batch_size": 0, "mining": True}, "94.45 (text), 93.45 (abstract, tables)"),
    ("amsga", "mnist", {"batch_size": 0, "mining": False}, "92.00"),
    ("amsga", "fashion-mnist", {"batch_size": 0, "mining": True}, "84.5 (text), 82.5 (tables)"),
    ("amsga", "fashion-mnist", {"batch_size": 0, "mining": False}, "81.0"),
    ("hff", "cifar10", {"features": ""}, "61.93"),
    ("dtg_mlp", "cifar10", {"head": "layers", "detach": False, "sizes": "2048,2048,2048,2048"}, "63.72"),
]
DESCENDANT_NAMES = {"amsga": "AMSGA", "hff": "HFF", "dtg_mlp": "DTG-FF MLP, hybrid", "backprop": "backpropagation"}


def descendant(run):
    """What kind of run this is, in words."""
    name, config = script(run), run[0]["config"]
    if name == "amsga" and not any(config[part] for part in ("scales", "mining", "adapt", "anneal")):
        return "Forward-Forward, none of AMSGA's parts"
    if name == "dtg_mlp" and config["lambda_ff"] == 0:
        return "DTG-FF MLP's twin: backpropagation alone"
    if name == "dtg_mlp" and config["detach"]:
        return "DTG-FF MLP, detached: all local"
    if name == "hff" and config["features"]:
        return f"HFF, prototypes on {Path(config['features']).stem}"
    return DESCENDANT_NAMES[name]


def descendants(all_runs):
    """One row per script and settings: accuracies beside the paper's."""
    rows, order = [], list(DESCENDANT_NAMES)
    for runs in sorted(all_runs, key=lambda runs: order.index(script(runs[0]))):
        name, first, finals = script(runs[0]), runs[0][0], [run[-1]["final"] for run in runs]
        fits = [
            accuracy
            for of, dataset, settings, accuracy in DESCENDANTS
            if (of, dataset) == (name, first["dataset"]["name"])
            and settings.items() <= first["config"].items()
            and first["config"].get("lambda_ff") != 0
        ]
        columns = [
            spread([100 * f[part]["acc"] for f in finals]) if part in finals[0] else "–" for part in ("test", "train")
        ]
        moved = f", shifts up to {first['config']['jitter']}" if first["config"].get("jitter") else ""
        moved += ", mirrored" if first["config"].get("flip") else ""
        row = [descendant(runs[0]) + moved, first["config"]["sizes"].replace(",", ", "), data(runs), *columns]
        row += [fits[0] if fits else "–", len(runs), training(runs), f"`{command(runs)}`"]
        rows.append([*row, ", ".join(sorted({run[0]["commit"] or "–" for run in runs}))])
    head = ["Method", "Network", "Data", "Test accuracy, %", "training accuracy, %", "Paper, %", "n", "Training, s"]
    return markdown([*head, "Command", "Commit"], rows) if rows else "No results yet."


# The table that compares all of ff_mnist: script -> its name, passes per prediction of K classes.
COMPARED = {
    "train": ("Forward-Forward, label in the input (`train.py`)", "K; the softmax: 1"),
    "unsupervised": ("hybrid negatives (`unsupervised.py`)", "1"),
    "recurrent": ("label on top, eight steps (`recurrent.py`)", "8 K"),
    "amsga": ("AMSGA (`amsga.py`)", "K"),
    "hff": ("HFF (`hff.py`)", "1"),
    "dtg_mlp": ("DTG-FF MLP (`dtg_mlp.py`)", "1"),
    "backprop": ("backpropagation (`backprop.py`)", "1"),
}
COMPARED_ON = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def side_by_side(all_runs):
    """One row per method, one column per data set: test accuracy, and what it costs on MNIST."""
    cells = {}
    for runs in all_runs:
        name, config = script(runs[0]), runs[0][0]["config"]
        text, passes = COMPARED[name]
        text += {True: ", --detach: all local", False: ", hybrid"}[config["detach"]] if name == "dtg_mlp" else ""
        text += ", margin loss" if config.get("loss") == "margin" else ""
        key = list(COMPARED).index(name), text, passes, config["sizes"].replace(",", ", "), config["n_epochs"]
        cells.setdefault(key, {})[runs[0][0]["dataset"]["name"]] = runs
    rows = []
    for (_, text, passes, sizes, n_epochs), found in sorted(cells.items()):
        columns = []
        for name in COMPARED_ON:
            test = [run[-1]["final"]["test"] for run in found.get(name, [])]
            column = f"{spread([100 * t['acc'] for t in test])} ({len(test)})" if test else "–"
            if test and "softmax_acc" in test[0]:
                column += f"; {spread([100 * t['softmax_acc'] for t in test])}"
            columns.append(column)
        runs = found.get("mnist") or next(iter(found.values()))
        last = runs[0][-1]["final"]
        cost = [f"{last['parameters'] / 1e6:.2f} M", n_epochs, training(runs), f"{last['peak_gb']:.2f} GB", passes]
        rows.append([text, sizes, *cost, *columns])
    head = ["Method", "Units", "Parameters", "Epochs", "Training, s", "Memory", "Passes per prediction"]
    if not rows:
        return "No results yet."
    sources = sorted(f"`{command(runs)}`" for runs in all_runs)
    return markdown([*head, *(f"{name}, %" for name in COMPARED_ON.values())], rows) + "\n\n" + ", ".join(sources)


# The convolutional family: (rule, credit) -> name, passes per prediction; in the tables' order.
FAMILY = {
    ("dtg", "local"): ("DTG-FF", "1"),
    ("asge", "local"): ("ASGE", "1"),
    ("hff", "local"): ("HFF", "1"),
    ("cwc", "local"): ("channel groups (CwC)", "1"),
    ("cumulative", "local"): ("cumulative goodness", "1"),  # label units are added to what one pass has computed
    ("linear", "local"): ("linear heads, local", "1"),
    ("linear", "deepsup"): ("linear heads, BP through all blocks", "1"),
    ("dtg", "deepsup"): ("DTG-FF's heads, BP through all blocks", "1"),
    ("dtg", "bp"): ("backpropagation, one head", "1"),
}
CNN_ANSWERS = ("sum", "upper", "best", "head")
USUAL_CNN = {"head": "concat", "pipelined": True, "accumulate": 1, "recompute": False, "projection": "rule"}
USUAL_CNN |= {"temperature": True, "norm": "layer", "goodness_norm": "none", "pooling": "rule", "alpha": 1.0}
USUAL_CNN |= {"clip_by": "block"}


def cnn_name(config):
    """What kind of run this is, in words."""
    name, _ = FAMILY.get(ff_cnn_tables.method(config), (f"{config.get('rule')}, {config.get('credit')}", "1"))
    if "gamma" in config:
        name += f", γ = {config['gamma']:g}" + (f", {config['remedy']}" if config["remedy"] != "none" else "")
    return name + "".join(f", {k} {config[k]}" for k, v in USUAL_CNN.items() if config.get(k, v) != v)


def cnn_family(all_runs):
    """One row per method, network and data set: accuracies of its answers, of its blocks, and what they cost."""
    rows, order = [], list(FAMILY)

    def place(runs):
        key = ff_cnn_tables.method(runs[0][0]["config"])
        return runs[0][0]["dataset"]["name"], order.index(key) if key in order else len(order)

    for runs in sorted(all_runs, key=place):
        config, finals = runs[0][0]["config"], [run[-1]["final"] for run in runs]
        test = [final["test"] for final in finals]
        row = [cnn_name(config), f"{config['backbone']} x {config['width']:g}", data(runs)]
        row += [spread([100 * t[f"{k}_acc"] for t in test]) if f"{k}_acc" in test[0] else "–" for k in CNN_ANSWERS]
        layers = np.mean([t["layer_acc"] for t in test], axis=0) if "layer_acc" in test[0] else []
        row.append(" ".join(f"{100 * acc:.0f}" for acc in layers) or "–")
        seconds = np.median([line["seconds"] for run in runs for line in epochs(run)])
        trained = np.median([line["images_per_second"] for run in runs for line in epochs(run)])
        predicted = np.median([t["images_per_second"] for t in test])
        memory = finals[0].get("peak_gb")
        numbers = finals[0].get("parameters")
        row += [
            f"{numbers / 1e6:.2f} M" if numbers else "–",
            FAMILY.get(ff_cnn_tables.method(config), ("", "1"))[1],
            f"{seconds:.1f}",
            f"{memory:.2f}" if memory else "–",
            f"{trained:.0f}",
            f"{predicted:.0f}",
            len(runs),
            f"`{command(runs)}`",
        ]
        rows.append(row)
    head = [
        "Method",
        "Network",
        "Data",
        *(f"{text}, %" for text in ("Sum of blocks", "upper half", "best block", "head")),
    ]
    head += [
        "Blocks alone, %",
        "Parameters",
        "Passes per prediction",
        "Seconds an epoch",
        "GB",
        "Images/s, training",
        "prediction",
        "n",
        "Command",
    ]
    return markdown(head, rows) if rows else "No results yet."


def information(all_runs):
    """Per diagnosed network: what each block says about the class, ours and App. C's of the DTG-FF paper."""
    tables = []
    for (run,) in all_runs:
        found, rows = run[-1]["final"], []
        for i, dim in enumerate(found["dim"]):
            row = [i, dim, *(f"{found['histogram'][bins][i]:.2f}" for bins in diagnose.BINS)]
            for key in ("ksg", "vector", "gap", "layer_acc"):
                for values in (found, diagnose.PAPER):
                    value = (
                        values[key][i] * (100 if key == "layer_acc" else 1) if i < len(values.get(key, ())) else None
                    )
                    row.append("–" if value is None else f"{value:.1f}" if key == "layer_acc" else f"{value:.2f}")
            rows.append([*row, f"{found['T'][i]:.2f}"])
        texts = ("I(g; Y) by neighbours", "I(u; Y) at least", "I(GAP; Y) at least", "alone, %")
        head = ["Block", "Dimensions of u", *(f"I(g; Y), {bins} bins" for bins in diagnose.BINS)]
        head += [part for text in texts for part in (text, "paper")]
        lines = [markdown([*head, "T"], rows), ""]
        means = [
            f"{np.mean(found['histogram'][bins]):.2f} (the paper: {diagnose.PAPER['histogram'][bins]:.2f})"
            for bins in diagnose.BINS
        ]
        means += (
            [f"by neighbours {np.mean(found['ksg']):.2f} (0.24 in its table, 0.20 in its text)"]
            if "ksg" in found
            else []
        )
        lines.append(f"- mean I(g; Y) over the blocks, with {', '.join(diagnose.BINS)} bins: {', '.join(means)}")
        for key, paper, text in diagnose.WHOLE:
            if key in found:
                lines.append(f"- {text}: {100 * diagnose.whole(found, key):.1f} % (the paper: {100 * paper:.1f} %)")
        lines.append(f"- `{run[0]['command']}`, of `{run[0]['trained_by']}`, {found['images']} test images")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def of_kinds(all_runs):
    """{kind: cells} of ff_synthetic's records, and where they come from."""
    runs = [run for runs in all_runs for run in runs]
    found = {kind or "as in the paper": cells for kind, cells in ff_synthetic.kinds(runs).items()}
    return found, "\n\n" + "; ".join(source(run) for run in runs)


def synthetic_pairs(all_runs):
    """Table 4 of the DTG-FF paper: paired differences, and the trend it had specified beforehand."""
    (every, sources), rows, lines = of_kinds(all_runs), [], []
    for kind, found in every.items():
        for K in sorted({K for method, K in found if method == "dtg"}):
            row = [kind, K]
            for other in ff_synthetic.OTHERS:
                values = ff_synthetic.differences(found, other, K)
                wins = f" ({int((values > 0).sum())}/{len(values)})" if len(values) else ""
                row.append(spread(values, sign=True) + wins)
                mean, sd = ff_synthetic.PAPER.get(K, {}).get(other, (None, None))
                row.append(f"{mean:+.2f} ± {sd:.2f}".replace("-", "−") if mean is not None else "–")
            rows.append(row)
        if trend := ff_synthetic.contrast(found):
            low, high = trend[1:]
            lines.append(f"{kind}: {trend[0]:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}".replace("-", "−"))
    head = [f"DTG-FF minus {text}" for text in ff_synthetic.OTHERS.values()]
    head = ["Study", "K", *(part for text in head for part in (text, "paper"))]
    trend = "; ".join(lines) + " (the paper: +1.37, +0.59 to +2.15)" if lines else ""
    return (
        f"{markdown(head, rows)}\n\nMean difference to deep supervision at K = 30 and 50, less that at K ≤ 20. {trend}"
    ) + sources


def synthetic_gaps(all_runs):
    """Table 5 of the DTG-FF paper: test accuracy and train minus test, ours and the paper's."""
    (every, sources), rows = of_kinds(all_runs), []
    for kind, found in every.items():
        for K in sorted({K for _, K in found}):
            row, gaps = [kind, K], {}
            for method in ("bp", "ensemble", "deepsup", "dtg"):
                cells = found.get((method, K), {}).values()
                test = [100 * c["test_acc"] for c in cells]
                gap = [100 * (c["train_acc"] - c["test_acc"]) for c in cells]
                row.append(f"{np.mean(test):.1f} / {np.mean(gap):+.1f}" if test else "–")
                gaps[method] = np.mean(gap) if gap else np.nan
                row.append(
                    "{:.1f} / {:+.1f}".format(*ff_synthetic.PAPER_GAPS[K][method])
                    if K in ff_synthetic.PAPER_GAPS
                    else "–"
                )
            row.append(spread([gaps["bp"] - gaps["dtg"]], 1, sign=True))
            row.append(f"{PAPER_GAP_OF_GAPS[K]:+.1f}" if K in PAPER_GAP_OF_GAPS else "–")
            rows.append(row)
    names = ("one head, BP", "four networks, BP", "all heads, BP", "DTG-FF", "gap of BP minus gap of DTG-FF")
    return markdown(["Study", "K", *(part for name in names for part in (name, "paper"))], rows) + sources


def synthetic_counts(all_runs):
    """What the methods cost: learned and fixed numbers, and the paper's claim that their ratio is stable across K."""
    (every, sources), rows = of_kinds(all_runs), []
    found = next(iter(every.values()))
    for K in sorted({K for _, K in found}):
        of = {method: next(iter(found[method, K].values())) for method in SYNTHETIC if (method, K) in found}
        row = [f"{line['learned']:,} + {line['fixed']:,}".replace(",", " ") for line in of.values()]
        row += [f"{line['flop'] / 1e12:.2f}" for line in of.values()]
        more = (
            f"{100 * (of['deepsup']['learned'] / of['dtg']['learned'] - 1):.1f} %"
            if {"deepsup", "dtg"} <= set(of)
            else "–"
        )
        rows.append([K, *row, more])
    names = [text for method, text in SYNTHETIC.items() if any(m == method for m, _ in found)]
    head = ["K", *(f"{text}: learned + fixed numbers" for text in names), *(f"{text}, TFLOP" for text in names)]
    return markdown([*head, "learned by all heads, BP, more than by DTG-FF"], rows) + sources


SYNTHETIC = {"bp": "one head, BP", "ensemble": "four networks, BP", "deepsup": "all heads, BP", "dtg": "DTG-FF"}
PAPER_GAP_OF_GAPS = {5: 1.4, 10: 4.4, 15: 5.5, 20: 7.2, 30: 16.7, 50: 11.5}  # Table 5, last column
TABLES = {  # name in the README -> folder in results/, how the records' names begin, function
    "ff_cifar_lc": ("ff_cifar_lc", "", lc_accuracy),
    "ff_cifar_lc-classes": ("ff_cifar_lc", "default", lc_classes),
    "ff_cifar_lc-write-up-classes": ("ff_cifar_lc", "write-up", lc_classes),
    "ff_cifar_lc-goodness": ("ff_cifar_lc", "write-up", lc_goodness),
    "ff_cifar_lc-deviations": ("ff_cifar_lc_deviations", "", lc_deviations),
    "ff_cifar_lc-findings": ("ff_cifar_lc_findings", "", effects),
    "ff_cifar_lc-write-up": ("ff_cifar_lc_write-up", "", effects),
    "ff_cifar_lc-twin": ("ff_cifar_lc_twin", "", effects),
    "ff_cifar_lc-depth": ("ff_cifar_lc_depth", "", lc_depth),
    "ff_cifar_lc-long": ("ff_cifar_lc_long", "", effects),
    "ff_mnist": ("ff_mnist", "", mnist_errors),
    "ff_mnist-summary": ("ff_mnist", "", mnist_summary),
    "ff_mnist-sequence": ("ff_mnist", "", sequence_table),
    "ff_mnist-normalisation": ("ff_mnist_normalisation", "", effects),
    "ff_mnist-losses": ("ff_mnist_losses", "", effects),
    "ff_mnist-rates": ("ff_mnist_rates", "", variants),
    "ff_mnist-recipe": ("ff_mnist_recipe", "", effects),
    "ff_mnist-jitter": ("ff_mnist_jitter", "", effects),
    "ff_mnist-unsupervised": ("ff_mnist_unsupervised", "", variants),
    "ff_mnist-unsupervised-long": ("ff_mnist_unsupervised-long", "", variants),
    "ff_mnist-local": ("ff_mnist_local", "", variants),
    "ff_mnist-text": ("ff_mnist_text", "", variants),
    "ff_mnist-text-low": ("ff_mnist_text-low", "", variants),
    "ff_mnist-recurrent": ("ff_mnist_recurrent", "", variants),
    "ff_mnist-recurrent-wide": ("ff_mnist_recurrent-wide", "", variants),
    "ff_mnist-recurrent-deep": ("ff_mnist_recurrent-deep", "", variants),
    "ff_cnn-information": ("ff_cnn_information", "", information),
    "ff_synthetic": ("ff_synthetic", "", synthetic_pairs),
    "ff_synthetic-gaps": ("ff_synthetic", "", synthetic_gaps),
    "ff_synthetic-counts": ("ff_synthetic", "", synthetic_counts),
    "ff_cnn": ("ff_cnn", "", cnn_family),
    "ff_cnn-asge": ("ff_cnn_asge", "", variants),
    "ff_cnn-cumulative": ("ff_cnn_cumulative", "", variants),
    "ff_cnn-labels": ("ff_cnn_labels", "", variants),
    "ff_cnn-rates": ("ff_cnn_rates", "", variants),
    "ff_cnn-scales": ("ff_cnn_scales", "", variants),
    "ff_cnn-ablations": ("ff_cnn_ablations", "", effects),
    "ff_cnn-factorial": ("ff_cnn_factorial", "", variants),
    "ff_cnn-depth": ("ff_cnn_depth", "", variants),
    "ff_cnn-widths": ("ff_cnn_widths", "", variants),
    "ff_mnist-descendants": ("ff_mnist_descendants", "", descendants),
    "ff_mnist-side-by-side": ("ff_mnist_side-by-side", "", side_by_side),
    **{
        f"ff_mnist-{name}": (f"ff_mnist_{name}", "", variants)
        for name in ("amsga-paper", "amsga-readings", "amsga-fashion", "amsga-tuning", "rates-of-all", "dtg-ladder")
    },
    **{
        f"ff_mnist-{name}": (f"ff_mnist_{name}", "", effects)
        for name in ("amsga", "amsga-parts", "hff", "hff-long", "hff-cifar10", "hff-cifar10-long", "dtg", "dtg-long")
    },
}


def fill(text, root, readme):
    """The README's text with every table made anew."""

    def table(match):
        name = match[1]
        if name not in TABLES:
            raise record.RecordError(f"{readme}: there is no table {name}; there are {', '.join(TABLES)}")
        folder, kind, make = TABLES[name]
        runs = groups(root / "results" / folder, kind)
        body = make(runs) if runs else "No results yet."
        return f"<!-- results:{name} -->\n{body}\n<!-- /results:{name} -->"

    text, tables = re.subn(r"<!-- results:([\w-]+) -->\n.*?<!-- /results:\1 -->", table, text, flags=re.DOTALL)
    if tables != text.count("<!-- results:"):
        raise record.RecordError(f"{readme}: a results marker is never closed")
    return text


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a table is stale")
    parser.add_argument("--root", metavar="DIR", default=ROOT, help="the repository (default: this one)")
    options = parser.parse_args()
    root = Path(options.root)
    stale = []
    for readme in [root / "README.md", *sorted(root.glob("ff_*/README.md")), *sorted(root.glob("docs/*.md"))]:
        if readme.exists():
            old = readme.read_text(encoding="utf-8")
            new = fill(old, root, readme)
            if new != old:
                stale.append(readme.relative_to(root).as_posix())
                if not options.check:
                    readme.write_bytes(new.encode())  # bytes: Windows would put its own line ends
    if options.check and stale:
        print(f"stale tables in {', '.join(stale)}: run python viz/results.py", file=sys.stderr)
        sys.exit(1)
    print(f"tables: rewrote {', '.join(stale)}" if stale else "tables: up to date")


if __name__ == "__main__":
    style.run(main)
