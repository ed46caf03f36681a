"""Fine-tuning by Hugging Face's Trainer: resumable, best checkpoint by validation F1, never a look at the test."""

import json
import time
from pathlib import Path

from compress.files import remove, write_text
from compress.metrics import compute_metrics
from compress.profile import Finetune


def tokenized(split, tokenizer, max_length: int):
    """The split with input_ids and labels, truncated, unpadded: batches are padded when they are made."""

    def columns(rows):
        return {**tokenizer(rows["text"], truncation=True, max_length=max_length), "labels": rows["label"]}

    return split.map(columns, batched=True, remove_columns=split.column_names, keep_in_memory=True)


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


def finetune(model, tokenizer, splits, options: Finetune, seed: int, device: str, max_length: int, work: Path) -> float:
    """Trains `model` in place and leaves the best checkpoint's weights in it; returns the seconds of training.

    `work` holds the checkpoints: a killed run goes on from the last of them. It stays until the caller removes it.
    """
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    steps_per_epoch = -(-len(splits["train"]) // options.batch_size)
    every = -(-steps_per_epoch // options.evaluations_per_epoch)
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=options.learning_rate,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        group_by_length=True,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        logging_steps=every,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        report_to="none",
        dataloader_pin_memory=device == "cuda",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=tokenized(splits["train"], tokenizer, max_length),
        eval_dataset=tokenized(splits["validation"], tokenizer, max_length),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    checkpoint = last_checkpoint(work)
    # Seconds already spent by a run that was killed count as training too.
    clock = work / "seconds"
    before = float(clock.read_text()) if checkpoint and clock.exists() else 0.0
    started = time.perf_counter()

    class Clock(TrainerCallback):
        def on_save(self, *arguments, **state):
            write_text(clock, str(before + time.perf_counter() - started))

    trainer.add_callback(Clock())
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return before + time.perf_counter() - started
