"""Which variant to use: the best within limits of megabytes, milliseconds and F1, and the best for each need."""

from collections.abc import Iterable
from typing import NamedTuple

from compress.report import comparisons
from compress.results.reading import PooledRow, Results


class Limit(NamedTuple):
    column: str
    unit: str
    sign: int  # +1: the value must not be larger than the limit; -1: not smaller


LIMITS = {
    "max_mb": Limit("size_mb", "MB", 1),
    "max_ms": Limit("text_latency_ms", "ms from text", 1),
    "min_f1": Limit("comparable_f1", "F1", -1),
}


def fits(row: PooledRow, limits: dict[str, float]) -> bool:
    """True if the row keeps every limit; a value that was not measured keeps none."""
    for name, limit in limits.items():
        column, _, sign = LIMITS[name]
        value = getattr(row, column)
        if value is None or sign * value > sign * limit:
            return False
    return True


def meets_margin(row: PooledRow) -> bool:
    """Whether the row keeps the quality; the baseline, which has no test against itself, does."""
    return row.non_inferior is True or row.method == "finetune"


def best(rows: Iterable[PooledRow], limits: dict[str, float]) -> PooledRow | None:
    """The choice among the rows that keep the limits: the best F1 on validation of those that keep the quality.

    If none keeps the quality, the best F1 on validation of all. The smaller of equals; None if no row fits.
    """
    fitting = [row for row in rows if fits(row, limits)]
    return max(fitting, key=lambda row: (meets_margin(row), row.validation_f1, -row.size_mb), default=None)


def binding_limits(rows: list[PooledRow], limits: dict[str, float]) -> list[tuple[str, PooledRow]]:
    """(limit, nearest row) for each limit without which a row would fit; the nearest row misses it by least."""
    found = []
    for name in limits:
        column, _, sign = LIMITS[name]
        others = {other: limit for other, limit in limits.items() if other != name}
        possible = [row for row in rows if getattr(row, column) is not None and fits(row, others)]
        if possible:
            found.append((name, min(possible, key=lambda row: (sign * getattr(row, column), row.f1_drop_points))))
    return found


# Methods that need a fine-tuned model alone, and for some of them the options with which they do.
WITHOUT_DATA = {
    "int8-dynamic": None,
    "int8-saved": None,
    "torchao": None,
    "torch": None,
    "cast": None,
    "cluster": None,
    "prune": ("criterion", ("magnitude",)),
    "low-rank": ("weighting", ("none",)),
    "onnx": ("precision", ("fp32", "fp16", "int8-dynamic", "int4")),
    "openvino": ("compression", (None, "fp16", "int8-weights", "int4-weights", "codebook-weights")),
    "optimum-onnx": ("quantization", (None, "dynamic")),
    "optimum-intel": ("quantization", ("int8-weights", "int4-weights")),
    "weight-only": ("rounding", ("nearest",)),
}


def needs_no_data(row: PooledRow, results: Results) -> bool:
    """Whether the fine-tuned model is all that the variant is built from: no training, no calibration."""
    if row.parent != results.environment["baseline"] or row.method not in WITHOUT_DATA or row.options.get("training"):
        return False
    option = WITHOUT_DATA[row.method]
    return option is None or row.options.get(option[0]) in option[1]


def acceptable(results: Results) -> list[PooledRow]:
    """The rows that keep the quality and lose at most TOLERANCE points on validation."""
    return comparisons.keeping(comparisons.useful(results))


def without_training(results: Results) -> PooledRow | None:
    """Of the acceptable variants that need neither training nor data the one with the most size and speed saved."""
    rows = [row for row in acceptable(results) if row.latency_speedup and needs_no_data(row, results)]
    return max(rows, key=lambda row: row.size_ratio * row.latency_speedup, default=None)


def answers(results: Results) -> list[dict]:
    """The best acceptable row for each need: {"need", "row"}; needs with the same row are joined.

    In batches only rows compete whose labels do not depend on the batch.
    """
    rows = acceptable(results)
    batched = [row for row in rows if row.batch_flip_rate == 0]
    found = [
        ("a small and fast model without training beyond the fine-tuning", without_training(results)),
        ("the least time per sentence", comparisons.lowest(rows, "text_latency_ms")),
        ("the smallest download", comparisons.lowest(rows, "size_mb")),
        (
            "the most sentences per second with labels that do not depend on the batch",
            comparisons.highest(batched, "throughput_speedup"),
        ),
    ]
    chosen = {row.variant: row for _, row in found if row is not None}
    return [{"need": " or ".join(need for need, of in found if of == row), "row": row} for row in chosen.values()]
