"""Baselines: the pretrained encoder under an untrained head (bert-orig), and the same fine-tuned (finetuned).

Reads build/<profile>/data/; writes build/<profile>/models/, predictions/ and records/.
A killed run goes on from its last checkpoint; what is finished and unchanged is kept.
Example: python scripts/01_finetune.py --profile minilm --seed 0
"""

import argparse

from compress.cli import main_guard, stage_parser


def pretrained(context):
    """The backbone under a new classification head whose weights depend on the seed alone."""
    from transformers import AutoModelForSequenceClassification, set_seed

    names = dict(enumerate(context.labels))
    set_seed(context.seed)
    return AutoModelForSequenceClassification.from_pretrained(
        context.profile.backbone_folder,
        num_labels=len(names),
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )


def untrained(variant, context):
    from compress.stage import made

    model = pretrained(context)
    return made(model, model.save_pretrained)


def finetuned(variant, context):
    from compress.stage import made
    from compress.training import tokenized, train
    from transformers import AutoTokenizer

    model = pretrained(context)
    if variant.freeze_embeddings:
        model.base_model.embeddings.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(context.profile.backbone_folder)
    length = context.profile.data.max_length
    dataset, validation = (
        tokenized(context.splits[name]["text"], context.splits[name]["label"], tokenizer, length)
        for name in ("train", "validation")
    )
    seconds = train(model, tokenizer, dataset, variant.training, context, validation=validation)
    return made(model, model.save_pretrained, train_seconds=seconds)


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, {"finetune": finetuned, "untrained": untrained}, args)


if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
