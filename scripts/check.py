"""A fresh run against what was committed: which claims held, which moved, and which failed.

Reads results/<profile>/ and compares it with the version at git's HEAD, or with the folder of --against.
Held: facts are equal, sizes within 1 %, F1 and its drop inside the committed 95 % interval (the drop's is taken to be
at least 0.2 points wide to either side), ratios of time and memory within a factor of 1.5. Moved: time and memory
beyond that, and what hangs on them; differences of the machine and the libraries are named beside it. Failed: all else,
a missing variant among it, and a speed-up that is none any more on a like machine. Status 1 if something failed.
With --only the named variants and what they need are made and measured first, and checked alone: minutes in place of
hours, and results/ stays as it is.
Example: python scripts/check.py --profile minilm --only cluster-16 finetuned-ort-int8
Expectations that hold on any machine: python scripts/check.py --profile smoke --expect tests/expected/smoke
"""

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from compress.cli import cores, main_guard, positive, profile_parser
from compress.results.reading import is_noisy

KEY = ("variant", "seed", "device")
EXACT = ("status", "precision", "parameters")
NEAR = ("size_mb", "nonzero_parameters")
NEAR_TOLERANCE = 0.01  # relative: entropy-coded weights are as long as the training's last bits make them
DROP_WIDTH = 0.2  # points, a few sentences: a variant that answered all alike has an interval of no width
INSIDE = {"f1_test": ("f1_ci_low", "f1_ci_high"), "f1_drop_points": ("f1_drop_ci_low", "f1_drop_ci_high")}
RATIOS = ("latency_speedup", "throughput_speedup", "peak_rss_mb")
RATIO_TOLERANCE = 1.5  # as a factor: on a shared machine the speed-up of a fast model moves by tens of percent
BY_TIME = ("champion", "torchao")  # whose making looks at measured times: what to choose, whether there is a kernel
VERDICTS = ("held", "moved", "failed")
# Instructions of the CPU that decide how fast, and in OpenVINO whether, a model runs in an arithmetic.
FLAGS = {"int8": ("avx512_vnni", "avx_vnni", "amx_int8"), "bf16": ("avx512_bf16", "amx_bf16")}


# The script that makes a chapter's variants, in the order in which they build upon each other.
STAGES = {
    "baseline": "01_finetune.py",
    "HW3": "04_distill.py",
    "HW1": "02_quantize_prune.py",
    "HW2": "03_cluster.py",
    "HW4": "05_export.py",
    "HW6": "06_optimum.py",
}
SHOWN = (
    ("f1_test", "F1", 4),
    ("size_mb", "MB", 2),
    ("latency_speedup", "faster", 2),
    ("throughput_speedup", "batched", 2),
)


@dataclass(frozen=True)
class Claim:
    variant: str
    what: str  # the column
    committed: object
    found: object
    verdict: str
    why: str = ""


def key_of(row) -> tuple:
    return tuple(row[name] for name in KEY)


def differences(committed: dict, fresh: dict) -> dict[str, str]:
    """What differs between two environment.json, in words, by the topic that it bears on; {} if one is not known."""
    if not committed:
        return {}
    old, new = committed["machine"][0], fresh["machine"][0]
    found = {}
    for topic, flags in FLAGS.items():
        sides = [{flag for flag in flags if flag in machine["cpu_flags"]} for machine in (old, new)]
        texts = [f"no {flag} here" for flag in sorted(sides[0] - sides[1])]
        texts += [f"{flag} here" for flag in sorted(sides[1] - sides[0])]
        if texts:
            found[topic] = ", ".join(texts)
    others = [(name, old[name], new[name]) for name in ("cpu", "cpu_family_model", "cores", "gpu")]
    others.append(("threads", committed["threads"], fresh["threads"]))
    if texts := [f"{name} {b} for {a}" for name, a, b in others if a != b]:
        found["machine"] = ", ".join(texts)
    old, new = committed["libraries"][0], fresh["libraries"][0]
    if texts := [f"{name} {new.get(name)} for {old[name]}" for name in old if old[name] != new.get(name)]:
        found["libraries"] = ", ".join(texts)
    return found


def causes(row, differing: dict[str, str]) -> str:
    """The differences that bear on a row: of instructions only where its arithmetic uses them."""
    topics = [topic for topic in FLAGS if topic in (row["precision"] or "")] + ["machine", "libraries"]
    return "; ".join(differing[topic] for topic in topics if topic in differing)


def judge(old, new, differing: dict[str, str]) -> list[Claim]:
    """The claims of a committed row about the fresh row of the same variant, seed and device.

    An empty cell claims nothing.
    """
    likely = causes(old, differing)
    instructions = any(topic in differing for topic in FLAGS)
    by_time = old["method"] in BY_TIME and new["status"] != "failed"
    claims = []

    def claim(what, held, otherwise="failed", why=""):
        if not held and by_time:
            otherwise, why = "moved", new["reason"] or "made by what was measured on the way"
        why = "; ".join(filter(None, (why, likely)))
        verdict = "held" if held else otherwise
        claims.append(Claim(old["variant"], what, old[what], new[what], verdict, "" if held else why))

    for what in EXACT:
        if old.get(what):
            claim(what, old[what] == new[what], "moved" if what == "precision" and instructions else "failed")
        if old["status"] != new["status"]:
            return claims
    for what in (*NEAR, *INSIDE, *RATIOS):
        a, b = old.get(what), new[what]
        if a is None:
            continue
        if b is None:
            noisy = is_noisy(new)
            claim(what, False, "moved" if noisy else "failed", why=new["reason"] if noisy else "not measured here")
        elif what in NEAR:
            claim(what, abs(b - a) <= NEAR_TOLERANCE * a, why=f"{100 * (b / a - 1):+.1f} %")
        elif what in INSIDE:
            low, high = (old[bound] for bound in INSIDE[what])
            if what == "f1_drop_points":
                low, high = min(low, a - DROP_WIDTH), max(high, a + DROP_WIDTH)
            claim(what, low <= b <= high, why=f"outside {low:.4g} to {high:.4g}")
        else:
            turned = what != "peak_rss_mb" and a > RATIO_TOLERANCE and b < 1 and not differing
            held = 1 / RATIO_TOLERANCE <= b / a <= RATIO_TOLERANCE
            claim(what, held, "failed" if turned else "moved", why=f"{b / a:.2f} times the committed")
    return claims


def compare(committed, fresh, differing: dict[str, str]) -> list[Claim]:
    """All claims of the committed rows, for the seeds that the fresh rows have, and the fresh rows that are new."""
    found = {key_of(row): row for row in fresh}
    seeds = {row["seed"] for row in fresh}
    expected = {key_of(row): row for row in committed if row["seed"] in seeds}
    claims = []
    for key, row in expected.items():
        if key in found:
            claims += judge(row, found[key], differing)
        else:
            claims.append(Claim(row["variant"], "row", "there", "missing", "failed"))
    return claims + [Claim(key[0], "row", "none", "new", "moved") for key in found if key not in expected]


def read_committed(profile, folder: Path | None) -> tuple[list[dict], dict, dict]:
    """Rows, environment and data ({} where they are not there) of the folder, or of results/<profile>/ at HEAD."""
    from compress.errors import UserError
    from compress.paths import ROOT
    from compress.provenance import git
    from compress.results.reading import parse_table, without_disturbed_times

    def read(name):
        if folder is None:
            return git("show", f"HEAD:{(profile.results / name).relative_to(ROOT)}")
        return (folder / name).read_text("utf-8") if (folder / name).exists() else None

    rows = read("variants.csv")
    if rows is None:
        where = folder or f"git's HEAD: {profile.results.relative_to(ROOT)}"
        raise UserError(f"{where}: no variants.csv there; name a folder that holds one by --against")
    environment, data = (json.loads(read(f"{name}.json") or "{}") for name in ("environment", "data"))
    rows = parse_table(rows.splitlines())
    if "latency_speedup" in rows[0]:
        rows = without_disturbed_times(rows, profile.baseline)
    return rows, environment, data


def make(profile, names: list[str], threads: int) -> tuple[list[dict], dict]:
    """Rows and environment of these variants and all that they build upon, made and measured by the stages' scripts."""
    import numpy as np
    from collate import COLUMNS, csv_text, environment, seed_rows
    from compress.data.prepare import load_splits
    from compress.errors import UserError
    from compress.paths import SCRIPTS
    from compress.results.reading import parse_table, without_disturbed_times
    from compress.storage.record import read_arrays, read_record

    variants = {variant.name: variant for variant in profile.variants}
    for name in names:
        if name not in variants:
            raise UserError(f"--only: profile {profile.name} has no variant {name!r}")
        if variants[name].method == "champion":
            raise UserError(f"--only: {name} is chosen among all variants; name what it is a copy of, or run make all")
    needed = {profile.baseline}.union(*map(profile.ancestors, names))
    for chapter, script in STAGES.items():
        if only := [name for name in variants if name in needed and variants[name].chapter == chapter]:
            command = [sys.executable, str(SCRIPTS / script), "--profile", profile.name, "--threads", str(threads)]
            subprocess.run([*command, "--only", *only])  # what fails is in the records
    records = {name: read_record(profile.record(name)) for name in variants if name in needed}
    measured = {name: read_arrays(profile, record) for name, record in records.items() if record.status == "ok"}
    labels = {name: np.array(split["label"]) for name, split in load_splits(profile).items()}
    rows = parse_table(csv_text(COLUMNS, seed_rows(profile, records, measured, labels)).splitlines())
    return without_disturbed_times(rows, profile.baseline), environment(profile, records)


def side_by_side(committed, fresh) -> str:
    """What the committed run found, and this one."""
    from compress.report.tables import number, table

    old = {key_of(row): row for row in committed}
    header = ["variant", *(title for _, name, _ in SHOWN for title in (name, "here"))]
    body = [
        [row["variant"], *(number(side.get(column), n) for column, _, n in SHOWN for side in (old[key_of(row)], row))]
        for row in fresh
        if key_of(row) in old
    ]
    return table(header, body)


def report(claims, differing: dict[str, str]) -> str:
    """Counts per claim, then every claim that did not hold, the failed ones first."""
    from compress.report.tables import table

    def value(x):
        return "" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x)

    counts = [
        [what, *(str(sum(c.what == what and c.verdict == verdict for c in claims)) for verdict in VERDICTS)]
        for what in dict.fromkeys(c.what for c in claims)
    ]
    parts = [table(["claim", *VERDICTS], counts)]
    lines = [
        [c.verdict, c.variant, c.what, value(c.committed), value(c.found), c.why]
        for verdict in VERDICTS[:0:-1]
        for c in claims
        if c.verdict == verdict
    ]
    if lines:
        parts.append(table(["", "variant", "claim", "committed", "here", "why, likely"], lines))
    if differing:
        parts.append("Differs from the committed run: " + "; ".join(differing.values()))
    return "\n\n".join(parts)


def write_expectations(profile, folder: Path) -> None:
    """What of results/<profile>/variants.csv holds on any machine: status, size, parameters, a stated arithmetic."""
    from collate import write_csv
    from compress.results.reading import read_results

    methods = read_results(profile).methods
    columns = (*KEY, "method", *EXACT, *NEAR)
    with open(profile.results / "variants.csv", encoding="utf-8", newline="") as file:
        rows = [{column: row[column] for column in columns} for row in csv.DictReader(file)]
    for row in rows:
        if row["method"] in BY_TIME:
            row |= dict.fromkeys((*EXACT, *NEAR), "")
        elif methods[row["variant"]]["options"].get("execution") == "default":  # the engine picks what the CPU has
            row["precision"] = ""
    write_csv(folder / "variants.csv", columns, rows)


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.data.prepare import load_card
    from compress.results.reading import read_results

    profile = load_profile(args.profile)
    if args.expect:
        write_expectations(profile, args.expect)
        print(f"{args.expect / 'variants.csv'}: written")
        return 0
    rows, environment, data = read_committed(profile, args.against)
    if args.only:
        fresh, here = make(profile, args.only, args.threads)
        found = load_card(profile)
        names = {row["variant"] for row in fresh}
        rows = [row for row in rows if row["variant"] in names]
        print(f"\n{side_by_side(rows, fresh)}\n")
    else:
        results = read_results(profile)
        fresh, here, found = results.rows, results.environment, results.data
    differing = differences(environment, here)
    claims = compare(rows, fresh, differing)
    if data and data["fingerprint"] != found["fingerprint"]:
        claims.insert(0, Claim("", "data", data["fingerprint"][:12], found["fingerprint"][:12], "failed"))
    print(report(claims, differing))
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    print(f"\n{profile.name}: " + ", ".join(f"{n} claims {verdict}" for verdict, n in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="compare with this folder's variants.csv")
    parser.add_argument("--expect", type=Path, metavar="FOLDER", help="write expectations of this run, compare nothing")
    parser.add_argument("--only", metavar="VARIANT", nargs="+", help="make, measure and check only these (seed 0, CPU)")
    parser.add_argument("--threads", type=positive, default=cores(), help="with --only (default: %(default)s)")
    main_guard(main, parser)
