"""The HTTP benchmark: servers as child processes, load on them in turns, and one file per run.

A run is build/<profile>/serving/<server>/<layout>-<rate>-<repeat>.npz: latency, status and lag of every request, what
the server spent meanwhile, and where it was measured. The other servers' processes are stopped meanwhile. Each is
written when it ends, and is not made again while nothing that it depends on has changed, unless it is void.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peers
from compress.config.profile import Profile
from compress.errors import UserError
from compress.files import atomic_path, digest, source_hash
from compress.loadtest import generator as load
from compress.paths import SCRIPTS
from compress.storage.artifact import read_artifact

HOST = "127.0.0.1"
START_SECONDS = 120  # until a server must be ready
LATE = 0.005  # seconds at p99
TRIES = 3  # at a run, until the generator is in time
REST = 0.25  # seconds in which a server must take less than REST_CORES before a run: what it was asked before is done
REST_CORES = 0.3
REST_SECONDS = 10  # then the run begins all the same: some servers are never at rest
PATH = "/process"
# What is switched off to see what it brings: options of serve.py; {threads} are those that the lanes have together.
ABLATIONS = {
    "no-batching": ("--max-batch", "1"),
    "no-sorting": ("--window", "4"),
    "batches-of-8": ("--max-batch", "8"),
    "one-lane": ("--lanes", "1", "--threads", "{threads}"),
}
COUNTERS = ("batches", "items", "tokens", "padded_tokens")


@dataclass
class Server:
    """How to start a server, and where it takes a JSON string."""

    name: str
    command: list[str]
    port: int
    key: str  # of what it serves and how
    ours: bool = True  # speaks our /metrics
    many_models: bool = False  # is also asked by the course's numbers of clients
    process: subprocess.Popen | None = None


@dataclass(frozen=True)
class Run:
    """One run as its file tells it."""

    server: str
    layout: str  # saturation, open-loop, or clients-N
    share: float  # of the saturation that was offered; 0 in a closed loop
    rate: float  # offered per second; 0 in a closed loop
    repeat: int
    outcome: load.Outcome
    about: dict  # key, deadline, cpu_seconds, peak_rss_bytes, the server's own counters, tries and provenance


def is_void(outcome: load.Outcome) -> bool:
    """True if the generator was late itself: then its latencies say nothing about the server."""
    return float(np.quantile(outcome.lag, 0.99)) > LATE


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def running(servers: Sequence[Server], folder: Path):
    """All of them started and ready; each with its whole process group killed at the end. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            logs = [folder / f"{server.name}.log" for server in servers]
            for server, log in zip(servers, logs, strict=True):
                server.process = stack.enter_context(peers.launched(server.command, log))
            for server, log in zip(servers, logs, strict=True):
                url = f"http://{HOST}:{server.port}{PATH}"
                peers.wait_until_ready(server.name, server.process, url, log, START_SECONDS)
            try:
                yield
            finally:
                for server in servers:
                    signal_all(server, signal.SIGCONT)  # a stopped process would not hear that it is to end
    except peers.PeerError as error:
        raise UserError(str(error)) from None


def signal_all(server: Server, number: int) -> None:
    """Sends a signal to the server's whole process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, number)


def family(server: Server) -> list:
    """psutil's processes of the server and of its children."""
    import psutil

    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def let_alone(server: Server, servers: Sequence[Server]) -> None:
    """Stops every other server's processes, waits until this one is at rest, and has its peak memory counted anew."""
    for other in servers:
        signal_all(other, signal.SIGCONT if other is server else signal.SIGSTOP)
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        before = cpu_seconds(server)
        time.sleep(REST)
        if cpu_seconds(server) - before < REST * REST_CORES:
            break
    for process in family(server):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5", "utf-8")


def cpu_seconds(server: Server) -> float:
    times = [process.cpu_times() for process in family(server)]
    return sum(of.user + of.system for of in times)


def spent(server: Server) -> dict:
    """CPU seconds and peak resident bytes of the server and its children, and its own counters, until now."""
    found = {"cpu_seconds": cpu_seconds(server), "peak_rss_bytes": 0}
    for process in family(server):
        status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        found["peak_rss_bytes"] += 1024 * int(peak.group(1)) if peak else 0
    if server.ours:
        with urllib.request.urlopen(f"http://{HOST}:{server.port}/metrics", timeout=10) as response:
            text = response.read().decode()
        for name in COUNTERS:
            found[name] = sum(float(value) for value in re.findall(rf"^{name}_total{{.*}} (\S+)$", text, re.M))
    return found


def one_run(
    server: Server, servers: Sequence[Server], folder: Path, layout: str, share: float, repeat: int, budget, origin, go
) -> Run:
    """The run's file if it is there, of this key and not void; else what go() -> (offered rate, Outcome) makes of it.

    budget is the profile's Load, origin the provenance to write down; of the servers the others are stopped meanwhile.
    A void run is tried again, up to TRIES.
    """
    path = folder / server.name / f"{layout}-{share:.4g}-{repeat}.npz"
    key = run_key(server, budget)
    if (run := run_of(path, key)) and not is_void(run.outcome):
        return run
    tries, outcome = 0, None
    while outcome is None or (is_void(outcome) and tries < TRIES):
        tries += 1
        let_alone(server, servers)
        before = spent(server)
        rate, outcome = go()
        after = spent(server)
    about = {name: after[name] - before[name] for name in after} | {
        "peak_rss_bytes": after["peak_rss_bytes"],
        "key": key,
        "tries": tries,
        "provenance": origin,
        "deadline": budget.deadline_ms / 1000,
        "seconds": outcome.seconds,
        "rate": rate,
        "share": share,
        "server": server.name,
        "layout": layout,
        "repeat": repeat,
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, latency=outcome.latency, status=outcome.status, lag=outcome.lag, about=np.array(json.dumps(about))
        )
    return read_run(path)


def run_key(server: Server, budget) -> str:
    """Identity of a server's runs: what it serves, how it is asked, and by what."""
    return digest([server.key, budget.model_dump(mode="json"), source_hash(Path(load.__file__))])


def run_of(path: Path, key: str) -> Run | None:
    """The file's run; None if the file is not there, damaged, or of another key."""
    with contextlib.suppress(UserError):
        if (run := read_run(path)).about["key"] == key:
            return run
    return None


def remove_others(folder: Path, server: Server, budget) -> None:
    """Removes the server's runs that another code or another budget made: they must not be counted with these."""
    key = run_key(server, budget)
    for path in (folder / server.name).glob("*.npz"):
        if not path.stem.startswith("sweep-") and run_of(path, key) is None:
            path.unlink()


def read_run(path: Path) -> Run:
    """A run's file; raises UserError when it is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            outcome = load.Outcome(file["latency"], file["status"], file["lag"], about["seconds"])
            about["provenance"]
            return Run(about["server"], about["layout"], about["share"], about["rate"], about["repeat"], outcome, about)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a finished run ({error}); remove it and run the benchmark again") from None


def summarize(runs: Sequence[Run]) -> dict:
    """The columns of serving.csv for runs of one server, layout and rate: all of their requests taken together.

    The rates at saturation alone are the runs' medians: they are what the open loop's shares are of.
    """
    latency = np.concatenate([run.outcome.latency for run in runs])
    status = np.concatenate([run.outcome.status for run in runs])
    lag = np.concatenate([run.outcome.lag for run in runs])
    answered = status == 200
    refused = status == 429
    outcomes, deadline = [run.outcome for run in runs], runs[0].about["deadline"]
    seconds = [of.seconds for of in outcomes]
    in_time = [((of.status == 200) & (of.latency <= deadline)).sum() / of.seconds for of in outcomes]
    achieved, goodput = (
        np.median(rates) if runs[0].layout == "saturation" else np.average(rates, weights=seconds)
        for rates in ([of.answered_rps for of in outcomes], in_time)
    )
    p50, p95, p99 = 1000 * np.quantile(latency[answered], [0.5, 0.95, 0.99]) if answered.any() else [None] * 3
    total = {name: sum(run.about.get(name, 0) for run in runs) for name in ("cpu_seconds", *COUNTERS)}
    return {
        "offered_rps": float(np.mean([run.rate for run in runs])) if runs[0].rate else None,
        "achieved_rps": achieved,
        "goodput_rps": goodput,
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        "latency_ms_p99": p99,
        "shed_fraction": float(np.mean(refused)),
        "refused_ms_p99": 1000 * float(np.quantile(latency[refused], 0.99)) if refused.any() else None,
        "error_fraction": float(np.mean(~(answered | refused))),
        "batch_size_mean": total["items"] / total["batches"] if total["batches"] else None,
        "padding_ratio": total["padded_tokens"] / total["tokens"] if total["tokens"] else None,
        "server_cpu_seconds_per_request": total["cpu_seconds"] / max(int(answered.sum()), 1),
        "peak_rss_mb": max(run.about["peak_rss_bytes"] for run in runs) / 1e6,
        "requests": len(status),
        "lag_ms_p99": 1000 * float(np.quantile(lag, 0.99)),
    }


def contents(folders: Sequence[Path]) -> list[dict]:
    """What is served: a champion that is chosen anew and is the same files as before is not measured again."""
    about = {"backend", "labels", "max_length", "runtime", "files"}
    return [read_artifact(folder, verify=False).model_dump(mode="json", include=about) for folder in folders]


def python_server(name: str, folders: Sequence[Path], code, *options: str) -> Server:
    """scripts/serve.py over these model folders; `code` stands for its source."""
    models = [part for folder in folders for part in ("--model", str(folder))]
    port = free_port()
    command = [sys.executable, str(SCRIPTS / "serve.py"), *models, *options, "--port", str(port)]
    return Server(name, command, port, digest([contents(folders), code, options]))


def peer_server(name: str, peer: str, folders: Sequence[Path], code, setting: Sequence[int]) -> Server:
    """A peer of scripts/peers/ over these model folders, with (workers, threads, batch); raises UserError.

    `code` stands for its source.
    """
    port = free_port()
    try:
        command = peers.command(peer, list(folders), port, *setting)
    except peers.PeerError as error:
        raise UserError(str(error)) from None
    return Server(name, command, port, digest([contents(folders), code, setting]), ours=False)


def own_names(profile: Profile) -> list[str]:
    """The servers that the benchmark of a profile has, peers left out."""
    serving = profile.serving
    ablations = [f"{serving.ablated}-{what}" for what in ABLATIONS]
    return [*serving.variants, *ablations, *(["five-services"] if serving.tasks else [])]


def serving_folder(profile: Profile) -> Path:
    return profile.build / "serving"
