"""The service's HTTP on real sockets, with a tiny model: Upgrade, encodings, connections and their limits, its URL."""

import gzip
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress

import pytest
from compress.errors import UserError
from compress.loadtest.processes import HOST, cpu_seconds, free_port
from compress.serving.limits import (
    EXTRA_CONNECTIONS,
    GRACE_SECONDS,
    LINGER_SECONDS,
    MAX_PIPELINED,
    OWN_FILES,
    Options,
)
from compress.serving.loading import load_models
from conftest import ROOT
from test_service import HEAD, exchange, get, post, send, service, slow_service

BODY = b'"good"'
GOOD = HEAD % (len(BODY), b"") + BODY
ALIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.fixture(scope="module")
def served(artifact):
    with service(ROOT, artifact) as (port, _):
        yield port


@pytest.fixture(scope="module")
def slow(artifact):
    with slow_service(ROOT, artifact, 0.1, deadline_ms=10_000, max_wait_ms=10_000) as (port, _):
        yield port


def test_an_offer_of_another_protocol_is_ignored(served):
    chunked = b"6\r\n" + BODY + b"\r\n0\r\n\r\n"
    offers = [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n",
        HEAD % (len(BODY), OFFER) + BODY,
        HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") % OFFER + chunked,
        GOOD,
    ]
    # The connection stays open, and the body of each request is read.
    assert exchange(served, b"".join(offers), 1).count(b"HTTP/1.1 200") == 4
    assert exchange(served, offers[0] * MAX_PIPELINED, 1).count(b"HTTP/1.1 200") == MAX_PIPELINED
    with socket.create_connection((HOST, served), timeout=20) as client:
        for byte in offers[1]:
            client.sendall(bytes([byte]))
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    closing = offers[1].replace(b"Upgrade, HTTP2-Settings", b"Upgrade, close")
    assert exchange(served, closing * 2).count(b"HTTP/1.1 200") == 1
    assert exchange(served, offers[1][:-6].replace(b"Host: x", b"X: " + b"a" * 20_000)).startswith(b"HTTP/1.1 431")
    received = exchange(served, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n" * 2)
    assert received.startswith(b"HTTP/1.1 405")
    assert received.count(b"HTTP/1.1") == 1


def test_a_url_without_a_path_is_400(served):
    assert exchange(served, b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_connection_queues_a_limited_number_of_requests(slow):
    received = exchange(slow, GOOD + ALIVE * 1000)
    assert received.count(b"HTTP/1.1 200") == 1 + MAX_PIPELINED


def test_a_compressed_body_is_415(served):
    body = gzip.compress(BODY)
    status, content, headers = send(served, body=body, **{"Content-Encoding": "gzip"})
    assert (status, content["error_type"]) == (415, "encoding")
    assert headers["Accept-Encoding"] == "identity"
    chunked = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: gzip, chunked") % b""
    received = exchange(served, chunked + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n", 1)
    assert received.startswith(b"HTTP/1.1 415")
    assert send(served, body=BODY, **{"Content-Encoding": "identity"})[0] == 200


def test_a_list_names_the_text_that_is_wrong(served):
    assert post(served, {"text": ["a", 1]}, "/predict")[1]["error"] == "text 2 must be a JSON string"
    assert post(served, {"text": ["a", "b", " "]}, "/predict")[1]["error"] == "text 3 is empty or blank"
    assert post(served, {"text": 1}, "/predict")[1]["error"] == "the text must be a JSON string"


def half_closed(port, sent):
    """What a client receives that ends its half of the connection after it has sent everything."""
    received = b""
    with socket.create_connection((HOST, port), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            received += part
    return received


def test_a_client_that_ends_its_half_of_the_connection_gets_its_responses(served, slow):
    assert half_closed(served, GOOD).startswith(b"HTTP/1.1 200")
    assert half_closed(served, GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")).startswith(b"HTTP/1.1 200")
    assert half_closed(served, GOOD * 3 + b"GET /li").count(b"HTTP/1.1 200") == 3
    assert half_closed(served, GOOD[:-1]) == b""
    responses = re.findall(rb"HTTP/1.1 (\d+)", half_closed(slow, GOOD * 3))
    assert responses.count(b"200") == 3
    assert set(responses) == {b"100", b"200"}


@pytest.mark.parametrize("sent", [GOOD, GOOD * 2], ids=["one request", "two, of which the second waits"])
def test_the_requests_of_a_client_that_is_gone_are_dropped(slow, sent):
    def counted(pattern):
        return sum(map(float, re.findall(pattern, get(slow, "/metrics")[1], re.M)))

    patterns = r"^items_total{.*} (\S+)", r'^requests_total{path="/process",status="disconnected"} (\S+)'
    before = list(map(counted, patterns))
    for _ in range(30):
        with socket.create_connection((HOST, slow), timeout=20) as client:
            client.sendall(sent)
    last = time.monotonic() + 10
    while counted(r"^waiting_requests (\S+)"):
        assert time.monotonic() < last
    run, dropped = (counted(pattern) - count for pattern, count in zip(patterns, before, strict=True))
    assert run <= 10
    assert dropped >= 20


def response_of(client):
    """A whole JSON response; less if the connection ends before."""
    received = b""
    while not received.endswith(b"}") and (part := client.recv(4096)):
        received += part
    return received


def send_at(clients, moments):
    """The responses of clients that send a request at these moments, in order."""
    for client, moment in zip(clients, moments, strict=True):
        time.sleep(max(0, moment - time.monotonic()))
        client.sendall(ALIVE)
    return list(map(response_of, clients))


def test_an_idle_connection_is_never_closed_while_a_request_is_on_its_way(artifact):
    """200 clients send when the advertised time ends, and when the connection closes: all get a response."""
    with ExitStack() as stack:
        port, process = stack.enter_context(service(ROOT, artifact, keep_alive_s=1))
        clients = [stack.enter_context(socket.create_connection((HOST, port), timeout=20)) for _ in range(200)]
        started = time.monotonic() + 0.1
        moments = [started + 0.001 * k for k in range(200)]
        responses = send_at(clients, moments)
        assert all(b"\r\nkeep-alive: timeout=1\r\n" in response for response in responses)

        moments = [started + 1 + 0.0015 * (k - 100) + 0.001 * k for k in range(200)]  # 0.85 to 1.15 s idle
        assert {response[:12] for response in send_at(clients, moments)} == {b"HTTP/1.1 200"}
        read = time.monotonic()

        # The service stops while its timers end and requests arrive: it sees both at once, and must read first.
        process.send_signal(signal.SIGSTOP)
        for client in clients:
            client.sendall(ALIVE)
        time.sleep(read + 1 + GRACE_SECONDS + 0.1 - time.monotonic())
        process.send_signal(signal.SIGCONT)
        assert {response_of(client)[:12] for client in clients} == {b"HTTP/1.1 200"}

        idle = time.monotonic()
        assert {client.recv(1) for client in clients} == {b""}  # a clean end
        assert GRACE_SECONDS < time.monotonic() - idle < 1 + GRACE_SECONDS + 2


def test_a_request_on_its_way_while_the_service_ends_gets_503(artifact):
    with service(ROOT, artifact) as (port, process), socket.create_connection((HOST, port), timeout=20) as client:
        assert [response.startswith(b"HTTP/1.1 200") for response in send_at([client], [0])] == [True]
        process.send_signal(signal.SIGTERM)
        with suppress(ConnectionError):
            while True:  # until no new client is accepted
                socket.create_connection((HOST, port), timeout=20).close()
                time.sleep(0.01)
        time.sleep(LINGER_SECONDS / 5)
        client.sendall(GOOD)
        response = response_of(client)
        assert response.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in response
        assert client.recv(1) == b""
        assert process.wait(5) == 0


def test_beyond_the_limit_of_files_clients_get_503_probes_work_and_the_service_recovers(artifact):
    limited = ("bash", "-c", 'ulimit -n 256 && ulimit -Sn 100 && exec "$0" "$@"', sys.executable)
    with service(ROOT, artifact, python=limited) as (port, process):
        most = get(port, "/info")[1]["limits"]["connections"]
        assert most == 256 - OWN_FILES - EXTRA_CONNECTIONS
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection((HOST, port), timeout=5)) for _ in range(300)]
            responses = send_at(clients, [0] * 300)  # then they stay, idle
            assert {response[:12] for response in responses} <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
            assert sum(b"connection: close" not in response for response in responses) == most
            used, started = cpu_seconds(process), time.monotonic()
            for _ in range(10):
                assert post(port, "good")[1]["error_type"] == "too_many_connections"
                assert get(port, "/readyz")[0] == 200
            with socket.create_connection((HOST, port), timeout=5) as silent:
                assert response_of(silent).startswith(b"HTTP/1.1 503")
            assert time.monotonic() - started < 2
            time.sleep(2)
            assert cpu_seconds(process) - used < 0.5
        last = time.monotonic() + 5
        while post(port, "good")[0] != 200:
            assert time.monotonic() < last


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_service_prints_a_url_that_works_whatever_streams_are_closed(artifact, tmp_path, host):
    if host == "::1":
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind((host, 0))
            except OSError:
                pytest.skip("this machine has no IPv6")
    command = f"exec {sys.executable} scripts/serve.py --model {artifact} --host {host} --port {free_port()} <&- 2>&-"
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = re.match(r"ready: (http:\S+) serves tiny\n", process.stdout.readline()).group(1)
        request = urllib.request.Request(f"{url}process", BODY, {"Content-Type": "application/json"})
        for _ in range(3):  # every connection that is closed
            with urllib.request.urlopen(request, timeout=20) as response:
                assert json.load(response)["tiny"]["label"] in ("no", "yes")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_two_models_of_one_name_are_not_served_together(artifact, tmp_path):
    other = shutil.copytree(artifact, tmp_path / "other")
    with pytest.raises(UserError, match=f"{artifact}: two models are called 'tiny': serve one of them"):
        load_models([artifact, other], Options())
