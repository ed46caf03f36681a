"""Which sentences change their answer under compression."""

import numpy as np

EXAMPLES = 10
EXCERPT = 120  # characters of a sentence that are quoted


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
