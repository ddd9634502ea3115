"""A stand-in array module: NumPy underneath, but its arrays are no NumPy arrays, so a NumPy-only call fails on them.

Like CuPy, it refuses silent conversion (np.asarray, np functions, float() of more than one element), and knows its own
functions only. Code that runs on these arrays takes every function from the array's own module.
"""

import numpy as np

FUNCTIONS = (
    "abs arange argsort ascontiguousarray clip concatenate cumsum einsum empty empty_like exp expm1 eye "
    "flatnonzero full log log1p matmul maximum mean minimum multiply ones_like "
    "pad repeat sqrt stack sum unique where zeros zeros_like"
).split()
float32, float64, int64 = np.float32, np.float64, np.int64


def wrap(value):
    return ndarray(value) if isinstance(value, np.ndarray | np.generic) else value


def unwrap(value):
    if isinstance(value, ndarray):
        return value.data
    if isinstance(value, tuple | list):
        return type(value)(unwrap(v) for v in value)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a NumPy array reached the stand-in module: copy it over first")
    return value


class ndarray:
    def __init__(self, data):
        self.data = np.asarray(data)

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to NumPy: take the function from the array's own module")

    def __array_ufunc__(self, *_, **__):
        raise TypeError("a NumPy function was called on a stand-in array")

    def __array_function__(self, *_, **__):
        raise TypeError("a NumPy function was called on a stand-in array")

    def __getattr__(
        self, name
    ):  # methods and attributes: sum, mean, reshape, transpose, T, shape, dtype, size, ndim, ...
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.data, name)
        if callable(found):
            return lambda *args, **kwargs: wrap(found(*unwrap(args), **{k: unwrap(v) for k, v in kwargs.items()}))
        return wrap(found) if isinstance(found, np.ndarray) else found

    def __getitem__(self, index):
        return wrap(self.data[unwrap(index)])

    def __setitem__(self, index, value):
        self.data[unwrap(index)] = unwrap(value)

    def get(self):  # CuPy's only way back to the host
        return self.data

    def __len__(self):
        return len(self.data)

    def __float__(self):
        return float(self.data)

    def __bool__(self):
        return bool(self.data)


def _operator(name):
    def method(self, *others):
        result = getattr(self.data, name)(*(unwrap(o) for o in others))
        if result is NotImplemented:
            return NotImplemented
        if others and name.startswith("__i"):  # __invert__ has no other
            return self
        return wrap(result)

    return method


for _name in "add sub mul truediv floordiv mod pow matmul and or xor rshift".split():
    for _prefix in ("", "r", "i"):
        if hasattr(np.ndarray, f"__{_prefix}{_name}__"):
            setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in "neg abs eq ne lt le gt ge invert".split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _function(name):
    found = getattr(np, name)
    return lambda *args, **kwargs: wrap(found(*unwrap(args), **{k: unwrap(v) for k, v in kwargs.items()}))


for _name in FUNCTIONS:
    globals()[_name] = _function(_name)


class lib:
    """cupy.lib"""

    class stride_tricks:
        as_strided = staticmethod(
            lambda x, shape, strides: wrap(np.lib.stride_tricks.as_strided(unwrap(x), shape, strides))
        )


def asarray(array):
    """The one deliberate way in (cupy.asarray)."""
    return ndarray(array)
