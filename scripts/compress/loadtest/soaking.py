"""A long load on the service: which of memory, connections and latency grow with time.

A request is a /predict with 1 to max_batch texts of one random length, so that batches of every shape occur. Engines
that compile and cache code per shape (OpenVINO) have filled their cache when the memory stops growing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import psutil
from compress.errors import UserError
from compress.loadtest.generator import closed_loop, open_loop, payloads, poisson
from compress.loadtest.processes import HOST, get_text, launched, wait_until_ready
from compress.loadtest.servers import START_SECONDS, Server
from compress.serving.loading import PROBE

REQUESTS = 20_000  # different ones; a longer load repeats them
CLIENTS = 8
SATURATION_SECONDS = 3.0
LOAD = 0.5  # of the saturation rate
SAMPLES = 20  # at least, in equal parts of the load
SAMPLE_SECONDS = 30  # at most
WARM_UP_SAMPLES = 2  # of the first half; they do not count
CLOSING_SECONDS = 1  # until the service has closed the connections that the generator left
EXPECTED = {200, 429, 504}  # on a busy machine some requests are rejected or late
# The largest growth from the first half of the load to the second.
MEMORY_MB, DESCRIPTORS = 5, 5
COMPLETED = 0.95  # of all requests, at least


@dataclass(frozen=True)
class Sample:
    """The service after one part of the load."""

    memory_mb: float
    descriptors: int
    p99_ms: float
    completed: float  # share of the requests with status 200


def soak(folders: Sequence[Path], minutes: float, threads: int, log: Path, show: Callable[[str], object]) -> list:
    """Serves the models under half of their saturation load; a Sample at least every SAMPLE_SECONDS.

    Raises UserError if a request gets an unexpected status.
    """
    server = Server("soak", "serve.py", list(folders), [f"--workers={threads}"])
    with launched(server.command, log) as process:
        wait_until_ready(server.name, process, server.port, log, START_SECONDS)
        requests = random_requests(orjson.loads(get_text(server.port, "/info")))
        saturation = closed_loop(HOST, server.port, requests, CLIENTS, SATURATION_SECONDS)
        rate = LOAD * saturation.completed_rps
        if rate == 0:
            raise UserError(f"the service completed no request under full load; its log: {log}")
        count = max(SAMPLES, round(minutes * 60 / SAMPLE_SECONDS))
        seconds = minutes * 60 / count
        return [sample(server.port, process.pid, requests, rate, seconds, number, show) for number in range(count)]


def random_requests(info: dict) -> list[bytes]:
    """REQUESTS random requests that fit the served models; `info` is the service's /info."""
    chance = np.random.default_rng(0)
    words = np.array(" ".join(PROBE).split())
    longest = min(model["max_length"] for model in info["models"])
    most = max(model["max_batch"] for model in info["models"])
    shapes = zip(chance.integers(1, most + 1, REQUESTS), chance.integers(1, longest, REQUESTS), strict=True)
    groups = [chance.choice(words, shape) for shape in shapes]  # [texts, words]
    return payloads([{"text": [" ".join(text) for text in group]} for group in groups], HOST, "/predict")


def sample(port: int, pid: int, requests: Sequence[bytes], rate: float, seconds: float, number: int, show) -> Sample:
    start = int(number * seconds * rate) % len(requests)
    moments = poisson(rate, max(int(seconds * rate), 1), number)
    outcome = open_loop(HOST, port, [*requests[start:], *requests[:start]], moments)
    if unexpected := set(outcome.status.tolist()) - EXPECTED:
        raise UserError(f"the service answered with status {sorted(unexpected)} (0: no response)")
    time.sleep(CLOSING_SECONDS)
    process, completed = psutil.Process(pid), outcome.status == 200
    p99 = 1000 * float(np.quantile(outcome.latency[completed], 0.99)) if completed.any() else np.inf
    seen = Sample(process.memory_info().rss / 1e6, process.num_fds(), p99, float(completed.mean()))
    show(
        f"{(number + 1) * seconds / 60:5.1f} min at {rate:.0f}/s: {seen.memory_mb:.1f} MB, {seen.descriptors} "
        f"descriptors, p99 {seen.p99_ms:.1f} ms, {100 * seen.completed:.2f} % completed"
    )
    return seen


def growth(samples: Sequence[Sample]) -> list[str]:
    """What is worse in the second half of the load than in the first; empty if the service has settled."""
    half = len(samples) // 2
    first, second = samples[WARM_UP_SAMPLES:half], samples[half:]
    memory = [max(of.memory_mb for of in part) for part in (first, second)]
    descriptors = [max(of.descriptors for of in part) for part in (first, second)]
    p99 = [float(np.median([of.p99_ms for of in part])) for part in (first, second)]
    completed = float(np.mean([of.completed for of in samples]))
    found = []
    if memory[1] - memory[0] >= MEMORY_MB:
        found.append(f"memory grows from {memory[0]:.1f} to {memory[1]:.1f} MB")
    if descriptors[1] - descriptors[0] > DESCRIPTORS:
        found.append(f"open files grow from {descriptors[0]} to {descriptors[1]}")
    if p99[1] >= 2 * p99[0] + 5:
        found.append(f"the median p99 grows from {p99[0]:.1f} to {p99[1]:.1f} ms")
    if completed <= COMPLETED:
        found.append(f"only {100 * completed:.1f} % of the requests were completed")
    return found
