"""Seed files to the tables of results/<profile>/: every CSV and JSON file from results/<profile>/seed<k>.npz alone."""

from collections import Counter

import numpy as np
from compress.config.profile import Profile
from compress.config.variants import Variant
from compress.errors import UserError
from compress.files import write_json
from compress.results.cards import write_cards
from compress.results.rows import VariantRow, write_rows
from compress.results.scoring import flip_rows, pooled_rows, quality_columns, reliability_rows, score_seeds
from compress.results.seedfile import (
    Entry,
    Measured,
    Seed,
    read_seed_file,
    seed_is_built,
    seed_path,
    write_seed_file,
)
from compress.results.selection import write_champions
from compress.results.statistics import f1_of, paired_speedup
from compress.storage.record import Record

NOT_TIMED = "not timed: the same arithmetic at run time as a row that was"
OTHER_SEED = "not timed: only the first seed is"
COPIED = ("chapter", "family", "scope", "method")  # columns that the profile determines


def collate(profile: Profile, numbers: list[int], device: str, scope: str) -> list[VariantRow]:
    """Writes everything in results/<profile>/ (its folder cuda/ for a GPU) and returns the rows of variants.csv.

    A seed that build/ holds is packed into its seed file first. Without numbers, all seeds that exist count. Raises
    UserError for a seed that is nowhere.
    """
    numbers = sorted(numbers) or known_seeds(profile, device) or [0]
    seeds = [load_seed(profile, number, device) for number in numbers]
    folder, first = profile.results_on(device), seeds[0]
    scores = {} if profile.no_quality else score_seeds(seeds)
    rows = [row for seed in seeds for row in variant_rows(profile, seed, scores.get(seed.number), device, scope)]
    write_rows(folder / "variants.csv", rows)
    write_json(folder / "methods.json", methods(profile, first))
    write_json(folder / "environment.json", environment(profile, seeds))
    write_json(folder / "data.json", first.card)
    write_rows(folder / "seeds.csv", pooled_rows(profile.baseline, scores))
    write_rows(folder / "reliability.csv", [] if profile.no_quality else reliability_rows(first))
    write_rows(folder / "flips.csv", [] if profile.no_quality else flip_rows(first, profile.baseline))
    write_champions(profile, seeds, device)
    write_cards(profile, rows)
    return rows


def known_seeds(profile: Profile, device: str) -> list[int]:
    """The seeds with a seed file or with a baseline in build/."""
    names = [path.stem for path in profile.results_on(device).glob("seed*.npz")]
    suffix = "" if device == "cpu" else f"-{device}"
    names += [path.name.removesuffix(suffix) for path in profile.build.glob(f"seed*{suffix}") if path.is_dir()]
    numbers = {int(text) for name in names if (text := name.removeprefix("seed")).isdigit()}
    return sorted(n for n in numbers if seed_path(profile, n, device).exists() or seed_is_built(profile, n, device))


def load_seed(profile: Profile, number: int, device: str) -> Seed:
    path = seed_path(profile, number, device)
    if seed_is_built(profile, number, device):
        write_seed_file(profile, number, device)
    elif not path.exists():
        raise UserError(f"{path}: missing, and build/ has no such seed; run: make all PROFILE={profile.name}")
    return read_seed_file(path)


def variant_rows(profile: Profile, seed: Seed, scores, device: str, scope: str) -> list[VariantRow]:
    """The rows of a seed: every variant in its file, and a row with status "missing" for each other one in `scope`.

    `scores` is None where the profile says that quality is meaningless.
    """
    wanted = {variant.name for variant in profile.in_scope(scope)}
    base = seed.entries.get(profile.baseline)
    reference = ort_speedup(seed, profile.baseline)
    rows = []
    for variant in profile.variants:
        entry = seed.entries.get(variant.name)
        if entry is not None:
            columns = measured_columns(profile, seed, entry, base if base and base.evaluated else None, reference)
            if scores and entry.evaluated:
                baseline = profile.baseline if profile.baseline in scores.predictions else None
                columns |= quality_columns(seed, scores, variant.name, baseline)
            rows.append(VariantRow(**known_columns(variant), **columns))
        elif variant.name in wanted:
            rows.append(missing_row(profile, variant, seed.number, device))
    return rows


def known_columns(variant: Variant) -> dict:
    columns = {name: getattr(variant, name) for name in COPIED}
    return columns | {"variant": variant.name, "parent": variant.parent or ""}


def missing_row(profile: Profile, variant: Variant, seed: int, device: str) -> VariantRow:
    return VariantRow(
        **known_columns(variant),
        backend="",
        precision="",
        device=device,
        trained=profile.is_trained(variant),
        seed=seed,
        status="missing",
        reason="not built",
    )


def measured_columns(profile: Profile, seed: Seed, entry: Entry, base: Entry | None, reference: float | None) -> dict:
    """The columns that need no labels: origin, size, times, memory, status. `reference`: ONNX Runtime's speed-up."""
    record = entry.record
    columns = {
        "backend": record.backend or "",
        "precision": "",
        "device": record.device,
        "trained": record.trained,
        "seed": record.seed,
        "status": record.status,
        "reason": record.reason,
    }
    if record.status != "ok":
        return columns
    if not entry.evaluated:
        return columns | {"status": "missing", "reason": "built, but not evaluated"}
    about, sizes = entry.predictions.about, record.sizes
    reasons = [timing_reason(record) if not entry.passes else "", profile.no_quality]
    columns |= {
        "precision": about["precision"],
        "threads": about["threads"],
        "parameters": sizes.parameters,
        "nonzero_parameters": sizes.nonzero_parameters,
        "size_mb": sizes.bytes / 1e6,
        "size_with_tokenizer_mb": sizes.bytes_with_tokenizer / 1e6,
        "size_ratio": base.record.sizes.bytes / sizes.bytes if base else None,
        "train_seconds": record.train_seconds,
        "reason": "; ".join(filter(None, reasons)),
    }
    if entry.cold:
        columns["peak_rss_mb"] = entry.cold.about["peak_rss_bytes"] / 1e6
    if entry.passes:
        columns |= time_columns(entry.passes)
        columns["speedup_over_ort_fp32"] = columns["latency_speedup"] / reference if reference else None
    return columns


def timing_reason(record: Record) -> str:
    if not record.options.get("timed", True):
        return NOT_TIMED
    return OTHER_SEED if record.seed else "not timed"


def time_columns(passes: list[Measured]) -> dict:
    """Times over the calls of all passes; throughput is that of the median pass. Threads are those of the timing."""
    latency, text, throughput = (
        [one.arrays[f"{kind}_seconds"] for one in passes] for kind in ("latency", "text", "throughput")
    )
    milliseconds = 1e3 * np.concatenate(latency)[:, 0]
    speedup, low, high = paired_speedup(latency)
    rates = [one.about["throughput_sentences"] / one.arrays["throughput_seconds"][:, 0].sum() for one in passes]
    return {
        "threads": passes[0].about["threads"],
        "latency_ms_p50": float(np.median(milliseconds)),
        "latency_ms_p95": float(np.quantile(milliseconds, 0.95)),
        "latency_speedup": speedup,
        "latency_speedup_low": low,
        "latency_speedup_high": high,
        "text_latency_ms_p50": 1e3 * float(np.median(np.concatenate(text)[:, 0])),
        "text_latency_speedup": paired_speedup(text)[0],
        "throughput_per_s": float(np.median(rates)),
        "throughput_speedup": paired_speedup(throughput)[0],
    }


def ort_speedup(seed: Seed, baseline: str) -> float | None:
    """The latency speed-up of the baseline in ONNX Runtime fp32, with fused operators if that was timed."""
    speedups = {}
    for entry in seed.entries.values():
        record, options = entry.record, entry.record.options
        if record.method == "onnx" and record.parent == baseline and options["precision"] == "fp32" and entry.passes:
            speedups[options["fused"]] = time_columns(entry.passes)["latency_speedup"]
    return speedups.get(True, speedups.get(False))


def methods(profile: Profile, seed: Seed) -> dict[str, dict]:
    """Options, details, seconds, and measurements without a column, of each variant in the seed file."""
    described = {}
    for variant in profile.variants:
        if entry := seed.entries.get(variant.name):
            parts = [part.about["seconds"] for part in (entry.predictions, *entry.passes) if part]
            hidden = ("name", "chapter", "family", "scope")
            described[variant.name] = {
                "options": {name: value for name, value in entry.record.options.items() if name not in hidden},
                "details": entry.record.details,
                "seconds": round(entry.record.build_seconds + sum(parts), 1),
                "measured": further_measurements(profile, seed, entry) if entry.evaluated else {},
            }
    return described


def further_measurements(profile: Profile, seed: Seed, entry: Entry) -> dict:
    """Validation F1, and where they were taken: first calls in ms, the best batch, latency over input shapes."""
    found = {} if profile.no_quality else {"validation_f1": rounded(validation_f1(seed, entry))}
    if entry.passes:
        found["batch_size"] = entry.passes[0].about["batch_size"]
    if entry.cold:
        cold = 1e3 * entry.cold.arrays["cold_seconds"].astype(np.float64)  # [lengths, (first call, second)]
        later = cold[1:] if len(cold) > 1 else cold
        found |= {
            "load_ms": rounded(1e3 * entry.cold.about["load_seconds"]),
            "first_ms": rounded(cold[0, 0]),
            "new_length_ms": rounded(np.median(later[:, 0])),
            "same_length_ms": rounded(np.median(later[:, 1])),
            "tokenize_ms": rounded(1e3 * np.median(entry.cold.arrays["tokenize_seconds"])),
        }
    if entry.passes and "shape_seconds" in entry.passes[0].arrays:
        axes = profile.measure.shapes.model_dump(include={"threads", "batches", "lengths"})
        milliseconds = 1e3 * np.median(entry.passes[0].arrays["shape_seconds"], -1)
        found["shapes"] = axes | {"milliseconds": [[[rounded(x, 4) for x in r] for r in t] for t in milliseconds]}
    return found


def validation_f1(seed: Seed, entry: Entry) -> float:
    return f1_of(entry.logits["validation"].argmax(-1), seed.labels["validation"], len(seed.classes))


def rounded(value, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def environment(profile: Profile, seeds: list[Seed]) -> dict:
    """Machines, libraries and commits of the rows, each once."""
    sources = [entry.record.provenance.model_dump(mode="json") for seed in seeds for entry in seed.entries.values()]
    names = ("machine", "libraries", "python", "commit", "dirty", "threads", "processes")
    distinct = {name: list({str(source[name]): source[name] for source in sources}.values()) for name in names}
    about = {"profile": profile.name, "description": profile.description, "baseline": profile.baseline}
    return about | distinct


def report_rows(profile: Profile, rows: list[VariantRow], device: str) -> int:
    """Prints how many variants each seed has, and why others have no results; the exit status is 1 if one failed."""
    for seed in dict.fromkeys(row.seed for row in rows):
        states = Counter(row.status for row in rows if row.seed == seed)
        print(f"seed {seed}: " + ", ".join(f"{count} {status}" for status, count in sorted(states.items())))
    for row in rows:
        if row.status in ("failed", "skipped"):
            print(f"{row.variant} (seed {row.seed}): {row.status}: {row.reason}")
    print(f"{profile.results_on(device)}: {len(rows)} rows")
    return int(any(row.status == "failed" for row in rows))
