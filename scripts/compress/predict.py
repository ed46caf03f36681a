"""The one predictor interface: load a folder, then token ids and mask in, float32 logits out.

A backend is a function (folder, artifact, device, threads) -> Predictor and one line in BACKENDS.
Heavy libraries are imported only by the backend that needs them.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from compress.artifact import Artifact, read_artifact
from compress.profile import UserError
from tokenizers import Tokenizer


class Predictor(Protocol):
    precision: str  # of the arithmetic that runs, read back from the loaded model
    threads: int  # read back likewise

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """int64 [batch, length] twice -> float32 [batch, classes]; returns when the answer is on the host."""


@dataclass(frozen=True)
class TorchPredictor:
    model: object
    device: str
    precision: str
    threads: int

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(input_ids).to(self.device)
            mask = torch.from_numpy(attention_mask).to(self.device)
            return self.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()


def load_torch(folder: Path, artifact: Artifact, device: str, threads: int) -> TorchPredictor:
    import torch
    from compress.model import load_model, precision_of

    check_device(device)
    torch.set_num_threads(threads)
    model = load_model(folder).to(device)
    return TorchPredictor(model, device, precision_of(model), torch.get_num_threads())


BACKENDS = {"torch": (load_torch, "torch")}


def load(folder: Path, device: str = "cpu", threads: int = 1) -> Predictor:
    """The predictor of an artifact folder; raises UserError for a damaged folder or a missing backend."""
    artifact = read_artifact(folder)
    if artifact.backend not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise UserError(f"{folder}/artifact.json: backend: unknown {artifact.backend!r}, known: {known}")
    loader, library = BACKENDS[artifact.backend]
    if importlib.util.find_spec(library) is None:
        raise UserError(f"{folder}: needs the library {library}, which is not installed; run: make env")
    return loader(folder, artifact, device, threads)


def check_device(device: str) -> None:
    """Raises UserError if this machine or this build of torch has no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("DEVICE=cuda, but torch sees no CUDA GPU here; use DEVICE=cpu or a CUDA build of torch")


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The folder's fast tokenizer, truncating to max_length pieces and never padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def batches(ids: Sequence[Sequence[int]], size: int, by_length: bool = False) -> Iterator[tuple[np.ndarray, ...]]:
    """Token ids cut into batches, each padded to its own longest: (positions, input_ids, attention_mask)."""
    # A stable sort keeps sentences of equal length in order, so that batches repeat.
    order = np.argsort([len(row) for row in ids], kind="stable") if by_length else np.arange(len(ids))
    for start in range(0, len(ids), size):
        positions = order[start : start + size]
        length = max(len(ids[p]) for p in positions)
        input_ids = np.zeros((len(positions), length), np.int64)  # BERT's [PAD] is piece 0
        mask = np.zeros_like(input_ids)
        for row, p in enumerate(positions):
            input_ids[row, : len(ids[p])] = ids[p]
            mask[row, : len(ids[p])] = 1
        yield positions, input_ids, mask


def predict(predictor: Predictor, ids: Sequence[Sequence[int]], batch_size: int = 1) -> np.ndarray:
    """Logits float32 [sentences, classes] in the order of `ids`; sentences of like length are padded together."""
    found = [(positions, predictor(*arrays)) for positions, *arrays in batches(ids, batch_size, by_length=True)]
    order = np.concatenate([positions for positions, _ in found])
    return np.concatenate([logits for _, logits in found])[np.argsort(order)]
