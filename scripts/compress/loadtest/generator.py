"""Load on an HTTP server: requests on a schedule that does not wait for answers, or N patient clients.

Open loop: moments of a Poisson process are drawn before the run, and a latency counts from its moment, not from when
the generator got round to sending: a server that stalls is charged for everyone who came meanwhile (else it would be
Tene's "coordinated omission"). The generator's own lateness, up to a millisecond by its timer, is in the latency, and
is kept beside it, so that a run it spoiled is thrown away.
Closed loop: each of N connections sends its next request when its last is answered; this finds the saturation. One that
was turned away waits a little first: to ask again at once would keep the server busy with refusing.
"""

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httptools
import numpy as np
import orjson

TICK = 0.001  # seconds, the resolution of uvloop's timers: to wait for less is to spin, on a core that the server needs
PATIENCE = 10.0  # seconds after the last request; what is unanswered then is lost
BACKOFF = 0.05  # seconds that a patient client waits when it got no answer
STALE = 1.0  # seconds of rest after which a server may have closed a connection without being at fault
LOST = 0  # status of a request that got no response
HEAD = "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"


@dataclass(frozen=True)
class Outcome:
    """What became of every request, in the order of sending."""

    latency: np.ndarray  # seconds from the scheduled moment to the whole answer; NaN if there was none
    status: np.ndarray  # int16; LOST if there was none
    lag: np.ndarray  # seconds from the scheduled moment to the sending
    seconds: float  # from the first scheduled moment to the last answer

    @property
    def answered_rps(self) -> float:
        """Requests answered with status 200 per second."""
        return float((self.status == 200).sum() / self.seconds)


def payloads(texts: Sequence[str], host: str, path: str) -> list[bytes]:
    """One whole HTTP request per text, its body a JSON string."""
    bodies = [orjson.dumps(text) for text in texts]
    return [HEAD.format(path=path, host=host, length=len(body)).encode() + body for body in bodies]


def poisson(rate: float, requests: int, seed: int) -> np.ndarray:
    """Moments in seconds of a Poisson process with `rate` per second, given how many arrivals its time has.

    Those are uniform in the time and sorted; without the condition a short run's rate would be off by several percent.
    """
    return np.sort(np.random.default_rng(seed).uniform(0, requests / rate, requests))


def open_loop(host: str, port: int, requests: Sequence[bytes], moments: np.ndarray) -> Outcome:
    """Sends each request at its moment, whatever became of the others."""
    return _run(_Generator(host, port, requests, moments).open_loop())


def closed_loop(host: str, port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    """`clients` connections that each send the next of the requests when their last is answered, for so long.

    One without an answer (status other than 200) waits for BACKOFF seconds first.
    """
    return _run(_Generator(host, port, requests).closed_loop(clients, seconds))


def _run(work) -> Outcome:
    import uvloop

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
        self.number: int | None = None  # of the request that is on it
        self.rested = self.answering = False
        self.since = float("inf")  # when its last answer came

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def send(self, number: int) -> None:
        self.number, self.answering = number, False
        self.rested = time.perf_counter() - self.since > STALE
        self.transport.write(self.generator.request(number))

    def data_received(self, data: bytes) -> None:
        self.answering = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_complete(self) -> None:
        number, self.number, self.since = self.number, None, time.perf_counter()
        if number is None:
            return  # an answer that nobody asked for
        again = self.parser.should_keep_alive()
        if not again:
            self.transport.close()
        self.generator.answered(number, self.parser.get_status_code(), self if again else None)

    def connection_lost(self, error) -> None:
        number, self.number = self.number, None
        if self in self.generator.idle:
            self.generator.idle.remove(self)
        if number is not None:
            # A server may close a connection that has long been idle just as it is used again: nobody's failure.
            stale = self.rested and not self.answering
            self.generator.dispatch(number) if stale else self.generator.answered(number, LOST, None)


class _Generator:
    def __init__(self, host: str, port: int, requests: Sequence[bytes], moments: np.ndarray | None = None):
        self.host, self.port, self.requests, self.moments = host, port, requests, moments
        self.idle: list[_Connection] = []
        self.scheduled: list[float] = []
        self.sent: list[float] = []
        self.finished: dict[int, tuple[float, int]] = {}
        self.opening: set[asyncio.Task] = set()
        self.on_answer = self.rest

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
            self.answered(number, LOST, None)
        else:
            connection.send(number)

    def answered(self, number: int, status: int, connection: _Connection | None) -> None:
        self.finished[number] = (time.perf_counter(), status)
        self.on_answer(connection, status)

    def rest(self, connection: _Connection | None, status: int) -> None:
        if connection:
            self.idle.append(connection)

    async def open_loop(self) -> Outcome:
        start = time.perf_counter() + 0.05
        self.scheduled = (start + self.moments).tolist()
        for number, moment in enumerate(self.scheduled):
            while (wait := moment - time.perf_counter()) > 0:
                await asyncio.sleep(max(wait, TICK))
            if number % 16 == 15:
                await asyncio.sleep(0)  # answers are read also while many are due
            self.sent.append(time.perf_counter())
            self.dispatch(number)
        return await self._outcome(start + float(self.moments[0]))

    async def closed_loop(self, clients: int, seconds: float) -> Outcome:
        start = time.perf_counter()

        def next_on(connection: _Connection | None) -> None:
            if time.perf_counter() - start >= seconds:
                return
            number = len(self.sent)
            self.sent.append(time.perf_counter())
            is_open = connection and not connection.transport.is_closing()
            connection.send(number) if is_open else self.dispatch(number)

        def answered(connection: _Connection | None, status: int) -> None:
            if status == 200:
                next_on(connection)
            else:
                asyncio.get_running_loop().call_later(BACKOFF, next_on, connection)

        self.on_answer = answered
        for _ in range(clients):
            next_on(None)
        await asyncio.sleep(seconds)
        self.scheduled = self.sent
        return await self._outcome(start)

    async def _outcome(self, start: float) -> Outcome:
        last = time.perf_counter()
        while len(self.finished) < len(self.sent) and time.perf_counter() - last < PATIENCE:
            await asyncio.sleep(0.005)
        end = max((moment for moment, _ in self.finished.values()), default=last)
        latency = np.full(len(self.sent), np.nan)
        status = np.full(len(self.sent), LOST, np.int16)
        for number, (moment, code) in list(self.finished.items()):
            status[number] = code
            if code != LOST:
                latency[number] = moment - self.scheduled[number]
        return Outcome(latency, status, np.array(self.sent) - np.array(self.scheduled), end - start)
