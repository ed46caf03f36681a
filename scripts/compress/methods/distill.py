"""Knowledge distillation: smaller students that learn from a fine-tuned teacher, and their untrained controls."""

import math
from pathlib import Path

from compress.engines.pytorch import load_model
from compress.methods.losses import inner_losses
from compress.methods.made import Context, Made, made
from compress.methods.student import make_student
from compress.methods.teaching import classifier, student_data
from compress.methods.training import train
from compress.methods.vocabulary import trim_vocabulary
from torch import nn
from transformers import AutoTokenizer


def distill(variant, context: Context) -> Made:
    """A student cut out of a larger network (or random), trained on the transfer set with a teacher."""
    options = variant.training
    source, folder = larger_network(variant.initialization, context)
    student = make_student(source, variant.student, variant.initialization, context.seed)
    teacher = None
    if variant.hidden_weight or variant.relation_weight:
        teacher = load_model(context.baseline).to(context.train_device)
    if size := variant.student.vocabulary:
        folder = trim_vocabulary(student, folder, context, size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with inner_losses(student, teacher, variant.hidden_weight, variant.relation_weight) as extra_loss:
        rows = student_data(context, tokenizer, options)
        seconds = train(student, tokenizer, rows, options, context, extra_loss=extra_loss)
    details = {"rows": len(rows), "steps": math.ceil(options.epochs * math.ceil(len(rows) / options.batch_size))}
    return made(student, student.save_pretrained, train_seconds=seconds, details=details, tokenizer=folder)


def larger_network(initialization: str, context: Context) -> tuple[nn.Module, Path]:
    """(what the student is cut out of, the folder of its tokenizer): the parent, or the profile's smaller encoder."""
    if initialization == "encoder":
        folder = context.profile.encoder_folder("student_backbone")
        return classifier(folder, context.labels, context.seed), folder
    return load_model(context.parent), context.parent


def cut(variant, context: Context) -> Made:
    """The student without any training: what its shape alone costs."""
    student = make_student(load_model(context.parent), variant.student, "parent", context.seed)
    return made(student, student.save_pretrained)


def trim(variant, context: Context) -> Made:
    """The parent with the most frequent word pieces only, and their rows of the embeddings."""
    model = load_model(context.parent)
    tokenizer = trim_vocabulary(model, context.parent, context, variant.vocabulary)
    return made(model, model.save_pretrained, tokenizer=tokenizer)
