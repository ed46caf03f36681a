"""Two models in one artifact: the second, better one classifies the sentences in which the first is not confident.

Varshney and Baral, Model Cascading (EMNLP 2022), with two models and the largest probability as confidence.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from compress.engines.predictor import load, predict
from compress.engines.two_stage import PARTS, confidence
from compress.errors import UserError
from compress.files import sha256_file, write_json
from compress.methods.made import Context, Made
from compress.methods.teaching import sentences
from compress.metrics import quality
from compress.storage.artifact import TOKENIZER_FILES, read_artifact


def cascade(variant, context: Context) -> Made:
    """Both models, and the threshold that validation F1 allows; raises UserError if their tokenizers differ."""
    folders = context.parent, context.profile.variant_folder(variant.second, context.seed, context.device)
    check_tokenizers(*folders)
    ids, labels = sentences(context, "validation"), np.array(context.splits["validation"]["label"])
    # At batch 1, as latency and test F1 are measured: the logits of dynamic int8 depend on the batch.
    first, second = (predict(load(folder, context.device, context.threads), ids) for folder in folders)
    threshold = choose_threshold(first, second, labels, variant.tolerance)
    artifacts = [read_artifact(folder, verify=False) for folder in folders]
    return Made(
        lambda folder: [copy_model(source, folder / part) for source, part in zip(folders, PARTS, strict=True)],
        sum(artifact.parameters for artifact in artifacts),
        sum(artifact.nonzero_parameters for artifact in artifacts),
        backend="cascade",
        details={
            "threshold": threshold,
            "passed_on": float(np.mean(confidence(first) < threshold)),  # share of the validation sentences
            "f1": quality(cascaded(first, second, threshold), labels)["f1"],
            "second_f1": quality(second, labels)["f1"],
        },
        runtime={"threshold": threshold},
    )


def check_tokenizers(first: Path, second: Path) -> None:
    """Raises UserError unless both folders have the same tokenizer: each model receives the same token ids."""
    for name in TOKENIZER_FILES:
        if sha256_file(first / name) != sha256_file(second / name):
            raise UserError(
                f"second: {second.name} and the parent {first.name} have different tokenizers ({name}); choose two "
                "variants of one vocabulary"
            )


def choose_threshold(first: np.ndarray, second: np.ndarray, labels: np.ndarray, tolerance: float) -> float:
    """The smallest threshold whose cascade loses at most `tolerance` F1 points to the second model alone.

    first, second: logits [sentences, classes]; labels [sentences]. A sentence is passed on if the first model's
    confidence in it is below the threshold; at 0 none is.
    """
    floor = quality(second, labels)["f1"] - tolerance / 100
    # F1 changes only where a sentence is passed on whose class the models see differently.
    steps = np.unique(confidence(first)[first.argmax(-1) != second.argmax(-1)])
    thresholds = [0.0, *np.nextafter(steps, np.inf)]
    kept = (t for t in thresholds if quality(cascaded(first, second, t), labels)["f1"] >= floor)
    return float(next(kept))  # the last one keeps F1: all predictions are the second model's


def cascaded(first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
    """The logits of the cascade, from those of its models, [sentences, classes] each."""
    return np.where((confidence(first) < threshold)[:, None], second, first)


def copy_model(source: Path, target: Path) -> None:
    """Copies an artifact without its tokenizer, which the cascade has once for both models."""
    artifact = read_artifact(source)
    files = {name: file for name, file in artifact.files.items() if name not in TOKENIZER_FILES}
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    about = artifact.model_copy(update={"files": files})
    write_json(target / "artifact.json", json.loads(about.model_dump_json()))
