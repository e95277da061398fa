"""Paired statistics against scipy, hand calculations and simulation."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm, ttest_1samp

from flagtrl.evidence.statistics import holm
from flagtrl.qa.evaluate import Row, adjusted
from flagtrl.qa.report import markdown
from flagtrl.qa.statistics import (
    Difference,
    bootstrap,
    minimum_detectable,
    of_seeds,
    paired_difference,
    sign_flips,
)


@pytest.mark.parametrize(
    "gained, lost", [(0, 0), (0, 5), (0, 6), (3, 9), (12, 12), (40, 20), (900, 1000)]
)
def test_of_single_questions_the_sign_flips_are_exact_mcnemar(gained, lost):
    changes = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 7)
    expected = 1.0 if gained + lost == 0 else binomtest(gained, gained + lost, 0.5).pvalue
    assert sign_flips(changes) == pytest.approx(expected)


def test_mcnemar_equals_the_textbook_figure():
    """Agresti's recipe by hand: of 12 that changed 2 were lost, so p = 2 * (1 + 12 + 66) / 4096."""
    base = np.array([0.0] * 10 + [1.0] * 2)
    found = paired_difference(base, (1 - base)[None], np.ones(12), [str(i) for i in range(12)])
    assert found.p == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_sign_flips_against_all_flips_of_unequal_documents():
    changes = np.array([3.0, -1, 2, 5, 0, -4, 1])
    sums = [
        sum(sign * change for sign, change in zip(signs, changes, strict=True))
        for signs in product((-1, 1), repeat=7)
    ]
    assert sign_flips(changes) == pytest.approx(np.mean(np.abs(sums) >= abs(changes.sum())))


def test_answers_that_change_together_in_a_document_are_one_change():
    """Ten questions of each of five documents, all gained: ten times five are not fifty."""
    names = [str(i) for i in range(5) for _ in range(10)]
    found = paired_difference(np.zeros(50), np.ones((1, 50)), np.ones(50), names)
    assert found.p == pytest.approx(2 / 2**5)


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
    assert (found.low, found.high) == pytest.approx(
        (change.mean() - half, change.mean() + half), abs=0.02 * half + 0.004
    )
    assert found.standard_error == pytest.approx(change.std(ddof=1) / 20, rel=0.05)
    assert found.p == pytest.approx(
        2 * norm.sf(abs(change.mean()) / (change.std(ddof=1) / 20)), abs=0.01
    )


def test_questions_of_one_document_count_as_one():
    """Ten copies of each of 30 values carry no more evidence than the 30."""
    generator = np.random.default_rng(2)
    change = generator.normal(0.3, 1, 30)
    once = paired_difference(np.zeros(30), change[None], np.ones(30), [str(i) for i in range(30)])
    names = [str(i) for i in range(30) for _ in range(10)]
    copied = paired_difference(np.zeros(300), np.repeat(change, 10)[None], np.ones(300), names)
    assert (copied.low, copied.high, copied.standard_error) == pytest.approx(
        (once.low, once.high, once.standard_error)
    )
    alone = paired_difference(
        np.zeros(300), np.repeat(change, 10)[None], np.ones(300), [str(i) for i in range(300)]
    )
    assert alone.standard_error < 0.5 * once.standard_error


def test_the_bootstrap_of_a_ratio_against_a_plain_loop():
    generator = np.random.default_rng(3)
    change, sizes, names = (
        generator.normal(size=12),
        generator.integers(1, 50, 12).astype(float),
        list("aabbbcddddef"),
    )
    drawn = bootstrap(change, sizes, np.unique(names, return_inverse=True)[1], 0, 20_000)
    documents = sorted(set(names))
    members = {d: [i for i, name in enumerate(names) if name == d] for d in documents}
    plain = []
    for _ in range(5_000):
        rows = [i for d in generator.choice(documents, len(documents)) for i in members[d]]
        plain.append(change[rows].sum() / sizes[rows].sum())
    assert np.percentile(drawn, (5, 50, 95)) == pytest.approx(
        np.percentile(plain, (5, 50, 95)), abs=0.004
    )


def test_seeds_that_disagree_widen_the_interval():
    generator = np.random.default_rng(4)
    change, names = generator.normal(0, 0.1, 200), [str(i) for i in range(200)]
    agreed = paired_difference(np.zeros(200), np.stack([change] * 4), np.ones(200), names)
    spread = np.array([-1.0, -0.3, 0.3, 1.0])[:, None]
    disagreed = paired_difference(np.zeros(200), change + spread, np.ones(200), names)
    assert disagreed.delta == pytest.approx(agreed.delta)
    assert disagreed.high - disagreed.low > 10 * (agreed.high - agreed.low)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_share", [0.0, 0.5, 1.0])
def test_intervals_over_few_seeds_cover_the_truth(seeds, seed_share):
    """Documents' variance alone, half of each, seeds' alone: a bootstrap of seeds covered 54, 72
    and 81%.
    """
    generator, documents, runs = np.random.default_rng(seeds), 40, 800
    spread = generator.normal(0, np.sqrt(seed_share * seeds), (runs, seeds))
    of_documents = generator.normal(0, np.sqrt((1 - seed_share) * documents), (runs, documents))
    covered, significant = 0, 0
    for deltas, changes in zip(
        spread + of_documents.mean(axis=1, keepdims=True), of_documents, strict=True
    ):
        found = of_seeds(deltas, float(changes.var()) / documents, documents, 1e-6)
        covered += found["low"] <= 0 <= found["high"]
        significant += found["p"] < 0.05
    assert 0.93 <= covered / runs <= 0.995
    assert covered + significant == runs, (
        "p is below 5% where the interval leaves 0 out, and only there"
    )


def test_of_seeds_alone_it_is_students_interval():
    deltas = np.array([0.1, 0.3, 0.2])
    found = of_seeds(deltas, 0.0, 50, 1e-6)
    expected = ttest_1samp(deltas, 0)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found["p"] == pytest.approx(expected.pvalue)


def test_the_detectable_difference_of_seeds_is_found_with_a_probability_of_80_percent():
    generator, seeds, sigma = np.random.default_rng(7), 3, 1.0
    distance = of_seeds(np.array([-1.0, 0, 1]) * sigma, 0.0, 50, 1e-6)["detectable"]
    deltas = generator.normal(distance, sigma, (20_000, seeds))
    assert (ttest_1samp(deltas, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_no_change_is_exactly_zero_with_p_one():
    scores = np.array([0.0, 1, 1, 0])
    found = paired_difference(scores, scores[None], np.ones(4), list("abcd"))
    assert (found.delta, found.low, found.high, found.p) == (0, 0, 0, 1)
    bits = paired_difference(
        scores * 1.7, (scores * 1.7)[None], np.array([3.0, 2, 9, 1]), list("abcd")
    )
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
    assert sign_flips(np.ones(5)) > 0.05 > sign_flips(np.ones(6))
    assert np.isnan(minimum_detectable(0.1, (5, 5)))
    assert minimum_detectable(0.1, (100, 100)) == minimum_detectable(0.1)


def test_the_floor_of_0_1_scores_has_a_power_of_80_percent():
    """6 / n, which it was, has 56%."""
    floor = minimum_detectable(0.0, (100, 100))
    assert binom.sf(5, 100, floor) == pytest.approx(0.8)
    assert binom.sf(5, 100, 0.06) == pytest.approx(0.56, abs=0.01)
    gained = np.random.default_rng(6).binomial(100, floor, 2000)
    assert np.mean([sign_flips(np.ones(many)) < 0.05 for many in gained]) == pytest.approx(
        0.8, abs=0.03
    )
    assert minimum_detectable(0.0, (300, 100)) == pytest.approx(floor / 3), (
        "a third of a document's questions"
    )


def test_a_metric_without_a_p_leaves_holms_family_and_the_table_says_so():
    def row(task, p):
        return Row(
            task, "acc", 9, 1, Difference(0.1, 0.2, 0.1, np.nan, np.nan, p, 0.1, 0.1), primary=True
        )

    rows = [
        row("flagtrl_finqa_mc", np.nan),
        row("flagtrl_fomc", 0.02),
        row("flagtrl_fiqa_sa", 0.03),
    ]
    assert adjusted(rows) == pytest.approx(
        {("flagtrl_fomc", "acc"): 0.04, ("flagtrl_fiqa_sa", "acc"): 0.04}
    )
    table = markdown(rows)
    assert "outside Holm's family (samples of one document): finqa_mc acc." in table
    assert "over the 2 primary metrics" in table and "5% level of this metric alone" in table
