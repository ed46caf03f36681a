"""Load on an HTTP server: an open loop on a fixed schedule, or a closed loop of N clients.

Open loop: the moments of a Poisson process are drawn before the run, and each latency counts from the scheduled moment,
not from the sending. So a server that stalls is charged for every request that was due meanwhile; otherwise this would
be Tene's "coordinated omission". The generator's own lag, which grows when the server takes all cores, is part of the
latency. It is also recorded, so that runs with a late generator can be discarded.
Closed loop: each of N connections sends its next request when its last response arrives; this measures the saturation
rate. A refused client waits a little first, because immediate retries would keep the server busy with refusals.
"""

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httptools
import numpy as np
import orjson
import uvloop

TICK = 0.001  # seconds, uvloop's timer resolution; a shorter sleep would spin on a core that the server needs
GRACE = 10.0  # seconds after the last request; then missing responses count as lost
BACKOFF = 0.05  # seconds that a closed-loop client waits after a response other than 200
STALE = 1.0  # seconds of idleness after which a server may close a connection without fault
LOST = 0  # status of a request without a response
HEAD = "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"


@dataclass(frozen=True)
class Outcome:
    """The result of every request, in the order of sending."""

    latency: np.ndarray  # seconds from the scheduled moment to the complete response; NaN if there was none
    status: np.ndarray  # int16; LOST if there was no response
    lag: np.ndarray  # seconds from the scheduled moment to the sending
    seconds: float  # from the first scheduled moment to the last response

    @property
    def completed_rps(self) -> float:
        """Responses with status 200 per second."""
        return float((self.status == 200).sum() / self.seconds)


def payloads(values: Sequence, host: str, path: str) -> list[bytes]:
    """One complete HTTP request per value, with the value as JSON in its body."""
    bodies = [orjson.dumps(value) for value in values]
    return [HEAD.format(path=path, host=host, length=len(body)).encode() + body for body in bodies]


def poisson(rate: float, requests: int, seed: int) -> np.ndarray:
    """The moments, in seconds, of a Poisson process of `rate` per second, given its number of arrivals.

    Given the number, the moments are uniform and sorted. Without this condition the rate of a short run would be off
    by several percent.
    """
    return np.sort(np.random.default_rng(seed).uniform(0, requests / rate, requests))


def open_loop(host: str, port: int, requests: Sequence[bytes], moments: np.ndarray) -> Outcome:
    """Sends each request at its moment, whatever happens to the others."""
    return _run(_Generator(host, port, requests, moments).open_loop())


def closed_loop(host: str, port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    """`clients` connections send one request after another for `seconds`.

    After a response other than 200, or none, a client waits for BACKOFF seconds.
    """
    return _run(_Generator(host, port, requests).closed_loop(clients, seconds))


def _run(work) -> Outcome:
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(work)
    finally:
        gc.enable()


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with at most one request on it."""

    def __init__(self, generator: "_Generator"):
        self.generator = generator
        self.number: int | None = None  # of the current request
        self.is_stale = self.is_responding = False
        self.since = float("inf")  # when the last response arrived

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def send(self, number: int) -> None:
        self.number, self.is_responding = number, False
        self.is_stale = time.perf_counter() - self.since > STALE
        self.transport.write(self.generator.request(number))

    def data_received(self, data: bytes) -> None:
        self.is_responding = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_complete(self) -> None:
        number, self.number, self.since = self.number, None, time.perf_counter()
        if number is None:
            return  # a response without a request
        again = self.parser.should_keep_alive()
        if not again:
            self.transport.close()
        self.generator.finish(number, self.parser.get_status_code(), self if again else None)

    def connection_lost(self, error) -> None:
        number, self.number = self.number, None
        if self in self.generator.idle:
            self.generator.idle.remove(self)
        if number is not None:
            # A server may close an idle connection just as the next request is sent: try again on another one.
            again = self.is_stale and not self.is_responding
            self.generator.dispatch(number) if again else self.generator.finish(number, LOST, None)


class _Generator:
    def __init__(self, host: str, port: int, requests: Sequence[bytes], moments: np.ndarray | None = None):
        self.host, self.port, self.requests, self.moments = host, port, requests, moments
        self.idle: list[_Connection] = []
        self.scheduled: list[float] = []
        self.sent: list[float] = []
        self.finished: dict[int, tuple[float, int]] = {}  # by request: moment, status
        self.opening: set[asyncio.Task] = set()
        self.on_finish = self.keep_idle

    def request(self, number: int) -> bytes:
        return self.requests[number % len(self.requests)]

    def dispatch(self, number: int) -> None:
        if self.idle:
            self.idle.pop().send(number)
        else:
            task = asyncio.ensure_future(self._open(number))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)

    async def _open(self, number: int) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self.host, self.port
            )
        except OSError:
            self.finish(number, LOST, None)
        else:
            connection.send(number)

    def finish(self, number: int, status: int, connection: _Connection | None) -> None:
        self.finished[number] = (time.perf_counter(), status)
        self.on_finish(connection, status)

    def keep_idle(self, connection: _Connection | None, status: int) -> None:
        if connection:
            self.idle.append(connection)

    async def open_loop(self) -> Outcome:
        start = time.perf_counter() + 0.05
        self.scheduled = (start + self.moments).tolist()
        for number, moment in enumerate(self.scheduled):
            while (wait := moment - time.perf_counter()) > 0:
                await asyncio.sleep(max(wait, TICK))
            if number % 16 == 15:
                await asyncio.sleep(0)  # reads responses even while many requests are due
            self.sent.append(time.perf_counter())
            self.dispatch(number)
        return await self._outcome(start + float(self.moments[0]))

    async def closed_loop(self, clients: int, seconds: float) -> Outcome:
        start = time.perf_counter()

        def send_next(connection: _Connection | None) -> None:
            if time.perf_counter() - start >= seconds:
                return
            number = len(self.sent)
            self.sent.append(time.perf_counter())
            is_open = connection and not connection.transport.is_closing()
            connection.send(number) if is_open else self.dispatch(number)

        def on_finish(connection: _Connection | None, status: int) -> None:
            if status == 200:
                send_next(connection)
            else:
                asyncio.get_running_loop().call_later(BACKOFF, send_next, connection)

        self.on_finish = on_finish
        for _ in range(clients):
            send_next(None)
        await asyncio.sleep(seconds)
        self.scheduled = self.sent
        return await self._outcome(start)

    async def _outcome(self, start: float) -> Outcome:
        last = time.perf_counter()
        while len(self.finished) < len(self.sent) and time.perf_counter() - last < GRACE:
            await asyncio.sleep(0.005)
        end = max((moment for moment, _ in self.finished.values()), default=last)
        latency = np.full(len(self.sent), np.nan)
        status = np.full(len(self.sent), LOST, np.int16)
        for number, (moment, code) in list(self.finished.items()):
            status[number] = code
            if code != LOST:
                latency[number] = moment - self.scheduled[number]
        return Outcome(latency, status, np.array(self.sent) - np.array(self.scheduled), end - start)
