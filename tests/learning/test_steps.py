"""Micro-batches: every sample once an epoch, and the same minibatches whatever the number of
processes.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from flagtrl.learning.steps import MicroBatch, merged, micro_batches


def settings(**changes):
    numbers = {
        "num_envs": 4,
        "num_steps": 5,
        "minibatch_size": 6,
        "update_epochs": 2,
        "gradient_accumulation_steps": 2,
    }
    numbers["samples_per_step"] = 1
    numbers |= {"seed": 3, **changes}
    samples = numbers["num_envs"] * numbers["num_steps"]
    minibatches = -(-samples // numbers["minibatch_size"])
    return SimpleNamespace(**numbers, rollout_samples=samples, num_minibatches=minibatches)


def shared_out(config, processes, rollout=0):
    """Per process its micro-batches, with rows as the samples' numbers among all."""
    local = config.num_envs // processes
    schedules = []
    for process in range(processes):
        own = range(process * local, (process + 1) * local)
        schedule = micro_batches(config, rollout, own)
        schedules.append(
            [(m.rows // local * config.num_envs + own.start + m.rows % local, m) for m in schedule]
        )
    return schedules


def minibatches(config, schedules):
    """The samples that count in each minibatch, over all processes."""
    shares = config.gradient_accumulation_steps
    number = len(schedules[0]) // shares
    found = []
    for minibatch in range(number):
        parts = [
            part
            for schedule in schedules
            for part in schedule[minibatch * shares : (minibatch + 1) * shares]
        ]
        found.append(
            sorted(
                sample for samples, micro in parts for sample in samples[: micro.counted].tolist()
            )
        )
        assert {micro.minibatch for _, micro in parts} == {len(found[-1])}
    return found


def test_the_positions_of_a_step_stay_together():
    plain, paired = (
        micro_batches(settings(samples_per_step=count), 0, range(4)) for count in (1, 2)
    )
    for one, two in zip(plain, paired, strict=True):
        assert two.rows.tolist() == [2 * row + position for row in one.rows for position in (0, 1)]
        assert (two.counted, two.minibatch) == (2 * one.counted, 2 * one.minibatch)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_epoch_uses_every_sample_once_and_minibatches_do_not_depend_on_the_processes(
    processes,
):
    config = settings()
    schedules = shared_out(config, processes)
    # Every process makes as many forwards as any other.
    assert {len(schedule) for schedule in schedules} == {2 * 4 * 2}
    found = minibatches(config, schedules)
    assert found == minibatches(config, shared_out(config, 1))
    for epoch in (found[:4], found[4:]):
        assert sorted(sample for minibatch in epoch for sample in minibatch) == list(range(20))
        assert max(map(len, epoch)) <= 6
    assert found[:4] != found[4:]


def test_a_process_without_samples_in_a_micro_batch_takes_part_with_one_that_does_not_count():
    config = settings(num_steps=2, minibatch_size=2, gradient_accumulation_steps=1)
    micro = [m for schedule in shared_out(config, 4) for _, m in schedule]
    stand_ins = [m for m in micro if m.counted == 0]
    assert stand_ins and all(len(m.rows) == 1 for m in stand_ins)
    assert sum(m.counted for m in micro) == 2 * 8


def test_every_rollout_and_seed_has_an_order_of_its_own():
    orders = [
        [
            sample
            for minibatch in minibatches(config, shared_out(config, 1, rollout))
            for sample in minibatch
        ]
        for config, rollout in ((settings(), 0), (settings(), 1), (settings(seed=4), 0))
    ]
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])


def micro(*rows, counted=None):
    return MicroBatch(np.array(rows, dtype=np.int64), len(rows) if counted is None else counted, 4)


def test_neighbours_are_run_together_at_the_turn_of_the_last_of_them():
    schedule = [micro(0, 1), micro(2), micro(3, 4), micro(5)]
    lengths = np.array([10, 10, 10, 30, 10, 10])

    def rows(tokens):
        return [each.rows.tolist() for each in merged(schedule, lengths, 2, tokens)]

    assert rows(1000) == [[], [0, 1, 2], [], [3, 4, 5]], "never across minibatches"
    assert rows(30) == [[], [0, 1, 2], [3, 4], [5]], "with padding, 3 rows of 30 tokens are 90"
    assert rows(1) == [[0, 1], [2], [3, 4], [5]]
    together = merged(schedule, lengths, 2, 1000)
    assert [each.counted for each in together] == [0, 3, 0, 3] and {
        each.minibatch for each in together
    } == {4}


def test_the_last_of_a_minibatch_has_its_turn_even_with_a_stand_in_alone():
    """There processes exchange gradients, and every one must be there."""
    [first, last] = merged([micro(2, counted=0), micro(0, counted=0)], np.array([9, 9, 9]), 2, 1000)
    assert first.rows.tolist() == [] and (last.rows.tolist(), last.counted) == ([0], 0)
    [first, last] = merged([micro(2), micro(0, counted=0)], np.array([9, 9, 9]), 2, 1000)
    assert first.rows.tolist() == [] and (last.rows.tolist(), last.counted) == ([2], 1)
