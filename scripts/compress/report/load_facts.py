"""What the load benchmark showed of each server: saturation, the sustained rate, behaviour in overload."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from compress.config.budgets import ABLATIONS, BESIDE_PEERS, CALM, FIVE, PEER
from compress.results.reading import Results, by_variant, same_kind
from compress.results.rows import ServingRow

UNANSWERED = 0.01  # at most, of the requests at a sustained rate
LEAD = 1.3  # aimed at: the rate at saturation over the best peer's


@dataclass(frozen=True)
class ServerFacts:
    """One server; rates are requests per second. Rows are None where that load was not offered or not measured."""

    variant: str
    full: ServingRow  # saturated by closed-loop clients
    calm: ServingRow | None
    over: ServingRow | None
    most: float  # the largest measured rate: at saturation, or while settings were tried
    sustained: float | None  # the largest offered rate that passes
    failed: list[float]  # offered above the sustained rate
    outliers: list[ServingRow]  # failed below the sustained rate
    unknown: list[float]  # offered, but the load generator was late in every run
    discarded: int  # runs whose load generator was late
    peak_rss_mb: float | None  # the sum of its processes' peaks, the largest of all runs

    @property
    def saturated(self) -> float:
        return self.full.achieved_rps

    @property
    def goodput(self) -> float | None:
        """Requests per second answered in time under overload."""
        return self.over and self.over.goodput_rps

    @property
    def is_peer(self) -> bool:
        return self.variant.startswith(PEER)

    @property
    def model_ms(self) -> float | None:
        """CPU milliseconds per request in the model's own call."""
        seconds = self.full.model_cpu_seconds_per_request
        return None if seconds is None else 1e3 * seconds

    @property
    def cpu_ms(self) -> float | None:
        seconds = self.full.server_cpu_seconds_per_request
        return None if seconds is None else 1e3 * seconds


def runs_with_peers(server: str) -> bool:
    """True for a peer, and for our own server in the peers' turns."""
    return server.startswith(PEER) or server.endswith(BESIDE_PEERS)


def open_rows(rows: Iterable[ServingRow]) -> list[ServingRow]:
    """The measured rows of the open loop, by offered rate."""
    measured = [row for row in rows if row.layout == "open-loop" and row.latency_ms_p99 is not None]
    return sorted(measured, key=lambda row: row.offered_rps)


def passes(row: ServingRow, p99_ms: float) -> bool:
    """MLPerf's server rule for BERT: p99 within the limit, and 99 % answered."""
    return row.latency_ms_p99 <= p99_ms and row.shed_fraction + row.error_fraction <= UNANSWERED


def server_facts(rows: Iterable[ServingRow], p99_ms: float, peers: bool = False) -> dict[str, ServerFacts]:
    """Every saturated server by name: our own, or those that took turns with the peers."""
    found = {}
    for name, of_server in by_variant(row for row in rows if runs_with_peers(row.variant) == peers).items():
        full = next((row for row in of_server if row.layout == "saturation"), None)
        if full is None:
            continue
        by_share = {row.share: row for row in of_server if row.layout == "open-loop" and row.share}
        largest, opened = max(by_share, default=0), open_rows(of_server)
        failed = [row for row in opened if not passes(row, p99_ms)]
        limit = max((row.offered_rps for row in opened if passes(row, p99_ms)), default=None)
        found[name] = ServerFacts(
            variant=name,
            full=full,
            calm=by_share.get(CALM),
            over=by_share[largest] if largest > 1 else None,
            most=max([full.achieved_rps or 0, *(rate for _, rate in settings_tried(of_server))]),
            sustained=limit,
            failed=[row.offered_rps for row in failed if row.offered_rps > (limit or 0)],
            outliers=[row for row in failed if row.offered_rps < (limit or 0)],
            unknown=[row.offered_rps for row in by_share.values() if row.latency_ms_p99 is None],
            discarded=sum(int(row.reason.split()[0]) for row in of_server if row.reason[:1].isdigit()),
            peak_rss_mb=max((row.peak_rss_mb for row in of_server if row.peak_rss_mb), default=None),
        )
    return found


def served_models(facts: dict[str, ServerFacts], results: Results) -> dict[str, ServerFacts]:
    """The servers of one model each, without those that have something changed."""
    models = {row.variant for row in results.variants}
    return {name: fact for name, fact in facts.items() if name in models}


def best_model(facts: dict[str, ServerFacts], results: Results) -> ServerFacts | None:
    """The served model with the highest rate at saturation."""
    return max(served_models(facts, results).values(), key=lambda fact: fact.saturated, default=None)


def single_model(facts: dict[str, ServerFacts]) -> list[ServerFacts]:
    """The peers that serve one model."""
    return [fact for name, fact in facts.items() if fact.is_peer and not name.endswith(FIVE)]


def own_among_peers(facts: dict[str, ServerFacts]) -> ServerFacts | None:
    return next((fact for name, fact in facts.items() if name.endswith(BESIDE_PEERS)), None)


def ablated_servers(facts: dict[str, ServerFacts], name: str) -> dict[str, ServerFacts]:
    """The servers with one thing changed, by that thing."""
    return {change: facts[of] for change in ABLATIONS if (of := f"{name}-{change}") in facts}


def settings_tried(rows: Iterable[ServingRow]) -> list[tuple[str, float]]:
    """(processes x threads x batch, rate) of each setting that was tried for a peer, the best first."""
    swept = [row for row in rows if row.layout.startswith("sweep-")]
    found = [(row.layout.removeprefix("sweep-"), row.achieved_rps) for row in swept]
    return sorted(found, key=lambda setting: -setting[1])


def same_load(rows: Iterable[ServingRow]) -> list[tuple[ServingRow, ServingRow]]:
    """(a peer's run, our run) where both were offered CALM of that peer's saturated rate."""
    rows = open_rows(rows)
    theirs = [row for row in rows if row.share == CALM and row.variant.startswith(PEER)]
    ours = [row for row in rows if row.variant.endswith(BESIDE_PEERS)]
    return [(a, b) for a in theirs for b in ours if is_equal_rate(a, b)]


def is_equal_rate(a: ServingRow, b: ServingRow) -> bool:
    return abs(b.offered_rps / a.offered_rps - 1) < 1e-3


def equal_rate(rows: Iterable[ServingRow], base: str) -> list[ServingRow]:
    """Our servers' rows at CALM of the base server's saturated rate, its own among them; empty without another's."""
    own = [row for row in open_rows(rows) if not runs_with_peers(row.variant)]
    found = [row for of in own if (of.variant, of.share) == (base, CALM) for row in own if is_equal_rate(of, row)]
    return found if len(found) > 1 else []


class JudgedRate(NamedTuple):
    row: ServingRow
    passes: bool


def judged_rates(rows: Iterable[ServingRow], names: Iterable[str], p99_ms: float) -> list[JudgedRate]:
    """Every rate offered to these servers, and whether it passes."""
    of_server = by_variant(open_rows(rows))
    return [JudgedRate(row, passes(row, p99_ms)) for name in names for row in of_server.get(name, [])]


class ClientLoop(NamedTuple):
    clients: int
    row: ServingRow


def client_loops(rows: Iterable[ServingRow]) -> list[ClientLoop]:
    """The closed loops with the course's numbers of clients, by server and number."""
    own = [row for row in rows if row.layout.startswith("clients-")]
    loops = [ClientLoop(int(row.layout.removeprefix("clients-")), row) for row in own]
    return sorted(loops, key=lambda loop: (loop.row.variant, loop.clients))


def open_minutes(rows: Iterable[ServingRow]) -> float:
    """Minutes of open load."""
    return sum((row.requests or 0) / row.offered_rps for row in rows if row.layout == "open-loop") / 60


def offered_shares(rows: Iterable[ServingRow]) -> list[float]:
    """The shares of saturation that all of our own servers were offered."""
    own = [row for row in rows if row.layout == "open-loop" and not runs_with_peers(row.variant)]
    shares = [{row.share for row in of_server if row.share} for of_server in by_variant(own).values()]
    return sorted(set.intersection(*shares)) if shares else []


def offline_rate(fact: ServerFacts, results: Results) -> float | None:
    """Sentences per second of the served file in its best batches, without a server.

    None if that was measured on another kind of machine than the load tests.
    """
    if other_machine([fact.variant], results):
        return None
    return results.by_name[fact.variant].throughput_per_s


def other_machine(servers: Iterable[str], results: Results) -> dict | None:
    """The machine of these servers' load tests, if it is of another kind than that of all other times."""
    machines = map(results.serving_machine, servers)
    return next((machine for machine in machines if not same_kind(machine, results.machine)), None)


def peer_settings(rows: Iterable[ServingRow]) -> list[dict]:
    """The settings tried for each peer, with the rate at each."""
    tried = {name: settings_tried(of_server) for name, of_server in by_variant(rows).items()}
    return [{"name": name, "settings": settings} for name, settings in tried.items() if settings]
