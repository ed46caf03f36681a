"""Computes results/<profile>/ from seed files: variants.csv, seeds.csv, champions.json and the other tables.

A seed in build/<profile>/ is first packed into results/<profile>/seed<k>.npz; everything else is computed from these
files, also without build/. A GPU's results are in results/<profile>/cuda/. The exit status is 1 if a variant
failed, is missing or was not timed.
Example: .venv/bin/python scripts/collate.py --profile minilm --seeds "0 1 2"
"""

import argparse
from pathlib import Path

from compress.cli import add_device, main_guard, profile_parser, seed_list


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.graph.planning import variants_to_build
    from compress.results.collating import collate, print_summary

    profile = load_profile(args.profile)
    if args.only:
        names = {variant.name for variant in variants_to_build(profile, args.scope, args.only.split())}
        variants = [variant for variant in profile.variants if variant.name in names]
        profile = profile.model_copy(update={"variants": variants, "champions": []})
    folder = args.results or profile.results_on(args.device)
    rows = collate(profile, args.seeds, args.device, "full" if args.only else args.scope, folder)
    print(f"{folder}: {len(rows)} rows")
    return print_summary(profile, rows)


def seeds(text: str) -> list[int]:
    return seed_list(text) if text else []


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    add_device(parser)
    parser.add_argument("--seeds", type=seeds, default=[], help="to pack, separated by spaces (default: all in build/)")
    parser.add_argument("--scope", choices=("core", "full"), default="core", help="variants to expect (default: core)")
    parser.add_argument("--only", default="", metavar="NAMES", help="these variants and their ancestors alone")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write there (default: results/<profile>)")
    main_guard(main, parser)
