"""Batching without a timer: texts wait only while every worker is busy, and similar lengths run together.

The path of a text: the event loop admits it by the expected cost of what already waits; a tokenizer thread cuts it into
word pieces, once per distinct tokenizer; a worker (a thread with its own predictor of every model) runs it in a batch.
A free worker starts at once and never waits for more texts. When several texts wait, a batch holds the oldest and those
of the next `window` that make its word pieces cheapest, and at most one worker's share of the queue.
A request gets the predictions of all models or an error.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue

import numpy as np
from compress.engines.predictor import Predictor, padded, token_ids
from compress.metrics import softmax
from compress.serving.batching import Model, choose_batch
from tokenizers import Tokenizer

TOKENIZERS = 2  # threads; they share the tokenizers, which do not change after loading
NICE = 5  # of the workers' threads (Linux), so that the event loop goes first
STOP_SECONDS = 1.0  # that the last batches may take once the scheduler stops
PACE = 0.05  # weight of the newest batch in the running ratio of real to expected seconds


class Overloaded(Exception):
    """The queue is full; a new request would wait for `seconds`."""

    def __init__(self, seconds: float):
        super().__init__(f"the queue is full for {seconds:.3f} s")
        self.seconds = seconds


class BackendError(Exception):
    """A model or a tokenizer failed on a text."""


class Request:
    """The texts of one client, and the future of their predictions: per text a Prediction by model."""

    __slots__ = ("cost", "future", "left", "predictions", "texts")

    def __init__(self, texts: Sequence[str], models: int, cost: float, future: asyncio.Future):
        self.texts, self.cost, self.future = texts, cost, future
        self.predictions: list[dict[str, Prediction]] = [{} for _ in texts]
        self.left = len(texts) * models


@dataclass(frozen=True, slots=True)
class Prediction:
    scores: np.ndarray  # float64 [classes]
    seconds: float  # of the batch in the model


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One text for one model."""

    number: int  # in the order of arrival
    request: Request
    position: int  # of the text in the request
    ids: Sequence[int]


class Scheduler:
    """`submit` and `stop` belong to the event loop's thread; tokenizer and worker threads do the rest."""

    def __init__(
        self,
        models: Sequence[Model],
        tokenizers: Sequence[Tokenizer],  # all different
        workers: int,
        loop: asyncio.AbstractEventLoop,
        max_tokens: int,
        window: int,
        max_wait: float,  # seconds of expected work in the queue beyond which new requests are refused
        observe: Callable = lambda *batch: None,  # called in a worker's thread with the numbers of every batch
    ):
        self.models, self.tokenizers, self.loop, self.workers = list(models), list(tokenizers), loop, workers
        self.max_tokens, self.window, self.max_wait, self.observe = max_tokens, window, max_wait, observe
        self.queues: dict[str, list[Item]] = {model.name: [] for model in models}
        self.texts: SimpleQueue = SimpleQueue()
        self.numbers = count()
        self.condition = threading.Condition()
        self.stopping = False
        self.backlog = 0.0  # expected seconds of all admitted, unfinished requests
        self.waiting = 0  # admitted, unfinished requests
        self.pace = 1.0  # recent ratio of real to expected seconds
        self.pieces_per_character = 0.3  # of recent texts
        self.threads = [threading.Thread(target=self._tokenize, daemon=True) for _ in range(TOKENIZERS)]
        self.threads += [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(workers)]
        for thread in self.threads:
            thread.start()

    def wait_seconds(self) -> float:
        """The expected wait of a request admitted now."""
        return self.backlog * self.pace / self.workers

    def check(self) -> None:
        """Raises Overloaded if a request that arrives now would wait too long."""
        if (wait := self.wait_seconds()) > self.max_wait:
            raise Overloaded(wait)

    def submit(self, texts: Sequence[str]) -> Request:
        """Admits a request, or raises Overloaded at once."""
        self.check()
        pieces = [2 + len(text) * self.pieces_per_character for text in texts]
        cost = sum(model.cost(min(n, model.max_length)) for model in self.models for n in pieces)
        request = Request(texts, len(self.models), cost, self.loop.create_future())
        with self.condition:
            self.backlog += cost
            self.waiting += 1
        request.future.add_done_callback(lambda _: self._done(request))
        self.texts.put(request)
        return request

    def stop(self) -> None:
        """Ends all threads; unfinished requests stay unfinished, and a model that takes too long is abandoned."""
        with self.condition:
            self.stopping = True
            self.condition.notify_all()
        for _ in range(TOKENIZERS):
            self.texts.put(None)
        until = time.monotonic() + STOP_SECONDS
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))

    def is_complete(self) -> bool:
        """False if a thread has died, so that its work would never be done."""
        return all(thread.is_alive() for thread in self.threads)

    def _done(self, request: Request) -> None:
        """Takes a finished, failed, expired or abandoned request out of the backlog."""
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
            with self.condition:
                self._learn_lengths(request.texts, ids[0])
                for model in self.models:
                    rows = ids[model.tokenizer]
                    self.queues[model.name] += [Item(next(self.numbers), request, i, row) for i, row in enumerate(rows)]
                self.condition.notify(len(request.texts) * len(self.models))

    def _learn_lengths(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Updates pieces_per_character from the texts that the tokenizer has not cut."""
        whole = [i for i, row in enumerate(ids) if len(row) < self.models[0].max_length]
        if characters := sum(len(texts[i]) for i in whole):
            share = sum(len(ids[i]) - 2 for i in whole) / characters  # without [CLS] and [SEP]
            self.pieces_per_character += PACE * (min(share, 1.0) - self.pieces_per_character)

    def _take(self) -> tuple[Model, list[Item]] | None:
        """The next batch, of the model whose first item is the oldest; None when the scheduler stops."""
        with self.condition:
            while not self.stopping:
                for queue in self.queues.values():
                    while queue and queue[0].request.future.done():
                        queue.pop(0)
                heads = [(self.queues[m.name][0].number, i) for i, m in enumerate(self.models) if self.queues[m.name]]
                if not heads:
                    self.condition.wait()
                    continue
                model = self.models[min(heads)[1]]
                if batch := self._take_from(self.queues[model.name], model):
                    return model, batch
        return None

    def _take_from(self, queue: list[Item], model: Model) -> list[Item]:
        """Removes a batch from the queue; empty if every request in the window is over.

        The event loop ends futures without the lock, so that even the first item may be over by now.
        """
        window = [item for item in queue[: self.window] if not item.request.future.done()]
        if not window:
            del queue[: self.window]
            return []
        # At most one worker's share of the queue, because another worker will soon be free.
        share = min(model.max_batch, -(-len(queue) // self.workers))
        call_tokens = model.seconds_per_call / model.seconds_per_token
        chosen = choose_batch(
            [model.padded_length(len(item.ids)) for item in window], share, self.max_tokens, call_tokens
        )
        taken = set(chosen)
        queue[: self.window] = [item for i, item in enumerate(window) if i not in taken]
        return [window[i] for i in chosen]

    def _work(self, worker: int) -> None:
        # The event loop goes first, because an early refusal is a cheap one.
        thread = threading.get_native_id()
        nice = max(NICE, os.getpriority(os.PRIO_PROCESS, thread))  # lowering it is not permitted
        os.setpriority(os.PRIO_PROCESS, thread, nice)
        while (taken := self._take()) is not None:
            model, items = taken
            self._try(model, model.predictors[worker], items)

    def _try(self, model: Model, predictor: Predictor, items: list[Item]) -> None:
        """Runs the items; if the batch fails, each one alone, so that one bad text fails only its own request."""
        try:
            self._run(model, predictor, items)
        except Exception as error:
            if len(items) == 1:
                self._deliver(self._fail, items[0].request, BackendError(f"{model.name}: {error}"))
                return
            for item in items:
                self._try(model, predictor, [item])

    def _run(self, model: Model, predictor: Predictor, items: list[Item]) -> None:
        rows = [item.ids for item in items]
        ids, mask = padded(rows, model.padded_length(max(map(len, rows))))
        started, cpu = time.perf_counter(), time.thread_time()
        scores = softmax(predictor(ids, mask))
        seconds, cpu = time.perf_counter() - started, time.thread_time() - cpu
        if not np.isfinite(scores).all():
            raise BackendError("the scores are not finite")
        # Admission has counted a call for each text of the batch.
        admitted = model.cost(ids.size) + model.seconds_per_call * (len(items) - 1)
        self.pace += PACE * (min(seconds / admitted, 10.0) - self.pace)
        # With more threads, this one's CPU time would be a part of the model's.
        self.observe(model, len(items), int(mask.sum()), ids.size, seconds, cpu if predictor.threads == 1 else 0.0)
        self._deliver(self._finish, model.name, items, scores, seconds)

    def _deliver(self, function, *arguments) -> None:
        self.loop.call_soon_threadsafe(function, *arguments)

    def _finish(self, name: str, items: list[Item], scores: np.ndarray, seconds: float) -> None:
        for item, row in zip(items, scores, strict=True):
            request = item.request
            request.predictions[item.position][name] = Prediction(row, seconds)
            request.left -= 1
            if request.left == 0 and not request.future.done():
                request.future.set_result(request.predictions)

    def _fail(self, request: Request, error: BackendError) -> None:
        if not request.future.done():
            request.future.set_exception(error)
