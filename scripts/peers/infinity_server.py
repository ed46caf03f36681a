"""Peer infinity-emb: a FastAPI app whose threads sort a queue by length and pass batches to a transformers pipeline.

Its `optimum` engine runs ONNX files but gives the pipeline no batch size, so that the model gets one text at a time
whatever --batch says; and it loads one replica, so that workers are uvicorn's processes. This is the app of
`infinity_emb v2` with one route added for the benchmark. Two things for which it has no option are done here: the model
gets the config.json that transformers needs, and ONNX Runtime its threads. It does not truncate: a text of more than
512 pieces stops its model thread for good. Its warm-up sends such texts, so it is off, as are telemetry and
BetterTransformer (for torch). Engine and options: https://github.com/michaelfeil/infinity.
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
    """The ASGI app of one worker, a new process with the server's command line."""
    arguments = parser(__doc__).parse_args()
    about = read(arguments.model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as in our own service
    options.enable_mem_pattern = False

    class Threaded(optimum.ORTModelForSequenceClassification):
        @classmethod
        def from_pretrained(cls, *args, file_name, **kwargs):
            # optimum expects a name inside the folder, infinity passes a path.
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
        predictions, _ = await server.engine_array[about["variant"]].classify(sentences=[await request.json()])
        best = max(predictions[0], key=lambda prediction: prediction["score"])
        return JSONResponse({about["variant"]: best})

    server.router.routes.insert(0, Route(PATH, process, methods=["POST"]))
    return server


def folder_of(about: dict) -> Path:
    return Path(sys.prefix) / "models" / about["variant"]


def link_files(model: Path) -> None:
    """Links the artifact's files into a folder with the config.json that transformers needs."""
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
    link_files(arguments.model)
    uvicorn.run(
        "infinity_server:app",
        factory=True,
        host=HOST,
        port=arguments.port,
        workers=arguments.workers,
        log_level="warning",
    )
