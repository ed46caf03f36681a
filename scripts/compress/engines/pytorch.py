"""Torch models of artifact folders: as save_pretrained wrote them, or packed; run dense, or with int8 modules."""

from pathlib import Path

import torch
from compress.errors import UserError
from compress.methods.quantize import Int8Embedding, int8_linear
from compress.storage import packed as storage
from torch import nn

TORCHAO_FILE = "torchao.pt"
INT8 = "int8-dynamic"  # the header's word for: run integer weights as integers


def load_model(folder: Path, dense: bool = False) -> nn.Module:
    """The classifier of a folder, in evaluation mode; `dense` asks for float weights whatever the folder runs as.

    Raises UserError naming the file when weights are missing, damaged, or not those of the config.
    """
    from transformers import AutoModelForSequenceClassification

    if (folder / TORCHAO_FILE).exists():
        return _load_torchao(folder)
    if not (folder / storage.FILE).exists():
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval()
    tensors, about = storage.load(folder)
    model = empty_model(folder)
    integers = {name: value for name, value in tensors.items() if isinstance(value, storage.Integer)}
    run_int8 = about.get("execution") == INT8 and not dense
    if not run_int8:
        tensors |= {name: torch.from_numpy(value.dense()) for name, value in integers.items()}
    floats = {name: value for name, value in tensors.items() if torch.is_tensor(value)}
    missing, unexpected = _assign(model, floats, folder)
    if unexpected or set(missing) != (set(integers) if run_int8 else set()):
        wrong = sorted(set(unexpected) | (set(missing) ^ (set(integers) if run_int8 else set())))
        raise UserError(f"{folder / storage.FILE}: not the weights of config.json: {', '.join(wrong[:5])}")
    for name, value in integers.items() if run_int8 else ():
        path = name.removesuffix(".weight")
        old = model.get_submodule(path)
        model.set_submodule(path, int8_linear(value, old.bias) if isinstance(old, nn.Linear) else Int8Embedding(value))
    return model.eval()


def import_torchao():
    """torchao.quantization, kept away from transformers until now (see compress/__init__.py), without its chatter."""
    import logging
    import sys

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if sys.modules.get("torchao", False) is None:
        del sys.modules["torchao"]
    try:
        import torchao.quantization
    except ImportError:
        raise UserError("this variant needs the library torchao, which is not installed; run: make env") from None
    return torchao.quantization


def _load_torchao(folder: Path) -> nn.Module:
    """torchao's tensors only travel through torch.save; weights_only lets nothing but tensors out of the file."""
    import_torchao()
    model = empty_model(folder)
    try:
        model.load_state_dict(torch.load(folder / TORCHAO_FILE, weights_only=True), assign=True)
    except (RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{folder / TORCHAO_FILE}: damaged, or not the weights of config.json: {error}") from None
    return model.eval()


def empty_model(folder: Path) -> nn.Module:
    """The architecture of folder/config.json with weights of any content: they are about to be replaced."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.modeling_utils import no_init_weights

    with no_init_weights():
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))


def _assign(model, floats, folder: Path) -> tuple[list[str], list[str]]:
    try:
        found = model.load_state_dict(floats, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"{folder / storage.FILE}: weights of another shape than config.json's: {error}") from None
    return found.missing_keys, found.unexpected_keys


def write_packed(model: nn.Module, folder: Path, encoded: dict, execution: str = "dense") -> None:
    """Writes config.json and packed.safetensors: the model's state with the `encoded` tensors in their place."""
    model.config.save_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if name not in encoded}
    storage.save(folder, state | encoded, execution=execution)


def precision_of(model: nn.Module) -> str:
    """The arithmetic of the model's matrix products, read from its modules: fp32, bf16, fp16 or int8."""
    from torch.ao.nn.quantized.dynamic import Linear

    if any(isinstance(module, Linear) for module in model.modules()):
        return "int8"
    weight = next(module.weight for module in model.modules() if isinstance(module, nn.Linear))
    if getattr(weight, "act_quant_kwargs", None) is not None:  # torchao: integers times integers
        return "int8"
    dtype = weight.dtype  # torchao's weight-only tensors: of the values that they are expanded to
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
