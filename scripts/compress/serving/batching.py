"""The cost of a batch, and which waiting texts share the next one.

A call on a batch of b texts padded to n word pieces takes about t(b, n) = seconds_per_call + seconds_per_token * b * n.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from compress.engines.predictor import Predictor

FIT_SHAPES = ((1, 8), (1, 32), (1, 96), (4, 32))  # batch, length
FIT_CALLS = 3
LEAST_CALL = 0.1  # of the shortest shape's seconds: with free calls the scheduler would never batch


@dataclass(frozen=True)
class Model:
    """One model: a predictor per worker, and how its texts may be batched."""

    name: str
    labels: Sequence[str]
    tokenizer: int  # index into the scheduler's tokenizers
    predictors: Sequence[Predictor]
    max_length: int  # word pieces; the tokenizer cuts longer texts
    max_batch: int  # 1 for a model whose predictions depend on the rest of the batch
    seconds_per_call: float
    seconds_per_token: float
    length_step: int = 1

    def padded_length(self, length: int) -> int:
        """The next multiple of length_step, but at most max_length, since the encoder may have no more positions."""
        return min(-(-length // self.length_step) * self.length_step, self.max_length)

    def cost(self, tokens: float) -> float:
        """Expected seconds of one call on so many word pieces, padding included."""
        return self.seconds_per_call + self.seconds_per_token * tokens


def fit_cost(predictor: Predictor, max_length: int) -> tuple[float, float]:
    """(seconds per call, seconds per padded token) of a predictor, by least squares over a few shapes.

    Lengths are cut to max_length, since the encoder has no more positions.
    """
    tokens, seconds = [], []
    for batch, length in FIT_SHAPES:
        length = min(length, max_length)
        ids = np.ones((batch, length), np.int64)
        predictor(ids, ids)
        started = time.perf_counter()
        for _ in range(FIT_CALLS):
            predictor(ids, ids)
        tokens.append(batch * length)
        seconds.append((time.perf_counter() - started) / FIT_CALLS)
    slope, base = np.polyfit(tokens, seconds, 1)
    return max(float(base), LEAST_CALL * seconds[0]), max(float(slope), 1e-7)


def choose_batch(lengths: Sequence[int], max_batch: int, max_tokens: int, call_tokens: float) -> list[int]:
    """The positions of the texts in the next batch, given the lengths of all waiting texts, oldest first.

    Candidates are the runs of texts sorted by length that include the oldest text. The one with the least cost per word
    piece wins, where a call costs as much as call_tokens pieces and padding as much as text. A batch has at most
    max_batch texts and max_tokens pieces, padding included; the oldest text alone may be longer.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    oldest = order.index(0)
    total = list(accumulate((lengths[i] for i in order), initial=0))
    best, least = (oldest, oldest + 1), (call_tokens + lengths[0]) / lengths[0]
    for end in range(oldest + 1, min(len(order), oldest + max_batch) + 1):
        longest = lengths[order[end - 1]]
        for start in range(max(0, end - max_batch), oldest + 1):
            padded = (end - start) * longest
            cost = (call_tokens + padded) / (total[end] - total[start])
            if cost < least and padded <= max_tokens:
                best, least = (start, end), cost
    return sorted(order[slice(*best)])
