"""What figures and report read: results/<profile>/ (a GPU's in its folder cuda/) and nothing else."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from compress.config.profile import Profile
from compress.errors import UserError

TEXT = {
    "task",
    "layout",
    "variant",
    "chapter",
    "method",
    "parent",
    "backend",
    "precision",
    "device",
    "trained",
    "status",
    "reason",
    "text",
    "label",
    "answer",
}

FURTHER = ("serving", "services", "reliability", "flips", "seeds")  # tables that not every run has

BESIDE = "-beside-peers"  # our own server in the peers' turns
# The baseline beside a row may take this many times what it takes beside the others; else something else ran, too.
DISTURBED = 1.6

NOISY = "not timed on a quiet machine"  # how the reason of such a row begins

CALM = 0.7  # of a peer's saturation: where its latency and ours are compared

# Columns of variants.csv that a further seed has, too, and those of seeds.csv that stand in for one seed's.
QUALITY = (
    "f1_test",
    "f1_drop_points",
    "flip_rate",
    "batch_flip_rate",
    "accuracy_test",
    "f1_macro_test",
    "ece_test",
    "f1_amazon",
    "f1_tweets",
    "f1_nyt",
)
TIMES = ("latency_ms_p50", "latency_ms_p95", "latency_speedup", "throughput_per_s", "throughput_speedup")
POOLED = {
    "f1_ci_low": "f1_ci_low",
    "f1_ci_high": "f1_ci_high",
    "f1_drop_ci_low": "drop_ci_low",
    "f1_drop_ci_high": "drop_ci_high",
    "mcnemar_p_holm": "mcnemar_p_holm",
}


@dataclass(frozen=True)
class Results:
    rows: list[dict]  # of variants.csv: numbers as float, empty cells as None
    environment: dict
    data: dict
    methods: dict  # by variant: options, details, seconds
    serving: list[dict]  # of serving.csv; empty where the HTTP benchmark has not run
    services: list[dict]  # of services.csv, likewise
    reliability: list[dict]  # of reliability.csv and flips.csv; empty where the raw logits were not at hand
    flips: list[dict]
    seeds: list[dict]  # of seeds.csv; empty for a single seed
    gpu: "Results | None" = None

    @property
    def variants(self) -> list[dict]:
        """A row per variant: its costs, which are the first seed's, and its quality, the mean of all seeds that it has.

        Where there are several, intervals are those of the means, and p is pooled over the seeds. latency_ms is the
        median latency with the machine's drift taken out: the baseline's over the speed-up measured beside it.
        """
        of_variant, pooled = by_variant(self.rows), {row["variant"]: row for row in self.seeds}
        base = of_variant[self.environment["baseline"]][0]
        found = []
        for name, rows in of_variant.items():
            row = dict(rows[0])
            if row["seed"] != self.rows[0]["seed"]:
                continue
            if name in pooled:
                for column in QUALITY:
                    values = [of_seed[column] for of_seed in rows if of_seed[column] is not None]
                    row[column] = mean(values) if values else None
                row |= {column: pooled[name][theirs] for column, theirs in POOLED.items()}
            faster = row["latency_speedup"]
            row["latency_ms"] = base["latency_ms_p50"] / faster if faster else None
            found.append(row)
        return found


def read_results(profile: Profile) -> Results:
    """Everything in results/<profile>/, a GPU's beside the CPU's, or alone where no CPU was tried.

    Raises UserError saying what to run when it is missing or damaged.
    """
    gpu = None
    if (profile.results_on("cuda") / "variants.csv").exists():
        gpu = _read(profile, profile.results_on("cuda"))
        if not (profile.results / "variants.csv").exists():
            return gpu
    return _read(profile, profile.results, gpu)


def _read(profile: Profile, folder: Path, gpu: Results | None = None) -> Results:
    try:
        rows = read_table(folder / "variants.csv")
        further = [read_table(path) if (path := folder / f"{name}.csv").exists() else [] for name in FURTHER]
        others = [
            json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("environment", "data", "methods")
        ]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no results there; run: make results PROFILE={profile.name}") from None
    except ValueError as error:
        raise UserError(f"{folder}: damaged results ({error}); run: make results") from None
    if not rows:
        raise UserError(f"{folder / 'variants.csv'}: no rows; run: make results PROFILE={profile.name}")
    return Results(without_disturbed_times(rows, others[0]["baseline"]), *others, *further, gpu)


def training_share(details: dict, threads: int) -> float:
    """The part of the machine's threads that a variant was trained with: others may have been in training beside it."""
    return details.get("training_threads", threads) / threads


def is_noisy(row) -> bool:
    """True for a row whose times without_disturbed_times() has taken away."""
    return row["reason"].startswith(NOISY)


def without_disturbed_times(rows: list[dict], baseline: str) -> list[dict]:
    """The rows, those without times that were measured while something else had the machine; the reason says so.

    The baseline is timed beside every variant: where it was slower than DISTURBED times its median, so was the variant,
    and short disturbances don't cancel in a ratio. The table keeps what was measured. The baseline's own row, the
    measure of all others, keeps its times.
    """
    timed = [row for row in rows if row["latency_speedup"] and row["throughput_speedup"]]
    beside = [
        (row["latency_ms_p50"] * row["latency_speedup"], row["throughput_speedup"] / row["throughput_per_s"])
        for row in timed
    ]
    usual = [median(times) for times in zip(*beside, strict=True)]
    slower = {
        (row["variant"], row["seed"]): max(time / mine for time, mine in zip(times, usual, strict=True))
        for row, times in zip(timed, beside, strict=True)
    }
    found = []
    for row in rows:
        factor = slower.get((row["variant"], row["seed"]), 1.0)
        if factor > DISTURBED and row["variant"] != baseline:
            reason = f"{NOISY}: the baseline beside it took {factor:.1f} times its usual time"
            row = row | dict.fromkeys(TIMES) | {"reason": reason}
        found.append(row)
    return found


def by_variant(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """The rows of each variant, or of each server, in their order."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return found


def read_table(path: Path) -> list[dict]:
    """The rows of a CSV of results/."""
    with open(path, encoding="utf-8", newline="") as file:
        return parse_table(file)


def parse_table(lines: Iterable[str]) -> list[dict]:
    """ValueError for a row that is cut off or too long, or a cell that is no number."""
    rows = list(csv.DictReader(lines))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not as many cells as the head of the table")
    return [{key: _value(key, text) for key, text in row.items()} for row in rows]


def is_beside(server: str) -> bool:
    """True for a peer, and for our own server in the peers' turns."""
    return server.startswith("peer-") or server.endswith(BESIDE)


def _value(key: str, text: str):
    if key in TEXT:
        return text
    return float(text) if text else None
