"""The same predictor on Ray Serve, whose replicas, routing and batching do the scaling over cores and machines.

One replica a core by default, each with one thread and a model of its own; POST a JSON string to /process as to
serve.py. It has none of serve.py's limits: put a proxy before it. It needs Ray (requirements-ray.txt), which
make serve-ray installs in an environment of its own.
Example: make serve-ray MODEL=champion-balanced
"""

import argparse
import asyncio
import os
from pathlib import Path

from compress.cli import main_guard

MAX_BATCH = 4


def application(folder: Path, replicas: int):
    """The Serve application of an artifact folder; a model whose answers depend on its batch gets batches of one."""
    from compress.engines.predictor import load, load_tokenizer, predict, token_ids
    from compress.metrics import softmax
    from compress.serving.loading import PROBE, is_invariant
    from compress.storage.artifact import read_artifact
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=4 * MAX_BATCH, ray_actor_options={"num_cpus": 1})
    class Classifier:
        def __init__(self):
            artifact = read_artifact(folder)
            self.name, self.labels = artifact.variant, artifact.labels
            self.tokenizer = load_tokenizer(folder, artifact.max_length)
            self.model = load(folder, threads=1)
            invariant = is_invariant(self.model, token_ids(self.tokenizer, PROBE))
            self.answers.set_max_batch_size(MAX_BATCH if invariant else 1)

        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
        async def answers(self, texts: list[str]) -> list[dict]:
            return await asyncio.to_thread(self.predict, texts)  # the replica's event loop goes on meanwhile

        def predict(self, texts: list[str]) -> list[dict]:
            scores = softmax(predict(self.model, token_ids(self.tokenizer, texts), len(texts)))
            best = scores.argmax(-1)
            return [
                {self.name: {"label": self.labels[label], "score": round(float(row[label]), 6)}}
                for label, row in zip(best, scores, strict=True)
            ]

        async def __call__(self, request: Request):
            return await self.answers(await request.json())

    return Classifier.bind()


def main(args: argparse.Namespace) -> None:
    import time

    from compress.errors import UserError
    from compress.paths import SCRIPTS
    from compress.storage.artifact import read_artifact

    read_artifact(args.model)  # here, since Ray would start its replicas over and over before it gives up
    try:
        import ray
        from ray import serve
    except ImportError:
        raise UserError("Ray is not installed here; run: make serve-ray MODEL=...") from None
    ray.init(include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(SCRIPTS)}})
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(application(args.model.resolve(), args.replicas), route_prefix="/process")
    print(f"ready: http://{args.host}:{args.port}/process", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a variant's folder")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--replicas", type=int, default=os.cpu_count(), help="default: one per core, %(default)s")
    main_guard(main, parser)
