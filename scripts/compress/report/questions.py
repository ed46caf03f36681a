"""Questions that a table of all variants leaves open: what is best at equal bytes or time, what a run costs, and so on.

Pure functions on the rows of variants.csv and on methods.json. Whatever is chosen here is chosen by validation F1; what
is shown of it is the test set's.
"""

import re
from statistics import median

from compress.data.prepare import OUT_OF_DOMAIN
from compress.report.tables import span, table

BYTES_MB = (23, 10, 5, 2.5)
TIMES_FASTER = (2, 4, 8, 12)
TOLERANCE = 1.5  # F1 points on validation that a variant may lose where a question asks for useful ones
PRICE_PER_CORE_HOUR = 0.04  # USD
PRICE_DATE = "November 2026"
ALIKE = 0.1  # F1 points between models that are called equally good
LOST = 10  # F1 points: beyond lie only models that are of no use, for which some figures have no room

MIX, NOTHING = "a mix", "another engine alone"
# Families in the order of the table.
FAMILIES = ("int8", "int4", "16-bit floats", "clustering", "pruning", "smaller student", MIX, NOTHING)
BY_METHOD = {
    "int8-dynamic": {"int8"},
    "int8-saved": {"int8"},
    "mixed-precision": {"int8", "int4"},
    "prune": {"pruning"},
    "structured": {"pruning"},
    "cluster": {"clustering"},
    "deep-compression": {"clustering"},
    "distill": {"smaller student"},
    "cut": {"smaller student"},
    "trim": {"smaller student"},
}
# The other methods say in an option how they store weights; of its value the first word decides.
STORAGE_OPTIONS = ("precision", "compression", "quantization", "scheme", "dtype", "level")
BY_STORAGE = {
    "int8": "int8",
    "dynamic": "int8",
    "static": "int8",
    "int4": "int4",
    "codebook": "clustering",
    "fp16": "16-bit floats",
    "bf16": "16-bit floats",
    "float16": "16-bit floats",
    "bfloat16": "16-bit floats",
    "O4": "16-bit floats",
}


def validation_f1(row, methods) -> float | None:
    return methods[row["variant"]]["measured"]["validation_f1"]


def ingredients(name: str, methods: dict) -> set[str]:
    """What was done to the weights of a variant and of the parents that it was made from."""
    options = methods[name]["options"]
    found = set(BY_METHOD.get(options["method"], ()))
    if "bits" in options:
        found.add(f"int{options['bits']}")
    words = [(options.get(option) or "").split("-")[0] for option in STORAGE_OPTIONS]
    found |= {BY_STORAGE[word] for word in words if word in BY_STORAGE}
    parent = options.get("parent")
    return found | (ingredients(parent, methods) if parent else set())


def family(name: str, methods: dict) -> str:
    found = ingredients(name, methods)
    return MIX if len(found) > 1 else found.pop() if found else NOTHING


def compressed(rows, methods) -> list[dict]:
    """The rows that compete: trained, measured, neither the baseline nor a champion (which is another row again)."""
    return [
        row
        for row in rows
        if row["f1_test"] is not None
        and row["trained"] == "True"
        and row["method"] not in ("finetune", "champion")
        and validation_f1(row, methods) is not None
    ]


def useful(rows, methods, baseline: str) -> list[dict]:
    """The compressed rows that lose at most TOLERANCE points on validation."""
    f1 = {name: method["measured"].get("validation_f1") for name, method in methods.items()}
    return [row for row in compressed(rows, methods) if 100 * (f1[baseline] - f1[row["variant"]]) <= TOLERANCE]


def by_family(rows, methods) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {name: [] for name in FAMILIES}
    for row in rows:
        found[family(row["variant"], methods)].append(row)
    return {name: of_family for name, of_family in found.items() if of_family}


def within(rows, methods, column: str, budget: float) -> dict[str, dict | None]:
    """Of each family the row of best validation F1 whose `column` is within the budget; None where there is none.

    Among equals the smaller. Rows that were not measured in the column don't compete.
    """

    def rank(row):
        return validation_f1(row, methods), -row[column]

    measured = [row for row in compressed(rows, methods) if row[column] is not None]
    return {
        name: max((row for row in of_family if row[column] <= budget), key=rank, default=None)
        for name, of_family in by_family(measured, methods).items()
    }


def winner(choice: dict, methods) -> str | None:
    """The family whose choice has the best validation F1."""
    there = {name: validation_f1(row, methods) for name, row in choice.items() if row}
    return max(there, key=there.get, default=None)


def budgets(column: str, base) -> list[float]:
    """The budgets of a question: megabytes as they are, milliseconds as shares of the baseline's."""
    return list(BYTES_MB) if column == "size_mb" else [base[column] / times for times in TIMES_FASTER]


def choices(rows, methods, column: str, base) -> list[tuple[float, dict[str, dict | None]]]:
    """(budget, every family's choice within it) for each budget of a question."""
    return [(limit, within(rows, methods, column, limit)) for limit in budgets(column, base)]


def drop(row) -> str:
    """Points lost with their paired interval."""
    return span(row, "f1_drop_points", "f1_drop_ci_low", "f1_drop_ci_high", 1)


def budget_table(chosen, methods, column: str, unit: str) -> tuple[list[str], list[list[str]]]:
    """(header, body): for every budget the families' choices, best validation F1 first; `chosen` is of choices()."""
    header = ["Budget", "Family", "Variant", unit, "F1, validation", "F1, test", "Points lost"]
    body = []
    for limit, choice in chosen:
        scores = {name: validation_f1(row, methods) for name, row in choice.items() if row}
        for name in sorted(scores, key=scores.get, reverse=True):
            row = choice[name]
            interval = span(row, "f1_test", "f1_ci_low", "f1_ci_high", 3)
            parts = f"{name}: {' + '.join(sorted(ingredients(row['variant'], methods)))}" if name == MIX else name
            cells = [parts, row["variant"], f"{row[column]:.2f}", f"{scores[name]:.3f}", interval, drop(row)]
            body.append([f"{limit:.3g} {unit}", *cells])
    return header, body


def core_seconds(row) -> float:
    """CPU-seconds of a million sentences at the best batch, all of the threads counted as busy."""
    return 1e6 * row["threads"] / row["throughput_per_s"]


def cost_table(rows, methods, base) -> tuple[list[str], list[list[str]]]:
    """(header, body): the baseline, and the cheapest useful row of each family, cheapest first."""
    timed = [row for row in useful(rows, methods, base["variant"]) if row["throughput_per_s"] is not None]
    chosen = {name: min(group, key=core_seconds) for name, group in by_family(timed, methods).items()}
    header = [
        "Family",
        "Variant",
        "Points lost",
        "Batch flips",
        "Sentences/s",
        "Core-seconds per million",
        "USD per million",
        "cheaper",
    ]
    ordered = [("baseline", base), *sorted(chosen.items(), key=lambda pair: core_seconds(pair[1]))]
    body = [
        [
            name,
            row["variant"],
            drop(row),
            f"{row['batch_flip_rate']:.3f}",
            f"{row['throughput_per_s']:.0f}",
            f"{core_seconds(row):.0f}",
            f"{dollars(row):.4f}",
            f"{core_seconds(base) / core_seconds(row):.1f}",
        ]
        for name, row in ordered
    ]
    return header, body


def dollars(row) -> float:
    """USD for a million sentences at the assumed price."""
    return core_seconds(row) / 3600 * PRICE_PER_CORE_HOUR


def domain_losses(rows, base) -> list[tuple[dict, float, float]]:
    """(row, points lost at home, mean of the points lost in the other domains) of the rows that have them all."""
    domains = [f"f1_{name}" for name in OUT_OF_DOMAIN]
    return [
        (row, row["f1_drop_points"], sum(100 * (base[d] - row[d]) for d in domains) / len(domains))
        for row in rows
        if all(row[d] is not None and base[d] is not None for d in domains)
    ]


def domain_facts(rows, methods, base) -> dict:
    """Of the useful rows: how many, the median loss at home and away, how many lose more away than at home."""
    losses = domain_losses(useful(rows, methods, base["variant"]), base)
    return {
        "rows": len(losses),
        "home": median(home for _, home, _ in losses) if losses else None,
        "away": median(away for _, _, away in losses) if losses else None,
        "worse_away": sum(away > home for _, home, away in losses),
    }


def calibrated(rows, methods, base) -> list[dict]:
    """The baseline, and the best and the worst calibrated of the useful rows."""
    ranked = sorted(useful(rows, methods, base["variant"]), key=lambda row: row["ece_test"])
    return [base, ranked[0], ranked[-1]] if len(ranked) > 1 else [base, *ranked]


def silent_flips(rows, methods) -> dict | None:
    """The compressed row within ALIKE points of the baseline that flips the most answers; None if none flips any."""
    equal = [row for row in compressed(rows, methods) if abs(row["f1_drop_points"]) <= ALIKE and row["flip_rate"] > 0]
    return max(equal, key=lambda row: row["flip_rate"], default=None)


def flips_table(flips) -> tuple[list[str], list[list[str]]]:
    header = ["Sentence", "Is", "Baseline says", "with confidence", "Variants that flip it"]
    body = [
        [
            re.sub(r"([\\`*_{}\[\]<>#|$@~^])", r"\\\1", row["text"]),  # it is text, not Markdown
            row["label"],
            row["answer"],
            f"{row['confidence']:.2f}",
            f"{row['flipped']:.0f} of {row['variants']:.0f}",
        ]
        for row in flips
    ]
    return header, body


def answers(results, rows) -> dict:
    """What the report's template shows of these rows of results: tables, choices and numbers."""
    methods = results.methods
    base = next(row for row in rows if row["variant"] == results.environment["baseline"])
    equal = {}
    for name, column, unit in (("bytes", "size_mb", "MB"), ("latency", "latency_ms", "ms")):
        chosen = choices(rows, methods, column, base)
        smallest = {
            of: min(row[column] for row in group if row[column] is not None)
            for of, group in by_family(compressed(rows, methods), methods).items()
            if any(row[column] is not None for row in group)
        }
        equal[name] = {
            "table": table(*budget_table(chosen, methods, column, unit)),
            "won": [(limit, won, choice[won]) for limit, choice in chosen if (won := winner(choice, methods))],
            "nowhere": {of: value for of, value in smallest.items() if value > max(limit for limit, _ in chosen)},
        }
    header, body = cost_table(rows, methods, base)
    cheapest = body[1][1] if len(body) > 1 else None
    return equal | {
        "base": base,
        "oneline": lambda text: " ".join(text.split()),
        "times_faster": TIMES_FASTER,
        "least_memory": min((row for row in rows if row["peak_rss_mb"]), key=lambda row: row["peak_rss_mb"]),
        "cost": table(header, body),
        "seconds": core_seconds,
        "price": PRICE_PER_CORE_HOUR,
        "price_date": PRICE_DATE,
        "cheapest": next((row for row in rows if row["variant"] == cheapest), None),
        "tolerance": TOLERANCE,
        "domains": domain_facts(rows, methods, base),
        "calibrated": calibrated(rows, methods, base),
        "silent": silent_flips(rows, methods),
        "alike": ALIKE,
        "lost": LOST,
        "flips": table(*flips_table(results.flips)),
        "examples": results.flips,
        "baseline_right": sum(row["answer"] == row["label"] for row in results.flips),
    }
