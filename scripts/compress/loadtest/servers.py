"""The servers of the benchmark: our own for each served variant, its ablations, the five classifiers, and the peers.

The peers are other projects' servers for the same artifacts: scripts/peers/<name>_server.py runs in an environment of
its own, build/peers/<name>/ (make peers-env).
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from compress.config.budgets import ABLATIONS, FIVE
from compress.config.profile import Profile
from compress.errors import UserError
from compress.loadtest import processes
from compress.paths import ROOT, SCRIPTS
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 120  # until a server must be ready
REST_SECONDS = 0.25  # a server that uses fewer than REST_CORES for so long has finished its earlier requests
REST_CORES = 0.3
REST_LIMIT_SECONDS = 10  # then the server is restarted, because its queue holds requests of an earlier run
COUNTERS = ("batches", "items", "tokens", "padded_tokens", "model_cpu_seconds")


@dataclass(frozen=True)
class Peer:
    name: str
    one_worker: tuple[int, ...] = ()  # batch sizes tried with one worker that has all threads; 0 means no limit
    worker_per_core: tuple[int, ...] = ()  # batch sizes tried with as many workers of one thread

    def sweep(self, threads: int) -> list[tuple[int, int, int]]:
        """The settings to try on so many cores: (workers, threads, batch)."""
        shared = [(1, threads, batch) for batch in self.one_worker]
        return shared + [(threads, 1, batch) for batch in self.worker_per_core]

    @property
    def environment(self) -> Path:
        return ROOT / "build" / "peers" / self.name

    @property
    def installed(self) -> Path:
        """The file that exists once the environment is complete."""
        return self.environment / ".installed"


# One worker with all threads and batches of 32 is the default of most frameworks.
PEERS = {
    "peer-mosec": Peer("mosec", one_worker=(32,), worker_per_core=(1, 2, 4, 8, 16)),
    "peer-litserve": Peer("litserve", one_worker=(32,), worker_per_core=(1, 2, 4, 8, 16)),
    "peer-infinity": Peer("infinity", one_worker=(8, 32), worker_per_core=(8,)),
    "peer-course": Peer("course", one_worker=(0,)),  # the only one that serves several models
}


@dataclass
class Server:
    """A command that serves models, and its process while it runs."""

    name: str
    script: str  # below scripts/
    models: list[Path]
    options: list[str]
    python: Path = Path(sys.executable)
    installed: Path | None = None  # of an environment of its own
    ours: bool = True  # has our /metrics
    with_clients: bool = False  # is also measured with the course's numbers of clients
    compared_with: Sequence[str] = ()  # servers at whose rate it is measured, too
    port: int = field(default_factory=processes.free_port)
    process: subprocess.Popen | None = None

    @property
    def command(self) -> list[str]:
        models = map(str, self.models)
        return [str(self.python), str(SCRIPTS / self.script), "--model", *models, *self.options, f"--port={self.port}"]

    @property
    def portable_command(self) -> list[str]:
        """The command without what differs between machines and runs."""
        return [self.script, *(str(model.relative_to(ROOT)) for model in self.models), *self.options]

    @property
    def sources(self) -> list[str]:
        """The files, relative to the repository, that make a run outdated when they are newer.

        Peers depend on our serving code, too: they are measured in turns with our server.
        """
        files = [model / "artifact.json" for model in self.models] + ([self.installed] if self.installed else [])
        files += [SCRIPTS / self.script, *([] if self.ours else [SCRIPTS / "peers" / "common.py"])]
        files += [SCRIPTS / "compress" / "loadtest" / "generator.py"]  # its clock makes the numbers
        files += [
            file for package in ("serving", "engines") for file in sorted((SCRIPTS / "compress" / package).glob("*.py"))
        ]
        return [str(file.relative_to(ROOT)) for file in files]

    def usage(self) -> dict:
        """CPU seconds, peak memory and our server's own counters since its start."""
        numbers = {"cpu_seconds": processes.cpu_seconds(self.process)}
        numbers["peak_rss_bytes"] = processes.peak_memory(self.process)
        if self.ours:
            families = text_string_to_metric_families(processes.get_text(self.port, "/metrics"))
            samples = {family.name: family.samples for family in families}
            for name in COUNTERS:
                numbers[name] = sum(sample.value for sample in samples[name] if sample.name == f"{name}_total")
        return numbers


def own_layout(profile: Profile, scope: str) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Our servers in a scope by name: the models that each serves, and its options on top of the usual ones."""
    serving = profile.serving.of_scope(scope)
    layout = {name: ([name], ()) for name in serving.variants}
    if ablated := serving.ablated:
        layout |= {f"{ablated}-{change}": ([ablated], options) for change, options in ABLATIONS.items()}
    if services := [service.name for service in profile.services]:
        layout[FIVE] = (services, ())
    return layout


def own_servers(profile: Profile, scope: str, threads: int, folder_of: Callable[[str], Path]) -> list[Server]:
    """The servers of own_layout(); folder_of gives the folder of a variant.

    The single models without a changed option are compared with the baseline's, if that is served.
    """
    deadline, servers = profile.serving.of_scope(scope).load.deadline_ms, []
    layout = own_layout(profile, scope)
    for name, (models, options) in layout.items():
        is_compared = models == [name] and name != profile.baseline and profile.baseline in layout
        about = {"with_clients": name == FIVE, "compared_with": [profile.baseline] if is_compared else []}
        servers.append(own_server(name, map(folder_of, models), deadline, threads, *options, **about))
    return servers


def own_server(name: str, models: Iterable[Path], deadline_ms: int, threads: int, *options: str, **about) -> Server:
    limits = [f"--deadline-ms={deadline_ms}", f"--max-wait-ms={deadline_ms // 2}", f"--workers={threads}"]
    options = [option.format(threads=threads) for option in options]
    return Server(name, "serve.py", list(models), [*limits, *options], **about)


def peer_server(name: str, peer: str, models: Sequence[Path], setting: Sequence[int], **about) -> Server:
    """A peer with the setting (workers, threads, batch); raises UserError if it is not installed."""
    about_peer = PEERS[peer]
    if not about_peer.installed.exists():
        raise UserError(f"{peer} is not installed (no {about_peer.installed}); run: make peers-env")
    options = [f"--{key}={value}" for key, value in zip(("workers", "threads", "batch"), setting, strict=True)]
    about |= {"python": about_peer.environment / "bin" / "python", "installed": about_peer.installed, "ours": False}
    return Server(name, f"peers/{about_peer.name}_server.py", list(models), options, **about)


def comes_to_rest(process: subprocess.Popen) -> bool:
    """True as soon as the process uses few CPU seconds; False if it does not within REST_LIMIT_SECONDS."""
    until = time.monotonic() + REST_LIMIT_SECONDS
    while time.monotonic() < until:
        before = processes.cpu_seconds(process)
        time.sleep(REST_SECONDS)
        if processes.cpu_seconds(process) - before < REST_SECONDS * REST_CORES:
            return True
    return False


class Fleet:
    """Servers that take turns. All start when the first run needs one, so that a finished benchmark starts none."""

    def __init__(self, servers: Sequence[Server], logs: Path, warm_up: Callable[[Server], object]):
        self.servers, self.logs, self.warm_up = servers, logs, warm_up

    def __enter__(self) -> "Fleet":
        self.stack = ExitStack()
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def isolate(self, server: Server) -> None:
        """Pauses all other servers, waits until this one is idle, and resets its peak memory.

        A server that still works on the requests of an earlier run after REST_LIMIT_SECONDS is restarted.
        Raises UserError if the server has ended.
        """
        if server.process is None:
            self.start(self.servers)
        if (status := server.process.poll()) is not None:
            raise UserError(f"{server.name}: ended with status {status}; its log: {self.log(server)}")
        for other in self.servers:
            processes.signal_group(other.process, signal.SIGCONT if other is server else signal.SIGSTOP)
        if not comes_to_rest(server.process):
            processes.stop(server.process)
            self.start([server])
        processes.reset_peak(server.process)

    def start(self, servers: Sequence[Server]) -> None:
        """Raises UserError with the end of the log of a server that does not start."""
        for server in servers:
            server.process = self.stack.enter_context(processes.launched(server.command, self.log(server)))
        for server in servers:
            processes.wait_until_ready(server.name, server.process, server.port, self.log(server), START_SECONDS)
        for server in servers:
            self.warm_up(server)

    def log(self, server: Server) -> Path:
        return self.logs / f"{server.name}.log"
