"""The tables of results/<profile>/ as typed rows: one dataclass per CSV, one attribute per column, in the file's order.

An empty cell is None and means "not measured". Numbers are written with six significant digits, counts in full.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args, get_type_hints

from compress.errors import UserError
from compress.files import remove, write_text


@dataclass(frozen=True, kw_only=True)
class VariantRow:
    """variants.csv: one row per variant, seed and device."""

    variant: str
    chapter: str
    family: str
    scope: str
    method: str
    parent: str = ""
    backend: str = ""
    precision: str = ""
    device: str
    trained: bool
    seed: int
    f1_test: float | None = None
    f1_ci_low: float | None = None
    f1_ci_high: float | None = None
    f1_drop_points: float | None = None
    f1_drop_ci_low: float | None = None
    f1_drop_ci_high: float | None = None
    flip_rate: float | None = None
    batch_flip_rate: float | None = None
    accuracy_test: float | None = None
    f1_macro_test: float | None = None
    ece_test: float | None = None
    f1_macro_amazon: float | None = None
    f1_macro_tweets: float | None = None
    f1_macro_nyt: float | None = None
    ood_drop_points: float | None = None
    accuracy_amazon: float | None = None
    accuracy_tweets: float | None = None
    accuracy_nyt: float | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    size_mb: float | None = None
    size_with_tokenizer_mb: float | None = None
    size_ratio: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_speedup: float | None = None
    latency_speedup_low: float | None = None
    latency_speedup_high: float | None = None
    speedup_over_ort_fp32: float | None = None
    text_latency_ms_p50: float | None = None
    text_latency_speedup: float | None = None
    text_latency_speedup_low: float | None = None
    text_latency_speedup_high: float | None = None
    throughput_per_s: float | None = None
    throughput_speedup: float | None = None
    peak_rss_mb: float | None = None
    train_seconds: float | None = None
    threads: int | None = None
    status: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """seeds.csv: one row per variant, all its seeds together; drops are in F1 points below the seed's own baseline."""

    variant: str
    seeds: int
    f1_mean: float | None = None
    f1_sd: float | None = None
    drop_mean: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    drop_upper_one_sided: float | None = None
    non_inferior: bool | None = None
    accuracy_drop_mean: float | None = None  # in points; its sign is the direction of McNemar's test
    mcnemar_p: float | None = None
    p_adjusted: float | None = None
    ood_drop_mean: float | None = None
    ood_drop_low: float | None = None
    ood_drop_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ServingRow:
    """serving.csv: one row per server, layout and offered rate.

    The ends of p99's 95 % interval are empty where the data give no bound, and in rows older than these columns.
    """

    variant: str
    layout: str
    offered_rps: float | None = None
    achieved_rps: float | None = None
    achieved_rps_low: float | None = None  # of the repeats at saturation
    achieved_rps_high: float | None = None
    goodput_rps: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    latency_ms_p99: float | None = None
    shed_fraction: float | None = None
    error_fraction: float | None = None
    batch_size_mean: float | None = None
    padding_ratio: float | None = None
    server_cpu_seconds_per_request: float | None = None
    model_cpu_seconds_per_request: float | None = None  # in the model's own call; of models with one thread
    peak_rss_mb: float | None = None
    share: float | None = None
    requests: int | None = None
    lag_ms_p99: float | None = None
    refused_ms_p99: float | None = None
    latency_ms_p99_low: float | None = None
    latency_ms_p99_high: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ServiceRow:
    """services.csv: one row per classifier of the service, on its own task's test set."""

    variant: str
    task: str
    classes: int
    train_sentences: int
    test_sentences: int
    f1_test: float | None = None
    accuracy_test: float | None = None
    largest_class: float | None = None
    batch_flip_rate: float | None = None
    size_mb: float | None = None
    train_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReliabilityRow:
    """reliability.csv: one row per variant and bin of confidence that is not empty, of the first seed."""

    variant: str
    bin: int
    sentences: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FlipRow:
    """flips.csv: the test sentences whose prediction most trained variants change, of the first seed."""

    sentence: int
    text: str
    label: str
    answer: str  # the baseline's prediction
    confidence: float
    flipped: int
    variants: int


def read_rows(path: Path, cls: type) -> list:
    """The rows of a CSV as instances of cls; UserError names file, row and column of what is damaged."""
    with open(path, encoding="utf-8", newline="") as file:
        return parse_rows(file, cls, str(path))


def parse_rows(lines: Iterable[str], cls: type, source: str) -> list:
    """As read_rows, from lines of text; `source` names them in errors."""
    types, wanted = get_type_hints(cls), [field.name for field in fields(cls)]
    try:
        head, *body = csv.reader(lines, strict=True)
    except (ValueError, csv.Error) as error:  # no line, or bytes that are no text
        raise UserError(f"{source}: not a CSV file ({error}); run: make results") from None
    if different := sorted(set(head) ^ set(wanted)):
        state = "missing" if different[0] in wanted else "unknown"
        raise UserError(f"{source}: column {different[0]}: {state}; run: make results")
    rows = []
    for number, cells in enumerate(body, 1):
        if len(cells) != len(head):
            raise UserError(f"{source}: row {number}: has {len(cells)} cells, not {len(head)}; run: make results")
        try:
            rows.append(cls(**{name: _value(name, text, types[name]) for name, text in zip(head, cells, strict=True)}))
        except ValueError as error:
            raise UserError(f"{source}: row {number}: {error}; run: make results") from None
    return rows


def write_rows(path: Path, rows: list) -> None:
    """Writes rows of one class as a CSV file; without rows there is no file."""
    if not rows:
        remove(path)
        return
    names = [field.name for field in fields(rows[0])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    write_text(path, text.getvalue())


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(column: str, text: str, hint):
    """The cell's text as the column's type; ValueError names the column."""
    kinds = get_args(hint) or (hint,)
    if str in kinds:
        return text
    if not text and type(None) in kinds:
        return None
    if bool in kinds and text in ("True", "False"):
        return text == "True"
    try:
        number = int(text) if int in kinds else float(text)
    except ValueError:
        number = math.nan
    if bool in kinds or not math.isfinite(number):
        raise ValueError(f"column {column}: {text!r} is no {kinds[0].__name__}")
    return number
