"""The texts that a student learns from: training sentences, pieces of them, and unlabelled text."""

import math
import random
from collections.abc import Mapping, Sequence

from compress.data.card import held_out
from compress.errors import Skip

LEARNING_SPLITS = ("train", "unlabelled")  # splits that a student may learn from; in order of importance
PARTS = (*LEARNING_SPLITS, "augmented")


def learning_data(splits: Mapping) -> dict[str, tuple[list[str], list[int]]]:
    """(texts, labels) of each of LEARNING_SPLITS that the data have, without the held-out texts."""
    first = {"train": 0, "unlabelled": len(held_out(splits))}
    return {
        name: (list(splits[name]["text"][first[name] :]), list(splits[name]["label"][first[name] :]))
        for name in LEARNING_SPLITS
        if name in splits
    }


def transfer_set(splits: Mapping, seed: int, parts: Sequence[str]) -> list[tuple[list[str], list[int]]]:
    """(texts, labels) of every part; the label is -1 for texts that only the teacher labels.

    splits: Datasets with the columns text and label. Held-out texts are in no part. Raises Skip for a part that the
    data don't have.
    """
    if "unlabelled" in parts and "unlabelled" not in splits:
        raise Skip("the profile's data have no unlabelled text")
    known = learning_data(splits)
    if "augmented" in parts:
        copies = augment(known["train"][0], seed)
        known["augmented"] = copies, [-1] * len(copies)
    return [known[part] for part in parts]


def augment(texts: Sequence[str], seed: int) -> list[str]:
    """One copy of each text, cut to a random run of 50 to 100 % of its words and at least three words."""
    chance = random.Random(seed)
    copies = []
    for text in texts:
        words = text.split()
        shortest = min(len(words), max(3, math.ceil(len(words) / 2)))
        length = chance.randint(shortest, len(words))
        start = chance.randint(0, len(words) - length)
        copies.append(" ".join(words[start : start + length]))
    return copies
