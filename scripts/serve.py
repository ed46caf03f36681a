"""Serves models over HTTP: POST a JSON string to /process, or open / in a browser.

Without --model it serves the five classifiers of the profile (make serve-bench builds them). A model whose predictions
depend on the rest of the batch (dynamic int8) runs one text at a time; /info shows which. Ctrl-C or SIGTERM stops the
service after every admitted request is finished.
Example: .venv/bin/python scripts/serve.py --model champion-balanced --port 8000
"""

import argparse
import ctypes
from dataclasses import fields

from compress.cli import main_guard, natural, port, positive, profile_parser
from compress.serving.limits import Options

M_TRIM_THRESHOLD = -1  # of malloc.h
TRIM_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Makes glibc return free memory from 1 MB on: it would keep over 10 MB that imports and loading have freed."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def main(args: argparse.Namespace) -> int:
    return_freed_memory()  # before the first large import
    from compress.config.profile import load_profile
    from compress.results.models import served_folders
    from compress.serving.server import serve

    folders = served_folders(load_profile(args.profile), args.model, args.seed)
    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    return serve(folders, options, args.host, args.port)


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--model", nargs="+", action="extend", help="variants, champions or folders of models")
    parser.add_argument("--seed", type=natural, default=0, help="of the models (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, local only)")
    parser.add_argument("--port", type=port, default=8000, help="default: %(default)s")
    for option in fields(Options):
        name, about = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        parser.add_argument(name, type=positive, default=option.default, help=about)
    main_guard(main, parser)
