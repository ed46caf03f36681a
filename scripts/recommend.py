"""Recommends variants, and says what they lose and how to build them.

Reads only results/<profile>/. Without limits it prints the decision page's best for each need. Within limits of
megabytes, milliseconds and F1 it prefers the variants that keep the quality, and of these it chooses the one with the
best F1 on validation. Status 1 if no variant keeps the limits; the output then says which limit excludes all.
F1 shown and limited is that of the test set: the baseline's less the points lost. Milliseconds are for one sentence,
tokenizer included: the baseline's median divided by the speed-up. Variants that were measured on fewer seeds than the
baseline are not recommended.
Example: .venv/bin/python scripts/recommend.py --max-mb 25 --max-ms 2 --min-f1 0.82
"""

import argparse
import math

from compress.cli import main_guard, profile_parser


def limit(text: str) -> float:
    """An option's value; nan would exclude nothing."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def share(text: str) -> float:
    value = limit(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: F1 is at most 1")
    return value


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.errors import UserError
    from compress.report.pages import recommend
    from compress.report.recommendation import LIMITS
    from compress.results.reading import read_results

    profile = load_profile(args.profile)
    if profile.no_quality:
        raise UserError(f"profile {profile.name}: nothing to recommend: {profile.no_quality}")
    limits = {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}
    status, text = recommend(profile, read_results(profile), limits)
    print(text)
    return status


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--max-mb", type=limit, help="largest size on disk without the tokenizer, in MB of 10^6 bytes")
    parser.add_argument("--max-ms", type=limit, help="largest median time of one sentence from text, in ms")
    parser.add_argument("--min-f1", type=share, help="smallest F1 on the test set, 0 to 1")
    main_guard(main, parser)
