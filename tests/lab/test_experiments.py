"""The experiments: their numbers, that what is drawn is what was computed, and the command."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image
from sklearn.linear_model import Lasso, LinearRegression  # type: ignore[import-untyped]

import schuss
from schuss.lab import command as cli
from schuss.lab import pictures
from schuss.lab.trace import command, curves, eve, own, race, result, schedules, shrinkage
from schuss.lab.trace.adaptive import BEST, PANELS, adaptive
from schuss.lab.trace.constrained import EXAMPLES, Constrained, constrained
from schuss.lab.trace.minima import minima
from schuss.lab.trace.objectives import OBJECTIVES
from schuss.lab.trace.paths import walk
from schuss.lab.trace.regression import X, Y, regression
from schuss.lab.trace.surfaces import surfaces
from schuss.lab.trace.zigzag import zigzag

TRACES = json.loads((Path(__file__).parents[1] / "seed_traces.json").read_text())
NAMED = {rule.__name__.lower(): rule for rule in schuss.rules.RULES}
NAMES = {
    "gd": schuss.SGD,
    "momentum": schuss.Momentum,
    "adagrad": schuss.Adagrad,
    "rmsprop": schuss.RMSprop,
    "adam": schuss.Adam,
}


def points(axes: Axes, line: int = 0) -> np.ndarray:
    """What a line shows, (n, 2)."""
    return np.asarray(axes.lines[line].get_xydata(), float)


def title(axes: Axes) -> str:
    return axes.get_title("left")


# ---- Functions


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda o: o.name)
def test_gradient_and_minima(objective: Any, rng: np.random.Generator) -> None:
    for x in (*rng.uniform(-2, 2, (5, 2)), np.array(objective.start)):
        assert schuss.check_grad(objective.value, objective.gradient, x) < 1e-6
    for minimum in objective.minima:
        assert np.abs(objective.gradient(np.array(minimum))).max() < 1e-8
        around = np.array(minimum)[:, None] + 0.01 * rng.standard_normal((2, 50))
        assert objective.value(around).min() > objective.value(minimum)
        assert objective.x[0] < minimum[0] < objective.x[1]
        assert objective.y[0] < minimum[1] < objective.y[1]
    assert objective.least == min(objective.value(minimum) for minimum in objective.minima)
    axes = Figure().subplots()
    axes.set(xlim=objective.x, ylim=objective.y)
    objective.contours(axes, "black")
    (lines,) = axes.collections
    assert isinstance(lines, QuadContourSet)
    assert (np.diff(np.asarray(lines.levels)) > 0).all()
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        drawn = np.isin(np.asarray(path.codes), [path.MOVETO, path.LINETO])
        around = objective.value(np.asarray(path.vertices)[drawn].T)
        assert np.abs(around / level - 1).max() < 0.1 or np.abs(around - level).max() < 0.1
    assert axes.get_xlim() == objective.x


@pytest.mark.parametrize("curve", [curves.SQUARE, curves.WAVE], ids=lambda c: c.formula)
def test_slope(curve: curves.Curve) -> None:
    x = np.array([0.7])
    assert schuss.check_grad(lambda w: curve.value(w[0]), curve.slope, x) < 1e-8


def test_path_evaluates_where_the_rule_looks_ahead() -> None:
    bowl = OBJECTIVES["bowl"]
    options: dict[str, Any] = {"lr": 0.1, "preset": "paper"}
    path = walk(schuss.NAG, bowl.value, bowl.gradient, (-5.0, -2.0), 20, **options)
    assert path.shape == (21, 2)
    assert np.abs(path[-1] - (0.97303567, -0.00217757)).max() < 5.1e-9


def test_path_is_that_of_the_average_where_a_rule_has_one() -> None:
    bowl, w = OBJECTIVES["bowl"], np.array([-5.0, -2.0])
    path = walk(schuss.ScheduleFreeSGD, bowl.value, bowl.gradient, (-5.0, -2.0), 10, lr=0.1)
    opt = schuss.ScheduleFreeSGD(w, lr=0.1)
    for point in path:
        opt.eval()
        assert np.array_equal(point, w)
        opt.train()
        opt.step(bowl.gradient(w))


def test_path_ends_where_it_is_not_finite() -> None:
    f = OBJECTIVES["himmelblau"]
    path = walk(schuss.SGD, f.value, f.gradient, (4.0, 4.0), 100, lr=1.0)
    assert 1 < len(path) < 10
    assert np.isfinite(path).all()


# ---- The tutorial's descents


def every_path() -> dict[tuple[Any, ...], np.ndarray]:
    """The paths of all experiments on the tutorial's functions, by what the tutorial calls them."""
    names = {curves.SQUARE: "square", curves.WAVE: "wave"}
    found: dict[tuple[Any, ...], np.ndarray] = {}
    for (curve, lr, steps), path in zip(curves.RUNS, curves.curves().paths, strict=True):
        found[schuss.SGD, names[curve], steps, lr, None] = path[:, None]
    for paths in (surfaces(), zigzag(), adaptive()):
        for run, path in zip(paths.runs, paths.paths, strict=True):
            bowl = "ill" if run.bowl == "bowl" else run.bowl
            more = run.options.get("momentum", run.options.get("alpha"))
            found[run.rule, bowl, run.steps, run.options["lr"], more] = path
    return found


def test_every_trace_of_the_tutorial_in_every_printed_digit() -> None:
    found = every_path()
    for trace in TRACES:
        own = trace["params"]
        more = own.get("momentum", own.get("alpha"))
        key = NAMES[trace["rule"]], trace["objective"], trace["steps"], own["lr"], more
        path = found[key]
        assert len(path) == trace["steps"] + 1
        for epoch, printed in trace["printed"].items():
            exact = not all(len(text.partition(".")[2]) == 6 for text in printed)
            wrong = np.abs(path[int(epoch)] - [float(text) for text in printed]).max()
            assert wrong <= (0 if exact else 5.1e-7), (trace["id"], epoch)


def test_minima() -> None:
    found = minima()
    ends = np.array([path[-1] for path in found.paths])
    slope = np.cos(np.pi * ends) - np.pi * ends * np.sin(np.pi * ends)
    assert np.abs(slope).max() < 1e-9
    assert np.abs(ends - (-0.273853, 1.090408)).max() < 1e-6
    axes = found.draw().axes[0]
    for line, path in zip(axes.lines[1::2], found.paths, strict=True):
        assert np.array_equal(line.get_xydata(), np.stack([path, path * np.cos(np.pi * path)], 1))
    assert points(axes).shape == (301, 2)
    assert [points(axes, i).ravel()[0] for i in (2, 4)] == ends.tolist()  # a star in each


def test_curves_are_drawn() -> None:
    """Each rate once: of the two runs that differ in their steps alone the longer one."""
    found = curves.curves()
    *above, factors, first, last = found.draw().axes
    for axes, (curve, lr) in zip((*above, first, last), curves.WORDS, strict=True):
        path = found.longest(curve, lr)
        line, trace, end = (points(axes, i) for i in range(3))
        assert np.array_equal(line[:, 1], curve.value(line[:, 0]))
        assert line[0, 0] == -np.abs(path).max()
        assert np.array_equal(trace, np.stack([path, curve.value(path)], 1))
        assert np.array_equal(end[0], trace[-1])
        assert f"after {len(path) - 1} steps" in title(axes)
    assert {len(found.longest(*run[:2])) - 1 for run in curves.RUNS} == {10, 30, 100}
    for distances, (curve, lr) in zip(factors.lines, curves.WORDS, strict=False):
        distance = np.asarray(distances.get_ydata())
        assert curve is curves.SQUARE
        np.testing.assert_allclose(distance[1:] / distance[:-1], abs(1 - 2 * lr))
    assert [text.get_text() for text in factors.texts] == [
        "by 0.98",
        "by 0.6",
        "by \N{MINUS SIGN}1.2",
    ]


def test_zigzags_are_drawn() -> None:
    """Each path in a plane of its own, as far as it remains there; and all values."""
    found = zigzag()
    planes = found.draw().axes
    curve = planes.pop(2)
    for axes, path, values in zip(planes, found.paths, curve.lines, strict=True):
        trace, star = axes.lines
        assert not np.any(star.get_xydata())
        drawn = np.asarray(trace.get_xydata())
        assert np.array_equal(drawn, path[: len(drawn)])
        assert np.abs(drawn[:-1, 1]).max() <= 3
        assert len(drawn) == len(path) or abs(drawn[-1, 1]) > 3
        assert isinstance(axes.collections[0], QuadContourSet)
        assert np.array_equal(values.get_ydata(), found.objective.value(path.T))
        assert values.get_color() == trace.get_color()
    assert [len(points(axes)) for axes in planes] == [21, 3, 21, 21]


def test_surfaces_are_drawn() -> None:
    """Both paths, the level lines of their first points, and the values along them."""
    found = surfaces()
    plane, curve = found.draw().axes
    paths = found.longest()
    assert list(paths) == ["lr 0.1", "lr 0.2"]
    assert plane.get_aspect() == 1
    for line, values, contours, path in zip(
        plane.lines, curve.lines, plane.collections[1:], paths.values(), strict=False
    ):
        assert np.array_equal(line.get_xydata(), path)
        along = found.objective.value(path.T)
        assert np.array_equal(values.get_ydata(), along)
        assert isinstance(contours, QuadContourSet)
        levels = np.asarray(contours.levels)
        assert np.array_equal(levels, np.sort(along[: len(levels)]))
        assert line.get_color() == values.get_color()
        assert contours.colors == line.get_color()
    assert len(plane.collections) == 3
    ways = np.diff(paths["lr 0.1"], axis=0)
    level = np.array([found.objective.gradient(point)[::-1] for point in paths["lr 0.1"][:-1]])
    assert np.abs((ways * level * (1, -1)).sum(axis=1)).max() < 1e-12  # at a right angle


def test_adaptive_rules_are_drawn() -> None:
    """The best of each rule in the plane; every run in some panel, under its own name."""
    found = adaptive()
    plane, *panels = found.draw().axes
    paths = found.longest()
    for line, title in zip(plane.lines, BEST, strict=False):
        assert np.array_equal(line.get_xydata(), paths[title])
        assert line.get_label() == title
    for axes, (_, _, names) in zip(panels, PANELS, strict=True):
        assert len({line.get_color() for line in axes.lines}) == len(names)
        for line, title in zip(axes.lines, names, strict=True):
            assert np.array_equal(line.get_ydata(), found.objective.value(paths[title].T))
            assert title.endswith(names[title]) or names[title] in title.split(", ")
    assert {title for _, _, names in PANELS for title in names} == paths.keys()
    for run, path in zip(found.runs, found.paths, strict=True):
        assert np.array_equal(path, paths[run.title][: len(path)])


# ---- The race


def test_race_begins_as_each_rule_does() -> None:
    """The first step by hand; the second of those without a state of squares."""
    found = race.race()
    for name, track in race.TRACKS.items():
        sgd, momentum, adagrad, rmsprop, adam = found.paths[name]
        start = np.array(track.start)
        g = track.gradient(start)
        assert all(path.shape == (race.STEPS + 1, 2) for path in found.paths[name])
        assert all(np.array_equal(path[0], start) for path in found.paths[name])
        np.testing.assert_allclose(sgd[1], start - 0.03 * g, rtol=1e-14)
        np.testing.assert_allclose(sgd[2], sgd[1] - 0.03 * track.gradient(sgd[1]), rtol=1e-14)
        np.testing.assert_allclose(momentum[1], start - 0.03 * g, rtol=1e-14)
        v = 0.8 * g + track.gradient(momentum[1])
        np.testing.assert_allclose(momentum[2], momentum[1] - 0.03 * v, rtol=1e-14)
        np.testing.assert_allclose(adagrad[1], start - 0.5 * np.sign(g), atol=1e-6)
        np.testing.assert_allclose(
            rmsprop[1], start - 0.05 * np.sign(g) / math.sqrt(0.1), atol=1e-5
        )
        np.testing.assert_allclose(adam[1], start - 0.1 * np.sign(g), atol=1e-5)


def test_who_arrives() -> None:
    """Beside the ridge, rates of one's own lead away at once; gradient descent is the last."""
    found = race.race()
    saddle, valley = found.arrival("saddle"), found.arrival("valley")
    assert saddle == [None, 54, 6, 25, 32]
    assert valley == [None, 51, 39, 83, 50]
    assert 0.9 < found.paths["saddle"][0][-1, 1] < 1.0  # on its way from the saddle point
    for path in found.paths["saddle"][1:]:
        assert np.abs(path[-1] - (0, 2)).max() < 0.02
    for path, values in zip(found.paths["valley"], found.values("valley"), strict=True):
        assert values[-1] == 0.1 * path[-1, 0] ** 2 + 2 * path[-1, 1] ** 2


def hue(colour: str) -> str:
    """The name of a colour by which of red, green and blue are strong."""
    strong = "".join(c for c, v in zip("rgb", bytes.fromhex(colour[1:]), strict=True) if v > 0x90)
    return {"gb": "cyan", "rb": "magenta", "rgb": "white", "g": "green", "b": "blue"}[strong]


def test_race_is_drawn_in_colours_of_its_own() -> None:
    found = race.race()
    picture, artists, counter = found.animated()
    colours = [hue(racer.colour) for racer in race.RACERS]
    assert colours == ["cyan", "magenta", "white", "green", "blue"]
    names = [text.get_text() for text in picture.legends[0].get_texts()]
    assert names == ["gradient descent", "momentum", "Adagrad", "RMSprop", "Adam"]
    assert len({head.get_marker() for _, head, _ in artists}) == 5
    paths = [path for track in race.TRACKS for path in found.paths[track]]
    drawn = [racer.colour for racer in race.RACERS] * 2
    assert counter.get_text() == "step 120 of 120"
    for (line, head, _), path, colour in zip(artists, paths, drawn, strict=True):
        assert line.get_color() == head.get_color() == colour
        assert np.array_equal(line.get_xydata(), path)
    race.show(artists, counter, 7)
    assert counter.get_text() == "step 7 of 120"
    for (line, head, _), path in zip(artists, paths, strict=True):
        assert np.array_equal(line.get_xydata(), path[:8])
        assert np.array_equal(head.get_xydata(), path[7:8])


def linear(colour: str) -> np.ndarray:
    """Red, green and blue as light."""
    srgb = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIE's L, a and b, in which distances are as eyes see them, of red, green and blue light."""
    xyz = light @ [[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8727]]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize(
    "sight",  # what eyes without one kind of cones see, by Machado, Oliveira and Fernandes 2009
    [
        np.eye(3),
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    ],
    ids=["all cones", "no red", "no green", "no blue"],
)
def test_all_eyes_tell_the_racers_apart(sight: Any) -> None:
    colours = [race.BACKGROUND, *(racer.colour for racer in race.RACERS)]
    light = np.clip(np.array([linear(colour) for colour in colours]) @ np.transpose(sight), 0, 1)
    seen = lab(light)
    away = np.linalg.norm(seen[:, None] - seen, axis=2)
    assert away[np.triu_indices(len(colours), 1)].min() > 20  # what is 2 apart is just another


def test_race_moves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "race.gif"  # in which each step shows, and the last one rests
    text = output(capsys, "race", "--out", str(file))
    assert text.splitlines()[1].endswith("-0.000894  0.964121   -0.821526  never")
    with Image.open(file) as image:
        assert image.info["loop"] == 0
        assert getattr(image, "n_frames", 0) == race.STEPS // race.EVERY + 1
        shown = []
        for n in (0, 1, 30, 60):
            image.seek(n)
            shown.append(np.array(image.convert("RGB")))
    assert all((a != b).any() for a, b in pairwise(shown))
    counters = [frame[:30, -150:] for frame in shown]
    assert all((a != b).any() for a, b in pairwise(counters))
    for racer in race.RACERS:  # no palette has mixed it with another's
        exact = (shown[-1] == list(bytes.fromhex(racer.colour[1:]))).all(axis=2)
        assert exact.sum() > 100


# ---- The regression


def test_regression() -> None:
    found = regression()
    a, b, c = found.ends.T
    assert found.ends.shape == (200, 3)
    assert 1.9e-3 < max(np.abs(a - (c - 1)).max(), np.abs(b - (1 - 2 * c)).max()) <= 1.91e-3
    assert np.abs(found.package - (-0.5, 0, 0.5)).max() < 1e-12
    assert np.abs(found.starts[0] - (0.097627, 0.430379, 0.205527)).max() < 1e-6
    assert np.abs(found.ends[0] - (-0.592484, 0.185964, 0.406809)).max() < 1e-6
    limits = found.starts + (Y - found.starts @ X.T) @ np.linalg.pinv(X).T
    assert np.abs(found.ends - limits).max() < 2e-3
    assert len(found.losses) == 1000
    assert found.losses[0] == pytest.approx(((Y - X @ found.starts[0]) ** 2).sum(), rel=1e-14)
    assert (np.diff(found.losses) < 0).all()
    package = LinearRegression(fit_intercept=False).fit(X, Y)
    assert np.array_equal(found.package, package.coef_)


def test_regression_follows_its_seed() -> None:
    one, two = regression(7, 3, 10), regression(8, 3, 10)
    assert np.array_equal(one.starts[1:], two.starts[:2])
    assert np.array_equal(one.ends[1:], two.ends[:2])
    assert np.array_equal(regression(7, 3, 10).ends, one.ends)


def test_regression_is_drawn() -> None:
    found = regression(0, 20, 50)
    space, curve = found.draw().axes
    lines = [np.array(line.get_data_3d()) for line in space.lines]  # type: ignore[attr-defined]
    solutions, starts, ends, package, *ways = lines
    assert np.abs(X @ solutions - Y[:, None]).max() < 1e-14
    c = found.ends[:, 2]
    assert (solutions[2, 0], solutions[2, -1]) == (min(0, c.min()), max(1, c.max()))
    assert np.array_equal(starts, found.starts.T)
    assert np.array_equal(ends, found.ends.T)
    assert np.array_equal(ways, np.stack([found.starts, found.ends], 2))
    assert np.array_equal(package[:, 0], found.package)
    assert (space.elev, space.azim) == (30, 45)  # type: ignore[attr-defined]
    assert np.array_equal(curve.lines[0].get_ydata(), found.losses)


# ---- Eve's six intervals


def test_six_intervals_by_hand() -> None:
    """With k = 0.5 and K = 3: 1/4, 2/3, 1, 3/2 and 4 lie between them."""
    by_hand = [
        (0.2, 0.25, 3.0),
        (0.5, 0.5, 1.0),
        (0.8, 2 / 3, 0.5),
        (1.2, 1.5, 0.5),
        (2.0, 2.0, 1.0),
        (9.0, 4.0, 3.0),
    ]
    for loss, tracked, r in by_hand:
        np.testing.assert_allclose(
            eve.followed([1.0, loss], (0.5, 3.0))[-1], (tracked, r), rtol=1e-14
        )
    np.testing.assert_allclose(eve.followed([1.0, 1.0], (0.5, 3.0))[-1], (2 / 3, 0.5), rtol=1e-14)
    found = eve.eve()
    assert found.ends == [0.25, 1 / 1.5, 1.0, 1.5, 4.0]
    edges = [0.0, *found.ends, math.inf]
    for i, (loss, tracked, r) in enumerate(found.samples):
        assert edges[i] < loss < edges[i + 1]
        assert (tracked == loss) == (i in (1, 4))
        assert 0.5 <= round(r, 12) <= 3
    assert found.r.min() == pytest.approx(0.5)
    assert found.r.max() == pytest.approx(3.0)


def test_intervals_with_the_rules_own_thresholds() -> None:
    found = eve.eve(0.1, 10.0)
    np.testing.assert_allclose(found.ends, [1 / 11, 1 / 1.1, 1, 1.1, 11])
    for loss, tracked, r in found.samples:
        again = eve.followed([1.0, loss], schuss.Eve.defaults()["thresholds"])[-1]
        assert again.tolist() == [tracked, r]


def test_intervals_are_drawn() -> None:
    """All as wide, so that no name lies over another, whatever the thresholds are."""
    for thresholds in ((0.5, 3.0), (0.1, 10.0), (0.001, 1000.0)):
        found = eve.eve(*thresholds)
        np.testing.assert_allclose(found.places(np.array(found.ends)), [1, 2, 3, 4, 5])
        x = found.places(found.loss)
        np.testing.assert_allclose(np.diff(x), 1 / 64)
        divided, _, tracked, _ = found.draw().axes
        for axes, values in ((tracked, found.places(found.tracked)), (divided, found.r)):
            drawn = np.concatenate([points(axes, 0), points(axes, 1)])
            assert np.array_equal(drawn, np.stack([x, values], 1))
            assert points(axes, 0)[-1, 0] <= 3 < points(axes, 1)[0, 0]
        assert [text.get_text() for text in divided.texts] == list(eve.WORDS)
        assert divided.get_xticks().tolist() == tracked.get_yticks().tolist() == [1, 2, 3, 4, 5]
        names = [text.get_text() for text in tracked.get_xticklabels()]
        shown = [float(name.split("= ")[1]) for name in names if name != "1\n"]
        np.testing.assert_allclose(shown, [end for end in found.ends if end != 1], rtol=5e-3)


def test_a_training_is_drawn() -> None:
    """What Eve remembers follows its losses within the bounds, and d is the mean of r."""
    found = eve.eve()
    _, course, _, divisors = found.draw().axes
    losses, remembered = (np.asarray(line.get_ydata(), float) for line in course.lines)
    assert losses.tolist() == list(eve.LOSSES)
    assert np.array_equal(remembered, found.course)
    change = np.maximum(remembered[1:] / remembered[:-1], remembered[:-1] / remembered[1:])
    assert change.min() >= 1.5 - 1e-12
    assert change.max() <= 4 + 1e-12
    r, d, _ = (np.asarray(line.get_ydata(), float) for line in divisors.lines)
    np.testing.assert_allclose(r[1:], change - 1)
    np.testing.assert_allclose(d[1:], eve.BETA3 * d[:-1] + (1 - eve.BETA3) * r[1:])
    assert (r[0], d[0], r.max()) == (1, 1, pytest.approx(3))


# ---- Shrinkage


def test_l1_has_exact_zeros_and_l2_has_none() -> None:
    """Where the penalised error is least: found in closed form, and by scikit-learn."""
    found = shrinkage.shrinkage()
    zeros = (found.l1 == 0).sum(axis=1)
    assert zeros[0] == 1
    assert zeros[-1] == 6
    assert (np.diff(zeros) >= 0).all()
    assert (found.l2 != 0).all()
    norms = np.linalg.norm(found.l2, axis=1)
    assert (np.diff(norms) < 0).all()
    x, y, n = found.x, found.y, len(found.y)
    for i in range(0, len(shrinkage.PENALTIES), 3):
        s = float(shrinkage.PENALTIES[i])
        ridge = np.linalg.solve(x.T @ x / n + s * np.eye(6), x.T @ y / n)
        np.testing.assert_allclose(found.l2[i], ridge, rtol=0, atol=1e-10)
        lasso = Lasso(alpha=s / 2, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y)
        np.testing.assert_allclose(found.l1[i], lasso.coef_, rtol=0, atol=1e-6)


def test_shrinkage_follows_its_seed() -> None:
    one, two, again = (shrinkage.shrinkage(seed, 30, 5) for seed in (3, 4, 3))
    assert np.array_equal(one.l1, again.l1)
    assert np.array_equal(one.l2, again.l2)
    assert not np.array_equal(one.y, two.y)


def test_shrinkage_is_drawn() -> None:
    """With a name at each line, and a dot where it first is zero."""
    found = shrinkage.shrinkage(0, 30, 200)
    dots = []
    for axes, path in zip(found.draw().axes, (found.l1, found.l2), strict=True):
        assert len({line.get_color() for line in axes.lines}) == 6
        for line, name, weights in zip(axes.lines, axes.texts, path.T, strict=True):
            want = np.stack([shrinkage.PENALTIES, weights], 1)
            assert np.array_equal(line.get_xydata(), want)
            assert name.get_color() == line.get_color()
            first: Any = line.get_markevery()
            assert first == np.flatnonzero(weights == 0)[:1].tolist()
            dots += first
    assert len(dots) == 6


# ---- Constraints


@pytest.fixture(scope="module")
def solved() -> Constrained:
    return constrained()


def test_constrained(solved: Constrained) -> None:
    paraboloid, coin, states = solved.solutions
    assert np.abs(paraboloid.x - 1.5).max() < 1e-12
    assert [paraboloid.value, paraboloid.multiplier] == pytest.approx([9.5, 1.0], abs=1e-12)
    assert paraboloid.path.tolist()[0] == [0, 0]
    assert len(paraboloid.path) == 2  # one step
    assert np.abs(coin.x - 0.5).max() < 1e-9
    assert coin.multiplier == pytest.approx(math.log(2) - 1, abs=1e-9)
    assert coin.value == pytest.approx(0.69314718056, abs=1e-9)
    assert np.abs(states.x - 0.2).max() < 1e-9
    assert states.multiplier == pytest.approx(0.60943791243, abs=1e-9)
    assert states.value == pytest.approx(1.60943791243, abs=1e-9)
    # The first round's, with multiplier 0 and penalty 1: where -2(x - 2) = x - y = 2(y - 1).
    assert np.abs(paraboloid.rounds[:2] - [(0, 0), (1.75, 1.25)]).max() < 1e-6
    for s in (paraboloid, coin, states):
        assert np.array_equal(s.rounds[-1], s.found.x)
        assert np.abs(s.found.x - s.x).max() < 1e-6
        assert s.found.multipliers == pytest.approx([s.multiplier], abs=2e-6)
    frees = [float(e.value(np.array(e.free))) for e in EXAMPLES]
    assert frees == pytest.approx([10, 0.73575888, 5 / math.e], abs=1e-8)
    for example, s in zip(EXAMPLES, solved.solutions, strict=True):
        assert schuss.check_grad(example.value, example.gradient, s.path[0]) < 1e-8
        assert np.abs(example.gradient(np.array(example.free))).max() < 1e-12
        slope = example.gradient(s.x) - s.multiplier * example.normal
        assert np.abs(slope).max() < 1e-8


def test_constrained_is_drawn(solved: Constrained) -> None:
    picture = solved.draw()
    for axes, example, s in zip(picture.axes[:2], EXAMPLES, solved.solutions, strict=False):
        line, path, rounds, *_ = axes.lines
        on_line = np.asarray(line.get_xydata()) @ example.normal - example.total
        assert np.abs(on_line).max() < 1e-12
        assert np.array_equal(path.get_xydata(), s.path)
        assert np.array_equal(rounds.get_xydata(), s.rounds)
        assert np.array_equal(points(axes, 3)[0], example.free)
        assert np.array_equal(points(axes, 4)[0], s.x)
        assert len(axes.texts) >= 4  # "grad f", its arrow, and what the level lines bear
        for number in axes.texts[:-2]:
            there = example.value(number.get_position())
            assert abs(there - float(number.get_text())) < 0.02 * abs(there)
    heights = [bar.get_height() for bar in picture.axes[2].patches]  # type: ignore[attr-defined]
    s = solved.solutions[2]
    assert heights == [*s.path[0].tolist(), *s.x.tolist()]
    lines = title(picture.axes[1]).split("\n")
    assert lines[1] == "g = p1 + p2 \N{MINUS SIGN} 1"
    assert lines[2].endswith("multiplier \N{MINUS SIGN}0.3069")


# ---- Schedules


def test_schedules_are_drawn() -> None:
    found = schedules.schedules()
    assert found.values.shape == (12, schedules.STEPS)
    by_name = dict(zip(map(schedules.short, schedules.SCHEDULES), found.values, strict=True))
    assert by_name["inverse_time"][20] == 1 / (1 + 0.05 * 20)
    assert by_name["step"][[24, 25, 50, 75]].tolist() == [1, 0.5, 0.25, 0.125]
    assert by_name["piecewise"][[29, 30, 60]].tolist() == [1, 0.3, 0.1]
    assert by_name["linear"][50] == pytest.approx(0.5)
    assert by_name["cosine"][50] == pytest.approx(0.5)
    assert by_name["warmup to cosine"][[0, 19]] == pytest.approx([0.05, 1.0])
    drawn = [axes.lines[0].get_ydata() for axes in found.draw().axes]
    assert np.array_equal(np.array(drawn), found.values)
    assert all(isinstance(schedule, schuss.schedules.Schedule) for schedule in schedules.SCHEDULES)


# ---- Rules of choice


def chosen(names: Sequence[str], rates: Sequence[float], **options: Any) -> own.Own:
    rules = [NAMED[name] for name in names]
    return own.own(OBJECTIVES[options.pop("objective", "himmelblau")], rules, rates, **options)


def test_own() -> None:
    found = chosen(["adam", "lion"], [0.01, 0.003], start=(-1.0, 2.0), steps=50)
    for rule, lr, path in zip((schuss.Adam, schuss.Lion), (0.01, 0.003), found.paths, strict=True):
        w = np.array([-1.0, 2.0])
        opt = rule(w, lr=lr)
        for point in path:
            assert np.array_equal(point, w)
            opt.step(found.objective.gradient(w))
    assert [row[:3] for row in found.rows()][1:] == [
        ("Adam", "0.01", "50"),
        ("Lion", "0.003", "50"),
    ]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_rule_can_be_chosen(name: str) -> None:
    """Those that read the loss, look ahead or measure whole arrays, too."""
    rate = max(0.01, NAMED[name].defaults()["lr"])
    found = chosen([name], [rate], objective="bowl", steps=20)
    assert found.paths[0].shape == (21, 2)
    assert found.values()[0].min() < found.values()[0][0]


def test_own_is_drawn() -> None:
    found = chosen(["sgd", "eve", "nag"], [0.1, 0.1, 0.01], objective="bowl", steps=30)
    plane, curve = found.draw().axes
    lines = plane.lines[:3]
    for line, value, path, name, text, along in zip(
        lines, curve.lines, found.paths, found.names, curve.texts, found.values(), strict=True
    ):
        assert np.array_equal(line.get_xydata(), path)
        assert text.get_text() == name
        assert line.get_color() == value.get_color() == text.get_color()
        assert np.array_equal(value.get_ydata(), along)  # the least value is 0
    assert len({line.get_marker() for line in lines}) == 3
    assert plane.get_xlim() == OBJECTIVES["bowl"].x


def test_own_shows_where_it_starts_and_what_lies_below_the_known_minima() -> None:
    found = chosen(["sgd"], [0.01], objective="wave", start=(20.0, -3.0), steps=200)
    plane, curve = found.draw().axes
    assert plane.get_ylim() == OBJECTIVES["wave"].y
    assert plane.get_xlim()[0] == OBJECTIVES["wave"].x[0]
    assert 20.2 < plane.get_xlim()[1] < 22  # the path goes on to 20.22
    above = np.asarray(curve.lines[0].get_ydata())
    assert above.min() == 0
    assert np.allclose(np.diff(above), np.diff(found.values()[0]))


def test_own_that_diverges_is_drawn(tmp_path: Path) -> None:
    found = chosen(["sgd", "adam"], [10.0, 0.1], steps=50)
    assert len(found.paths[0]) < 10
    assert len(found.paths[1]) == 51
    found.save(tmp_path / "own.png")
    assert len(list(found.rows())) == 3
    plane, curve = found.draw().axes
    assert plane.get_xlim() == OBJECTIVES["himmelblau"].x
    start = found.values()[0][0]
    assert start < curve.get_ylim()[1] <= 100 * start


# ---- The command


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command prints: nothing that a terminal of 80 columns would break."""
    assert cli.main(["trace", *argv]) == 0
    text = capsys.readouterr().out
    shown = text.partition("drawn into")[0]  # a file of any name
    assert max(map(len, shown.splitlines())) <= 80
    assert text.isascii()
    return text


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(command.EXPERIMENTS)
    assert all(line.endswith(".") for line in lines)


def test_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Into a picture of its name, and into the same one again."""
    monkeypatch.chdir(tmp_path)
    text = output(capsys, "minima")
    assert text.endswith("\n\ndrawn into minima.png\n")
    (path,) = tmp_path.iterdir()
    first = path.read_bytes()
    assert path.name == "minima.png"
    assert first.startswith(b"\x89PNG")
    assert output(capsys, "minima", "--force") == text
    assert path.read_bytes() == first


def test_command_prints_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(result.Result, "save", lambda own, path: None)
    file = str(tmp_path / "picture.png")
    lines = output(capsys, "constrained", "--out", file).splitlines()
    numbers = [re.split(" +", line)[1:] for line in lines[1:4]]
    assert numbers[0] == ["free", "10.000000", "2.0000", "1.0000"]
    assert numbers[1] == ["Newton", "1", "9.500000", "1.000000", "1.5000", "each"]
    assert numbers[2] == ["augmented", "10", "9.500000", "1.000000", "1.5000", "each"]
    lines = output(capsys, "eve", "--thresholds", "1,4", "--out", file).splitlines()
    assert lines[1].split()[1:4:2] == ["0.000000", "0.141421"]
    assert lines[6].split()[-2:] == ["5.000000", "4.000000"]
    lines = output(capsys, "curves", "--out", file).splitlines()
    assert lines[1].split() == ["w^2", "0.2", "10", "0.060466176", "0.00365616"]
    lines = output(capsys, "regression", "--seed", "1", "--out", file).splitlines()
    assert lines[3].split() == ["seed", "1,", "end", "-0.840498", "0.682486", "0.158445"]


def test_command_with_rules_of_choice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = "--objective himmelblau --rules adam,lion --lr 0.01,0.003 --start -1,2"
    text = output(capsys, "own", *options.split(), "--out", str(tmp_path / "own.png"))
    lines = text.splitlines()
    assert lines[1].split()[:5] == ["Adam", "0.01", "500", "-2.805", "3.131"]
    assert lines[2].split()[:5] == ["Lion", "0.003", "500", "-2.5", "3.17"]
    assert lines[2].split()[6] == "0.31"  # from the minimum
    options = "--objective beale --lr 0.0125 --rules schedulefreeadamw,momentum --start -4,-4"
    output(capsys, "own", *options.split(), "--out", str(tmp_path / "wide.png"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("newton", "experiment: 'newton' is unknown; wanted 'minima' or"),
        ("zigzak", "experiment: 'zigzak' is unknown; did you mean 'zigzag'?"),
        ("race extra", "unrecognized arguments: extra"),
        ("race --seed 1", "unrecognized arguments: --seed 1"),
        ("race --out race.txt", "--out: 'race.txt' is no picture"),
        ("curves --out missing/a.png", "--out: 'missing/a.png': No such file"),
        ("curves --out folder.png", "--out: 'folder.png': Is a directory"),
        ("regression --seed -1", "--seed: '-1' is no whole number in [0, 4294967295]"),
        ("shrinkage --seed x", "--seed: 'x'"),
        ("eve --thresholds 3,0.5", "--thresholds: '3,0.5' is not 0 < k < K, such as 0.5,3"),
        ("eve --thresholds 3", "--thresholds: '3' is not two numbers"),
        ("own --objective paris", "--objective: invalid choice: 'paris'"),
        ("own --rules newton", "--rules: 'newton' is unknown; `schuss rules` lists them"),
        ("own --rules " + ",".join(["sgd"] * 8), "--rules: 8 rules; at most 7"),
        ("own --rules adam --lr 1,2", "--lr: 2 learning rates for 1 rules"),
        ("own --lr -1", "--lr: '-1' is no number in [0, inf)"),
        ("own --lr nan", "--lr: 'nan' is no number"),
        ("own --rules muon", "--rules: 'muon' is for matrices"),
        ("own --rules rprop --lr 0", "Rprop: lr: 0.0 is out of range"),
        ("own --start 1", "--start: '1' is not two numbers, such as -1,2"),
        ("own --start", "--start: expected one argument"),
        ("own --steps 0", "--steps: '0' is no whole number in [1, 100000]"),
    ],
)
def test_bad_value_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    try:
        status: object = cli.main(["trace", *argv.split()])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("schuss")
    assert said in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_pictures_need_no_window() -> None:
    assert isinstance(pictures.figure(1, ""), Figure)
    code = "import sys; from schuss.lab.trace import command, race; race.race().draw()"
    code += "; print('matplotlib.pyplot' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
