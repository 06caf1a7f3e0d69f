"""Training states in files: any reader of safetensors reads their arrays.

    schuss.save("run.safetensors", params=params, opt=opt, rng=rng, step=n)
    step = schuss.load("run.safetensors", params=params, opt=opt, rng=rng)["step"]

In the file's metadata are the version of this format, that of the library, the rules, a checksum of
each array, and as JSON all that is no array. Nothing in a file is code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from schuss.engine import safetensors, together
from schuss.engine.divided import (
    AnyOptimizer,
    assign,
    complete,
    holding,
    params,
    read,
    stepping,
    team_of,
    written,
)
from schuss.engine.mapped import read_folder
from schuss.engine.replacing import replacing, syncing
from schuss.engine.safetensors import Entry
from schuss.engine.saved import Saved
from schuss.engine.spread import Team, everywhere, require_same
from schuss.engine.structure import described, is_sequence, listing
from schuss.engine.together import MOST, require_written
from schuss.engine.values import Encoder, Stored, decoded, tagged

__all__ = ["Contents", "Entry", "Stored", "contents", "load", "save"]

FORMAT = 1
# What makes the values of a format's files those of the next one's, by the format.
UPGRADES: dict[int, Callable[[Any], Any]] = {}

# Of the metadata; all of them, or it is another library's file.
FORMAT_KEY, VERSION_KEY, RULES_KEY = "schuss.format", "schuss.version", "schuss.rule"
CHECKSUMS_KEY, VALUES_KEY = "schuss.crc32", "schuss.values"
KEYS = {safetensors.SEAL, FORMAT_KEY, VERSION_KEY, RULES_KEY, CHECKSUMS_KEY, VALUES_KEY}

BIG = 2**28  # bytes from which on a progress bar is worth its line


# ---- Saving


def save(
    path: str | os.PathLike[str],
    opt: AnyOptimizer | None = None,
    /,
    *,
    progress: bool = False,
    **entries: Any,
) -> None:
    """Writes an optimizer and its parameters to a file, or all that a training needs.

        schuss.save("run.safetensors", opt)
        schuss.save("run.safetensors", params=params, opt=opt, rng=rng, step=n)

    path       of the file, which is replaced as a whole or stays as it was: whatever happens
               meanwhile, what `load` finds there is the old or the new one, and what is new is on
               the disk. A link is followed
    opt        the optimizer, with its parameters; as opt=
    progress   shows a bar on stderr for what is big, if that is a terminal and rich is installed.
               Default False: nothing is ever printed
    entries    names, and what they stand for: arrays of any order and strides, numbers, texts,
               None, random generators of NumPy's, optimizers, objects with `state_dict` and
               `load_state_dict`, and lists, tuples and mappings of these

    An array that is at several places, as parameters are, is in the file once. Arrays are written
    in pieces, and none is copied as a whole; steps of the optimizers wait. Callables are not
    stored: those of the optimizer that loads it stay. With a schuss.mpi.Sharded all processes call
    it: they write one file together, in a folder that all of them see, and what isn't a Sharded's
    is process 0's. Raises TypeError that names what can't be stored, ValueError where that is
    nested too deep or is more than 100 MB beside the arrays, and OSError where the file can't be
    written, or holds something else afterwards.
    """
    path, entries = checked_path(path), with_optimizer(opt, entries, progress)
    if not entries:
        raise TypeError("entries: none; pass an optimizer, or what you like by name")
    try:
        owners = list(optimizers(entries))
        team = team_of(owners)
        with holding(owners):
            rules = ", ".join(dict.fromkeys(type(stepping(own)).__name__ for own in owners))
            write(path, entries, rules, progress, team)
    except RecursionError:
        raise ValueError("entries: nested too deep, or one contains itself") from None


def write(
    path: str, entries: Mapping[str, Any], rules: str, progress: bool, team: Team | None
) -> None:
    """Writes and verifies a file, and puts it in place of the old one."""
    encode = Encoder(stored)
    with everywhere(team, "save"):
        # An optimizer comes last: its parameters are named by another entry, where they have one.
        order = sorted(entries, key=lambda name: isinstance(entries[name], AnyOptimizer))
        values = {name: encode(entries[name], name) for name in order}
        arrays = encode.arrays
        layout = safetensors.layout({k: (a.dtype.name, a.shape) for k, a in arrays.items()})

    def header(checksums: Mapping[str, str | None]) -> bytes:
        metadata = {
            FORMAT_KEY: str(FORMAT),
            VERSION_KEY: version("schuss"),
            RULES_KEY: rules,
            CHECKSUMS_KEY: json.dumps(checksums, separators=(",", ":")),
            VALUES_KEY: json.dumps(values, separators=(",", ":"), allow_nan=False),
        }
        return safetensors.packed(layout, metadata)

    total = sum(a.nbytes for a in arrays.values())
    if team is not None:
        shown = progress and team.rank == 0
        with bar(shown, 2 * total // team.size, "Saving") as done:
            together.write(path, team, arrays, layout, header, done)
        return
    with bar(progress, 2 * total, "Saving") as done, replacing(path) as file:
        start = header(dict.fromkeys(layout, "0" * 8))  # as long as it will be
        file.write(start)
        for name in layout:
            for piece in safetensors.pieces(arrays[name]):
                file.write(piece)
                done(len(piece))
        synced = syncing(file)
        with open(file.name, "rb", buffering=0) as again:  # read while the disk takes its time
            again.seek(len(start))
            found = {name: safetensors.checked(again, arrays[name], done) for name in layout}
            synced()
            require_written(path, [name for name in layout if found[name] is None])
            file.seek(0)
            file.write(header(found))
            file.flush()
            again.seek(0)
            require_written(path, [] if again.read(len(start)) == header(found) else ["the header"])


def checked_path(path: Any) -> str:
    """The path as text; raises TypeError where it is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path: {type(path).__name__} is no path of a file")
    return os.fspath(path)


def with_optimizer(opt: Any, entries: dict[str, Any], progress: Any) -> dict[str, Any]:
    """The entries with the optimizer that came by position."""
    if not isinstance(progress, bool):
        raise TypeError(f"progress: {progress!r} is not True or False; an entry needs another name")
    if opt is not None:
        if not isinstance(opt, AnyOptimizer):
            raise TypeError(
                f"opt: {type(opt).__name__} is no optimizer; pass it by a name: params="
            )
        if "opt" in entries:
            raise TypeError("opt: given twice")
        entries = {"opt": opt, **entries}
    return entries


def optimizers(value: Any) -> Iterator[AnyOptimizer]:
    """All optimizers in entries."""
    if isinstance(value, AnyOptimizer):
        yield value
    elif isinstance(value, Mapping) or is_sequence(value):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from optimizers(part)


def stored(value: Any) -> Stored | None:
    """What stands in the file for what has a state."""
    if isinstance(value, AnyOptimizer):
        return Stored("optimizer", written(value))
    if isinstance(value, np.random.Generator):
        return Stored("Generator", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return Stored("RandomState", value.get_state(legacy=False))
    if is_object(value):
        return Stored("object", value.state_dict())
    return None


def is_object(value: Any) -> bool:
    """Whether a value gives its state, and takes one."""
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


@contextmanager
def bar(wanted: bool, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told of each piece's bytes, and shows them where that can be."""
    if wanted and total >= BIG and sys.stderr is not None and sys.stderr.isatty():
        try:
            from rich.console import Console  # noqa: PLC0415  an optional package
            from rich.progress import DownloadColumn, Progress  # noqa: PLC0415
        except ImportError:
            pass
        else:
            columns = (*Progress.get_default_columns(), DownloadColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                yield partial(progress.advance, progress.add_task(what, total=total))
            return
    yield lambda n: None


# ---- Reading


class File(NamedTuple):
    """What a file says of itself, checked; the arrays are not."""

    header: safetensors.Header
    format: int | None  # None: another library's
    version: str | None
    rules: str
    checksums: dict[str, str]
    values: dict[str, Any]  # as an Encoder made them


def read_file(file: BinaryIO) -> File:
    """All but the arrays; raises ValueError where it can't be right."""
    header = safetensors.read_header(file)
    metadata = header.metadata
    if not any(key.startswith("schuss.") for key in metadata):
        values = {name: tagged("array", name) for name in header.entries}
        return File(header, None, None, "", {}, values)
    if missing := KEYS - metadata.keys():
        raise ValueError(f"damaged: its metadata lacks {', '.join(sorted(missing))}")
    number, by = metadata[FORMAT_KEY], metadata[VERSION_KEY]
    if number not in map(str, range(1, FORMAT + 1)):
        raise ValueError(
            f"written in format {number} by schuss {by}; this one reads up to {FORMAT}: update it"
        )
    checksums = safetensors.strict_json(metadata[CHECKSUMS_KEY])
    if checksums.keys() != header.entries.keys():
        raise ValueError("damaged: its checksums are those of other arrays")
    values = safetensors.strict_json(metadata[VALUES_KEY])
    for upgrade in range(int(number), FORMAT):
        values = UPGRADES[upgrade](values)
    return File(header, int(number), by, metadata[RULES_KEY], checksums, values)


def verify(
    file: BinaryIO, found: File, done: Callable[[int], None], team: Team | None = None
) -> None:
    """Reads all arrays, in pieces; raises ValueError that lists those with a wrong checksum."""
    if team is None:
        read = safetensors.checksums(file, found.header, done)
        pairs: Iterable[tuple[str, str]] = zip(found.header.entries, read, strict=True)
    else:
        pairs = together.checksums(file, found.header, team, done).items()
    if wrong := [
        name for name, checksum in pairs if found.checksums.get(name, checksum) != checksum
    ]:
        raise ValueError(f"damaged: wrong checksum of {listing(wrong, most=MOST)}")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file, whose path is said where a ValueError finds something wrong in it."""
    with open(path, "rb", buffering=1 << 20) as file, saying(path):
        yield file


@contextmanager
def saying(path: str | os.PathLike[str]) -> Iterator[None]:
    """A ValueError says in which file something is wrong."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    except RecursionError:
        raise ValueError(f"{os.fspath(path)!r}: nested too deep") from None


class Contents(NamedTuple):
    """What is in a file."""

    format: int | None  # of the file; None: written by another library
    version: str | None  # of schuss that wrote it
    rules: str  # of the optimizers in it
    values: dict[str, Any]  # with an Entry in place of each array, Stored for what has a state
    arrays: dict[str, Entry]
    checksums: dict[str, str]


def contents(
    path: str | os.PathLike[str], *, verified: bool = False, progress: bool = False
) -> Contents:
    """What is in a file, without its arrays.

    verified   reads them, too, and raises ValueError where a checksum is wrong; default False
    progress   as in `save`
    """
    with opened(path) as file:
        found = read_file(file)
        if verified:
            with bar(progress, size(found), "Verifying") as done:
                verify(file, found, done)
        values = decoded(found.values, partial(entry_of, found))
    return Contents(*found[1:4], values, found.header.entries, found.checksums)


def entry_of(found: File, name: Any) -> Entry:
    """What the file says of an array."""
    if not isinstance(name, str) or name not in found.header.entries:
        raise ValueError(f"{name!r:.60}: no array of the file")
    return found.header.entries[name]


def size(found: File) -> int:
    """The bytes of all arrays."""
    return sum(entry.stop - entry.start for entry in found.header.entries.values())


# ---- Loading


def load(
    path: str | os.PathLike[str],
    opt: AnyOptimizer | None = None,
    /,
    *,
    progress: bool = False,
    **places: Any,
) -> dict[str, Any]:
    """Goes on where `save` was called: fills what is given, and returns the other entries.

        schuss.load("run.safetensors", opt)
        step = schuss.load("run.safetensors", params=params, opt=opt, rng=rng)["step"]

    path       of a file of `save`'s; or of another library's safetensors, whose arrays are then
               entries; or of an optimizer's state_dir, which has its state and no parameters
    opt        an optimizer, made as the one that was saved: it and its parameters are filled; as
               opt=
    progress   as in `save`
    places     by the entries' names: arrays, random generators, optimizers, objects with
               `load_state_dict`, or lists, tuples and mappings of these, as they were saved; an
               array's memory order may be another

    Entries without a place come back: arrays and generators as new ones, an optimizer as a mapping
    with its params and its state_dict. The whole file is verified, then everything is compared
    with its place, and then all is filled: ValueError lists what is missing, unknown, or of another
    shape or type, and what is damaged, and nothing has changed then. TypeError names a place that
    can't be filled; OSError says why the file can't be read. Ctrl-C comes before all is filled, or
    behind. With a schuss.mpi.Sharded all processes call it, whatever number of them has saved, and
    what one of them raises all raise.
    """
    path, places = checked_path(path), with_optimizer(opt, places, progress)
    team = team_of(optimizers(places))
    if os.path.isdir(path):
        with saying(path):
            with everywhere(team, "load"):
                entries = {"opt": Stored("optimizer", read_folder(path))}
            return filled(places, entries, team)
    with ExitStack() as stack:
        with everywhere(team, "load"):
            file = stack.enter_context(opened(path))
            found = read_file(file)
        if team is not None:
            require_same(team, "the header", found.header)
        with bar(progress and (team is None or team.rank == 0), size(found), "Loading") as done:
            verify(file, found, done, team)
        with everywhere(team, "load"):
            entries = values_of(file, found)
        return filled(places, entries, team)


def filled(
    places: Mapping[str, Any], entries: Mapping[str, Any], team: Team | None
) -> dict[str, Any]:
    """Fills places with their entries, or raises and changes nothing; returns the others."""
    with holding(optimizers(places)):
        filling = Filling()
        with everywhere(team, "load"):
            filling.match(places, {k: v for k, v in entries.items() if k in places}, "")
            rest: dict[str, Any] = plain({k: v for k, v in entries.items() if k not in places})
            filling.require()
        filling.fill(team)
    return rest


def values_of(file: BinaryIO, found: File) -> dict[str, Any]:
    """The values in a file, with arrays that look into it."""
    memory, arrays = safetensors.mapped(file), {}

    def array(name: Any) -> np.ndarray:
        entry_of(found, name)
        if name not in arrays:
            arrays[name] = safetensors.view(memory, found.header, name)
        return arrays[name]

    values: dict[str, Any] = decoded(found.values, array)
    if unused := found.header.entries.keys() - arrays.keys():
        raise ValueError(f"arrays that are nobody's: {listing(sorted(unused), most=MOST)}")
    return values


class Filling:
    """What comes into which place, once it is known to fit."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.arrays: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by the identity of the place
        self.generators: list[tuple[Any, Any]] = []  # with one that is where it is to be
        self.objects: list[tuple[str, Any, Any]] = []  # with their names, for messages
        self.optimizers: list[tuple[AnyOptimizer, Saved]] = []

    def match(self, place: Any, found: Any, name: str) -> None:
        """Compares a place with what is to come into it; notes both, or what is wrong."""
        kind = found.kind if isinstance(found, Stored) else type(found).__name__
        match: Callable[[Any, Any, str], None]
        if isinstance(place, AnyOptimizer):
            wanted, match = "an optimizer", self.match_optimizer
            fits = kind == "optimizer" and isinstance(found.value, dict)
        elif isinstance(place, np.ndarray):
            wanted, fits, match = described(place), kind == "ndarray", self.match_array
        elif isinstance(place, np.random.Generator | np.random.RandomState):
            wanted = type(place).__name__
            fits, match = kind == wanted, self.match_generator
        elif is_object(place):
            wanted, fits, match = "the state of an object", kind == "object", self.match_object
        elif isinstance(place, Mapping):
            wanted, fits, match = "a mapping", kind == "dict", self.match_mapping
        elif is_sequence(place):
            wanted, fits, match = "a sequence", kind in ("list", "tuple"), self.match_sequence
        else:
            raise TypeError(
                f"{name}: {type(place).__name__} can't be filled; wanted arrays, generators, "
                "optimizers, objects with load_state_dict, or lists, tuples and mappings of these; "
                "what has no place is returned"
            )
        if fits:
            match(place, found.value if isinstance(found, Stored) else found, name)
        else:
            self.wrong.append(f"{name}: {kind}, wanted {wanted}")

    def match_mapping(self, place: Any, found: Any, name: str) -> None:
        inside = f"{name}." if name else ""
        self.wrong += [f"missing {inside}{key}" for key in place if key not in found]
        self.wrong += [f"unknown {inside}{key}" for key in found if key not in place]
        for key in found:
            if key in place:
                self.match(place[key], found[key], f"{inside}{key}")

    def match_sequence(self, place: Any, found: Any, name: str) -> None:
        self.match_mapping(dict(enumerate(place)), dict(enumerate(found)), name)

    def match_array(self, place: np.ndarray, found: np.ndarray, name: str) -> None:
        if isinstance(place, np.ma.MaskedArray):
            raise TypeError(f"{name}: a masked array can't be filled; pass its data")
        if not place.flags.writeable:
            self.wrong.append(f"{name}: read-only")
        if (place.shape, place.dtype.newbyteorder("=")) != (found.shape, found.dtype):
            is_, wanted = (f"{a.dtype} of shape {a.shape}" for a in (found, place))
            self.wrong.append(f"{name}: {is_}, wanted {wanted}")
        before = self.arrays.setdefault(id(place), (place, found))[1]
        if before is not found and before.tobytes() != found.tobytes():
            self.wrong.append(f"{name}: one array here, but several in the file")

    def match_generator(self, place: Any, found: Any, name: str) -> None:
        own = (
            place.bit_generator if isinstance(place, np.random.Generator) else place._bit_generator
        )
        try:
            self.generators.append((place, generator(type(place), type(own), plain(found))))
        except ValueError as error:
            self.wrong.append(f"{name}: {error}")

    def match_object(self, place: Any, found: Any, name: str) -> None:
        self.objects.append((name, place, plain(found)))

    def match_optimizer(self, place: AnyOptimizer, found: Any, name: str) -> None:
        stepping(place)._require_parameters("load")
        found = dict(found)
        if "params" in found:
            self.match(params(place), found.pop("params"), f"{name}.params")
        try:
            saved = read(place, found)
        except (TypeError, ValueError) as error:
            self.wrong.append(f"{name}: {error}")
        else:
            self.optimizers.append((place, saved))

    def require(self) -> None:
        """Raises where something doesn't fit."""
        if self.wrong:
            raise ValueError(listing(self.wrong, "; ", MOST))

    def fill(self, team: Team | None) -> None:
        """Fills all places, or raises and leaves them as they were."""
        undo: list[Callable[[], None]] = []
        try:
            with everywhere(team, "load"):
                for name, place, state in self.objects:  # code of the user's, which may refuse
                    self.load(name, place, state, undo)
        except BaseException:
            for back in undo:
                back()
            raise
        try:
            self.assign()
        except BaseException:  # an interrupt, for all is checked: it comes behind
            self.assign()
            raise
        for opt, saved in self.optimizers:
            complete(opt, saved)

    def load(self, name: str, place: Any, state: Any, undo: list[Callable[[], None]]) -> None:
        """Loads an object's state, and notes how to go back; says its name where it refuses."""
        try:
            undo.append(partial(place.load_state_dict, deepcopy(place.state_dict())))
            place.load_state_dict(state)
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"{name}: {error}") from None

    def assign(self) -> None:
        """Assigns what is checked; a second time is as once."""
        for place, fresh in self.generators:
            if isinstance(place, np.random.Generator):
                place.bit_generator.state = fresh.bit_generator.state
            else:
                place.set_state(fresh.get_state(legacy=False))
        for own, value in self.arrays.values():
            own[...] = value
        for opt, saved in self.optimizers:
            assign(opt, saved)


def plain(value: Any, copies: dict[int, np.ndarray] | None = None) -> Any:
    """A value that needs the file no longer; an array at several places stays one."""
    copies = {} if copies is None else copies
    if isinstance(value, np.ndarray):
        if id(value) not in copies:
            copies[id(value)] = value.copy()
        return copies[id(value)]
    if isinstance(value, Stored):
        return unpacked(value.kind, plain(value.value, copies))
    if isinstance(value, dict):
        return {key: plain(v, copies) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v, copies) for v in value]
    if isinstance(value, tuple):
        return tuple(plain(v, copies) for v in value)
    return value


def unpacked(kind: str, value: Any) -> Any:
    """What is returned in place of what has a state, where that has no place."""
    if kind == "optimizer" and isinstance(value, dict):
        return {"params": value.pop("params", None), "state_dict": value}
    if kind in ("optimizer", "object"):
        return value
    name = value.get("bit_generator") if isinstance(value, dict) else None
    if name not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
        raise ValueError(f"{name!r:.60} is no bit generator of NumPy's")
    return generator(getattr(np.random, kind), getattr(np.random, name), value)


# Of NumPy's bit generators, how far a position may go: NumPy sets any, and reads there.
POSITIONS = {"pos": 624, "buffer_pos": 4}


def generator(kind: type[Any], bits: type[Any], state: Any) -> Any:
    """A new generator in this state; ValueError where there is no such state."""
    try:
        for part in (state, state["state"]):
            for key, most in POSITIONS.items():
                if part.get(key, 0) not in range(most + 1):
                    raise ValueError(f"{key}: {part[key]!r} is out of range")
        if issubclass(kind, np.random.RandomState):
            fresh = np.random.RandomState(bits())
            fresh.set_state(state)
            return fresh
        own = bits()
        own.state = state
        return np.random.Generator(own)
    except (AttributeError, TypeError, LookupError, OverflowError) as error:
        raise ValueError(f"no state of a generator: {error}") from None
