"""A cascade of two models: the second classifies the sentences in which the first is not confident.

See Varshney and Baral, Model Cascading (EMNLP 2022). The confidence is the largest class probability; a threshold
decides.
"""

from pathlib import Path

import numpy as np
from compress.engines.predictor import Predictor, load
from compress.metrics import softmax
from compress.storage.artifact import Artifact

PARTS = ("first", "second")  # folders of the two models within the artifact's


class CascadePredictor(Predictor):
    def __init__(self, first: Predictor, second: Predictor, threshold: float):
        self.first, self.second, self.threshold = first, second, threshold
        self.precision = "+".join(dict.fromkeys((first.precision, second.precision)))
        self.threads = max(first.threads, second.threads)  # NumPy's classifiers always run on one
        self.length_step = max(first.length_step, second.length_step)

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """The logits of the second model in the rows that the first one passes on, those of the first in the others."""
        logits = self.first(input_ids, attention_mask)
        unsure = confidence(logits) < self.threshold
        if unsure.any():
            logits[unsure] = self.second(input_ids[unsure], attention_mask[unsure])
        return logits


def confidence(logits: np.ndarray) -> np.ndarray:
    """The largest probability of each row: [sentences, classes] -> float64 [sentences]."""
    return softmax(logits).max(-1)


def load_cascade(folder: Path, artifact: Artifact, device: str, threads: int) -> CascadePredictor:
    first, second = (load(folder / part, device, threads) for part in PARTS)
    return CascadePredictor(first, second, artifact.runtime["threshold"])
