"""The load generator against servers of a few lines: it charges a stall to everyone who came meanwhile."""

import asyncio
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from compress.loadtest import generator as load
from compress.loadtest.bench import HOST, free_port, is_void


@contextmanager
def server(answer):
    """A raw HTTP server in a thread; answer(number of the request) -> (seconds to wait, status or None to hang up)."""
    port, ready, loops = free_port(), threading.Event(), []
    numbers = iter(range(10**9))
    bodies = []

    async def client(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                bodies.append(await reader.readexactly(length))
                wait, status = answer(next(numbers))
                await asyncio.sleep(wait)
                if status is None:
                    break
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def main():
        loops.append(asyncio.get_running_loop())
        await asyncio.start_server(client, HOST, port)
        ready.set()
        await asyncio.Event().wait()

    def run():
        with suppress(RuntimeError):
            asyncio.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield port, bodies
    finally:
        loop = loops[0]
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def requests(count):
    return load.payloads([f"text {i}" for i in range(count)], HOST, "/process")


def test_the_schedule_is_a_poisson_process_and_the_same_for_the_same_seed():
    moments = load.poisson(200.0, 20_000, 3)
    gaps = np.diff(moments)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.03)
    np.testing.assert_array_equal(moments, load.poisson(200.0, 20_000, 3))
    assert not np.array_equal(moments, load.poisson(200.0, 20_000, 4))


def test_a_stall_is_charged_to_all_that_came_meanwhile():
    start = []

    def answer(_):
        now = time.monotonic()
        start.append(now)
        since = now - start[0]
        return (1.0 - since if 0.5 < since < 1.0 else 0.0), 200  # nobody is answered between 0.5 and 1.0 s

    with server(answer) as (port, bodies):
        found = load.open_loop(HOST, port, requests(300), load.poisson(200.0, 300, 0))
    assert (found.status == 200).all()
    assert len(set(bodies)) == 300  # every request another text
    stalled = found.latency > 0.05
    assert 0.2 < stalled.mean() < 0.45  # a third of the time, though a client that waits would have met it once
    assert found.latency.max() == pytest.approx(0.5, abs=0.1)


def test_statuses_and_lost_requests_are_told_apart():
    kinds = [(0.0, 200), (0.0, 429), (0.0, 500), (0.0, None)]
    with server(lambda number: kinds[number % 4]) as (port, _):
        found = load.open_loop(HOST, port, requests(40), np.linspace(0.01, 0.4, 40))
    assert sorted(set(found.status.tolist())) == [load.LOST, 200, 429, 500]
    assert np.isnan(found.latency[found.status == load.LOST]).all()
    assert not np.isnan(found.latency[found.status != load.LOST]).any()


def test_a_closed_loop_has_as_many_requests_under_way_as_clients():
    busy, most = 0, 0

    def answer(_):
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        asyncio.get_running_loop().call_later(0.02, done)
        return 0.02, 200

    def done():
        nonlocal busy
        busy -= 1

    with server(answer) as (port, _):
        found = load.closed_loop(HOST, port, requests(10), 5, 0.5)
    assert most <= 5
    assert len(found.status) == pytest.approx(5 * 0.5 / 0.02, rel=0.3)
    assert (found.status == 200).all()


@pytest.mark.parametrize("status", [429, None])
def test_who_is_turned_away_does_not_ask_again_at_once(status):
    with server(lambda _: (0.0, status)) as (port, bodies):
        found = load.closed_loop(HOST, port, requests(10), 5, 0.5)
    assert 25 <= len(bodies) == len(found.status) <= 5 * 0.5 / load.BACKOFF
    assert (found.status == (status or load.LOST)).all()


def test_a_generator_that_is_late_spoils_its_run():
    moments = np.linspace(0.001, 0.1, 100)
    outcome = load.Outcome(moments, np.full(100, 200), np.full(100, 0.006), 0.1)
    assert is_void(outcome)
    assert not is_void(load.Outcome(moments, np.full(100, 200), np.full(100, 0.001), 0.1))


def test_nobody_there_is_a_lost_request_not_a_crash():
    found = load.open_loop(HOST, free_port(), requests(5), np.linspace(0.01, 0.05, 5))
    assert (found.status == load.LOST).all()
