"""Rules that multiply matrices: a plain NumPy layer over the kernels, outside the promise of bits.

Each of them turns a matrix's gradient into a direction in NumPy, and the compiled step then walks
along it, with all that stands around a rule. The products of matrices are BLAS's, and so are their
last bits and their threads: another BLAS, processor or number of threads gives other ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from schuss import _core, reference
from schuss.engine.backend import read
from schuss.engine.declare import DecayMode, Number, choice, constant, flag, number, numbers, whole
from schuss.engine.groups import Group, Parameter
from schuss.engine.guard import weakly
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
        self.states: dict[str, dict[str, np.ndarray]] = {}

    def __call__(
        self, use: str, like: np.ndarray, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> np.ndarray:
        """An array like another one, of this or the same shape and type, with no content."""
        shape, dtype = shape or like.shape, np.dtype(dtype or like.dtype)
        key = use, shape, dtype, like.flags.c_contiguous
        if key not in self.arrays:
            self.arrays[key] = np.empty_like(like, shape=shape, dtype=dtype, subok=False)
        return self.arrays[key]

    def like(self, name: str, state: State) -> dict[str, np.ndarray]:
        """What the state of the parameter of this name becomes by a step."""
        if name not in self.states:
            self.states[name] = {key: np.empty_like(a, subok=False) for key, a in state.items()}
        return self.states[name]

    @property
    def nbytes(self) -> int:
        states = (a for state in self.states.values() for a in state.values())
        return sum(a.nbytes for a in (*self.arrays.values(), *states))

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
    says how the last line of the rule, x = keep*x - lr*u, is computed. A step is whole or there is
    none: what the state becomes is computed beside it, and copied into place when all matrices are
    done, so that nothing has changed after an interrupt, a MemoryError or a LinAlgError. The first
    step allocates for each matrix a direction u and its state once more, and for each shape room
    for what lies between, which is kept; the later ones allocate what LAPACK needs for
    eigenvectors. The matrices' state is of the type that is computed in, and its subnormal numbers
    are kept: state_dtype is refused, and subnormals is for AdamW's. There is no stateless call, and
    no translation from or to PyTorch's state.
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

    @classmethod
    def refuses_rows(cls, h: Values) -> str:
        return f"{cls.__name__} turns whole matrices"

    @staticmethod
    def direct(
        u: np.ndarray, state: State, new: State, h: Values, t: int, room: Room
    ) -> Sequence[str]:
        """Turns the gradient u into the direction that is stepped along.

        state is left as it is; what it becomes is written to `new`. Returns which of them are.
        """
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
        return super().nbytes + self._room.nbytes

    # ---- The step

    def _recipe(self) -> Recipe:
        recipe = super()._recipe()
        recipe.direct = weakly(self._directions)
        return recipe

    def _directions(self, step: list[tuple[int, Any, Values, int, Any]]) -> tuple[Any, Any]:
        """What matrices are to walk along in place of their gradients; None for others.

        Also returned is each state array with what it becomes, for the compiled sequence to copy.

        step   of each array its number, its gradient, hyperparameters, step count and scalars
        """
        becomes: list[tuple[np.ndarray, np.ndarray]] = []
        for i, *_ in step:
            p = self._parameters[i]
            for key, array in p.matrices.items():
                _core.require_parameter(array, f'{label("state", p.name)}["{key}"]')
        with np.errstate(all="ignore"):
            found = [self._direction(becomes, self._parameters[i], *rest) for i, *rest in step]
        return found, becomes

    def _direction(
        self,
        becomes: list[tuple[np.ndarray, np.ndarray]],
        p: Parameter,
        g: np.ndarray,
        h: Values,
        t: int,
        scalars: tuple[float, ...],
    ) -> np.ndarray | None:
        if not p.matrices:
            return None
        room, state = self._room, p.matrices
        u = room(f"u of {p.name}", np.asarray(p.x), dtype=computing_type(p.x))
        new = room.like(p.name, state)
        _, _, stages = read(scalars)
        prepare(u, np.asarray(g), p.weight, stages)
        becomes += [(state[key], new[key]) for key in self.direct(u, state, new, h, t, room)]
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
    follow that of g, so lr has to fall for x to come to rest. A zero gradient still moves x. Any
    finite gradient below a quarter of the largest number gives a finite u, also where its squares
    are infinite; where |u| is below eps, as in float32 at 1e-30, u is small: u/eps.
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
    def direct(
        u: np.ndarray, state: State, new: State, h: Values, t: int, room: Room
    ) -> Sequence[str]:
        b, mu = new["momentum_buffer"], h["momentum"]
        (m, n), d = u.shape, room("difference", u)
        np.subtract(u, state["momentum_buffer"], out=d)
        np.add(state["momentum_buffer"], np.multiply(d, 1.0 - mu, out=d), out=b)
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
        return ("momentum_buffer",)


def orthogonalize(x: np.ndarray, h: Values, room: Room) -> None:
    """Brings the singular values of a wide matrix close to 1, by Newton and Schulz's iteration."""
    p, q, r = h["ns_coefficients"]
    normalize(x, h["eps"])
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


def normalize(x: np.ndarray, eps: float) -> None:
    """Divides by the larger of norm and eps, also where the squares of elements aren't finite."""
    norm = float(np.linalg.norm(x))
    if not SAFE[x.dtype] < norm < 1.0 / SAFE[x.dtype]:
        largest = max(float(x.max(initial=0)), -float(x.min(initial=0)))
        power = math.frexp(largest)[1]  # 0 where it isn't finite
        np.ldexp(x, -power, out=x)
        norm, eps = float(np.linalg.norm(x)), float(np.ldexp(eps, -power))
    x /= max(norm, eps)


# From here to the inverse norms are exact, and sums of the squares of 2^32 of them finite.
SAFE = {np.dtype(np.float32): 2.0**-48, np.dtype(np.float64): 2.0**-480}


# ---- Shampoo and SOAP


def drop_immense(u: np.ndarray) -> None:
    """Makes a finite gradient zero where the sums of its squares would not stay finite."""
    if float(np.linalg.norm(u)) > 1.0 / SAFE[u.dtype] and np.isfinite(u).all():
        u.fill(0)


def add_products(
    state: State, new: State, g: np.ndarray, room: Room, decay: float, share: float
) -> None:
    """Both sums: left = decay*left + share*(g g^T), right = decay*right + share*(g^T g)."""
    for name, a in (("left", g), ("right", g.T)):
        product = room("product", a, (len(a), len(a)))
        np.matmul(a, a.T, out=product)
        np.multiply(product, share, out=product)
        np.multiply(state[name], decay, out=new[name])
        new[name][...] += product


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
    no grafting: lr is not that of another rule. A zero gradient doesn't move x. A gradient
    whose norm is finite, but beyond 2^48, in float64 2^480, counts as zero: the sums of its squares
    would not stay finite.
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
    def direct(
        u: np.ndarray, state: State, new: State, h: Values, t: int, room: Room
    ) -> Sequence[str]:
        drop_immense(u)
        add_products(state, new, u, room, 1.0, 1.0)
        names, roots = ["left", "right"], state
        if (t - 1) % h["precondition_frequency"] == 0:
            roots = new
            for name in ("left", "right"):
                values, vectors = eigh(new[name])
                # None is smaller than eps, but for rounding, which the largest one gives its size.
                noise = np.finfo(u.dtype).eps * values.max(initial=0)
                values = np.maximum(values, max(h["eps"], noise))
                new[f"{name}_root"][...] = (vectors * values**-0.25) @ vectors.T
                names.append(f"{name}_root")
        half = np.matmul(roots["left_root"], u, out=room("half", u))
        np.matmul(half, roots["right_root"], out=u)
        return names


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
    decay goes on. With eps = 0 an element of r that has always been 0, or was so small that its
    square is, makes all of x NaN. A gradient whose norm is finite, but beyond 2^48, in float64
    2^480, counts as zero: its squares would not stay finite.
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
    def direct(
        u: np.ndarray, state: State, new: State, h: Values, t: int, room: Room
    ) -> Sequence[str]:
        t, decay = t - 1, h["shampoo_beta"]  # the first step only finds the bases
        drop_immense(u)
        add_products(state, new, u, room, decay, 1.0 - decay)
        if t == 0:
            for name in ("left", "right"):
                new[f"{name}_basis"][...] = eigh(new[name])[1][:, ::-1]
            u.fill(0)
            return "left", "right", "left_basis", "right_basis"
        (beta1, beta2), m, v = h["betas"], new["exp_avg"], new["exp_avg_sq"]
        p, q = state["left_basis"], state["right_basis"]
        half, r = room("half", u), room("rotated", u)
        rotate(u, p.T, q, half, out=r)
        np.multiply(state["exp_avg"], beta1, out=m)
        m += np.multiply(r, 1.0 - beta1, out=half)
        np.multiply(state["exp_avg_sq"], beta2, out=v)
        r *= r
        v += np.multiply(r, 1.0 - beta2, out=r)
        np.sqrt(v, out=r)
        r += h["eps"]
        np.divide(m, r, out=r)
        r *= math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        rotate(r, p, q.T, half, out=u)
        if t % h["precondition_frequency"] != 0:
            return "exp_avg", "exp_avg_sq", "left", "right"
        rotate(m, p, q.T, half, out=r)
        new["left_basis"][...] = turned(p, new["left"], v, room)
        new["right_basis"][...] = turned(q, new["right"], v.T, room)
        rotate(r, new["left_basis"].T, new["right_basis"], half, out=m)
        return tuple(new)


def rotate(
    a: np.ndarray, left: np.ndarray, right: np.ndarray, half: np.ndarray, *, out: np.ndarray
) -> None:
    """Out = left a right."""
    np.matmul(left, a, out=half)
    np.matmul(half, right, out=out)


def turned(basis: np.ndarray, a: np.ndarray, rows: np.ndarray, room: Room) -> np.ndarray:
    """A basis after one step of the power iteration towards a's eigenvectors, the largest first.

    What belongs to the basis' columns, the rows of another array, comes into their order.
    """
    power = np.matmul(a, basis, out=room("power", a))
    order = np.argsort(-np.einsum("ij,ij->j", basis, power), kind="stable")
    rows[...] = rows[order]
    found: np.ndarray = np.linalg.qr(power[:, order])[0]
    return found


RULES: tuple[type[MatrixRule], ...] = (Muon, Shampoo, SOAP)
