"""Quality from the predictions of a seed file: F1 with bootstrap intervals, drops, calibration, tests over seeds."""

from dataclasses import dataclass, replace

import numpy as np
from compress.config.profile import Profile, load_profile
from compress.data.card import OUT_OF_DOMAIN
from compress.metrics import softmax
from compress.results.rows import ReliabilityRow, SeedRow
from compress.results.seedfile import SETS, Seed, read_seed_file, seed_path
from compress.results.statistics import (
    MARGIN,
    bootstrap_f1,
    bootstrap_weights,
    expected_calibration_error,
    f1_of,
    holm,
    interval,
    mean_over_seeds,
    reliability,
    sign_flip_p,
)


@dataclass(frozen=True)
class Scores:
    """One seed's evaluated variants. The first of the resamples is the set itself, the others are bootstrap samples."""

    labels: np.ndarray  # of the test set
    sentences: int  # the number of the first seed with the same test sentences
    predictions: dict[str, np.ndarray]  # by variant: classes of the test sentences, int [sentences]
    f1: dict[str, np.ndarray]  # on the test set, [resamples]
    domains: dict[str, dict[str, np.ndarray]]  # by domain and variant: macro F1, [resamples]

    def drop(self, name: str, baseline: str) -> np.ndarray:
        """F1 points below the baseline, [resamples]."""
        return 100 * (self.f1[baseline] - self.f1[name])

    def ood_drop(self, name: str, baseline: str) -> np.ndarray | None:
        """Macro F1 points below the baseline, the mean over the domains, [resamples]; None without domains."""
        drops = [100 * (of_domain[baseline] - of_domain[name]) for of_domain in self.domains.values()]
        return np.mean(drops, axis=0) if drops else None


def score_seeds(seeds: list[Seed]) -> dict[int, Scores]:
    """The scores of every seed by its number; out of domain all seeds have the same sentences."""
    first = {seed.number: next(other.number for other in seeds if other.texts == seed.texts) for seed in seeds}
    return {
        seed.number: Scores(
            labels=seed.labels["test"],
            sentences=first[seed.number],
            predictions={name: entry.logits["test"].argmax(-1) for name, entry in seed.evaluated.items()},
            f1=resampled_f1(seed, "test", first[seed.number]),
            domains={
                domain: resampled_f1(seed, domain, seeds[0].number, macro=True)
                for domain in OUT_OF_DOMAIN
                if domain in seed.labels
            },
        )
        for seed in seeds
    }


def resampled_f1(seed: Seed, name: str, group: int, macro: bool = False) -> dict[str, np.ndarray]:
    """F1 of each variant on a set: on the set itself first, then on bootstrap samples.

    Seeds of one group have the same sentences and get the same samples; other groups, and other sets, get other ones.
    Whole documents are drawn where the data have documents.
    """
    labels, documents = seed.labels[name], seed.card.get("documents", {}).get(name)
    weights = bootstrap_weights(len(labels), seed=1000 * SETS.index(name) + group, groups=documents)
    weights = np.vstack([np.ones((1, len(labels)), np.float32), weights])
    predictions = np.array([entry.logits[name].argmax(-1) for entry in seed.evaluated.values()])
    if not len(predictions):
        return {}
    f1 = bootstrap_f1(predictions, labels, weights, len(seed.classes), macro)
    return dict(zip(seed.evaluated, f1.T, strict=True))


def quality_columns(seed: Seed, scores: Scores, name: str, baseline: str | None) -> dict[str, float]:
    """The quality columns of variants.csv for one evaluated variant; differences need the seed's own baseline."""
    logits, truth, predictions = seed.entries[name].logits, scores.labels, scores.predictions[name]
    low, high = interval(scores.f1[name][1:])
    columns = {
        "f1_test": float(scores.f1[name][0]),
        "f1_ci_low": low,
        "f1_ci_high": high,
        "batch_flip_rate": float(np.mean(predictions != logits["batched"].argmax(-1))),
        "accuracy_test": float(np.mean(predictions == truth)),
        "f1_macro_test": f1_of(predictions, truth, len(seed.classes), macro=True),
        "ece_test": expected_calibration_error(softmax(logits["test"]), truth),
    }
    for domain, of_domain in scores.domains.items():
        columns[f"f1_macro_{domain}"] = float(of_domain[name][0])
        columns[f"accuracy_{domain}"] = float(np.mean(logits[domain].argmax(-1) == seed.labels[domain]))
    if baseline is None:
        return columns
    drop, ood_drop = scores.drop(name, baseline), scores.ood_drop(name, baseline)
    low, high = interval(drop[1:])
    return columns | {
        "f1_drop_points": float(drop[0]),
        "f1_drop_ci_low": low,
        "f1_drop_ci_high": high,
        "flip_rate": float(np.mean(predictions != scores.predictions[baseline])),
        "ood_drop_points": None if ood_drop is None else float(ood_drop[0]),
    }


def pooled_rows(baseline: str, scores: dict[int, Scores]) -> list[SeedRow]:
    """A row for every variant of the seeds that have a baseline, in the order of their first seed."""
    usable = [of_seed for of_seed in scores.values() if baseline in of_seed.predictions]
    names = dict.fromkeys(name for of_seed in usable for name in of_seed.predictions)
    tests = pooled_tests(baseline, [name for name in names if name != baseline], usable)
    return [pooled_row(name, baseline, usable, *tests.get(name, (None, None))) for name in names]


def large_rows(profile: Profile, seeds: list[Seed]) -> list[SeedRow]:
    """As pooled_rows, against the baseline of the teacher profile: what a small model loses against the large one.

    Of the seeds that both profiles have with the same data; empty without one.
    """
    if profile.teacher is None:
        return []
    teacher, joined = load_profile(profile.teacher), []
    name = f"{teacher.name}/{teacher.baseline}"
    for seed in seeds:
        path = seed_path(teacher.results, seed.number)
        large = read_seed_file(path) if path.exists() else None
        same_data = large and large.card["fingerprint"] == seed.card["fingerprint"]
        if same_data and teacher.baseline in large.evaluated:
            joined.append(replace(seed, entries=seed.entries | {name: large.entries[teacher.baseline]}))
    return pooled_rows(name, score_seeds(joined))


def pooled_tests(baseline: str, names: list[str], scores: list[Scores]) -> dict[str, tuple[float, float]]:
    """(McNemar's p, Holm's adjusted p) by variant. Variants with equal predictions count as one comparison."""
    keys = {
        name: tuple(of_seed.predictions[name].tobytes() for of_seed in scores if name in of_seed.predictions)
        for name in names
    }
    first = {key: name for name, key in reversed(keys.items())}
    p_values = {key: pooled_p(name, baseline, scores) for key, name in first.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {name: (p_values[key], adjusted[key]) for name, key in keys.items()}


def pooled_row(name: str, baseline: str, scores: list[Scores], p: float | None, p_adjusted: float | None) -> SeedRow:
    """Means over the seeds of one variant.

    The intervals resample sentences and seeds together, so that they hold for further seeds of the same recipe; those
    of a single seed resample its sentences alone.
    """
    own = [of_seed for of_seed in scores if name in of_seed.predictions]
    f1 = np.array([of_seed.f1[name][0] for of_seed in own])
    same_test = len({of_seed.sentences for of_seed in own}) == 1
    drop = mean_over_seeds([of_seed.drop(name, baseline) for of_seed in own], same_test)
    right = [[np.mean(of.predictions[which] == of.labels) for of in own] for which in (baseline, name)]
    ood_drops = [points for of_seed in own if (points := of_seed.ood_drop(name, baseline)) is not None]
    ood = mean_over_seeds(ood_drops, same_sentences=True) if ood_drops else None
    return SeedRow(
        variant=name,
        seeds=len(own),
        f1_mean=float(f1.mean()),
        f1_sd=float(f1.std(ddof=1)) if len(own) > 1 else None,
        drop_mean=drop.mean,
        drop_low=drop.low,
        drop_high=drop.high,
        drop_upper_one_sided=drop.upper,
        non_inferior=None if name == baseline else drop.upper < MARGIN,
        accuracy_drop_mean=100 * float(np.mean(right[0]) - np.mean(right[1])),
        mcnemar_p=p,
        p_adjusted=p_adjusted,
        ood_drop_mean=ood and ood.mean,
        ood_drop_low=ood and ood.low,
        ood_drop_high=ood and ood.high,
    )


def pooled_p(name: str, baseline: str, scores: list[Scores]) -> float:
    """Two-sided exact p of McNemar's test, pooled over all seeds.

    Several predictions for one sentence are not independent. So each sentence counts once, with the number of seeds in
    which only the variant is right, less those in which only the baseline is (Durkalski et al., 2003).
    """
    own = [of_seed for of_seed in scores if name in of_seed.predictions]
    sums: dict[int, np.ndarray] = {}
    for of_seed in own:
        correct, base = (of_seed.predictions[which] == of_seed.labels for which in (name, baseline))
        sums[of_seed.sentences] = sums.get(of_seed.sentences, 0) + correct.astype(int) - base
    return sign_flip_p(np.concatenate(list(sums.values())))


def reliability_rows(seed: Seed) -> list[ReliabilityRow]:
    """Confidence and accuracy on the test set, by bin, of every evaluated variant."""
    return [
        ReliabilityRow(variant=name, **bin_)
        for name, entry in seed.evaluated.items()
        for bin_ in reliability(softmax(entry.logits["test"]), seed.labels["test"])
    ]
