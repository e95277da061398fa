"""Paired statistics against scipy, hand calculations and simulation."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from flagtrl.qa.statistics import bootstrap, holm, mcnemar, minimum_detectable, paired_difference


@pytest.mark.parametrize("gained, lost", [(0, 0), (0, 5), (0, 6), (3, 9), (12, 12), (40, 20)])
def test_mcnemar_is_the_exact_binomial_test_of_what_changed(gained, lost):
    base = np.array([0] * gained + [1] * lost + [1] * 7 + [0] * 3)
    adapter = np.array([1] * gained + [0] * lost + [1] * 7 + [0] * 3)
    changed, fewer = gained + lost, min(gained, lost)
    by_hand = 1.0 if changed == 0 else min(1.0, 2 * binom.cdf(fewer, changed, 0.5))
    assert mcnemar(base, adapter) == pytest.approx(by_hand)


def test_mcnemar_equals_the_textbook_figure():
    """Agresti's recipe by hand: of 12 that changed 2 were lost, so p = 2 * (1 + 12 + 66) / 4096."""
    base = np.array([0] * 10 + [1] * 2)
    assert mcnemar(base, 1 - base) == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_holm_by_hand_and_against_statsmodels_published_example():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm(p)) == list(p)
    assert holm({}) == {}
    assert holm({"one": 0.7}) == {"one": 0.7}
    assert holm({"one": 0.6, "two": 0.7}) == {"one": 1.0, "two": 1.0}


def test_the_interval_of_independent_samples_is_the_normal_one():
    generator = np.random.default_rng(1)
    base, adapter = generator.normal(size=400), generator.normal(0.2, size=400)
    found = paired_difference(base, adapter[None], np.ones(400), [str(i) for i in range(400)])
    change = adapter - base
    half = norm.ppf(0.975) * change.std(ddof=1) / 20
    assert found.delta == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.02 * half + 0.004)
    assert found.standard_error == pytest.approx(change.std(ddof=1) / 20, rel=0.05)
    assert found.p == pytest.approx(2 * norm.sf(abs(change.mean()) / (change.std(ddof=1) / 20)), abs=0.01)


def test_questions_of_one_document_count_as_one():
    """Ten copies of each of 30 values carry no more evidence than the 30."""
    generator = np.random.default_rng(2)
    change = generator.normal(0.3, 1, 30)
    once = paired_difference(np.zeros(30), change[None], np.ones(30), [str(i) for i in range(30)])
    names = [str(i) for i in range(30) for _ in range(10)]
    copied = paired_difference(np.zeros(300), np.repeat(change, 10)[None], np.ones(300), names)
    assert (copied.low, copied.high, copied.standard_error) == pytest.approx((once.low, once.high, once.standard_error))
    alone = paired_difference(np.zeros(300), np.repeat(change, 10)[None], np.ones(300), [str(i) for i in range(300)])
    assert alone.standard_error < 0.5 * once.standard_error


def test_the_bootstrap_of_a_ratio_against_a_plain_loop():
    generator = np.random.default_rng(3)
    change, sizes, names = generator.normal(size=(1, 12)), generator.integers(1, 50, 12).astype(float), list("aabbbcddddef")
    drawn = bootstrap(change, sizes, names, 0, 20_000)
    documents = sorted(set(names))
    members = {d: [i for i, name in enumerate(names) if name == d] for d in documents}
    plain = []
    for _ in range(5_000):
        rows = [i for d in generator.choice(documents, len(documents)) for i in members[d]]
        plain.append(change[0, rows].sum() / sizes[rows].sum())
    assert np.percentile(drawn, (5, 50, 95)) == pytest.approx(np.percentile(plain, (5, 50, 95)), abs=0.004)


def test_seeds_that_disagree_widen_the_interval():
    generator = np.random.default_rng(4)
    change, names = generator.normal(0, 0.1, 200), [str(i) for i in range(200)]
    agreed = paired_difference(np.zeros(200), np.stack([change] * 4), np.ones(200), names)
    spread = np.array([-1.0, -0.3, 0.3, 1.0])[:, None]
    disagreed = paired_difference(np.zeros(200), change + spread, np.ones(200), names)
    assert disagreed.delta == pytest.approx(agreed.delta)
    assert disagreed.high - disagreed.low > 10 * (agreed.high - agreed.low)


def test_no_change_is_exactly_zero_with_p_one():
    scores = np.array([0.0, 1, 1, 0])
    found = paired_difference(scores, scores[None], np.ones(4), list("abcd"))
    assert (found.delta, found.low, found.high, found.p) == (0, 0, 0, 1)
    bits = paired_difference(scores * 1.7, (scores * 1.7)[None], np.array([3.0, 2, 9, 1]), list("abcd"))
    assert (bits.delta, bits.low, bits.high, bits.p) == (0, 0, 0, 1)


def test_one_document_says_nothing():
    found = paired_difference(np.zeros(3), np.array([[0.1, 0.2, 0.3]]), np.ones(3), ["a"] * 3)
    assert found.delta == pytest.approx(0.2)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_the_detectable_difference_is_found_with_a_probability_of_80_percent():
    error = 0.013
    distance = minimum_detectable(error)
    estimates = np.random.default_rng(5).normal(distance, error, 200_000)
    assert (np.abs(estimates / error) > norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.005)


def test_fewer_than_six_changed_answers_are_never_significant():
    assert mcnemar(np.zeros(5), np.ones(5)) > 0.05 > mcnemar(np.zeros(6), np.ones(6))
    assert minimum_detectable(0.0, 100) == 0.06
    assert minimum_detectable(0.1, 100) == minimum_detectable(0.1)
