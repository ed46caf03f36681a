"""Draws the paper's figures: F1 over size and latency, and the curves of each chapter.

Reads results/<profile>/; writes figures/<profile>/<name>.png (for the screen), .svg (for the HTML page) and .pdf (for
print), and removes others.
A chapter without rows in the profile has no figure.
Example: .venv/bin/python scripts/figures.py --profile minilm
"""

import argparse

from compress.cli import main_guard, profile_parser


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.report.gallery import draw_all
    from compress.results.reading import read_results

    profile = load_profile(args.profile)
    names = draw_all(profile, read_results(profile))
    print(f"{profile.figures}: {len(names)} figures")


if __name__ == "__main__":
    main_guard(main, profile_parser(__doc__))
