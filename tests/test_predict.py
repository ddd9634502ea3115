"""Predictions of any picture: the goodness that training would compute, for every kind of run; mistakes in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict
import pytest
import train
from PIL import Image
from test_ff_cifar_lc import call as call_train

from common import cli, data, record
from common.optim import Adam
from viz import ff_cifar_lc_predict as viz

SCRIPT = Path(__file__).resolve().parent.parent / "ff_cifar_lc" / "predict.py"
SMALL = "--train-subset 160 --eval-subset 64 --validation 100 --batch-size 32 --rf 5,3 --channels 4 --n-epochs 1"
SMALL = [*SMALL.split(), "--no-full-test", "--no-bp-baseline", "--no-figures"]
KINDS = {
    "neutral": "--dataset shapes --n-layers 3",
    "own label": "--dataset shapes --negatives uniform --no-neutral",
    "slot": "--dataset shapes --preset write-up",
    "grey": "--dataset glyphs",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs(kind) -> a run folder of this kind, trained when first asked for."""
    made, cache = {}, tmp_path_factory.mktemp("cache")

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("run")
            done = call_train(cache, folder, *KINDS[kind].split(), small=SMALL)
            assert done.returncode == 0, done.stderr
            (made[kind],) = (folder / "out").iterdir()
        return made[kind]

    get.cache = cache
    return get


@pytest.fixture
def ask(monkeypatch, capsys):
    """ask(run, image, ...) runs the script in this process -> what it printed."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
        cli.run(predict.main)
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(run, image, ...) -> the one line with which the script ends."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(predict.main)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, out + err
        return err

    return call


def save(path, image):
    """uint8 (H, W, C) as the file `path`."""
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path)
    return path


def rows_of(out):
    """The printed table -> its labels, its numbers (without the last column), its last column."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  label"))
    rows = [line.removeprefix("> ").split() for line in lines[start + 1 : start + 11]]
    return [row[0] for row in rows], np.array([row[1:-1] for row in rows], float), [row[-1] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_the_goodness_is_that_of_training(runs, ask, monkeypatch, tmp_path, kind):
    """For a training image, to the last bit what train.py computes from the array, with its own mean and weights."""
    monkeypatch.setenv("FF_CACHE", str(runs.cache))
    run = runs(kind)
    first = record.read(run)[0]
    cfg, ds = train.Config(**first["config"]), data.load(first["dataset"]["name"])
    split = train.Split(ds, cfg)
    images = split.train[0][:1]
    layers = train.build(cfg, images.shape[1:], 10, np.random.default_rng(5), label_units=cfg.label == "map")
    untrained = train.ff_goodness(layers, split.floats(images), cfg, 10)
    arrays, _ = record.load_arrays(run / "checkpoint.npz")
    record.restore("ff", layers, [Adam(layer.params, cfg.lr) for layer in layers], arrays)
    g = train.ff_goodness(layers, split.floats(images), cfg, 10)
    assert not np.allclose(g, untrained, rtol=0.01)

    out = ask(run, save(tmp_path / "one.png", images[0]), "--no-figures")
    saved, meta = record.load_arrays(run / "predictions" / "one.npz")
    assert np.array_equal(saved["image"], images[0])
    assert np.array_equal(saved["goodness"], g[:, 0]) and np.array_equal(saved["votes"], train.votes(g, cfg)[0])
    assert meta["voters"] == ([1] if kind == "slot" else list(range(cfg.n_layers)))

    labels, numbers, behind = rows_of(out)
    order = [ds.class_names.index(name) for name in labels]
    votes = saved["votes"].astype(float)
    assert order[0] == train.ff_vote(g, cfg)[0] and sorted(order) == list(range(10))
    assert all(np.diff(votes[order]) <= 0) and behind[0] == "best"
    assert np.allclose(numbers.T, [*g[:, 0, order], votes[order]], atol=np.ptp(votes) / 1000, rtol=0)
    assert np.allclose(np.array(behind[1:], float), votes.max() - votes[order[1:]], atol=1e-7, rtol=1e-3)
    assert [line for line in out.splitlines() if line.startswith(">")][0].split()[1] == labels[0]
    assert f"one.png ({images.shape[2]} x {images.shape[1]} pixels): {labels[0]}" in out
    assert ("layer 0 (no vote)" in out) == (kind == "slot")


def test_from_another_folder_with_figures(runs, tmp_path):
    """As users call it, several pictures at once; the figures lie beside the numbers."""
    rng = np.random.default_rng(0)
    for name in ("a $ in the name.png", "large.jpg"):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / name)
    command = [sys.executable, str(SCRIPT), str(runs("slot")), "a $ in the name.png", "large.jpg", "--out", "made/here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    made = tmp_path / "made" / "here"
    stems = ("a $ in the name", "large")
    assert {path.name for path in made.iterdir()} == {f"{stem}.{kind}" for stem in stems for kind in ("npz", "png")}
    assert done.stdout.count("the central part scaled to 32 x 32") == 2 and done.stdout.count("\n> ") == 2
    for stem in stems:
        with Image.open(made / f"{stem}.png") as figure:
            assert figure.width >= 1000 and figure.height >= 480
    a, b = (record.load_arrays(made / f"{stem}.npz")[0]["goodness"] for stem in stems)
    assert not np.array_equal(a, b)


def test_one_picture_or_many_the_same_answer(runs, ask, tmp_path):
    rng = np.random.default_rng(1)
    paths = [save(tmp_path / f"{i}.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for i in range(3)]
    ask(runs("neutral"), *paths, "--no-figures", "--out", tmp_path / "many")
    ask(runs("neutral"), paths[2], "--no-figures", "--out", tmp_path / "one")
    many, one = (record.load_arrays(tmp_path / folder / "2.npz")[0] for folder in ("many", "one"))
    assert all(np.array_equal(many[k], one[k]) for k in one)


def test_predicting_leaves_a_live_run_alone(runs, ask, tmp_path):
    """The lines behind the checkpoint are the run's own business: --resume cuts them, a prediction does not."""
    run = shutil.copytree(runs("neutral"), tmp_path / "run")
    with open(run / "record.jsonl", "a") as file:
        file.write('{"epoch": 2, "half a li')
    before = (run / "record.jsonl").read_bytes()
    ask(run, save(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8)), "--no-figures")
    assert (run / "record.jsonl").read_bytes() == before


# ---- pictures


def quadrants(size, colors):
    """A square picture of four colours: top left, top right, bottom left, bottom right."""
    image = np.empty((size, size, len(colors[0])), np.uint8)
    half = size // 2
    image[:half, :half], image[:half, half:], image[half:, :half], image[half:, half:] = colors
    return image


FOUR = [(200, 30, 30), (30, 180, 30), (30, 30, 220), (240, 240, 60)]


def near(image, colors, tolerance=12):
    """Whether the picture has these colours in the middles and in the corners of its quadrants."""
    at = [(r, c) for r in (0, -1) for c in (0, -1)], [(r, c) for r in (8, 24) for c in (8, 24)]
    return all(
        np.abs(image[place].astype(int) - color).max() <= tolerance
        for places in at
        for place, color in zip(places, colors, strict=True)
    )


@pytest.mark.parametrize("wide", [True, False])
def test_the_central_square_of_a_large_photo(tmp_path, wide):
    """Its sides are black: none of them may reach the network's picture, not even its corners."""
    photo = np.zeros((640, 1000, 3), np.uint8)
    photo[:, 180:820] = quadrants(640, FOUR)
    photo = photo if wide else photo.transpose(1, 0, 2)
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=95, subsampling=0)
    image, size = predict.read_picture(tmp_path / "photo.jpg", (32, 32, 3))
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and size == ((1000, 640) if wide else (640, 1000))
    assert near(image, FOUR if wide else [FOUR[k] for k in (0, 2, 1, 3)])


def test_scaling_down_averages(tmp_path):
    """A fine checkerboard becomes grey; one pixel out of ten would be black or white."""
    board = (255 * (np.indices((320, 320)).sum(axis=0) % 2)).astype(np.uint8)
    image, _ = predict.read_picture(save(tmp_path / "board.png", board[..., None]), (32, 32, 1))
    assert np.abs(image.astype(int) - 127).max() <= 3


def test_a_phone_turns_its_pictures_by_a_note(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    upright = quadrants(64, FOUR)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "phone.png", exif=exif)
    assert near(predict.read_picture(tmp_path / "phone.png", (32, 32, 3))[0], FOUR)


def test_grey_colour_palette_and_sixteen_bits(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (32, 32, 1), dtype=np.uint8)
    save(tmp_path / "grey.png", grey)
    assert np.array_equal(predict.read_picture(tmp_path / "grey.png", (32, 32, 3))[0], np.repeat(grey, 3, axis=2))
    assert np.array_equal(predict.read_picture(tmp_path / "grey.png", (32, 32, 1))[0], grey)
    Image.fromarray(grey[..., 0].astype(np.uint16) * 256 + 77).save(tmp_path / "deep.png")
    assert np.array_equal(predict.read_picture(tmp_path / "deep.png", (32, 32, 1))[0], grey)
    color = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    as_grey, _ = predict.read_picture(save(tmp_path / "color.png", color), (32, 32, 1))
    assert np.abs(as_grey[..., 0] - color @ [0.299, 0.587, 0.114]).max() <= 1
    Image.fromarray(quadrants(32, FOUR)).quantize(4).save(tmp_path / "palette.gif")
    assert np.array_equal(predict.read_picture(tmp_path / "palette.gif", (32, 32, 3))[0], quadrants(32, FOUR))


def test_what_is_transparent_becomes_white(tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    alpha = np.full((32, 32, 1), 255, np.uint8)
    alpha[:10] = 0
    save(tmp_path / "a.png", np.concatenate([color, alpha], axis=2))
    image, _ = predict.read_picture(tmp_path / "a.png", (32, 32, 3))
    assert (image[:10] == 255).all() and np.array_equal(image[10:], color[10:])
    grey = np.concatenate([color[..., :1], alpha], axis=2)
    Image.fromarray(grey, "LA").save(tmp_path / "la.png")
    image, _ = predict.read_picture(tmp_path / "la.png", (32, 32, 1))
    assert (image[:10] == 255).all() and np.array_equal(image[10:], grey[10:, :, :1])


# ---- mistakes


def test_what_is_no_picture_ends_in_one_line(runs, refused, tmp_path, monkeypatch):
    run, good = runs("own label"), save(tmp_path / "good.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "text.png").write_text("this is no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(noise).save(tmp_path / "program.eps")
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "float.tiff")
    for name, says in {
        "nowhere.png": "No such file",
        ".": "directory",
        "text.png": "no picture",
        "half.png": "damaged",
        "program.eps": "no picture",
        "float.tiff": "floating-point",
    }.items():
        assert says.lower() in refused(run, good, tmp_path / name, "--out", tmp_path / "out").lower()
    for limit in (64 * 64 - 1, 64 * 64 // 2 - 1):  # Pillow warns above its limit, and stops above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "million pixels" in refused(run, tmp_path / "whole.png", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_ends_in_one_line(runs, refused, tmp_path):
    image = save(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    run = shutil.copytree(runs("neutral"), tmp_path / "run")
    text = (run / "record.jsonl").read_text()
    arrays, meta = record.load_arrays(run / "checkpoint.npz")

    def record_is(**changes):
        first = json.loads(text.splitlines()[0]) | changes
        (run / "record.jsonl").write_text(json.dumps(first) + "\n")

    first = json.loads(text.splitlines()[0])
    config, dataset = first["config"], first["dataset"]
    assert "does not exist" in refused(tmp_path / "nowhere", image)
    for other in ("[]\n", "{}\n", '{"config": {"seed": 0}, "dataset": {}}\n', '{"config": 3}\n'):
        (run / "record.jsonl").write_text(other)
        assert "no run of ff_cifar_lc/train.py" in refused(run, image)
    record_is(dataset={k: v for k, v in dataset.items() if k != "mean"})
    assert "repeat it" in refused(run, image)
    record_is(config={k: v for k, v in config.items() if k != "neutral"})
    assert "repeat it" in refused(run, image)
    for changes in ({"config": config | {"channels": 5}}, {"config": config | {"n_layers": 4}}):
        record_is(**changes)
        assert "do not belong" in refused(run, image)
    for changes in ({"mean": [0.5]}, {"mean": None}, {"class_names": ["a", "b"]}):
        record_is(dataset=dataset | changes)
        assert "do not belong" in refused(run, image)
    record_is()
    (run / "checkpoint.npz").write_bytes((run / "checkpoint.npz").read_bytes()[:1000])
    assert "damaged" in refused(run, image)
    record.save_arrays(run / "checkpoint.npz", arrays | {"ff/1/params/b": np.zeros(4, np.float32)}, meta)
    assert "do not belong" in refused(run, image)  # NumPy would have spread it over the map
    (run / "checkpoint.npz").unlink()
    assert "no checkpoint.npz" in refused(run, image)


def test_a_failed_training_has_no_opinion(runs, monkeypatch, capsys, tmp_path):
    run = shutil.copytree(runs("neutral"), tmp_path / "run")
    arrays, meta = record.load_arrays(run / "checkpoint.npz")
    arrays["ff/0/params/b"][...] = np.nan
    record.save_arrays(run / "checkpoint.npz", arrays, meta)
    image = save(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(sys, "argv", ["predict.py", str(run), str(image), "--no-figures"])
    with pytest.raises(cli.UsageError, match="not finite"):
        predict.main()


def test_no_picture_is_ever_replaced(runs, refused, tmp_path):
    (tmp_path / "b").mkdir()
    paths = [save(tmp_path / name, np.zeros((32, 32, 3), np.uint8)) for name in ("a.png", "b/a.png", "c.jpg", "c.png")]
    before = [path.read_bytes() for path in paths]
    assert "another picture is called a" in refused(runs("neutral"), *paths[:2], "--out", tmp_path / "out")
    assert "would replace" in refused(runs("neutral"), paths[0], "--out", tmp_path)
    assert "would replace" in refused(runs("neutral"), paths[0], "--out", tmp_path / "b" / "..")
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("words", [[], ["run"], ["run", "a.png", "--beta", "3"]])
def test_wrong_flags_end_in_one_line(refused, words):
    assert "see --help" in refused(*words)


# ---- the table and the figure


def test_the_table_shows_differences_in_late_digits():
    g = np.float32([[0.0803, 0.0800, 0.0803, 0.0801], [0.4, 0.4, 0.4, 0.4001234]])
    head, *lines = predict.table(g, g.sum(axis=0), ["cat", "a longer name", "dog", "ship"], [0, 1])
    assert head.split() == "label layer 0 layer 1 vote behind the best".split()
    assert [line.startswith("> ") for line in lines] == [True, False, False, False]
    assert [line[2:].split("  ")[0] for line in lines] == ["cat", "dog", "ship", "a longer name"]  # a tie: as argmax
    assert len({len(line) for line in (head, *lines)}) == 1
    assert [float(line.split()[-1]) for line in lines[1:]] == pytest.approx([0, 7.66e-5, 3e-4], abs=1e-7)
    dead = np.zeros((1, 3), np.float32)
    assert len(list(predict.table(dead, dead[0], ["a", "b", "c"], [0]))) == 4


def answer(n_layers=2, voters=None, slot_rows=0, channels=3, spread=1e-4):
    """Goodness of ten labels and what goes with it, as predict.py saves it."""
    rng = np.random.default_rng(n_layers)
    voters = list(range(n_layers)) if voters is None else voters
    g = (0.08 + spread * rng.random((n_layers, 10))).astype(np.float32)
    meta = {"picture": "a_file_whose_name_is_far_too_long_for_its_place.jpeg", "voters": voters, "slot_rows": slot_rows}
    meta |= {"class_names": [f"class {k}" for k in range(10)], "dataset": "made up", "run": "r", "epoch": 1}
    image = rng.integers(0, 256, (28, 28, channels), dtype=np.uint8)
    return {"image": image, "goodness": g, "votes": g[voters].sum(axis=0)}, meta


def panels(path):
    """The figure's panels with bars: lengths from top to bottom."""
    fig = viz.draw(*viz.load(path))
    axes = [ax for part in fig.subfigs[1:] for ax in part.axes]
    lengths = np.array([[bar.get_width() for bar in ax.patches] for ax in axes])
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    shown = {ax.get_xlim() for ax in axes}
    viz.plt.close(fig)
    return lengths, labels, shown


@pytest.mark.parametrize(
    "n_layers, voters, count", [(1, [0], 1), (2, [0, 1], 3), (2, [1], 1), (3, None, 4), (5, None, 1)]
)
def test_bars_are_differences_that_add_up(tmp_path, n_layers, voters, count):
    arrays, meta = answer(n_layers, voters)
    record.save_arrays(tmp_path / "a.npz", arrays, meta)
    lengths, labels, shown = panels(tmp_path / "a.npz")
    votes = arrays["votes"].astype(float)
    order = np.argsort(-votes, kind="stable")
    assert lengths.shape == (count, 10) and labels == [f"class {k}" for k in order]
    assert np.allclose(lengths[-1] * 1e-6, votes[order] - votes.mean(), atol=1e-9)
    assert lengths[-1].max() >= 10  # visible, although goodness differs in the fourth digit only
    assert count == 1 or np.allclose(lengths[:-1].sum(axis=0), lengths[-1], atol=0.1)
    ((low, high),) = shown  # one scale for all panels
    assert low < lengths.min() and lengths.max() < high


def test_the_figure_is_drawn_beside_its_numbers_and_twice_the_same(tmp_path, monkeypatch, capsys):
    for name, kind in {
        "slot": {"voters": [1], "slot_rows": 3},
        "grey": {"channels": 1},
        "deep": {"n_layers": 3, "spread": 0.5},
        "dead": {"spread": 0},
    }.items():
        record.save_arrays(tmp_path / f"{name}.npz", *answer(**kind))
        drawn = []
        for _ in range(2):
            monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / f"{name}.npz")])
            viz.main()
            drawn.append((tmp_path / f"{name}.png").read_bytes())
            (tmp_path / f"{name}.png").unlink()
        assert drawn[0] == drawn[1] and len(drawn[0]) < 300_000
        assert capsys.readouterr().out.startswith(f"figure: {tmp_path / name}.png")


def test_other_files_have_no_figure(tmp_path):
    record.save_arrays(tmp_path / "other.npz", {"image": np.zeros((3, 3, 3))}, {})
    with pytest.raises(record.RecordError, match="is not a file of"):
        viz.load(tmp_path / "other.npz")
    with pytest.raises(record.RecordError, match="does not exist"):
        viz.load(tmp_path / "nowhere.npz")
