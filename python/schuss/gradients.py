"""Gradients by central differences, how far a gradient is from them, and means of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from schuss import _core
from schuss.engine.memory import address
from schuss.engine.pieces import check_weights
from schuss.engine.structure import described, filled, flatten, gather, label, view_of_complex

__all__ = ["average", "check_grad", "numerical_gradient"]


def numerical_gradient(f: Callable[[Any], Any], x: Any, *, step: Any = None) -> Any:
    """The gradient by central differences, one element after the other.

        g_i = (f(x + h_i) - f(x - h_i))/(2*h_i)         in element i only

    f      a function of x that returns a number; called twice for each element
    x      an array of floating-point numbers, or arrays in sequences and mappings. Its elements are
           moved in place while f is called, so that f may as well read arrays that it knows
           already, and are then what they were, bit for bit, whatever f raises
    step   h: a number, or arrays like x. Default None: cbrt(eps)*max(1, |x_i|) with the eps of x's
           type, which balances the error of the formula, about h^2, and that of rounding, eps/h

    Divided by the difference of the two points that there really are. Returns new arrays in the
    structure of x. Raises TypeError or ValueError that name the array; ValueError, too, where
    x_i + h_i or x_i - h_i is not finite.
    """
    tree, arrays = flatten(x, role="x")
    for name, a in arrays.items():
        if a.dtype.kind != "f":
            hint = view_of_complex(a.dtype)
            raise TypeError(f"{label('x', name)}: {a.dtype}; wanted floating-point numbers{hint}")
        if not a.flags.writeable:
            raise ValueError(f"{label('x', name)}: read-only, but its elements have to be moved")
    alike = step is None or (np.ndim(step) == 0 and not isinstance(step, dict))
    given = [step] * len(arrays) if alike else gather(tree, step, "step")
    gradients = []
    for (name, a), h in zip(arrays.items(), given, strict=True):
        if h is not None and np.shape(h) not in ((), a.shape):
            raise ValueError(f"step: shape {np.shape(h)}, but {label('x', name)} has {a.shape}")
        sizes = default_step(a) if h is None else np.broadcast_to(h, a.shape)
        gradient = np.empty_like(a, subok=False)
        for i in np.ndindex(a.shape):
            gradient[i] = central(f, x, a, i, float(sizes[i]))
        gradients.append(gradient)
    return filled(tree, gradients)


def default_step(a: np.ndarray) -> np.ndarray:
    """A step for each element: cbrt(eps)*max(1, |a|)."""
    sizes: np.ndarray = np.cbrt(np.finfo(a.dtype).eps) * np.maximum(1, np.abs(a))
    return sizes


def central(f: Callable[[Any], Any], x: Any, a: np.ndarray, i: tuple[int, ...], h: float) -> float:
    """The central difference in one element of one of x's arrays."""
    if not h > 0:
        raise ValueError(f"step: {h!r} is out of range, wanted (0, inf)")
    kept = a[i]
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.array([kept + h, kept - h]).astype(a.dtype)
    if not np.isfinite(ends).all():
        raise ValueError(f"x: {kept!r} and a step of {h!r} make {ends}, which is not finite")
    try:
        a[i] = ends[0]
        above, up = float(a[i]), scalar(f(x))
        a[i] = ends[1]
        below, down = float(a[i]), scalar(f(x))
    finally:
        a[i] = kept
    if above == below:
        raise ValueError(f"step: {h!r} is lost beside {kept!r}; pass a larger one")
    return (up - down) / (above - below)


def scalar(value: Any) -> float:
    """What a function of which the gradient is wanted has to return."""
    if np.size(value) != 1:
        raise ValueError(f"f: returned shape {np.shape(value)}; wanted a number")
    return float(np.asarray(value).reshape(()))


def check_grad(f: Callable[[Any], Any], grad: Any, x: Any, *, step: Any = None) -> float:
    """How wrong a gradient is: the largest relative error of its elements.

        max over i of |g_i - n_i|/max(|g_i|, |n_i|, c)          c = cbrt(eps)*max(1, |n|)

    f, x, step   as `numerical_gradient` takes them, which gives n; |n| is its largest element
    grad         a function of x that returns g, in the structure of x; or g itself

    A right gradient gives about 1e-9 in float64, of a well scaled function; a wrong one 1e-2 to 2,
    or NaN.
    SciPy's `check_grad` takes forward differences and returns the norm of the absolute error.
    """
    tree, arrays = flatten(x, role="x")
    given = gather(tree, grad(x) if callable(grad) else grad, "grad")
    numerical = gather(tree, numerical_gradient(f, x, step=step), "x")
    for name, g, n in zip(arrays, given, numerical, strict=True):
        if np.shape(g) != n.shape:
            raise ValueError(f"{label('grad', name)}: shape {np.shape(g)}, wanted {n.shape}")
    largest = max((float(np.abs(n).max()) for n in numerical if n.size), default=0.0)
    errors = list(relative_errors(given, numerical, max(1.0, largest)))
    return float(np.max(errors, initial=0.0))  # a NaN is the largest of all


def relative_errors(given: list[Any], numerical: list[np.ndarray], size: float) -> Iterator[float]:
    """The largest relative error in each array; nothing is compared with less than cbrt(eps)."""
    for g, n in zip(given, numerical, strict=True):
        if n.size:
            least = np.cbrt(np.finfo(n.dtype).eps) * size
            sizes = np.maximum(np.maximum(np.abs(g), np.abs(n)), least)
            yield float((np.abs(np.subtract(g, n)) / sizes).max())


def average(
    arrays: Sequence[np.ndarray],
    weights: Sequence[float] | np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The weighted sum of arrays, in one pass: what a step with pieces= takes as its gradient.

        out = w_1*a_1 + w_2*a_2 + ... + w_k*a_k

    arrays    k of them, of one shape and memory order: float64 all, or each float32, float16 or
              bfloat16
    weights   w: k finite numbers, which are factors as they are. Default None: 1/k each, their mean
    out       an array like these, written, which may be one of them; default None: a new one of the
              first one's type

    Computed in float64 for float64, else in float32, from the first to the last, and rounded to
    out's type in the end: to nearest. Returns out. Raises TypeError or ValueError that name the
    argument; nothing has changed then.
    """
    arrays = list(arrays)
    factors = check_weights("arrays", len(arrays), weights)
    for i, a in enumerate(arrays):
        _core.require_array(a, f"arrays[{i}]")
    if out is None:
        out = np.empty_like(arrays[0], subok=False)
    _core.require_parameter(out, "out")
    for i, a in enumerate(arrays):
        if not goes_with(a, arrays[0]):
            like = f"{described(arrays[0])}, which arrays[0] is"
            raise ValueError(f"arrays[{i}]: {described(a)}, which doesn't go with {like}")
    if not goes_with(out, arrays[0]):
        raise ValueError(f"out: {described(out)}, but arrays[0] is {described(arrays[0])}")
    for i, a in enumerate(arrays):
        if np.may_share_memory(a, out) and not same_place(a, out):
            raise ValueError(f"out: overlaps arrays[{i}], but doesn't lie where that does")
    _core.average(arrays, factors, out)
    return out


def goes_with(a: np.ndarray, out: np.ndarray) -> bool:
    """Whether two arrays have their elements at the same places, and are computed in one type."""
    orders = (a.flags.c_contiguous and out.flags.c_contiguous) or (
        a.flags.f_contiguous and out.flags.f_contiguous
    )
    return a.shape == out.shape and orders and (a.dtype == np.float64) == (out.dtype == np.float64)


def same_place(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether each element of one lies where that of the other does."""
    return address(a) == address(b) and a.itemsize == b.itemsize
