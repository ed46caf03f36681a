"""Serves models over HTTP: POST /process with a JSON string, every model answers; the page at / is for people.

Without --model: the five classifiers of the profile (make serve-bench makes them). A model whose answers depend on what
else is in its batch (dynamic int8) runs alone, one text at a time; /info tells. Stop with Ctrl-C or SIGTERM: what was
admitted is still answered.
Example: python scripts/serve.py --model build/minilm/models/champion-balanced --port 8000
"""

import argparse
import sys
from pathlib import Path

M_TRIM_THRESHOLD = -1  # of malloc.h
MAX_BATCH, WINDOW = 4, 64  # unless told otherwise


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.errors import UserError
    from compress.serving.app import Service, create_app
    from compress.serving.server import serve

    profile = load_profile(args.profile)
    folders = args.model or [profile.model(name) for name in profile.services]
    if not folders:
        raise UserError(f"profile {args.profile} has no services: name a model with --model FOLDER")
    for folder in folders:
        if not (folder / "artifact.json").exists():
            raise UserError(f"{folder}: no model there; make it first, e.g. make serve-bench or make all")
    service = Service(args.deadline_ms / 1000)
    sys.setswitchinterval(0.0005)  # lanes that come back from a model get the interpreter sooner than after 5 ms
    names = ("lanes", "threads", "max_batch", "max_tokens", "window", "deadline_ms", "max_wait_ms")
    limits = {name: getattr(args, name) for name in names}

    def start(loop) -> None:
        from compress.serving.loading import load_models
        from compress.serving.scheduler import Scheduler

        try:
            models, tokenizers, service.infos = load_models(folders, args.lanes, args.threads, args.max_batch)
            service.scheduler = Scheduler(
                models,
                tokenizers,
                args.lanes,
                loop,
                max_tokens=args.max_tokens,
                window=args.window,
                max_wait=args.max_wait_ms / 1000,
                observe=service.metrics.observe,
            )
        except Exception as error:
            service.failure = str(error)
            return
        print(f"ready: http://{args.host}:{args.port}/ serves {', '.join(model.name for model in models)}", flush=True)

    return serve(service, create_app(service, limits), start, args.host, args.port)


def return_freed_memory() -> None:
    """Has glibc give free memory back from 1 MB on: else it keeps what imports and loading have freed, over 10 MB."""
    import ctypes

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        mallopt(M_TRIM_THRESHOLD, 1 << 20)


if __name__ == "__main__":
    return_freed_memory()  # before the first large import
    from compress.cli import cores, main_guard, port, positive, profile_parser

    parser = profile_parser(__doc__)
    parser.add_argument("--model", type=Path, action="append", metavar="FOLDER", help="a variant's folder; repeatable")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=port, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--lanes",
        type=positive,
        default=cores(),
        help="threads that run models (default: one per core, %(default)s)",
    )
    parser.add_argument("--threads", type=positive, default=1, help="of a model in each lane (default: %(default)s)")
    parser.add_argument(
        "--max-batch", type=positive, default=MAX_BATCH, help="texts in a batch; 1: no batching (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=1024, help="padded word pieces in a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--window", type=positive, default=WINDOW, help="waiting texts among which batches of like length are chosen; "
        "not more than --max-batch: first come, first served (default: %(default)s)"
    )  # fmt: skip
    parser.add_argument("--deadline-ms", type=positive, default=1000, help="of every request (default: %(default)s)")
    parser.add_argument(
        "--max-wait-ms",
        type=positive,
        default=250,
        help="expected wait beyond which requests get 429 (default: %(default)s)",
    )
    main_guard(main, parser)
