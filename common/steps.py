"""Steps: what an epoch does with its batches; on a GPU the step is recorded once and then replayed without Python.

A step of a small network is some 250 small operations. To start them takes Python several times as long as a GPU needs
to do them, so on CuPy they are recorded as a CUDA graph, which the GPU runs through by itself. Nothing in a graph can
come from the host. What differs from step to step (batch, learning rate, random numbers, drawn by NumPy in the order
in which the plain loop draws them) therefore goes up once an epoch, and the graph counts steps to find its own.
"""

import numpy as np

from common import cli
from common.arrays import host, namespace


class Steps:
    """One for each run: it remembers the recorded step."""

    def __init__(self):
        self.graph = None

    def __call__(self, step, opts, rng, label, *inputs):
        """[step(rng, *each) for each in zip(*inputs)]: what every step returns, a list of tuples of arrays and numbers.

        A GPU's numbers come back at the end of the epoch, all together: each one that is asked for alone makes it wait.

        inputs: lists of NumPy arrays or numbers, all steps' alike but for a smaller last batch. opts: every optimiser
        that a step uses. label: of the progress bar. On a GPU step must not wait for it, and draws the same kinds of
        random numbers every time.
        """
        every = list(zip(*inputs, strict=True))
        xp = namespace(next(iter(opts[0].params.values())))
        n = sum(np.shape(each[0]) == np.shape(every[0][0]) for each in every)
        if not hasattr(xp, "cuda") or n < 3:
            return [step(rng, *each) for each in cli.progress(every, label)]
        taken = [opt.t for opt in opts]  # steps, which Adam wants to know
        xp.cuda.Device().synchronize()  # everything that other streams have to do for this epoch
        if self.graph is None:
            self.stream, self.pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
        with self.stream:
            found = self._replay(xp, step, opts, rng, every[:n], label)
            for opt, t in zip(opts, taken, strict=True):
                opt.t = t + n
            found += [_filled(self.form, map(host, _arrays(step(rng, *each)))) for each in every[n:]]
            self.stream.synchronize()
        return found

    def _replay(self, xp, step, opts, rng, every, label):
        from common.kernels_gpu import put, take

        def body():
            """A step that finds everything on the GPU: number self.i of the epoch."""
            for opt, t in zip(opts, self.taken, strict=True):
                opt.t = t + self.i
            sent = [take(each, self.i) for each in self.buffers]
            found = step(_Given(iter(sent[len(every[0]) :])), *sent[: len(every[0])])
            for buffer, each in zip(self.results, _arrays(found), strict=True):
                put(buffer, self.i, each)
            self.i += 1

        first, found, taken = 0, [], [opt.t for opt in opts]
        if self.graph is None:
            noted = _Noted(rng)
            with xp.cuda.using_allocator(self.pool.malloc):  # a pool of its own: what a graph writes to stays its own
                found.append(step(noted, *every[0]))
            first, self.calls, self.form = 1, noted.calls, found[0]
            found[0] = _filled(self.form, map(host, _arrays(self.form)))
            self.results = [xp.empty((len(every), *each.shape), each.dtype) for each in _arrays(self.form)]
        sent = [[*each, *(getattr(rng, name)(*a, **k) for name, a, k in self.calls)] for each in every[first:]]
        sent = [np.stack(each) for each in zip(*sent, strict=True)]
        sent = [each.astype(np.float32) if each.ndim == 1 else each for each in sent]  # numbers
        if self.graph is None:
            self.buffers = [xp.empty((len(every), *each.shape[1:]), each.dtype) for each in sent]
            self.i, self.taken = xp.empty(1, np.int64), xp.empty((len(opts), 1), np.int64)
        for buffer, each in zip(self.buffers, sent, strict=True):
            buffer[first:] = xp.asarray(each)
        self.i.fill(first)
        self.taken[...] = xp.asarray(np.array(taken)[:, None])
        launched = first
        if self.graph is None:
            with xp.cuda.using_allocator(self.pool.malloc):
                body()  # once as it is: whatever has to be compiled is compiled
                launched += 1
                self.stream.begin_capture()
                try:
                    body()
                finally:
                    self.graph = self.stream.end_capture()
        for _ in cli.progress(range(len(every) - launched), label):
            self.graph.launch(self.stream)
        kept = [host(each) for each in self.results]
        return found + [_filled(self.form, iter([each[i] for each in kept])) for i in range(first, len(every))]


class _Noted:
    """A generator that writes down what is asked of it."""

    def __init__(self, rng):
        self.rng, self.calls = rng, []

    def __getattr__(self, name):
        def ask(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return getattr(self.rng, name)(*args, **kwargs)

        return ask


class _Given:
    """A generator whose answers are there already, in the order of the questions."""

    def __init__(self, answers):
        self.answers = answers

    def __getattr__(self, name):
        return lambda *args, **kwargs: next(self.answers)


def _arrays(found):
    """The arrays in nested lists and tuples, in order."""
    if isinstance(found, list | tuple):
        return [array for each in found for array in _arrays(each)]
    return [found] if hasattr(found, "get") else []


def _filled(form, values):
    """`form` with the next of `values` for each of its arrays."""
    if isinstance(form, list | tuple):
        return type(form)(_filled(each, values) for each in form)
    return next(values) if hasattr(form, "get") else form
