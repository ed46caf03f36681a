"""The load generator against servers of a few lines, and the summary and staleness of its runs."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from compress.config.budgets import CALM, Load
from compress.config.profile import load_profile
from compress.errors import UserError
from compress.loadtest import generator as load
from compress.loadtest import runs, summary
from compress.loadtest.benchmark import Benchmark, only_named, servers_with_peers
from compress.loadtest.processes import HOST, free_port, launched
from compress.loadtest.runs import Run, is_void
from compress.loadtest.servers import COUNTERS, PEERS, Fleet, Server, own_servers
from compress.loadtest.summary import serving_row
from compress.paths import SCRIPTS


@contextmanager
def server(respond):
    """A raw HTTP server in a thread; respond(number of the request) -> (seconds to wait, status or None to hang up)."""
    port, ready, loops = free_port(), threading.Event(), []
    numbers = iter(range(10**9))
    bodies = []

    async def client(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                bodies.append(await reader.readexactly(length))
                wait, status = respond(next(numbers))
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


def test_a_stall_counts_for_every_request_that_was_due_meanwhile():
    start = []

    def respond(_):
        now = time.monotonic()
        start.append(now)
        since = now - start[0]
        return (1.0 - since if 0.5 < since < 1.0 else 0.0), 200  # no response between 0.5 and 1.0 s

    with server(respond) as (port, bodies):
        outcome = load.open_loop(HOST, port, requests(300), load.poisson(200.0, 300, 0))
    assert (outcome.status == 200).all()
    assert len(set(bodies)) == 300  # a different text in every request
    stalled = outcome.latency > 0.05
    assert 0.2 < stalled.mean() < 0.45  # a third of the time; a client that waits for responses would see it once
    assert outcome.latency.max() == pytest.approx(0.5, abs=0.1)


def test_statuses_and_lost_requests_are_distinguished():
    kinds = [(0.0, 200), (0.0, 429), (0.0, 500), (0.0, None)]
    with server(lambda number: kinds[number % 4]) as (port, _):
        outcome = load.open_loop(HOST, port, requests(40), np.linspace(0.01, 0.4, 40))
    assert sorted(set(outcome.status.tolist())) == [load.LOST, 200, 429, 500]
    assert np.isnan(outcome.latency[outcome.status == load.LOST]).all()
    assert not np.isnan(outcome.latency[outcome.status != load.LOST]).any()


def test_a_closed_loop_has_at_most_one_open_request_per_client():
    busy, most = 0, 0

    def respond(_):
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        asyncio.get_running_loop().call_later(0.02, done)
        return 0.02, 200

    def done():
        nonlocal busy
        busy -= 1

    with server(respond) as (port, _):
        outcome = load.closed_loop(HOST, port, requests(10), 5, 0.5)
    assert most <= 5
    assert len(outcome.status) == pytest.approx(5 * 0.5 / 0.02, rel=0.3)
    assert (outcome.status == 200).all()


@pytest.mark.parametrize("status", [429, None])
def test_a_refused_client_waits_before_its_next_request(status):
    with server(lambda _: (0.0, status)) as (port, bodies):
        outcome = load.closed_loop(HOST, port, requests(10), 5, 0.5)
    assert 25 <= len(bodies) == len(outcome.status) <= 5 * 0.5 / load.BACKOFF
    assert (outcome.status == (status or load.LOST)).all()


def test_a_run_with_a_late_generator_is_void():
    moments = np.linspace(0.001, 0.1, 100)
    outcome = load.Outcome(moments, np.full(100, 200), np.full(100, 0.006), 0.1)
    assert is_void(outcome)
    assert not is_void(load.Outcome(moments, np.full(100, 200), np.full(100, 0.001), 0.1))


def test_without_a_server_requests_are_lost():
    outcome = load.open_loop(HOST, free_port(), requests(5), np.linspace(0.01, 0.05, 5))
    assert (outcome.status == load.LOST).all()


class OneServer:
    """A fleet whose server runs already."""

    def __init__(self, server: Server):
        self.servers = [server]

    def isolate(self, server: Server) -> None:
        pass


def benchmark(folder, **budget) -> Benchmark:
    return Benchmark(folder, Load(repeats=1, **budget), [], True, requests(50), {"seed": 0})


def test_a_rate_is_offered_until_the_budgets_requests_are_sent_or_its_time_is_over(tmp_path, monkeypatch):
    usage = dict.fromkeys(("cpu_seconds", "peak_rss_bytes", *COUNTERS), 0)
    monkeypatch.setattr(Server, "usage", lambda _: usage)
    monkeypatch.setattr(runs, "LATE", 10.0)  # on a busy machine a late generator would repeat the run
    short = benchmark(tmp_path, responses=400, least_seconds=0.1, most_seconds=1.0)
    with server(lambda _: (0.0, 200)) as (port, bodies):
        ours = Server("ours", "serve.py", [], [], port=port)
        for share, rate, sent in ((0.5, 800.0, 400), (1.5, 1000.0, 600), (0.1, 100.0, 100)):
            bodies.clear()
            run = short.open(OneServer(ours), ours, share, rate, 0)
            assert len(bodies) == len(run.outcome.status) == sent
            row = serving_row([run])
            assert row["requests"] == sent
            assert 0 < row["latency_ms_p99_low"] <= row["latency_ms_p99"]
            high = row["latency_ms_p99_high"]
            assert high is None or high >= row["latency_ms_p99"]
            assert sent > 100 or high is None  # a hundred requests don't bound p99


def test_models_are_offered_the_baselines_calm_rate_too(tmp_path, monkeypatch):
    profile = load_profile("minilm")
    models = profile.serving.variants
    servers = own_servers(profile, "full", 2, tmp_path.joinpath)
    assert {of.name for of in servers if of.compared_with} == set(models) - {profile.baseline}
    offered = []
    monkeypatch.setattr(Benchmark, "open", lambda _, fleet, server, share, rate, repeat: offered.append((server, rate)))
    base, other = (next(of for of in servers if of.name == name) for name in models[:2])
    fleet = OneServer(base)
    fleet.servers.append(other)
    benchmark(tmp_path, rates=[CALM]).measure_open(fleet, {base.name: 200.0, other.name: 1000.0})
    assert [(server.name, round(rate, 6)) for server, rate in offered] == [
        (base.name, 140.0),
        (other.name, 700.0),
        (other.name, 140.0),
    ]


def test_the_offered_rates_are_shares_of_the_median_saturation(tmp_path):
    ours, measured = Server("ours", "serve.py", [], []), benchmark(tmp_path)

    def write_runs(status: int) -> None:
        for repeat, seconds in enumerate((3.0, 1.0, 10.0)):
            outcome = replace(a_run().outcome, status=np.full(100, status, np.int16), seconds=seconds)
            path = runs.run_path(tmp_path, "ours", "saturation", 0, repeat)
            runs.write_run(path, replace(a_run(), layout="saturation", outcome=outcome))

    write_runs(200)
    assert measured.saturation(ours) == pytest.approx(100 / 3)
    write_runs(429)
    with pytest.raises(UserError, match="ours completed no request under full load"):
        measured.saturation(ours)


def test_a_peer_is_measured_at_its_best_setting_and_only_if_it_is_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("compress.loadtest.servers.ROOT", tmp_path)
    for peer in ("peer-mosec", "peer-course"):
        PEERS[peer].installed.parent.mkdir(parents=True)
        PEERS[peer].installed.touch()
    swept = []

    def closed(_, fleet, server, layout, clients, repeat):
        setting = dict(option.removeprefix("--").split("=") for option in server.options)
        swept.append((server.name, repeat))
        rate = 100 - (int(setting["batch"]) - 4) ** 2 + (50 if repeat == 0 else 0)  # the first repeat is lucky
        return SimpleNamespace(outcome=SimpleNamespace(completed_rps=rate))

    monkeypatch.setattr(Benchmark, "closed", closed)
    monkeypatch.setattr(Benchmark, "fleet", lambda _, servers: nullcontext(SimpleNamespace(servers=servers)))
    measured, profile = replace(benchmark(tmp_path), load=Load(saturation_repeats=3)), load_profile("minilm")
    servers = servers_with_peers(measured, profile, 2, tmp_path.joinpath, [])
    ours, mosec, course, five = servers
    assert "not installed and left out: peer-infinity, peer-litserve (make peers-env)" in capsys.readouterr().out
    assert (ours.name, ours.compared_with) == (f"{profile.serving.ablated}-beside-peers", ["peer-mosec", "peer-course"])
    assert mosec.options == ["--workers=2", "--threads=1", "--batch=4"]
    assert ours.models == mosec.models == course.models == [tmp_path / profile.serving.ablated]
    assert swept == [("peer-mosec", repeat) for _ in PEERS["peer-mosec"].sweep(2) for repeat in range(3)]
    assert course.options == ["--workers=1", "--threads=2", "--batch=0"], "one setting: nothing to compare"
    assert (five.name, len(five.models), five.with_clients) == ("peer-course-five-services", 5, True)
    swept.clear()
    servers_with_peers(measured, profile, 2, tmp_path.joinpath, ["peer-course"])
    assert not swept, "only the named peers are swept"


def test_only_named_servers_are_measured_with_those_that_set_their_rates(tmp_path):
    servers = own_servers(load_profile("minilm"), "full", 2, tmp_path.joinpath)
    base, other = (of.name for of in servers[:2])
    assert [of.name for of in only_named(servers, [base, other])] == [base, other]
    assert only_named(servers, []) == servers
    with pytest.raises(UserError, match=f"{other} is also measured at the rates of {base}: name them, too"):
        only_named(servers, [other])
    with pytest.raises(UserError, match=f"no server 'x'; it has: {base}, {other}, "):
        only_named(servers, ["x"])


def test_a_server_that_has_ended_is_not_measured(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        process.wait()
        ended = Server("ours", "serve.py", [], [], process=process)
        with Fleet([ended], tmp_path, None) as fleet, pytest.raises(UserError, match="ours: ended with status 3"):
            fleet.isolate(ended)


def test_a_server_that_still_works_on_earlier_requests_is_restarted(tmp_path, monkeypatch):
    programs, processes = ["while True: pass", "import time; time.sleep(600)"], []

    def start(fleet, of):
        for server in of:
            command = [sys.executable, "-c", programs[len(processes)]]
            server.process = fleet.stack.enter_context(launched(command, tmp_path / "log"))
            processes.append(server.process)

    monkeypatch.setattr("compress.loadtest.servers.REST_LIMIT_SECONDS", 0.6)
    monkeypatch.setattr(Fleet, "start", start)
    busy = Server("busy", "serve.py", [], [])
    with Fleet([busy], tmp_path, None) as fleet:
        fleet.isolate(busy)
        assert len(processes) == 2
        assert processes[0].poll() is not None, "the busy server must be gone"
        fleet.isolate(busy)
        assert len(processes) == 2, "a server at rest goes on"


def a_run(share=0.5, lag=0.001, tries=1, settings=None, sources=()):
    """A run of 100 requests in 2 s, of which 10 were refused and 10 came too late; the last response came at 2.5 s."""
    status = np.full(100, 200, np.int16)
    status[:10] = 429
    latency = np.full(100, 0.1)
    latency[10:20] = 0.9
    about = {"settings": (settings or {}) | {"sources": list(sources)}, "provenance": {"seed": 0}, "tries": tries}
    about |= {"deadline": 0.5, "cpu_seconds": 0.9, "peak_rss_bytes": 10**8, "batches": 30, "items": 90}
    about |= {"tokens": 900, "padded_tokens": 1800, "model_cpu_seconds": 0.6}
    outcome = load.Outcome(latency, status, np.full(100, lag), 2.5)
    return Run("ours", "open-loop", share, 50.0, 0, outcome, about)


def test_a_summary_counts_responses_refusals_and_time_limits():
    row = serving_row([a_run(), a_run()])
    assert row["achieved_rps"] == 36
    assert row["goodput_rps"] == 40  # of the seconds in which requests were sent
    assert row["shed_fraction"] == 0.1
    assert row["error_fraction"] == 0
    assert (row["batch_size_mean"], row["padding_ratio"]) == (3, 2)
    assert row["server_cpu_seconds_per_request"] == pytest.approx(0.01)
    assert row["model_cpu_seconds_per_request"] == pytest.approx(0.6 / 90)
    assert row["requests"] == 200
    assert row["reason"] == ""


def test_void_runs_are_left_out_and_counted():
    row = serving_row([a_run(), a_run(lag=0.009, tries=3)])
    assert row["requests"] == 100
    assert row["reason"].startswith("3 of 4 runs void")
    alone = serving_row([a_run(lag=0.009, tries=3)])
    assert "achieved_rps" not in alone
    assert alone["offered_rps"] == 50
    assert alone["reason"].startswith("3 of 3 runs void")


def test_a_run_is_kept_while_its_artifact_and_settings_are_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    artifact, settings = tmp_path / "artifact.json", {"command": ["serve.py", "--workers=2"]}
    artifact.write_text("{}")
    os.utime(artifact, (0, 0))  # a run has the date of the process's start
    folder = tmp_path / "serving"
    path = runs.run_path(folder, "ours", "open-loop", 0.5, 0)
    runs.write_run(path, a_run(settings=settings, sources=["artifact.json"]))
    written = path.stat().st_mtime
    runs.remove_outdated(folder / "ours")
    kept = runs.current_run(path, [settings | {"sources": ["artifact.json"]}])
    np.testing.assert_array_equal(kept.outcome.latency, a_run().outcome.latency)
    other = {"command": ["serve.py", "--workers=1"]}
    assert runs.current_run(path, [other | {"sources": ["artifact.json"]}]) is None
    assert runs.current_run(path, [settings | {"sources": ["artifact.json", "serve.py"]}]) is None
    profile = SimpleNamespace(build=tmp_path, name="x")
    monkeypatch.setattr(summary, "own_layout", lambda *_: {})
    assert [run.server for run in summary.finished_runs(profile)] == ["ours"]
    os.utime(artifact, (written + 1, written + 1))
    assert summary.finished_runs(profile) == []
    assert capsys.readouterr().out.startswith("ours is left out: its runs are older")
    runs.remove_outdated(folder / "ours")
    assert not path.exists()


def test_damaged_void_and_other_runs_are_measured_again(tmp_path):
    path = runs.run_path(tmp_path, "ours", "open-loop", 0.5, 0)
    runs.write_run(path, a_run(settings={"workers": 2}, lag=0.009))
    assert runs.current_run(path, [{"workers": 2, "sources": []}]) is None
    runs.remove_other_settings(tmp_path, "ours", [{"workers": 2, "sources": []}])
    assert path.exists()
    runs.remove_other_settings(tmp_path, "ours", [{"workers": 1}])
    assert not path.exists()
    path.write_bytes(b"no run")
    with pytest.raises(UserError, match=str(path)):
        runs.read_run(path)
    runs.remove_outdated(tmp_path / "ours")
    assert not path.exists()


def test_a_killed_benchmark_leaves_no_server_behind(tmp_path):
    code = f"""
import signal, sys
from pathlib import Path
from compress.loadtest.processes import launched
with launched([sys.executable, "-c", "import time; time.sleep(600)"], Path({str(tmp_path / "log")!r})) as process:
    print(process.pid, flush=True)
    signal.pause()
"""
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as benchmark:
        server = psutil.Process(int(benchmark.stdout.readline()))
        server.suspend()  # as the servers are that wait for their turn
        benchmark.kill()
    assert server.wait(timeout=5) is None or not server.is_running()
