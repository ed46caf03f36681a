"""Seed files to the tables of results/<profile>/: every CSV and JSON file from results/<profile>/seed<k>.npz alone."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from compress.config.profile import Profile
from compress.data.card import OUT_OF_DOMAIN
from compress.errors import UserError
from compress.files import write_json
from compress.results.cards import write_cards
from compress.results.costs import cost_columns, find_ort_speedup
from compress.results.facts import environment, methods
from compress.results.flips import flip_rows
from compress.results.rows import VariantRow, write_rows
from compress.results.scoring import (
    Scores,
    large_rows,
    pooled_rows,
    quality_columns,
    reliability_rows,
    score_seeds,
)
from compress.results.seedfile import Seed, read_seed_file, seed_is_built, seed_path, write_seed_file
from compress.results.selection import write_champions
from pydantic import ValidationError


def collate(profile: Profile, numbers: list[int], device: str, scope: str, folder: Path) -> list[VariantRow]:
    """Writes everything in the results folder and returns the rows of variants.csv.

    Of these seeds, those in build/ are packed into their files first; the tables are those of all seed files in the
    folder with the same data. Without numbers, all seeds in build/ are packed. Every variant of `scope` gets a row for
    the first seed; other seeds may be built in part. Raises UserError for a seed that is nowhere.
    """
    packed = []
    for number in numbers or built_seeds(profile, device):
        path = seed_path(folder, number)
        if seed_is_built(profile, number, device):
            write_seed_file(path, profile, number, device)
            packed.append(number)
        elif profile.seed_folder(number, device).exists():
            raise UserError(f"{profile.seed_folder(number, device)}: its {profile.baseline} is not built; run make all")
        elif not path.exists():
            raise UserError(f"{path}: missing, and so is the seed in {profile.build}; run make all")
    seeds = read_seeds(folder, profile, packed)
    first, has_quality = seeds[0], not profile.no_quality
    scores = score_seeds(seeds) if has_quality else {}
    rows = []
    for seed in seeds:
        rows += variant_rows(profile, seed, scores.get(seed.number), device, scope if seed is first else None)
    write_rows(folder / "variants.csv", rows)
    write_json(folder / "methods.json", methods(profile, seeds))
    write_json(folder / "environment.json", environment(profile, seeds))
    write_json(folder / "data.json", data_facts(seeds, first))
    write_rows(folder / "seeds.csv", pooled_rows(profile.baseline, scores))
    write_rows(folder / "against_large.csv", large_rows(profile, seeds) if has_quality else [])
    write_rows(folder / "reliability.csv", reliability_rows(first) if has_quality else [])
    write_rows(folder / "flips.csv", flip_rows(first, profile.baseline) if has_quality else [])
    write_champions(folder / "champions.json", profile, seeds)
    write_cards(profile, rows, seeds)
    return rows


def read_seeds(folder: Path, profile: Profile, packed: list[int]) -> list[Seed]:
    """The seed files of a folder that belong to the first one in `packed`, or else in the folder.

    Seeds of other data are left out, and so are the variants that were built by other recipes; they are printed.
    Raises UserError without a seed file.
    """
    seeds = sorted((read_seed_file(path) for path in folder.glob("seed*.npz")), key=lambda seed: seed.number)
    if not seeds:
        raise UserError(f"{folder}: no seed files, and none of its seeds is in build/; run make all")
    first = next((seed for seed in seeds if seed.number in packed[:1]), seeds[0])
    same: list[Seed] = []
    for seed in seeds:
        path = seed_path(folder, seed.number)
        if why := other_data(seed, first, [first, *same]):
            print(f"{path}: left out, because {why}; run: make all PROFILE={profile.name} SEEDS={seed.number}")
            continue
        kept = of_equal_recipes(profile, seed, first, path)
        if profile.baseline in kept.entries or seed is first:
            same.append(kept)
    return same


def other_data(seed: Seed, first: Seed, others: list[Seed]) -> str | None:
    """Why a seed is not of the first one's data and splits; None if it is."""
    for key in ("source", "backbone", "backbone_files", "labels"):
        if (mine := seed.card.get(key)) != (its := first.card.get(key)):
            return f"its {key} is {mine}, not {its} as in seed {first.number}"
    for domain in OUT_OF_DOMAIN:
        documents = [of.card.get("documents", {}).get(domain) for of in (seed, first)]
        if documents[0] != documents[1] or not np.array_equal(seed.labels.get(domain), first.labels.get(domain)):
            return f"its {domain} sentences are not seed {first.number}'s"
    for other in others:
        common = set(seed.texts) & set(other.texts)
        if common and set(seed.texts) != set(other.texts):
            return f"{len(common)} of its test sentences are also seed {other.number}'s, which has other splits"
    return None


def of_equal_recipes(profile: Profile, seed: Seed, first: Seed, path: Path) -> Seed:
    """The seed without the variants that, or an ancestor of which, were built with other options than in the first.

    No mean mixes both. The variants left out are printed: their file was written before the profile changed.
    """
    other: set[str] = set()
    for variant in profile.variants:  # parents come before their children
        entries = [of.entries[variant.name] for of in (seed, first) if variant.name in of.entries]
        recipes = [recipe_of(variant, entry.record.options) for entry in entries]
        if recipes[:1] != recipes[-1:] or other & set(variant.parents):
            other.add(variant.name)
    other &= seed.entries.keys()
    if other:
        print(
            f"{path}: left out, because they or an ancestor were built with other options than in seed {first.number}: "
            f"{', '.join(sorted(other))}"
        )
    return replace(seed, entries={name: entry for name, entry in seed.entries.items() if name not in other})


def recipe_of(variant, options: dict) -> dict:
    """What was built, from the options in a record; an option that is younger than the record has its default."""
    try:
        return type(variant).model_validate_json(json.dumps(options)).recipe
    except ValidationError:  # an option is gone since
        return options


def data_facts(seeds: list[Seed], first: Seed) -> dict:
    """The card of the first seed, and the older splits of all; of the documents their number and the longest."""
    facts = first.card | {"older_splits": older_splits(seeds)}
    if documents := first.card.get("documents"):
        facts["documents"] = {
            name: {"number": len(sizes), "sentences_of_longest": max(sizes)} for name, sizes in documents.items()
        }
    return facts


def older_splits(seeds: list[Seed]) -> list[dict]:
    """Per seed and older split: how many test sentences were in each part of it."""
    overlaps = {seed.number: seed.card.get("test_sentences_in_older_splits", {}) for seed in seeds}
    return [
        {"seed": number, "split": split} | counts
        for number, overlap in overlaps.items()
        for split, counts in overlap.items()
    ]


def built_seeds(profile: Profile, device: str) -> list[int]:
    """The seeds with a baseline in build/."""
    names = [path.name.partition("-")[0].removeprefix("seed") for path in profile.build.glob("seed*")]
    return [n for n in sorted({int(name) for name in names if name.isdigit()}) if seed_is_built(profile, n, device)]


def variant_rows(
    profile: Profile, seed: Seed, scores: Scores | None, device: str, scope: str | None
) -> list[VariantRow]:
    """The rows of a seed: each variant in its file, and with the status "missing" each other one of `scope`.

    `scores` is None where the profile says that quality is meaningless.
    """
    wanted = {variant.name for variant in profile.in_scope(scope)} if scope else set()
    base, ort_speedup = seed.evaluated.get(profile.baseline), find_ort_speedup(seed, profile.baseline)
    rows = []
    for variant in profile.variants:
        entry = seed.entries.get(variant.name)
        if entry is None and variant.name not in wanted:
            continue
        columns = {name: getattr(variant, name) for name in ("chapter", "family", "scope", "method")}
        columns |= {"variant": variant.name, "parent": variant.parent or "", "trained": profile.is_trained(variant)}
        columns |= {"device": device, "seed": seed.number, "status": "missing", "reason": "not built"}
        if entry is not None:  # the recipe may be older than the profile
            columns |= {"method": entry.record.method, "parent": entry.record.parent or ""}
            columns |= cost_columns(entry, base, ort_speedup)
        if entry is not None and entry.evaluated:
            if scores:
                columns |= quality_columns(seed, scores, variant.name, profile.baseline if base else None)
            else:
                columns["reason"] = "; ".join(filter(None, [columns["reason"], profile.no_quality]))
        rows.append(VariantRow(**columns))
    return rows


def print_summary(profile: Profile, rows: list[VariantRow]) -> int:
    """Prints how many variants each seed has, and why others have no results.

    The exit status is 1 if one failed, could not be timed, or is missing on the CPU; a GPU may have measured a part of
    them.
    """
    timed = {variant.name for variant in profile.variants if variant.timed}
    built = [row for row in rows if row.seed == 0 and row.status == "ok" and row.variant in timed]
    untimed = [row.variant for row in built if row.latency_ms_p50 is None]
    for seed in dict.fromkeys(row.seed for row in rows):
        states = Counter(row.status for row in rows if row.seed == seed)
        print(f"seed {seed}: " + ", ".join(f"{count} {status}" for status, count in sorted(states.items())))
    for row in rows:
        if row.status != "ok":
            print(f"{row.variant} (seed {row.seed}): {row.status}: {row.reason}")
    for name in untimed:
        print(f"{name} (seed 0): not timed")
    return int(
        bool(untimed) or any(row.status == "failed" or (row.status, row.device) == ("missing", "cpu") for row in rows)
    )
