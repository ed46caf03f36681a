"""F1 and accuracy from raw logits by the evaluate library, for trainings and choices; probabilities.

The tables' F1 and its intervals come from results/statistics.py.

datasets, scikit-learn and evaluate are imported where F1 is computed: the service needs probabilities alone.
"""

import sys
import tempfile

import numpy as np


def compute_metrics(predictions) -> dict[str, float]:
    """The Trainer's hook: quality() of an EvalPrediction."""
    return quality(predictions.predictions, predictions.label_ids)


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """f1, accuracy and f1_macro of logits [sentences, classes] against labels [sentences].

    f1 is that of the positive class for two classes, and the macro average for more.
    """
    average = "binary" if logits.shape[-1] == 2 else "macro"
    # The library makes an empty folder even for a metric in memory: in the home by default, which may be read-only.
    with tempfile.TemporaryDirectory() as folder:
        return _metric(average, folder).compute(predictions=np.argmax(logits, -1), references=labels)


def _metric(average: str, folder: str):
    """An evaluate.Metric defined here, because evaluate.load would download a script from the hub."""
    import datasets  # noqa: PLC0415
    from sklearn.metrics import accuracy_score, f1_score  # noqa: PLC0415

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

    return Classification(keep_in_memory=True, cache_dir=folder)


def _import_evaluate():
    """The evaluate module, without the import of transformers and torch that takes it five seconds."""
    if "transformers" in sys.modules:
        import evaluate  # noqa: PLC0415
    else:
        sys.modules["transformers"] = None  # None means "not installed" to Python's import system
        try:
            import evaluate  # noqa: PLC0415
        finally:
            del sys.modules["transformers"]
    return evaluate


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, computed in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
