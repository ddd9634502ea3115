"""Pictures, film and tables from a small made-up run: every kind of run is drawn, twice to the same bytes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from common import record
from viz import concept, ff_cifar_lc, ff_cifar_lc_gif, gif, results, style

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"curves", "per_class", "example_images", "label_encoded", "receptive_fields"}
# What a record of the second kind says on top; one without it is of the first kind: a slot, pairs, a threshold.
MAP = {"label": "map", "negatives": "all", "neutral": True, "loss": "margin", "beta": 1024.0, "skip_first": False}


def config(seed=0, epochs=2, n_layers=2, bp=True, validation=100, **more):
    return {
        "seed": seed, "n_epochs": epochs, "n_layers": n_layers, "channels": 2, "rf": "11,5", "batch_size": 64,
        "lr": 0.01, "threshold": 2.0, "train_subset": 200, "validation": validation, "eval_subset": 20, "slot_rows": 3,
        "skip_first": True, "bp_baseline": bp, "full_test": True, "snapshot_every": 1, **more,
    }  # fmt: skip


def lines(finished=True, **kind):
    """A record's lines, with a resumed segment in the middle and a class without test images."""
    c = config(**kind)
    layers = np.arange(c["n_layers"])
    acc = {"train_acc": 0.25 + 0.01 * c["seed"]} | ({"val_acc": 0.2} if c["validation"] else {})
    out = [
        {
            "command": "python ff_cifar_lc/train.py --out x --no-figures",
            "config": c,
            "dataset": {"name": "shapes"},
            "commit": "c0",
        }
    ]
    for epoch in range(1, c["n_epochs"] + finished):
        loss, gap = (0.6 / epoch + 0.01 * layers).tolist(), (0.1 * epoch + layers)
        line = {"epoch": epoch, "ff": {"loss": loss, "g_pos": (2 + gap).tolist(), "g_neg": (2 - gap).tolist(), **acc}}
        line["ff"]["seconds"] = 3.0
        out.append(line | ({"bp": {"loss": 2.0, "seconds": 1.5, **acc}} if c["bp_baseline"] else {}))
        if epoch == 1:
            out.append({"resumed_after_epoch": 1, "same_machine": True})
    if finished:
        score = {"test_acc": 0.22 + 0.02 * c["seed"], "per_class": [None, *np.linspace(0, 0.8, 9)]}
        twin = {"bp": score, "rank_correlation": 0.75} if c["bp_baseline"] else {}
        out.append({"final": {"test_images": 40, "ff": score, **twin}})
    return out


def make_run(folder, shape=(32, 32, 3), snapshots=True, **kind):
    folder.mkdir()
    written = lines(**kind)
    for line in written:
        record.append(folder, line)
    if not snapshots:
        return folder
    (folder / "snapshots").mkdir()
    rng = np.random.default_rng(0)
    examples = {"images": rng.integers(0, 256, (10, *shape), dtype=np.uint8), "mean": np.full(shape[2], 0.5)}
    names = {"class_names": [f"class {k}" for k in range(10)]}
    record.save_arrays(folder / "snapshots" / "examples.npz", examples, names)
    for epoch in [0, *(line["epoch"] for line in written if "epoch" in line)]:
        arrays = {
            "filters": rng.normal(size=(6, 11, 11, shape[2], 2)).astype(np.float32),
            "places": np.array([(0, 0), (0, 21), (10, 5), (10, 16), (21, 0), (21, 21)]),
            "goodness": rng.gamma(2 + epoch, size=(written[0]["config"]["n_layers"], 20, 10)),
            "labels": rng.integers(0, 10, 20).astype(np.uint8),
        }
        record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})
    if written[0]["config"].get("neutral") and "final" in written[-1]:
        some = np.array([0, 2, 4, 6, 8, 1, 3])
        arrays = {"images": rng.integers(0, 256, (7, *shape), dtype=np.uint8), "labels": some}
        arrays["predicted"] = np.where(np.arange(7) < 4, some, some + 1)  # four right, three wrong
        for i in range(written[0]["config"]["n_layers"]):
            arrays[f"goodness{i}"] = rng.gamma(2, size=(7, 22 - 4 * i, 22 - 4 * i, 10)).astype(np.float32)
        rf = [11] + [5] * (written[0]["config"]["n_layers"] - 1)
        record.save_arrays(folder / "snapshots" / "where.npz", arrays, {"rf": rf})
    return folder


def figure(draw, run):
    """Every axes of a figure, in the order in which they were made."""
    fig = draw(ff_cifar_lc.Run(run))
    plt.close(fig)
    return fig.axes


def legend(ax):
    return {text.get_text() for text in ax.get_legend().get_texts()}


def level(ax, name):
    """The height of the reference line with this name."""
    (line,) = [line for line in ax.get_lines() if line.get_label() == name]
    return line.get_ydata()[0]


def script(name, *words, cwd):
    """Run viz/<name>.py as a user does, from another directory."""
    command = [sys.executable, str(ROOT / "viz" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def call(module, monkeypatch, *words):
    """The same in this process, without a second start."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
    module.main()


def test_scripts_draw_a_run_from_another_directory_and_twice_the_same(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", epochs=1)
    done = script("ff_cifar_lc", "--model", run, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"figures: {run / 'figures' / 'curves.png'} (and 4 more)\n"
    pictures = {path.stem: path for path in (run / "figures").glob("*.png")}
    assert set(pictures) == FIGURES
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width >= 1000 and picture.height >= 480 and not picture.info
        assert path.stat().st_size < 300_000
    call(ff_cifar_lc, monkeypatch, run, "--out", tmp_path / "again")
    for path in pictures.values():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    capsys.readouterr()

    done = script("ff_cifar_lc_gif", run, "--fps", "5", "--out", "film.gif", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("film: film.gif (2 frames"), done.stderr
    assert (tmp_path / "film.gif").stat().st_size <= gif.LIMIT
    with Image.open(tmp_path / "film.gif") as film:
        durations = [film.seek(k) or film.info["duration"] for k in range(film.n_frames)]
    assert durations == [200, 2000]
    call(ff_cifar_lc_gif, monkeypatch, run, "--fps", "5", "--out", tmp_path / "again.gif")
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "film.gif").read_bytes()


def test_a_map_run_has_no_slot_to_draw_but_shows_where_its_evidence_is(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", epochs=1, **MAP)
    for out in ("a", "b"):
        call(ff_cifar_lc, monkeypatch, run, "--out", tmp_path / out)
        assert capsys.readouterr().out == f"figures: {tmp_path / out / 'curves.png'} (and 4 more)\n"
        call(ff_cifar_lc_gif, monkeypatch, run, "--out", tmp_path / out / "film.gif")
        assert "(2 frames" in capsys.readouterr().out
    pictures = {path.stem: path for path in (tmp_path / "a").glob("*.png")}
    assert set(pictures) == FIGURES - {"label_encoded"} | {"where"}
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_size < 300_000 and path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    with Image.open(pictures["where"]) as picture:
        assert picture.width >= 1000

    run = make_run(tmp_path / "stopped", finished=False, **MAP)
    call(ff_cifar_lc, monkeypatch, run)
    assert "(and 2 more; the run was interrupted, so no per_class.png, where.png)" in capsys.readouterr().out
    run = make_run(tmp_path / "own labels", **MAP | {"negatives": "hard", "neutral": False})
    call(ff_cifar_lc, monkeypatch, run)
    assert capsys.readouterr().out.endswith("(and 3 more)\n")


@pytest.mark.parametrize("kind", [{}, {"label": "slot"}, MAP], ids=["old record", "slot", "map"])
def test_the_place_map_has_a_slot_only_where_there_is_one(tmp_path, kind):
    places, _ = figure(ff_cifar_lc.receptive_fields, make_run(tmp_path / "run", **kind))
    yellow = [patch for patch in places.patches if patch.get_facecolor()[:3] == to_rgb(style.SLOT)]
    slots = 0 if kind.get("label") == "map" else 1
    assert len(yellow) == slots and ("slot" in places.get_title()) == bool(slots) and len(places.patches) == 7 + slots


SLOT_MARGIN = {"label": "slot", "negatives": "uniform", "neutral": False, "loss": "margin", "beta": 4.0}


@pytest.mark.parametrize("kind", [MAP, MAP | {"negatives": "hard"}, SLOT_MARGIN], ids=["all", "hard", "slot"])
def test_curves_show_the_margin_where_the_loss_compares_labels(tmp_path, kind):
    run = make_run(tmp_path / "run", snapshots=False, **kind)
    _, margin, losses, bp = figure(ff_cifar_lc.curves, run)
    for i in (0, 1):  # g+ - g- is 2 (0.1 epoch + layer) in the made-up records
        np.testing.assert_allclose(margin.get_lines()[i].get_ydata(), kind["beta"] * 2 * (np.array([0.1, 0.2]) + i))
    assert legend(margin) == {"layer 0", "layer 1", "0 (cannot tell)"} and level(margin, "0 (cannot tell)") == 0
    assert f"β = {kind['beta']:g}" in margin.get_ylabel() and not any("θ" in text for text in legend(losses))
    candidates = 10 if kind["negatives"] == "all" else 2
    assert level(losses, f"ln {candidates} (cannot tell)") == pytest.approx(np.log(candidates))
    assert level(bp, "ln 10 (a blind guess)") == pytest.approx(np.log(10))


@pytest.mark.parametrize("kind", [{}, MAP | {"negatives": "hard", "loss": "threshold"}], ids=["old record", "map"])
def test_curves_show_goodness_where_the_loss_has_a_threshold(tmp_path, kind):
    run = make_run(tmp_path / "run", snapshots=False, **kind)
    _, goodness, losses, _ = figure(ff_cifar_lc.curves, run)
    assert level(goodness, "threshold θ = 2") == 2 and len(legend(goodness)) == 5
    np.testing.assert_allclose(goodness.get_lines()[1].get_ydata(), [3.1, 3.2])
    assert level(losses, "ln 2 (cannot tell)") == pytest.approx(np.log(2))


def test_the_number_of_images_and_of_classes_is_that_of_the_data(tmp_path):
    (tmp_path / "run").mkdir()
    first, *rest = lines(**MAP | {"train_subset": 0})
    first["dataset"] |= {"train": 45000, "class_names": list("abcd")}
    for line in (first, *rest):
        record.append(tmp_path / "run", line)
    fig = ff_cifar_lc.curves(ff_cifar_lc.Run(tmp_path / "run"))
    plt.close(fig)
    assert "45 000 images" in fig.get_suptitle() and "ln 4 (cannot tell)" in legend(fig.axes[2])


def test_the_committed_records_are_drawn(tmp_path, monkeypatch, capsys):
    for path in sorted((ROOT / "results" / "ff_cifar_lc").glob("*.jsonl"))[:1]:
        call(ff_cifar_lc, monkeypatch, path, "--out", tmp_path)
        assert "(and 1 more; no snapshots" in capsys.readouterr().out


def test_evidence_adds_up_to_the_margin_of_the_vote():
    rng = np.random.default_rng(0)
    maps = [rng.gamma(2, size=(5, side, side, 4)) for side in (6, 3)]
    labels, n = np.array([0, 1, 2, 3, 1]), np.arange(5)
    g = sum(m.mean(axis=(1, 2)) for m in maps)
    g[n, labels] = -1
    told = np.where(n < 3, labels, (labels + 1) % 4)
    rival = ff_cifar_lc.rivals(maps, labels, told)
    assert (rival == np.where(n < 3, g.argmax(axis=1), told)).all() and (rival != labels).all()
    for m in maps:
        d, _ = ff_cifar_lc.evidence(m, labels, rival, 8.0)
        mean = m.mean(axis=(1, 2))
        np.testing.assert_allclose(d.sum(axis=(1, 2)), 8 * (mean[n, labels] - mean[n, rival]))

    m = np.zeros((1, 2, 2, 3))  # of four locations one is silent, and of the rest one is for the true label 1
    m[0, 0, 0], m[0, 0, 1], m[0, 1, 0] = (0, 2, 1), (3, 2, 0), (0, 1, 1)
    d, ahead = ff_cifar_lc.evidence(m, np.array([1]), np.array([2]), 4.0)
    assert d[0].tolist() == [[1, 2], [0, 0]] and ahead == pytest.approx(1 / 3)


def test_where_puts_each_location_at_the_middle_of_what_it_sees(tmp_path):
    run = make_run(tmp_path / "run", **MAP)
    arrays, meta = record.load_arrays(run / "snapshots" / "where.npz")
    arrays["goodness0"][0, 21, 3, 0] += 100  # for the first image's true label
    arrays["goodness1"][4, 2, 17, 9] += 100  # for the wrong answer to the first one mistaken
    record.save_arrays(run / "snapshots" / "where.npz", arrays, meta)
    axes = figure(ff_cifar_lc.where, run)  # six images, then for each layer six maps and a colour bar
    titles = [ax.get_title() for ax in axes[:6]]
    assert [title.partition("\n")[0] for title in titles] == [f"class {k}" for k in (0, 2, 4, 8, 1, 3)]
    assert all("rival: class" in title for title in titles[:3])
    assert [title.partition("\n")[2] for title in titles[3:]] == ["said class 9", "said class 2", "said class 4"]
    assert [text.get_text() for ax in axes[:6] for text in ax.texts] == ["recognised", "mistaken"]
    for first, left, side in ((6, 4.5, 22), (13, 6.5, 18)):
        pictures = [ax.get_images()[-1] for ax in axes[first : first + 6]]
        for ax, picture in zip(axes[first:], pictures, strict=False):
            assert picture.get_extent() == [left, left + side, left + side, left]
            assert ax.get_xlim() == (-0.5, 31.5) and ax.get_ylim() == (31.5, -0.5)
            sign = "+" if picture.get_array().sum() > 0 else "−"
            assert ax.get_xlabel().startswith(f"sum {sign}{abs(picture.get_array().sum()):.1f}\nbeats all: ")
            assert picture.norm.vmin == -picture.norm.vmax < 0 and picture.norm.vmax == pictures[0].norm.vmax
        assert f"/ {side * side} locations" in axes[first + 6].get_ylabel() and "β" in axes[first + 6].get_ylabel()
    assert np.argmax(axes[6].get_images()[-1].get_array()) == 21 * 22 + 3
    assert np.argmin(axes[16].get_images()[-1].get_array()) == 2 * 18 + 17
    r, _, b = ff_cifar_lc.EVIDENCE([0.0, 0.5, 1.0])[:, :3].T
    assert r[0] > b[0] and r[1] == b[1] == 1 and r[2] < b[2]  # orange, white, blue


@pytest.mark.parametrize("told", ["recognised", "mistaken"])
def test_where_with_answers_of_one_kind_a_layer_without_a_vote_and_no_names(tmp_path, told):
    run = make_run(tmp_path / "run", (32, 32, 1), **MAP | {"skip_first": True, "n_layers": 3})
    arrays, meta = record.load_arrays(run / "snapshots" / "where.npz")
    arrays["goodness0"][..., 9] += 100  # no vote, so no rival
    arrays["goodness2"][..., 7] += 10
    same = (arrays["predicted"] == arrays["labels"]) == (told == "recognised")
    record.save_arrays(run / "snapshots" / "where.npz", {k: a[same] for k, a in arrays.items()}, meta)
    (run / "snapshots" / "examples.npz").unlink()
    axes = figure(ff_cifar_lc.where, run)
    assert len(axes) == 3 + 3 * 4 and [text.get_text() for ax in axes for text in ax.texts] == [told]
    assert [axes[k].get_ylabel() for k in (3, 7, 11)] == ["layer 0\n(no vote)", "layer 1", "layer 2"]
    assert axes[0].get_title() == ("0\nrival: 7" if told == "recognised" else "8\nsaid 9")


@pytest.mark.parametrize("kind", [MAP, MAP | {"skip_first": True}, SLOT_MARGIN, {}])
def test_the_film_counts_margins_of_a_map_and_goodness_of_a_slot(tmp_path, kind):
    run = ff_cifar_lc.Run(make_run(tmp_path / "run", **kind))
    film = ff_cifar_lc_gif.Film(run, [0, 1, 2])
    fig, ax = plt.subplots()
    ff_cifar_lc_gif.histogram(ax, film, 2, 0)
    plt.close(fig)
    names = {line.get_label(): line.get_xdata()[0] for line in ax.get_lines()}
    arrays, _ = record.load_arrays(run.snapshots[2])
    g, labels = arrays["goodness"][film.voters[0]], record.load_arrays(run.snapshots[0])[0]["labels"]
    right, wrong = film.shares[2][0]
    if run.config["label"] == "slot":
        assert names == ({"θ": 2.0} if run.config["loss"] == "threshold" else {}) and ax.get_xlim()[0] == 0
        assert right.sum() == pytest.approx(100) and wrong.sum() == pytest.approx(100)
        return
    told = 100 * np.mean(g.argmax(axis=1) == labels)
    assert names == {"0": 0} and right.sum() == pytest.approx(told) and wrong.sum() == pytest.approx(100 - told)
    low, high = ax.get_xlim()
    assert low == -high < 0 and f"{told:.0f} % right" in ax.get_title()
    n = np.arange(20)
    m = 1024 * (g[n, labels] - np.where(np.eye(10)[labels] > 0, -1, g).max(axis=1))
    np.testing.assert_allclose(right, 5 * np.histogram(m[m > 0].clip(max=high), 15, (0, high))[0])
    np.testing.assert_allclose(wrong, 5 * np.histogram(m[m <= 0].clip(min=low), 15, (low, 0))[0])


def test_grey_images_one_layer_no_twin_no_validation(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", (32, 32, 1), n_layers=1, bp=False, validation=0)
    call(ff_cifar_lc, monkeypatch, run)
    assert "(and 4 more)" in capsys.readouterr().out
    call(ff_cifar_lc_gif, monkeypatch, run, "--epochs", "1", "--snapshot-every", "5")
    assert "(2 frames" in capsys.readouterr().out  # epoch 0, and 1 because it is the last


def test_an_interrupted_run_is_drawn_as_far_as_it_went(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", finished=False, snapshots=False, n_layers=4)
    call(ff_cifar_lc, monkeypatch, run)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "the run was interrupted, so no per_class.png" in out and "no snapshots" in out
    assert [path.name for path in (run / "figures").iterdir()] == ["curves.png"]
    with pytest.raises(record.RecordError, match="no snapshots"):
        call(ff_cifar_lc_gif, monkeypatch, run)


def test_a_film_that_is_too_large_loses_colours_then_pixels_and_says_so(monkeypatch):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(3)]
    whole, said = gif.fit(frames, 4)
    assert said == ""
    monkeypatch.setattr(gif, "LIMIT", len(whole) // 2)
    less, said = gif.fit(frames, 4)
    assert len(less) <= len(whole) // 2 and "reduced to" in said
    monkeypatch.setattr(gif, "LIMIT", 100)
    with pytest.raises(record.RecordError, match="--snapshot-every"):
        gif.fit(frames, 4)


def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path):
    for words in (["nowhere"], []):
        done = script("ff_cifar_lc", *words, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", '{"config": {"seed": 0}}\n', "not json\n"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "record.jsonl").write_text(text)
    with pytest.raises(record.RecordError):
        ff_cifar_lc.Run(tmp_path)


def test_the_concept_picture(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        call(concept, monkeypatch, "--out", tmp_path / "made" / name)
    a, b = ((tmp_path / "made" / name).read_bytes() for name in ("a.png", "b.png"))
    assert a == b and len(a) < 300_000
    done = script("concept", "--out", tmp_path / "a.xyz", cwd=tmp_path)
    assert done.returncode == 2 and "PNG" in done.stderr and done.stderr.count("\n") == 1


def commit_record(root, name, **kind):
    folder = root / "results" / "ff_cifar_lc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines(**kind)))


def test_tables_are_made_from_records_and_a_stale_one_is_found(tmp_path, monkeypatch, capsys):
    commit_record(tmp_path, "default-a.jsonl", seed=0)
    commit_record(tmp_path, "default-b.jsonl", seed=1)
    commit_record(tmp_path, "write-up.jsonl", seed=4, bp=False)
    readme = tmp_path / "README.md"
    names = list(results.TABLES)
    empty = "".join(f"before\n<!-- results:{name} -->\n<!-- /results:{name} -->\n" for name in names) + "after ± ⁺\n"
    readme.write_text(empty, encoding="utf-8")

    stale = script("results", "--check", "--root", tmp_path, cwd=tmp_path)
    assert stale.returncode == 1 and stale.stderr.count("\n") == 1 and "README.md" in stale.stderr
    assert readme.read_text(encoding="utf-8") == empty
    call(results, monkeypatch, "--root", tmp_path)
    call(results, monkeypatch, "--root", tmp_path, "--check")
    text = readme.read_text(encoding="utf-8")
    network = "fields 11, 5, 2 channels | shapes, 200 images, 2 epochs"
    kind = "label in a slot, pairs, uniform negatives, own labels"
    assert f"| FF: {kind} | {network} | 23.00 ± 1.41 (2 seeds) | – | 25.5 ± 0.7 | 6 |" in text
    assert f"| BP twin | {network} | 23.00 ± 1.41 (2 seeds) | – | 25.5 ± 0.7 | 3 |" in text
    assert "`python ff_cifar_lc/train.py --seeds 0-1` | c0 |" in text and "30.00 (1 seed)" in text
    assert "| 9 | 80.0 ± 0.0 | 80.0 ± 0.0 |" in text and "| 0 | – | – |" in text and "0.75 ± 0.00" in text
    assert "| 1 | 3.20 | 0.80 | – |" in text and text.count("Test accuracy by class") == 2
    assert text.startswith("before\n") and text.endswith("after ± ⁺\n")


def test_the_write_up_stands_only_beside_its_own_settings():
    first = {"config": results.WRITE_UP_CONFIG | {"seed": 3}, "dataset": {"name": "cifar10"}}
    assert results.write_up([[first]])["ff"] == 22.78
    assert results.write_up([[first | {"dataset": {"name": "shapes"}}]]) == {}
    assert results.write_up([[first | {"config": first["config"] | {"lr": 0.1}}]]) == {}


def test_results_refuse_what_would_mislead(tmp_path):
    folder = tmp_path / "results" / "ff_cifar_lc"
    commit_record(tmp_path, "a.jsonl")
    commit_record(tmp_path, "b.jsonl")
    with pytest.raises(record.RecordError, match="repeats"):
        results.groups(folder)
    commit_record(tmp_path, "b.jsonl", seed=1, finished=False)
    with pytest.raises(record.RecordError, match="no final line"):
        results.groups(folder)
    with pytest.raises(record.RecordError, match="no table x"):
        results.fill("<!-- results:x -->\n<!-- /results:x -->", tmp_path, "README.md")
    with pytest.raises(record.RecordError, match="never closed"):
        results.fill("<!-- results:ff_cifar_lc -->\n", tmp_path, "README.md")


def test_viz_never_imports_an_experiment():
    for path in (ROOT / "viz").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("ff_", "common.kernels", "common.cli")) for name in names), path


def test_family_table():
    config = {"rule": "dtg", "credit": "local", "backbone": "vgg8", "width": 0.25, "n_epochs": 12, "train_subset": 0}

    def a_run(seed, **settings):
        first = {"command": f"python ff_cnn/train.py --seed {seed}", "config": config | {"seed": seed} | settings}
        first |= {"dataset": {"name": "cifar10", "train": 45000}}
        test = {"head_acc": 0.7 + 0.01 * seed, "images_per_second": 4000.0}
        if settings.get("credit") != "bp":
            test |= {"sum_acc": 0.6, "upper_acc": 0.65, "best_acc": 0.6, "layer_acc": [0.3, 0.6]}
        return [
            first,
            {"epoch": 1, "seconds": 40.0, "images_per_second": 1125.0},
            {"final": {"test": test, "peak_gb": 0.5, "parameters": 1_500_000}},
        ]

    runs = [[a_run(0, credit="bp")], [a_run(0, rule="asge", head="last")], [a_run(0), a_run(1)]]
    rows = [row.strip("| ").split(" | ") for row in results.cnn_family(runs).splitlines()[2:]]
    assert [row[0] for row in rows] == ["DTG-FF", "ASGE, head last", "backpropagation, one head"]
    assert rows[0][1:8] == [
        "vgg8 x 0.25",
        "cifar10, 45 000 images, 12 epochs",
        "60.00 ± 0.00",
        "65.00 ± 0.00",
        "60.00 ± 0.00",
        "70.50 ± 0.71",
        "30 60",
    ]
    assert rows[0][8:14] == ["1.50 M", "1", "40.0", "0.50", "1125", "4000"]
    assert rows[2][3:8] == ["–", "–", "–", "70.00", "–"]
