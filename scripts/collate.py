"""Computes results/<profile>/ from seed files: variants.csv, seeds.csv, champions.json and the other tables.

A seed in build/<profile>/ is first packed into results/<profile>/seed<k>.npz; everything else is computed from these
files, also without build/. A GPU's results are in results/<profile>/cuda/. The exit status is 1 if a variant failed.
Example: python scripts/collate.py --profile minilm --seeds "0 1 2"
"""

import argparse

from compress.cli import main_guard, natural, profile_parser


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.results.collating import collate, report_rows

    profile = load_profile(args.profile)
    return report_rows(profile, collate(profile, args.seeds, args.device, args.scope), args.device)


def seeds(text: str) -> list[int]:
    return sorted({natural(seed) for seed in text.split()})


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of measuring (default: %(default)s)")
    parser.add_argument("--seeds", type=seeds, default=[], help="separated by spaces (default: all that there are)")
    parser.add_argument("--scope", choices=("core", "full"), default="core", help="variants to expect (default: core)")
    main_guard(main, parser)
