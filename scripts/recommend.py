"""Which variant to use: the best F1 within a budget of megabytes, milliseconds and F1, and how to load it.

Reads results/<profile>/ and nothing else. Status 1 if nothing fits; then it says which limit stands in the way.
F1 is that of the test set, the mean of the training seeds: a choice among near equals by it is a little optimistic.
Milliseconds are the baseline's over the speed-up measured beside it. Champions are copies of other variants: left out.
Example: python scripts/recommend.py --max-mb 25 --max-ms 2 --min-f1 0.85
"""

import argparse
import math
import sys

from compress.cli import main_guard, profile_parser

# Option: (column, its unit, +1 if the value must not be larger, -1 if not smaller).
LIMITS = {
    "max_mb": ("size_mb", "MB", 1),
    "max_ms": ("latency_ms", "ms at batch 1", 1),
    "min_f1": ("f1_test", "F1", -1),
}


def limit(text: str) -> float:
    """An option's value; nan would keep nobody out."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def share(text: str) -> float:
    value = limit(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: F1 is at most 1")
    return value


def candidates(results) -> list[dict]:
    """What can be recommended: trained, measured, and no champion, which is another variant again."""
    return [
        row
        for row in results.variants
        if row["status"] == "ok" and row["trained"] == "True" and row["method"] != "champion"
    ]


def fits(row, limits) -> bool:
    """True if the row keeps every limit; a value that was not measured keeps none."""
    for name, limit in limits.items():
        column, _, sign = LIMITS[name]
        if row[column] is None or sign * row[column] > sign * limit:
            return False
    return True


def best(rows, limits):
    """The row of best F1 that keeps the limits, the smaller of equals; None if there is none."""
    return max(
        (row for row in rows if fits(row, limits)), key=lambda row: (row["f1_test"], -row["size_mb"]), default=None
    )


def describe(row) -> str:
    speed = "not timed" if row["latency_ms"] is None else f"{row['latency_ms']:.2f} ms at batch 1"
    return f"{row['variant']}: F1 {row['f1_test']:.3f}, {row['size_mb']:.2f} MB, {speed} ({row['backend']})"


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile, run_name
    from compress.errors import UserError
    from compress.results.reading import read_results

    profile = load_profile(args.profile)
    if profile.no_quality:
        raise UserError(f"profile {profile.name}: nothing to recommend: {profile.no_quality}")
    rows = candidates(read_results(profile))
    limits = {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}
    row = best(rows, limits)
    if row:
        folder = f"build/{profile.name}/models/{run_name(row['variant'], int(row['seed']), row['device'])}"
        print(describe(row))
        print(f"make it:  make all PROFILE={profile.name}")
        print(f'run it:   {sys.executable} scripts/predict.py --model {folder} "a text"')
        return 0
    print("nothing keeps every limit")
    ways = []
    for name in limits:
        column, unit, sign = LIMITS[name]
        others = {other: value for other, value in limits.items() if other != name}
        near = [row for row in rows if row[column] is not None and fits(row, others)]
        if near:
            nearest = min(near, key=lambda row: (sign * row[column], -row["f1_test"]))
            option, possible = f"--{name.replace('_', '-')} {limits[name]:g}", f"{nearest[column]:.4g} {unit}"
            ways.append(f"{option} alone stands in the way; {possible} is possible: {describe(nearest)}")
    print("\n".join(ways) or "no limit alone stands in the way: give up more than one")
    return 1


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--max-mb", type=limit, help="bytes on disk without the tokenizer, in MB of 10^6")
    parser.add_argument("--max-ms", type=limit, help="median latency of one sentence, in ms")
    parser.add_argument("--min-f1", type=share, help="F1 on the test set, 0 to 1")
    main_guard(main, parser)
