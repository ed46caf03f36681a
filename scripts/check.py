"""Compares a fresh run with the committed results and says which claims held, moved or failed.

Compares results/<profile>/ (or --fresh FOLDER) with git's HEAD (or --against FOLDER). Held: equal facts, sizes within
1 %, F1 inside the committed interval, speed-ups and memory within 10 % or the committed interval. Moved: time and
memory outside these limits, and what depends on the machine; differences of machine and libraries are named. Failed:
everything else. Status 1 if a claim failed or if there is no fresh run. `make check ONLY="cluster-16 ..."` builds the
named variants first.
Example: .venv/bin/python scripts/check.py --profile minilm
"""

import argparse
from pathlib import Path

from compress.cli import main_guard, profile_parser


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.report import checking
    from compress.results.reading import read_results
    from compress.results.rows import write_rows

    profile = load_profile(args.profile)
    if args.expect:
        results = read_results(profile)
        path = args.expect / "variants.csv"
        write_rows(path, checking.portable_rows(results.rows, results.methods))
        print(f"{path}: written")
        return 0
    fresh = checking.compared_run(profile, args.fresh or profile.results)
    status, text = checking.check_claims(profile, checking.compared_run(profile, args.against), fresh, args.only)
    print(text)
    return status


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--fresh", type=Path, metavar="FOLDER", help="the fresh results (default: results/<profile>)")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="compare with this folder instead of git's HEAD")
    parser.add_argument("--only", metavar="VARIANT", nargs="+", default=[], help="compare only these variants")
    parser.add_argument("--expect", type=Path, metavar="FOLDER", help="only write what holds on any machine to FOLDER")
    main_guard(main, parser)
