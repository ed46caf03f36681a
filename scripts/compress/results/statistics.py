"""What holds over training seeds: means, spread, and the paired comparison with the baseline pooled over the seeds."""

import numpy as np
from compress import metrics

COLUMNS = (  # noqa: SIM905
    "variant seeds f1_mean f1_std f1_min f1_max f1_ci_low f1_ci_high drop_mean drop_std drop_ci_low drop_ci_high "
    "mcnemar_p_holm"
).split()


def mcnemar_clustered(correct: np.ndarray, baseline_correct: np.ndarray) -> float:
    """Two-sided exact p of McNemar's test, pooled over seeds, from bool [seeds, items] of the model and the baseline.

    An item's answers of several seeds are no independent pairs. So an item counts once, with the seeds in which the
    model alone is right less those in which the baseline alone is (the statistic of Durkalski et al., 2003); where
    nothing changed, either sign is as likely, and the sum over items has the distribution computed here. One seed:
    the exact test of McNemar (1947).
    """
    from scipy.stats import binom

    differences = correct.astype(int).sum(0) - baseline_correct.astype(int).sum(0)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chances = np.ones(1)  # of the sums -reach, -reach + 1, ... reach
    for size, count in zip(sizes, counts, strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(differences.sum())].sum()))


def over_seeds(baseline: str, logits: dict[int, dict[str, np.ndarray]], labels: np.ndarray) -> list[dict]:
    """A row of COLUMNS for every variant that several seeds have, from logits [items, classes] by seed and variant.

    Every seed's model is compared with the baseline of that seed. The intervals of the means, of F1 and of the drop in
    F1 points, are over items (the same resamples for all); standard deviations are over seeds.
    """
    answers = {seed: {name: array.argmax(-1) for name, array in of.items()} for seed, of in logits.items()}
    answers = {seed: of for seed, of in answers.items() if baseline in of}
    names = dict.fromkeys(name for of in answers.values() for name in of)
    # The first draw is the test set itself.
    weights = np.vstack([np.ones((1, len(labels)), np.float32), metrics.bootstrap_weights(len(labels))])
    f1 = {}
    for seed, of in answers.items():
        classes = logits[seed][baseline].shape[-1]
        stacked = np.array(list(of.values()))
        f1[seed] = dict(zip(of, metrics.bootstrap_f1(stacked, labels, weights, classes).T, strict=True))
    rows = []
    for name in names:
        seeds = [seed for seed, of in answers.items() if name in of]
        if len(seeds) < 2:
            continue
        reached = np.array([f1[seed][name] for seed in seeds])
        lost = 100 * np.array([f1[seed][baseline] - f1[seed][name] for seed in seeds])
        own, drops = reached[:, 0], lost[:, 0]
        (low, high), (drop_low, drop_high) = (metrics.interval(draws[:, 1:].mean(0)) for draws in (reached, lost))
        right = [np.array([answers[seed][which] == labels for seed in seeds]) for which in (name, baseline)]
        rows.append(
            {
                "variant": name,
                "seeds": len(seeds),
                "f1_mean": float(own.mean()),
                "f1_std": float(own.std(ddof=1)),
                "f1_min": float(own.min()),
                "f1_max": float(own.max()),
                "f1_ci_low": low,
                "f1_ci_high": high,
                "drop_mean": float(drops.mean()),
                "drop_std": float(drops.std(ddof=1)),
                "drop_ci_low": drop_low,
                "drop_ci_high": drop_high,
                "mcnemar_p_holm": None if name == baseline else mcnemar_clustered(*right),
            }
        )
    compared = [row for row in rows if row["variant"] != baseline]
    for row, p in zip(compared, metrics.holm([row["mcnemar_p_holm"] for row in compared]), strict=True):
        row["mcnemar_p_holm"] = p
    return rows
