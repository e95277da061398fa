"""The label prior taken out, balanced accuracy, and controls: by hand, against scikit-learn, in
simulation.
"""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from flagtrl.qa.evaluate import Row, Samples, above_chance, adjusted, chance
from flagtrl.qa.judging import (
    Judged,
    accuracy,
    balanced_accuracy,
    bits,
    cells,
    credits,
    label_bits,
    majority,
    mean_of_cells,
    numbered,
    right,
    without_prior,
)
from flagtrl.qa.report import markdown
from flagtrl.qa.statistics import Difference, bootstrap, paired_difference


def texts(seed, signal, n=300, shares=(0.2, 0.65, 0.15), taste=(9.0, 0.0, -4.0)):
    """Texts whose right label has `signal` more nats, under a model with a strong taste for some
    labels.
    """
    draw = np.random.default_rng(seed)
    labels = draw.choice(3, n, p=shares)
    logs = draw.normal(size=(n, 3)) + np.array(taste) + signal * np.eye(3)[labels]
    return [Judged(tuple(row), int(label)) for row, label in zip(logs, labels, strict=True)]


def shifted(judged, by):
    return [one._replace(logs=tuple(np.add(one.logs, by))) for one in judged]


def test_the_prior_is_each_labels_mean_score():
    judged = [Judged((1.0, 5.0), 0), Judged((3.0, 5.0), 1), Judged((2.0, 8.0), 1)]
    assert without_prior(judged).tolist() == [[-1, -1], [1, -1], [0, 2]]
    assert right(judged).tolist() == [0.5, 0, 1]
    assert accuracy(judged) == 0.5 and balanced_accuracy(judged) == 0.5
    assert bits(judged)[0] == pytest.approx(1) and label_bits(judged) == pytest.approx(
        bits(judged).mean()
    )


def test_texts_that_are_asked_different_questions_have_different_priors():
    judged = [
        Judged((1.0, 0.0), 0, "up"),
        Judged((3.0, 0.0), 1, "up"),
        Judged((-5.0, 0.0), 0, "down"),
    ]
    assert without_prior(judged).tolist() == [[-1, 0], [1, 0], [0, 0]]
    assert cells(judged) == (("up", 0), ("up", 1), ("down", 0))


def test_a_training_that_moves_a_labels_score_for_all_texts_alike_changes_nothing():
    """The collapsed adapter: it says one label always, and raw accuracy jumps to that label's
    share.
    """
    judged = texts(0, 1.0)
    collapsed = shifted(judged, (0, 40.0, 0))
    labels = np.array([one.label for one in judged])
    before, after = (
        credits(np.array([one.logs for one in arm]), labels).mean() for arm in (judged, collapsed)
    )
    assert after - before > 0.3
    np.testing.assert_array_equal(right(judged), right(collapsed))
    np.testing.assert_allclose(bits(judged), bits(collapsed), atol=1e-9)


@pytest.mark.parametrize("signal", [0.0, 1.5])
def test_balanced_accuracy_is_scikit_learns(signal):
    judged = texts(1, signal)
    said = without_prior(judged).argmax(axis=1)
    assert balanced_accuracy(judged) == pytest.approx(
        balanced_accuracy_score([one.label for one in judged], said)
    )


def test_without_information_it_is_a_third_whatever_the_models_taste():
    assert np.mean([balanced_accuracy(texts(seed, 0.0)) for seed in range(60)]) == pytest.approx(
        1 / 3, abs=0.015
    )
    assert np.mean([balanced_accuracy(texts(seed, 1.5)) for seed in range(9)]) > 0.6


def test_one_text_alone_and_labels_that_tie_are_no_answer():
    assert balanced_accuracy([Judged((3.0, 1.0, 2.0), 0)]) == pytest.approx(1 / 3)
    assert credits(np.array([[1.0, 1.0, 0.0], [1, 0, 0]]), np.array([1, 0])).tolist() == [0.5, 1]


def samples(judged, documents=None):
    gold = cells(judged)
    return Samples(
        tuple(map(str, range(len(judged)))),
        documents or tuple(map(str, range(len(judged)))),
        {"bal_acc": right(judged), "acc": right(judged)},
        {"bal_acc": np.ones(len(judged)), "acc": np.ones(len(judged))},
        {"bal_acc": numbered(gold)},
        gold,
        np.full(len(judged), 3.0),
    )


def test_controls_by_hand():
    seen = samples([Judged((0.0, 0.0, 0.0), label) for label in (1, 1, 1, 0, 2)])
    assert chance(seen, "acc", "majority") == pytest.approx(0.6)
    for metric, control in (("acc", "uniform"), ("bal_acc", "majority"), ("bal_acc", "uniform")):
        assert chance(seen, metric, control) == pytest.approx(1 / 3)
    assert np.isnan(chance(seen, "bits_per_byte", "uniform"))
    asked = (("up", 0), ("up", 0), ("up", 1), ("past", 1), ("past", 1), ("past", 0))
    assert majority(asked).tolist() == [1, 1, 0, 1, 1, 0], (
        "of each question its own most frequent label"
    )
    assert mean_of_cells(majority(asked), asked) == 0.5


def test_a_base_at_chance_is_said_to_carry_no_information():
    assert above_chance(samples(texts(2, 1.5)), "bal_acc", 0)
    assert not above_chance(samples(texts(2, 0.0)), "bal_acc", 0)
    constant = samples([one._replace(logs=(0.1, 0.2, 0.3)) for one in texts(2, 0.0)])
    assert not above_chance(constant, "bal_acc", 0), "its interval is the chance itself"
    assert not above_chance(samples(texts(2, 0.7, taste=(0, 0, 0))), "acc", 0), (
        "right in more than a third, but not in 65%"
    )


@pytest.mark.slow
def test_chance_is_rarely_taken_for_information():
    found = [above_chance(samples(texts(seed, 0.0, n=120)), "bal_acc", 0) for seed in range(100)]
    assert sum(found) <= 8


def test_no_p_of_a_task_without_information_is_printed_or_written():
    difference = Difference(0.3, 0.4, 0.1, 0.05, 0.15, 0.0004, 0.02, 0.07)
    rows = [Row("flagtrl_x", "bal_acc", 60, 60, difference, primary=True, informative=False)]
    rows.append(Row("flagtrl_y", "bal_acc", 60, 60, difference, primary=True))
    table = markdown(rows)
    assert "| x | **bal_acc** | 60 | 0.3 | 0.4 | +0.1 | +0.05 to +0.15 | - | - | - |" in table
    assert (
        "| y | **bal_acc** | 60 | 0.3 | 0.4 | +0.1 | +0.05 to +0.15 | <0.001 | <0.001 | 0.07 |"
        in table
    )
    assert "No information: x." in table
    assert rows[0].as_dict()["p"] is None and rows[1].as_dict()["p"] == 0.0004
    assert set(adjusted(rows)) == {("flagtrl_y", "bal_acc")}, "it is in no family"


def test_the_bootstrap_of_a_mean_over_cells_recomputes_it_in_every_resample():
    draw = np.random.default_rng(3)
    change, index, of = draw.normal(size=40), np.repeat(np.arange(20), 2), draw.integers(0, 3, 40)
    drawn = bootstrap(change, np.ones(40), index, 5, 50, of)
    counts = np.random.default_rng(5).multinomial(20, np.full(20, 1 / 20), 50)
    for value, count in zip(drawn, counts, strict=True):
        many = count[index]
        means = [
            np.average(change[of == c], weights=many[of == c])
            for c in range(3)
            if many[of == c].any()
        ]
        assert value == pytest.approx(np.mean(means))


def test_the_interval_of_balanced_accuracy_covers_the_truth():
    """Two arms that share most of their scores; each of 150 experiments has a prior of its own
    texts.
    """

    def experiment(seed, n):
        draw = np.random.default_rng(seed)
        labels = draw.choice(3, n, p=(0.2, 0.65, 0.15))
        shared = draw.normal(size=(n, 3)) + 0.8 * np.eye(3)[labels]
        arms = [
            shared + 0.5 * draw.normal(size=(n, 3)) + gain * np.eye(3)[labels]
            for gain in (0.0, 0.4)
        ]
        return [
            right([Judged(tuple(row), int(k)) for row, k in zip(arm, labels, strict=True)])
            for arm in arms
        ], labels

    (base, tuned), labels = experiment(0, 60_000)
    truth = mean_of_cells(tuned - base, labels)
    covered = []
    for seed in range(1, 151):
        (base, tuned), labels = experiment(seed, 150)
        documents = list(map(str, range(150)))
        found = paired_difference(
            base, tuned[None], np.ones(150), documents, 0, 1000, numbered(labels)
        )
        assert found.delta == pytest.approx(mean_of_cells(tuned - base, labels))
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.9, "95%, in 150 experiments"
