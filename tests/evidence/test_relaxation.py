"""Bounds of all paths, against all paths."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from flagtrl.evidence.enumeration import remaining
from flagtrl.evidence.paths import KINDS, Days, Interval
from flagtrl.evidence.relaxation import (
    CAPPED,
    Depths,
    Program,
    Target,
    least_depth,
    most_gain,
    most_square,
)
from flagtrl.evidence.searching import changes, fits, nearby, put_together, search

COUNT = 9  # returns


def days_of(seed: int, kind: str) -> Days:
    rng = np.random.default_rng(seed)
    return Days.of(100 * np.exp(np.cumsum(np.r_[0.0, rng.normal(0.002, 0.03, COUNT)])), kind)


def every(kind: str) -> np.ndarray:
    return np.array([*product(range(len(KINDS[kind])), repeat=COUNT)])


def cases():
    """A market, all its paths, their figures, and a target around one of them."""
    for kind, seed in product(KINDS, range(4)):
        days, paths = days_of(seed, kind), every(kind)
        gain, square, depth = days.figures(paths)
        one = np.random.default_rng(seed).integers(len(paths))
        wide = [Interval(x[one] - w, x[one] + w) for x, w in ((gain, 1), (square, 4), (depth, 1))]
        yield days, paths, (gain, square, depth), Target(*wide)


def value_and_gaps(bound, paths):
    return bound.value - bound.gaps[np.arange(COUNT), paths].sum(-1)


def test_no_path_exceeds_a_bound_less_its_gaps():
    tight = []
    for days, paths, (gain, square, depth), target in cases():
        near = (gain >= target.gain.low) & (gain <= target.gain.high)
        for sign in (1, -1):
            bound = most_gain(days, sign)
            np.testing.assert_allclose(value_and_gaps(bound, paths), sign * gain, atol=1e-9)
            assert bound.value >= (sign * gain).max() > bound.value - 1e-9
            bound = most_square(days, target.gain, sign)
            assert (value_and_gaps(bound, paths) >= sign * square)[near].all()
            tight.append(bound.value - (sign * square)[near].max())
        both = near & (square >= target.square.low) & (square <= target.square.high)
        bound = least_depth(Program(days, target))
        assert (value_and_gaps(bound, paths) >= -depth)[both].all()
        assert bound.gaps.min() >= 0 and -bound.value > -1e-6
        tight.append(bound.value + depth[both].min())
    assert min(tight) >= 0 and np.median(tight) < 2  # percent, percent squared


@pytest.mark.parametrize("drawdowns", ["any", CAPPED])
def test_no_interval_loses_more_than_its_bound(drawdowns):
    for days, paths, (gain, square, depth), target in cases():
        depths = Depths(Program(days, target))
        for i, j in product(range(0, COUNT, 2), range(1, COUNT + 1, 3)):
            if i < j:
                depths.tighten(i, j, drawdowns)
        ends = (target.gain, target.square)
        good = [(x >= e.low) & (x <= e.high) for x, e in zip((gain, square), ends, strict=True)]
        if drawdowns == CAPPED:
            good.append(depth <= target.depth.high)
        those = paths[np.logical_and.reduce(good)]
        grown = np.cumsum(np.pad(days.growth[np.arange(COUNT), those], ((0, 0), (1, 0))), axis=1)
        for i, j in product(range(COUNT + 1), repeat=2):
            if i < j:
                assert (grown[:, i] - grown[:, j]).max() <= depths.bounds[i, j] + 1e-12
            else:
                assert depths.bounds[i, j] == -np.inf


def test_the_largest_drawdown_is_refined_until_a_program_attains_it():
    for days, paths, figures, target in cases():
        fitting = fits(days, replace(target, depth=Interval(0, np.inf)), paths)
        depths = Depths(Program(days, replace(target, depth=Interval(0, 1e3))))
        first = depths.bounds.max()
        most = depths.most()
        assert figures[2][fitting].max() <= most <= first


def test_what_bounds_leave_holds_every_path_that_fits():
    for days, paths, _, target in cases():
        needed = [
            (most_gain(days), target.gain.low),
            (most_square(days, target.gain), target.square.low),
            (least_depth(Program(days, target)), -target.depth.high),
        ]
        left = {tuple(path) for path in remaining(days, needed)}
        fitting = {tuple(path) for path in paths[fits(days, target, paths)]}
        assert fitting and fitting <= left
        assert len(left) < len(paths)
        assert remaining(days, needed, most=len(left) // 4) is None
        beyond = (most_gain(days), most_gain(days).value + 1)
        assert len(remaining(days, [beyond])) == 0


def test_small_changes_find_every_path_that_is_near():
    days = days_of(1, "long_flat")
    path = np.ones(COUNT, dtype=np.int64)
    target = Target(Interval(-5, 5), Interval(0, 1e3), Interval(0, 1e3))
    found = {tuple(each) for each in nearby(days, target, path, np.arange(COUNT))}
    all_of_them = every("long_flat")
    near = all_of_them[fits(days, target, all_of_them) & ((all_of_them != path).sum(1) <= 5)]
    # of two sets that share a day the second counts: such paths are near too
    assert {tuple(each) for each in near} <= found
    assert fits(days, target, np.array(sorted(found))).all()
    few = changes(days, path, np.arange(3), 3)
    assert len(few.gain) == 8 and few.gain.max() == pytest.approx(
        np.maximum(-days.gain[:3, 1], 0).sum()
    )


def test_sums_are_put_together_as_all_pairs_would_be():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=300), rng.normal(size=200)
    within = Interval(0.3, 0.35)
    pairs = {
        pair
        for a, b in put_together(one, other, within)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    }
    total = one[:, None] + other
    assert pairs == {
        *zip(*map(np.ndarray.tolist, np.nonzero((total >= 0.3) & (total <= 0.35))), strict=True)
    }


def test_a_search_gives_only_paths_that_fit():
    rng, found = np.random.default_rng(0), 0
    for days, _, _, target in cases():
        program = Program(days, target)
        for paths in search(program, Depths(program), 5, rng):
            assert fits(days, target, paths).all()
            found += len(paths)
    assert found > 100


def test_a_position_that_loses_everything_is_never_taken():
    days = Days.of(np.array([100.0, 30.0, 90.0, 300.0]), "long_short")
    assert days.allowed.tolist() == [[True, False, True], [True, True, False], [True, True, False]]
    paths = remaining(days, [(most_gain(days), -1e9)])
    assert len(paths) == 8
