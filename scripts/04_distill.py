"""HW3, knowledge distillation: smaller students that learn from the fine-tuned teacher's answers, and their controls.

Reads build/<profile>/data/ and the models of 01_finetune.py; writes models/, predictions/ and records/ beside them.
A killed run goes on where it stopped; what is finished and unchanged is kept.
Example: python scripts/04_distill.py --profile minilm --only distill-3x384
"""

import argparse

from compress.cli import main_guard, stage_parser


def distill(variant, context):
    """A student cut from the parent (or random), trained on the transfer set with the baseline as teacher."""
    import math

    from compress.engines.pytorch import load_model
    from compress.methods.distill import inner_losses, make_student, transfer_set, trim_vocabulary
    from compress.methods.training import student_data, train
    from compress.stage import made
    from transformers import AutoTokenizer

    options = variant.training
    student = make_student(load_model(context.parent), variant.student, variant.initialization, context.seed)
    teacher = load_model(context.teacher).to(context.train_device)
    size = variant.student.vocabulary
    own_tokenizer = trim_vocabulary(student, context, size) if size else None
    tokenizer = AutoTokenizer.from_pretrained(own_tokenizer or context.parent)
    parts = transfer_set(context, variant.transfer)
    with inner_losses(student, teacher, variant.hidden_weight, variant.relation_weight) as extra_loss:
        rows = student_data(context, tokenizer, parts, soft=options.soft_weight > 0)
        seconds = train(student, tokenizer, rows, options, context, extra_loss=extra_loss)
    details = {"rows": len(rows), "steps": math.ceil(options.epochs * math.ceil(len(rows) / options.batch_size))}
    return made(student, student.save_pretrained, train_seconds=seconds, details=details, tokenizer=own_tokenizer)


def cut(variant, context):
    """The parent's layers that the student keeps, nothing trained: what its shape costs."""
    from compress.engines.pytorch import load_model
    from compress.methods.distill import make_student
    from compress.stage import made

    student = make_student(load_model(context.parent), variant.student, "parent", context.seed)
    return made(student, student.save_pretrained)


def trim(variant, context):
    """The parent with the word pieces that its texts use most, and the rows of its embeddings that go with them."""
    from compress.engines.pytorch import load_model
    from compress.methods.distill import trim_vocabulary
    from compress.stage import made

    model = load_model(context.parent)
    tokenizer = trim_vocabulary(model, context, variant.vocabulary)
    return made(model, model.save_pretrained, tokenizer=tokenizer)


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, {"distill": distill, "cut": cut, "trim": trim}, args)


if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
