"""Sizes, times and memory from a seed file: the columns of variants.csv that need no labels."""

from collections.abc import Callable

import numpy as np
from compress.results.seedfile import Entry, Measured, Seed
from compress.results.statistics import mean_speedup, paired_speedup
from compress.storage.record import Record

NOT_TIMED = "not timed: the same arithmetic at run time as a row that was"
OTHER_SEED = "not timed: only seed 0 is"
DISAGREE = 1.1  # between the paired speed-up and the ratio of the milliseconds in the table


def cost_columns(entry: Entry, base: Entry | None, ort_speedup: float | None) -> dict:
    """The columns of one variant, with the reason if it has no predictions or no times.

    Threads are those of the timing, or of the evaluation if it was not timed. `base` is the baseline where it was
    evaluated, `ort_speedup` that of the baseline in ONNX Runtime fp32.
    """
    record = entry.record
    columns = {"backend": record.backend or "", "status": record.status, "reason": record.reason}
    if record.status != "ok":
        return columns
    if not entry.evaluated:
        return columns | {"status": "missing", "reason": "built, but not evaluated"}
    about, sizes = entry.predictions.about, record.sizes
    columns |= {
        "precision": about["precision"],
        "threads": about["threads"],
        "parameters": sizes.parameters,
        "nonzero_parameters": sizes.nonzero_parameters,
        "size_mb": sizes.bytes / 1e6,
        "size_with_tokenizer_mb": sizes.bytes_with_tokenizer / 1e6,
        "size_ratio": base.record.sizes.bytes / sizes.bytes if base else None,
        "train_seconds": record.train_seconds,
        "reason": reason_of(entry),
    }
    if entry.cold:
        columns["peak_rss_mb"] = entry.cold.about["peak_rss_bytes"] / 1e6
    if entry.passes:
        columns |= time_columns(entry.passes, speedup_of(record))
        if record.method != "cascade":  # whose speed-up is one of means, and its milliseconds a median
            columns |= wider_interval(columns, base)
        columns["speedup_over_ort_fp32"] = columns["latency_speedup"] / ort_speedup if ort_speedup else None
    return columns


def reason_of(entry: Entry) -> str:
    """Why times, or the memory, of an evaluated variant are empty; nothing if they are there."""
    if entry.passes:
        return "" if entry.cold else "its cold start could not be measured"
    if not entry.record.options.get("timed", True):
        return NOT_TIMED
    return OTHER_SEED if entry.record.seed else "not timed"


def speedup_of(record: Record) -> Callable:
    """The statistic of the record's speed-ups for single sentences: a cascade's cost depends on the sentence."""
    return mean_speedup if record.method == "cascade" else paired_speedup


def time_columns(passes: list[Measured], latency_ratio: Callable = paired_speedup) -> dict:
    """Medians over the calls of all passes; throughput is that of the median pass.

    latency_ratio: one of speedup_of(). A round of throughput holds many sentences, so its ratios need no mean.
    """
    latency, text, throughput = (
        [one.arrays[f"{kind}_seconds"] for one in passes] for kind in ("latency", "text", "throughput")
    )
    milliseconds = own_milliseconds(passes)
    speedup, low, high = latency_ratio(latency)
    text_speedup, text_low, text_high = latency_ratio(text)
    rates = [one.about["throughput_sentences"] / one.arrays["throughput_seconds"][:, 0].sum() for one in passes]
    return {
        "threads": passes[0].about["threads"],
        "latency_ms_p50": float(np.median(milliseconds)),
        "latency_ms_p95": float(np.quantile(milliseconds, 0.95)),
        "latency_speedup": speedup,
        "latency_speedup_low": low,
        "latency_speedup_high": high,
        "text_latency_ms_p50": 1e3 * float(np.median(np.concatenate(text)[:, 0])),
        "text_latency_speedup": text_speedup,
        "text_latency_speedup_low": text_low,
        "text_latency_speedup_high": text_high,
        "throughput_per_s": float(np.median(rates)),
        "throughput_speedup": paired_speedup(throughput)[0],
    }


def own_milliseconds(passes: list[Measured]) -> np.ndarray:
    """The variant's own latency in every timed call of all passes."""
    return 1e3 * np.concatenate([one.arrays["latency_seconds"] for one in passes])[:, 0]


def wider_interval(columns: dict, base: Entry | None) -> dict:
    """The speed-up's interval, widened to contain the ratio of the table's milliseconds; {} if the two nearly agree.

    They differ where the baseline was faster or slower while it was timed with the variant than in its own row.
    """
    speedup, low = columns["latency_speedup"], columns["latency_speedup_low"]
    if base is None or not base.passes or low is None:
        return {}
    ratio = float(np.median(own_milliseconds(base.passes))) / columns["latency_ms_p50"]
    if max(ratio / speedup, speedup / ratio) <= DISAGREE:
        return {}
    return {
        "latency_speedup_low": min(low, ratio),
        "latency_speedup_high": max(columns["latency_speedup_high"], ratio),
    }


def find_ort_speedup(seed: Seed, baseline: str) -> float | None:
    """The latency speed-up of the baseline in ONNX Runtime fp32, with fused operators if that was timed."""
    speedups = {}
    for entry in seed.entries.values():
        record, options = entry.record, entry.record.options
        if record.method == "onnx" and record.parent == baseline and options["precision"] == "fp32" and entry.passes:
            speedups[options["fused"]] = time_columns(entry.passes)["latency_speedup"]
    return speedups.get(True, speedups.get(False))
