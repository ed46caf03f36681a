"""Serves a model on Ray Serve, whose replicas, routing and batching scale over cores and machines.

By default one replica per core, each with one thread and its own model; POST a JSON string to /process as with
serve.py. It has none of serve.py's limits: put a proxy in front. It needs Ray (requirements-ray.txt), which
make serve-ray installs in a separate environment.
Example: make serve-ray MODEL=champion-balanced
"""

import argparse
import asyncio
import time
from pathlib import Path

from compress.cli import base_url, main_guard, natural, port, profile_parser, thread_count
from compress.cpu import cores


def application(folder: Path, replicas: int):
    """The Ray Serve application of an artifact folder; batches have one text unless the model is batch invariant."""
    from compress.engines.predictor import load, load_tokenizer, predict, token_ids
    from compress.metrics import softmax
    from compress.serving.limits import Options
    from compress.serving.loading import PROBE, is_invariant
    from compress.storage.artifact import read_artifact
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    ongoing = 4 * Options.max_batch

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=ongoing, ray_actor_options={"num_cpus": 1})
    class Classifier:
        def __init__(self):
            artifact = read_artifact(folder)
            self.name, self.labels = artifact.variant, artifact.labels
            self.tokenizer = load_tokenizer(folder, artifact.max_length)
            self.model = load(folder, threads=1)
            invariant = is_invariant(self.model, token_ids(self.tokenizer, PROBE))
            self.classify.set_max_batch_size(Options.max_batch if invariant else 1)

        @serve.batch(max_batch_size=Options.max_batch, batch_wait_timeout_s=0.0)
        async def classify(self, texts: list[str]) -> list[dict]:
            return await asyncio.to_thread(self.predict, texts)  # keeps the replica's event loop free

        def predict(self, texts: list[str]) -> list[dict]:
            scores = softmax(predict(self.model, token_ids(self.tokenizer, texts), len(texts)))
            best = scores.argmax(-1)
            return [
                {self.name: {"label": self.labels[label], "score": round(float(row[label]), 6)}}
                for label, row in zip(best, scores, strict=True)
            ]

        async def __call__(self, request: Request):
            try:
                text = await request.json()
            except ValueError:
                text = None
            if not isinstance(text, str) or not text.strip():  # in a batch it would fail the other texts, too
                return JSONResponse({"error": "send a JSON string that is not blank"}, status_code=400)
            return await self.classify(text)

    return Classifier.bind()


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.errors import UserError
    from compress.paths import SCRIPTS
    from compress.results.models import model_folder
    from compress.storage.artifact import read_artifact

    folder = model_folder(load_profile(args.profile), args.model, args.seed).resolve()
    read_artifact(folder)  # here, because Ray would restart its replicas many times before it gives up
    try:
        import ray
        from ray import serve
    except ImportError:
        raise UserError("Ray is not installed here; run: make serve-ray MODEL=...") from None
    ray.init(include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(SCRIPTS)}})
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(application(folder, args.replicas), route_prefix="/process")
    print(f"ready: {base_url(args.host, args.port)}process", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--model", required=True, help="a variant, a champion, or the folder of a model")
    parser.add_argument("--seed", type=natural, default=0, help="of the model (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=port, default=8000, help="default: %(default)s")
    parser.add_argument("--replicas", type=thread_count, default=cores(), help="default: one per core, %(default)s")
    main_guard(main, parser)
