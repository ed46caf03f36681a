"""Writes a notebook per chapter: the chapter's page with code, executed on the committed results.

Reads report/chapters/*.md.j2 and results/ of the default profile; writes notebooks/<chapter>.ipynb. In a template, a
fenced block of python is a code cell; the output of a block marked `python local` depends on what this clone has built
and is not kept. Cells run in this process, without a Jupyter kernel.
Example: .venv/bin/python scripts/notebooks.py hw1 hw2
"""

import argparse
import os

from compress.cli import main_guard
from compress.paths import DEFAULT_PROFILE, ROOT


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.report.notebook import write_notebooks
    from compress.results.reading import read_results

    profile = load_profile(DEFAULT_PROFILE)
    for path in write_notebooks(profile, read_results(profile), args.chapter):
        print(os.path.relpath(path, ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", nargs="*", help="hw1, hw2, ... (default: all)")
    main_guard(main, parser)
