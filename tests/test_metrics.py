"""The statistics against scikit-learn, SciPy, statsmodels and their own definitions."""

import itertools

import numpy as np
import pytest
from compress.metrics import compute_metrics, quality, softmax
from compress.results import statistics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from transformers import EvalPrediction

bits = arrays(np.int64, 60, elements=st.integers(0, 1))


@given(bits, bits)
def test_weighted_f1_equals_sklearn_on_the_resampled_items(predictions, labels):
    weights = statistics.bootstrap_weights(60, resamples=5)
    got = statistics.bootstrap_f1(predictions[None], labels, weights, 2)[:, 0]
    macro = statistics.bootstrap_f1(predictions[None], labels, weights, 2, macro=True)[:, 0]
    for row, value, average in zip(weights, got, macro, strict=True):
        items = np.repeat(np.arange(60), row.astype(int))
        truth, guess = labels[items], predictions[items]
        assert value == pytest.approx(f1_score(truth, guess, zero_division=0), abs=1e-6)
        assert average == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0), abs=1e-6)


def test_weighted_f1_is_macro_beyond_two_classes():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    expected = pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-12)
    assert statistics.f1_of(predictions, labels, 3) == expected
    assert statistics.f1_of(predictions, labels, 4) == expected, "a class without sentences does not count"


def test_bootstrap_weights_draw_every_resample_in_full_and_repeat():
    weights = statistics.bootstrap_weights(50, resamples=100)
    assert (weights.sum(1) == 50).all()
    assert (weights == statistics.bootstrap_weights(50, resamples=100)).all()
    assert (weights != statistics.bootstrap_weights(50, resamples=100, seed=1)).any()


def test_bootstrap_weights_draw_whole_groups():
    groups = [3, 1, 40, 6]
    weights = statistics.bootstrap_weights(50, resamples=1000, groups=groups)
    counts = weights[:, [0, 3, 4, 44]].astype(int)  # of the first item of each group
    assert (counts.sum(1) == len(groups)).all()
    assert (np.repeat(counts, groups, axis=1) == weights).all()
    alone = statistics.bootstrap_weights(50, resamples=10, groups=[1] * 50)
    assert (alone == statistics.bootstrap_weights(50, resamples=10)).all()


def test_only_an_interval_over_documents_holds_the_true_drop_where_their_sentences_err_together():
    """Half of the documents are hard for the variant: 60 documents of 10 sentences."""
    rng = np.random.default_rng(0)
    trials, documents, size, true_drop = 400, 60, 10, 0.1
    labels = np.arange(documents * size) % 2
    hard = np.repeat(rng.random((trials, documents)) < 0.5, size, axis=1)
    base = labels ^ (rng.random(hard.shape) < 0.1)
    variant = labels ^ (rng.random(hard.shape) < np.where(hard, 0.35, 0.05))

    def coverage(groups) -> float:
        weights = statistics.bootstrap_weights(len(labels), 400, groups=groups)
        drops = np.subtract(*(statistics.bootstrap_f1(of_model, labels, weights, 2).T for of_model in (base, variant)))
        low, high = np.quantile(drops, [0.025, 0.975], axis=1)
        return np.mean((low < true_drop) & (true_drop < high))

    assert 0.91 < coverage([size] * documents) < 0.99
    assert coverage(None) < 0.85


def test_the_percentile_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    samples = statistics.bootstrap_f1(predictions[None], labels, statistics.bootstrap_weights(300), 2)[:, 0]
    theirs = bootstrap(
        (labels, predictions),
        lambda truth, guess: 2 * (truth & guess).sum() / (truth.sum() + guess.sum()),
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert statistics.interval(samples) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0), (3, 0), (3, 0.02), (3, 0.03)])
def test_intervals_hold_the_true_drop_as_often_as_they_say(seeds, spread):
    """300 sentences per seed: their sampling gives a drop the standard deviation 0.029, the trainings `spread`."""
    rng = np.random.default_rng(seeds)
    labels, trials, error, true_drop = np.arange(300) % 2, 1000, 0.14, 0.02  # F1 = 1 - error for balanced classes
    drops = []
    for seed in range(seeds):
        weights = np.vstack([np.ones((1, 300), np.float32), statistics.bootstrap_weights(300, 600, seed)])
        errors = np.stack([np.full(trials, error), error + true_drop + rng.normal(0, spread, trials)])
        predictions = labels ^ (rng.random((2, trials, 300)) < errors[..., None])
        base, variant = (statistics.bootstrap_f1(of_model, labels, weights, 2).T for of_model in predictions)
        drops.append(base - variant)
    means = [statistics.mean_over_seeds(of_trial, same_sentences=False) for of_trial in np.stack(drops, 1)]
    _, low, high, upper = np.transpose(means)
    assert 0.91 < np.mean((low < true_drop) & (true_drop < high)) < 0.99
    assert 0.91 < np.mean(true_drop < upper) < 0.99


@pytest.mark.parametrize("spread", [0, 1, 2, 6])
def test_intervals_of_seeds_that_share_sentences_hold_the_true_drop_as_often_as_they_say(spread):
    """The sampling of the sentences gives all seeds a common error of 1, the trainings one of `spread` each."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, (2000, 1, 400))  # trials, seeds, observed and resamples
    drops = rng.normal(0, spread, (2000, 3, 1)) + common[..., :1] + np.where(np.arange(400), common, 0)
    _, low, high, upper = np.transpose(
        [statistics.mean_over_seeds(of_trial, same_sentences=True) for of_trial in drops]
    )
    assert 0.92 < np.mean((low < 0) & (high > 0)) < 0.975
    assert 0.92 < np.mean(upper > 0) < 0.975


def test_seeds_of_the_same_sentences_do_not_make_them_more():
    rng = np.random.default_rng(0)
    of_one = np.concatenate([[1.0], rng.normal(1, 0.5, 20_000)])
    together, apart = (statistics.mean_over_seeds([of_one] * 3, same) for same in (True, False))
    assert together.mean == apart.mean == 1
    assert (together.high - together.low) / 3.92 == pytest.approx(0.5, rel=0.02), "equal drops on the same sentences"
    assert (apart.high - apart.low) / 3.92 == pytest.approx(0.5 / 3**0.5, rel=0.02)
    spread = [np.full(20_000, drop) for drop in (0.0, 1.0, 2.0)]
    alone = statistics.mean_over_seeds(spread, same_sentences=True)
    assert alone.high - alone.mean == pytest.approx(4.3027 / 3**0.5, rel=1e-4), "Student's t of three values"
    resampled = statistics.mean_over_seeds(spread, same_sentences=False)
    assert (resampled.low, resampled.high) == (0, 2), "the seeds are resampled, too"


@given(bits.map(lambda a: a.astype(bool)), bits.map(lambda a: a.astype(bool)))
def test_mcnemar_of_one_seed_equals_statsmodels(one, other):
    table = [[np.sum(one & other), np.sum(one & ~other)], [np.sum(~one & other), np.sum(~one & ~other)]]
    expected = min(mcnemar(table, exact=True).pvalue, 1)
    assert statistics.sign_flip_p(one.astype(int) - other) == pytest.approx(expected, abs=1e-12)


@given(arrays(bool, (3, 8)), arrays(bool, (3, 8)))
def test_pooled_mcnemar_counts_every_way_to_swap_model_and_baseline_on_an_item(one, other):
    differences = one.sum(0) - other.sum(0)
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    as_far = np.abs(signs @ differences) >= abs(differences.sum())
    assert statistics.sign_flip_p(differences) == pytest.approx(as_far.mean())


def test_holm_equals_statsmodels():
    p_values = [*np.random.default_rng(0).random(15) ** 4, 0.0, 0.5, 0.5, 1.0]  # ties, too
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert statistics.holm([]) == []


def test_quality_equals_sklearn_and_calibration_its_definition():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(500, 2)), rng.integers(0, 2, 500)
    got = quality(logits, labels)
    guess = logits.argmax(1)
    assert got["f1"] == pytest.approx(f1_score(labels, guess))
    assert got["f1_macro"] == pytest.approx(f1_score(labels, guess, average="macro"))
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, guess))
    assert compute_metrics(EvalPrediction(logits, labels)) == got
    expected = calibration_error_by_definition(logits, labels)
    assert statistics.expected_calibration_error(softmax(logits), labels) == pytest.approx(expected)


def calibration_error_by_definition(logits, labels):
    confidence = np.exp(logits).max(1) / np.exp(logits).sum(1)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            right = (logits.argmax(1) == labels)[inside].mean()
            expected += inside.mean() * abs(right - confidence[inside].mean())
    return expected


def test_a_sure_and_right_model_is_calibrated():
    probabilities = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert statistics.expected_calibration_error(probabilities, np.array([1, 0])) == 0


def test_a_speedup_is_the_median_ratio_and_its_interval_the_range_of_the_passes():
    passes = [np.array([[1.0, 2.0], [1.0, 4.0], [2.0, 6.0]]), np.array([[1.0, 5.0], [1.0, 5.0]])]
    assert statistics.paired_speedup(passes) == (4.0, 3.0, 5.0)
    assert statistics.paired_speedup(passes[:1]) == (3.0, None, None)
