"""Plans a run: writes build/<profile>/plan/*.json and build/<profile>/plan.mk, which the Makefile includes.

Records of failed builds and damaged models are removed, so that Make builds them again.
Example: .venv/bin/python scripts/plan.py --profile minilm --scope core --seeds "0 1"
"""

import argparse

from compress.cli import add_device, main_guard, profile_parser, seed_list


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.graph import planning

    profile = load_profile(args.profile)
    variants = planning.variants_to_build(profile, args.scope, args.only.split())
    for line in planning.discard_unusable(profile, variants, args.seeds, args.device):
        print(line)
    planning.write_plan(profile, variants, args.seeds, args.device, args.train_device or args.device)


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--scope", choices=("core", "full"), default="core", help="(default: %(default)s)")
    parser.add_argument("--only", default="", metavar="NAMES", help="these variants and their ancestors alone")
    parser.add_argument("--seeds", type=seed_list, default=[0], help="separated by spaces (default: 0)")
    add_device(parser)
    parser.add_argument("--train-device", choices=("cpu", "cuda"), help="where models are trained (default: --device)")
    main_guard(main, parser)
