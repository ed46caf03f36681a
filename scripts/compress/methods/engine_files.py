"""What the methods that write files for an engine share: comparison with PyTorch, checks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from compress.engines import ort, ov
from compress.engines.predictor import Predictor, predict
from compress.engines.pytorch import TorchPredictor
from compress.errors import UserError
from compress.files import remove
from compress.methods.made import Context
from compress.methods.teaching import sentences
from torch import nn

PARITY = 1e-4  # the largest difference of logits between PyTorch and an fp32 export
PARITY_SENTENCES = 100  # of the validation split
CALIBRATION_SENTENCES = 200  # of the training split, for variants without such an option


def onnx_facts(context: Context, model: nn.Module, file: Path) -> tuple[dict, str]:
    """(what the file holds, runs, and how it compares with the torch model; the precision that runs)."""
    facts = ort.inspect_onnx(file)
    precision = ort.onnx_precision(facts)
    predictor = ort.OrtPredictor(ort.open_session(file, context.threads), precision, context.threads)
    return facts | compare_with_torch(context, model, predictor), precision


def openvino_facts(context: Context, model: nn.Module, file: Path, runtime: dict[str, str]) -> tuple[dict, str]:
    """The same for an OpenVINO model that is compiled with the properties `runtime`."""
    compiled = ov.compile_model(file, context.threads, runtime)
    facts = ov.inspect_openvino(file, compiled)
    predictor = ov.OpenVINOPredictor(compiled)
    return facts | compare_with_torch(context, model, predictor), predictor.precision


def compare_with_torch(context: Context, model: nn.Module, predictor: Predictor) -> dict[str, float]:
    """How much the engine's logits differ from the torch model's, on validation sentences at batch 1."""
    ids = sentences(context, "validation", PARITY_SENTENCES)
    expected = predict(TorchPredictor(model, "cpu", "fp32", context.threads), ids)
    logits = predict(predictor, ids)
    return {
        "largest_logit_difference": float(np.abs(logits - expected).max()),
        "label_agreement": float(np.mean(logits.argmax(1) == expected.argmax(1))),
    }


def check_parity(facts: dict) -> None:
    """Raises UserError if an fp32 export differs from its parent."""
    if facts["largest_logit_difference"] > PARITY:
        raise UserError(f"logits differ from PyTorch's by {facts['largest_logit_difference']:.2g}, more than {PARITY}")


def check_integers(facts: dict) -> None:
    """Raises UserError if a quantized file multiplies no integers when it runs."""
    if not facts["integer_products"]:
        raise UserError("quantized, but the engine multiplies no integers")


def empty_folder(folder: Path) -> Path:
    """The folder, created or emptied."""
    remove(folder)
    folder.mkdir(parents=True)
    return folder


def copying(files: dict[Path, str]) -> Callable[[Path], None]:
    """A function that copies each file into a folder, under its new name."""

    def write(folder: Path) -> None:
        for file, name in files.items():
            shutil.copyfile(file, folder / name)

    return write
