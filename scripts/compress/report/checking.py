"""Compares a fresh run with the committed results: which claims held, which moved and which failed.

A claim is a value of a committed row. It held if the fresh value is equal (status, precision, parameters), within 1 %
(sizes), inside the committed 95 % interval (F1 and its drop), or within 10 % or the committed interval (speed-ups and
memory). It moved if time or memory differs by more, if the machine explains another precision, if it depends on the
machine's kernels (torchao), if another champion was chosen, or if only the fresh run has it. Everything else failed,
including a missing variant and a clear speed-up that is gone. An empty cell claims nothing.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from compress.config.profile import Profile
from compress.errors import UserError
from compress.paths import ROOT
from compress.provenance import git
from compress.report.tables import Column, markdown_table
from compress.results.rows import VariantRow, parse_rows

EXACT = ("status", "precision", "parameters")
SIZES, SIZE_TOLERANCE = ("size_mb", "nonzero_parameters"), 0.01  # entropy-coded weights vary in length with training
INTERVALS = {
    "f1_test": ("f1_ci_low", "f1_ci_high"),
    "f1_drop_points": ("f1_drop_ci_low", "f1_drop_ci_high"),
    "latency_speedup": ("latency_speedup_low", "latency_speedup_high"),
}
DROP_WIDTH = 0.2  # points to either side at least: the interval of a variant with equal predictions has no width
RATIOS, RATIO_TOLERANCE = ("latency_speedup", "throughput_speedup", "peak_rss_mb"), 0.1
CLEAR_SPEEDUP = 1.5  # a speed-up above this that turns into a slowdown has failed
NUMBERS = (*SIZES, "f1_test", "f1_drop_points", *RATIOS)
KERNEL_DEPENDENT = ("torchao",)  # methods that build only where the machine has a kernel for them
SHOWN = (("F1", "f1_test", ".6f"), ("MB", "size_mb", ".4f"), ("speed-up", "latency_speedup", ".2f"))
VERDICTS = ("held", "moved", "failed")
# CPU instructions that decide how fast, and in OpenVINO whether, a model runs in a precision.
CPU_FLAGS = {"int8": ("avx512_vnni", "avx_vnni", "amx_int8"), "bf16": ("avx512_bf16", "amx_bf16")}


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of a results folder; {} for a file that it does not have."""

    rows: list[VariantRow]
    environment: dict
    data: dict
    champions: dict


@dataclass(frozen=True)
class Claim:
    variant: str
    what: str  # the column
    committed: object
    fresh: object
    verdict: str
    why: str = ""


def compared_run(profile: Profile, folder: Path | None) -> ComparedRun:
    """The run in the folder, or without one that in results/<profile>/ at git's HEAD."""
    committed = profile.results.relative_to(ROOT)
    source = folder or f"git's HEAD: {committed}"

    def read(name: str) -> str | None:
        if folder is None:
            return git("show", f"HEAD:{committed}/{name}")
        return (folder / name).read_text("utf-8").strip() if (folder / name).exists() else None

    text = read("variants.csv")
    if text is None:
        raise UserError(f"{source}: no variants.csv; run: make all, or name a folder with --against or --fresh")
    rows = parse_rows(text.splitlines(), VariantRow, f"{source}/variants.csv")
    others = ("environment", "data", "champions")
    return ComparedRun(rows, *(json.loads(read(f"{name}.json") or "{}") for name in others))


def check_claims(profile: Profile, committed: ComparedRun, fresh: ComparedRun, only: Iterable[str]) -> tuple[int, str]:
    """(exit status, text) of the comparison of all variants, or of those named in `only`."""
    measured = {row for row in fresh.rows if row.status == "ok"}
    if any(row.latency_ms_p50 or row.train_seconds for row in measured):
        seeds = {row.seed for row in measured - set(committed.rows)}  # two runs never agree in every time
        if not seeds:
            raise UserError(
                "there is no fresh run, only the committed results; run: make all, or make check ONLY=<variants>"
            )
        fresh = replace(fresh, rows=[row for row in fresh.rows if row.seed in seeds])
    if unknown := sorted(set(only) - {variant.name for variant in profile.variants}):
        raise UserError(f"--only: profile {profile.name} has no variant {unknown[0]!r}")
    if only:
        committed, fresh = (
            replace(run, rows=[row for row in run.rows if row.variant in only]) for run in (committed, fresh)
        )
    differing = differences(committed.environment, fresh.environment)
    claims = compare(committed.rows, fresh.rows, differing)
    fingerprints = [run.data.get("fingerprint", "")[:12] for run in (committed, fresh)]
    if not only:
        claims += champion_claims(committed.champions, fresh.champions)
    if all(fingerprints) and fingerprints[0] != fingerprints[1]:
        claims.insert(0, Claim("", "data", *fingerprints, "failed"))
    counts = [f"{sum(claim.verdict == verdict for claim in claims)} claims {verdict}" for verdict in VERDICTS]
    parts = [values_table(committed.rows, fresh.rows)] if only else []
    parts += [
        claims_table(claims),
        failures_table(claims),
        "; ".join(differing.values()),
        f"{profile.name}: {', '.join(counts)}",
    ]
    return int(any(claim.verdict == "failed" for claim in claims)), "\n\n".join(filter(None, parts))


def compare(committed: list[VariantRow], fresh: list[VariantRow], differing: dict[str, str]) -> list[Claim]:
    """All claims of the committed rows of the seeds and scopes that the fresh run has; a row that only it has moved."""
    built = {(row.seed, row.scope) for row in fresh}
    old = {key(row): row for row in committed if (row.seed, row.scope) in built}
    new = {key(row): row for row in fresh}
    claims = []
    for place, row in old.items():
        if place in new:
            claims += judge(row, new[place], differing)
        else:
            claims.append(Claim(row.variant, "row", "present", "missing", "failed"))
    return claims + [
        Claim(row.variant, "row", "missing", "new", "moved") for place, row in new.items() if place not in old
    ]


def champion_claims(committed: dict, fresh: dict) -> list[Claim]:
    """A champion that is another variant moved: the choice depends on measured times."""
    pairs = [(name, facts["chosen"], fresh.get(name, {}).get("chosen")) for name, facts in committed.items()]
    return [Claim(name, "chosen", a, b, "held" if a == b else "moved") for name, a, b in pairs]


def key(row: VariantRow) -> tuple:
    return row.variant, row.seed, row.device


def judge(old: VariantRow, new: VariantRow, differing: dict[str, str]) -> list[Claim]:
    """The claims of a committed row about the fresh row of the same variant, seed and device."""
    columns = EXACT if old.status != new.status else (*EXACT, *NUMBERS)
    claims = []
    for column in (column for column in columns if getattr(old, column) not in (None, "")):
        verdict, why = verdict_of(column, old, new, differing)
        if verdict == "failed" and old.method in KERNEL_DEPENDENT and new.status != "failed":
            verdict, why = "moved", new.reason or "depends on the machine's kernels"
        why = "; ".join(filter(None, (why, causes(old, new, differing)))) if verdict != "held" else ""
        claims.append(Claim(old.variant, column, getattr(old, column), getattr(new, column), verdict, why))
    return claims


def verdict_of(column: str, old: VariantRow, new: VariantRow, differing: dict[str, str]) -> tuple[str, str]:
    """(verdict, reason) of one value."""
    a, b = getattr(old, column), getattr(new, column)
    if a == b:
        return "held", ""
    if column in EXACT:
        excused = column == "precision" and any(topic in differing for topic in CPU_FLAGS)
        return "moved" if excused else "failed", new.reason
    if b is None:
        return "failed", "not measured in this run"
    low, high = bounds(column, old)
    if low <= b <= high:
        return "held", ""
    if column not in RATIOS:
        return "failed", f"outside {low:.4g} to {high:.4g}"
    lost = column != "peak_rss_mb" and a > CLEAR_SPEEDUP and b < 1 and not differing and old.threads == new.threads
    return "failed" if lost else "moved", f"{b / a:.2f} times the committed value"


def bounds(column: str, row: VariantRow) -> tuple[float, float]:
    """The values that uphold a committed value: its tolerance, and its interval where it has one."""
    value = getattr(row, column)
    relative = SIZE_TOLERANCE if column in SIZES else RATIO_TOLERANCE if column in RATIOS else 0
    reach = max(relative * value, DROP_WIDTH if column == "f1_drop_points" else 0)
    ends = [getattr(row, end) for end in INTERVALS.get(column, ())]
    known = [value - reach, value + reach, *(end for end in ends if end is not None)]
    return min(known), max(known)


def differences(committed: dict, fresh: dict) -> dict[str, str]:
    """What differs between two environment.json, in words, by topic; {} if one is not known."""
    if not committed or not fresh:
        return {}
    old, new = committed["machine"][0], fresh["machine"][0]
    found = {}
    for topic, flags in CPU_FLAGS.items():
        before, now = ({flag for flag in flags if flag in machine["cpu_flags"]} for machine in (old, new))
        found[topic] = [f"no {flag} here" for flag in sorted(before - now)]
        found[topic] += [f"{flag} here" for flag in sorted(now - before)]
    pairs = [(name, old[name], new[name]) for name in ("cpu", "cpu_family_model", "cores", "gpu")]
    found["machine"] = [f"{name} {b} instead of {a}" for name, a, b in pairs if a != b]
    old, new = committed["libraries"][0], fresh["libraries"][0]
    changed = [name for name in old if old[name] != new.get(name)]
    found["libraries"] = [f"{name} {new.get(name)} instead of {old[name]}" for name in changed]
    return {topic: ", ".join(texts) for topic, texts in found.items() if texts}


def causes(old: VariantRow, new: VariantRow, differing: dict[str, str]) -> str:
    """The differences that can explain a change of this row: of instructions only those of its precision."""
    topics = [topic for topic in CPU_FLAGS if topic in old.precision] + ["machine", "libraries"]
    found = [differing[topic] for topic in topics if topic in differing]
    if old.threads != new.threads:
        found.append(f"threads {new.threads} instead of {old.threads}")
    return "; ".join(found)


def values_table(committed: list[VariantRow], fresh: list[VariantRow]) -> str:
    """The main values of both runs, next to each other."""
    old = {key(row): row for row in committed}
    pairs = [{"old": old[key(row)], "new": row} for row in fresh if key(row) in old]
    columns = [Column("variant", "new.variant"), Column("seed", "new.seed", "d")]
    for title, field, form in SHOWN:
        columns += [Column(title, f"old.{field}", form), Column("fresh", f"new.{field}", form)]
    return markdown_table(columns, pairs)


def claims_table(claims: list[Claim]) -> str:
    """The number of claims of each column by verdict."""
    counts = {claim.what: dict.fromkeys(VERDICTS, 0) for claim in claims}
    for claim in claims:
        counts[claim.what][claim.verdict] += 1
    columns = [Column("claim", "what"), *(Column(verdict, verdict, "d") for verdict in VERDICTS)]
    return markdown_table(columns, [{"what": what} | count for what, count in counts.items()])


def failures_table(claims: list[Claim]) -> str:
    """Every claim that did not hold, the failed ones first."""

    def value(name: str):
        return lambda claim: format(of, ".6g") if isinstance(of := getattr(claim, name), float) else str(of)

    columns = [Column("", "verdict"), Column("variant", "variant"), Column("claim", "what")]
    columns += [Column("committed", value("committed")), Column("fresh", value("fresh"))]
    columns.append(Column("likely reason", "why"))
    broken = [claim for claim in claims if claim.verdict != "held"]
    return markdown_table(columns, sorted(broken, key=lambda claim: claim.verdict))


def portable_rows(rows: list[VariantRow], methods: dict) -> list[VariantRow]:
    """The rows with only the values that hold on any machine: status, parameters, sizes, a stated precision."""
    numbers = [field.name for field in fields(VariantRow) if field.default is None]
    dropped = dict.fromkeys(name for name in numbers if name not in (*EXACT, *SIZES))
    found = []
    for row in rows:
        unsure = dropped | {"reason": ""}
        if row.method in KERNEL_DEPENDENT:
            unsure |= {"status": "", "precision": ""} | dict.fromkeys((*SIZES, "parameters"))
        elif methods[row.variant]["options"].get("execution") == "default":  # the engine picks what the CPU supports
            unsure["precision"] = ""
        found.append(replace(row, **unsure))
    return found
