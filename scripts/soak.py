"""Loads the service with texts of random length for minutes or hours; memory, open files and latency must not grow.

The load is half of what the service can answer. A line every half minute shows its memory, its open files and the p99.
The second half of the time is compared with the first: if something grows, the status is 1. Without --model it loads
the five classifiers of the profile. Nothing else should run at the same time.
Example: .venv/bin/python scripts/soak.py --model champion-balanced --minutes 60
"""

import argparse
import signal
import sys
from functools import partial

from compress.cli import main_guard, positive, profile_parser, thread_count
from compress.cpu import cores


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.errors import UserError
    from compress.loadtest.soaking import growth, soak
    from compress.results.models import served_folders

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the server, as Ctrl-C does
    profile = load_profile(args.profile)
    log = profile.build / "soak.log"
    samples = soak(served_folders(profile, args.model), args.minutes, args.threads, log, partial(print, flush=True))
    if found := growth(samples):
        raise UserError(f"{'; '.join(found)} (the service's log: {log})")
    print(f"nothing grows; at most {max(sample.memory_mb for sample in samples):.0f} MB")
    return 0


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--model", nargs="+", action="extend", help="variants, champions or folders of models")
    parser.add_argument("--minutes", type=positive, default=10, help="of load (default: %(default)s)")
    parser.add_argument("--threads", type=thread_count, default=cores(), help="of the service (default: %(default)s)")
    main_guard(main, parser)
