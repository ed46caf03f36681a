"""Baselines: the pretrained encoder under an untrained head (bert-orig), and the same fine-tuned (finetuned).

Reads build/<profile>/data/; writes build/<profile>/models/, predictions/ and records/.
A killed run goes on from its last checkpoint; what is finished and unchanged is kept.
Example: python scripts/01_finetune.py --profile minilm --seed 0
"""

import argparse

from compress.cli import add_run_options, main_guard


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
    return made(pretrained(context))


def finetuned(variant, context):
    from compress.finetune import finetune
    from transformers import AutoTokenizer

    model = pretrained(context)
    tokenizer = AutoTokenizer.from_pretrained(context.profile.backbone_folder)
    length = context.profile.data.max_length
    seconds = finetune(model, tokenizer, context.splits, variant, context.seed, context.device, length, context.work)
    return made(model, seconds)


def made(model, train_seconds=None):
    from compress.stage import Made

    weights = list(model.parameters())
    return Made(
        write=model.save_pretrained,
        parameters=sum(w.numel() for w in weights),
        nonzero_parameters=sum(int(w.count_nonzero()) for w in weights),
        train_seconds=train_seconds,
    )


def main(args: argparse.Namespace) -> int:
    import torch
    from compress.predict import check_device
    from compress.profile import load_profile
    from compress.stage import Stage

    profile = load_profile(args.profile)
    check_device(args.device)
    torch.set_num_threads(args.threads)
    makers = {"finetune": finetuned, "untrained": untrained}
    return Stage(__file__, makers, profile, args.seed, args.device, args.threads).run(args.only)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    main_guard(main, parser)
