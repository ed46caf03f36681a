"""What figures and report read: results/<profile>/ (a GPU's in its folder cuda/) and nothing else."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import mean

from compress.config.profile import Profile, load_profile
from compress.errors import UserError
from compress.results.rows import FlipRow, ReliabilityRow, SeedRow, ServiceRow, ServingRow, VariantRow, read_rows

OPTIONAL = {"seeds": SeedRow, "serving": ServingRow, "services": ServiceRow, "reliability": ReliabilityRow}
OPTIONAL |= {"flips": FlipRow, "against_large": SeedRow}  # tables that not every run has

# Columns of quality without a pooled column in seeds.csv: the mean over the seeds stands for them.
AVERAGED = (  # noqa: SIM905
    "flip_rate batch_flip_rate accuracy_test f1_macro_test ece_test f1_macro_amazon f1_macro_tweets f1_macro_nyt "
    "accuracy_amazon accuracy_tweets accuracy_nyt"
).split()
# Columns of seeds.csv by the column of variants.csv that they replace.
POOLED = {
    "f1_test": "f1_mean",
    "f1_drop_points": "drop_mean",
    "f1_drop_ci_low": "drop_low",
    "f1_drop_ci_high": "drop_high",
    "ood_drop_points": "ood_drop_mean",
}
MACHINE_KIND = ("cpu", "cpu_family_model", "cores", "gpu")  # keys of a machine; times compare where they are equal


@dataclass(frozen=True, kw_only=True)
class PooledRow(VariantRow):
    """A variant: the costs of its first seed, the quality of all its seeds, its record, and its names as a champion."""

    # Values that can be compared between variants, although seeds have other sentences and machines drift:
    comparable_f1: float | None = None  # the baseline's test F1 less the points lost
    latency_ms: float | None = None  # the baseline's median over the speed-up
    text_latency_ms: float | None = None  # as latency_ms, with the tokenizer
    seeds: int = 1
    f1_sd: float | None = None
    drop_upper_one_sided: float | None = None
    non_inferior: bool | None = None
    accuracy_drop_mean: float | None = None
    mcnemar_p: float | None = None
    p_adjusted: float | None = None
    ood_drop_low: float | None = None
    ood_drop_high: float | None = None
    champions: list[str] = field(default_factory=list)
    options: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)  # what has no column
    seconds: float | None = None  # to build and measure it
    build_peak_mb: float | None = None  # memory of its build

    @property
    def f1_macro_away(self) -> float | None:
        """The mean macro F1 on Amazon reviews, tweets and news."""
        domains = (self.f1_macro_amazon, self.f1_macro_tweets, self.f1_macro_nyt)
        return None if None in domains else sum(domains) / len(domains)

    @property
    def validation_f1(self) -> float | None:
        return self.measured.get("validation_f1")


# The columns of seeds.csv without a counterpart in variants.csv.
ADDED = {column.name for column in fields(SeedRow)} & {column.name for column in fields(PooledRow)} - {"variant"}


@dataclass(frozen=True)
class Results:
    """One device's results; tables that its runs did not write are empty."""

    rows: list[VariantRow]
    seeds: list[SeedRow]
    serving: list[ServingRow]
    services: list[ServiceRow]
    reliability: list[ReliabilityRow]
    flips: list[FlipRow]
    against_large: list[SeedRow]  # drops against the large fine-tuned model, in place of the baseline
    champions: dict[str, dict]  # by name: "chosen" and the facts of the choice
    methods: dict[str, dict]  # by variant: options, details, seconds, memory, measured
    environment: dict
    data: dict
    serving_origins: list[dict] = field(default_factory=list)  # provenance of the load tests, with "servers"
    gpu: "Results | None" = None
    large: "Results | None" = None  # those of the profile whose baseline is the large teacher

    @cached_property
    def variants(self) -> list[PooledRow]:
        """One row per variant of the first seed, in the order of variants.csv."""
        seeds = {row.variant: row for row in self.seeds}
        first = [rows for rows in by_variant(self.rows).values() if rows[0].seed == self.rows[0].seed]
        rows = [_pooled(rows, seeds.get(rows[0].variant)) for rows in first]
        base = next(row for row in rows if row.variant == self.environment["baseline"])
        return [replace(row, **self._facts(row, base)) for row in rows]

    def _facts(self, row: PooledRow, base: PooledRow) -> dict:
        """What a row has besides columns of the tables."""
        champions = [name for name, facts in self.champions.items() if facts["chosen"] == row.variant]
        facts = {"champions": champions} | self.methods.get(row.variant, {})
        for column in ("latency", "text_latency"):
            milliseconds = getattr(base, f"{column}_ms_p50")
            speedup = 1 if row is base else getattr(row, f"{column}_speedup")  # timed against itself, it has about 1
            if milliseconds and speedup:
                facts[f"{column}_ms"] = milliseconds / speedup
        if base.f1_test is not None and row.f1_drop_points is not None:
            facts["comparable_f1"] = base.f1_test - row.f1_drop_points / 100
        return facts

    @cached_property
    def by_name(self) -> dict[str, PooledRow]:
        return {row.variant: row for row in self.variants}

    def serving_machine(self, server: str) -> dict:
        """The machine of a server's load tests; in old results without serving.json that of all else."""
        tested = (of["machine"] for of in self.serving_origins if server in of["servers"])
        return next(tested, self.machine)

    @property
    def machine(self) -> dict:
        """The machine of the times; empty in results that do not say it."""
        return self.environment.get("machine", [{}])[0]

    @property
    def times_compare_with_large(self) -> bool:
        """Whether the large teacher's results have times, of a machine of this kind."""
        return self.large is not None and same_kind(self.machine, self.large.machine)

    def ancestry(self, variant: str) -> list[PooledRow]:
        """The variant's row, its parent's and so on."""
        rows = []
        while variant in self.by_name:
            rows.append(self.by_name[variant])
            variant = rows[-1].parent
        return rows

    def made_of(self, variant: str) -> list[PooledRow]:
        """The ancestry of the variant and, of a cascade, also that of its second model."""
        rows = self.ancestry(variant)
        second = rows[0].options.get("second") if rows else None
        return rows + (self.ancestry(second) if second else [])


def read_results(profile: Profile) -> Results:
    """Everything in results/<profile>/: the CPU's with the GPU's as its `gpu`, or the GPU's where it is alone.

    The results of the profile's large teacher, if there are any, are its `large`.
    Raises UserError saying what to run when the results are missing or damaged.
    """
    gpu = None
    if (profile.results_on("cuda") / "variants.csv").exists():
        gpu = _read(profile, profile.results_on("cuda"))
        if not (profile.results / "variants.csv").exists():
            return gpu
    results = _read(profile, profile.results, gpu)
    teacher = load_profile(profile.teacher) if profile.teacher else None
    if teacher and not teacher.no_quality and (teacher.results / "variants.csv").exists():
        return replace(results, large=_read(teacher, teacher.results))
    return results


def read_champions(folder: Path) -> dict[str, dict]:
    """champions.json of a results folder; empty if collate has written none."""
    path = folder / "champions.json"
    return _read_json(path) if path.exists() else {}


def by_variant(rows: Iterable) -> dict[str, list]:
    """The rows of each variant (or server), in their order."""
    grouped: dict[str, list] = {}
    for row in rows:
        grouped.setdefault(row.variant, []).append(row)
    return grouped


def same_kind(machine: dict, other: dict) -> bool:
    """Whether times on two machines can be compared."""
    return all(machine.get(key) == other.get(key) for key in MACHINE_KIND)


def _read(profile: Profile, folder: Path, gpu: Results | None = None) -> Results:
    try:
        rows = read_rows(folder / "variants.csv", VariantRow)
        facts = {name: _read_json(folder / f"{name}.json") for name in ("environment", "data", "methods")}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; run: make results PROFILE={profile.name}") from None
    if not any(row.variant == facts["environment"].get("baseline") for row in rows):
        raise UserError(f"{folder / 'variants.csv'}: no row of the baseline; run: make results PROFILE={profile.name}")
    paths = {name: folder / f"{name}.csv" for name in OPTIONAL}
    tables = {name: read_rows(path, OPTIONAL[name]) if path.exists() else [] for name, path in paths.items()}
    path = folder / "serving.json"
    origins = _read_json(path) if path.exists() else []
    return Results(rows=rows, champions=read_champions(folder), serving_origins=origins, gpu=gpu, **facts, **tables)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run: make results") from None


def _pooled(rows: list[VariantRow], seeds: SeedRow | None) -> PooledRow:
    """The first seed's row with the quality of all seeds.

    The interval of F1 itself is that of one seed, so it is empty where there are several.
    """
    first = rows[0]
    values = {column.name: getattr(first, column.name) for column in fields(first)}
    if seeds:
        values |= {column: getattr(seeds, column) for column in ADDED}
    if seeds and seeds.seeds > 1:
        for column in AVERAGED:
            known = [value for row in rows if (value := getattr(row, column)) is not None]
            values[column] = mean(known) if known else None
        values |= {column: getattr(seeds, theirs) for column, theirs in POOLED.items()}
        values |= {"f1_ci_low": None, "f1_ci_high": None}
    return PooledRow(**values)
