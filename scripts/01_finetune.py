"""Baselines: the pretrained encoder under an untrained head (bert-orig), and the same fine-tuned (finetuned).

Reads build/<profile>/data/; writes build/<profile>/models/, predictions/ and records/.
A killed run goes on from its last checkpoint; what is finished and unchanged is kept.
Example: python scripts/01_finetune.py --profile minilm --seed 0
"""

import argparse

from compress.cli import main_guard, stage_parser


def untrained(variant, context):
    from compress.methods.training import classifier
    from compress.stage import made

    model = classifier(context.profile.backbone_folder, context.labels, context.seed)
    return made(model, model.save_pretrained)


def finetuned(variant, context):
    from compress.methods.training import classifier, fine_tune
    from compress.stage import made

    model = classifier(context.profile.backbone_folder, context.labels, context.seed)
    seconds = fine_tune(model, context.profile.backbone_folder, variant.training, context)
    return made(model, model.save_pretrained, train_seconds=seconds)


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, {"finetune": finetuned, "untrained": untrained}, args)


if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
