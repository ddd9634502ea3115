"""What a trained network says about your own pictures: the goodness of every label, layer by layer, and the vote.

Idea
    A Forward-Forward network has no output units. It is asked about one label after the other, and each layer answers
    with its goodness, the mean of squares of its activity under that label. The label with the largest sum wins. The
    network knows only its classes: a picture of anything else gets one of them too.

Pictures
    Anything that Pillow reads, of any size. The central square is cut out and scaled down (or up) to the size that the
    network was trained on, in colour or grey as its images were; what is transparent becomes white.

Run
    python ff_cifar_lc/predict.py RUN cat.jpg ship.png     RUN: a run folder of train.py, finished or not
    python ff_cifar_lc/predict.py RUN *.png --out DIR      DIR/<name>.npz (the numbers), DIR/<name>.png (the figure)
"""

import argparse
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import train
from PIL import Image, ImageOps

Image.init()
FORMATS = [name for name in Image.OPEN if name != "EPS"]  # an EPS file is a program: Pillow has Ghostscript run it


def load_network(run):
    """A run folder -> its layers with their trained weights, Config, the record's entry on the data, epochs trained."""
    run = Path(run)
    first = record.read(run)[0]
    config, dataset = (first.get(key) if isinstance(first, dict) else None for key in ("config", "dataset"))
    if not isinstance(config, dict) or not isinstance(dataset, dict) or not {"slot_rows", "rf"} <= config.keys():
        raise cli.UsageError(f"{run} is no run of ff_cifar_lc/train.py")
    if not (run / "checkpoint.npz").is_file():
        raise cli.UsageError(f"{run} has no checkpoint.npz, and so no weights: give the folder that train.py made")
    if config.keys() != asdict(train.Config()).keys() or "mean" not in dataset:
        command = first.get("command", "python ff_cifar_lc/train.py")
        raise cli.UsageError(f"{run} is from another version of train.py: repeat it with this version ({command})")
    cfg = train.Config(**config)
    arrays, meta = record.load_arrays(run / "checkpoint.npz")  # load_checkpoint would cut the record of a live run
    try:
        OH, OW, rf, _, C, _ = arrays["ff/0/params/W"].shape
        shape = OH + rf - 1, OW + rf - 1, C  # stride 1, no padding
        if len(dataset["mean"]) != C:
            raise ValueError
        rng = np.random.default_rng(0)  # every weight is replaced
        layers = train.build(cfg, shape, len(dataset["class_names"]), rng, label_units=cfg.label == "map")
        for i, layer in enumerate(layers):
            for name, values in layer.params.items():
                saved = arrays[f"ff/{i}/params/{name}"]
                if saved.shape != values.shape:
                    raise ValueError
                values[...] = saved
        return layers, cfg, dataset, meta["epoch"]
    except (KeyError, TypeError, ValueError):
        raise cli.UsageError(f"{run}: record.jsonl and checkpoint.npz do not belong to the same network") from None


def read_picture(path, shape):
    """A picture file and the network's (H, W, C) -> its central part, uint8 (H, W, C), and its own (width, height).

    A picture of the network's size comes through bit for bit. Raises UsageError for what is no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                image = ImageOps.exif_transpose(file)  # phones turn the picture by a note in the file
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise cli.UsageError(f"{path} has more than {limit}: make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise cli.UsageError(f"{path} is no picture that Pillow can read") from None
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        what = getattr(error, "strerror", None) or f"a damaged picture ({type(error).__name__})"
        raise cli.UsageError(f"{path}: {what}") from None
    H, W, C = shape
    if image.mode == "F":
        raise cli.UsageError(f"{path} has floating-point pixels, whose black and white nobody knows: save it as PNG")
    if image.mode.startswith("I"):  # 16 bits: Pillow would cut them off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if C == 1 else "RGB")
    width, height = image.size
    w, h = max(1, min(width, height * W // H)), max(1, min(height, width * H // W))  # a square, if the network's is
    left, top = (width - w) // 2, (height - h) // 2
    image = image.crop((left, top, left + w, top + h)).resize((W, H), Image.Resampling.BICUBIC)  # antialiased
    return np.asarray(image).reshape(shape), (width, height)


def ask(layers, cfg, dataset, image):
    """One picture, uint8 (H, W, C) -> goodness (n_layers, n_classes), votes (n_classes,)."""
    x = image[None].astype(np.float32) * np.float32(1 / 255) - np.float32(dataset["mean"])  # as train.Split.floats
    g = train.ff_goodness(layers, x, cfg, len(dataset["class_names"]))
    return g[:, 0], train.votes(g, cfg)[0]


def places(smallest, largest):
    """Decimals that show four digits of the smallest number, but none that float32 does not hold of the largest."""
    if not 0 < smallest < np.inf:
        return 4
    held = -np.log10(np.spacing(np.float32(largest)))
    return max(0, int(np.ceil(min(3 - np.floor(np.log10(smallest)), held))))


def table(g, votes, class_names, voters):
    """The answer as lines of text, best label first."""
    best, behind = votes.argmax(), votes.max() - votes
    columns = {f"layer {i}" if i in voters else f"layer {i} (no vote)": row for i, row in enumerate(g)}
    columns["vote"] = votes
    digits = max(places(np.ptp(row), row.max()) for row in columns.values())  # the same everywhere: layers add up
    columns = {name: [f"{v:.{digits}f}" for v in row] for name, row in columns.items()}
    digits = places(behind[behind > 0].min(initial=np.inf), votes.max())
    columns["behind the best"] = ["best" if k == best else f"{d:.{digits}f}" for k, d in enumerate(behind)]
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    indent = max(map(len, ("label", *class_names)))
    heads = [f"{name:>{w}}" for name, w in zip(columns, widths, strict=True)]
    yield "  ".join(["  " + "label".ljust(indent), *heads])
    for k in np.argsort(-votes, kind="stable"):  # the first of equals wins, as in argmax
        cells = [f"{cells[k]:>{w}}" for cells, w in zip(columns.values(), widths, strict=True)]
        yield "  ".join([("> " if k == best else "  ") + class_names[k].ljust(indent), *cells])


def outputs(folder, paths):
    """A file for each picture's numbers. Raises UsageError where two share one, or one would replace a picture."""
    files = [folder / f"{path.stem}.npz" for path in paths]
    for i, file in enumerate(files):
        if file in files[:i]:
            raise cli.UsageError(f"{paths[i]}: another picture is called {file.stem} too; ask about them one by one")
        for made in (file, file.with_suffix(".png")):
            if made.exists() and any(path.exists() and made.samefile(path) for path in paths):
                raise cli.UsageError(f"--out {folder}: {made.name} would replace your picture; choose another folder")
    return files


def main():
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run folder of train.py, with record.jsonl and checkpoint.npz")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture: PNG, JPEG, ...")
    parser.add_argument("--out", metavar="DIR", help="where numbers and figures go (default: RUN/predictions)")
    figures = "draw a figure of every picture (default: yes)"
    parser.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True, help=figures)
    options = parser.parse_args()
    layers, cfg, dataset, epoch = load_network(options.run)
    folder = Path(options.out or Path(options.run) / "predictions")
    files = outputs(folder, options.images)
    pictures = [read_picture(path, layers[0].in_shape) for path in options.images]  # all are read before one is judged
    compilation.announce("local")
    folder.mkdir(parents=True, exist_ok=True)

    n, names = len(layers), dataset["class_names"]
    voters = np.flatnonzero(train.votes(np.eye(n)[:, None], cfg)[0]).tolist()  # train.py says which layers vote
    which = f"layer{'s' if len(voters) > 1 else ''} {', '.join(map(str, voters))}"
    print(f"{options.run}: {n} layers, {dataset['name']}, after epoch {epoch} of {cfg.n_epochs}")
    print(f"Goodness: mean of squares of a layer's activity under a label. Vote: its sum over {which}.")
    H, W, _ = layers[0].in_shape
    for path, file, (image, size) in zip(options.images, files, pictures, strict=True):
        g, votes = ask(layers, cfg, dataset, image)
        if not np.isfinite(g).all():
            raise cli.UsageError(f"{options.run}: its goodness is not finite, so its training has failed")
        way = "" if size == (W, H) else f", the central part scaled to {W} x {H}"
        print(f"\n{path.name} ({size[0]} x {size[1]} pixels{way}): {names[votes.argmax()]}")
        print("\n".join(table(g, votes, names, voters)), flush=True)
        meta = {"picture": path.name, "run": str(options.run), "dataset": dataset["name"], "class_names": names}
        meta |= {"epoch": epoch, "voters": voters, "slot_rows": cfg.slot_rows if cfg.label == "slot" else 0}
        record.save_arrays(file, {"image": image, "goodness": g, "votes": votes}, meta)
        if options.figures:
            cli.draw("viz/ff_cifar_lc_predict.py", file)
    if not options.figures:
        print(f"\nnumbers: {files[0]}{f' (and {len(files) - 1} more)' if len(files) > 1 else ''}")


if __name__ == "__main__":
    cli.run(main)
