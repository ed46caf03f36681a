"""Which variant to use: the best F1 on validation within limits of megabytes, milliseconds and F1."""

from collections.abc import Iterable
from typing import NamedTuple

from compress.config.profile import Profile
from compress.cpu import warn_of_saturation
from compress.report import comparisons
from compress.report.comparisons import f1_on_validation
from compress.results.reading import PooledRow, Results


class Limit(NamedTuple):
    column: str
    unit: str
    sign: int  # +1: the value must not be larger than the limit; -1: not smaller


LIMITS = {
    "max_mb": Limit("size_mb", "MB", 1),
    "max_ms": Limit("latency_ms", "ms at batch 1", 1),
    "min_f1": Limit("f1_test", "F1", -1),
}


def recommendable(results: Results) -> list[PooledRow]:
    """The rows that can be recommended: trained models that were built and measured."""
    rows = [row for row in comparisons.trained(results.variants) if row.status == "ok"]
    return [row for row in rows if f1_on_validation(row, results) is not None]


def fits(row: PooledRow, limits: dict[str, float]) -> bool:
    """True if the row keeps every limit; a value that was not measured keeps none."""
    for name, limit in limits.items():
        column, _, sign = LIMITS[name]
        value = getattr(row, column)
        if value is None or sign * value > sign * limit:
            return False
    return True


def best(rows: Iterable[PooledRow], limits: dict[str, float], results: Results) -> PooledRow | None:
    """The row of best F1 on validation that keeps the limits, the smaller of equals; None if none does."""
    fitting = [row for row in rows if fits(row, limits)]
    return max(fitting, key=lambda row: (f1_on_validation(row, results), -row.size_mb), default=None)


def binding_limits(rows: list[PooledRow], limits: dict[str, float]) -> list[tuple[str, PooledRow]]:
    """(limit, nearest row) for each limit without which a row would fit; the nearest row misses it by least."""
    found = []
    for name in limits:
        column, _, sign = LIMITS[name]
        others = {other: value for other, value in limits.items() if other != name}
        possible = [row for row in rows if getattr(row, column) is not None and fits(row, others)]
        if possible:
            found.append((name, min(possible, key=lambda row: (sign * getattr(row, column), -row.f1_test))))
    return found


def describe_variant(row: PooledRow) -> str:
    speed = "not timed" if row.latency_ms is None else f"{row.latency_ms:.2f} ms at batch 1"
    return f"{row.variant}: F1 {row.f1_test:.3f}, {row.size_mb:.2f} MB, {speed} ({row.backend})"


def describe_losses(row: PooledRow) -> str:
    verdict = {None: "", True: " (keeps the quality)", False: " (does not keep the quality)"}[row.non_inferior]
    away = "" if row.ood_drop_points is None else f", {row.ood_drop_points:.1f} points of macro F1 out of domain"
    return f"it loses {row.f1_drop_points:.1f} F1 points{verdict}{away}"


def describe_binding(name: str, limit: float, row: PooledRow) -> str:
    """What a limit excludes: --max-mb 1 alone stands in the way; 2.26 MB is possible: ..."""
    column, unit, _ = LIMITS[name]
    option = f"--{name.replace('_', '-')} {limit:g}"
    return f"{option} alone stands in the way; {getattr(row, column):.4g} {unit} is possible: {describe_variant(row)}"


def recommend(profile: Profile, results: Results, limits: dict[str, float]) -> tuple[int, str]:
    """(exit status, text): the best variant and the commands that build and serve it, or which limit excludes all.

    Warns on standard error if this machine's CPU may compute the variant's products wrongly.
    """
    rows = recommendable(results)
    row = best(rows, limits, results)
    if row is None:
        reasons = [describe_binding(name, limits[name], nearest) for name, nearest in binding_limits(rows, limits)]
        return 1, "\n".join(["no variant keeps every limit", *(reasons or ["relax more than one limit"])])
    warn_of_saturation(row.variant, row.backend, row.precision, results.methods[row.variant]["options"])
    names = comparisons.champion_names(results).get(row.variant)
    is_core = row.variant in {variant.name for variant in profile.in_scope("core")}
    lines = [
        describe_variant(row) + (f", chosen as {', '.join(names)}" if names else ""),
        describe_losses(row),
        f"build it: make all PROFILE={profile.name}{'' if is_core else ' SCOPE=full'}",
        f"serve it: make serve PROFILE={profile.name} MODEL={row.variant}",
    ]
    return 0, "\n".join(lines)
