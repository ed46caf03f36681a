"""The scheduler with models of a few lines: the choice of batches, waiting, failures, and admission."""

import asyncio
import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from compress.serving.batching import Model, choose_batch, fit_cost
from compress.serving.scheduler import BackendError, Overloaded, Request, Scheduler
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

BAD = 9  # the piece on which a model fails


class Recorder:
    """A predictor: the first class's logit is the sum of a text's pieces; remembers its batches."""

    precision, threads = "fp32", 1

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.busy, self.most = seconds, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, ids, mask):
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.batches.append(mask.sum(1).tolist())
        time.sleep(self.seconds)
        with self.lock:
            self.busy -= 1
        if (ids == BAD).any():
            raise ValueError("cannot take this piece")
        total = (ids * mask).sum(1)
        return np.stack([total, np.zeros_like(total)], 1).astype(np.float32)


def word_tokenizer():
    vocabulary = {"[PAD]": 0, **{str(i): i for i in range(1, 10)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def model(name, predictor, workers, max_batch=4):
    return Model(name, ["yes", "no"], 0, [predictor] * workers, 128, max_batch, 1e-3, 1e-5)


def serving(work, predictors, workers=1, max_batch=4, window=16, max_tokens=1000, max_wait=10.0, tokenizer=None):
    """Runs the coroutine work(scheduler) against models of these predictors."""

    async def run():
        models = [model(name, predictor, workers, max_batch) for name, predictor in predictors.items()]
        loop = asyncio.get_running_loop()
        scheduler = Scheduler(models, [tokenizer or word_tokenizer()], workers, loop, max_tokens, window, max_wait)
        try:
            return await asyncio.wait_for(work(scheduler), 20)
        finally:
            scheduler.stop()

    return asyncio.run(run())


def words(count, word="1"):
    return " ".join([word] * count)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=9), st.integers(1, 8), st.integers(1, 512), st.floats(0, 100))
def test_a_batch_is_the_cheapest_run_of_lengths_with_the_oldest_within_the_limits(lengths, most, max_tokens, call):
    def cost(batch):
        return (call + len(batch) * max(lengths[i] for i in batch)) / sum(lengths[i] for i in batch)

    chosen = choose_batch(lengths, most, max_tokens, call)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) <= most
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    runs = [order[start:end] for start, end in itertools.combinations(range(len(order) + 1), 2)]
    runs = [run for run in runs if 0 in run and len(run) <= most]
    allowed = [run for run in runs if len(run) == 1 or len(run) * max(lengths[i] for i in run) <= max_tokens]
    assert cost(chosen) == pytest.approx(min(map(cost, allowed)))


def test_batches_are_padded_to_the_steps_of_the_engine_but_not_beyond_the_encoder():
    shapes = []

    def predictor(ids, mask):
        shapes.append(ids.shape)
        return np.stack([mask.sum(1), np.zeros(len(ids))], 1)

    predictor.threads = 1

    async def work(scheduler):
        scheduler.models[0] = replace(scheduler.models[0], length_step=8, max_length=20)
        return [await scheduler.submit([words(n)]).future for n in (3, 8, 9, 17)]

    scores = [row[0]["m"].scores for row in serving(work, {"m": predictor})]
    assert shapes == [(1, 8), (1, 8), (1, 16), (1, 20)]
    assert [np.log(yes / no) for yes, no in scores] == pytest.approx([3, 8, 9, 17])


def test_the_cost_is_measured_on_no_longer_texts_than_the_model_takes():
    shapes = []
    fit_cost(lambda ids, mask: shapes.append(ids.shape), 8)
    assert set(shapes) == {(1, 8), (4, 8)}


def test_a_single_request_runs_at_once_and_alone():
    recorder = Recorder()

    async def work(scheduler):
        started = time.perf_counter()
        predictions = await scheduler.submit(["1 2"]).future
        return predictions, time.perf_counter() - started

    predictions, seconds = serving(work, {"m": recorder})
    assert recorder.batches == [[2]]
    assert predictions[0]["m"].scores[0] == pytest.approx(1 / (1 + np.exp(-3)))
    assert seconds < 0.1


def test_waiting_texts_are_batched_and_a_steady_stream_does_not_delay_a_batch():
    recorder = Recorder(seconds=0.05)

    async def work(scheduler):
        first = scheduler.submit([words(5)])
        await asyncio.sleep(0.02)  # the worker is busy: these wait
        rest = [scheduler.submit([words(n)]) for n in (3, 9, 3, 9, 4)]
        stream = []
        for _ in range(20):
            stream.append(scheduler.submit([words(6)]))
            await asyncio.sleep(0.005)
        await asyncio.gather(*[r.future for r in [first, *rest, *stream]])

    serving(work, {"m": recorder})
    assert recorder.batches[0] == [5]
    assert len(recorder.batches[1]) == 4
    assert max(map(len, recorder.batches)) <= 4
    assert len(recorder.batches) > 5  # batches closed while the stream went on


def test_the_oldest_text_is_in_the_next_batch_even_if_its_length_is_rare():
    free = threading.Event()

    class Held(Recorder):
        def __call__(self, ids, mask):
            logits = super().__call__(ids, mask)
            assert free.wait(10)
            return logits

    recorder = Held()

    async def until(holds):
        while not holds():
            await asyncio.sleep(0.001)

    async def work(scheduler):
        first = scheduler.submit([words(4)])
        await until(lambda: recorder.batches)  # the worker is busy
        odd = scheduler.submit([words(60)])
        await until(lambda: len(scheduler.queues["m"]) == 1)
        behind = [scheduler.submit([words(4)]) for _ in range(40)]
        await until(lambda: len(scheduler.queues["m"]) == 41)
        free.set()
        await asyncio.gather(*[request.future for request in [first, odd, *behind]])

    serving(work, {"m": recorder}, window=64)
    assert 60 in recorder.batches[1]
    assert sum(map(len, recorder.batches)) == 42


def test_a_request_that_ends_between_two_checks_ends_no_worker():
    class Late:
        """Like a future that the event loop ends after a worker's first check."""

        checks = 0

        def done(self):
            self.checks += 1
            return self.checks > 2  # the first is the tokenizer's

        def add_done_callback(self, _):
            pass

    async def work(scheduler):
        scheduler.texts.put(Request(["1"], 1, 0.0, gone := Late()))
        while gone.checks < 3:
            await asyncio.sleep(0.001)
        await scheduler.submit(["1 2"]).future
        return scheduler.is_complete(), [thread.is_alive() for thread in scheduler.threads]

    complete, alive = serving(work, {"m": Recorder()})
    assert complete
    assert all(alive)


def test_workers_and_models_run_at_the_same_time():
    slow = {"a": Recorder(0.2), "b": Recorder(0.2)}

    async def work(scheduler):
        started = time.perf_counter()
        await scheduler.submit(["1"]).future
        return time.perf_counter() - started

    assert serving(work, slow, workers=2) < 0.35  # one after the other would take 0.4


def test_one_bad_text_fails_alone():
    recorder = Recorder(seconds=0.05)

    async def work(scheduler):
        requests = [scheduler.submit([text]) for text in ("1 1", "1 2", f"1 {BAD}", "2 2")]
        return await asyncio.gather(*[request.future for request in requests], return_exceptions=True)

    results = serving(work, {"m": recorder})
    assert [isinstance(result, BackendError) for result in results] == [False, False, True, False]


def test_a_request_gets_all_models_or_an_error():
    class Broken(Recorder):
        def __call__(self, ids, mask):
            raise RuntimeError("no")

    async def work(scheduler):
        with pytest.raises(BackendError, match="b: no"):
            await scheduler.submit(["1"]).future
        return scheduler.waiting

    assert serving(work, {"a": Recorder(), "b": Broken()}) == 0


def test_cancelled_requests_are_dropped_before_they_run():
    recorder = Recorder(seconds=0.1)

    async def work(scheduler):
        first = scheduler.submit(["1"])
        await asyncio.sleep(0.03)
        gone = [scheduler.submit([words(7)]) for _ in range(5)]
        last = scheduler.submit([words(3)])
        await asyncio.sleep(0.02)
        for request in gone:
            request.future.cancel()
        await asyncio.gather(first.future, last.future)
        return scheduler.backlog, scheduler.waiting

    assert serving(work, {"m": recorder}) == (0, 0)
    assert recorder.batches == [[1], [3]]


def test_a_full_queue_refuses_requests_and_later_admits_again():
    async def work(scheduler):
        admitted, waits = [], []
        for _ in range(200):
            try:
                admitted.append(scheduler.submit([words(5)]))
            except Overloaded as error:
                waits.append(error.seconds)
        await asyncio.gather(*[request.future for request in admitted])
        scheduler.submit(["1"])
        return len(admitted), waits

    admitted, waits = serving(work, {"m": Recorder(0.001)}, max_wait=0.02)
    assert 10 < admitted < 100
    assert admitted + len(waits) == 200
    assert min(waits) > 0.02


def test_the_cost_of_a_truncated_text_does_not_depend_on_its_length():
    async def work(scheduler):
        await scheduler.submit([words(20_000)]).future
        share = scheduler.pieces_per_character
        scheduler.submit([words(20_000)])
        return scheduler.wait_seconds() / scheduler.pace, share

    cut = word_tokenizer()
    cut.enable_truncation(128)
    wait, share = serving(work, {"m": Recorder()}, tokenizer=cut)
    assert wait == pytest.approx(1e-3 + 128e-5)
    assert share == 0.3, "a truncated text does not count for the pieces per character"


def test_a_text_is_tokenized_once_per_tokenizer_whatever_the_number_of_models():
    calls = []

    class Counting:
        def encode_batch(self, texts):
            calls.append(list(texts))
            return word_tokenizer().encode_batch(texts)

    async def run():
        models = [model(name, Recorder(), 1) for name in "abc"]
        scheduler = Scheduler(models, [Counting()], 1, asyncio.get_running_loop(), 1000, 16, 10.0)
        try:
            return await scheduler.submit(["1 2", "3"]).future
        finally:
            scheduler.stop()

    predictions = asyncio.run(run())
    assert calls == [["1 2", "3"]]
    assert [set(row) for row in predictions] == [{"a", "b", "c"}] * 2
