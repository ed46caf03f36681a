"""The interval of a latency percentile: SciPy's for independent latencies, and its coverage for those of a queue."""

import numpy as np
import pytest
from compress.loadtest.intervals import effective_number, order_interval, quantile_interval
from scipy.stats import expon, quantile_test

RUNS = 200


@pytest.mark.parametrize("number", [368, 1000, 10_001])
@pytest.mark.parametrize("probability", [0.5, 0.95, 0.99])
def test_with_independent_latencies_it_is_scipys(number, probability):
    latency = np.random.default_rng(number).exponential(size=number)
    theirs = quantile_test(latency, p=probability).confidence_interval(0.95)
    assert order_interval(latency, probability, number) == pytest.approx((theirs.low, theirs.high))


def test_fewer_independent_latencies_give_a_wider_interval():
    latency = np.random.default_rng(0).exponential(size=1000)
    ends = {number: order_interval(latency, 0.99, number) for number in range(10, 1001)}
    assert all(low < np.quantile(latency, 0.99) < high for low, high in ends.values())
    assert ends[400][0] < ends[600][0] < ends[1000][0] < ends[1000][1] < ends[600][1] < ends[400][1] < np.inf


def test_few_latencies_have_no_upper_end():
    latency = np.random.default_rng(0).exponential(size=300)
    assert order_interval(latency, 0.99, 300)[1] == np.inf
    assert order_interval(latency[:2], 0.4, 2)[0] == -np.inf
    assert effective_number([latency[:5], latency[5:]], 0.99) == 300  # fewer latencies than blocks in one run


def test_the_percentile_is_never_below_its_interval():
    runs = [np.random.default_rng(0).exponential(1.0, 10_000), np.full(30, 50.0)]  # few and late, in the second run
    assert effective_number(runs, 0.99) < 5
    low, high = quantile_interval(runs, 0.99)
    assert low <= np.quantile(np.concatenate(runs), 0.99) <= high


def coverage(draw, truth: float, interval) -> float:
    ends = [interval(draw(np.random.default_rng(seed))) for seed in range(RUNS)]
    return float(np.mean([low <= truth <= high for low, high in ends]))


def queue(chance, load: float, requests: int = 10_000) -> np.ndarray:
    """Latencies of requests at random moments on one worker, in units of its mean time, by Lindley's recursion."""
    moments = np.sort(chance.uniform(0, requests / load, requests))
    work = chance.gamma(4, 1 / 4, requests)
    steps = np.concatenate([[0.0], np.cumsum(work[:-1] - np.diff(moments))])
    return work + steps - np.minimum.accumulate(steps)


def test_it_covers_the_true_percentile_of_independent_latencies():
    assert coverage(lambda chance: chance.exponential(size=4000), expon.ppf(0.99), one_run) > 0.9


def test_it_covers_that_of_a_queue_much_more_often_than_an_interval_for_independent_requests():
    truth = np.quantile(np.concatenate([queue(np.random.default_rng(10**6 + i), 0.7, 10**6) for i in range(3)]), 0.99)
    plain = coverage(lambda chance: queue(chance, 0.7), truth, lambda of: order_interval(of, 0.99, len(of)))
    blocks = coverage(lambda chance: queue(chance, 0.7), truth, one_run)
    assert plain < 0.4
    assert blocks > 0.8


def one_run(latency: np.ndarray) -> tuple[float, float]:
    return quantile_interval([latency], 0.99)
