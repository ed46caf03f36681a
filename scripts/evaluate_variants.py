"""Evaluates the stale models of a seed: loads each from disk and stores its logits of all evaluation sets.

Reads build/<profile>/seed<k>/*/; writes predictions.npz into each of these folders.
Example: .venv/bin/python scripts/evaluate_variants.py --profile minilm --seed 0
"""

import argparse
from pathlib import Path

from compress.cli import main_guard, run_parser


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.measure.evaluation import evaluate_stale

    evaluate_stale(load_profile(args.profile), args.seed, args.device, args.sources)


if __name__ == "__main__":
    parser = run_parser(__doc__)
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="files that make older predictions stale")
    main_guard(main, parser)
