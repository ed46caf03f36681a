"""The protocol on made-up predictors: who is called in which order, what is stored, what is stale."""

import json
import os
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from compress.config.profile import load_profile
from compress.engines.predictor import BATCH_TOLERANCE, Predictor
from compress.files import write_arrays
from compress.measure import evaluation, latency, timing
from compress.measure.coldstart import time_new_lengths
from compress.measure.evaluation import predict_sets
from compress.measure.latency import BLOCK, ROUNDS, best_batch, shares_of, time_latency, time_throughput, warm_up


class Recorded(Predictor):
    """Logits are the mean token, plus `drift` for each further sentence of a batch; calls are written down."""

    precision, threads = "fp32", 1

    def __init__(self, name="", calls=None, drift=0.0):
        self.name, self.drift = name, drift
        self.calls = [] if calls is None else calls
        self.read = []  # the first token of every sentence, in the order of the calls

    def __call__(self, input_ids, attention_mask):
        self.calls.append((self.name, input_ids.shape))
        self.read.extend(input_ids[:, 0].tolist())
        mean = (input_ids * attention_mask).sum(1) / attention_mask.sum(1) + self.drift * (len(input_ids) - 1)
        return np.stack([-mean, mean], 1).astype(np.float32)


class Words:
    """A tokenizer whose ids are the numbers in a text."""

    def encode(self, text):
        return type("Encoding", (), {"ids": [int(word) for word in text.split()]})


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is a second later: counts calls and settles at once."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(ticks)))


def timed(name="", calls=None, texts=40):
    lines = [" ".join(["7"] * (2 + i % 5)) for i in range(texts)]
    return latency.Timed(Recorded(name, calls), Words(), lines)


def test_latency_alternates_in_blocks_and_includes_the_tokenizer_in_times_from_text(clock):
    calls = []
    models = (timed("variant", calls), timed("baseline", calls))
    from_ids, from_text = time_latency(models, calls=2 * BLOCK)
    assert from_ids.shape == from_text.shape == (2 * BLOCK, 2)
    assert (from_text > from_ids).all()
    names = [name for name, _ in calls]
    settled = BLOCK + 1
    expected = ["baseline"] * settled + ["variant"] * 2 * settled + ["baseline"] * settled
    assert names == expected  # both come first equally often
    assert [shape for _, shape in calls[1:6]] == [(1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]


def test_throughput_covers_every_sentence_once_per_model(monkeypatch):
    monkeypatch.setattr(latency, "settle", lambda call: None)
    lines = [" ".join([str(number)] * (2 + number % 5)) for number in range(1, 65)]
    models = [latency.Timed(Recorded(), Words(), lines) for _ in range(2)]
    assert time_throughput(models, sentences=64, sizes=(8, 16), largest=16).shape == (4, 2)
    for model in models:
        times = {number: 1 + (number % 4 == 1) for number in range(1, 65)}  # the first round comes twice
        assert Counter(model.predictor.read) == times
    assert {shape[0] for _, shape in models[0].predictor.calls} == {8}
    assert {shape[0] for _, shape in models[1].predictor.calls} == {16}
    assert time_throughput(models, 64, (8, 16), largest=1).shape == (ROUNDS, 2)
    assert time_throughput(models, 8, (8, 16), largest=16).shape == (1, 2)


def test_nothing_is_timed_on_a_length_or_a_batch_that_is_new_to_the_model(monkeypatch):
    """OpenVINO compiles for each new shape, which took several times as long as a call."""
    model = timed(texts=64)
    calls = model.predictor.calls
    warm_up(model, calls=100)
    best_batch(model, shares_of(model, 64, largest=16), [8, 16])
    known = {shape for _, shape in calls}
    calls.clear()
    time_latency([model], calls=100)
    for size in (8, 16):
        time_throughput([model], 64, [size], largest=16)
    assert {shape for _, shape in calls} <= known


def test_the_best_batch_is_the_one_with_the_least_time_on_what_is_measured(monkeypatch):
    model = timed()
    shares = shares_of(model, 40, largest=20)
    seconds = {4: 3.0, 8: 1.0, 16: 2.0}
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run_batches(rows, size):
        assert rows in shares
        now[0] += seconds[size]

    model.run_batches = run_batches
    assert best_batch(model, shares, [4, 8, 16]) == 8
    assert best_batch(model, shares, [16]) == 16


@pytest.mark.parametrize(("drift", "invariant"), [(0.0, True), (BATCH_TOLERANCE / 100, True), (1.0, False)])
def test_batches_are_trusted_only_where_they_change_nothing(drift, invariant):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 9, 3 + i % 4).tolist() for i in range(300)]
    predictor = Recorded(drift=drift)
    arrays, found = predict_sets(predictor, {"test": rows, "validation": rows[:20]})
    assert found == invariant
    alone = np.array([[-np.mean(row), np.mean(row)] for row in rows], np.float32)
    np.testing.assert_allclose(arrays["logits/test"], alone, atol=16 * BATCH_TOLERANCE / 100)
    assert set(arrays) == {"logits/test", "logits/validation", "logits_batched/test"}
    if not invariant:
        assert np.abs(arrays["logits_batched/test"] - alone).max() > 1


def test_new_lengths_are_called_twice_each_and_once_only():
    predictor = Recorded()
    rows = [[1] * (3 + i % 3) for i in range(9)]
    assert time_new_lengths(predictor, rows).shape == (3, 2)
    lengths = [shape[1] for _, shape in predictor.calls]
    assert sorted(lengths) == [3, 3, 4, 4, 5, 5]
    assert lengths[::2] == lengths[1::2]


def test_a_process_that_dies_costs_no_other_model_its_evaluation(tmp_path, monkeypatch, capsys):
    calls = []

    class Pool(nullcontext):
        def submit(self, _, profile, name, *__):
            calls.append(name)
            job = Future()
            if name == "damaged":
                job.set_exception(ValueError("no model"))
            elif len(calls) <= 3 or name == "deadly":  # the first pool breaks for all jobs that are left
                job.set_exception(BrokenProcessPool("killed"))
            else:
                job.set_result("evaluated")
            return job

    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", lambda *_, **__: nullcontext(Pool()))
    monkeypatch.setattr(evaluation, "read_record", lambda _: SimpleNamespace(status="ok"))
    source, names = tmp_path / "predictor.py", ("damaged", "deadly", "other")
    for folder in (tmp_path / name for name in names):
        folder.mkdir()
        for name in ("artifact.json", "record.json", evaluation.PREDICTIONS):
            (folder / name).touch()
    source.touch()
    os.utime(source, (2**31, 2**31))
    variants = [SimpleNamespace(name=name) for name in names]
    profile = SimpleNamespace(name="x", everything=variants, variant_folder=lambda name, *_: tmp_path / name)
    evaluation.evaluate_stale(profile, 0, "cpu", [source])
    assert calls == ["damaged", "deadly", "other", "deadly", "other"]
    said = capsys.readouterr().out
    for message in ("[1/3] damaged: FAILED: ValueError: no model", "deadly: FAILED: ", "other: evaluated"):
        assert message in said
    for name in ("damaged", "deadly"):
        assert not (tmp_path / name / evaluation.PREDICTIONS).exists(), "the predictions of an older model stay"


def test_a_time_is_stale_when_something_it_depends_on_is_newer(tmp_path, monkeypatch):
    folder = tmp_path / "variant"
    folder.mkdir()
    source, artifact = tmp_path / "latency.py", folder / "artifact.json"
    for path in (source, artifact, folder / "record.json"):
        path.write_text("{}")
        os.utime(path, (1, 1))
    monkeypatch.setattr(evaluation, "read_record", lambda _: type("R", (), {"status": "ok"}))

    def stale(threads=2):
        return timing.needs_timing(timing.timing_file(folder, 0), threads, [source])

    assert stale()
    write_arrays(timing.timing_file(folder, 0), {"about": np.array('{"threads_requested": 2}')})
    assert not stale()
    assert stale(threads=1)
    for path in (source, artifact):
        os.utime(path)
        os.utime(path, (2**31, 2**31))
        assert stale()
        os.utime(path, (1, 1))
    timing.timing_file(folder, 0).write_bytes(b"PK")
    assert stale()


def test_a_cold_start_is_measured_again_with_another_number_of_threads(tmp_path, monkeypatch):
    folder, measured = tmp_path / "variant", []
    folder.mkdir()
    for name in ("artifact.json", "record.json"):
        (folder / name).write_text("{}")
        os.utime(folder / name, (0, 0))  # before this process began

    def measure(_folder, _texts, _device, threads, output):
        measured.append(threads)
        output.write_bytes(b"")
        write_arrays(output, {"about": np.array(json.dumps({"threads_requested": threads}))})

    variant = SimpleNamespace(name="variant", timed=True)
    profile = SimpleNamespace(variants=[variant], variant_folder=lambda *_: folder)
    monkeypatch.setattr(evaluation, "read_record", lambda _: SimpleNamespace(status="ok"))
    monkeypatch.setattr(timing, "load_splits", lambda *_, **__: {"test": {"text": ["a"]}})
    monkeypatch.setattr(timing, "measure_cold", measure)
    for threads in (2, 2, 1):
        timing.measure_cold_starts(profile, threads, "cpu", [])
    assert measured == [2, 1]


def test_a_pass_survives_any_error_of_a_model_but_needs_the_baseline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    profile = load_profile("smoke")
    broken, other = [variant.name for variant in profile.variants if variant.timed][-2:]
    folders = {name: profile.variant_folder(name, 0, "cpu") for name in ("finetuned", broken, other)}
    for folder in folders.values():
        folder.mkdir(parents=True)
        for name in ("artifact.json", "record.json"):
            (folder / name).write_text("{}")

    def time_variant(_profile, variant, *_):
        if variant.name == broken:
            raise RuntimeError("no such kernel")
        return {"latency_seconds": np.ones((2, 2))}, {"threads_requested": 1}

    (folders[broken] / "timing-0.npz").write_bytes(b"of an older model")
    monkeypatch.setattr(timing, "is_built", lambda folder: (folder / "record.json").exists())
    monkeypatch.setattr(timing, "load_splits", lambda *_, **__: {"test": {"text": ["7 7"] * 4}})
    monkeypatch.setattr(timing, "load_timed", lambda *_: timed())
    monkeypatch.setattr(timing, "time_variant", time_variant)
    timing.run_pass(profile, 0, 1, "cpu", [])
    assert f"{broken}: FAILED: RuntimeError: no such kernel" in capsys.readouterr().out
    assert {name for name, of in folders.items() if (of / "timing-0.npz").exists()} == {"finetuned", other}
    assert (folders[broken] / "record.json").exists(), "a model is not lost because it could not be timed"
    for name in ("record.json", "artifact.json"):
        (folders["finetuned"] / name).unlink()
    for number in (0, 1):  # times of an earlier baseline exist, and there are none
        timing.run_pass(profile, number, 1, "cpu", [])
        assert "finetuned is not built, so nothing is timed" in capsys.readouterr().out
    assert not list(tmp_path.rglob("timing-1.npz"))
