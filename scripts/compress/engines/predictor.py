"""The one predictor interface: load a folder, then token ids and mask in, float32 logits out.

A backend is a function (folder, artifact, device, threads) -> Predictor and one line in BACKENDS. What is special in
how a variant is run stands in the artifact's `runtime`: properties of OpenVINO, or {"compile": true} for torch.
Heavy libraries are imported only by the backend that needs them.
"""

import importlib.util
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compress.errors import UserError
from compress.storage.artifact import Artifact, read_artifact
from tokenizers import Tokenizer

SAVED = "pytorch_model.bin"


class Predictor(ABC):
    precision: str  # of the arithmetic that runs, read back from the loaded model
    threads: int  # read back likewise

    @abstractmethod
    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """int64 [batch, length] twice -> float32 [batch, classes]; returns when the answer is on the host."""

    def many(self, inputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """The answers to several batches; an engine that works on some of them at a time does so here."""
        return [self(*arrays) for arrays in inputs]


@dataclass(frozen=True)
class TorchPredictor(Predictor):
    model: object
    device: str
    precision: str
    threads: int

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.logits(input_ids, attention_mask).cpu().numpy()  # waits for the GPU

    def many(self, inputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """A GPU is handed all batches before the first answer is waited for; a CPU answers one after the other."""
        return [logits.cpu().numpy() for logits in [self.logits(*arrays) for arrays in inputs]]

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray):
        """float32 [batch, classes] on the device, where they may still be on their way."""
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(input_ids).to(self.device, non_blocking=True)
            mask = torch.from_numpy(attention_mask).to(self.device, non_blocking=True)
            return self.model(input_ids=ids, attention_mask=mask).logits.float()


class OrtPredictor(Predictor):
    def __init__(self, session, precision: str, threads: int):
        self.session, self.precision, self.threads = session, precision, threads
        self.names = [entry.name for entry in session.get_inputs()]

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.session.run(None, named(self.names, input_ids, attention_mask))[0]


class OpenVINOPredictor(Predictor):
    """One request for single calls; a queue with a request per stream for many."""

    def __init__(self, compiled):
        from compress.engines.ov import INTEGERS, nodes, products, text

        self.compiled, self.request = compiled, compiled.create_infer_request()
        self.names = [entry.any_name for entry in compiled.inputs]
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        declared = text(compiled.get_property("INFERENCE_PRECISION_HINT"))
        integers = INTEGERS & set(products(nodes(compiled)))
        self.precision = "int8" if integers else {"f32": "fp32", "f16": "fp16"}.get(declared, declared)

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        # share_outputs is off: the request's own memory is written again by the next call.
        return self.request.infer(named(self.names, input_ids, attention_mask), share_inputs=True)[0]

    def many(self, inputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        if self.compiled.get_property("NUM_STREAMS") == 1:
            return super().many(inputs)
        import openvino

        found = {}
        queue = openvino.AsyncInferQueue(self.compiled)
        queue.set_callback(lambda request, i: found.__setitem__(i, request.get_output_tensor().data.copy()))
        for i, (input_ids, mask) in enumerate(inputs):
            queue.start_async(named(self.names, input_ids, mask), i)
        queue.wait_all()
        return [found[i] for i in range(len(found))]


def named(names: Sequence[str], input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
    """An engine's inputs by name; a file that asks for token types gets those of a single sentence."""
    known = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in names:
        known["token_type_ids"] = np.zeros_like(input_ids)
    return known


def load_torch(folder: Path, artifact: Artifact, device: str, threads: int) -> TorchPredictor:
    import torch
    from compress.engines.pytorch import load_model, precision_of

    check_device(device)
    torch.set_num_threads(threads)
    if device == "cuda":
        # cuDNN's attention, which 16-bit floats get otherwise, builds a plan for every new shape of a batch.
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = load_model(folder).to(device)
    precision = precision_of(model)
    if artifact.runtime.get("compile"):
        model = torch.compile(model, dynamic=True)
    return TorchPredictor(model, device, precision, torch.get_num_threads())


def load_int8_saved(folder: Path, artifact: Artifact, device: str, threads: int) -> TorchPredictor:
    """What torch.save has kept of a model whose Linear layers quantize_dynamic had replaced."""
    import torch
    from compress.engines.pytorch import empty_model, precision_of

    only_cpu(folder, artifact, device)
    torch.set_num_threads(threads)
    model = dynamic_int8(empty_model(folder).eval())
    try:
        model.load_state_dict(torch.load(folder / SAVED, weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder / SAVED}: damaged, or not the weights of config.json: {error}") from None
    return TorchPredictor(model, device, precision_of(model), torch.get_num_threads())


def dynamic_int8(model):
    """The model with its Linear layers replaced as torch.ao's quantize_dynamic does it, one scale per tensor."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but what the course used
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


def load_ort(folder: Path, artifact: Artifact, device: str, threads: int) -> OrtPredictor:
    from compress.engines import ort

    only_cpu(folder, artifact, device)
    # ONNX Runtime does not tell what its kernels compute in: it was counted in its own graph when the file was made.
    return OrtPredictor(ort.session(folder / ort.FILE, threads), artifact.runtime["precision"], threads)


def load_openvino(folder: Path, artifact: Artifact, device: str, threads: int) -> OpenVINOPredictor:
    from compress.engines import ov

    only_cpu(folder, artifact, device)
    return OpenVINOPredictor(ov.compile_model(folder / ov.FILE, threads, artifact.runtime))


# The library's name in Python; the loader.
BACKENDS = {
    "torch": ("torch", load_torch),
    "torch-int8-saved": ("torch", load_int8_saved),
    "onnxruntime": ("onnxruntime", load_ort),
    "openvino": ("openvino", load_openvino),
}


def only_cpu(folder: Path, artifact: Artifact, device: str) -> None:
    if device != "cpu":
        raise UserError(f"{folder}: {artifact.backend} runs on the CPU here, not on {device}")


def load(folder: Path, device: str = "cpu", threads: int = 1) -> Predictor:
    """The predictor of an artifact folder; raises UserError for a damaged folder or a missing backend."""
    artifact = read_artifact(folder)
    if artifact.backend not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise UserError(f"{folder}/artifact.json: backend: unknown {artifact.backend!r}, known: {known}")
    library, loader = BACKENDS[artifact.backend]
    if importlib.util.find_spec(library) is None:
        raise UserError(f"{folder}: needs the library {library}, which is not installed; run: make env")
    return loader(folder, artifact, device, threads)


def check_device(device: str) -> None:
    """Raises UserError if this machine or this build of torch has no such device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("DEVICE=cuda, but torch sees no CUDA GPU here; use DEVICE=cpu or a CUDA build of torch")


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The folder's fast tokenizer, truncating to max_length pieces and never padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of every text's pieces, [CLS] and [SEP] among them."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


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
