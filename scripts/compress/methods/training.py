"""Training with Hugging Face's Trainer: resumable, on one or several processes, on logits as well as labels.

A training with a validation set keeps the best checkpoint by validation F1; any other keeps its last state, where its
schedule (sparsity, learning rate) ends. No training uses a test set.
"""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from compress import console
from compress.config.variants import Training
from compress.engines.pytorch import check_device
from compress.errors import UserError
from compress.files import remove, write_text
from compress.methods import distributed
from compress.methods.losses import distillation_loss
from compress.methods.made import Context
from compress.metrics import compute_metrics
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

PROGRESS_SECONDS = 30  # between two lines of progress


def train(
    model: nn.Module,
    tokenizer,
    dataset,
    options: Training,
    context: Context,
    validation=None,
    extra_loss=None,
    callbacks=(),
) -> float:
    """Trains `model` in place on `dataset`; returns the seconds, those of interrupted runs included.

    dataset: input_ids, attention_mask, labels; a column teacher_logits adds distillation_loss. extra_loss(inputs,
    outputs), if given, is added to the loss. With `validation` the model ends with the weights of the best checkpoint.
    context.work holds the checkpoints, from which an interrupted run resumes.
    Several processes (compress.methods.distributed) share each batch, so that batch size and steps stay the profile's;
    raises UserError if the batch can't be shared evenly.
    The model ends on the CPU. Use its weights, not its forward pass, which may stay under autocast.
    """
    check_device(context.train_device)
    if options.dropout is not None:
        set_dropout(model, options.dropout)
    if options.freeze_embeddings:
        model.base_model.embeddings.requires_grad_(False)
    trainer = Distiller(
        options,
        extra_loss,
        model=model,
        args=training_arguments(options, context, len(dataset), evaluate=validation is not None),
        train_dataset=dataset,
        eval_dataset=validation,
        data_collator=Collator(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )
    checkpoint = distributed.broadcast_from_main(last_checkpoint(context.work) if distributed.is_main() else None)
    clock = Clock(context.work / "seconds", resumed=checkpoint is not None)
    trainer.add_callback(clock)
    trainer.add_callback(EvaluateLast())
    trainer.add_callback(Progress(context.work.name))
    # Without dropout PyTorch picks fused attention, whose backward pass is several times slower on a CPU.
    with sdpa_kernel(SDPBackend.MATH) if context.train_device == "cpu" else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.cpu()
    return clock.seconds()


def training_arguments(options: Training, context: Context, rows: int, evaluate: bool) -> TrainingArguments:
    """The Trainer's arguments for a dataset of `rows` rows; raises UserError for a batch that can't be shared."""
    processes = distributed.world_size()
    share, left = divmod(options.batch_size, processes)
    if left:
        raise UserError(f"training.batch_size: {options.batch_size} can't be shared by {processes} processes")
    steps_per_epoch = -(-rows // options.batch_size)
    every = -(-steps_per_epoch // options.evaluations_per_epoch)
    evaluating = {"eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": "f1"}
    return TrainingArguments(
        output_dir=str(context.work),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=share,
        per_device_eval_batch_size=64,
        learning_rate=options.learning_rate,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=every,
        disable_tqdm=True,  # Progress replaces the bar
        seed=context.seed,
        data_seed=context.seed,
        use_cpu=context.train_device == "cpu",
        bf16=multiplies_bf16(context.train_device),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        dataloader_pin_memory=context.train_device == "cuda",
        ddp_find_unused_parameters=False,  # extra_loss uses parameters that the model's outputs don't depend on
        ddp_broadcast_buffers=False,  # no buffer changes in training
        **(evaluating if evaluate else {}),
    )


def multiplies_bf16(device: str) -> bool:
    """Whether matrix products of 16-bit floats are faster on this device: trainings then run under bf16 autocast.

    The weights, their gradients and the optimizer stay float32 (Micikevicius et al., 2018).
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Sets the dropout of the modules, in place; the config, which is saved, keeps its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        if hasattr(module, "dropout_prob"):  # of attention weights, where no module applies it
            module.dropout_prob = rate


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones, which lack the trainer's state, are removed."""
    by_step = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in by_step:
        try:
            json.loads((path / "trainer_state.json").read_text("utf-8"))
            return path
        except (OSError, ValueError):
            remove(path)
    return None


class Distiller(Trainer):
    """A Trainer whose loss uses the teacher's logits where a batch has them, and an extra loss if there is one."""

    def __init__(self, options: Training, extra_loss, **arguments):
        super().__init__(**arguments)
        self.distillation, self.extra_loss = options, extra_loss

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        steps = -(-len(lengths) // (self.args.train_batch_size * self.args.world_size))
        return EpochSampler(
            self.args.train_batch_size,
            lengths=lengths,
            epoch=lambda: self.state.global_step // steps,
            seed=self.args.data_seed,
        )

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        teacher = inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = outputs.loss
        if teacher is not None:
            options = self.distillation
            loss = distillation_loss(
                outputs.logits, teacher, inputs["labels"], options.temperature, options.soft_weight
            )
        if self.extra_loss is not None and model.training:
            loss = loss + self.extra_loss(inputs, outputs)
        return (loss, outputs) if return_outputs else loss


class EpochSampler(LengthGroupedSampler):
    """Rows of similar length together, in an order that depends on the seed and the epoch alone.

    The Trainer's own sampler draws from a generator whose state a resumed training does not have.
    """

    def __init__(self, batch_size: int, lengths: list[int], epoch: Callable[[], int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.epoch, self.seed = epoch, seed

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch())
        return super().__iter__()


class Collator:
    """Rows of a Dataset as one padded batch, with teacher_logits float [batch, classes] if the rows have them."""

    def __init__(self, tokenizer):
        self.pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: list[dict]) -> dict:
        logits = [row.pop("teacher_logits") for row in rows if "teacher_logits" in row]
        batch = self.pad(rows)
        return batch | {"teacher_logits": torch.tensor(logits)} if logits else batch


class Clock(TrainerCallback):
    """Counts the seconds of a training; written with every checkpoint, so that a resumed training adds up."""

    def __init__(self, path: Path, resumed: bool):
        self.path, self.started = path, time.perf_counter()
        self.before = float(path.read_text()) if resumed and path.exists() else 0.0

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def on_save(self, _arguments, state, _control, **_):
        if state.is_world_process_zero:
            write_text(self.path, str(self.seconds()))


class EvaluateLast(TrainerCallback):
    """Evaluates after the last step, too, which need not be a multiple of eval_steps: that state is saved as well."""

    def on_step_end(self, arguments, state, control, **_):
        if arguments.eval_strategy != "no" and state.global_step >= state.max_steps:
            control.should_evaluate = True


class Progress(TrainerCallback):
    """Writes to the console how many steps are done and how long the rest takes, every half minute."""

    def __init__(self, name: str):
        self.name, self.first, self.started, self.last = name, 0, 0.0, 0.0

    def on_train_begin(self, _arguments, state, _control, **_):
        self.first = state.global_step
        self.started = self.last = time.perf_counter()

    def on_step_end(self, _arguments, state, _control, **_):
        now, done = time.perf_counter(), state.global_step
        if state.is_world_process_zero and now - self.last >= PROGRESS_SECONDS:
            self.last = now
            left = round((state.max_steps - done) * (now - self.started) / (done - self.first))
            duration = f"{left // 60} min {left % 60} s" if left >= 60 else f"{left} s"
            share = round(100 * done / state.max_steps)
            console.say(f"{self.name}: step {done} of {state.max_steps}, {share} %, {duration} left")
