"""Run files of the benchmark: one per server, layout, rate and repeat, with the raw numbers of every request.

build/<profile>/serving/<server>/<layout>-<share>-<repeat>.npz holds latency, status and lag of every request, and as
JSON the server's resource use, settings and provenance. A run is current while it is newer than its sources (the
served artifacts and the servers' code) and its settings are the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compress.config.budgets import Load
from compress.config.profile import Profile
from compress.errors import UserError
from compress.files import date_to_start, read_arrays, write_arrays
from compress.loadtest.generator import Outcome
from compress.loadtest.servers import Server
from compress.paths import ROOT

LATE = 0.005  # seconds of lag at p99


@dataclass(frozen=True)
class Run:
    server: str
    layout: str  # saturation, open-loop, clients-N, or sweep-WORKERSxTHREADSxBATCH
    share: float  # of the saturation rate; 0 in a closed loop
    rate: float  # offered per second; 0 in a closed loop
    repeat: int
    outcome: Outcome
    about: dict  # settings, deadline, cpu_seconds, peak_rss_bytes, our server's counters, tries, provenance


def serving_folder(profile: Profile) -> Path:
    return profile.build / "serving"


def run_path(folder: Path, server: str, layout: str, share: float, repeat: int) -> Path:
    return folder / server / f"{layout}-{share:.4g}-{repeat}.npz"


def is_void(outcome: Outcome) -> bool:
    """True if the generator itself was late, so that the latencies say nothing about the server."""
    return float(np.quantile(outcome.lag, 0.99)) > LATE


def settings_of(server: Server, load: Load) -> dict:
    return {"command": server.portable_command, "load": load.model_dump(mode="json"), "sources": server.sources}


def write_run(path: Path, run: Run) -> None:
    about = run.about | {"seconds": run.outcome.seconds}
    about |= {name: getattr(run, name) for name in ("server", "layout", "share", "rate", "repeat")}
    arrays = {name: getattr(run.outcome, name) for name in ("latency", "status", "lag")}
    write_arrays(path, arrays | {"about": np.array(json.dumps(about))})
    date_to_start(path)


def read_run(path: Path) -> Run:
    """Raises UserError if the file is missing or damaged."""
    arrays = read_arrays(path)
    try:
        about = json.loads(str(arrays["about"]))
        outcome = Outcome(arrays["latency"], arrays["status"], arrays["lag"], about["seconds"])
        about["settings"]["sources"], about["provenance"]
        return Run(about["server"], about["layout"], about["share"], about["rate"], about["repeat"], outcome, about)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not a finished run ({error}); remove it and run the benchmark again") from None


def current_run(path: Path, accepted: Sequence[dict]) -> Run | None:
    """The file's run if it is there with accepted settings and not void."""
    if not path.exists():
        return None
    run = read_run(path)
    return run if run.about["settings"] in accepted and not is_void(run.outcome) else None


def remove_outdated(folder: Path) -> None:
    """Removes a server's damaged runs, and those with a source that is newer or gone."""
    for path in folder.glob("*.npz"):
        try:
            outdated = is_outdated(path, read_run(path))
        except UserError:
            outdated = True
        if outdated:
            path.unlink()


def is_outdated(path: Path, run: Run) -> bool:
    """Whether a source of the run is newer than its file, or gone; true for a run without sources."""
    sources = [ROOT / source for source in run.about["settings"]["sources"]]
    written = path.stat().st_mtime
    return not sources or any(not source.exists() or source.stat().st_mtime > written for source in sources)


def remove_other_settings(folder: Path, server: str, accepted: Sequence[dict]) -> None:
    """Removes the server's runs with other settings; every row of serving.csv summarizes runs of one kind."""
    for path in (folder / server).glob("*.npz"):
        if not path.stem.startswith("sweep-") and read_run(path).about["settings"] not in accepted:
            path.unlink()
