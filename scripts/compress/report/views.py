"""Lines of the tables: rows joined with each other and with what others published."""

from collections.abc import Iterable
from dataclasses import asdict, replace

from compress.config.profile import Profile
from compress.report import comparisons, families, recommendation
from compress.results.reading import PooledRow, Results
from compress.results.statistics import MARGIN


def trainings(rows: Iterable[PooledRow]) -> list[dict]:
    """A line per training; deep compression trains the remaining weights first, then the codebooks."""
    return [
        {"row": row, "stage": stage, "training": row.options[stage]}
        for row in rows
        for stage in ("adaptation", "training")
        if row.options.get(stage)
    ]


def pruned(rows: Iterable[PooledRow], results: Results) -> list[dict]:
    """A line per variant with zeros: the MB of its encoder, those of its embeddings, and its int8 partner if any."""
    partners = {row.parent: row for row in results.variants if row.method == "int8-dynamic"}
    return [
        {"row": row, "encoder_mb": row.size_mb - mb, "partner": partners.get(row.variant)}
        for row in rows
        if row.method == "prune" and (mb := row.measured.get("embedding_mb"))
    ]


def sensitivities(results: Results) -> list[dict]:
    """Per group of tensors the effect of 8 and of 4 bits in that group alone, and the bits that were chosen."""
    row = comparisons.sensitivity_row(results)
    if row is None:
        return []
    table = row.details["sensitivity"]
    losses, cells = comparisons.group_losses(table), {(cell["group"], cell["bits"]): cell for cell in table}
    return [
        {
            "group": group,
            "bits": bits,
            "mb_saved": cells[group, 4]["bytes_saved"] / 1e6,
            **{f"lost_{b}": losses[b][group] for b in (8, 4)},
            **{f"error_{b}": cells[group, b]["rms_error"] for b in (8, 4)},
        }
        for group, bits in row.details["bits"].items()
    ]


def cascades(results: Results) -> list[dict]:
    """Each measured cascade with the row of its second model, and how many times faster than that model it is."""
    lines = []
    for row in (row for row in comparisons.of_method(results, "cascade") if "passed_on" in row.details):
        second = results.by_name[row.options["second"]]
        faster = comparisons.ratio(row.latency_speedup, second.latency_speedup)
        lines.append({"row": row, "second": second, "faster": faster})
    return lines


def champions(results: Results) -> list[dict]:
    """Each champion's name and the facts of its choice, with the row of its variant."""
    rows = results.by_name
    return [{"name": name, "row": rows[facts["chosen"]], **facts} for name, facts in results.champions.items()]


def goals(results: Results) -> list[dict]:
    """The lines of report/goals.csv, each with what its model, a variant or a champion, reaches.

    The large model's goals are among them if its results are.
    """
    networks = {of.environment["profile"]: of for of in (results, results.large) if of}
    lines = []
    for line in comparisons.lines_of("goals.csv"):
        of = networks.get(line["profile"])
        row = of and of.by_name.get(of.champions.get(line["model"], {"chosen": line["model"]})["chosen"])
        if row is None:
            continue
        goal, value = float(line["value"]), getattr(row, line["column"])
        reached = value is not None and (value >= goal if line["bound"] == "at least" else value <= goal)
        outcome = "not measured" if value is None else "reached" if reached else "missed"
        decimals = len(line["value"].partition(".")[2]) + 1
        measured = None if value is None else f"{value:.{decimals}f}"
        lines.append(line | {"row": row, "measured": measured, "outcome": outcome})
    return lines


def small_champions(results: Results) -> list[tuple[str, dict]]:
    """(what it is, the champion) for the fast and the tiny champion, once if a variant is both."""
    of_goal = {champion["rule"]["goal"]: champion for champion in champions(results)}
    fast, tiny = of_goal.get("fast"), of_goal.get("tiny")
    both = fast and tiny and fast["chosen"] == tiny["chosen"] and fast["rule"]["tolerance"] == tiny["rule"]["tolerance"]
    found = [("fastest and the smallest", fast)] if both else [("fastest", fast), ("smallest", tiny)]
    return [(what, champion) for what, champion in found if champion and champion["row"].ood_drop_points is not None]


def budget_choices(results: Results, column: str, unit: str) -> list[dict]:
    """A line per budget and family, best validation F1 first."""
    lines = []
    for budget in comparisons.budgets(results, column):
        chosen = [
            {
                "limit": f"{budget.limit:.3g} {unit}",
                "family": _mixture(family, row, results),
                "row": row,
                "cost": f"{getattr(row, column):.2f} {unit}",
            }
            for family, row in budget.rows.items()
            if row
        ]
        lines += sorted(chosen, key=lambda line: -line["row"].validation_f1)
    return lines


def _mixture(family: str, row: PooledRow, results: Results) -> str:
    if family != families.MIX:
        return family
    return f"{family}: {' + '.join(sorted(families.ingredients(row.variant, results)))}"


def prices(results: Results) -> list[dict]:
    """The baseline and the cheapest row of each family; empty if throughput was not measured."""
    base = comparisons.baseline_row(results)
    if not base.throughput_per_s:
        return []
    lines = []
    for family, row in [("baseline", base), *comparisons.cheapest(results)]:
        seconds = comparisons.core_seconds(row)
        cost = {"core_seconds": seconds, "usd": seconds / 3600 * comparisons.PRICE_PER_CORE_HOUR}
        lines.append({"family": family, "row": row, "cheaper": comparisons.core_seconds(base) / seconds} | cost)
    return lines


def gpu_rows(results: Results) -> list[dict]:
    """The GPU's measured rows, with the same training's seconds on the CPU."""
    on_cpu = {row.variant: row.train_seconds for row in results.variants}
    rows = [row for row in results.gpu.variants if row.status == "ok"]
    return [asdict(row) | {"cpu_train_seconds": on_cpu.get(row.variant) if row.train_seconds else None} for row in rows]


def course() -> list[dict]:
    """The rows of the course's published table."""
    numbers = {"f1_test": "f1_test", "size_mb": "size_mb", "seconds": "seconds_per_prediction"}
    return [
        line | {name: float(line[column]) for name, column in numbers.items()}
        for line in comparisons.lines_of("course.csv")
    ]


def front_models(results: Results) -> list[dict]:
    """The few models of the front page, each with what it is (report/names.csv) and, in brackets, why it was chosen.

    The large model, the baseline in two engines, the best variant without training, the champions, one layer, and
    classifiers without an encoder. over_ort: times faster from text than the baseline in ONNX Runtime fp32.
    """
    names = {line["variant"]: line["name"] for line in comparisons.lines_of("names.csv")}
    reasons: dict[str, list[str]] = {}
    if free := recommendation.without_training(results):
        reasons[free.variant] = ["no further training"]
    for champion, facts in results.champions.items():
        reasons.setdefault(facts["chosen"], []).append(champion)
    baseline = results.environment["baseline"]
    lines = []
    for variant in dict.fromkeys(
        (baseline, f"{baseline}-ort-fp32", *reasons, "taught-1x384-ort-int8", "static", "tfidf")
    ):
        row, reason = results.by_name.get(variant), ", ".join(reasons.get(variant, []))
        if row and row.text_latency_ms and row.f1_drop_points is not None:
            name = names.get(variant, variant) + (f" ({reason})" if reason else "")
            lines.append({"name": name, "row": row, "own": True, "kept": "baseline" if variant == baseline else None})
    large = large_row(results)
    if large is not None:
        lines.insert(0, {"name": "fine-tuned MPNet, BERT base's size", "row": large, "own": False, "kept": None})
    ort = results.by_name.get(f"{baseline}-ort-fp32")
    for line in lines:
        line["over_ort"] = comparisons.ratio(ort and ort.text_latency_ms, line["row"].text_latency_ms)
    return lines


def large_row(results: Results) -> PooledRow | None:
    """The large fine-tuned model, with its drops against the small baseline; None unless both share test sentences.

    It has no times if they were measured on another kind of machine. "Keeps the quality" is judged by the end of the
    two-sided interval, which is stricter than the one-sided bound of other rows.
    """
    base = comparisons.baseline_row(results)
    small = next((row for row in results.against_large if row.variant == base.variant), None)
    if small is None or results.large is None:
        return None
    negative = {
        "f1_drop_points": small.drop_mean,
        "f1_drop_ci_low": small.drop_high,
        "f1_drop_ci_high": small.drop_low,
        "ood_drop_points": small.ood_drop_mean,
        "ood_drop_low": small.ood_drop_high,
        "ood_drop_high": small.ood_drop_low,
    }
    drops = {column: None if value is None else -value for column, value in negative.items()}
    f1 = None if base.f1_test is None else base.f1_test - drops["f1_drop_points"] / 100
    large = replace(
        comparisons.baseline_row(results.large), **drops, comparable_f1=f1, non_inferior=-small.drop_low < MARGIN
    )
    return large if results.times_compare_with_large else replace(large, latency_ms=None, text_latency_ms=None)


def against_large(results: Results) -> list[dict]:
    """The baseline and the champions against the large fine-tuned model: sizes, times, and points lost."""
    large, baseline = large_row(results), results.environment["baseline"]
    if large is None:
        return []
    shown = {row.variant: row for row in results.variants if row.champions or row.variant == baseline}
    return [
        {
            "name": " = ".join(shown[lost.variant].champions) or "fine-tuned",
            "row": (row := shown[lost.variant]),
            "lost": lost,
            "smaller": comparisons.ratio(large.size_mb, row.size_mb),
            "faster": comparisons.ratio(large.latency_ms, row.latency_ms),
            "faster_from_text": comparisons.ratio(large.text_latency_ms, row.text_latency_ms),
        }
        for lost in results.against_large
        if lost.variant in shown
    ]


def course_pairs(profile: Profile, results: Results) -> list[dict]:
    """The course's rows and ours that repeat them, with the speed-up over the fp32 row of the same device."""
    cpu = results.by_name
    gpu = results.gpu.by_name if results.gpu else {}
    if profile.baseline not in profile.course.values():
        return []
    seconds = {(line["name"], line["device"]): line["seconds"] for line in course()}
    base = next(key.split()[0] for key, variant in profile.course.items() if variant == profile.baseline)
    lines = []
    for line in course():
        row = cpu.get(profile.course.get(f"{line['name']} {line['device']}"))
        if row is None:
            continue
        timed = row if line["device"] == row.device else gpu.get(row.variant)
        faster = seconds[base, line["device"]] / line["seconds"]
        own = timed and timed.latency_ms_p50 and timed.latency_ms_p50 / 1e3
        lines.append(line | {"row": row, "timed": timed, "faster": faster, "our_seconds": own})
    return lines


def headline(results: Results) -> list[dict]:
    """Our best rows in the columns of the course, and the course's own rows below them."""
    ours = [
        asdict(row)
        | {"name": " ".join([f"**{row.variant}**", *(f"({name})" for name in row.champions)])}
        | {"trained": "yes" if row.trained else "no", "seconds": seconds_per_sentence(row)}
        for row in comparisons.headline_rows(results)
    ]
    return ours + [line | {"name": f"course: {line['name']}"} for line in course()]


def seconds_per_sentence(row: PooledRow) -> float | None:
    """The median; of a cascade the mean in units of the baseline's median, because its median hides the slow model."""
    milliseconds = row.latency_ms if row.method == "cascade" else row.latency_ms_p50
    return milliseconds and milliseconds / 1e3


def splits(results: Results) -> list[dict]:
    """Sentences, share of the positive (or the largest) class, and lengths of each part of the data."""
    lines = []
    for name, split in results.data["splits"].items():
        shares = split["class_share"]
        two = len(results.data["labels"]) == 2
        share = {"positive": shares.get("1")} if two else {"largest": max(shares.values(), default=None)}
        lines.append({"name": name} | split | share)
    return lines


def build_effort(rows: list[PooledRow]) -> dict | None:
    """Minutes to build and measure the rows, and to train them: sums, although builds run in parallel."""
    if not rows:
        return None
    longest = max(rows, key=lambda row: row.seconds or 0)
    return {
        "variants": len(rows),
        "minutes": sum(row.seconds or 0 for row in rows) / 60,
        "training": sum(row.train_seconds or 0 for row in rows) / 60,
        "longest": longest.variant,
        "longest_minutes": (longest.seconds or 0) / 60,
        "peak_gb": max((row.build_peak_mb / 1e3 for row in rows if row.build_peak_mb), default=None),
    }


def latency_by_length(rows: Iterable[PooledRow], results: Results) -> list[dict]:
    """Milliseconds and speed-up by length at batch 1 and the fewest threads, of the rows that have them."""
    lines = []
    for row in rows:
        cells = comparisons.shape_ratios(row.variant, results)
        threads = min((cell["threads"] for cell in cells), default=None)
        first = [cell for cell in cells if cell["batch"] == 1 and cell["threads"] == threads]
        if first:
            lines.append({"variant": row.variant} | {str(cell["length"]): cell for cell in first})
    return lines
