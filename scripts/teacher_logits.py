"""Stores a seed's logits of a large teacher in results/<profile>/logits/, so that small profiles can learn from them.

The profile's baseline must be built. Example: .venv/bin/python scripts/teacher_logits.py --profile base --seed 0
"""

import argparse

from compress.cli import main_guard, run_parser


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile, logits_file
    from compress.graph.teacher_logits import write_teacher_logits

    profile = load_profile(args.profile)
    baseline = next(variant for variant in profile.everything if variant.name == profile.baseline)
    threads = baseline.threads or 1  # not the machine's: another number rounds differently
    count = write_teacher_logits(profile, args.seed, args.device, threads)
    file = logits_file(profile.name, args.seed)
    print(f"seed {args.seed}: logits of {profile.baseline} for {count} texts are in {file}")


if __name__ == "__main__":
    main_guard(main, run_parser(__doc__))
