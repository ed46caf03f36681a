"""The statistics against scikit-learn, SciPy, statsmodels and their own definitions."""

import time

import numpy as np
import pytest
from compress import metrics
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
