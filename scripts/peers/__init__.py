"""The peers of our service: servers that others have made, each on the same artifact, each in its own environment.

A table and what starts and stops its rows, of the standard library only. `make peers-env` makes the environments. The
scripts beside this file are commands, not modules of a package: they run in the peers' environments.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no part in 127.0.0.1
STOP_SECONDS = 5  # for a peer to stop by itself before its processes are killed


@dataclass(frozen=True)
class Peer:
    """How a peer is run. Every row of `sweep` is (workers, threads, batch); 0 stands for a batch without a limit."""

    name: str  # of its environment build/peers/<name>, its requirements-<name>.txt and its <name>_server.py
    sweep: tuple[tuple[int, int, int], ...]
    path: str = "/process"  # takes a JSON string by POST; the server is ready when it answers 200 there
    several: bool = False  # whether one server serves several models

    @property
    def python(self) -> Path:
        return ROOT / "build" / "peers" / self.name / "bin" / "python"

    @property
    def installed(self) -> bool:
        return (self.python.parents[1] / ".installed").exists()


# The default of most frameworks (one worker with all threads, batches of 32), then what suits two cores.
SWEEP = ((1, 2, 32), (2, 1, 4), (2, 1, 8), (2, 1, 16))
PEERS = {
    "peer-mosec": Peer("mosec", SWEEP),
    "peer-litserve": Peer("litserve", SWEEP),
    "peer-infinity": Peer("infinity", ((1, 2, 32), (1, 1, 8), (2, 1, 8))),
    "peer-course": Peer("course", ((1, 2, 0),), several=True),
}


class PeerError(Exception):
    """A peer that is not installed or did not start; the message is for the user."""


def command(peer: str, models: list[Path], port: int, workers: int, threads: int, batch: int) -> list[str]:
    """The command that runs the peer in its environment."""
    about = PEERS[peer]
    if not about.installed:
        raise PeerError(f"{peer} is not installed (no {about.python.parents[1] / '.installed'}); run: make peers-env")
    if len(models) > 1 and not about.several:
        raise PeerError(f"{peer} serves one model at a time, not {len(models)}")
    numbers = {"--port": port, "--workers": workers, "--threads": threads, "--batch": batch}
    script = Path(__file__).with_name(f"{about.name}_server.py")
    options = [str(part) for pair in numbers.items() for part in pair]
    return [str(about.python), str(script), "--model", *map(str, models), *options]


@contextlib.contextmanager
def running(
    peer: str, models: list[Path], port: int, workers: int, threads: int, batch: int, log: Path, seconds: float = 60
) -> Iterator[subprocess.Popen]:
    """The peer's process, ready to answer; its output goes to `log`. Leaves no process behind."""
    arguments = command(peer, models, port, workers, threads, batch)
    with started(peer, arguments, f"http://127.0.0.1:{port}{PEERS[peer].path}", log, seconds) as process:
        yield process


@contextlib.contextmanager
def started(name: str, arguments: list[str], url: str, log: Path, seconds: float) -> Iterator[subprocess.Popen]:
    """The process of a server that takes texts at `url`, ready to answer; its output goes to `log`.

    Ready means that it has answered once: a second worker may still be loading, so warm up before measuring.
    """
    with launched(arguments, log) as process:
        wait_until_ready(name, process, url, log, seconds)
        yield process


@contextlib.contextmanager
def launched(arguments: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """The process, as soon as it is there; its output goes to `log`.

    Workers of mosec and LitServe outlive a SIGTERM: the server has a process group of its own, and that is killed.
    """
    with open(log, "w") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a leader of a process group and whatever is left of its group, and waits until all are gone."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)


def wait_until_ready(peer: str, process: subprocess.Popen, url: str, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            post(url, "ready?", timeout=1)
            return
        time.sleep(0.05)
    what = f"not ready after {seconds:g} s" if process.poll() is None else f"ended with status {process.returncode}"
    tail = log.read_text("utf-8", "replace")[-1000:]
    raise PeerError(f"{peer}: {what}; the end of {log}:\n{tail}")


def post(url: str, text: str, timeout: float = 30) -> dict:
    """One answer of a peer; urllib's errors, an answer other than 200 among them, are OSErrors."""
    request = urllib.request.Request(url, json.dumps(text).encode(), {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=timeout) as answer:
        return json.load(answer)
