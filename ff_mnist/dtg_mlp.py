"""DTG-FF on dense layers: Forward-Forward with a temperature and a margin that each layer learns, and a hybrid head.

Idea
    Each layer divides its goodness by a temperature and compares it with a margin, and learns both. On top of that, a
    classifier reads the layers and its error goes back through the same weights. The first half is local, the second is
    backpropagation: a hybrid, as its paper says, and the ladder of variants shows which half does what.

Symbols
    x      (B, D)     image, each channel with mean 0 and standard deviation 1; for the local part with a label written
                      over its first K inputs
    a_l    (B, n)     W_l h_{l-1} + b_l;   z_l = ReLU(a_l), h_l: z_l as the next layer sees it (--norm), h_0 = x
    g      (B,)       goodness, the mean of z^2 over a layer                                     (section 4.1, eq. 1)
    T      a number   0.1 + 1.9 sigmoid(alpha), learnt by the layer                              (eq. 2, App. A.4)
    theta  a number   softplus(theta_0), learnt by the layer, at first the goodness of the first batch   (App. A.2)
    loss_l a number   softplus(theta - g+/T) + softplus(g-/T - theta), mean over the batch       (eq. 8)
    head              softmax on [BN_l(a_l)], l < L-1: every layer but the last, before its ReLU, without a label
    loss   a number   lambda_ff sum of loss_l + cross-entropy of the head                        (eq. 9)
    Local: loss_l reaches layer l alone. Not local: the head's cross-entropy goes down through all layers that it reads.
    --norm batch, the first rung of the ladder: BatchNorm before the ReLU, so in the goodness too; right and wrong rows
    share its statistics, or, with batch-halves, each half has its own.
    Prediction: the head's answer in one pass; without a head (--head none), the label with the most goodness.

Deviates from the paper (Chen 2026, arXiv 2606.06539)
    Its list of settings (D.1: batch 128, rate 2e-4, decay 1e-3, crops, flips, colours, cutout, dropout, smoothing) does
    not say whether they hold for this network, and no normalisation between its layers is named: those here are first
    guesses, until python ff_mnist/explore.py --table dtg has run whole (shifts by one pixel: hff.py's tables). It says
    that the head's error goes back through the layers (App. A.3: "no detach") and that the head reads "detached
    features" (D.3): here it goes back, or, with --detach, it does not. The head's rows are images as they are, with no
    label over their first inputs; LayerNorm has no gain and no bias.

Run
    python ff_mnist/dtg_mlp.py --seed 0
    python ff_mnist/dtg_mlp.py --seed 0 --preset cifar10
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs, split  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.arrays import host, namespace
from common.evaluate import accuracy, in_batches
from common.functions import sigmoid, softplus
from common.goodness import MeanSquare, softmax_cross_entropy
from common.label_input import LabelInput
from common.labels import one_hot, wrong_labels
from common.layers import BatchNorm, Dense, RMSNorm, kept, relu_grad
from common.optim import SCHEDULES, Adam
from common.product import matmul
from common.split import Split, pixels
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, wrong labels
    n_epochs: int = 20  # passes over the training images
    sizes: str = "1000,1000,1000"  # units of the hidden layers
    norm: str = "rms"  # rms (mean square 1) or none before the next layer; batch or batch-halves: BatchNorm, see above
    dynamic: bool = True  # temperature and margin are learnt (off: 1, and --theta)
    theta: float = 2.0  # the margin where it is not learnt
    head: str = "layers"  # what the classifier reads: layers (all but the last), last (its activity) or none
    head_norm: str = "batch"  # what happens first to what it reads: batch, layer (mean 0, variance 1 per row) or none
    detach: bool = False  # the head hands nothing back, the other reading of the paper: everything is local then
    smoothing: float = 0.0  # label smoothing of the head
    head_dropout: float = 0.0  # share of what it reads that the head does not see while it learns
    dropout: float = 0.0  # share of its inputs that a layer does not see while it learns, image excepted
    lambda_ff: float = 0.1  # weight of the local losses (Adam takes it away again where no other loss is added)
    label: float = 1.0  # what is written at the label's place; 0 at the others
    lr: float = 0.001  # learning rate (Adam)
    temperature_lr: float = 0.001  # that of alpha and theta_0
    weight_decay: float = 0.0001  # of the weights, decoupled from the gradient
    schedule: str = "cosine"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # images per step
    jitter: int = 0  # move training images at random by up to so many pixels
    flip: bool = False  # mirror half of them
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves


CIFAR10 = {"sizes": "2048,2048,2048,2048", "n_epochs": 100, "jitter": 1, "flip": True}
PRESETS = {"cifar10": CIFAR10}
CHOICES = {
    "norm": ("rms", "none", "batch", "batch-halves"),
    "head": ("layers", "last", "none"),
    "head_norm": ("batch", "layer", "none"),
    "schedule": tuple(SCHEDULES),
}
T_MIN, T_MAX = 0.1, 2.0  # App. A.4


class DynamicGoodness:
    """Goodness of a layer against its own margin, on its own scale: g (B,) -> psi (B,) = g / T - theta.

    params: alpha (1,), theta_0 (1,): T = T_MIN + (T_MAX - T_MIN) sigmoid(alpha), theta = softplus(theta_0).
    (eq. 2, 6, 8)
    """

    def __init__(self, theta, dynamic, dtype=np.float32):
        self.params = {"alpha": np.zeros(1, dtype), "theta_0": np.zeros(1, dtype)} if dynamic else {}
        self.state = {"started": np.zeros(1, dtype)} if dynamic else {}
        self.fixed = theta

    def values(self):
        """-> T, theta: of shape (1,), or numbers if they are not learnt."""
        if not self.params:
            return 1.0, self.fixed
        return T_MIN + (T_MAX - T_MIN) * sigmoid(self.params["alpha"]), softplus(self.params["theta_0"])

    def warm_start(self, g):
        """App. A.2: at first the margin is the mean goodness of the first batch, right and wrong rows together."""
        if self.params:  # without asking a GPU for a number: it computes this at every step, and takes it at the first
            xp, mean, theta_0 = namespace(g), g.mean(), self.params["theta_0"]
            inverse = xp.log(xp.expm1(xp.maximum(xp.minimum(mean, 20), 1e-6)))  # of softplus
            theta_0[...] = xp.where(self.state["started"] > 0, theta_0, xp.where(mean > 20, mean, inverse))
            self.state["started"][...] = 1

    def loss(self, g, s):
        """Goodness g (B,), s (B,) of +1/-1 -> sum of softplus(-s psi), dL/dg (B,), grads."""
        T, theta = self.values()
        margin = -s * (g / T - theta)
        dpsi = -s * sigmoid(margin)
        grads = {}
        if self.params:
            alpha, theta_0 = (self.params[k] for k in ("alpha", "theta_0"))
            dT = -(dpsi * g).sum() / T**2
            grads = {"alpha": dT * (T_MAX - T_MIN) * sigmoid(alpha) * sigmoid(-alpha)}
            grads["theta_0"] = -dpsi.sum() * sigmoid(theta_0)
        return softplus(margin).sum(), dpsi / T, grads


class LayerNorm:
    """Rows with mean 0 and variance 1: (B, n) -> (B, n)."""

    def __init__(self, n):
        self.params, self.state, self.rms = {}, {}, RMSNorm(1e-5)

    def forward(self, x, train=True):
        return self.rms.forward(x - x.mean(axis=1, keepdims=True))

    def backward(self, dy, cache, need_dx=False):
        dx, _ = self.rms.backward(dy, cache, need_dx)
        return (dx - dx.mean(axis=1, keepdims=True) if need_dx else None), {}


HEAD_NORMS = {"batch": BatchNorm, "layer": LayerNorm}


class Net:
    """Hidden layers with their temperatures, the head with its norms, and an optimiser for each."""

    def __init__(self, cfg, n_inputs, n_classes, rng):
        sizes = runs.numbers(cfg.sizes)
        self.layers = [LabelInput(n_inputs, sizes[0], n_classes, rng, norm="none", relu=False)]
        self.layers += [Dense(n, m, rng, relu=False) for n, m in zip(sizes, sizes[1:], strict=False)]
        self.temperatures = [DynamicGoodness(cfg.theta, cfg.dynamic) for _ in sizes]
        self.norms = [BatchNorm(n) for n in sizes] if cfg.norm.startswith("batch") else []
        read = {"layers": sizes[:-1], "last": sizes[-1:], "none": []}[cfg.head]
        self.head_norms = [] if cfg.head_norm == "none" else [HEAD_NORMS[cfg.head_norm](n) for n in read]
        self.head = Dense(sum(read) or 1, n_classes, rng, relu=False, gain=0.0)
        self.opts = [Adam(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.temperature_opts = [Adam(t.params, cfg.temperature_lr) for t in self.temperatures]
        self.norm_opts = [Adam(norm.params, cfg.lr) for norm in [*self.norms, *self.head_norms]]
        self.head_opt = Adam(self.head.params, cfg.lr, decay=cfg.weight_decay)
        self.steps = Steps()

    @property
    def parts(self):
        """What lives between steps: name -> layers, an optimiser for each."""
        found = {"layers": (self.layers, self.opts), "temperatures": (self.temperatures, self.temperature_opts)}
        return found | {
            "norms": ([*self.norms, *self.head_norms], self.norm_opts),
            "head": ([self.head], [self.head_opt]),
        }


def forward(net, x, codes, cfg, keys=None):
    """x (B, D) through the layers with codes (R, K) over its first K inputs; row r shows image r mod B.

    -> for each layer a (R, n), z (R, n) and what its backward pass needs. A last layer that the head does not read is
    not asked about rows without a label, the last B of them. keys: of dropout, in training; without them, layers are
    only looked at.
    """
    train = keys is not None
    K, B, seen, h = codes.shape[1], len(x), [], None
    for i, layer in enumerate(net.layers):
        if i == len(net.layers) - 1 and cfg.head == "layers":
            if not train:
                break
            h = h[:-B]
        a, cache = layer.forward(h) if i else layer.forward(layer.image_part(x[:, K:]), codes)
        normed, of_norm = a, None
        if net.norms:  # BatchNorm everywhere: goodness is that of normalised activity
            halves = [slice(0, B), slice(B, None)] if train and cfg.norm == "batch-halves" else [slice(None)]
            parts = [net.norms[i].forward(a[half], train=train) for half in halves]
            normed, of_norm = namespace(a).concatenate([y for y, _ in parts]), [of for _, of in parts]
        z = namespace(a).maximum(normed, 0)
        h, of_rms = RMSNorm().forward(z) if cfg.norm == "rms" else (z, None)
        mask = kept(h.shape, keys[i], cfg.dropout, h.dtype, namespace(h)) if train and cfg.dropout else None
        h = h if mask is None else h * mask
        seen.append((a, z, cache, of_norm, of_rms, mask))
    return seen


def local_part(net, seen, cfg, B):
    """Every layer's own loss, from its 2B labelled rows -> dL_ff/da (2B, n) of each layer, log (L, 5); all local."""
    one, xp = seen[0][1][:B, 0] * 0 + 1, namespace(seen[0][1])
    s, da, log = xp.concatenate([one, -one]), [], []
    for i, (_, z, _, of_norm, _, _) in enumerate(seen):
        temperature = net.temperatures[i]
        g, squares = MeanSquare().forward(z[: 2 * B])
        temperature.warm_start(g)
        T, theta = temperature.values()
        loss, dg, of_temperature = temperature.loss(g, s)
        dz = relu_grad(MeanSquare().backward(dg / np.float32(B), squares), z[: 2 * B])
        if of_norm:
            halves = [dz] if len(of_norm) == 1 else [dz[:B], dz[B:]]
            parts = [net.norms[i].backward(half, of, need_dx=True) for half, of in zip(halves, of_norm, strict=True)]
            weight = np.float32(cfg.lambda_ff)
            net.norm_opts[i].step({k: sum(grads[k] for _, grads in parts) * weight for k in parts[0][1]})
            dz = xp.concatenate([dx for dx, _ in parts])
        da.append(dz)
        log.append((loss / B, g[:B].mean(), g[B:].mean(), T, theta))
        if of_temperature:
            weight = np.float32(cfg.lambda_ff / B)
            net.temperature_opts[i].step({k: v * weight for k, v in of_temperature.items()})
    return da, log


def head_part(net, seen, labels, cfg, B, key):
    """The head's cross-entropy on the last B rows, and its way down through all layers -> loss, dL/da (B, n) of each.

    This is backpropagation: None for a layer that no error reaches.
    """
    L = len(net.layers)
    read = range(L - 1) if cfg.head == "layers" else [L - 1]
    y, of_norm = states(net, seen, cfg, slice(2 * B, None), True)
    mask = kept(y.shape, key, cfg.head_dropout, y.dtype, namespace(y)) if cfg.head_dropout else np.float32(1)
    logits, of_head = net.head.forward(y * mask)
    loss, dlogits = softmax_cross_entropy(logits, labels, cfg.smoothing)
    dy, grads = net.head.backward(dlogits, of_head, need_dx=True)
    dy = dy * mask
    net.head_opt.step(grads)
    errors, first = [None] * L, 0
    for j, i in enumerate(read):  # what the head hands to each layer that it reads
        n = net.layers[i].params["b"].size
        errors[i], first = dy[:, first : first + n], first + n
        if cfg.head_norm != "none":
            errors[i], grads = net.head_norms[j].backward(errors[i], of_norm[j], need_dx=True)
            net.norm_opts[len(net.norms) + j].step(grads)
        if cfg.head == "last":
            errors[i] = relu_grad(namespace(dy).ascontiguousarray(errors[i]), seen[i][1][2 * B :])
    for i in reversed(range(L - 1)):  # and what the layer above adds to it: the line that Forward-Forward does without
        if errors[i + 1] is None:
            continue
        dh = matmul(errors[i + 1], net.layers[i + 1].params["W"].T)
        _, z, _, _, of_rms, mask = seen[i]
        dh = dh if mask is None else dh * mask[2 * B :]
        if of_rms:
            dh, _ = RMSNorm().backward(dh, tuple(part[2 * B :] for part in of_rms), need_dx=True)
        da = relu_grad(namespace(dh).ascontiguousarray(dh), z[2 * B :])
        errors[i] = da if errors[i] is None else errors[i] + da
    return loss, errors


def states(net, seen, cfg, rows, train):
    """What the head sees of these rows: a of all layers but the last, or z of the last, normalised; and caches."""
    some = [a[rows] for a, *_ in seen[: len(net.layers) - 1]] if cfg.head == "layers" else [seen[-1][1][rows]]
    caches = []
    if cfg.head_norm != "none":
        both = [norm.forward(x, train=train) for norm, x in zip(net.head_norms, some, strict=True)]
        some, caches = [y for y, _ in both], [cache for _, cache in both]
    return namespace(some[0]).concatenate(some, axis=1), caches


def step(net, x, labels, cfg, rng, n_classes):
    """One step of everything: x (B, D), labels (B,) -> cross-entropy of the head, log of the layers (L, 5)."""
    B, wrong, xp = len(x), wrong_labels(labels, n_classes, rng), namespace(x)
    codes = [one_hot(some, n_classes) * np.float32(cfg.label) for some in (labels, wrong)]
    codes += [x[:, :n_classes]] if cfg.head != "none" else []  # the head's rows are images as they are
    keys = rng.integers(2**32, size=len(net.layers) + 1, dtype=np.uint32)
    seen = forward(net, x, xp.concatenate(codes), cfg, keys)
    loss, errors = 0.0, [None] * len(net.layers)
    if cfg.head != "none":
        loss, errors = head_part(net, seen, labels, cfg, B, keys[-1])  # with the weights of before the step
        if cfg.detach:
            errors = [None] * len(net.layers)
    local, log = local_part(net, seen, cfg, B)
    for layer, opt, ff, error, (a, _, cache, *_) in zip(net.layers, net.opts, local, errors, seen, strict=True):
        ff = ff * np.float32(cfg.lambda_ff)
        da = ff if error is None else xp.concatenate([ff, error])
        rows = slice(0, len(da)) if len(da) < len(a) else None
        opt.step(layer.backward(da, cache, rows=rows)[1])  # eq. 9
    return loss, log


def answers(net, x, cfg, n_classes):
    """x (N, D) -> predicted labels (N,): by the head, or by goodness under every label where there is none."""
    found = []
    for rows in in_batches(len(x), 1000 if cfg.head != "none" else 100):
        some = x[rows]
        if cfg.head != "none":
            seen = forward(net, some, some[:, :n_classes], cfg)
            found.append(net.head.forward(states(net, seen, cfg, slice(None), False)[0])[0].argmax(axis=1))
        else:
            xp = namespace(x)
            codes = one_hot(xp.repeat(xp.arange(n_classes), len(some)), n_classes) * np.float32(cfg.label)
            seen = forward(net, some, codes, cfg)
            g = [
                MeanSquare().forward(z)[0] / t.values()[0] for (_, z, *_), t in zip(seen, net.temperatures, strict=True)
            ]
            found.append(sum(g).reshape(n_classes, len(some)).argmax(axis=0))
    return np.concatenate([host(some) for some in found])


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "batch_size", "eval_subset")
    runs.at_least(cfg, 0, "lambda_ff", "weight_decay", "jitter", "temperature_lr")
    runs.positive(cfg, "theta", "label", "lr")
    for name in ("smoothing", "head_dropout", "dropout"):
        if not 0 <= getattr(cfg, name) < 1:
            raise cli.UsageError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: from 0 to less than 1")
    if cfg.norm.startswith("batch") and cfg.head != "none":
        raise cli.UsageError(f"--norm {cfg.norm} normalises goodness: without a head, --head none")
    if cfg.head == "layers" and len(runs.numbers(cfg.sizes)) < 2:
        raise cli.UsageError(f"--sizes {cfg.sizes}: the head reads all layers but the last, so there must be two")
    if np.prod(ds.x_train.shape[1:]) <= len(ds.class_names):
        raise cli.UsageError(f"{ds.name}'s images are too small for a label of {len(ds.class_names)} pixels")


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> means over the epoch."""
    n, (mean, sd) = len(data.train[0]), data.mean_sd
    order, start = rng.permutation(n), time.perf_counter()
    batches = [order[rows] for rows in in_batches(n, cfg.batch_size)]
    first, total = (epoch - 1) * len(batches), cfg.n_epochs * len(batches)
    factors = [float(SCHEDULES[cfg.schedule](first + i, total)) for i in range(len(batches))]
    weights, temperatures = [*net.opts, *net.norm_opts, net.head_opt], net.temperature_opts

    def one(rng, rows, factor):
        for opts, lr in ((weights, cfg.lr), (temperatures, cfg.temperature_lr)):
            for opt in opts:
                opt.lr = lr * factor
        x, labels = data.batch(rows, cfg.jitter, rng, cfg.flip)
        return step(net, (x - mean) / sd, labels, cfg, rng, data.n_classes)

    log = net.steps(one, [*weights, *temperatures], rng, f"{epoch}/{cfg.n_epochs}", batches, factors)
    of_layers = np.array([[[float(np.ravel(host(v))[0]) for v in layer] for layer in each] for _, each in log])
    line = dict(zip(("loss", "g_pos", "g_neg", "temperature", "theta"), of_layers.mean(axis=0).T, strict=True))
    head_loss = float(np.mean([float(host(loss)) for loss, _ in log]))
    return line | {"head_loss": head_loss, "seconds": time.perf_counter() - start}


def evaluate(net, images, labels, cfg, mean_sd, n_classes):
    """Accuracy on uint8 images -> dict."""
    mean, sd = mean_sd
    start, found = time.perf_counter(), []
    for rows in in_batches(len(images), 2000):
        found.append(answers(net, (pixels(images[rows]) - mean) / sd, cfg, n_classes))
    return {"acc": accuracy(np.concatenate(found), host(labels)), "seconds": time.perf_counter() - start}


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("dense")
    auto = "cifar10" if options.preset == "cifar10" else "mnist"
    this = runs.open_run(cfg, options, threads, "ff_mnist_dtg_mlp", runs.images(auto), check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.size, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = net.parts, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            some = images[: cfg.eval_subset], labels[: cfg.eval_subset]
            log[key] = evaluate(net, *some, cfg, data.mean_sd, data.n_classes)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    found = data.parts("test", "val")
    final = {key: evaluate(net, *part, cfg, data.mean_sd, data.n_classes) for key, part in found.items()}
    parts = [*net.layers, *net.temperatures, *net.norms, *net.head_norms, *([net.head] if cfg.head != "none" else [])]
    record.append(this.folder, {"final": final | runs.cost(clock, parts)})
    print(f"test accuracy {100 * final['test']['acc']:.2f} %")
    this.finish(options, parts, "viz/ff_mnist_descendants.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, presets=PRESETS, device=True)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    runs.report("test accuracy", [100 * final["test"]["acc"] for final in finals])


if __name__ == "__main__":
    cli.run(main)
