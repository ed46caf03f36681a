"""Peer infinity-emb: a FastAPI app whose threads sort a queue by length and hand batches to a transformers pipeline.

Its `optimum` engine runs ONNX files, but gives the pipeline no batch size, so that texts go through the model one by
one whatever --batch says; and it loads one replica, so that workers are uvicorn's processes. It is the app that
`infinity_emb v2` serves with one route added, for the benchmark's request and answer. Two things it has no option for
are done here: the model gets the config.json that transformers asks for, and ONNX Runtime its threads. It does not
truncate: a text of more than 512 pieces stops its model thread for good. Its warm-up sends such texts, so it is off, as
are telemetry and BetterTransformer (for torch). Engine and options: https://github.com/michaelfeil/infinity.
Example: python scripts/peers/infinity_server.py --model FOLDER --port 8000 --workers 2 --threads 1 --batch 8
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ |= {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}  # read when the libraries are imported

import onnxruntime
import uvicorn
from common import HOST, PATH, parser, read
from infinity_emb.args import EngineArgs
from infinity_emb.infinity_server import create_server
from infinity_emb.transformer.classifier import optimum
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def app():
    """The ASGI app of one worker, which is spawned with the server's command line."""
    arguments = parser(__doc__).parse_args()
    about = read(arguments.model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1

    class Threaded(optimum.ORTModelForSequenceClassification):
        @classmethod
        def from_pretrained(cls, *args, file_name, **kwargs):
            # optimum looks for a name inside the folder, where infinity gives a path.
            return super().from_pretrained(*args, file_name=Path(file_name).name, session_options=options, **kwargs)

    optimum.ORTModelForSequenceClassification = Threaded
    server = create_server(
        engine_args_list=[
            EngineArgs(
                model_name_or_path=str(folder_of(about)),
                served_model_name=about["variant"],
                engine="optimum",
                device="cpu",
                batch_size=arguments.batch,
                model_warmup=False,
                bettertransformer=False,
            )
        ]
    )

    async def process(request: Request) -> JSONResponse:
        answers, _ = await server.engine_array[about["variant"]].classify(sentences=[await request.json()])
        best = max(answers[0], key=lambda answer: answer["score"])
        return JSONResponse({about["variant"]: best})

    server.router.routes.insert(0, Route(PATH, process, methods=["POST"]))
    return server


def folder_of(about: dict) -> Path:
    return Path(sys.prefix) / "models" / about["variant"]


def lay_out(model: Path) -> None:
    """The artifact as transformers wants it: its files linked, and a config.json that names the labels."""
    about = read(model)
    folder = folder_of(about)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to((model / name).resolve())
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    config |= {"id2label": dict(enumerate(about["labels"]))}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    lay_out(arguments.model)
    uvicorn.run(
        "infinity_server:app",
        factory=True,
        host=HOST,
        port=arguments.port,
        workers=arguments.workers,
        log_level="warning",
    )
