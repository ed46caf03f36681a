"""Champions: the best variant by a rule that looks at validation F1 and at measured cost, never at a test set."""

from dataclasses import dataclass

import numpy as np
from compress.profile import Profile, UserError, run_name
from compress.record import Record, read_arrays, read_record, speedup

# What a goal is the largest of.
SCORES = {
    "balanced": lambda candidate: (candidate.size_ratio * candidate.latency_speedup) ** 0.5,
    "fast": lambda candidate: candidate.latency_speedup,
    "tiny": lambda candidate: candidate.size_ratio,
}


@dataclass(frozen=True)
class Candidate:
    name: str
    logits: np.ndarray  # of the validation split: float32 [sentences, classes]
    size_ratio: float  # of the baseline's bytes to its own
    latency_speedup: float  # 0 if it was not timed


def measured_records(profile: Profile, before: str, device: str) -> list[Record]:
    """The first seed's record of every measured variant before the one named, the baseline's first, no champion's.

    Raises UserError for a record that is missing or damaged.
    """
    names = [variant.name for variant in profile.variants]
    earlier = [v.name for v in profile.variants[: names.index(before)] if v.method != "champion"]
    order = [profile.baseline, *(name for name in earlier if name != profile.baseline)]
    records = [read_record(profile.record(run_name(name, 0, device))) for name in order]
    return [record for record in records if record.status == "ok"]


def first_choice(profile: Profile, champion: str, device: str) -> str:
    """The name of the variant that the first seed's champion is a copy of.

    A further seed has no times to choose by, and needs none: what was chosen once, trained anew, shows the quality
    without the luck of being chosen. Raises UserError if the first seed has no such champion (yet).
    """
    record = read_record(profile.record(run_name(champion, 0, device)))
    if record.status != "ok":
        raise UserError(f"{champion} of the first seed: {record.status}: {record.reason}")
    return record.details["chosen"]


def candidates(profile: Profile, records: list[Record]) -> list[Candidate]:
    """The records, the baseline's first, with their logits and speed; UserError if the arrays are not the recorded."""
    found = []
    for record in records:
        arrays = read_arrays(profile, record)
        times = arrays.get("latency_seconds")
        found.append(
            Candidate(
                record.variant,
                arrays["logits/validation"],
                records[0].sizes.bytes / record.sizes.bytes,
                0.0 if times is None else speedup(times),
            )
        )
    return found


def choose(rows: list[Candidate], labels: np.ndarray, goal: str, tolerance: float) -> dict:
    """Facts about the choice, its name first: largest score of the goal among those within `tolerance` F1 points.

    rows[0] is the baseline, which the points are counted from. The cost of a variant that was not timed is unknown to
    every goal but tiny. The facts tell the standard error of the winner's points, from a paired bootstrap: the best of
    many near equals is also a lucky one.
    """
    from compress.metrics import bootstrap_f1, bootstrap_weights, quality

    f1 = [quality(row.logits, labels)["f1"] for row in rows]
    drops = [100 * (f1[0] - value) for value in f1]
    score = SCORES[goal]
    fit = [i for i, row in enumerate(rows) if drops[i] <= tolerance and score(row) > 0]
    if not fit:
        raise UserError(f"no variant is within {tolerance} points of {rows[0].name} on validation")
    best = max(fit, key=lambda i: score(rows[i]))
    answers = np.array([rows[i].logits.argmax(-1) for i in (0, best)])
    drawn = bootstrap_f1(answers, labels, bootstrap_weights(len(labels)), rows[0].logits.shape[-1])
    return {
        "chosen": rows[best].name,
        "candidates": len(rows),
        "within_tolerance": len(fit),
        "validation_drop_points": drops[best],
        "validation_standard_error": 100 * float((drawn[:, 0] - drawn[:, 1]).std()),
        "score": score(rows[best]),
    }
