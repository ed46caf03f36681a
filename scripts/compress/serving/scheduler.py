"""Batching without a timer: requests wait only while every lane is busy, and what waits is run with its like.

A text travels so: the event loop admits it by the cost of what already waits, a tokenizer thread cuts it into pieces
once per distinct tokenizer, and a lane (a thread with a predictor of its own for every model) takes it in a batch. A
free lane never waits for company. When several wait, a batch is the oldest of them and those of the next `window` with
which its word pieces cost least, calls and padding counted; and at most a lane's share of what waits.
All models of a request answer or none does.
"""

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from queue import SimpleQueue

import numpy as np
from compress.engines.predictor import Predictor, batches, token_ids
from compress.metrics import softmax
from tokenizers import Tokenizer

TOKENIZERS = 2  # threads; they share tokenizers, of which none is changed after it was loaded
NICE = 5  # how far lanes stand behind the event loop, where threads have priorities (Linux)
STOP_SECONDS = 1.0  # that a lane's last batch may take when all is stopped
PACE = 0.05  # weight of the newest batch in the running ratio of real to fitted seconds
FIT_SHAPES = ((1, 8), (1, 32), (1, 96), (4, 32))  # batch, length
FIT_CALLS = 3
LEAST_CALL = 0.1  # of the shortest shape's seconds: a call is never fitted as free, or nothing would be batched


class Overloaded(Exception):
    """What waits would take too long: come back after `seconds`."""

    def __init__(self, seconds: float):
        super().__init__(f"the queue is full for {seconds:.3f} s")
        self.seconds = seconds


class BackendError(Exception):
    """A model could not answer."""


@dataclass(frozen=True)
class Model:
    """What the scheduler knows of one model: its predictors, one per lane, and how it may be batched."""

    name: str
    labels: Sequence[str]
    tokenizer: int  # which of the scheduler's tokenizers
    predictors: Sequence[Predictor]
    max_length: int  # word pieces; what a text has more is cut off
    max_batch: int  # 1 for a model whose answers depend on what else is in the batch
    seconds_per_call: float  # of fit_cost()
    seconds_per_token: float


class Request:
    """Texts that one client sent, and the future of their answers: a list, per text a dict of Answer by model."""

    __slots__ = ("answers", "cost", "future", "left", "texts")

    def __init__(self, texts: Sequence[str], models: int, cost: float, future: asyncio.Future):
        self.texts, self.cost, self.future = texts, cost, future
        self.answers: list[dict[str, Answer]] = [{} for _ in texts]
        self.left = len(texts) * models


@dataclass(frozen=True, slots=True)
class Answer:
    scores: np.ndarray  # float64 [classes]
    seconds: float  # that the batch took in the model


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One text for one model."""

    number: int  # in the order of arrival
    request: Request
    position: int  # of the text in the request
    ids: Sequence[int]


def fit_cost(predictor: Predictor) -> tuple[float, float]:
    """(seconds per call, seconds per padded token) of a predictor, by least squares over a few shapes."""
    tokens, seconds = [], []
    for batch, length in FIT_SHAPES:
        ids = np.ones((batch, length), np.int64)
        predictor(ids, ids)
        started = time.perf_counter()
        for _ in range(FIT_CALLS):
            predictor(ids, ids)
        tokens.append(batch * length)
        seconds.append((time.perf_counter() - started) / FIT_CALLS)
    slope, base = np.polyfit(tokens, seconds, 1)
    return max(float(base), LEAST_CALL * seconds[0]), max(float(slope), 1e-7)


def choose(lengths: Sequence[int], max_batch: int, max_tokens: int, call_tokens: float) -> list[int]:
    """Which of the waiting texts of these lengths, oldest first, make the next batch: the oldest, and its like.

    Of all runs of texts sorted by length that hold the oldest, the one whose word pieces cost least: a call counts as
    much as call_tokens pieces, and a piece of padding as any other. At most max_batch texts, and at most max_tokens
    padded to the longest; the oldest alone may be longer.
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


class Scheduler:
    """`submit` and `stop` belong to the event loop's thread; the rest happens in tokenizer threads and lanes."""

    def __init__(
        self,
        models: Sequence[Model],
        tokenizers: Sequence[Tokenizer],  # each distinct one once
        lanes: int,
        loop: asyncio.AbstractEventLoop,
        max_tokens: int,
        window: int,
        max_wait: float,  # seconds of work that may wait before a new request is turned away
        observe=lambda model, items, tokens, padded, seconds: None,  # told of every batch, in a lane's thread
    ):
        self.models, self.tokenizers, self.loop, self.lanes = list(models), list(tokenizers), loop, lanes
        self.max_tokens, self.window, self.max_wait, self.observe = max_tokens, window, max_wait, observe
        self.queues: dict[str, list[Item]] = {model.name: [] for model in models}
        self.texts: SimpleQueue = SimpleQueue()
        self.numbers = count()
        self.condition = threading.Condition()
        self.stopping = False
        self.backlog = 0.0  # fitted seconds of everything admitted and not answered
        self.waiting = 0  # requests admitted and not answered
        self.pace = 1.0  # real seconds per fitted second, lately
        self.pieces_per_character = 0.3  # of text, lately
        self.threads = [threading.Thread(target=self._tokenize, daemon=True) for _ in range(TOKENIZERS)]
        self.threads += [threading.Thread(target=self._work, args=(lane,), daemon=True) for lane in range(lanes)]
        for thread in self.threads:
            thread.start()

    def wait_seconds(self) -> float:
        """How long a request that is admitted now will wait, by the fitted cost of those before it."""
        return self.backlog * self.pace / self.lanes

    def check(self) -> None:
        """Raises Overloaded if a request that comes now would have to wait too long."""
        if (wait := self.wait_seconds()) > self.max_wait:
            raise Overloaded(wait)

    def submit(self, texts: Sequence[str]) -> Request:
        """Admits a request, or raises Overloaded at once."""
        self.check()
        pieces = [2 + len(text) * self.pieces_per_character for text in texts]
        cost = sum(
            model.seconds_per_call + model.seconds_per_token * min(n, model.max_length)
            for model in self.models
            for n in pieces
        )
        request = Request(texts, len(self.models), cost, self.loop.create_future())
        with self.condition:
            self.backlog += cost
            self.waiting += 1
        request.future.add_done_callback(lambda _: self._done(request))
        self.texts.put(request)
        return request

    def stop(self) -> None:
        """Ends all threads; what still waits is left unanswered, and so is a model that takes too long."""
        with self.condition:
            self.stopping = True
            self.condition.notify_all()
        for _ in range(TOKENIZERS):
            self.texts.put(None)
        until = time.monotonic() + STOP_SECONDS
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))

    def is_whole(self) -> bool:
        """False if a thread has died: what waits for it waits in vain."""
        return all(thread.is_alive() for thread in self.threads)

    def _done(self, request: Request) -> None:
        """However it ended (answered, failed, expired, client gone): it no longer weighs on those that come."""
        with self.condition:
            self.backlog = max(self.backlog - request.cost, 0.0) if self.waiting > 1 else 0.0
            self.waiting -= 1

    def _tokenize(self) -> None:
        while (request := self.texts.get()) is not None:
            if request.future.done():
                continue
            try:
                ids = [token_ids(tokenizer, request.texts) for tokenizer in self.tokenizers]
            except Exception as error:
                self._deliver(self._fail, request, BackendError(f"tokenizer: {error}"))
                continue
            # What was cut tells nothing of how many pieces a character makes.
            whole = [i for i, row in enumerate(ids[0]) if len(row) < self.models[0].max_length]
            characters = sum(len(request.texts[i]) for i in whole)
            share = sum(len(ids[0][i]) for i in whole) / characters if characters else self.pieces_per_character
            with self.condition:
                self.pieces_per_character += PACE * (min(share, 1.0) - self.pieces_per_character)
                for model in self.models:
                    rows = ids[model.tokenizer]
                    self.queues[model.name] += [Item(next(self.numbers), request, i, row) for i, row in enumerate(rows)]
                self.condition.notify(len(request.texts) * len(self.models))

    def _take(self) -> tuple[Model, list[Item]] | None:
        """The next batch: of the model whose first item is the oldest; None when it is time to stop."""
        with self.condition:
            while not self.stopping:
                for queue in self.queues.values():
                    while queue and queue[0].request.future.done():  # expired, failed elsewhere, or the client is gone
                        queue.pop(0)
                heads = [(self.queues[m.name][0].number, i) for i, m in enumerate(self.models) if self.queues[m.name]]
                if not heads:
                    self.condition.wait()
                    continue
                model = self.models[min(heads)[1]]
                queue = self.queues[model.name]
                # The event loop ends futures without the lock: none may be left since the look at the heads.
                window = [item for item in queue[: self.window] if not item.request.future.done()]
                if not window:
                    del queue[: self.window]
                    continue
                # No more than a lane's share of what waits: the next lane is soon free, and it is done sooner.
                share = min(model.max_batch, -(-len(queue) // self.lanes))
                call_tokens = model.seconds_per_call / model.seconds_per_token
                chosen = choose([len(item.ids) for item in window], share, self.max_tokens, call_tokens)
                batch = [window[i] for i in chosen]
                taken = set(chosen)
                queue[: self.window] = [item for i, item in enumerate(window) if i not in taken]
                return model, batch
        return None

    def _work(self, lane: int) -> None:
        # The event loop goes first: the sooner it turns requests away, the less they cost.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (taken := self._take()) is not None:
            model, items = taken
            self._try(model, model.predictors[lane], items)

    def _try(self, model: Model, predictor: Predictor, items: list[Item]) -> None:
        """Answers the items; in a batch that fails, the one that the model can't take must not spoil the others'."""
        try:
            self._run(model, predictor, items)
        except Exception as error:
            if len(items) == 1:
                self._deliver(self._fail, items[0].request, BackendError(f"{model.name}: {error}"))
                return
            for item in items:
                self._try(model, predictor, [item])

    def _run(self, model: Model, predictor: Predictor, items: list[Item]) -> None:
        ((_, ids, mask),) = batches([item.ids for item in items], len(items))
        started = time.perf_counter()
        scores = softmax(predictor(ids, mask))
        seconds = time.perf_counter() - started
        if not np.isfinite(scores).all():
            raise BackendError("the scores are not numbers")
        fitted = model.seconds_per_call + model.seconds_per_token * ids.size
        # A batch answers several requests, each of which was admitted at the price of a call of its own.
        admitted = fitted + model.seconds_per_call * (len(items) - 1)
        self.pace += PACE * (min(seconds / admitted, 10.0) - self.pace)
        self.observe(model, len(items), int(mask.sum()), ids.size, seconds)
        self._deliver(self._answer, model.name, items, scores, seconds)

    def _deliver(self, function, *arguments) -> None:
        self.loop.call_soon_threadsafe(function, *arguments)

    def _answer(self, name: str, items: list[Item], scores: np.ndarray, seconds: float) -> None:
        for item, row in zip(items, scores, strict=True):
            request = item.request
            request.answers[item.position][name] = Answer(row, seconds)
            request.left -= 1
            if request.left == 0 and not request.future.done():
                request.future.set_result(request.answers)

    def _fail(self, request: Request, error: BackendError) -> None:
        if not request.future.done():
            request.future.set_exception(error)
