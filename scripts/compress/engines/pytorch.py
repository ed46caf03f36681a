"""PyTorch: classifiers of artifact folders, as save_pretrained wrote them or packed, run dense or with int8 modules.

torchao is imported only for the variants that need it (see compress/__init__.py).
"""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from compress.engines.factored import with_factors
from compress.engines.int8 import Int8Embedding, computes_in_int8, dynamic_int8, int8_linear
from compress.engines.mpnet import with_own_bias
from compress.engines.predictor import Predictor, require_cpu
from compress.errors import Skip, UserError
from compress.storage import packed
from compress.storage.artifact import Artifact
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_utils import no_init_weights
from transformers.utils import SAFE_WEIGHTS_NAME

SAVED = "pytorch_model.bin"
TORCHAO_FILE = "torchao.pt"
CAUSES = ("No space left", "failed to map", "Permission denied", " error: ", "rror: ")  # in a compiler's message


@dataclass(frozen=True)
class TorchPredictor(Predictor):
    model: Callable
    device: str
    precision: str
    threads: int

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.logits(input_ids, attention_mask).cpu().numpy()  # waits for the GPU

    def many(self, inputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """A GPU receives all batches before the first result is read; a CPU runs one after the other."""
        return [logits.cpu().numpy() for logits in [self.logits(*arrays) for arrays in inputs]]

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> torch.Tensor:
        """float32 [batch, classes] on the device; a GPU may still be computing them."""
        with torch.inference_mode():
            ids = torch.from_numpy(input_ids).to(self.device, non_blocking=True)
            mask = torch.from_numpy(attention_mask).to(self.device, non_blocking=True)
            return self.model(input_ids=ids, attention_mask=mask).logits.float()


def load_torch(folder: Path, artifact: Artifact, device: str, threads: int) -> TorchPredictor:
    check_device(device)
    torch.set_num_threads(threads)
    if device == "cuda":
        # cuDNN's attention, the default for 16-bit floats, builds a plan for every new shape of a batch.
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = load_model(folder).to(device)
    precision = torch_precision(model)
    if artifact.runtime.get("compile"):
        model = compiled(model)
    return TorchPredictor(model, device, precision, torch.get_num_threads())


def compiled(model: nn.Module) -> Callable:
    """torch.compile of a model. A call raises Skip if the compiler fails: each new kind of batch may need it."""
    fast = torch.compile(model, dynamic=True)

    def call(**inputs):
        try:
            return fast(**inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            lines = str(error).splitlines() or [type(error).__name__]
            line = next((line for cause in CAUSES for line in lines if cause in line), lines[0])
            reason = line.split("fatal error: ")[-1].split(".  ")[0].strip()[:200]
            raise Skip(
                f"torch.compile failed: {reason}; it needs a C++ compiler, and a temporary folder with free space "
                f"where files may be executed (TMPDIR={os.environ.get('TMPDIR', '/tmp')})"
            ) from error

    return call


def load_int8_saved(folder: Path, artifact: Artifact, device: str, threads: int) -> TorchPredictor:
    """A state dict that torch.save wrote of a model after quantize_dynamic."""
    require_cpu(folder, artifact, device)
    torch.set_num_threads(threads)
    model = dynamic_int8(empty_model(folder).eval())
    try:
        model.load_state_dict(torch.load(folder / SAVED, weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder / SAVED}: damaged, or not the weights of config.json: {error}") from None
    return TorchPredictor(model, device, torch_precision(model), torch.get_num_threads())


def check_device(device: str) -> None:
    """Raises UserError if this machine or this build of torch has no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("DEVICE=cuda, but torch sees no CUDA GPU here; use DEVICE=cpu or a CUDA build of torch")


def load_model(folder: Path, dense: bool = False) -> nn.Module:
    """The classifier of a folder in evaluation mode; dense=True loads int8 weights as floats.

    Raises UserError naming the file if weights are missing, damaged, or do not fit the config.
    """
    if (folder / TORCHAO_FILE).exists():
        return _load_torchao(folder)
    if not (folder / packed.FILE).exists():
        return _load_plain(folder)
    tensors, about = packed.load_tensors(folder)
    model = empty_model(folder)
    integers = {name: value for name, value in tensors.items() if isinstance(value, packed.Integer)}
    run_int8 = about.get("execution") == packed.INT8 and not dense
    if not run_int8:
        tensors |= {name: torch.from_numpy(value.dense()) for name, value in integers.items()}
    floats = {name: value for name, value in tensors.items() if torch.is_tensor(value)}
    missing, unexpected = _assign(model, floats, folder)
    left = set(integers) if run_int8 else set()  # tensors that int8 modules will hold
    if unexpected or set(missing) != left:
        wrong = sorted(set(unexpected) | (set(missing) ^ left))
        raise UserError(f"{folder / packed.FILE}: not the weights of config.json: {', '.join(wrong[:5])}")
    for name, value in integers.items() if run_int8 else ():
        path = name.removesuffix(".weight")
        old = model.get_submodule(path)
        model.set_submodule(path, int8_linear(value, old.bias) if isinstance(old, nn.Linear) else Int8Embedding(value))
    return model.eval()


def _load_plain(folder: Path) -> nn.Module:
    """What save_pretrained wrote; transformers would build whole matrices, at random, in place of factored ones."""
    if not hasattr(AutoConfig.from_pretrained(folder), "ranks"):
        load = AutoModelForSequenceClassification.from_pretrained
        model, info = load(folder, dtype="auto", output_loading_info=True)
        wrong = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
        if wrong:
            raise UserError(f"{folder}: not the weights of config.json: {', '.join(sorted(wrong)[:5])}")
        return with_own_bias(model).eval()
    model, path = empty_model(folder), folder / SAFE_WEIGHTS_NAME
    try:
        safetensors.torch.load_model(model, path)
    except (RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing, damaged, or not the weights of config.json: {error}") from None
    return model.eval()


def import_torchao():
    """The module torchao.quantization, without its log messages; raises UserError if it is not installed."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if sys.modules.get("torchao", False) is None:
        del sys.modules["torchao"]
    try:
        import torchao.quantization  # noqa: PLC0415
    except ImportError:
        raise UserError("this variant needs the library torchao, which is not installed; run: make env") from None
    return torchao.quantization


def _load_torchao(folder: Path) -> nn.Module:
    """torchao's tensors can only be stored by torch.save; weights_only=True reads nothing but tensors from the file."""
    import_torchao()
    model = empty_model(folder)
    try:
        model.load_state_dict(torch.load(folder / TORCHAO_FILE, weights_only=True), assign=True)
    except (RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{folder / TORCHAO_FILE}: damaged, or not the weights of config.json: {error}") from None
    return model.eval()


def empty_model(folder: Path) -> nn.Module:
    """The architecture of folder/config.json with uninitialized weights."""
    with no_init_weights():
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
        return with_own_bias(with_factors(model))


def _assign(model, floats, folder: Path) -> tuple[list[str], list[str]]:
    try:
        result = model.load_state_dict(floats, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{folder / packed.FILE}: weights of another shape than config.json's: {error}") from None
    return result.missing_keys, result.unexpected_keys


def torch_precision(model: nn.Module) -> str:
    """The arithmetic of the model's matrix products, read from its modules: fp32, bf16, fp16 or int8."""
    if computes_in_int8(model):
        return "int8"
    weight = next(module.weight for module in model.modules() if isinstance(module, nn.Linear))
    if getattr(weight, "act_quant_kwargs", None) is not None:  # torchao with quantized activations
        return "int8"
    dtype = weight.dtype  # torchao's weight-only tensors have the type of the values that they are expanded to
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
