"""One look for all pictures: a colour means the same thing everywhere, and the same record gives the same bytes.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; layers differ in line style as well.
"""

import argparse
import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, on any machine

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from PIL import Image

from common.record import RecordError

FF, BP = "#0072B2", "#D55E00"  # the two methods
POS, NEG = "#009E73", "#CC79A7"  # right label, wrong label
SLOT = "#F0E442"  # the label slot's outline, on images
CHANCE = "#767676"  # chance, thresholds and other reference lines
LAYERS = [("#56B4E9", "-"), ("#000000", "--"), ("#E69F00", "-."), ("#999999", ":")]  # colour and line style

DPI = 120  # 9 inches are 1080 pixels, which GitHub shows about 800 wide: 11 point text stays readable

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.labelsize": 11,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "figure.dpi": DPI,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E4E4E4",
        "lines.linewidth": 2,
        "lines.markersize": 5,
    }
)


def layer(i):
    """Colour and line style of layer i, as keywords for `plot`."""
    color, line = LAYERS[i % len(LAYERS)]
    return {"color": color, "linestyle": line}


def reference(ax, y, text):
    """A thin horizontal line that others are compared with, named in the legend."""
    ax.axhline(y, color=CHANCE, linewidth=1.2, linestyle=(0, (2, 2)), label=text, zorder=1)


def legend_below(ax, columns):
    """A legend under the axes, where it covers no data."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, columnspacing=1.2, handlelength=2.4)


def epoch_axis(ax, last, first=1):
    """Whole epochs on the x axis."""
    ax.set_xlabel("epoch")
    ax.set_xlim(first - 0.4, last + 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


def outline(ax, left, top, width, height, color, line=2.0):
    """A frame around pixels of an image shown by `imshow`, whose pixel (0, 0) has its centre at (0, 0)."""
    place = (left - 0.5, top - 0.5), width, height
    ax.add_patch(plt.Rectangle(*place, fill=False, edgecolor=color, linewidth=line, clip_on=False))


def bare(ax):
    """Axes that only hold an image."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def pixels(fig):
    """The figure as a Pillow image; closes the figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI)
    plt.close(fig)
    return Image.open(buffer).convert("RGB")


def save(fig, path):
    """Write a small PNG without dates or versions: the same figure gives the same bytes."""
    if Path(path).suffix.lower() != ".png":
        raise RecordError(f"{path}: pictures are PNG files; choose a name that ends in .png")
    pixels(fig).save(path, optimize=True)


def folder(path):
    """Make a folder for pictures."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{path} cannot hold pictures: {error.strerror}") from None
    return path


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes end in one line and exit code 2."""

    def __init__(self, doc):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")

    def add_run(self):
        """The run folder, as RUN or, as in the write-up, --model RUN."""
        self.add_argument("run", nargs="?", metavar="RUN", help="a run folder, with record.jsonl and snapshots/")
        self.add_argument("--model", dest="model", metavar="RUN", help="the same, by the write-up's name")

    def parse_run(self):
        options = self.parse_args()
        options.run = options.run or options.model
        if not options.run:
            self.error("which run? give its folder")
        return options


def run(main):
    """Call main(); what the user can mend ends with one line on stderr and exit code 2."""
    try:
        main()
    except (RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
