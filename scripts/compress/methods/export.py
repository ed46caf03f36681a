"""What the stages 05 to 07 share: calibration sentences, parity with PyTorch, a check for integers, finished files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from compress.engines.predictor import Predictor, TorchPredictor, load_tokenizer, predict, token_ids
from compress.errors import UserError
from compress.files import remove

PARITY = 1e-4  # logits of an fp32 export may differ from PyTorch's by so much
PARITY_SENTENCES = 100  # of the validation split
CALIBRATION_SENTENCES = 200  # of the training split, where a variant has no such option


def sentences(context, split: str, count: int | None = None) -> list[list[int]]:
    """Token ids of the first `count` sentences of a split, or of all, as the parent's tokenizer has them."""
    tokenizer = load_tokenizer(context.parent, context.profile.data.max_length)
    return token_ids(tokenizer, context.splits[split]["text"][:count])


def compared(context, model, predictor: Predictor) -> dict[str, float]:
    """How far the engine's answers lie from those of the torch model, on validation sentences at batch 1."""
    ids = sentences(context, "validation", PARITY_SENTENCES)
    wanted = predict(TorchPredictor(model, "cpu", "fp32", context.threads), ids)
    found = predict(predictor, ids)
    return {
        "largest_logit_difference": float(np.abs(found - wanted).max()),
        "label_agreement": float(np.mean(found.argmax(1) == wanted.argmax(1))),
    }


def check_parity(facts: dict) -> None:
    """Raises UserError if an fp32 export is not its parent's equal."""
    if facts["largest_logit_difference"] > PARITY:
        raise UserError(f"logits differ from PyTorch's by {facts['largest_logit_difference']:.2g}, more than {PARITY}")


def check_integers(facts: dict) -> None:
    """Raises UserError if a file that was quantized multiplies no integers when it runs."""
    if not facts["integer_products"]:
        raise UserError("quantized, but the engine multiplies no integers")


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    remove(folder)
    folder.mkdir(parents=True)
    return folder


def copying(files: dict[Path, str]) -> Callable[[Path], None]:
    """A function that copies each file into a folder, under its new name."""

    def write(folder: Path) -> None:
        for file, name in files.items():
            shutil.copyfile(file, folder / name)

    return write
