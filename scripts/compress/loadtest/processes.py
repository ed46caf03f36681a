"""Servers as child processes: started, awaited, paused, stopped, and the CPU seconds and memory that they use.

Each server leads a process group of its own, because the workers of some servers outlive a SIGTERM to their parent.
Resource numbers include a server's child processes; they come from Linux's /proc.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from compress.errors import UserError

HOST = "127.0.0.1"
PATH = "/process"  # every server takes a JSON string here, and is ready when it responds with 200
STOP_SECONDS = 5  # between SIGTERM and SIGKILL
SET_PARENT_DEATH_SIGNAL = 1  # Linux's PR_SET_PDEATHSIG
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for HOST


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def url(port: int, path: str = PATH) -> str:
    return f"http://{HOST}:{port}{path}"


def post_text(port: int, text: str, timeout: float = 30) -> dict:
    """One classification; raises OSError if there is no response or another status than 200."""
    request = urllib.request.Request(url(port), json.dumps(text).encode(), {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=timeout) as response:
        return json.load(response)


def get_text(port: int, path: str) -> str:
    with DIRECT.open(url(port, path), timeout=10) as response:
        return response.read().decode()


@contextlib.contextmanager
def launched(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """The running process with its output in `log`; afterwards its whole group is gone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        stop(process)


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies: a killed benchmark must leave no server behind."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def stop(process: subprocess.Popen) -> None:
    """Ends a process and its group, and waits until all are gone."""
    signal_group(process, signal.SIGCONT)  # a paused process can't react to SIGTERM
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and signal_group(process, signal.SIGKILL):
        process.poll()
        time.sleep(0.01)


def signal_group(process: subprocess.Popen, number: int) -> bool:
    """Sends a signal to the process group; False if the group is gone."""
    try:
        os.killpg(process.pid, number)
        return True
    except ProcessLookupError:
        return False


def wait_until_ready(name: str, process: subprocess.Popen, port: int, log: Path, seconds: float) -> None:
    """Returns after the first response; a second worker may still be loading. Raises UserError with the log's end."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            post_text(port, "ready?", timeout=1)
            return
        time.sleep(0.05)
    what = f"not ready after {seconds:g} s" if process.poll() is None else f"ended with status {process.returncode}"
    tail = log.read_text("utf-8", "replace")[-1000:]
    raise UserError(f"{name}: {what}; the end of {log}:\n{tail}")


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The process and its children."""
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(process: subprocess.Popen) -> float:
    times = [member.cpu_times() for member in family(process)]
    return sum(of.user + of.system for of in times)


def peak_memory(process: subprocess.Popen) -> int:
    """The sum of the processes' peaks since reset_peak()."""
    statuses = [Path(f"/proc/{member.pid}/status").read_text("utf-8") for member in family(process)]
    return sum(1024 * int(kib) for status in statuses for kib in re.findall(r"VmHWM:\s+(\d+) kB", status))


def reset_peak(process: subprocess.Popen) -> None:
    for member in family(process):
        Path(f"/proc/{member.pid}/clear_refs").write_text("5", "utf-8")
