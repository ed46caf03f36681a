"""Champions: names for the best variants, chosen by measured cost and two losses, never on a test set.

The losses are F1 on validation and, where the profile has a large teacher, agreement with its predictions on held-out
unlabelled texts of other domains. Neither may exceed the rule's tolerance.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from compress.config.profile import Profile
from compress.files import remove, write_json
from compress.results.costs import speedup_of
from compress.results.seedfile import UNLABELLED, Seed
from compress.results.statistics import bootstrap_f1, bootstrap_weights, f1_of

# What each goal maximizes.
SCORES = {
    "balanced": lambda candidate: (candidate.size_ratio * candidate.latency_speedup) ** 0.5,
    "fast": lambda candidate: candidate.latency_speedup,
    "tiny": lambda candidate: candidate.size_ratio,
}


@dataclass(frozen=True)
class Candidate:
    name: str
    logits: dict[int, np.ndarray]  # of the validation set by seed, [sentences, classes]
    size_ratio: float  # the baseline's bytes over its own
    latency_speedup: float  # 0 if it was not timed
    agreement: dict[int, float] = field(default_factory=dict)  # with the large teacher by seed: share of texts, 0 to 1


def write_champions(path: Path, profile: Profile, seeds: list[Seed]) -> None:
    """Chooses each champion among the variants of its rule's scope; one that no variant fits is left out."""
    labels = {seed.number: seed.labels["validation"] for seed in seeds}
    champions = {}
    for rule in profile.champions:
        rows = candidates(profile, seeds, {variant.name for variant in profile.in_scope(rule.scope)})
        if rows and (facts := choose(rows, labels, rule.goal, rule.tolerance)):
            about = {"goal": rule.goal, "tolerance": rule.tolerance, "scope": rule.scope}
            chosen_on = "validation and unlabelled texts" if rows[0].agreement else "validation"
            champions[rule.name] = facts | {"rule": about, "chosen_on": chosen_on}
    if champions:
        write_json(path, champions)
    else:
        remove(path)


def candidates(profile: Profile, seeds: list[Seed], names: set[str]) -> list[Candidate]:
    """The trained variants of these names, the baseline first, with the costs of the first seed.

    Empty if the first seed has no baseline.
    """
    usable = [seed for seed in seeds if profile.baseline in seed.evaluated]
    first = seeds[0].evaluated
    if profile.baseline not in first:
        return []
    bytes_of = {name: entry.record.sizes.bytes for name, entry in first.items()}
    trained = [name for name in first if name in names and first[name].record.trained]
    rows = []
    for name in sorted(trained, key=lambda name: name != profile.baseline):
        passes = [one.arrays["latency_seconds"] for one in first[name].passes]
        own = [seed for seed in usable if name in seed.evaluated]
        rows.append(
            Candidate(
                name=name,
                logits={seed.number: seed.entries[name].logits["validation"] for seed in own},
                size_ratio=bytes_of[profile.baseline] / bytes_of[name],
                latency_speedup=speedup_of(first[name].record)(passes)[0] if passes else 0.0,
                agreement=teacher_agreement(own, name),
            )
        )
    return rows


def teacher_agreement(seeds: list[Seed], name: str) -> dict[int, float]:
    """By seed with held-out texts: the share of them for which the variant predicts the large teacher's class.

    seeds: those that have the variant's predictions.
    """
    return {
        seed.number: float(np.mean(seed.entries[name].logits[UNLABELLED].argmax(-1) == seed.labels[UNLABELLED]))
        for seed in seeds
        if UNLABELLED in seed.labels
    }


def choose(rows: list[Candidate], labels: dict[int, np.ndarray], goal: str, tolerance: float) -> dict | None:
    """The choice and its facts: the largest score of the goal among candidates that lose at most `tolerance` points.

    rows[0] is the baseline. Points of F1, and of agreement where it is known, are paired with the baseline of the same
    seed and averaged over the candidate's seeds; labels are by seed. A candidate that was not timed can only be "tiny".
    The best of many similar candidates is in part the luckiest: the standard error of its F1 points, from a paired
    bootstrap, says how large that part can be. None if no candidate fits.
    """
    base, score = rows[0], SCORES[goal]
    classes = next(iter(base.logits.values())).shape[-1]
    f1 = [
        {seed: f1_of(logits.argmax(-1), labels[seed], classes) for seed, logits in row.logits.items()} for row in rows
    ]
    drops = [mean_points(f1[0], own) for own in f1]
    ood_drops = [mean_points(base.agreement, row.agreement) for row in rows]
    fit = [i for i, row in enumerate(rows) if max(drops[i], ood_drops[i] or 0) <= tolerance and score(row) > 0]
    if not fit:
        return None
    best = max(fit, key=lambda i: score(rows[i]))
    return {
        "chosen": rows[best].name,
        "candidates": len(rows),
        "within_tolerance": len(fit),
        "seeds": list(rows[best].logits),
        "validation_drop_points": drops[best],
        "agreement_drop_points": ood_drops[best],
        "validation_standard_error": standard_error(base, rows[best], labels, classes),
        "score": score(rows[best]),
    }


def mean_points(base: dict[int, float], own: dict[int, float]) -> float | None:
    """The mean over the variant's seeds of what it loses against the same seed's baseline; None without seeds."""
    return float(100 * np.mean([base[seed] - value for seed, value in own.items()])) if own else None


def standard_error(base: Candidate, row: Candidate, labels: dict[int, np.ndarray], classes: int) -> float:
    """Of the candidate's mean drop in F1 points, by bootstrap; seeds with the same labels share the samples."""
    drops = []
    for seed, logits in row.logits.items():
        first = next(other for other in row.logits if np.array_equal(labels[other], labels[seed]))
        weights = bootstrap_weights(len(labels[seed]), seed=first)
        predictions = np.array([base.logits[seed].argmax(-1), logits.argmax(-1)])
        f1 = bootstrap_f1(predictions, labels[seed], weights, classes)
        drops.append(100 * (f1[:, 0] - f1[:, 1]))
    return float(np.mean(drops, axis=0).std())
