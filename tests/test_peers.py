"""The peers of our service: each predicts what our own predictor does; and the limits of the course's design."""

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from compress.engines.predictor import load, load_tokenizer, predict
from compress.errors import UserError
from compress.loadtest.processes import post_text
from compress.loadtest.servers import PEERS, Fleet, peer_server
from compress.metrics import softmax
from compress.storage.artifact import read_artifact
from conftest import WORDS
from course_server import Course
from starlette.requests import Request

TEXTS = [" ".join(WORDS[i % len(WORDS)] for i in range(start, start + 1 + start % 9)) for start in range(24)]
TEXTS += ["", "GOOD, not bad!", 'a "quoted" play', "фильм 🎬", " ".join(WORDS)]


def expected(folder: Path, texts: list[str]) -> list[tuple[str, float]]:
    about = read_artifact(folder)
    tokenizer = load_tokenizer(folder, about.max_length)
    logits = predict(load(folder), [tokenizer.encode(text).ids for text in texts])
    return [(about.labels[row.argmax()], row.max()) for row in softmax(logits)]


@contextmanager
def started(server, folder):
    with Fleet([server], folder, lambda _: None) as fleet:
        fleet.start()
        yield


def group(leader: int) -> list[psutil.Process]:
    """The running processes of a group."""

    def belongs(process):
        try:
            return os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


@pytest.mark.peers
@pytest.mark.parametrize(
    ("peer", "layout"),
    [(name, layout) for name, about in PEERS.items() for layout in (about.sweep(2)[0], about.sweep(2)[-1])],
)
def test_a_peer_predicts_what_our_predictor_does_and_leaves_no_process(artifact, tmp_path, peer, layout):
    if not PEERS[peer].installed.exists():
        pytest.skip(f"{peer} has no environment; run: make peers-env")
    server = peer_server(peer, peer, [artifact], layout)
    with started(server, tmp_path), ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda text: post_text(server.port, text), TEXTS))
        assert group(server.process.pid)
    assert not group(server.process.pid)
    # The course's service passes the raw body to the model.
    read = [json.dumps(text) for text in TEXTS] if peer == "peer-course" else TEXTS
    wanted = expected(artifact, read)
    assert {label for label, _ in wanted} == {"no", "yes"}
    for response, (label, score) in zip(responses, wanted, strict=True):
        assert response == {"tiny": {"label": label, "score": pytest.approx(score, abs=1e-4)}}


@pytest.mark.peers
def test_a_peer_that_does_not_start_says_why(tmp_path):
    if not PEERS["peer-course"].installed.exists():
        pytest.skip("peer-course has no environment; run: make peers-env")
    server = peer_server("peer-course", "peer-course", [tmp_path], (1, 1, 0))
    with (
        pytest.raises(UserError, match=r"peer-course: ended with status 1(.|\n)*no model there"),
        started(server, tmp_path),
    ):
        pass


def test_a_peer_without_an_environment_names_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr("compress.loadtest.servers.ROOT", tmp_path)
    with pytest.raises(UserError, match="make peers-env"):
        peer_server("peer-mosec", "peer-mosec", [tmp_path], (2, 1, 8))


@pytest.mark.parametrize("peer", PEERS)
def test_peers_have_the_same_engine_and_tokenizer_as_our_service(peer):
    root = Path(__file__).resolve().parents[1]
    ours = (root / "requirements.txt").read_text("utf-8").splitlines()
    theirs = (root / f"scripts/peers/requirements-{PEERS[peer].name}.txt").read_text("utf-8").splitlines()
    pins = [line for line in theirs if not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    if peer == "peer-course":
        assert set(pins) <= set(ours)
    for name in ("onnxruntime==", "tokenizers=="):
        assert [pin for pin in pins if pin.startswith(name)] == [pin for pin in ours if pin.startswith(name)]


def test_a_peers_settings_use_all_cores_of_the_machine():
    for about in PEERS.values():
        for cores in (1, 2, 8):
            assert all(workers * threads == cores for workers, threads, _ in about.sweep(cores))


# The limits of the course's design; our service must pass the opposite of each test.


class Model:
    """Returns its input; every call takes `seconds` and is recorded."""

    def __init__(self, name: str, seconds: float = 0.0):
        self.name, self.seconds, self.calls = name, seconds, []

    def __call__(self, texts):
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.calls.append((start, time.perf_counter(), texts))
        return [{self.name: text} for text in texts]


async def consuming(service, body):
    consumer = asyncio.create_task(service.consume())
    try:
        return await body
    finally:
        consumer.cancel()


def test_course_a_steady_stream_never_closes_a_batch(monkeypatch):
    monkeypatch.setattr("course_server.IDLE_SECONDS", 0.2)  # twenty times longer, for a busy machine
    model = Model("m")
    service = Course([model])

    async def stream():
        waiting = []
        for i in range(50):
            waiting.append(asyncio.create_task(service.classify(str(i))))
            await asyncio.sleep(0.02)
        done = [task for task in waiting if task.done()]
        return done, await asyncio.gather(*waiting)

    done, results = asyncio.run(consuming(service, stream()))
    assert not done, "after five idle intervals the first text has no result yet"
    assert [result["m"] for result in results] == [str(i) for i in range(50)]
    assert len(model.calls) == 1


def test_course_nothing_limits_the_queue_or_a_batch():
    model = Model("m")
    service = Course([model])

    async def flood():
        return await asyncio.gather(*(service.classify(str(i)) for i in range(5000)))

    asyncio.run(consuming(service, flood()))
    assert service.queue.maxsize == 0
    assert [len(texts) for _, _, texts in model.calls] == [5000]


def test_course_a_model_blocks_the_event_loop_and_the_next_model():
    first, second = Model("first", 0.3), Model("second", 0.3)
    service = Course([first, second])

    async def measure():
        result = asyncio.create_task(service.classify("x"))
        ticks = [time.perf_counter()]
        while not result.done():
            await asyncio.sleep(0.001)
            ticks.append(time.perf_counter())
        return np.diff(ticks).max()

    stall = asyncio.run(consuming(service, measure()))
    assert stall >= 0.6, "the loop is blocked while both models run"
    assert second.calls[0][0] >= first.calls[0][1]


def test_course_quotes_and_escapes_of_json_reach_the_model():
    async def body():
        return {"type": "http.request", "body": b'"a \\"fine\\" film"'}

    model = Model("m")
    service = Course([model])
    request = Request({"type": "http", "method": "POST", "headers": []}, body)
    asyncio.run(consuming(service, service.process(request)))
    assert model.calls[0][2] == ['"a \\"fine\\" film"']


def test_course_a_failed_batch_ends_the_service():
    def broken(texts):
        raise ValueError("a model that fails")

    service = Course([broken])

    async def send():
        consumer = asyncio.create_task(service.consume())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.classify("x"), 0.5)
        return consumer.done()

    assert asyncio.run(send()), "nothing takes requests off the queue"
