"""NumPy: classifiers without an encoder, which need no other library than safetensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compress.engines.predictor import Predictor, require_cpu
from compress.storage.artifact import Artifact
from safetensors.numpy import load_file

FILE = "arrays.safetensors"


@dataclass(frozen=True)
class TfidfPredictor(Predictor):
    """Logistic regression on tf-idf, as scikit-learn's TfidfVectorizer computes it with sublinear_tf=True.

    ngrams: int64 [n], ascending; idf: float32 [n]; weight: float32 [rows, n]; intercept: float32 [rows]. There is a row
    per class, but only one for two classes: the logit of the second, where the first has 0.
    """

    ngrams: np.ndarray
    idf: np.ndarray
    weight: np.ndarray
    intercept: np.ndarray
    precision, threads = "fp32", 1

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        rows = [self.scores(ids[mask > 0]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        logits = np.array(rows, np.float32)
        return logits if logits.shape[1] > 1 else np.hstack([np.zeros_like(logits), logits])

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """int64 [length] -> float64 [rows]; n-grams that training did not see have no part in it."""
        found, counts = np.unique(piece_ngrams(ids), return_counts=True)
        places = np.searchsorted(self.ngrams, found)
        known = self.ngrams.take(places, mode="clip") == found
        places = places[known]
        values = (1 + np.log(counts[known])) * self.idf[places]
        return self.weight[:, places] @ values / (np.linalg.norm(values) or 1.0) + self.intercept


def piece_ngrams(ids: Sequence[int]) -> np.ndarray:
    """int64 [2 length - 1]: the word pieces and their bigrams as numbers; i is i, and i j is 2^32 (i + 1) + j."""
    ids = np.asarray(ids, np.int64)
    return np.concatenate([ids, (ids[:-1] + 1 << 32) + ids[1:]])


@dataclass(frozen=True)
class StaticPredictor(Predictor):
    """The mean of a text's vectors, a hidden layer with ReLU, and a linear layer.

    vectors: float16 [pieces, width]; hidden_weight: float32 [neurons, width]; hidden_bias: float32 [neurons]; weight:
    float32 [classes, neurons]; bias: float32 [classes].
    """

    vectors: np.ndarray
    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    precision, threads = "fp32", 1  # einsum uses one thread

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        mask = attention_mask[..., None].astype(np.float32)
        means = (self.vectors[input_ids] * mask).sum(1) / mask.sum(1)
        hidden = np.maximum(np.einsum("bw,nw->bn", means, self.hidden_weight) + self.hidden_bias, 0)
        return np.einsum("bn,cn->bc", hidden, self.weight) + self.bias


PREDICTORS = {"tfidf": TfidfPredictor, "static": StaticPredictor}  # by method


def load_shallow(folder: Path, artifact: Artifact, device: str, threads: int) -> Predictor:
    require_cpu(folder, artifact, device)
    return PREDICTORS[artifact.method](**load_file(folder / FILE))
