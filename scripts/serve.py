"""Serves models over HTTP: POST a JSON string to /process, or open / in a browser.

Without --model it serves the five classifiers of the profile (make serve-bench builds them). A model whose predictions
depend on the rest of the batch (dynamic int8) runs one text at a time; /info shows which. Ctrl-C or SIGTERM stops the
service after every admitted request is finished.
Example: python scripts/serve.py --model champion-balanced --port 8000
"""

import argparse
import ctypes
from dataclasses import fields

from compress.cli import cores, main_guard, natural, port, positive, profile_parser
from compress.serving.limits import Options

M_TRIM_THRESHOLD = -1  # of malloc.h
TRIM_BYTES = 1 << 20
OPTIONS = {  # default and help
    "workers": (cores(), "threads that run models (default: one per core, %(default)s)"),
    "threads": (Options.threads, "of one model in each worker (default: %(default)s)"),
    "max-batch": (Options.max_batch, "texts in a batch; 1: no batching (default: %(default)s)"),
    "max-tokens": (Options.max_tokens, "word pieces in a batch, padding included (default: %(default)s)"),
    "window": (
        Options.window,
        "waiting texts from which a batch of similar lengths is chosen; up to --max-batch: first come, first served "
        "(default: %(default)s)",
    ),
    "deadline-ms": (Options.deadline_ms, "of every request (default: %(default)s)"),
    "max-wait-ms": (Options.max_wait_ms, "expected wait beyond which requests get 429 (default: %(default)s)"),
}


def return_freed_memory() -> None:
    """Makes glibc return free memory from 1 MB on: it would keep over 10 MB that imports and loading have freed."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def main(args: argparse.Namespace) -> int:
    return_freed_memory()  # before the first large import
    from compress.config.profile import load_profile
    from compress.errors import UserError
    from compress.results.models import model_folder
    from compress.serving.server import serve

    profile = load_profile(args.profile)
    models = args.model or [service.name for service in profile.services]
    if not models:
        raise UserError(f"profile {args.profile} has no services: name a model with --model")
    folders = [model_folder(profile, model, args.seed) for model in models]
    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    return serve(folders, options, args.host, args.port)


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--model", nargs="+", action="extend", help="variants, champions or folders of models")
    parser.add_argument("--seed", type=natural, default=0, help="of the models (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, local only)")
    parser.add_argument("--port", type=port, default=8000, help="default: %(default)s")
    for name, (default, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=text)
    main_guard(main, parser)
