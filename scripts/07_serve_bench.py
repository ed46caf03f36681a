"""HW7, acceleration in production: builds a classifier of the service, or measures the service under load.

With a VARIANT it builds that classifier: its parent trained further on the task's labels, as ONNX with static int8.
Without one it starts a server for each served variant of the profile and sends it real texts: in a closed loop for its
saturation rate, then in an open loop at shares of that rate. The runs are in build/<profile>/serving/; current runs are
kept. collate_serving.py summarizes them (make serve-bench does both). Nothing else should run at the same time.
Example: .venv/bin/python scripts/07_serve_bench.py --profile minilm service-movies
Example: .venv/bin/python scripts/07_serve_bench.py --profile minilm --only finetuned
"""

import argparse
import signal
import sys
from functools import partial

from compress.cli import build_parser, main_guard, thread_count
from compress.cpu import cores


def main(args: argparse.Namespace) -> int:
    if args.variant:
        from compress.graph.building import build
        from compress.methods.service import service

        return build(args, {"service": service})
    from compress.config.profile import load_profile
    from compress.loadtest.benchmark import run_benchmark
    from compress.results.models import model_folder

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the servers, as Ctrl-C does
    profile = load_profile(args.profile)
    if profile.serving is None:
        print(f"profile {profile.name} has no [serving]: nothing to measure")
        return 0
    count = run_benchmark(args, profile, partial(model_folder, profile))
    print(f"{count} servers measured")
    return 0


if __name__ == "__main__":
    parser = build_parser(__doc__, nargs="?")
    parser.add_argument(
        "--scope",
        choices=("core", "full"),
        default="core",
        help="full: more servers and requests (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=thread_count, default=cores(), help="CPU threads of every server (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="SERVER", help="measure only these servers")
    parser.add_argument(
        "--peers", action="store_true", help="measure the peers (make peers-env) and our server in turns"
    )
    parser.add_argument("--again", action="store_true", help="measure existing runs again")
    main_guard(main, parser)
