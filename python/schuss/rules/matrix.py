"""Rules that multiply matrices: a plain NumPy layer over the kernels, outside the promise of bits.

Each of them turns a matrix's gradient into a direction in NumPy, and the compiled step then walks
along it, with all that stands around a rule. The products of matrices are BLAS's, and so are their
last bits and their threads: another BLAS, processor or number of threads gives other ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import InitVar
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from schuss import _core, reference
from schuss.engine.backend import read
from schuss.engine.declare import DecayMode, Number, choice, constant, flag, number, numbers, whole
from schuss.engine.groups import Group, Parameter
from schuss.engine.memory import FREE
from schuss.engine.optimizer import Optimizer, argument, computing_type
from schuss.engine.rule import Numbers, Values
from schuss.engine.step import Recipe
from schuss.engine.structure import label
from schuss.rules import AdamW

State = Mapping[str, np.ndarray]
IsMatrix = Callable[[str, np.ndarray], bool]


class Room:
    """Arrays for what lies between gradient and direction: kept for the next step, never copied."""

    def __init__(self) -> None:
        self.arrays: dict[Any, np.ndarray] = {}

    def __call__(
        self, use: str, like: np.ndarray, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> np.ndarray:
        """An array like another one, of this or the same shape and type, with no content."""
        shape, dtype = shape or like.shape, np.dtype(dtype or like.dtype)
        key = use, shape, dtype, like.flags.c_contiguous
        if key not in self.arrays:
            self.arrays[key] = np.empty_like(like, shape=shape, dtype=dtype, subok=False)
        return self.arrays[key]

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()


class MatrixRule(Optimizer):
    """The base of the rules for matrices, which leave all other parameters to AdamW.

    matrix   a function of a parameter's name and array: True where it is one of the rule's
             matrices. Default None: all arrays of two dimensions
    other    a mapping with AdamW's options for the parameters that are no matrices: other than
             AdamW's defaults, or than those said at the rule. Default None

    Embeddings and the last layer are usually left to AdamW: matrix=lambda name, a: a.ndim == 2 and
    name != "head". An array of more dimensions is no matrix, but a view of it can be: pass
    w.reshape(len(w), -1) for the weights of a convolution.

    opt.param_groups has two groups for each one given: that of its matrices, and that of AdamW.
    Hyperparameters that all rules have (maximize, clip_value, l1, l2, bounds) go to both, as does
    setting opt.maximize; lr, weight_decay and the others are those of the matrices, and AdamW's are
    in `other`, and in opt.param_groups[1].

    Outside the bit promise: a step's last bits depend on BLAS, as do its threads, and backend only
    says how the last line of the rule, x = keep*x - lr*u, is computed. A step validates everything
    before anything changes, but an interrupt may fall between two arrays. The first steps allocate
    a direction u for each matrix, and for each shape room for what lies between, which is kept; the
    later ones allocate what LAPACK needs for eigenvectors. The matrices' state is of the type that
    is computed in, and its subnormal numbers are kept: state_dtype is refused, and subnormals is
    for AdamW's. There is no stateless call, and no translation from or to PyTorch's state.
    """

    states: ClassVar = {"sgd": ()}  # the matrices' own state is no kernel's
    apart: ClassVar = (*Optimizer.apart, "matrix", "other")
    kept: ClassVar[dict[str, str]]  # the state of an m x n matrix, and its shape
    others: ClassVar[dict[str | None, dict[str, Any]]] = {}  # AdamW's options, by preset

    if TYPE_CHECKING:  # arguments of every constructor
        matrix: InitVar[IsMatrix | None] = argument(default=None)
        other: InitVar[Mapping[str, Any] | None] = argument(default=None)

    def __init__(self, params: Any, **options: Any) -> None:
        self._room = Room()
        super().__init__(params, **options)

    # ---- What a rule says of itself

    @staticmethod
    def kernel(h: Values) -> str:
        if h["cautious"]:
            raise ValueError(f"cautious: {h['cautious']!r} is not for matrices")
        return "sgd"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {"lr": h["lr"]}

    @staticmethod
    def start(state: State, h: Values) -> None:
        """Gives state arrays their start where it isn't 0."""

    @staticmethod
    def direct(u: np.ndarray, state: State, h: Values, t: int, room: Room) -> None:
        """Turns the gradient u into the direction that is stepped along, and updates the state."""
        raise NotImplementedError("MatrixRule is the base of the rules; use Muon, Shampoo, SOAP")

    # ---- Parameters

    def _divided(
        self, group: Mapping[str, Any], values: dict[str, Any]
    ) -> tuple[tuple[Group, ...], Callable[[str, np.ndarray], int]]:
        matrix, other = group.get("matrix"), group.get("other")
        if not (matrix is None or callable(matrix)):
            raise TypeError(f"matrix: {matrix!r} is no function of a name and an array")
        if not (other is None or isinstance(other, Mapping)):
            raise TypeError(f"other: {other!r} is no mapping of AdamW's options")
        if self.state_dtype:
            raise ValueError("state_dtype: not with matrices; theirs is what they compute in")
        own = Group(type(self), values)
        declared = self.hyperparameters
        common = {
            name: value
            for name, value in values.items()
            if name in declared and AdamW.hyperparameters.get(name) is declared[name]
        }
        start = self.others.get(values.get("preset"), {})
        try:
            rest = Group(AdamW, {**start, **common, **(other or {})})
        except (TypeError, ValueError) as error:
            raise type(error)(f"other: {error}") from None

        def part(name: str, x: np.ndarray) -> int:
            if not (x.ndim == 2 if matrix is None else matrix(name, x)):
                return 1
            if x.ndim != 2:
                of = label("params", name)
                raise ValueError(f"matrix: {of} has shape {x.shape}; pass it as a view of two axes")
            return 0

        return (own, rest), part

    def _add(self, group: Mapping[str, Any]) -> list[Parameter]:
        added = super()._add(group)
        for p in added:
            settings = self._groups[p.group].settings
            if settings.rule is not type(self):
                continue
            sides = dict(zip("mn", p.x.shape, strict=True))
            p.matrices = {
                name: self._zeros(p.x, computing_type(p.x), place, tuple(sides[s] for s in shape))
                for place, (name, shape) in enumerate(self.kept.items(), start=FREE)
            }
            self.start(p.matrices, settings.values)
        return added

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that the optimizer has allocated."""
        return super().nbytes + sum(a.nbytes for a in self._room.arrays.values())

    # ---- The step

    def _recipe(self) -> Recipe:
        recipe = super()._recipe()
        recipe.direct = self._directions
        return recipe

    def _directions(self, step: list[tuple[int, Any, Values, int, Any]]) -> list[Any]:
        """What matrices are to walk along in place of their gradients; None for others.

        step   of each array its number, its gradient, hyperparameters, step count and scalars
        """
        for i, *_ in step:
            p = self._parameters[i]
            for key, array in p.matrices.items():
                _core.require_parameter(array, f'{label("state", p.name)}["{key}"]')
        with np.errstate(all="ignore"):
            return [self._direction(self._parameters[i], *rest) for i, *rest in step]

    def _direction(
        self, p: Parameter, g: np.ndarray, h: Values, t: int, scalars: tuple[float, ...]
    ) -> np.ndarray | None:
        if not p.matrices:
            return None
        u = self._room(f"u of {p.name}", np.asarray(p.x), dtype=computing_type(p.x))
        _, _, stages = read(scalars)
        prepare(u, np.asarray(g), np.asarray(p.beside.get("master", p.x)), stages)
        self.direct(u, p.matrices, h, t, self._room)
        return u


def prepare(u: np.ndarray, g: np.ndarray, x: np.ndarray, stages: reference.Stages) -> None:
    """What a step does to a gradient before the rule: the steps 1 to 3 of reference.step."""
    u[...] = g
    if stages.scale != 1:
        u *= stages.scale
    if stages.clip < math.inf:
        np.clip(u, -stages.clip, stages.clip, out=u)
    if stages.l2 != 0:
        u += stages.l2 * x.astype(u.dtype, copy=False)
    if stages.l1 != 0:
        u += stages.l1 * reference.sign(x.astype(u.dtype, copy=False))


# ---- Muon


class Muon(MatrixRule):
    """Descent along the orthogonal matrix that is next to a running mean of the gradients.

        b = b + (1 - mu)*(g - b)
        u = g + mu*(b - g)                  u = b without nesterov
        u = u/max(|u|, eps)                 |u|: root of the sum of the squares
        u = p*u + q*(u u^T)u + r*(u u^T)^2 u            ns_steps times; (p, q, r): ns_coefficients
        x = (1 - lr*weight_decay)*x - lr*k*u

        adjust_lr_fn      k, of an m x n matrix
        original          sqrt(max(1, m/n))
        match_rms_adamw   0.2*sqrt(max(m, n))       u's elements are then as large as AdamW's

    lr                learning rate, in [0, inf), default 1e-3
    momentum          mu, in [0, 1), default 0.95
    nesterov          the step above, default True
    ns_coefficients   (p, q, r), each in (-inf, inf), default (3.4445, -4.775, 2.0315)
    ns_steps          steps of the Newton-Schulz iteration, a whole number, default 5
    eps               in (0, inf), default 1e-7
    adjust_lr_fn      "original" (default), or "match_rms_adamw": see above
    weight_decay      in [0, inf), default 0.1
    decay_mode        "decoupled" (default), or another: see Optimizer

    Everything else as MatrixRule. The presets jordan (his AdamW: lr=3e-4, betas=(0.9, 0.95),
    eps=1e-10, weight_decay=0), keras (AdamW's preset of that name) and moonlight (lr=1e-3,
    betas=(0.9, 0.95), weight_decay=0.1) set `other`, too.
    State: momentum_buffer (b).
    Traps: the iteration is in float32 here, or float64 as the parameter is; PyTorch and Jordan
    iterate in bfloat16, which moves u by one or two per cent. The default coefficients don't
    converge: singular values end between 0.7 and 1.2, very small ones below. u's size doesn't
    follow that of g, so lr has to fall for x to come to rest. A zero gradient still moves x.
    Source: Jordan 2024, kellerjordan.github.io/posts/muon; match_rms_adamw: Liu et al. 2025, arXiv
    2502.16982.
    """

    kept: ClassVar = {"momentum_buffer": "mn"}
    presets: ClassVar = {
        "torch": {},
        "jordan": {"lr": 0.02, "weight_decay": 0.0},
        "keras": {"weight_decay": 4e-3, "adjust_lr_fn": "match_rms_adamw"},
        "moonlight": {"adjust_lr_fn": "match_rms_adamw"},
    }
    others: ClassVar = {
        "jordan": {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0},
        "keras": {"preset": "keras"},
        "moonlight": {"betas": (0.9, 0.95), "weight_decay": 0.1},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    momentum: Number = number("[0, 1)", default=0.95)
    nesterov: bool = flag(default=True)
    ns_coefficients: tuple[Number, Number, Number] = numbers(
        "(-inf, inf)", default=(3.4445, -4.775, 2.0315)
    )
    ns_steps: int = whole(default=5)
    eps: Number = number("(0, inf)", default=1e-7)
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = choice(default="original")
    weight_decay: Number = number("[0, inf)", default=0.1)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def direct(u: np.ndarray, state: State, h: Values, t: int, room: Room) -> None:
        b, mu = state["momentum_buffer"], h["momentum"]
        (m, n), d = u.shape, room("difference", u)
        np.subtract(u, b, out=d)
        b += np.multiply(d, 1.0 - mu, out=d)
        if h["nesterov"]:
            np.subtract(b, u, out=d)
            u += np.multiply(d, mu, out=d)
        else:
            u[...] = b
        orthogonalize(u if m <= n else u.T, h, room)
        if h["adjust_lr_fn"] == "original":
            u *= math.sqrt(max(1.0, m / max(n, 1)))
        else:
            u *= 0.2 * math.sqrt(max(m, n))


def orthogonalize(x: np.ndarray, h: Values, room: Room) -> None:
    """Brings the singular values of a wide matrix close to 1, by Newton and Schulz's iteration."""
    p, q, r = h["ns_coefficients"]
    x /= max(float(np.linalg.norm(x)), h["eps"])
    side = len(x), len(x)
    now, then = x, room("product", x)
    gram, inner, polynomial = (room(name, x, side) for name in ("gram", "inner", "polynomial"))
    # p*I + q*gram + r*gram^2 = p*I + gram (q*I + r*gram): what is added lies on diagonals.
    diagonals = [a.ravel(order="K")[:: len(x) + 1] for a in (inner, polynomial)]
    for _ in range(h["ns_steps"]):
        np.matmul(now, now.T, out=gram)
        np.multiply(gram, r, out=inner)
        diagonals[0] += q
        np.matmul(gram, inner, out=polynomial)
        diagonals[1] += p
        np.matmul(polynomial, now, out=then)
        now, then = then, now
    if now is not x:
        x[...] = now


# ---- Shampoo and SOAP


def add_products(state: State, g: np.ndarray, room: Room, decay: float, share: float) -> None:
    """Adds to both sums: left = decay*left + share*(g g^T), right = decay*right + share*(g^T g)."""
    for name, a in (("left", g), ("right", g.T)):
        product = room("product", a, (len(a), len(a)))
        np.matmul(a, a.T, out=product)
        if decay != 1:
            state[name][...] *= decay
        state[name][...] += np.multiply(product, share, out=product)


def eigh(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors in float64; NaN where the matrix has elements that are not finite."""
    if not np.isfinite(a).all():
        return np.full(len(a), np.nan), np.full(a.shape, np.nan)
    values, vectors = np.linalg.eigh(a.astype(np.float64))
    return values, vectors


class Shampoo(MatrixRule):
    """Adagrad for matrices: a gradient's rows and columns are each divided by a root of their own.

        L = L + g g^T                       eps on the diagonal at the start
        R = R + g^T g                       eps on the diagonal at the start
        x = x - lr * L^(-1/4) g R^(-1/4)

    lr                       learning rate, in [0, inf), default 0.1
    eps                      in (0, inf), default 1e-4; fixed at construction
    precondition_frequency   the roots are taken anew every so many steps, a whole number from 1,
                             default 1
    weight_decay             in [0, inf), default 0
    decay_mode               "l2" (default), or another: see Optimizer

    Everything else as MatrixRule. What is no matrix is left to AdamW, where the paper takes a
    vector's L^(-1/2) g: that of a matrix of one column.
    State: left (L), right (R), left_root (L^(-1/4)), right_root (R^(-1/4)).
    Traps: the sums only grow, and so the steps only shrink, as Adagrad's do. Most of the time goes
    into the roots, by eigenvectors in float64: a larger precondition_frequency saves it. There is
    no grafting: lr is not that of another rule. A zero gradient doesn't move x.
    Source: Gupta, Koren, Singer 2018, arXiv 1802.09568, algorithm 1.
    """

    kept: ClassVar = {"left": "mm", "right": "nn", "left_root": "mm", "right_root": "nn"}
    lr: Number = number("[0, inf)", default=0.1)
    eps: float = constant("(0, inf)", default=1e-4)
    precondition_frequency: int = whole(default=1, least=1)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def start(state: State, h: Values) -> None:
        for name in ("left", "right"):
            np.fill_diagonal(state[name], h["eps"])

    @staticmethod
    def direct(u: np.ndarray, state: State, h: Values, t: int, room: Room) -> None:
        add_products(state, u, room, 1.0, 1.0)
        if (t - 1) % h["precondition_frequency"] == 0:
            for name in ("left", "right"):
                values, vectors = eigh(state[name])
                roots = np.maximum(values, h["eps"]) ** -0.25  # none is smaller, but for rounding
                state[f"{name}_root"][...] = (vectors * roots) @ vectors.T
        half = np.matmul(state["left_root"], u, out=room("half", u))
        np.matmul(half, state["right_root"], out=u)


class SOAP(MatrixRule):
    """Adam in the eigenbases of Shampoo's sums, which turn slowly.

        L = shampoo_beta*L + (1 - shampoo_beta)*(g g^T)
        R = shampoo_beta*R + (1 - shampoo_beta)*(g^T g)
        r = P^T g Q                         P, Q: the eigenvectors of L and R
        m = beta1*m + (1 - beta1)*r
        v = beta2*v + (1 - beta2)*r*r
        u = P (m/(1 - beta1^t) / (sqrt(v/(1 - beta2^t)) + eps/sqrt(1 - beta2^t))) Q^T
        x = (1 - lr*weight_decay)*(x - lr*u)

    The first step only finds P and Q; t is 1 in the second. Every precondition_frequency steps, P
    becomes the orthogonal part of L P (its QR decomposition), columns in the order of falling
    eigenvalues, Q that of R Q, and m goes over to the new bases.

    lr                       learning rate, in [0, inf), default 3e-3
    betas                    (beta1, beta2), each in [0, 1), default (0.95, 0.95)
    shampoo_beta             in [0, 1), default 0.95
    eps                      in [0, inf), default 1e-8
    precondition_frequency   steps from one pair of bases to the next, a whole number from 1,
                             default 10
    weight_decay             in [0, inf), default 1e-2
    decay_mode               "after" (default): as above; or another: see Optimizer

    Everything else as MatrixRule. AdamW's defaults are lr=3e-3 and betas=(0.95, 0.95) here.
    State: exp_avg (m), exp_avg_sq (v), left (L), right (R), left_basis (P), right_basis (Q).
    Traps: the first step leaves the matrices as they are. m and v are those of the rotated
    gradient: they can't be read element by element of x. A zero gradient still moves x, and the
    decay goes on. With eps = 0 an element of r that has always been 0 makes all of x NaN.
    Source: Vyas et al. 2024, arXiv 2409.11321, algorithm 3; the first step, eps and the decay as in
    the authors' code.
    """

    kept: ClassVar = {
        "exp_avg": "mn",
        "exp_avg_sq": "mn",
        "left": "mm",
        "right": "nn",
        "left_basis": "mm",
        "right_basis": "nn",
    }
    others: ClassVar = {None: {"lr": 3e-3, "betas": (0.95, 0.95)}}
    lr: Number = number("[0, inf)", default=3e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.95, 0.95))
    shampoo_beta: Number = number("[0, 1)", default=0.95)
    eps: Number = number("[0, inf)", default=1e-8)
    precondition_frequency: int = whole(default=10, least=1)
    weight_decay: Number = number("[0, inf)", default=1e-2)
    decay_mode: Literal["after", DecayMode] = choice(default="after")

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        lr = h["lr"] if t > 1 else 0.0  # the first step finds the bases
        return {"lr": lr, "decay_rate": lr}

    @staticmethod
    def direct(u: np.ndarray, state: State, h: Values, t: int, room: Room) -> None:
        t, decay = t - 1, h["shampoo_beta"]  # the first step only finds the bases
        add_products(state, u, room, decay, 1.0 - decay)
        if t == 0:
            for name in ("left", "right"):
                state[f"{name}_basis"][...] = eigh(state[name])[1][:, ::-1]
            u.fill(0)
            return
        (beta1, beta2), m, v = h["betas"], state["exp_avg"], state["exp_avg_sq"]
        p, q = state["left_basis"], state["right_basis"]
        half, r = room("half", u), room("rotated", u)
        rotate(u, p.T, q, half, out=r)
        m *= beta1
        m += np.multiply(r, 1.0 - beta1, out=half)
        v *= beta2
        r *= r
        v += np.multiply(r, 1.0 - beta2, out=r)
        np.sqrt(v, out=r)
        r += h["eps"]
        np.divide(m, r, out=r)
        r *= math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        rotate(r, p, q.T, half, out=u)
        if t % h["precondition_frequency"] == 0:
            rotate(m, p, q.T, half, out=r)
            turn(p, state["left"], v, room)
            turn(q, state["right"], v.T, room)
            rotate(r, p.T, q, half, out=m)


def rotate(
    a: np.ndarray, left: np.ndarray, right: np.ndarray, half: np.ndarray, *, out: np.ndarray
) -> None:
    """Out = left a right."""
    np.matmul(left, a, out=half)
    np.matmul(half, right, out=out)


def turn(basis: np.ndarray, a: np.ndarray, rows: np.ndarray, room: Room) -> None:
    """One step of the power iteration towards a's eigenvectors, the largest first.

    What belongs to the basis' columns, the rows of another array, comes into their order.
    """
    power = np.matmul(a, basis, out=room("power", a))
    order = np.argsort(-np.einsum("ij,ij->j", basis, power), kind="stable")
    rows[...] = rows[order]
    basis[...] = np.linalg.qr(power[:, order])[0]


RULES: tuple[type[MatrixRule], ...] = (Muon, Shampoo, SOAP)
