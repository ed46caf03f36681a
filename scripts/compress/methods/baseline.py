"""The baselines: the pretrained encoder with an untrained head, and the same network fine-tuned."""

from compress.methods.made import Context, Made, made
from compress.methods.teaching import classifier, fine_tune


def untrained(variant, context: Context) -> Made:
    """The pretrained encoder; the head's weights are random and depend on the seed alone."""
    model = classifier(context.profile.backbone_folder, context.labels, context.seed)
    return made(model, model.save_pretrained)


def finetuned(variant, context: Context) -> Made:
    """The whole network trained on the labels; the best checkpoint by validation F1 is kept."""
    model = classifier(context.profile.backbone_folder, context.labels, context.seed)
    seconds = fine_tune(model, context.profile.backbone_folder, variant.training, context)
    return made(model, model.save_pretrained, train_seconds=seconds)
