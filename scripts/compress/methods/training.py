"""Training by Hugging Face's Trainer: resumable; on labels, or on a teacher's answers (Hinton et al., 2015).

Fine-tuning keeps the best checkpoint by validation F1; every other training keeps its last state, because its
schedule (sparsity, learning rate) ends there. No training looks at a test set.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from compress.config.profile import Training
from compress.errors import UserError
from compress.files import atomic_path, digest, locked, remove, write_text
from compress.methods import distributed as processes
from compress.metrics import compute_metrics

UNLABELLED = -100  # PyTorch's own label to ignore in a cross-entropy


def classifier(folder: Path, labels: Sequence[str], seed: int):
    """The network of a folder as a classifier of these labels.

    A head that it lacks, or that is for another number of labels, gets new weights, which depend on the seed alone.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    names = dict(enumerate(labels))
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(names),
        id2label=names,
        label2id={label: i for i, label in names.items()},
        ignore_mismatched_sizes=True,
    )


def tokenized(texts: Sequence[str], labels: Sequence[int], tokenizer, max_length: int):
    """A Dataset with input_ids, attention_mask and labels, truncated, unpadded: batches are padded when made."""
    from datasets import Dataset

    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_token_type_ids=False)
    return Dataset.from_dict({**encoded, "labels": [y if y >= 0 else UNLABELLED for y in labels]})


def teacher_logits(context, texts: Sequence[str]) -> np.ndarray:
    """The teacher's logits float32 [texts, classes], computed once per teacher and list of texts, then cached."""
    from compress.engines.predictor import load, load_tokenizer, predict, token_ids
    from compress.storage.artifact import read_artifact

    teacher = context.teacher
    artifact = read_artifact(teacher)
    path = context.cache / f"logits-{digest([artifact.key, list(texts)])[:32]}.npy"
    with processes.main_first(), locked(context.cache / "lock"):
        if not path.exists():
            tokenizer = load_tokenizer(teacher, artifact.max_length)
            ids = token_ids(tokenizer, texts)
            logits = predict(load(teacher, context.train_device, context.threads), ids, batch_size=32)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, logits)
    return np.load(path)


def distillation_loss(student, teacher, labels, temperature: float, soft_weight: float):
    """(1 - w) CE(labels) + w T^2 KL(teacher_T || student_T): Hinton et al. (2015), section 2.

    student, teacher: float [batch, classes]; labels: int64 [batch], UNLABELLED rows count in the second term only.
    """
    import torch
    from torch.nn import functional

    log_student = functional.log_softmax(student / temperature, -1)
    log_teacher = functional.log_softmax(teacher / temperature, -1)
    soft = temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    if not bool((labels != UNLABELLED).any()):
        return soft_weight * soft
    hard = functional.cross_entropy(student, labels, ignore_index=UNLABELLED)
    return torch.lerp(hard, soft, soft_weight)


def student_data(context, tokenizer, parts: Sequence[tuple[Sequence[str], Sequence[int]]], soft: bool = True):
    """The (texts, labels) of every part as one Dataset for train(); if `soft`, with the baseline's logits."""
    texts, labels = ([item for part in column for item in part] for column in zip(*parts, strict=True))
    dataset = tokenized(texts, labels, tokenizer, context.profile.data.max_length)
    if not soft:
        return dataset
    # Part by part: variants that share a part share its cached answers.
    answers = [logits for part, _ in parts for logits in teacher_logits(context, part).tolist()]
    return dataset.add_column("teacher_logits", answers)


def fine_tune(model, folder: Path, options: Training, context) -> float:
    """Trains the model on the labels, with the tokenizer of `folder`; keeps the best by validation F1."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, validation = (
        tokenized(split["text"], split["label"], tokenizer, context.profile.data.max_length)
        for split in (context.splits["train"], context.splits["validation"])
    )
    return train(model, tokenizer, rows, options, context, validation=validation)


def teach(model, variant, context, callbacks=()) -> float | None:
    """Trains the model on the labels and the baseline's answers; returns the seconds, or None without training."""
    from transformers import AutoTokenizer

    if variant.training is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(context.parent)
    split = context.splits["train"]
    dataset = student_data(context, tokenizer, [(split["text"][:], split["label"][:])])
    return train(model, tokenizer, dataset, variant.training, context, callbacks=callbacks)


def multiplies_bf16(device: str) -> bool:
    """True if matrix products of 16-bit floats are the faster ones there: training then runs under bf16 autocast.

    The weights, their gradients and the optimizer stay float32 (Micikevicius et al., 2018).
    """
    import torch

    able = torch.cpu.get_capabilities()
    return device == "cuda" or able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def set_dropout(model, rate: float) -> None:
    """The model's dropout while it trains; its config, and so what is saved, keeps its own."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        if hasattr(module, "dropout_prob"):  # of attention weights, where no module drops them
            module.dropout_prob = rate


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; a half-written one (the state is written last) is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text("utf-8"))
            return path
        except (OSError, ValueError):
            remove(path)
    return None


def train(
    model, tokenizer, dataset, options: Training, context, validation=None, extra_loss=None, callbacks=()
) -> float:
    """Trains `model` in place on `dataset` and returns the seconds it took, a killed run's own among them.

    A column teacher_logits in the dataset asks for distillation_loss; extra_loss(inputs, outputs), if given, is added
    to it. With `validation` the best checkpoint's weights are left in the model, else the last ones.
    context.work holds the checkpoints: a killed run goes on from the last of them.
    Several processes (compress.processes) share each batch, so that batch size and steps stay what the profile says;
    raises UserError for a batch that they can't share evenly.
    The model is left on the CPU. Its weights are what counts afterwards: accelerate may leave its forward pass under
    autocast.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    if options.dropout is not None:
        set_dropout(model, options.dropout)
    if options.freeze_embeddings:
        model.base_model.embeddings.requires_grad_(False)
    on_cpu = context.train_device == "cpu"
    share, left = divmod(options.batch_size, processes.number())
    if left:
        raise UserError(f"training.batch_size: {options.batch_size} can't be shared by {processes.number()} processes")
    steps_per_epoch = -(-len(dataset) // options.batch_size)
    every = -(-steps_per_epoch // options.evaluations_per_epoch)
    evaluating = {"eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": "f1"}
    arguments = TrainingArguments(
        output_dir=str(context.work),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=share,
        per_device_eval_batch_size=64,
        learning_rate=options.learning_rate,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        group_by_length=True,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=every,
        seed=context.seed,
        data_seed=context.seed,
        use_cpu=on_cpu,
        bf16=multiplies_bf16(context.train_device),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        dataloader_pin_memory=context.train_device == "cuda",
        ddp_find_unused_parameters=False,  # some are used by extra_loss alone, where no output leads to
        ddp_broadcast_buffers=False,  # none of them changes in training
        **(evaluating if validation is not None else {}),
    )
    pad = DataCollatorWithPadding(tokenizer)

    def collate(rows):
        logits = [row.pop("teacher_logits") for row in rows if "teacher_logits" in row]
        batch = pad(rows)
        return batch | {"teacher_logits": torch.tensor(logits)} if logits else batch

    class Distiller(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            teacher = inputs.pop("teacher_logits", None)
            outputs = model(**inputs)
            loss = outputs.loss
            if teacher is not None:
                loss = distillation_loss(
                    outputs.logits, teacher, inputs["labels"], options.temperature, options.soft_weight
                )
            if extra_loss is not None and model.training:
                loss = loss + extra_loss(inputs, outputs)
            return (loss, outputs) if return_outputs else loss

    trainer = Distiller(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=validation,
        data_collator=collate,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )
    checkpoint = processes.from_main(last_checkpoint(context.work) if processes.is_main() else None)
    # Seconds already spent by a run that was killed count as training too.
    clock = context.work / "seconds"
    before = float(clock.read_text()) if checkpoint and clock.exists() else 0.0
    started = time.perf_counter()

    class Clock(TrainerCallback):
        def on_save(self, _arguments, state, _control, **_):
            if state.is_world_process_zero:
                write_text(clock, str(before + time.perf_counter() - started))

    trainer.add_callback(Clock())
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # whoever wants no bar wants no lines instead of it
    # On a CPU the backward pass of fused attention, which training without dropout would get, takes several times as
    # long as the plain one's.
    with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.cpu()
    return before + time.perf_counter() - started
