"""What a network is trained on: the labels, or the labels and a teacher's logits (Hinton et al., 2015)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compress.config.variants import Training
from compress.engines.mpnet import with_own_bias
from compress.engines.predictor import load, load_tokenizer, predict, token_ids
from compress.files import atomic_path, digest, locked
from compress.methods import distributed
from compress.methods.large_teacher import large_teacher_logits
from compress.methods.losses import UNLABELLED
from compress.methods.made import Context
from compress.methods.training import train
from compress.methods.transfer import transfer_set
from compress.storage.artifact import read_artifact
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed


def classifier(folder: Path, labels: Sequence[str], seed: int) -> nn.Module:
    """The network in a folder as a classifier of these labels.

    A head that is missing, or has another number of labels, gets new weights, which depend on the seed alone.
    """
    names = dict(enumerate(labels))
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(names),
        id2label=names,
        label2id={label: i for i, label in names.items()},
        ignore_mismatched_sizes=True,
    )
    return with_own_bias(model)


def tokenized(texts: Sequence[str], labels: Sequence[int], tokenizer, max_length: int) -> Dataset:
    """A Dataset with input_ids, attention_mask and labels, truncated but not padded: batches are padded later."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_token_type_ids=False)
    return Dataset.from_dict({**encoded, "labels": [y if y >= 0 else UNLABELLED for y in labels]})


def sentences(context: Context, split: str, count: int | None = None) -> list[list[int]]:
    """Token ids of the first `count` sentences of a split, or of all, by the parent's tokenizer."""
    tokenizer = load_tokenizer(context.parent, context.profile.data.max_length)
    return token_ids(tokenizer, context.splits[split]["text"][:count])


def baseline_logits(context: Context, texts: Sequence[str]) -> np.ndarray:
    """The logits of the own fine-tuned model, float32 [texts, classes], cached by its files and the texts."""
    artifact = read_artifact(context.baseline)
    files = {name: file.sha256 for name, file in artifact.files.items()}
    path = context.cache / f"logits-{digest([files, context.train_device, artifact.max_length, list(texts)])[:32]}.npy"
    # Parallel builds wait here for the first of them to write the cache.
    with distributed.main_first(), locked(context.cache / "lock"):
        if not path.exists():
            ids = token_ids(load_tokenizer(context.baseline, artifact.max_length), texts)
            logits = predict(load(context.baseline, context.train_device, context.threads), ids, batch_size=32)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, logits)
    return np.load(path)


def logits_of_part(context: Context, part: Sequence[str], teacher: str) -> np.ndarray:
    """A teacher's logits of one part, float32 [texts, classes]; variants share those of common parts."""
    if teacher == "large":
        return large_teacher_logits(context.profile, context.seed, part)
    return baseline_logits(context, part)


def student_data(context: Context, tokenizer, options: Training) -> Dataset:
    """The transfer set as one Dataset for train(), with the teacher's logits if they count."""
    parts = transfer_set(context.splits, context.seed, options.transfer)
    texts, labels = ([item for part in column for item in part] for column in zip(*parts, strict=True))
    dataset = tokenized(texts, labels, tokenizer, context.profile.data.max_length)
    if options.soft_weight == 0:
        return dataset
    logits = [row for part, _ in parts for row in logits_of_part(context, part, options.teacher).tolist()]
    return dataset.add_column("teacher_logits", logits)


def fine_tune(model: nn.Module, folder: Path, options: Training, context: Context) -> float:
    """Trains the model on the labels with the tokenizer in `folder`; keeps the best checkpoint by validation F1.

    Returns the seconds that it took.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, validation = (
        tokenized(split["text"], split["label"], tokenizer, context.profile.data.max_length)
        for split in (context.splits["train"], context.splits["validation"])
    )
    return train(model, tokenizer, rows, options, context, validation=validation)


def teach(model: nn.Module, variant, context: Context, callbacks=()) -> float | None:
    """Trains the model on the labels and a teacher's logits; returns the seconds, or None without a training."""
    if variant.training is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(context.parent)
    dataset = student_data(context, tokenizer, variant.training)
    return train(model, tokenizer, dataset, variant.training, context, callbacks=callbacks)
