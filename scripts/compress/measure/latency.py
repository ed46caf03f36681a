"""Clocks: latency and throughput of a model and the baseline in one process, and latency over input shapes.

Calls of the two models alternate in blocks, so that a machine that changes its speed changes both. A call ends when
its logits are in the host's memory.
"""

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
from compress.engines.predictor import Predictor, batches
from tokenizers import Tokenizer

BLOCK = 20  # calls in a row per model, so that its weights stay in the caches, as in service
SETTLE_SECONDS = 0.05  # of untimed calls before a block: the other model's idle threads still spin and hold a core
ROUNDS = 8  # at most, of throughput: many short rounds say more than few long ones


class Timed:
    """A loaded model with its tokenizer and what it is timed on."""

    def __init__(self, predictor: Predictor, tokenizer: Tokenizer, texts: Sequence[str]):
        self.predictor, self.tokenizer, self.texts = predictor, tokenizer, texts
        self.ids = [tokenizer.encode(text).ids for text in texts]

    def call(self, i: int) -> tuple[float, float]:
        """(seconds from token ids to logits, seconds from text to logits) for sentence i, alone."""
        i %= len(self.texts)
        began = time.perf_counter()
        ids = self.tokenizer.encode(self.texts[i]).ids
        tokenized = time.perf_counter()
        self.predictor(*single(ids))
        ended = time.perf_counter()
        return ended - tokenized, ended - began

    def run_batches(self, rows: Sequence[Sequence[int]], size: int) -> None:
        self.predictor.many(arrays for _, *arrays in batches(rows, size, by_length=True))


def single(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, attention mask), int64 [1, length]."""
    row = np.array([ids], np.int64)
    return row, np.ones_like(row)


def warm_up(model: Timed, calls: int) -> None:
    """Untimed calls for all sentences that `calls` timed ones will use: some engines compile for each new length."""
    for i in range(min(calls, len(model.texts))):
        model.call(i)


def time_latency(models: Sequence[Timed], calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [calls, models] of single sentences, from token ids and from text, in alternating blocks."""
    from_ids, from_text = np.empty((calls, len(models))), np.empty((calls, len(models)))
    for start in range(0, calls, BLOCK):
        block = range(start, min(start + BLOCK, calls))
        for m, model in turns(models, start // BLOCK):
            settle(lambda i, model=model, block=block: model.call(block[i % len(block)]))
            for call in block:
                from_ids[call, m], from_text[call, m] = model.call(call)
    return from_ids, from_text


def turns(models: Sequence[Timed], number: int) -> list[tuple[int, Timed]]:
    """The models with their index; in every second turn the first one comes first."""
    order = list(enumerate(models))
    return order if number % 2 else order[::-1]


def settle(call: Callable[[int], object]) -> None:
    """Untimed calls for SETTLE_SECONDS, at least one."""
    until = time.perf_counter() + SETTLE_SECONDS
    for i in itertools.count():
        call(i)
        if time.perf_counter() >= until:
            return


def shares_of(model: Timed, sentences: int, largest: int) -> list[list[Sequence[int]]]:
    """The token ids of each round of throughput: every rounds-th sentence.

    A round holds at least `largest` sentences, so that it fills a batch of any size.
    """
    sentences = min(sentences, len(model.ids))
    rounds = max(1, min(ROUNDS, sentences // largest))
    return [model.ids[r:sentences:rounds] for r in range(rounds)]


def best_batch(model: Timed, shares: Sequence[Sequence[Sequence[int]]], sizes: Sequence[int]) -> int:
    """The batch size with the least time for the shares that throughput is measured on.

    Afterwards the model has had every shape of that measurement.
    """
    seconds = {}
    for size in sizes:
        for share in shares:
            model.run_batches(share, size)
        began = time.perf_counter()
        for share in shares if len(sizes) > 1 else ():
            model.run_batches(share, size)
        seconds[size] = time.perf_counter() - began
    return min(seconds, key=seconds.get)


def time_throughput(models: Sequence[Timed], sentences: int, sizes: Sequence[int], largest: int) -> np.ndarray:
    """Seconds [rounds, models] for each share, sorted by length, each model at its batch size."""
    shares = [shares_of(model, sentences, largest) for model in models]
    rounds = len(shares[0])
    seconds = np.empty((rounds, len(models)))
    for r in (0, *range(rounds)):  # the first share twice: its first time is overwritten
        for m, model in turns(models, r):
            share = shares[m][r]
            shortest = [sorted(share, key=len)[: sizes[m]]]
            settle(lambda _, model=model, shortest=shortest, m=m: model.run_batches(shortest[0], sizes[m]))
            began = time.perf_counter()
            model.run_batches(share, sizes[m])
            seconds[r, m] = time.perf_counter() - began
    return seconds


def time_shapes(load: Callable[[int], Predictor], ids: Sequence[Sequence[int]], shapes) -> np.ndarray:
    """Seconds [threads, batches, lengths, calls] for inputs of given shapes: real tokens, one untimed call each.

    load(threads) returns the predictor; `shapes` is the profile's measure.shapes.
    """
    tokens = np.array([token for row in ids for token in row], np.int64)
    axes = (shapes.threads, shapes.batches, shapes.lengths)
    seconds = np.empty([*map(len, axes), shapes.calls])
    for t, threads in enumerate(shapes.threads):
        predictor = load(threads)
        for b, batch in enumerate(shapes.batches):
            for n, length in enumerate(shapes.lengths):
                input_ids = np.resize(tokens, (batch, length))
                mask = np.ones_like(input_ids)
                predictor(input_ids, mask)
                for call in range(shapes.calls):
                    began = time.perf_counter()
                    predictor(input_ids, mask)
                    seconds[t, b, n, call] = time.perf_counter() - began
    return seconds
