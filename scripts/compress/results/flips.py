"""Rows of flips.csv: the test sentences whose prediction changes most often under compression."""

import numpy as np
from compress.metrics import softmax
from compress.results.rows import FlipRow
from compress.results.seedfile import Seed

EXAMPLES = 10
EXCERPT = 120  # characters of a sentence that are quoted


def flip_rows(seed: Seed, baseline: str) -> list[FlipRow]:
    """The sentences for which most trained variants predict another class than the baseline; of equals the earlier."""
    others = [name for name, entry in seed.evaluated.items() if entry.record.trained and name != baseline]
    if not others or baseline not in seed.evaluated:
        return []
    probabilities = softmax(seed.entries[baseline].logits["test"])
    base = probabilities.argmax(-1)
    flipped = sum((seed.entries[name].logits["test"].argmax(-1) != base).astype(int) for name in others)
    return [
        FlipRow(
            sentence=int(i),
            text=excerpt(seed.texts[i]),
            label=seed.classes[seed.labels["test"][i]],
            answer=seed.classes[base[i]],
            confidence=float(probabilities[i].max()),
            flipped=int(flipped[i]),
            variants=len(others),
        )
        for i in np.argsort(-flipped, kind="stable")[:EXAMPLES]
        if flipped[i]
    ]


def excerpt(text: str) -> str:
    """The sentence on one line; a long one is cut after a word."""
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " ..."
