"""The interface of all engines: load an artifact folder, then token ids and mask in, float32 logits out.

A new engine is one loader, a function (folder, artifact, device, threads) -> Predictor, and one line in BACKENDS. The
module of an engine is imported when a folder needs it, so that a process loads only the libraries that it runs.
The artifact's `runtime` holds the settings of the engine: properties of OpenVINO, or {"compile": true} for torch.
"""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from compress.errors import UserError
from compress.storage.artifact import Artifact, read_artifact
from tokenizers import Tokenizer

# Backend in artifact.json: (the library that it needs, module of compress.engines, loader in that module)
BACKENDS = {
    "torch": ("torch", "pytorch", "load_torch"),
    "torch-int8-saved": ("torch", "pytorch", "load_int8_saved"),
    "onnxruntime": ("onnxruntime", "ort", "load_onnx"),
    "openvino": ("openvino", "ov", "load_openvino"),
    "numpy": ("safetensors", "shallow", "load_shallow"),
    "cascade": ("numpy", "two_stage", "load_cascade"),
}
BATCH_TOLERANCE = 1e-4  # logits: the largest difference between a sentence alone and in a batch
INPUTS = ("input_ids", "attention_mask")


class Predictor(ABC):
    precision: str  # of the arithmetic that runs: of ONNX Runtime as counted at the export, otherwise as the model says
    threads: int  # of ONNX Runtime as requested, otherwise as the library says
    length_step = 1  # the service pads batches to a multiple of it; each shape may take memory of its own

    @abstractmethod
    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """int64 [batch, length] twice -> float32 [batch, classes]; returns when the logits are in host memory."""

    def many(self, inputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """The logits of several batches; an engine that processes batches in parallel overrides this."""
        return [self(*arrays) for arrays in inputs]


def load(folder: Path, device: str = "cpu", threads: int = 1) -> Predictor:
    """The predictor of an artifact folder; raises UserError for a damaged folder or a missing library."""
    artifact = read_artifact(folder)
    if artifact.backend not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise UserError(f"{folder}/artifact.json: backend: unknown {artifact.backend!r}, known: {known}")
    library, module, loader = BACKENDS[artifact.backend]
    if importlib.util.find_spec(library) is None:
        raise UserError(f"{folder}: needs the library {library}, which is not installed; run: make env")
    return getattr(importlib.import_module(f"compress.engines.{module}"), loader)(folder, artifact, device, threads)


def require_cpu(folder: Path, artifact: Artifact, device: str) -> None:
    """Raises UserError for another device: the loader's engine runs on the CPU only."""
    if device != "cpu":
        raise UserError(f"{folder}: {artifact.backend} runs on the CPU here, not on {device}")


def named_inputs(names: Sequence[str], input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
    """A model file's inputs by name; a file with token types gets those of a single sentence."""
    known = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in names:
        known["token_type_ids"] = np.zeros_like(input_ids)
    return known


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The folder's fast tokenizer, which truncates to max_length pieces and does not pad."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of every text's pieces, [CLS] and [SEP] included."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def batches(ids: Sequence[Sequence[int]], size: int, by_length: bool = False) -> Iterator[tuple[np.ndarray, ...]]:
    """Token ids in batches, each padded to its longest row: (positions, input_ids, attention_mask)."""
    # A stable sort keeps sentences of equal length in order, so that batches are reproducible.
    order = np.argsort([len(row) for row in ids], kind="stable") if by_length else np.arange(len(ids))
    for start in range(0, len(ids), size):
        positions = order[start : start + size]
        rows = [ids[p] for p in positions]
        yield positions, *padded(rows, max(map(len, rows)))


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask) of rows with at most `length` ids: int64 [rows, length]."""
    input_ids = np.zeros((len(rows), length), np.int64)  # 0 is BERT's [PAD]; the mask hides it in others
    mask = np.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return input_ids, mask


def feeds(ids: Iterable[Sequence[int]]) -> Iterator[dict[str, np.ndarray]]:
    """Each sentence as the named inputs of an exported model: int64 [1, length], without padding."""
    return (named_inputs(INPUTS, *padded([row], len(row))) for row in ids)


def predict(predictor: Predictor, ids: Sequence[Sequence[int]], batch_size: int = 1) -> np.ndarray:
    """Logits float32 [sentences, classes] in the order of `ids`; each batch holds sentences of similar length."""
    outputs = [(positions, predictor(*arrays)) for positions, *arrays in batches(ids, batch_size, by_length=True)]
    order = np.concatenate([positions for positions, _ in outputs])
    return np.concatenate([logits for _, logits in outputs])[np.argsort(order)]
