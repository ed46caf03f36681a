"""The sentences whose prediction changes most often under compression."""

import numpy as np

EXAMPLES = 10
EXCERPT = 120  # characters of a sentence that are quoted


def most_flipped(predictions: np.ndarray, baseline: np.ndarray, examples: int = EXAMPLES) -> list[tuple[int, int]]:
    """(sentence, number of variants with another prediction than the baseline) for the sentences with the most of them.

    predictions int [variants, sentences], baseline int [sentences]; of equals the earlier sentence comes first.
    """
    flipped = (predictions != baseline).sum(0)
    return [(int(i), int(flipped[i])) for i in np.argsort(-flipped, kind="stable")[:examples] if flipped[i]]


def excerpt(text: str) -> str:
    """The sentence on one line; a long one is cut after a word."""
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " ..."
