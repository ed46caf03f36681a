"""The batcher with models of a few lines: what is batched with what, who waits for whom, what a failure may touch."""

import asyncio
import itertools
import threading
import time

import numpy as np
import pytest
from compress.serving.scheduler import BackendError, Model, Overloaded, Request, Scheduler, choose
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

BAD = 9  # the piece that a model chokes on


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


def words_only():
    vocabulary = {"[PAD]": 0, **{str(i): i for i in range(1, 10)}}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    made.pre_tokenizer = Whitespace()
    return made


def model(name, predictor, lanes, max_batch=4):
    return Model(name, ["yes", "no"], 0, [predictor] * lanes, 128, max_batch, 1e-3, 1e-5)


def serving(work, predictors, lanes=1, max_batch=4, window=16, max_tokens=1000, max_wait=10.0, tokenizer=None):
    """Runs the coroutine work(scheduler) against models of these predictors."""

    async def run():
        models = [model(name, predictor, lanes, max_batch) for name, predictor in predictors.items()]
        loop = asyncio.get_running_loop()
        scheduler = Scheduler(models, [tokenizer or words_only()], lanes, loop, max_tokens, window, max_wait)
        try:
            return await asyncio.wait_for(work(scheduler), 20)
        finally:
            scheduler.stop()

    return asyncio.run(run())


def words(count, word="1"):
    return " ".join([word] * count)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=9), st.integers(1, 8), st.integers(1, 512), st.floats(0, 100))
def test_a_batch_is_the_cheapest_run_of_lengths_that_holds_the_oldest_and_keeps_the_limits(
    lengths, most, max_tokens, call
):
    def cost(batch):
        return (call + len(batch) * max(lengths[i] for i in batch)) / sum(lengths[i] for i in batch)

    chosen = choose(lengths, most, max_tokens, call)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) <= most
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    runs = [order[start:end] for start, end in itertools.combinations(range(len(order) + 1), 2)]
    runs = [run for run in runs if 0 in run and len(run) <= most]
    allowed = [run for run in runs if len(run) == 1 or len(run) * max(lengths[i] for i in run) <= max_tokens]
    assert cost(chosen) == pytest.approx(min(map(cost, allowed)))


def test_a_free_call_is_worth_no_padding_and_a_dear_one_fills_the_batch():
    lengths = [10, 90, 10, 12, 80]
    assert choose(lengths, 4, 1000, call_tokens=0) == [0]
    assert choose(lengths, 4, 1000, call_tokens=30) == [0, 2, 3]
    assert len(choose(lengths, 4, 1000, call_tokens=1000)) == 4


def test_a_lone_request_is_answered_at_once_and_alone():
    recorder = Recorder()

    async def work(scheduler):
        started = time.perf_counter()
        answers = await scheduler.submit(["1 2"]).future
        return answers, time.perf_counter() - started

    answers, seconds = serving(work, {"m": recorder})
    assert recorder.batches == [[2]]
    assert answers[0]["m"].scores[0] == pytest.approx(1 / (1 + np.exp(-3)))
    assert seconds < 0.1


def test_what_waits_is_batched_and_a_steady_stream_does_not_hold_a_batch_open():
    recorder = Recorder(seconds=0.05)

    async def work(scheduler):
        first = scheduler.submit([words(5)])
        await asyncio.sleep(0.02)  # the lane is busy: these wait
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


def test_the_oldest_is_in_the_next_batch_however_common_another_length_is():
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
        await until(lambda: recorder.batches)  # the lane is busy
        odd = scheduler.submit([words(60)])
        await until(lambda: len(scheduler.queues["m"]) == 1)
        behind = [scheduler.submit([words(4)]) for _ in range(40)]
        await until(lambda: len(scheduler.queues["m"]) == 41)
        free.set()
        await asyncio.gather(*[request.future for request in [first, odd, *behind]])

    serving(work, {"m": recorder}, window=64)
    assert 60 in recorder.batches[1]
    assert sum(map(len, recorder.batches)) == 42


def test_a_request_that_ends_between_two_looks_at_it_ends_no_lane():
    class Late:
        """As a future that the event loop ends after a lane's first look."""

        looks = 0

        def done(self):
            self.looks += 1
            return self.looks > 2  # one is the tokenizer's

        def add_done_callback(self, _):
            pass

    async def work(scheduler):
        scheduler.texts.put(Request(["1"], 1, 0.0, gone := Late()))
        while gone.looks < 3:
            await asyncio.sleep(0.001)
        await scheduler.submit(["1 2"]).future
        return scheduler.is_whole(), [thread.is_alive() for thread in scheduler.threads]

    whole, alive = serving(work, {"m": Recorder()})
    assert whole
    assert all(alive)


def test_lanes_work_at_the_same_time_and_models_too():
    slow = {"a": Recorder(0.2), "b": Recorder(0.2)}

    async def work(scheduler):
        started = time.perf_counter()
        await scheduler.submit(["1"]).future
        return time.perf_counter() - started

    assert serving(work, slow, lanes=2) < 0.35  # one after the other would take 0.4


def test_one_bad_text_fails_alone():
    recorder = Recorder(seconds=0.05)

    async def work(scheduler):
        requests = [scheduler.submit([text]) for text in ("1 1", "1 2", f"1 {BAD}", "2 2")]
        return await asyncio.gather(*[request.future for request in requests], return_exceptions=True)

    found = serving(work, {"m": recorder})
    assert [isinstance(answer, BackendError) for answer in found] == [False, False, True, False]


def test_all_models_answer_or_none():
    class Broken(Recorder):
        def __call__(self, ids, mask):
            raise RuntimeError("no")

    async def work(scheduler):
        with pytest.raises(BackendError, match="b: no"):
            await scheduler.submit(["1"]).future
        return scheduler.waiting

    assert serving(work, {"a": Recorder(), "b": Broken()}) == 0


def test_the_dead_are_dropped_before_they_cost_anything():
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


def test_a_full_queue_turns_away_and_then_admits_again():
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


def test_a_text_that_is_cut_off_is_not_priced_by_its_length():
    async def work(scheduler):
        await scheduler.submit([words(20_000)]).future
        share = scheduler.pieces_per_character
        scheduler.submit([words(20_000)])
        return scheduler.wait_seconds() / scheduler.pace, share

    cut = words_only()
    cut.enable_truncation(128)
    wait, share = serving(work, {"m": Recorder()}, tokenizer=cut)
    assert wait == pytest.approx(1e-3 + 128e-5)
    assert share == 0.3, "the text says nothing of how many pieces a character makes"


def test_a_text_is_cut_once_per_tokenizer_however_many_models_share_it():
    calls = []

    class Counting:
        def encode_batch(self, texts):
            calls.append(list(texts))
            return words_only().encode_batch(texts)

    async def run():
        models = [model(name, Recorder(), 1) for name in "abc"]
        scheduler = Scheduler(models, [Counting()], 1, asyncio.get_running_loop(), 1000, 16, 10.0)
        try:
            return await scheduler.submit(["1 2", "3"]).future
        finally:
            scheduler.stop()

    answers = asyncio.run(run())
    assert calls == [["1 2", "3"]]
    assert [set(row) for row in answers] == [{"a", "b", "c"}] * 2
