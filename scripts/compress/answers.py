"""What single answers say, from raw logits: how far to trust a confidence, and which sentences change their answer."""

import numpy as np
from compress.metrics import ECE_BINS

EXAMPLES = 10
EXCERPT = 120  # characters of a sentence that are quoted


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> list[dict]:
    """Per equal-width bin of confidence that is not empty: sentences, mean confidence and accuracy.

    probabilities [sentences, classes], labels [sentences]. The bins are those of the expected calibration error,
    which is the mean gap between the two, weighted by sentences (Guo et al., 2017).
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


def most_flipped(answers: np.ndarray, baseline: np.ndarray, examples: int = EXAMPLES) -> list[tuple[int, int]]:
    """(sentence, number of variants that answer it unlike the baseline) for the sentences with the most of them.

    answers int [variants, sentences], baseline int [sentences]; among equals the earlier sentence comes first.
    """
    flipped = (answers != baseline).sum(0)
    return [(int(i), int(flipped[i])) for i in np.argsort(-flipped, kind="stable")[:examples] if flipped[i]]


def excerpt(text: str) -> str:
    """The sentence on one line, cut at a word's end where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " ..."
