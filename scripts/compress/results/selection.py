"""Champions: the best variant by a rule that looks at validation F1 and at measured cost, never at a test set."""

from dataclasses import dataclass

import numpy as np
from compress.config.profile import Profile, run_name
from compress.errors import UserError
from compress.storage.record import Record, read_arrays, read_record, speedup

# What a goal is the largest of.
SCORES = {
    "balanced": lambda candidate: (candidate.size_ratio * candidate.latency_speedup) ** 0.5,
    "fast": lambda candidate: candidate.latency_speedup,
    "tiny": lambda candidate: candidate.size_ratio,
}


@dataclass(frozen=True)
class Candidate:
    name: str
    logits: dict[int, np.ndarray]  # of the validation split by seed: float32 [sentences, classes]
    size_ratio: float  # of the baseline's bytes to its own
    latency_speedup: float  # 0 if it was not timed


def measured_records(profile: Profile, before: str, device: str) -> dict[str, list[Record]]:
    """The records of every measured variant before the one named by name: the baseline's first, no champion's.

    The first seed's record, whose costs count, is followed by those of other seeds that are there: not of HW6's own
    variants, which another seed makes when the champions are chosen. Raises UserError for a record that is damaged, or
    missing for the first seed.
    """
    names = [variant.name for variant in profile.variants]
    earlier = [v for v in profile.variants[: names.index(before)] if v.method != "champion"]
    earlier.sort(key=lambda variant: variant.name != profile.baseline)
    baselines = map(read_record, profile.record("").parent.glob(f"{profile.baseline}-seed*.json"))
    further = sorted(record.seed for record in baselines if record.device == device and record.status == "ok")
    found = {}
    for variant in earlier:
        paths = [profile.record(run_name(variant.name, 0, device))]
        if variant.chapter != "HW6":
            others = [profile.record(run_name(variant.name, seed, device)) for seed in further]
            paths += [path for path in others if path.exists()]
        records = [record for record in map(read_record, paths) if record.status == "ok"]
        if records and records[0].seed == 0:
            found[variant.name] = records
    return found


def first_choice(profile: Profile, champion: str, device: str) -> str:
    """The name of the variant that the first seed's champion is a copy of.

    A further seed has no times to choose by, and needs none: what was chosen once, trained anew, shows the quality
    without the luck of being chosen. Raises UserError if the first seed has no such champion (yet).
    """
    record = read_record(profile.record(run_name(champion, 0, device)))
    if record.status != "ok":
        raise UserError(f"{champion} of the first seed: {record.status}: {record.reason}")
    return record.details["chosen"]


def candidates(profile: Profile, records: dict[str, list[Record]]) -> list[Candidate]:
    """The records, the baseline's first, with their logits and speed; UserError if the arrays are not the recorded."""
    base = next(iter(records.values()))[0]
    found = []
    for name, of_seeds in records.items():
        arrays = {record.seed: read_arrays(profile, record) for record in of_seeds}
        times = arrays[0].get("latency_seconds")
        found.append(
            Candidate(
                name,
                {seed: of_seed["logits/validation"] for seed, of_seed in arrays.items()},
                base.sizes.bytes / of_seeds[0].sizes.bytes,
                0.0 if times is None else speedup(times),
            )
        )
    return found


def choose(rows: list[Candidate], labels: np.ndarray, goal: str, tolerance: float) -> dict:
    """Facts about the choice, its name first: largest score of the goal among those within `tolerance` F1 points.

    rows[0] is the baseline, which the points are counted from: of the same seed, and the mean of the seeds that a
    variant has. The cost of a variant that was not timed is unknown to every goal but tiny. The facts tell the standard
    error of the winner's points, from a paired bootstrap: the best of many near equals is also a lucky one.
    """
    from compress.metrics import bootstrap_f1, bootstrap_weights, quality

    f1 = [{seed: quality(logits, labels)["f1"] for seed, logits in row.logits.items()} for row in rows]
    drops = [100 * np.mean([f1[0][seed] - value for seed, value in own.items()]) for own in f1]
    score = SCORES[goal]
    fit = [i for i, row in enumerate(rows) if drops[i] <= tolerance and score(row) > 0]
    if not fit:
        raise UserError(f"no variant is within {tolerance} points of {rows[0].name} on validation")
    best = max(fit, key=lambda i: score(rows[i]))
    seeds = list(rows[best].logits)
    # [seeds and their baselines, sentences]
    answers = np.array([rows[i].logits[seed].argmax(-1) for i in (0, best) for seed in seeds])
    drawn = bootstrap_f1(answers, labels, bootstrap_weights(len(labels)), rows[0].logits[seeds[0]].shape[-1])
    lost = drawn[:, : len(seeds)].mean(-1) - drawn[:, len(seeds) :].mean(-1)
    return {
        "chosen": rows[best].name,
        "candidates": len(rows),
        "within_tolerance": len(fit),
        "seeds": seeds,
        "validation_drop_points": float(drops[best]),
        "validation_standard_error": 100 * float(lost.std()),
        "score": score(rows[best]),
    }
