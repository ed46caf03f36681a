"""Runs to the rows of serving.csv: every column from the raw numbers of the requests."""

import json
from collections.abc import Sequence

import numpy as np
from compress.config.profile import Profile
from compress.errors import UserError
from compress.loadtest.intervals import quantile_interval
from compress.loadtest.runs import LATE, Run, is_outdated, is_void, read_run, serving_folder
from compress.loadtest.servers import COUNTERS, own_layout


def finished_runs(profile: Profile) -> list[Run]:
    """All runs of the present models and code; empty if there are none. Names servers whose runs are left out.

    Raises UserError if a server of the core has no such runs, but others do.
    """
    folder = serving_folder(profile)
    found = [(path, read_run(path)) for path in sorted(folder.glob("*/*.npz"))]
    runs = [run for path, run in found if not is_outdated(path, run)]
    for name in sorted({run.server for _, run in found} - {run.server for run in runs}):
        print(f"{name} is left out: its runs are older than its model or the code; run make serve-bench or serve-peers")
    missing = [name for name in own_layout(profile, "core") if name not in {run.server for run in runs}]
    if runs and missing:
        raise UserError(f"{folder}: no runs of {missing[0]}; run: make serve-bench PROFILE={profile.name}")
    return runs


def serving_rows(profile: Profile, runs: Sequence[Run]) -> list[dict]:
    """The values of a row per server, layout and share of its saturation, all repeats together."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.server, run.layout, run.share), []).append(run)
    names = list(own_layout(profile, "full"))

    def place(key: tuple) -> tuple:
        return (names.index(key[0]) if key[0] in names else len(names), *key)

    return [serving_row(groups[key]) for key in sorted(groups, key=place)]


def serving_row(runs: Sequence[Run]) -> dict:
    """Runs of one server, layout and share; void runs are left out, and `reason` counts them."""
    kept = [run for run in runs if not is_void(run.outcome)]
    tried = sum(run.about["tries"] for run in runs)
    void = f"{tried - len(kept)} of {tried} runs void: the generator was later than {1000 * LATE:.0f} ms"
    numbers = summarize(kept or runs)
    if not kept:
        numbers = {name: numbers[name] for name in ("offered_rps", "lag_ms_p99")}
    first = runs[0]
    about = {"variant": first.server, "layout": first.layout, "share": first.share}
    return about | numbers | {"reason": "" if tried == len(kept) else void}


def summarize(runs: Sequence[Run]) -> dict:
    """The columns of serving.csv for runs of one server, layout and rate, over all of their requests.

    The rates of a closed loop at saturation are medians over the runs, because the open loop's shares are relative to
    those; achieved_rps_low and _high are its slowest and its fastest run.
    The interval of p99 has no upper end where too few latencies are independent.
    """
    latency = np.concatenate([run.outcome.latency for run in runs])
    status = np.concatenate([run.outcome.status for run in runs])
    lag = np.concatenate([run.outcome.lag for run in runs])
    completed, refused = status == 200, status == 429
    p50, p95, p99 = 1000 * np.quantile(latency[completed], [0.5, 0.95, 0.99]) if completed.any() else [None] * 3
    answered = [run.outcome.latency[run.outcome.status == 200] for run in runs]
    low, high = (1000 * end for end in quantile_interval(answered, 0.99)) if completed.any() else [np.inf] * 2
    completed_rps = [run.outcome.completed_rps for run in runs]
    seconds, offered = [run.outcome.seconds for run in runs], [offered_seconds(run) for run in runs]
    total = {name: sum(run.about.get(name, 0) for run in runs) for name in ("cpu_seconds", *COUNTERS)}
    return {
        "offered_rps": float(np.mean([run.rate for run in runs])) if runs[0].rate else None,
        "achieved_rps": mean_rate(runs, completed_rps, seconds),
        "achieved_rps_low": min(completed_rps) if is_saturated(runs[0]) else None,
        "achieved_rps_high": max(completed_rps) if is_saturated(runs[0]) else None,
        "goodput_rps": mean_rate(runs, [in_time_rps(run) for run in runs], offered),
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        "latency_ms_p99": p99,
        "shed_fraction": float(np.mean(refused)),
        "refused_ms_p99": 1000 * float(np.quantile(latency[refused], 0.99)) if refused.any() else None,
        "error_fraction": float(np.mean(~(completed | refused))),
        "batch_size_mean": total["items"] / total["batches"] if total["batches"] else None,
        "padding_ratio": total["padded_tokens"] / total["tokens"] if total["tokens"] else None,
        "server_cpu_seconds_per_request": total["cpu_seconds"] / max(int(completed.sum()), 1),
        "model_cpu_seconds_per_request": total["model_cpu_seconds"] / max(int(completed.sum()), 1) or None,
        "peak_rss_mb": max(run.about["peak_rss_bytes"] for run in runs) / 1e6,
        "requests": len(status),
        "lag_ms_p99": 1000 * float(np.quantile(lag, 0.99)),
        "latency_ms_p99_low": low if np.isfinite(low) else None,
        "latency_ms_p99_high": high if np.isfinite(high) else None,
    }


def mean_rate(runs: Sequence[Run], rates: list[float], seconds: list[float]) -> float:
    """The median at saturation, otherwise the mean over all seconds."""
    return float(np.median(rates) if is_saturated(runs[0]) else np.average(rates, weights=seconds))


def is_saturated(run: Run) -> bool:
    return run.layout == "saturation" or run.layout.startswith("sweep-")


def in_time_rps(run: Run) -> float:
    """Responses with status 200 within the deadline, per second of offered load."""
    outcome = run.outcome
    in_time = (outcome.status == 200) & (outcome.latency <= run.about["deadline"])
    return float(in_time.sum() / offered_seconds(run))


def offered_seconds(run: Run) -> float:
    """Seconds in which requests were sent, without those in which the server then works off its queue."""
    return len(run.outcome.status) / run.rate if run.rate else run.outcome.seconds


def origins(runs: Sequence[Run]) -> list[dict]:
    """Each distinct provenance, with the number of its runs and the names of their servers."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.about["provenance"], sort_keys=True), []).append(run)
    return [
        {"servers": list(dict.fromkeys(run.server for run in group)), "runs": len(group), **json.loads(text)}
        for text, group in groups.items()
    ]
