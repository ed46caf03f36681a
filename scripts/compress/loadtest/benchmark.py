"""The HTTP benchmark: servers take turns under load, and each run is written to a file as soon as it ends.

The servers run side by side, with all but one paused, and every repeat visits each of them, so that slow drift of the
machine averages out. Existing runs are kept; see compress.loadtest.runs.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from compress.config.budgets import BESIDE_PEERS, CALM, FIVE, Load
from compress.config.profile import Profile
from compress.cpu import raise_file_limit
from compress.data.card import load_splits
from compress.errors import UserError
from compress.loadtest.generator import closed_loop, open_loop, payloads, poisson
from compress.loadtest.processes import HOST, PATH
from compress.loadtest.runs import (
    Run,
    current_run,
    is_void,
    read_run,
    remove_other_settings,
    remove_outdated,
    run_path,
    serving_folder,
    settings_of,
    write_run,
)
from compress.loadtest.servers import PEERS, Fleet, Server, own_server, own_servers, peer_server
from compress.provenance import provenance
from tqdm import tqdm

WARMUP_SECONDS = 1.0
CLIENTS = (1, 10, 50)  # the course's loads on its five-model service
TRIES = 3  # at a run, until it is not void


@dataclass(frozen=True)
class Benchmark:
    """What all runs of a benchmark share."""

    folder: Path
    load: Load
    accepted: Sequence[Load]  # budgets under which an existing run counts
    again: bool  # measures existing runs again
    requests: Sequence[bytes]
    provenance: dict

    def measure(self, servers: Sequence[Server]) -> None:
        """Measures the servers in all layouts and at all rates."""
        for server in servers:
            remove_outdated(self.folder / server.name)
            remove_other_settings(self.folder, server.name, [] if self.again else self.accepted_settings(server))
        with self.fleet(servers) as fleet:
            self.measure_open(fleet, self.measure_closed(fleet))

    def fleet(self, servers: Sequence[Server]) -> Fleet:
        return Fleet(servers, self.folder, self.warm_up)

    def warm_up(self, server: Server) -> None:
        closed_loop(HOST, server.port, self.requests, self.load.connections, WARMUP_SECONDS)

    def measure_closed(self, fleet: Fleet) -> dict[str, float]:
        """The saturation rate of every server, the median of its repeats; and the runs with the course's clients."""
        layouts = {"saturation": self.load.connections} | {f"clients-{n}": n for n in CLIENTS}
        steps = [
            (repeat, layout, server)
            for repeat in range(self.load.saturation_repeats)
            for layout in layouts
            for server in fleet.servers
            if layout == "saturation" or server.with_clients
        ]
        for repeat, layout, server in tqdm(steps, desc="closed loop", disable=None):
            self.closed(fleet, server, layout, layouts[layout], repeat)
        return {server.name: self.saturation(server) for server in fleet.servers}

    def saturation(self, server: Server) -> float:
        """The median rate of all current runs: there may be more repeats of an earlier benchmark.

        Raises UserError if it is zero.
        """
        files = (self.folder / server.name).glob("saturation-*.npz")
        rate = float(np.median([read_run(path).outcome.completed_rps for path in files]))
        if rate == 0:
            raise UserError(f"{server.name} completed no request under full load; its log is below {self.folder}")
        return rate

    def measure_open(self, fleet: Fleet, saturated: dict[str, float]) -> None:
        """Every server at the budget's shares of its saturation rate, and at CALM of those in compared_with."""
        loads = [(share, server) for share in self.load.rates for server in fleet.servers]
        loads += [
            (CALM * saturated[other] / saturated[server.name], server)
            for server in fleet.servers
            for other in server.compared_with
        ]
        steps = [(repeat, share, server) for repeat in range(self.load.repeats) for share, server in loads]
        for repeat, share, server in tqdm(steps, desc="open loop", disable=None):
            self.open(fleet, server, share, share * saturated[server.name], repeat)

    def closed(self, fleet: Fleet, server: Server, layout: str, clients: int, repeat: int) -> Run:
        send = partial(closed_loop, HOST, server.port, self.requests, clients, self.load.saturation_seconds)
        return self.run(fleet, server, layout, 0, 0.0, repeat, send)

    def open(self, fleet: Fleet, server: Server, share: float, rate: float, repeat: int) -> Run:
        load = self.load
        count = max(load.responses * max(share, 1.0) / load.repeats, rate * load.least_seconds)
        count = min(count, rate * load.most_seconds)
        moments = poisson(rate, int(np.ceil(count)), repeat)
        start = repeat * len(self.requests) // load.repeats  # another part of the texts in every repeat
        requests = [*self.requests[start:], *self.requests[:start]]
        send = partial(open_loop, HOST, server.port, requests, moments)
        return self.run(fleet, server, "open-loop", share, rate, repeat, send)

    def run(self, fleet, server: Server, layout: str, share: float, rate: float, repeat: int, send: Callable) -> Run:
        """The existing run, or else a new one; a void run is tried again, up to TRIES times in all."""
        path = run_path(self.folder, server.name, layout, share, repeat)
        if not self.again and (run := current_run(path, self.accepted_settings(server))):
            return run
        tries, outcome = 0, None
        while outcome is None or (is_void(outcome) and tries < TRIES):
            tries += 1
            fleet.isolate(server)
            before, outcome, after = server.usage(), send(), server.usage()
        about = {name: after[name] - before[name] for name in after} | {
            "peak_rss_bytes": after["peak_rss_bytes"],
            "settings": settings_of(server, self.load),
            "tries": tries,
            "provenance": self.provenance,
            "deadline": self.load.deadline_ms / 1000,
        }
        run = Run(server.name, layout, share, rate, repeat, outcome, about)
        write_run(path, run)
        return run

    def accepted_settings(self, server: Server) -> list[dict]:
        return [settings_of(server, load) for load in self.accepted]

    def best_setting(self, peer: str, models: Sequence[Path], threads: int) -> tuple[int, int, int]:
        """The peer's setting with the highest saturation rate, the median of its repeats."""
        rates, sweep = {}, PEERS[peer].sweep(threads)
        remove_outdated(self.folder / peer)
        for setting in tqdm(sweep if len(sweep) > 1 else [], desc=f"settings of {peer}", disable=None):
            server, layout = peer_server(peer, peer, models, setting), f"sweep-{'x'.join(map(str, setting))}"
            with self.fleet([server]) as fleet:
                repeats = range(self.load.saturation_repeats)
                runs = [self.closed(fleet, server, layout, self.load.connections, repeat) for repeat in repeats]
            rates[setting] = float(np.median([run.outcome.completed_rps for run in runs]))
        return max(rates, key=rates.get, default=sweep[0])


def run_benchmark(args: argparse.Namespace, profile: Profile, folder_of: Callable[[str], Path]) -> int:
    """Measures our servers, or the peers; args has scope, threads, peers, only, and again. Returns their number.

    folder_of gives the folder of a variant.
    """
    splits = load_splits(profile, seed=0)
    texts = [text for name in ("test", "validation", "train") for text in splits[name]["text"]]
    budget = profile.serving.of_scope("full" if args.peers else args.scope).load
    benchmark = Benchmark(
        folder=serving_folder(profile),
        load=budget,
        accepted=[budget, profile.serving.load],
        again=args.again,
        requests=payloads(texts, HOST, PATH),
        provenance=provenance(0, args.threads, "cpu"),
    )
    raise_file_limit()  # a connection per waiting request; the servers inherit the limit
    if args.peers:
        servers = servers_with_peers(benchmark, profile, args.threads, folder_of, args.only)
    else:
        servers = own_servers(profile, args.scope, args.threads, folder_of)
    servers = only_named(servers, args.only)
    benchmark.measure(servers)
    return len(servers)


def only_named(servers: list[Server], names: Sequence[str]) -> list[Server]:
    """The servers with these names, or all without names.

    Raises UserError for an unknown name, and for a server that is also measured at the rate of one that is not named.
    """
    if unknown := set(names) - {server.name for server in servers}:
        known = ", ".join(server.name for server in servers)
        raise UserError(f"--only: the benchmark has no server {sorted(unknown)[0]!r}; it has: {known}")
    chosen = [server for server in servers if not names or server.name in names]
    for server in chosen:
        if others := sorted(set(server.compared_with) - {other.name for other in chosen}):
            rates = f"the rates of {', '.join(others)}"
            raise UserError(f"--only: {server.name} is also measured at {rates}: name them, too")
    return chosen


def servers_with_peers(
    benchmark: Benchmark, profile: Profile, threads: int, folder_of: Callable, only: Sequence[str]
) -> list[Server]:
    """Our server and every installed peer at its best setting, with the same model; the course's also with all five.

    The best setting is measured only for peers in `only`, if that names any server.
    """
    peers = [peer for peer in PEERS if PEERS[peer].installed.exists()]
    if left_out := sorted(PEERS.keys() - peers):
        print(f"not installed and left out: {', '.join(left_out)} (make peers-env)")
    ablated = profile.serving.ablated
    models = [folder_of(ablated)]
    name, deadline = ablated + BESIDE_PEERS, benchmark.load.deadline_ms
    servers = [own_server(name, models, deadline, threads, compared_with=peers)]
    for peer in peers:
        is_measured = not only or peer in only
        setting = benchmark.best_setting(peer, models, threads) if is_measured else PEERS[peer].sweep(threads)[0]
        servers.append(peer_server(peer, peer, models, setting))
    if profile.services and "peer-course" in peers:
        folders = [folder_of(service.name) for service in profile.services]
        setting = PEERS["peer-course"].sweep(threads)[0]
        servers.append(peer_server(f"peer-course-{FIVE}", "peer-course", folders, setting, with_clients=True))
    return servers
