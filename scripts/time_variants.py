"""Times the stale models of seed 0: one pass in random order, in alternation with the fp32 baseline; or cold starts.

Reads build/<profile>/seed0/*/; writes timing-<pass>.npz or cold.npz into each of these folders. Nothing
else should run on the machine at the same time.
Example: .venv/bin/python scripts/time_variants.py --profile minilm --pass 0 --threads 2
"""

import argparse
import os
from pathlib import Path

from compress.cli import add_device, main_guard, natural, profile_parser, thread_count
from compress.cpu import cores


def main(args: argparse.Namespace) -> None:
    # Before any library starts its threads. A measured model may spin, as it does in service.
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    os.environ.pop("OMP_WAIT_POLICY", None)
    from compress.config.profile import load_profile
    from compress.measure.timing import measure_cold_starts, run_pass

    profile = load_profile(args.profile)
    if args.number is None:
        measure_cold_starts(profile, args.threads, args.device, args.sources)
    else:
        run_pass(profile, args.number, args.threads, args.device, args.sources)


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    add_device(parser)
    parser.add_argument("--pass", dest="number", type=natural, help="which pass, from 0 (default: the cold starts)")
    parser.add_argument("--threads", type=thread_count, default=cores(), help="CPU threads (default: %(default)s)")
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="files that make older times stale")
    main_guard(main, parser)
