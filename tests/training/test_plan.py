import numpy as np
import pytest

from cnn_jax.data.order import Order
from cnn_jax.training.plan import Plan

SIZES = [(100, 32, 3, 2), (1294, 32, 2, 50), (10, 32, 4, 3), (64, 32, 2, 100), (7, 7, 3, 1), (50, 1, 2, 7)]


def all_chunks(plan, start=0):
    return list(plan.chunks(start))


def order(plan):
    return Order(plan.num_examples, plan.batch_size)


@pytest.mark.parametrize("size", SIZES)
def test_every_image_is_seen_once_an_epoch(size):
    plan = Plan(*size)
    rows = [order(plan).rows(5, start, stop)["index"] for start, stop in all_chunks(plan)]
    seen = np.concatenate(rows).ravel()
    assert plan.total_steps * plan.batch_size - plan.epochs * plan.num_examples < plan.batch_size
    for epoch in range(plan.epochs):
        part = seen[epoch * plan.num_examples : (epoch + 1) * plan.num_examples]
        assert sorted(part) == list(range(plan.num_examples))


@pytest.mark.parametrize("size", SIZES)
def test_rows_do_not_depend_on_where_a_chunk_starts(size):
    plan = Plan(*size)
    whole = order(plan).rows(1, 0, plan.total_steps)
    for step in range(plan.total_steps):
        one = order(plan).rows(1, step, step + 1)
        np.testing.assert_array_equal(one["index"][0], whole["index"][step])
        assert one["mask"].all()
        np.testing.assert_array_equal(one["epoch"][0], whole["epoch"][step])
    passed = np.arange(whole["epoch"].size) // plan.num_examples
    np.testing.assert_array_equal(whole["epoch"].ravel(), passed)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_chunks_respect_epochs_and_resuming(size, even):
    plan = Plan(*size, even=even)
    chunks = all_chunks(plan)
    assert chunks[-1][1] == plan.total_steps
    ends = {stop for _, stop in chunks}
    assert {plan.end_of_epoch(epoch) for epoch in range(1, plan.epochs + 1)} <= ends
    for start, stop in chunks:
        assert 0 < stop - start <= plan.steps_per_call
        assert all_chunks(plan, start) == [chunk for chunk in chunks if chunk[0] >= start]


@pytest.mark.parametrize("size", [*SIZES, (1294, 2000, 8, 1000)])
@pytest.mark.parametrize("pause", [2, 3, 1000])
@pytest.mark.parametrize("even", [False, True])
def test_chunks_end_where_there_is_something_to_do_alone(size, pause, even):
    plan = Plan(*size, epochs_per_pause=pause, even=even)
    chunks = all_chunks(plan)
    ends = {stop for _, stop in chunks}
    assert {plan.end_of_epoch(epoch) for epoch in range(pause, plan.epochs, pause)} <= ends
    assert plan.epoch_ended(plan.total_steps) == plan.epochs
    for start, stop in chunks:
        assert 0 < stop - start <= plan.steps_per_call
        assert all_chunks(plan, start) == [chunk for chunk in chunks if chunk[0] >= start]


@pytest.mark.parametrize("size", [(45000, 32, 4, 50), *SIZES])
def test_even_chunks_differ_by_one_step_at_most(size):
    """So that one program, padded by a step, serves all chunks of a phase."""
    plan = Plan(*size, even=True)
    lengths = [stop - start for start, stop in all_chunks(plan)]
    assert max(lengths) <= plan.longest_chunk <= plan.steps_per_call
    assert min(lengths) >= plan.longest_chunk - 1


def test_a_whole_run_can_be_one_chunk():
    assert all_chunks(Plan(100, 32, 3, 10**6, epochs_per_pause=10**6)) == [(0, 10)]


def test_epoch_ended():
    plan = Plan(num_examples=100, batch_size=32, epochs=3, steps_per_call=2)
    assert [plan.epoch_ended(step) for step in range(11)] == [
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
    plan = Plan(num_examples=50, batch_size=50, epochs=2, steps_per_call=1)
    orders = [order(plan).rows(seed, epoch, epoch + 1)["index"].tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4
