"""Quality from raw logits: F1, accuracy, calibration, paired bootstrap, McNemar, Holm. Pure functions on arrays."""

import sys

import numpy as np

ECE_BINS = 15
RESAMPLES = 10_000


def compute_metrics(predictions) -> dict[str, float]:
    """Trainer's hook: the positive class's F1 (macro F1 beyond two classes) and accuracy of EvalPrediction's logits."""
    return _scores(predictions.predictions, predictions.label_ids)


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """f1, accuracy, f1_macro and ece of logits [sentences, classes] against labels [sentences].

    f1 is the positive class's where there are two classes, and the macro average beyond.
    """
    return _scores(logits, labels) | {"ece": expected_calibration_error(softmax(logits), labels)}


def _scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    average = "binary" if logits.shape[-1] == 2 else "macro"
    return _metric(average).compute(predictions=np.argmax(logits, -1), references=labels)


def _metric(average: str):
    """An evaluate.Metric made here: evaluate.load would ask the hub for a script."""
    import datasets
    from sklearn.metrics import accuracy_score, f1_score

    evaluate = _import_evaluate()

    class Classification(evaluate.Metric):
        def _info(self):
            features = datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
            return evaluate.MetricInfo(
                description="F1, accuracy and macro F1", citation="", inputs_description="", features=features
            )

        def _compute(self, predictions, references):
            return {
                "f1": float(f1_score(references, predictions, average=average, zero_division=0)),
                "accuracy": float(accuracy_score(references, predictions)),
                "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
            }

    return Classification(keep_in_memory=True)  # no files in the user's cache


def _import_evaluate():
    """evaluate; kept, if it is the first to ask, from importing transformers, and torch with it: five seconds."""
    if "transformers" in sys.modules:
        import evaluate
    else:
        sys.modules["transformers"] = None  # "not there" to Python's import system
        try:
            import evaluate
        finally:
            del sys.modules["transformers"]
    return evaluate


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, computed in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> list[dict]:
    """Per equal-width bin of confidence that is not empty: sentences, mean confidence and accuracy.

    probabilities [sentences, classes], labels [sentences]. What reliability diagrams show (Guo et al., 2017, fig. 1).
    """
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "bin": int(b),
            "sentences": int(np.sum(bin_of == b)),
            "confidence": float(confidence[bin_of == b].mean()),
            "accuracy": float(correct[bin_of == b].mean()),
        }
        for b in np.unique(bin_of)
    ]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """Guo et al. (2017), eq. 3: sum over equal-width confidence bins of |accuracy - confidence|, weighted by size."""
    found = reliability(probabilities, labels, bins)
    return sum(b["sentences"] * abs(b["accuracy"] - b["confidence"]) for b in found) / len(labels)


def bootstrap_weights(items: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each item is drawn in each resample, float32 [resamples, items] (Efron, 1979).

    The same weights for every variant make each comparison a paired one.
    """
    drawn = np.random.default_rng(seed).integers(0, items, (resamples, items), dtype=np.int32)
    drawn += np.arange(resamples, dtype=np.int32)[:, None] * items
    return np.bincount(drawn.ravel(), minlength=resamples * items).reshape(resamples, items).astype(np.float32)


def bootstrap_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """F1 of every variant in every resample, [resamples, variants], from predictions [variants, items].

    Two classes: the positive class's F1 = 2 TP / (predicted + actual positives); else the mean over classes.
    """
    scores = []
    for c in [1] if classes == 2 else range(classes):
        predicted = (predictions == c).astype(np.float32).T  # [items, variants]
        actual = (labels == c).astype(np.float32)
        both = weights @ (predicted * actual[:, None])
        total = weights @ predicted + (weights @ actual)[:, None]
        scores.append(np.divide(2 * both, total, out=np.zeros_like(both), where=total > 0))
    return np.mean(scores, axis=0, dtype=np.float64)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar_exact(correct: np.ndarray, baseline_correct: np.ndarray) -> float:
    """Two-sided exact p of McNemar (1947): among items that one model alone gets right, is it a fair coin?"""
    from scipy.stats import binomtest

    only_here = int(np.sum(correct & ~baseline_correct))
    only_there = int(np.sum(~correct & baseline_correct))
    if only_here + only_there == 0:
        return 1.0
    return float(binomtest(only_here, only_here + only_there).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for all comparisons of a table (Holm, 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []
