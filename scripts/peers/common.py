"""Shared by the peers: their command line, and a classifier for one artifact folder as each of them would write it.

Each peer runs in its own environment, so this module imports nothing of the project, only numpy, onnxruntime and
tokenizers. A batch is padded to its longest text; ONNX Runtime gets the threads that the command line names.
"""

import argparse
import json
import os
from pathlib import Path

PATH = "/process"  # every peer takes a JSON string here and returns {variant: {"label": ..., "score": ...}}
HOST = "127.0.0.1"
# The tokenizers' own thread pool would come on top of the given threads.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Classifier:
    """Texts to predictions, each {variant: {"label": ..., "score": ...}}; loaded once per worker."""

    def __init__(self, folder: Path, threads: int):
        import onnxruntime
        from tokenizers import Tokenizer

        about = read(folder)
        self.name, self.labels = about["variant"], about["labels"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(about["max_length"])
        self.tokenizer.enable_padding()  # to the batch's longest, with BERT's [PAD], which is piece 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # As in our own service: threads that still spin after a call would slow down the next model's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.enable_mem_pattern = False
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, texts: str | list[str]) -> dict | list[dict]:
        """A list for a list of texts; one prediction for one text, which frameworks pass when batching is off."""
        import numpy as np

        if isinstance(texts, str):
            return self([texts])[0]
        encodings = self.tokenizer.encode_batch(texts)
        known = {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
        }
        logits = self.session.run(None, {name: known[name] for name in self.inputs})[0]
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        best = scores.argmax(1)
        return [
            {self.name: {"label": self.labels[label], "score": float(row[label])}}
            for label, row in zip(best, scores, strict=True)
        ]


def read(folder: Path) -> dict:
    """The folder's artifact.json; exits with a reason if the peers can't serve it."""
    try:
        about = json.loads((folder / "artifact.json").read_text("utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"{folder}: no model there (no artifact.json)") from None
    if about["backend"] != "onnxruntime":
        raise SystemExit(f"{folder}: the peers serve ONNX files, not {about['backend']}")
    return about


def parser(description: str, models: str | None = None) -> argparse.ArgumentParser:
    """The command line of every peer; `models` is the nargs of --model for a peer that serves several."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs=models, required=True, metavar="FOLDER", help="an artifact folder")
    parser.add_argument("--port", type=int, required=True, help=f"on {HOST}")
    parser.add_argument("--workers", type=int, required=True, help="processes that each load the model")
    parser.add_argument("--threads", type=int, required=True, help="of ONNX Runtime in each worker")
    parser.add_argument("--batch", type=int, required=True, help="texts in a batch, at most")
    return parser
