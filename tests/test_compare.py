"""The comparison of runs, from made-up records whose numbers were worked out by hand."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import record
from viz import compare

ROOT = Path(__file__).resolve().parent.parent
OLD = {"n_epochs": 3, "channels": 8, "validation": 100}  # settings of a record from before there were negatives
NEW = OLD | {"negatives": "all"}
FF, BP = {0: 0.40, 1: 0.42, 2: 0.47}, {0: 0.50, 1: 0.50, 2: 0.56}  # seed -> test accuracy


def make(folder, seed, ff, bp=None, config=NEW, epochs=3, finished=True, data="shapes"):
    """A record with accuracies that rise by 0.05 per epoch up to the given test accuracies."""
    folder.mkdir()
    record.append(folder, {"config": {"seed": seed} | config, "dataset": {"name": data}})
    nets = {"ff": ff} | ({"bp": bp} if bp else {})
    for epoch in range(1, epochs + 1):
        line = {net: {"train_acc": acc - 0.05 * (3 - epoch) + 0.02} for net, acc in nets.items()}
        if config.get("validation"):
            line = {net: acc | {"val_acc": acc["train_acc"] - 0.02} for net, acc in line.items()}
        record.append(folder, {"epoch": epoch} | line)
    if finished:
        record.append(folder, {"final": {net: {"test_acc": acc} for net, acc in nets.items()}})
    return folder


def call(monkeypatch, capsys, *words):
    """What the script prints, as lines with single spaces."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
    compare.main()
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def script(*words, cwd):
    """Run it as a user does, from another directory."""
    command = [sys.executable, str(ROOT / "viz" / "compare.py"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")


def colours(path):
    """All colours of a PNG as hexadecimal strings."""
    with Image.open(path) as picture:
        assert picture.format == "PNG" and 900 <= picture.width <= 1300
        return {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}


def test_numbers_of_partly_shared_seeds(tmp_path, monkeypatch, capsys):
    a = [make(tmp_path / f"a{seed}", seed, FF[seed], BP[seed]) for seed in FF]
    wide = NEW | {"channels": 16, "negatives": "hard"}
    b = [make(tmp_path / f"b{seed}", seed, acc, config=wide) for seed, acc in {1: 0.45, 2: 0.46, 7: 0.62}.items()]
    out = call(monkeypatch, capsys, a[2], b[0], *a[:2], *b[1:], "--out", tmp_path / "c.png")
    assert out == [
        "group net seeds test accuracy, % settings",
        "A FF 3 43.00 ± 3.61 channels=8 negatives=all",  # 40, 42, 47: squares 9 + 1 + 16, by 2: 13
        "A BP 3 52.00 ± 3.46 channels=8 negatives=all",  # 50, 50, 56: squares 4 + 4 + 16, by 2: 12
        "B FF 3 51.00 ± 9.54 channels=16 negatives=hard",  # 45, 46, 62: squares 36 + 25 + 121, by 2: 91
        "",
        "Paired differences of test accuracy:",
        "FF: B - A +1.00 ± 2.83 points (2 shared seeds)",  # 45 - 42 and 46 - 47: squares 4 + 4, by 1: 8
        "A: FF - BP -9.00 ± 1.00 points (3 shared seeds)",  # -10, -8, -9
        "",
        f"picture: {tmp_path / 'c.png'}",
    ]


def test_one_shared_seed_has_no_sd_and_none_is_said(tmp_path, monkeypatch, capsys):
    runs = [make(tmp_path / "a", 0, 0.4, 0.5), make(tmp_path / "b", 0, 0.38, config=NEW | {"channels": 16})]
    runs.append(make(tmp_path / "c", 1, 0.3, 0.5, config=NEW | {"channels": 32}))
    out = call(monkeypatch, capsys, *runs, "--out", tmp_path / "c.png")
    assert "B FF 1 38.00 channels=16" in out and "FF: B - A -2.00 points (1 shared seed)" in out
    assert "FF: C - A no shared seeds" in out and "BP: C - A no shared seeds" in out
    assert not any(line.startswith(("BP: B", "B: FF")) for line in out)  # B has no twin
    out = call(monkeypatch, capsys, runs[1], runs[0], "--out", tmp_path / "c.png")
    assert "FF: B - A +2.00 points (1 shared seed)" in out and not any(line.startswith("BP:") for line in out)


def test_a_single_group_is_called_by_its_data(tmp_path, monkeypatch, capsys):
    a = [make(tmp_path / f"a{seed}", seed, FF[seed]) for seed in FF]
    out = call(monkeypatch, capsys, *a, "--out", tmp_path / "c.png")
    assert out[1:] == ["A FF 3 43.00 ± 3.61 shapes", "", f"picture: {tmp_path / 'c.png'}"]


def test_groups_are_data_and_settings(tmp_path, monkeypatch, capsys):
    """Other data is another group; a record from before a setting existed differs from every value of it."""
    runs = [make(tmp_path / "a", 0, 0.4, config=OLD), make(tmp_path / "b", 0, 0.45)]
    runs.append(make(tmp_path / "c", 0, 0.5, data="cifar10"))
    out = call(monkeypatch, capsys, tmp_path / "a" / "record.jsonl", *runs[1:], "--out", tmp_path / "c.png")
    assert out[1:4] == [
        "A FF 1 40.00 dataset=shapes negatives=–",
        "B FF 1 45.00 dataset=shapes negatives=all",
        "C FF 1 50.00 dataset=cifar10 negatives=all",
    ]
    assert "FF: B - A +5.00 points (1 shared seed)" in out


def test_committed_records_stand_beside_new_ones(tmp_path, monkeypatch, capsys):
    old = sorted((ROOT / "results" / "ff_cifar_lc").glob("write-up-seed*.jsonl"))
    finals = [json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["final"] for path in old]
    ff, bp = ([100 * final[net]["test_acc"] for final in finals] for net in ("ff", "bp"))
    gap = [a - b for a, b in zip(ff, bp, strict=True)]
    new = make(tmp_path / "new", 0, 0.4, 0.4, config=NEW | {"not_yet_invented": True}, data="cifar10")
    out = call(monkeypatch, capsys, *old, new, "--out", tmp_path / "c.png")
    for line, values in zip(out[1:3], (ff, bp), strict=True):
        assert f" 5 {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} " in line
        assert line.endswith(" not_yet_invented=–")
    sd = statistics.stdev(gap)
    assert f"A: FF - BP {statistics.mean(gap):.2f} ± {sd:.2f} points (5 shared seeds)" in out
    assert f"FF: B - A {40 - ff[0]:+.2f} points (1 shared seed)" in out


def test_unfinished_runs_are_drawn_but_in_no_number(tmp_path, monkeypatch, capsys):
    a = [make(tmp_path / f"a{seed}", seed, FF[seed], BP[seed]) for seed in (0, 1)]
    whole = call(monkeypatch, capsys, *a, "--out", tmp_path / "without.png")
    stopped = make(tmp_path / "stopped", 2, 0.9, 0.9, epochs=2, finished=False)
    begun = make(tmp_path / "begun", 3, 0.9, 0.9, epochs=0, finished=False)
    out = call(monkeypatch, capsys, *a, stopped, begun, "--out", tmp_path / "with.png")
    assert out[:-3] == whole[:-1] and out[1] == "A FF 2 41.00 ± 1.41 shapes"
    assert out[-3] == f"{stopped} (A, seed 2): unfinished after epoch 2 of 3, so in no number above"
    assert out[-2] == f"{begun} (A, seed 3): unfinished after epoch 0 of 3, so in no number above"
    group = compare.grouped([compare.Run(path) for path in (*a, stopped, begun)])[0]
    fig = compare.picture([group])
    thin = [line.get_ydata() for line in fig.axes[0].lines if line.get_linewidth() < 1]
    thick = [line.get_ydata() for line in fig.axes[0].lines if line.get_linewidth() > 2 and len(line.get_ydata())]
    compare.plt.close(fig)
    assert sum(len(y) == 2 and np.allclose(y, [80, 85]) for y in thin) == 2  # the stopped run, FF and BP
    assert len(thick) == 2 and np.allclose(thick, [[31, 36, 41], [40, 45, 50]])  # means of the two finished runs

    out = call(monkeypatch, capsys, stopped, "--out", tmp_path / "only.png")
    assert out[1:3] == ["A FF 0 – shapes", "A BP 0 – shapes"] and "A: FF - BP no shared seeds" in out


@pytest.mark.parametrize(
    "validation, label",
    [((100, 100), "validation accuracy (%)"), ((0, 0), "training accuracy (%)"),
     ((100, 0), "validation accuracy (%; B: training)")],
)  # fmt: skip
def test_the_axis_says_which_images_the_accuracy_is_of(tmp_path, validation, label):
    paths = [
        make(tmp_path / str(i), i, 0.4, config=NEW | {"channels": i, "validation": v}) for i, v in enumerate(validation)
    ]
    groups = compare.grouped([compare.Run(path) for path in paths])
    fig = compare.picture(groups)
    ends = [line.get_ydata()[-1] for line in fig.axes[0].lines if line.get_linewidth() > 2 and len(line.get_ydata())]
    compare.plt.close(fig)
    assert fig.axes[0].get_ylabel() == label
    assert np.allclose(ends, [40 if v else 42 for v in validation])


def test_what_the_panels_show(tmp_path):
    """Seeds from left to right however they were named, FF filled and BP hollow, bars at the means, chance at 1/K."""
    a = [make(tmp_path / f"a{seed}", seed, FF[seed], BP[seed]) for seed in (2, 0, 1)]
    b = make(tmp_path / "b", 5, 0.3, config=NEW | {"channels": 16}, epochs=1)
    fig = compare.picture(compare.grouped([compare.Run(path) for path in (*a, b)]))
    left, right = fig.axes
    compare.plt.close(fig)
    thick = [line for line in left.lines if line.get_linewidth() > 2 and len(line.get_ydata())]
    assert [line.get_color() for line in thick] == [compare.COLORS[i] for i in (0, 0, 1)]
    assert [line.get_linestyle() for line in thick] == ["-", "--", "-"]
    (chance,) = [line for line in left.lines if "chance" in line.get_label()]
    assert list(chance.get_ydata()) == [10, 10] and chance.get_label() == "chance (10 %)"
    dots = [list(line.get_ydata()) for line in right.lines]
    assert np.allclose(dots[0], [40, 42, 47]) and np.allclose(dots[1], [50, 50, 56]) and np.allclose(dots[2], [30])
    assert [line.get_markerfacecolor() for line in right.lines] == [compare.COLORS[0], "none", compare.COLORS[1]]
    assert np.allclose([bar.get_segments()[0][:, 1] for bar in right.collections], [[43, 43], [52, 52], [30, 30]])
    assert [text.get_text() for text in right.texts] == ["43.0", "52.0", "30.0"]
    assert [text.get_text() for text in right.get_xticklabels()] == ["A\nFF", "A\nBP", "B\nFF"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "A: channels=8 (3 seeds)",
        "B: channels=16 (1 seed)",
    ]


def test_the_epochs_are_whole_even_where_there_is_one(tmp_path):
    fig = compare.picture(compare.grouped([compare.Run(make(tmp_path / "a", 0, 0.4, epochs=1))]))
    ticks = fig.axes[0].get_xticks()
    compare.plt.close(fig)
    assert len(ticks) and np.array_equal(ticks, np.round(ticks))


def test_the_picture_has_a_colour_per_group_and_is_the_same_twice(tmp_path):
    runs = [make(tmp_path / f"run{i}", 0, 0.3 + 0.02 * i, 0.5, NEW | {"channels": i}) for i in range(3)]
    done = script(*runs, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("\n\npicture: compare.png\n")
    found = colours(tmp_path / "compare.png")
    assert set(compare.COLORS[:3]) <= found and not set(compare.COLORS[3:6]) & found  # the last one is black, like text
    done = script(*runs, "--out", tmp_path / "made" / "again.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "again.png").read_bytes() == (tmp_path / "compare.png").read_bytes()


def test_more_groups_than_colours_are_counted_but_not_drawn(tmp_path, monkeypatch, capsys):
    assert len(set(compare.COLORS)) == 7
    runs = [make(tmp_path / f"run{i}", 0, 0.3 + 0.02 * i, config=NEW | {"channels": i}) for i in range(8)]
    with pytest.raises(record.RecordError, match="7 groups apart, these runs are 8"):
        call(monkeypatch, capsys, *runs, "--out", tmp_path / "c.png")
    assert "FF: H - A  +14.00 points (1 shared seed)" in capsys.readouterr().out
    assert not (tmp_path / "c.png").exists()


def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path):
    run = make(tmp_path / "run", 0, 0.4)
    copy = make(tmp_path / "copy", 0, 0.4)
    (tmp_path / "file").write_text("")
    cases = {
        (): "RUN",
        ("nowhere",): "nowhere does not exist",
        (run, copy): f"{run} and {copy} are the same run: settings and seed 0",
        (run, ROOT / "results" / "ff_cifar_lc_deviations" / "two-by-two.jsonl"): "is not a run of ff_cifar_lc/train.py",
        (run, "--out", "c.pdf"): "call it .png",
        (run, "--out", tmp_path / "file" / "c.png"): "cannot hold pictures",
    }
    for words, message in cases.items():
        done = script(*words, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr, (words, done.stderr)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.p[nd][gf]"))


FIRST = '{"config": {"seed": 0}, "dataset": {"name": "shapes"}}\n'
FINAL = '{"final": {"ff": {"test_acc": 0.5}}}\n'


@pytest.mark.parametrize(
    "text",
    ["", "not json\n", "[]\n", "1\n", "{}\n", '{"config": {}, "dataset": {"name": "shapes"}}\n', FIRST + "1\n",
     FIRST + FINAL, FIRST + '{"epoch": 1, "loss": 2.0}\n', FIRST + '{"epoch": 1, "ff": {"loss": 2.0}}\n',
     FIRST + '{"epoch": 1, "bp": {"train_acc": 0.5}}\n',
     FIRST + '{"epoch": 1, "ff": {"train_acc": 0.5}}\n{"final": {"test_acc": 0.5}}\n'],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "record.jsonl").write_text(text)
    with pytest.raises(record.RecordError, match="not a record|not a run|no whole line"):
        compare.Run(tmp_path)


def test_the_same_record_with_an_ff_epoch_is_read(tmp_path):
    """What the refusals above are close to."""
    (tmp_path / "record.jsonl").write_text(FIRST + '{"epoch": 1, "ff": {"train_acc": 0.25}}\n' + FINAL)
    run = compare.Run(tmp_path)
    assert (run.key, run.curves, run.test) == ("train_acc", {"ff": [25.0]}, {"ff": 50.0})


def test_nothing_to_draw_yet(tmp_path, monkeypatch, capsys):
    begun = make(tmp_path / "begun", 0, 0.4, epochs=0, finished=False)
    with pytest.raises(record.RecordError, match="nothing to compare yet"):
        call(monkeypatch, capsys, begun, "--out", tmp_path / "c.png")
