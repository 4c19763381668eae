import numpy as np
import pytest

from cnn_jax.training.plan import Schedule

SIZES = [(100, 32, 3, 2), (1294, 32, 2, 50), (10, 32, 4, 3), (64, 32, 2, 100), (7, 7, 3, 1), (50, 1, 2, 7)]


def all_chunks(schedule, start=0):
    stops = [start]
    while stops[-1] < schedule.total_steps:
        stops.append(schedule.next_stop(stops[-1]))
    return list(zip(stops, stops[1:]))


@pytest.mark.parametrize("size", SIZES)
def test_every_image_is_seen_once_an_epoch(size):
    schedule = Schedule(*size)
    rows = [schedule.rows(5, start, stop)["index"] for start, stop in all_chunks(schedule)]
    seen = np.concatenate(rows).ravel()
    assert schedule.total_steps * schedule.batch_size - schedule.epochs * schedule.num_examples < schedule.batch_size
    for epoch in range(schedule.epochs):
        part = seen[epoch * schedule.num_examples : (epoch + 1) * schedule.num_examples]
        assert sorted(part) == list(range(schedule.num_examples))


@pytest.mark.parametrize("size", SIZES)
def test_rows_do_not_depend_on_where_a_chunk_starts(size):
    schedule = Schedule(*size)
    whole = schedule.rows(1, 0, schedule.total_steps)
    for step in range(schedule.total_steps):
        one = schedule.rows(1, step, step + 1)
        np.testing.assert_array_equal(one["index"][0], whole["index"][step])
        assert one["mask"].all()
        np.testing.assert_array_equal(one["epoch"][0], whole["epoch"][step])
    passed = np.arange(whole["epoch"].size) // schedule.num_examples
    np.testing.assert_array_equal(whole["epoch"].ravel(), passed)


@pytest.mark.parametrize("size", SIZES)
def test_chunks_respect_epochs_and_resuming(size):
    schedule = Schedule(*size)
    chunks = all_chunks(schedule)
    assert chunks[-1][1] == schedule.total_steps
    ends = {stop for _, stop in chunks}
    assert {schedule.end_of_epoch(epoch) for epoch in range(1, schedule.epochs + 1)} <= ends
    for start, stop in chunks:
        assert 0 < stop - start <= schedule.steps_per_call
        assert all_chunks(schedule, start) == [chunk for chunk in chunks if chunk[0] >= start]


@pytest.mark.parametrize("size", [*SIZES, (1294, 2000, 8, 1000)])
@pytest.mark.parametrize("pause", [2, 3, 1000])
def test_chunks_end_where_there_is_something_to_do_alone(size, pause):
    schedule = Schedule(*size, epochs_per_pause=pause)
    chunks = all_chunks(schedule)
    ends = {stop for _, stop in chunks}
    assert {schedule.end_of_epoch(epoch) for epoch in range(pause, schedule.epochs, pause)} <= ends
    assert schedule.epoch_ended(schedule.total_steps) == schedule.epochs
    for start, stop in chunks:
        assert 0 < stop - start <= schedule.steps_per_call
        assert all_chunks(schedule, start) == [chunk for chunk in chunks if chunk[0] >= start]


def test_a_whole_run_can_be_one_chunk():
    assert all_chunks(Schedule(100, 32, 3, 10**6, epochs_per_pause=10**6)) == [(0, 10)]


def test_epoch_ended():
    schedule = Schedule(num_examples=100, batch_size=32, epochs=3, steps_per_call=2)
    assert [schedule.epoch_ended(step) for step in range(11)] == [
        None,
        None,
        None,
        None,
        1,
        None,
        None,
        2,
        None,
        None,
        3,
    ]


def test_order_differs_by_epoch_and_seed():
    schedule = Schedule(num_examples=50, batch_size=50, epochs=2, steps_per_call=1)
    orders = [schedule.rows(seed, epoch, epoch + 1)["index"].tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4
