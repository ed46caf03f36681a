"""Who is compared with whom: the choice of rows behind every table, caption, finding and figure.

Functions of rows, without text. Champions and useful rows are chosen by validation and cost alone; keeping(), pareto()
and what the pages call smallest, fastest or best look at test results. The pairs of "one thing at a time" are data:
report/ablations.csv.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from statistics import mean, median, stdev

from compress.paths import ROOT
from compress.report.families import ENGINE_ALONE, MIX, by_family, family_of
from compress.results.reading import PooledRow, Results, by_variant
from compress.results.rows import VariantRow
from compress.results.statistics import rank_correlation

CHAPTERS = {  # a homework of the course, and what it is about
    "HW1": "quantization and pruning",
    "HW2": "clustering",
    "HW3": "distillation",
    "HW4": "inference engines",
    "HW6": "Optimum and PyTorch",
    "HW7": "serving",
}
SECTIONS = {  # the report's sections on a homework; each is the template report/chapters/<section>.md.j2
    "HW1": ("quantization", "pruning"),
    "HW2": ("clustering",),
    "HW3": ("distillation",),
    "HW4": ("engines",),
    "HW6": ("optimum", "combinations"),
    "HW7": ("serving",),
}
METHOD_SECTIONS = ("quantization", "pruning", "clustering", "distillation", "engines", "optimum")
PRUNED = {"pruning", "low-rank"}  # the families of the section on pruning
TOLERANCE = 1.5  # F1 points on validation that a useful variant may lose
EARLIER_TOLERANCE = 1.0  # what it was on the decision page until the results of the profile minilm were known
SAME_F1 = 0.1  # F1 points between models that are called equally good
SHOWN_LOSS = 10  # F1 points: some figures leave out variants that lose more
SHOWN_POINTS = 5  # F1 points: the figures of F1 over a cost leave out variants that lose more
UNEVEN_F1 = 0.05  # between a variant's best and worst seed
UNEVEN_BYTES = 1.02  # a variant's largest size over its smallest
BUDGETS_MB = (24, 10, 5, 2.5)
TIMES_FASTER = (2, 4, 8, 12)  # budgets of latency: the baseline's divided by these
PRICE_PER_CORE_HOUR = 0.04  # USD, an assumption
DECISION_MB, DECISION_MS, DECISION_POINTS = (24, 13, 10, 5, 2.5), (5, 2, 1, 0.5), (0.5, 1, 2, 3)  # of decide.md


def lines_of(name: str) -> list[dict]:
    """The lines of a CSV file in report/."""
    with open(ROOT / "report" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def baseline_row(results: Results) -> PooledRow:
    return results.by_name[results.environment["baseline"]]


def trained(rows: Iterable[PooledRow]) -> list[PooledRow]:
    """The rows of trained models with measured quality; one that the first seed lacks has no size and is left out."""
    return [row for row in rows if row.status == "ok" and row.trained and row.f1_drop_points is not None]


def of_method(results: Results, method: str) -> list[PooledRow]:
    return [row for row in trained(results.variants) if row.method == method]


def keeping(rows: Iterable[PooledRow]) -> list[PooledRow]:
    """The trained rows that keep the quality: they are non-inferior with the margin MARGIN."""
    return [row for row in trained(rows) if row.non_inferior]


def worse(rows: Iterable[PooledRow]) -> list[PooledRow]:
    """The rows that classify significantly fewer sentences correctly than the baseline: adjusted p below 0.05."""
    return [row for row in rows if is_significant(row) and row.accuracy_drop_mean > 0]


def better(rows: Iterable[PooledRow]) -> list[PooledRow]:
    """The rows that classify significantly more sentences correctly than the baseline."""
    return [row for row in rows if is_significant(row) and row.accuracy_drop_mean < 0]


def is_significant(row: PooledRow) -> bool:
    return row.p_adjusted is not None and row.p_adjusted < 0.05


def lowest(rows: Iterable[PooledRow], column: str) -> PooledRow | None:
    """The row with the least value of the column among those that have one."""
    measured = [row for row in rows if getattr(row, column) is not None]
    return min(measured, key=lambda row: getattr(row, column), default=None)


def highest(rows: Iterable[PooledRow], column: str) -> PooledRow | None:
    """The row with the largest value of the column among those that have one."""
    measured = [row for row in rows if getattr(row, column) is not None]
    return max(measured, key=lambda row: getattr(row, column), default=None)


def pareto(rows: Iterable[PooledRow], column: str) -> list[PooledRow]:
    """The rows that lose fewer F1 points than all others with the same or a lower value of the column, in its order."""
    frontier, least = [], inf
    for row in sorted(with_losses(rows, column), key=lambda row: (getattr(row, column), row.f1_drop_points)):
        if row.f1_drop_points < least:
            frontier.append(row)
            least = row.f1_drop_points
    return frontier


def with_losses(rows: Iterable[PooledRow], column: str) -> list[PooledRow]:
    """The rows of a figure of F1 over a cost: those with measured quality and a value of the column."""
    return [row for row in rows if row.f1_drop_points is not None and getattr(row, column) is not None]


def shown_and_left_out(results: Results, column: str) -> tuple[list[PooledRow], list[PooledRow]]:
    """Of F1 over a cost: the compressed rows that lose at most SHOWN_POINTS points, and the others."""
    rows = with_losses(compressed_rows(results), column)
    shown = [row for row in rows if row.f1_drop_points <= SHOWN_POINTS]
    return shown, [row for row in rows if row not in shown]


def of_one_method(rows: Iterable[PooledRow], results: Results) -> list[PooledRow]:
    """The rows to whose weights one method was applied: no mix, and not another engine alone."""
    return [row for row in rows if family_of(row.variant, results) not in (MIX, ENGINE_ALONE)]


def headline_rows(results: Results) -> list[PooledRow]:
    """The baselines, the champions, and of each chapter the smallest and the fastest variant that keeps the quality."""
    measured = [row for row in results.variants if row.status == "ok"]
    if all(row.f1_test is None for row in measured):
        return measured
    shown = {row.variant for row in measured if row.chapter == "baseline" or row.champions}
    for chapter in CHAPTERS:
        rows = keeping(row for row in measured if row.chapter == chapter)
        faster = [row for row in rows if row.latency_speedup and row.latency_speedup > 1]
        best = lowest(rows, "size_mb"), highest(faster, "latency_speedup")
        shown |= {row.variant for row in best if row}
    return [row for row in measured if row.variant in shown]


def uneven_sizes(rows: Iterable[PooledRow], results: Results) -> dict[str, list[float]]:
    """The sizes in MB by seed of the variants whose bytes differ between seeds."""
    found = _by_seed(rows, results, "size_mb")
    return {name: sizes for name, sizes in found.items() if max(sizes) > UNEVEN_BYTES * min(sizes)}


def uneven_f1(rows: Iterable[PooledRow], results: Results) -> dict[str, list[float]]:
    """F1 by seed of the variants whose F1 differs by more than UNEVEN_F1 between seeds."""
    found = _by_seed(rows, results, "f1_test")
    return {name: f1 for name, f1 in found.items() if max(f1) - min(f1) > UNEVEN_F1}


def drop_deviations(results: Results) -> list[float]:
    """The standard deviation over seeds of the points lost, of every variant that changes a prediction."""
    drops = _by_seed((row for row in results.variants if row.flip_rate), results, "f1_drop_points")
    return [stdev(values) for values in drops.values() if len(values) > 1]


def median_width(rows: Iterable[PooledRow]) -> float | None:
    """The median width in points of the intervals of the drop, of rows that change a prediction."""
    known = [row for row in rows if row.f1_drop_ci_low is not None and row.flip_rate]
    return median(row.f1_drop_ci_high - row.f1_drop_ci_low for row in known) if known else None


def _by_seed(rows: Iterable[PooledRow], results: Results, column: str) -> dict[str, list[float]]:
    names = {row.variant for row in rows}
    of_variant = by_variant(row for row in results.rows if row.variant in names)
    values = {name: [getattr(row, column) for row in rows] for name, rows in of_variant.items()}
    return {name: known for name, all_ in values.items() if (known := [value for value in all_ if value is not None])}


def of_section(section: str, rows: Iterable[PooledRow]) -> list[PooledRow]:
    """The rows that a section on methods is about."""
    homework = next(name for name, sections in SECTIONS.items() if section in sections)
    own = [row for row in rows if row.chapter == homework]
    return [row for row in own if (row.family in PRUNED) == (section == "pruning")]


def one_thing_at_a_time(results: Results, own: Iterable[PooledRow]) -> list[dict]:
    """The pairs of report/ablations.csv whose changed variant is one of these rows; F1 points are gained per seed."""
    f1 = {(row.variant, row.seed): row.f1_test for row in results.rows if row.f1_test is not None}
    seeds = sorted({seed for _, seed in f1})
    rows, names, changes = results.by_name, {row.variant for row in own}, []
    for line in (line for line in lines_of("ablations.csv") if line["with"] in names):
        new, old = line["with"], line["without"]
        gains = [100 * (f1[new, seed] - f1[old, seed]) for seed in seeds if {(new, seed), (old, seed)} <= set(f1)]
        if gains:
            change = {"question": line["question"], "new": rows[new], "old": rows[old], "seeds": len(gains)}
            change |= {"gained": mean(gains), "least": min(gains), "most": max(gains)}
            change["smaller"] = ratio(rows[old].size_mb, rows[new].size_mb)
            change["faster"] = ratio(speedup(rows[new], results), speedup(rows[old], results))
            changes.append(change)
    return changes


def speedup(row: PooledRow, results: Results) -> float | None:
    """The speed-up over the baseline; the baseline's is 1, where the time against itself differs by noise."""
    return 1.0 if row.latency_speedup and row.variant == results.environment["baseline"] else row.latency_speedup


def most_unequal_speeds(rows: Iterable[PooledRow]) -> tuple[PooledRow, PooledRow] | None:
    """(the faster, the slower) of the two rows of one engine, shape and size whose speed-ups differ most."""
    alike: dict[tuple, list[PooledRow]] = {}
    for row in (row for row in rows if row.latency_speedup and row.parent):
        shape = (row.method, row.backend, row.precision, row.parameters, round(row.size_mb, 2))
        alike.setdefault(shape, []).append(row)
    pairs = [(highest(of, "latency_speedup"), lowest(of, "latency_speedup")) for of in alike.values() if len(of) > 1]
    return max(pairs, key=lambda pair: pair[0].latency_speedup / pair[1].latency_speedup, default=None)


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


@dataclass(frozen=True)
class SizePair:
    """The same method on the small and on the large network."""

    method: str
    small: PooledRow
    large: PooledRow


def at_both_sizes(results: Results) -> list[SizePair]:
    """The methods of report/both_sizes.csv that both networks have; none without results of the large one."""
    if results.large is None:
        return []
    small, large = ({row.variant: row for row in trained(of.variants)} for of in (results, results.large))
    return [
        SizePair(line["method"], small[line["small"]], large[line["large"]])
        for line in lines_of("both_sizes.csv")
        if line["small"] in small and line["large"] in large
    ]


def agreement(pairs: Iterable[SizePair], column: str) -> float | None:
    """The rank correlation of a column between both networks; None for fewer than three pairs, or constant values.

    Copies of the fine-tuned networks in other engines, which lose nothing, do not count.
    """
    changed = [pair for pair in pairs if pair.small.flip_rate != 0 or pair.large.flip_rate != 0]
    values = [(getattr(pair.small, column), getattr(pair.large, column)) for pair in changed]
    known = [pair for pair in values if None not in pair]
    if len(known) < 3 or any(len(set(values)) == 1 for values in zip(*known, strict=True)):
        return None
    return rank_correlation(*zip(*known, strict=True))


@dataclass(frozen=True)
class OptimumPair:
    """A variant made by Optimum and the one made directly."""

    row: PooledRow
    direct: PooledRow

    @property
    def same_products(self) -> bool:
        """True unless the two files multiply other numbers of matrices as integers or as floats."""
        counts = ("integer_products", "float_products")
        return all(self.row.details.get(name) == self.direct.details.get(name) for name in counts)

    @property
    def differs_in_speed(self) -> bool:
        """True if both speed-ups have an interval and the intervals do not overlap."""
        low, high = self.row.latency_speedup_low, self.row.latency_speedup_high
        direct_low, direct_high = self.direct.latency_speedup_low, self.direct.latency_speedup_high
        return None not in (low, high, direct_low, direct_high) and (low > direct_high or direct_low > high)

    @property
    def faster(self) -> float | None:
        return ratio(self.row.latency_speedup, self.direct.latency_speedup)

    @property
    def memory(self) -> float | None:
        return ratio(self.row.peak_rss_mb, self.direct.peak_rss_mb)


def optimum_pairs(results: Results) -> list[OptimumPair]:
    """The pairs of which both were built."""
    rows = {row.variant: row for row in results.variants if row.status == "ok"}
    names = {name: row.options.get("counterpart") for name, row in sorted(rows.items())}
    return [OptimumPair(rows[name], rows[direct]) for name, direct in names.items() if direct in rows]


def most_pruned(results: Results) -> tuple[PooledRow, PooledRow] | None:
    """(the best trained row, the untrained one) at the highest share of zeros that has both; None without."""
    pruned = [row for row in of_method(results, "prune") if row.options["pattern"] == "unstructured"]
    plain = {row.options["sparsity"]: row for row in pruned if not row.options["training"]}
    after = [row for row in pruned if row.options["training"] and row.options["sparsity"] in plain]
    best = min(after, key=lambda row: (-row.options["sparsity"], row.f1_drop_points), default=None)
    return best and (best, plain[best.options["sparsity"]])


def fewest_values(results: Results) -> tuple[int, PooledRow, PooledRow] | None:
    """(k, the row with trained centroids, the one of k-means alone) at the smallest k that has both; None without."""
    pairs: dict[int, dict[bool, PooledRow]] = {}
    for row in of_method(results, "cluster"):
        if not row.options["rate"]:
            pairs.setdefault(row.options["k"], {})[row.options["training"] is not None] = row
    both = [k for k, pair in pairs.items() if len(pair) == 2]
    return (min(both), pairs[min(both)][True], pairs[min(both)][False]) if both else None


def training_minutes(row: PooledRow, results: Results) -> float:
    """Minutes of the row's training and of all trainings between it and the baseline, of the first seed."""
    rows = results.ancestry(row.variant)
    own = takewhile(lambda row: row.variant != results.environment["baseline"], rows)
    return sum(row.train_seconds or 0 for row in own) / 60


def shape_ratios(variant: str, results: Results) -> list[dict]:
    """How many times faster than the baseline at every batch, length and number of threads, the slowest first."""
    slow, fast = (shape_times(name, results) for name in (results.environment["baseline"], variant))
    if not slow or not fast:
        return []
    found = [
        {"threads": threads, "batch": batch, "length": length, "faster": base / own, "ms": own}
        for threads, *by_batch in zip(fast["threads"], slow["milliseconds"], fast["milliseconds"], strict=True)
        for batch, *by_length in zip(fast["batches"], *by_batch, strict=True)
        for length, base, own in zip(fast["lengths"], *by_length, strict=True)
    ]
    return sorted(found, key=lambda cell: cell["faster"])


def shape_times(variant: str, results: Results) -> dict | None:
    """The milliseconds [threads, batches, lengths] of a variant and their axes; None if not measured."""
    return results.by_name[variant].measured.get("shapes")


def sensitivity_row(results: Results) -> PooledRow | None:
    """The mixed-precision row: the first with a measured sensitivity per group."""
    return next((row for row in results.variants if "sensitivity" in row.details), None)


def group_losses(table: list[dict]) -> dict[int, dict[str, float]]:
    """Validation F1 points lost by bits and group, from a sensitivity table whose first row is the original."""
    losses: dict[int, dict[str, float]] = {}
    for row in table[1:]:
        losses.setdefault(row["bits"], {})[row["group"]] = 100 * (table[0]["f1"] - row["f1"])
    return losses


def recommendable(results: Results) -> list[PooledRow]:
    """The rows that can be recommended: trained models that were measured on validation, too, and on all seeds."""
    return [row for row in on_validation(results) if row.seeds >= baseline_row(results).seeds]


def compressed_rows(results: Results) -> list[PooledRow]:
    """The rows that compete: trained models that were measured on validation, without the baseline."""
    return [row for row in on_validation(results) if row.method != "finetune"]


def choosable(results: Results) -> list[PooledRow]:
    """The recommendable rows without the baseline."""
    return [row for row in recommendable(results) if row.method != "finetune"]


def on_validation(results: Results) -> list[PooledRow]:
    """The trained rows that were measured on validation, too."""
    return [row for row in trained(results.variants) if row.validation_f1 is not None]


def smaller_files(rows: Iterable[PooledRow], results: Results) -> list[PooledRow]:
    """The rows that take less space than the baseline, by more than 1 %."""
    return [row for row in rows if row.size_mb < 0.99 * baseline_row(results).size_mb]


def useful(results: Results) -> list[PooledRow]:
    """The rows to choose from that lose at most TOLERANCE points on validation."""
    rows = choosable(results) if baseline_row(results).validation_f1 is not None else []
    return [row for row in rows if validation_loss(row, results) <= TOLERANCE]


def beyond(rows: Iterable[PooledRow], points: float, results: Results) -> list[PooledRow]:
    """The rows that lose more points than that on validation."""
    return [row for row in rows if validation_loss(row, results) > points]


def validation_loss(row: PooledRow, results: Results) -> float:
    """The F1 points that a row loses on validation."""
    return 100 * (baseline_row(results).validation_f1 - row.validation_f1)


@dataclass(frozen=True)
class Budget:
    """Of each family the row of best validation F1 within a limit, None where none fits; the best of all won."""

    limit: float
    rows: dict[str, PooledRow | None]
    winner: str | None


def budgets(results: Results, column: str) -> list[Budget]:
    """The choices at every limit of megabytes or milliseconds. Among rows of equal F1 the lower cost is chosen."""
    base = getattr(baseline_row(results), column)
    limits = BUDGETS_MB if column == "size_mb" else [base / times for times in TIMES_FASTER] if base else []
    families = by_family((row for row in choosable(results) if getattr(row, column) is not None), results)
    found = []
    for limit in limits:
        fitting = {of: [row for row in rows if getattr(row, column) <= limit] for of, rows in families.items()}
        chosen = {
            of: max(rows, key=lambda row: (row.validation_f1, -getattr(row, column)), default=None)
            for of, rows in fitting.items()
        }
        scores = {of: row.validation_f1 for of, row in chosen.items() if row}
        found.append(Budget(limit, chosen, max(scores, key=scores.get, default=None)))
    return found


def winners(results: Results, column: str) -> list[tuple[str, PooledRow, list[float]]]:
    """(family, row, limits) of each row that is best on validation within budgets, once with all of its budgets."""
    found: dict[str, tuple[str, PooledRow, list[float]]] = {}
    for budget in budgets(results, column):
        if budget.winner:
            row = budget.rows[budget.winner]
            found.setdefault(row.variant, (budget.winner, row, []))[2].append(budget.limit)
    return list(found.values())


def above_all_budgets(results: Results, column: str) -> dict[str, float]:
    """The least value of the column in each family that fits no budget."""
    rows = [row for row in choosable(results) if getattr(row, column) is not None]
    least = {of: min(getattr(row, column) for row in rows) for of, rows in by_family(rows, results).items()}
    limit = max((budget.limit for budget in budgets(results, column)), default=0)
    return {of: value for of, value in least.items() if value > limit}


def core_seconds(row: PooledRow) -> float:
    """CPU-seconds for a million sentences at the best batch, with all threads counted as busy."""
    return 1e6 * row.threads / row.throughput_per_s


def cheapest(results: Results) -> list[tuple[str, PooledRow]]:
    """(family, row): the useful row of each family with the least core-seconds, cheapest first."""
    rows = [row for row in useful(results) if row.throughput_per_s]
    found = {of: min(rows, key=core_seconds) for of, rows in by_family(rows, results).items()}
    return sorted(found.items(), key=lambda pair: core_seconds(pair[1]))


def domain_losses(rows: Iterable[PooledRow]) -> list[PooledRow]:
    """The trained rows whose loss out of domain was measured."""
    return [row for row in trained(rows) if row.ood_drop_points is not None]


def learned_from_large(name: str, results: Results) -> bool:
    """Whether the variant or a model that it is made of was trained on the large teacher's logits."""
    return any((row.options.get("training") or {}).get("teacher") == "large" for row in results.made_of(name))


def losses_on_seeds_of(control: PooledRow, row: PooledRow, results: Results) -> tuple[float | None, float | None]:
    """The points that a row loses at home and out of domain, means over the seeds that its control has as well.

    None where nothing was measured.
    """
    seeds = {of.seed for of in results.rows if of.variant == control.variant and of.f1_drop_points is not None}
    own = [of for of in results.rows if of.variant == row.variant and of.seed in seeds]

    def mean_of(column: str) -> float | None:
        known = [value for of in own if (value := getattr(of, column)) is not None]
        return mean(known) if known else None

    return mean_of("f1_drop_points"), mean_of("ood_drop_points")


def domain_groups(results: Results) -> dict[str, list[PooledRow]] | None:
    """Single networks in fewer bytes than the baseline: those with fewer parameters, and those with as many ("same").

    Those that learned from the large teacher are a group of their own, "taught", if there are any. A network of the
    baseline's size is no compression but a control, and a cascade has two networks. Counted are the rows that lose at
    most SHOWN_LOSS points and change a prediction; None without both other groups.
    """
    base = baseline_row(results)
    rows = [row for row in domain_losses(compressed_rows(results)) if row.flip_rate and row.parameters]
    rows = [row for row in rows if row.f1_drop_points <= SHOWN_LOSS and row.chapter != "baseline"]
    rows = [row for row in smaller_files(rows, results) if row.parameters < 1.01 * base.parameters]
    taught = [row for row in rows if learned_from_large(row.variant, results)]
    fewer = [row for row in rows if row.parameters < 0.99 * base.parameters and row not in taught]
    same = [row for row in rows if row not in fewer and row not in taught]
    if not fewer or not same:
        return None
    return {"fewer": fewer, "same": same} | ({"taught": taught} if taught else {})


def domain_facts(results: Results) -> dict[str, dict] | None:
    """Of each of the groups of domain_groups() the number of rows and the median losses; None without groups."""
    groups = domain_groups(results)
    return groups and {
        name: {
            "rows": len(rows),
            "home": median(row.f1_drop_points for row in rows),
            "away": median(row.ood_drop_points for row in rows),
        }
        for name, rows in groups.items()
    }


def calibrated(results: Results) -> list[VariantRow]:
    """Of the first seed: the baseline, and the best and the worst calibrated of the useful rows with smaller files."""
    first = {row.variant: row for row in results.rows if row.seed == results.rows[0].seed}
    smaller = (first[row.variant] for row in smaller_files(useful(results), results))
    ranked = sorted((row for row in smaller if row.ece_test is not None), key=lambda row: row.ece_test)
    return [first[results.environment["baseline"]], *(ranked if len(ranked) < 2 else (ranked[0], ranked[-1]))]


def silent_flips(results: Results) -> PooledRow | None:
    """The smaller file within SAME_F1 points of the baseline that changes most predictions; None if none does."""
    equal = [
        row
        for row in smaller_files(compressed_rows(results), results)
        if abs(row.f1_drop_points) <= SAME_F1 and row.flip_rate
    ]
    return highest(equal, "flip_rate")
