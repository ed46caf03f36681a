"""The statistics against scikit-learn, SciPy, statsmodels and their own definitions."""

import itertools
import time

import numpy as np
import pytest
from compress import metrics
from compress.results import statistics as seeds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score
from statsmodels.stats.contingency_tables import mcnemar

bits = arrays(np.int64, 60, elements=st.integers(0, 1))


@given(bits, bits)
def test_weighted_f1_equals_sklearn_on_the_resampled_items(predictions, labels):
    weights = metrics.bootstrap_weights(60, resamples=5)
    got = metrics.bootstrap_f1(predictions[None], labels, weights, 2)[:, 0]
    for row, value in zip(weights, got, strict=True):
        items = np.repeat(np.arange(60), row.astype(int))
        assert value == pytest.approx(f1_score(labels[items], predictions[items], zero_division=0), abs=1e-6)


def test_weighted_f1_is_macro_beyond_two_classes():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    got = metrics.bootstrap_f1(predictions[None], labels, np.ones((1, 200), np.float32), 3)[0, 0]
    assert got == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-6)


def test_bootstrap_weights_draw_every_resample_in_full_and_repeat():
    weights = metrics.bootstrap_weights(50, resamples=100)
    assert (weights.sum(1) == 50).all()
    assert (weights == metrics.bootstrap_weights(50, resamples=100)).all()


def test_bootstrap_of_a_full_table_is_fast():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 2, (35, 2000)), rng.integers(0, 2, 2000)
    started = time.perf_counter()
    f1 = metrics.bootstrap_f1(predictions, labels, metrics.bootstrap_weights(2000), 2)
    assert f1.shape == (10_000, 35)
    assert time.perf_counter() - started < 20


@given(bits.map(lambda a: a.astype(bool)), bits.map(lambda a: a.astype(bool)))
def test_mcnemar_equals_statsmodels(one, other):
    table = [[np.sum(one & other), np.sum(one & ~other)], [np.sum(~one & other), np.sum(~one & ~other)]]
    assert metrics.mcnemar_exact(one, other) == pytest.approx(min(mcnemar(table, exact=True).pvalue, 1), abs=1e-12)


@given(bits.map(lambda a: a.astype(bool)), bits.map(lambda a: a.astype(bool)))
def test_pooled_mcnemar_of_one_seed_is_the_exact_test(one, other):
    assert seeds.mcnemar_clustered(one[None], other[None]) == pytest.approx(metrics.mcnemar_exact(one, other))


@given(arrays(bool, (3, 8)), arrays(bool, (3, 8)))
def test_pooled_mcnemar_counts_every_way_to_swap_model_and_baseline_on_an_item(one, other):
    differences = one.astype(int).sum(0) - other.astype(int).sum(0)
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    as_far = np.abs(signs @ differences) >= abs(differences.sum())
    assert seeds.mcnemar_clustered(one, other) == pytest.approx(as_far.mean())


def test_a_variant_over_seeds_is_compared_with_each_seeds_own_baseline():
    labels = np.array([1] * 40 + [0] * 40)

    def answers(wrong):
        return np.eye(2)[np.where(np.arange(80) < wrong, 1 - labels, labels)]

    logits = {0: {"base": answers(2), "x": answers(6), "once": answers(1)}, 3: {"base": answers(4), "x": answers(6)}}
    base, x = seeds.over_seeds("base", logits, labels)
    f1 = {wrong: f1_score(labels, answers(wrong).argmax(-1)) for wrong in (2, 4, 6)}
    assert (base["variant"], base["seeds"], base["mcnemar_p_holm"]) == ("base", 2, None)
    assert base["f1_mean"] == pytest.approx((f1[2] + f1[4]) / 2)
    assert base["drop_mean"] == base["drop_ci_low"] == base["drop_ci_high"] == 0
    drops = [100 * (f1[2] - f1[6]), 100 * (f1[4] - f1[6])]
    assert x["drop_mean"] == pytest.approx(np.mean(drops))
    assert x["drop_std"] == pytest.approx(np.std(drops, ddof=1))
    assert x["drop_ci_low"] < x["drop_mean"] < x["drop_ci_high"]
    assert x["f1_ci_low"] < x["f1_mean"] < x["f1_ci_high"]
    # Four sentences differ, two of them in both seeds, all the same way.
    assert x["mcnemar_p_holm"] == pytest.approx(2 * 2**-4)


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([]) == []


def test_quality_equals_sklearn_and_calibration_its_definition():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(500, 2)), rng.integers(0, 2, 500)
    got = metrics.quality(logits, labels)
    guess = logits.argmax(1)
    assert got["f1"] == pytest.approx(f1_score(labels, guess))
    assert got["f1_macro"] == pytest.approx(f1_score(labels, guess, average="macro"))
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, guess))
    confidence = np.exp(logits).max(1) / np.exp(logits).sum(1)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs((guess == labels)[inside].mean() - confidence[inside].mean())
    assert got["ece"] == pytest.approx(expected)


def test_a_sure_and_right_model_is_calibrated():
    assert metrics.expected_calibration_error(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 0])) == 0
