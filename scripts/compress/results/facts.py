"""What methods.json and environment.json hold: how each variant was built, measurements without a column, machines."""

import numpy as np
from compress.config.profile import Profile
from compress.results.seedfile import Entry, Seed
from compress.results.statistics import f1_of

IDENTITY = ("name", "chapter", "family", "scope")  # fields of a variant that have columns of their own


def methods(profile: Profile, seeds: list[Seed]) -> dict[str, dict]:
    """Options, details, seconds, memory, and measurements without a column, of each variant of the first seed."""
    described, seed = {}, seeds[0]
    validation = {} if profile.no_quality else validation_f1(seeds, profile.baseline)
    for variant in profile.variants:
        if entry := seed.entries.get(variant.name):
            parts = [part.about["seconds"] for part in (entry.predictions, *entry.passes) if part]
            described[variant.name] = {
                "options": {name: value for name, value in entry.record.options.items() if name not in IDENTITY},
                "details": entry.record.details,
                "seconds": round(entry.record.build_seconds + sum(parts), 1),
                "measured": further_measurements(profile, entry) if entry.evaluated else {},
            }
            if entry.record.build_peak_bytes:
                described[variant.name]["build_peak_mb"] = round(entry.record.build_peak_bytes / 1e6)
            if variant.name in validation:
                described[variant.name]["measured"]["validation_f1"] = rounded(validation[variant.name])
    return described


def validation_f1(seeds: list[Seed], baseline: str) -> dict[str, float]:
    """Mean F1 on validation by variant of the first seed.

    For a variant that lacks some seeds: the baseline's mean over all seeds minus the variant's mean drop on its own
    seeds, because some seeds are easier than others.
    """
    f1 = [
        {
            name: f1_of(entry.logits["validation"].argmax(-1), seed.labels["validation"], len(seed.classes))
            for name, entry in seed.evaluated.items()
        }
        for seed in seeds
    ]
    usable = [of_seed for of_seed in f1 if baseline in of_seed] or f1[:1]
    base = np.mean([of_seed.get(baseline, 0) for of_seed in usable])
    return {
        name: float(base + np.mean([of[name] - of.get(baseline, 0) for of in usable if name in of]))
        for name in usable[0]
    }


def further_measurements(profile: Profile, entry: Entry) -> dict:
    """If known: MB of the embedding tables, first calls in ms, the best batch size, and latency over input shapes."""
    facts = {}
    if entry.record.sizes.embedding_bytes is not None:
        facts["embedding_mb"] = rounded(entry.record.sizes.embedding_bytes / 1e6)
    if entry.passes:
        facts["batch_size"] = entry.passes[0].about["batch_size"]
    if entry.cold:
        cold = entry.cold.arrays["cold_seconds"].astype(np.float64)  # [lengths, (first call, second)]
        later = cold[1:]  # empty if all texts have one length in pieces
        facts |= {
            "load_ms": rounded(1e3 * entry.cold.about["load_seconds"]),
            "first_ms": rounded(1e3 * cold[0, 0]),
            "new_length_ms": median_ms(later[:, 0]),
            "same_length_ms": median_ms(later[:, 1]),
            "tokenize_ms": median_ms(entry.cold.arrays["tokenize_seconds"]),
        }
    if entry.passes and "shape_seconds" in entry.passes[0].arrays:
        present = profile.measure.shapes.model_dump()  # older measurements do not say theirs
        measured = entry.passes[0].about.get("budget", {}).get("shapes", present)
        axes = {name: measured[name] for name in ("threads", "batches", "lengths")}
        milliseconds = 1e3 * np.median(entry.passes[0].arrays["shape_seconds"], -1)
        facts["shapes"] = axes | {"milliseconds": [[[rounded(x, 4) for x in r] for r in t] for t in milliseconds]}
    return facts


def median_ms(seconds: np.ndarray) -> float | None:
    """The median in milliseconds; None for no values."""
    return rounded(1e3 * np.median(seconds)) if len(seconds) else None


def rounded(value, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def environment(profile: Profile, seeds: list[Seed]) -> dict:
    """Machines, libraries and commits that timed, evaluated and built the rows, each once; the baseline's first."""
    named = [item for seed in seeds for item in seed.entries.items()]
    entries = [entry for _, entry in sorted(named, key=lambda item: item[0] != profile.baseline)]
    origins = [origin for entry in entries for origin in origins_of(entry)]
    builds = [entry.record.provenance.model_dump(mode="json") for entry in entries]
    distinct = {name: unique(origins, name) for name in ("machine", "libraries", "python", "commit", "dirty")}
    distinct |= {name: unique(builds, name) for name in ("threads", "processes")}
    about = {"profile": profile.name, "description": profile.description, "baseline": profile.baseline}
    return about | distinct


def origins_of(entry: Entry) -> list[dict]:
    """Where a variant was timed, evaluated and built; older measurements have no origin."""
    parts = [*entry.passes, *([entry.predictions] if entry.predictions else [])]
    measured = [part.about["origin"] for part in parts if "origin" in part.about]
    return [*measured, entry.record.provenance.model_dump(mode="json")]


def unique(sources: list[dict], name: str) -> list:
    """The different values of `name`, in order of appearance."""
    return list({str(source[name]): source[name] for source in sources}.values())
