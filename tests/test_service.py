"""The service on real sockets with models of the smoke run: responses, limits, bad requests, signals, the page."""

import concurrent.futures
import gzip
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest
from compress.engines.predictor import load as load_model
from compress.engines.predictor import load_tokenizer, predict
from compress.loadtest import generator as load
from compress.loadtest.processes import HOST, free_port
from compress.storage.artifact import read_artifact
from datasets import load_from_disk

TEXT = "A film that grows on you."
STATIC = "ort-int8-static-percentile"
DYNAMIC = "finetuned-ort-int8"
OPENVINO = "ov-int8-throughput"
MODELS = "build/smoke/seed0"
# Runs a script with ONNX models whose calls take longer: the tiny ones are so fast that nothing ever waits.
SLOW = """
import runpy, sys, time
sys.path.insert(0, "scripts")
from compress.engines.ort import OrtPredictor
fast, seconds = OrtPredictor.__call__, float(sys.argv[1])
OrtPredictor.__call__ = lambda *arguments: (time.sleep(seconds), fast(*arguments))[1]
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def slow_service(folder, model, seconds, **options):
    """service() with one worker, which takes so many seconds for every text."""
    python = (sys.executable, "-c", SLOW, str(seconds))
    return service(folder, model, python=python, **{"workers": 1, "max_batch": 1} | options)


@contextmanager
def service(folder, *models, python=(sys.executable,), **options):
    """(port, process) of a ready scripts/serve.py with these variants of the smoke run, or folders."""
    port = free_port()
    command = [*python, "scripts/serve.py", "--profile", "smoke", "--port", str(port)]
    for name in models:
        command += ["--model", str(name)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        last = time.monotonic() + 60
        while get(port, "/readyz")[0] != 200:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < last
            time.sleep(0.02)
        yield port, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def get(port, path):
    return send(port, path, method="GET")[:2]


def send(port, path="/process", body=None, method="POST", media="application/json", **headers):
    """(status, JSON or text, headers); status 0 without a response."""
    headers = {"Content-Type": media} | headers if media else headers
    whole = urllib.request.Request(f"http://{HOST}:{port}{path}", data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(whole, timeout=20) as response:
            status, content, received = response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        status, content, received = error.code, error.read(), error.headers
    except (urllib.error.URLError, ConnectionError):
        return 0, None, {}
    kind = received.get("Content-Type", "")
    return status, json.loads(content) if kind == "application/json" else content.decode(), received


def post(port, value, path="/process"):
    return send(port, path, json.dumps(value).encode())[:2]


@pytest.fixture(scope="module")
def texts(smoke):
    return list(load_from_disk(str(smoke[0] / "build/smoke/data/seed0/splits"))["test"]["text"])


@pytest.fixture(scope="module")
def served(smoke):
    with service(smoke[0], STATIC, DYNAMIC, "service-domain") as running:
        yield running


def expected(folder, name, texts):
    """(labels, scores [texts, classes]) of the repository's own predictor, each text alone."""
    model = folder / MODELS / name
    about = json.loads((model / "artifact.json").read_text())
    ids = [row.ids for row in load_tokenizer(model, about["max_length"]).encode_batch(texts)]
    logits = predict(load_model(model), ids).astype(float)
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    return [about["labels"][i] for i in scores.argmax(-1)], scores


def test_predictions_under_concurrency_equal_those_of_each_text_alone(smoke, served, texts):
    port, _ = served
    texts = [*texts, 'She said "no".', "a\0b"]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda text: post(port, text), texts))
    assert {status for status, _ in responses} == {200}
    for name in (STATIC, DYNAMIC, "service-domain"):
        labels, scores = expected(smoke[0], name, texts)
        assert [response[name]["label"] for _, response in responses] == labels
        np.testing.assert_allclose([response[name]["score"] for _, response in responses], scores.max(-1), atol=2e-5)


def test_predict_takes_one_text_or_many_and_returns_all_scores(served, texts):
    port, _ = served
    status, many = post(port, {"text": texts[:32], "scores": True}, "/predict")
    assert status == 200
    assert len(many["predictions"]) == 32
    for row in many["predictions"]:
        assert set(row) == {STATIC, DYNAMIC, "service-domain"}
        for model in row.values():
            assert sum(model["scores"].values()) == pytest.approx(1, abs=1e-4)
            assert model["score"] == max(model["scores"].values()) == model["scores"][model["label"]]
    status, one = post(port, {"text": texts[0]}, "/predict")
    assert "scores" not in one["predictions"][0][STATIC]
    assert one["predictions"][0][STATIC]["score"] == many["predictions"][0][STATIC]["score"]


def test_info_shows_which_models_are_batched(served, smoke):
    status, info = get(served[0], "/info")
    assert status == 200
    models = {model["name"]: model for model in info["models"]}
    assert models[STATIC]["batch_invariant"]
    assert models[STATIC]["max_batch"] == info["limits"]["max_batch"] > 1
    assert not models[DYNAMIC]["batch_invariant"]
    assert models[DYNAMIC]["max_batch"] == 1
    assert 0 <= models[STATIC]["f1_test"] <= 1
    assert models["service-domain"]["batch_flip_rate"] == 0
    assert models["service-domain"]["labels"] == ["movies", "amazon", "tweets", "nyt"]
    metrics = get(served[0], "/metrics")[1]
    items, batches, seconds, cpu = (
        float(re.search(rf'^{what}_total{{model="{DYNAMIC}"}} (\S+)', metrics, re.M).group(1))
        for what in ("items", "batches", "model_seconds", "model_cpu_seconds")
    )
    assert items == batches
    assert 0 < cpu < 1.1 * seconds + 0.01
    document = get(served[0], "/openapi.json")[1]
    assert {"/process", "/predict", "/livez", "/readyz", "/healthcheck", "/info", "/metrics", "/"} <= set(
        document["paths"]
    )
    for path, entry in document["paths"].items():
        if "get" in entry:
            assert get(served[0], path)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"not json", 400, "bad_json"),
        (b'"half', 400, "bad_json"),
        (b'"\xff\xfe"', 400, "bad_json"),
        (b'"\\ud800"', 400, "bad_json"),
        (b"[" * 5000, 400, "bad_json"),
        (b"1" * 400, 400, "bad_json"),
        (b"", 400, "bad_json"),
        (b"12", 400, "not_a_string"),
        (b"null", 400, "not_a_string"),
        (b'["a"]', 400, "not_a_string"),
        (b'{"text": "a"}', 400, "not_a_string"),
        (b'""', 400, "empty_text"),
        (b'" \\n\\t "', 400, "empty_text"),
        (b'"' + b"a" * 8193 + b'"', 413, "text_too_long"),
        (b'"' + b"a" * 70_000 + b'"', 413, "body_too_large"),
    ],
)
def test_errors_name_the_problem(served, body, status, kind):
    received, content, _ = send(served[0], body=body)
    assert (received, content["error_type"]) == (status, kind)
    assert set(content) == {"error", "error_type"}


@pytest.mark.parametrize(
    ("value", "status", "kind"),
    [
        ("a", 400, "not_an_object"),
        ({}, 400, "not_a_string"),
        ({"text": []}, 400, "empty_text"),
        ({"text": ["a"] * 33}, 413, "too_many_texts"),
        ({"text": "a", "scores": 1}, 400, "not_a_boolean"),
        ({"text": "a", "<b>": 1}, 400, "unknown_key"),
    ],
)
def test_errors_of_predict_name_the_problem(served, value, status, kind):
    received, content = post(served[0], value, "/predict")
    assert (received, content["error_type"]) == (status, kind)
    assert "<b>" not in content["error"]


def test_methods_media_types_and_paths(served):
    port, _ = served
    assert send(port, method="GET")[0] == 405
    assert send(port, "/info", body=b"1")[:2] == (
        405,
        {"error": "Method Not Allowed", "error_type": "method_not_allowed"},
    )
    assert send(port, "/nothing", method="GET")[1]["error_type"] == "not_found"
    for media in ("text/plain", "application/json; charset=latin-1", "application/jsonx"):
        assert send(port, body=b'"a"', media=media)[1]["error_type"] == "media_type"
    for media in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
        assert send(port, body=b'"a"', media=media)[0] == 200


EXTRA_HEADERS = (
    "Expect: 100-continue\r\n",
    "Content-Encoding: gzip\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    f"X-Long: {'a' * 100_000}\r\n",
    "X-Many: a\r\n" * 10_000,
)


def bad_request(chance, texts):
    """The bytes of a bad request, perhaps sent 20 times at once."""
    body = json.dumps(chance.choice(texts)).encode()
    kinds = [
        body[: chance.randrange(len(body))],  # truncated JSON
        bytes(chance.randrange(256) for _ in range(chance.randrange(80))),
        b'"' + bytes([chance.randrange(128, 256)]) + b'"',
        b"[" * chance.randrange(1, 3000),
        b'{"text":' * chance.randrange(1, 300),
        b'"\\u0000"',
        b"9" * chance.randrange(1, 2000),
        b"-1e99999",
        gzip.compress(body),
        '"café"'.encode("latin-1"),
        body,
    ]
    body = chance.choice(kinds)
    length = chance.choice([len(body)] * 6 + [len(body) + 5, max(len(body) - 3, 0), 10**12, -1])
    path = chance.choice(["/process"] * 5 + ["/predict", "/%00", "/..//", "/process?x=%ff"])
    method = chance.choice(["POST"] * 10 + ["PUT", "BREW", "HEAD", "OPTIONS"])
    version = chance.choice(["1.1"] * 5 + ["1.0"])
    extra = chance.choice([""] * 12 + list(EXTRA_HEADERS))
    head = f"{method} {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    raw = f"{head}Content-Length: {length}\r\n{extra}\r\n".encode() + body
    if chance.random() < 0.1:
        return raw[: chance.randrange(1, len(raw))]
    return raw * chance.choice([1] * 9 + [20])


def rss(process):
    with open(f"/proc/{process.pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) * 1024


def test_bad_requests_get_defined_responses_and_leave_nothing_behind(served, texts):
    port, process = served
    chance = random.Random(0)
    descriptors = len(os.listdir(f"/proc/{process.pid}/fd"))

    def send_bad(count):
        statuses = []
        for _ in range(count):
            with socket.create_connection((HOST, port), timeout=20) as client:
                raw = bad_request(chance, texts)
                try:
                    client.sendall(raw)
                    if chance.random() < 0.2:
                        continue  # disconnects without waiting
                    with suppress(OSError):
                        client.shutdown(socket.SHUT_WR)
                    received = b"".join(iter(lambda: client.recv(65536), b""))
                except ConnectionError:
                    continue
                statuses += map(int, re.findall(rb"HTTP/1\.[01] (\d{3}) ", received))
        return statuses

    statuses = send_bad(500)  # nothing reads the service's output: one line per request would block it
    before = rss(process)
    statuses += send_bad(9500)
    assert {status for status in statuses if status >= 500} == set()
    sent = re.findall(r'^requests_total\{.*status="(\d+)"\}', get(port, "/metrics")[1], re.MULTILINE)
    assert all(status < "500" for status in sent)  # also to clients that did not wait
    assert {200, 400, 404, 405} <= set(statuses) <= {100, 200, 400, 404, 405, 408, 413, 415, 429, 431}
    assert post(port, TEXT)[0] == 200
    last = time.monotonic() + 5
    while len(os.listdir(f"/proc/{process.pid}/fd")) > descriptors + 2:
        assert time.monotonic() < last, "connections leak"
        time.sleep(0.1)
    assert rss(process) - before < 30e6
    started = time.perf_counter()
    assert all(post(port, text)[0] == 200 for text in texts[:50])
    assert time.perf_counter() - started < 5


def test_an_openvino_model_gets_lengths_in_multiples_of_8_and_idle_connections_75_seconds(smoke, texts):
    """OpenVINO keeps code for every shape: fewer lengths bound the service's memory."""
    with service(smoke[0], OPENVINO) as (port, _):
        headers = [send(port, body=json.dumps(text).encode())[2] for text in texts[:30]]
        assert {received["keep-alive"] for received in headers} == {"timeout=75"}
        about = get(port, "/metrics")[1]
    folder = smoke[0] / MODELS / OPENVINO
    longest = read_artifact(folder).max_length
    tokenizer = load_tokenizer(folder, longest)
    lengths = [len(tokenizer.encode(text).ids) for text in texts[:30]]
    assert any(length % 8 for length in lengths)
    sent = re.search(r"^padded_tokens_total\{.*\} (\S+)", about, re.MULTILINE)[1]
    assert float(sent) == sum(min(-(-length // 8) * 8, longest) for length in lengths)


def test_an_endless_head_is_rejected(served):
    def send(client):
        client.sendall(b"POST /process HTTP/1.1\r\n")
        for i in range(2000):
            client.sendall(b"X-%d: %s\r\n" % (i, b"a" * 100))
            time.sleep(0.0005)

    with socket.create_connection((HOST, served[0]), timeout=20) as client, pytest.raises(ConnectionError):
        send(client)
    response = exchange(served[0], b"\x16\x03\x01 no HTTP\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 400")
    assert json.loads(response.split(b"\r\n\r\n")[1])["error_type"] == "bad_request"
    assert post(served[0], TEXT)[0] == 200


def exchange(port, sent: bytes, seconds: float = 20) -> bytes:
    """Everything that the server sends until it closes the connection, or sends nothing for `seconds`."""
    received = b""
    with socket.create_connection((HOST, port), timeout=seconds) as client:
        try:
            client.sendall(sent)
            while part := client.recv(65536):
                received += part
        except (TimeoutError, ConnectionError):
            pass
    return received


HEAD = b"POST /process HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"


def test_heads_are_limited_however_they_arrive(served):
    port, process = served
    large = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 90) for i in range(400))
    response = exchange(port, HEAD % (6, large) + b'"good"')
    assert response.startswith(b"HTTP/1.1 431")
    assert json.loads(response.split(b"\r\n\r\n")[1])["error_type"] == "head_too_large"
    assert exchange(port, b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 431")
    # Neither a long body nor many heads count as one head; the server waits for the rest behind them.
    body = b'"' + b"good " * 8000 + b'"'
    assert exchange(port, HEAD % (len(body), b"") + body + HEAD[:20], 1).startswith(b"HTTP/1.1 413")
    many = (HEAD % (6, b"") + b'"good"') * 50
    assert exchange(port, many + HEAD[:20], 2).count(b"HTTP/1.1 200") == 50
    before = rss(process)
    for start in (b"GET /livez", b"POST /process"):
        head = start + b" HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert exchange(port, head + b"0\r\n" + b"a:b\r\n" * 2_000_000, 2).count(b"HTTP/1.1") <= 1
    assert rss(process) - before < 20e6
    assert post(port, TEXT)[0] == 200


def test_garbage_after_a_request_does_not_cost_its_response(served):
    port, _ = served
    assert exchange(port, HEAD % (6, b"") + b'"good"\x00 no request').startswith(b"HTTP/1.1 200")
    chunked = b"POST /process HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert exchange(port, chunked).startswith(b"HTTP/1.1 4")
    assert send(port, "/livez/", method="GET")[0] == 404


def test_no_client_holds_a_connection_by_sending_little_or_reading_nothing(served):
    port, _ = served
    unfinished = b"GET /livez HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"
    clients = [socket.create_connection((HOST, port), timeout=20) for _ in range(3)]
    clients[0].sendall(unfinished)
    clients[1].sendall(b"POST /process HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 60000\r\n\r\n")
    clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # otherwise the kernel keeps reading for a while
    clients[2].setblocking(False)
    started = time.perf_counter()
    while time.perf_counter() < started + 3:
        with suppress(BlockingIOError, ConnectionError):  # the server may read no more, or end the connection
            clients[2].send(b"GET /openapi.json HTTP/1.1\r\n\r\n")
        time.sleep(0.001)  # so that the limit of waiting requests is not what ends the connection
    for client in clients[:2]:
        client.sendall(b"a")  # ends uvicorn's own wait
    here = clients[2].getsockname()[1]
    while any(c.laddr.port == port and c.raddr and c.raddr.port == here for c in psutil.net_connections("tcp")):
        assert time.perf_counter() - started < 20
        time.sleep(0.1)  # without reading, which would let the server continue
    for client in clients:
        client.settimeout(20)
        with suppress(ConnectionError):
            while client.recv(1 << 20):
                pass
        client.close()
    assert time.perf_counter() - started < 20
    assert post(port, TEXT)[0] == 200


def test_a_response_after_the_deadline_is_504(smoke):
    with slow_service(smoke[0], STATIC, 0.1, deadline_ms=100, max_wait_ms=10_000) as (port, process):
        status, content = post(port, {"text": [TEXT] * 32}, "/predict")
        assert (status, content["error_type"]) == (504, "deadline")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_a_slow_sender_ends_at_the_deadline(smoke):
    with service(smoke[0], STATIC, deadline_ms=300) as (port, _):
        head = HEAD % (10, b"")
        with socket.create_connection((HOST, port), timeout=10) as client:
            client.sendall(head + b'"a')
            started = time.perf_counter()
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
            assert time.perf_counter() - started < 2


def test_overload_is_refused_early_and_admitted_requests_finish_in_time(smoke, texts):
    with slow_service(smoke[0], STATIC, 0.01, deadline_ms=1000, max_wait_ms=50) as (port, process):
        requests = load.payloads(texts, HOST, "/process")
        # Two clients, of which none is refused: refusals would take the worker's time. The first calls are slow.
        load.closed_loop(HOST, port, requests, 2, 1.0)
        rate = 3 * load.closed_loop(HOST, port, requests, 2, 1.0).completed_rps
        before = rss(process)
        outcome = load.open_loop(HOST, port, requests, load.poisson(rate, int(3 * rate), 0))
        assert set(outcome.status.tolist()) == {200, 429}
        assert np.mean(outcome.status == 429) > 0.4  # two of three
        assert np.quantile(outcome.latency[outcome.status == 200], 0.99) < 1.0
        assert rss(process) - before < 50e6
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            heads = [
                h
                for status, _, h in pool.map(lambda t: send(port, body=json.dumps(t).encode()), texts * 4)
                if status == 429
            ]
        assert all(int(head["Retry-After"]) >= 1 for head in heads)
        assert post(port, TEXT)[0] == 200


@contextmanager
def full_service(smoke):
    """(port, process, future of the response) of a service that is busy with one long request and refuses others."""
    with (
        slow_service(smoke[0], STATIC, 0.1, deadline_ms=10_000, max_wait_ms=1) as (port, process),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        busy = pool.submit(post, port, {"text": [TEXT] * 32}, "/predict")
        while "waiting_requests 1.0" not in get(port, "/metrics")[1]:
            assert not busy.done()
        yield port, process, busy


def test_a_refusal_comes_before_the_body_and_the_connection_stays_open(smoke):
    with full_service(smoke) as (port, _, busy):
        with socket.create_connection((HOST, port), timeout=10) as client:
            client.sendall(HEAD % (3, b""))
            assert client.recv(1000).startswith(b"HTTP/1.1 429")
            client.sendall(b'"a"' + HEAD % (60_000, b""))
            assert client.recv(1000).startswith(b"HTTP/1.1 429")
            client.sendall(b" " * 20_000)  # the server does not wait for a long body of a refused request
            assert client.recv(1000) == b""
        assert busy.result()[0] == 200


def test_a_client_that_sends_requests_and_reads_nothing_is_disconnected(smoke):
    payload = load.payloads([TEXT], HOST, "/process")[0]
    with full_service(smoke) as (port, process, busy):
        time.sleep(0.5)  # the model's memory grows in its first calls
        before = rss(process)
        with socket.create_connection((HOST, port), timeout=10) as client, pytest.raises(ConnectionError):
            client.sendall(payload * 100_000)
        assert not busy.done()
        assert rss(process) - before < 30e6
        assert busy.result()[0] == 200


def test_sigterm_finishes_every_admitted_request(smoke, texts):
    with slow_service(smoke[0], STATIC, 0.05, deadline_ms=20_000, max_wait_ms=20_000) as (port, process):
        clients = [socket.create_connection((HOST, port), timeout=20) for _ in range(60)]
        for client, payload in zip(clients, load.payloads(texts[:60], HOST, "/process"), strict=True):
            client.sendall(payload)
        waiting = finished = 0
        until = time.monotonic() + 20
        while waiting + finished < 60:
            assert time.monotonic() < until, f"{waiting} wait and {finished} are finished, of 60"
            counts = get(port, "/metrics")[1]
            waiting = float(re.search(r"^waiting_requests (\S+)", counts, re.M).group(1))
            done = re.search(r'^requests_total{path="/process",status="200"} (\S+)', counts, re.M)
            finished = float(done.group(1)) if done else 0
        process.send_signal(signal.SIGTERM)
        assert waiting > 20, "finished too early to be lost: the test would show nothing"
        assert [client.recv(1000)[:12] for client in clients] == [b"HTTP/1.1 200"] * 60
        assert process.wait(25) == 0


def test_sigterm_under_load_loses_no_request(smoke, texts):
    bodies = [json.dumps(text).encode() for text in texts]

    def client(port):
        """The statuses of one request after another, until the service says that it drains."""
        statuses, connection = [], http.client.HTTPConnection(HOST, port, timeout=20)
        for body in itertools.cycle(bodies):
            connection.request("POST", "/process", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert json.loads(response.read())
            statuses.append(response.status)
            if response.status == 503:
                return statuses

    with service(smoke[0], STATIC) as (port, process), concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, port) for _ in range(8)]
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        statuses = [status for running in clients for status in running.result()]
        assert process.wait(25) == 0
    assert statuses.count(200) > 50
    assert set(statuses) == {200, 503}


def test_a_damaged_or_missing_model_ends_the_command_with_a_remedy(smoke, tmp_path):
    folder, _ = smoke
    broken = tmp_path / "broken"
    shutil.copytree(folder / MODELS / STATIC, broken)
    (broken / "model.onnx").write_bytes(b"no model")
    mismeasured = tmp_path / "mismeasured"
    shutil.copytree(folder / MODELS / STATIC, mismeasured)
    (mismeasured / "measured.json").write_text('{"f1_test": "good"}')
    for model, message in (
        (broken, "damaged or replaced"),
        (tmp_path / "none", "no model there"),
        (mismeasured, "measured.json: damaged"),
    ):
        command = [sys.executable, "scripts/serve.py", "--model", str(model), "--port", str(free_port())]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert message in done.stderr


def test_a_second_service_on_the_port_says_so(smoke, served):
    command = [sys.executable, "scripts/serve.py", "--model", f"{MODELS}/{STATIC}", "--port", str(served[0])]
    done = subprocess.run(command, cwd=smoke[0], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "address already in use" in done.stderr


def test_an_onnx_service_starts_fast_and_small_without_torch(smoke):
    started = time.perf_counter()
    with service(smoke[0], STATIC) as (_, process):
        seconds = time.perf_counter() - started
        with open(f"/proc/{process.pid}/maps") as file:
            assert "torch" not in file.read()
        assert rss(process) < 150e6
    assert seconds < 6  # 0.8 s on a quiet machine


def test_the_page_classifies_a_sentence_by_keyboard_and_shows_markup_as_text(served, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"http://{HOST}:{served[0]}/")
    wait = WebDriverWait(browser, 10)
    status = browser.find_element(By.ID, "status")
    wait.until(lambda _: status.text == "Ready.")
    rows = browser.find_elements(By.CSS_SELECTOR, "#rows tr")
    assert [row.get_attribute("data-model") for row in rows] == [STATIC, DYNAMIC, "service-domain"]
    box = browser.switch_to.active_element  # the text box has the focus
    box.send_keys('<img src=x onerror="document.title=1"> ' + TEXT, Keys.ENTER)
    wait.until(lambda _: status.text.startswith("Classified in"))
    response = post(served[0], '<img src=x onerror="document.title=1"> ' + TEXT)[1]
    for row in rows:
        cells = row.find_elements(By.TAG_NAME, "td")
        prediction = response[row.get_attribute("data-model")]
        assert cells[0].text == prediction["label"]
        assert f"{100 * prediction['score']:.1f} %" in cells[1].text
        assert float(cells[2].text) > 0
    assert browser.title == "Compressed BERT classifiers"
    box.clear()
    box.send_keys("   ", Keys.ENTER)
    wait.until(lambda _: status.get_attribute("class") == "error")
    assert "empty or blank" in status.text
    severe = [entry for entry in browser.get_log("browser") if "status of 400" not in entry["message"]]
    assert severe == [] or all("favicon" in entry["message"] for entry in severe)
