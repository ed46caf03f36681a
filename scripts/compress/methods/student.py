"""Students: smaller classifiers whose weights are cut out of a larger one's, or random."""

from collections.abc import Sequence

import torch
from compress.config.variants import Student
from compress.engines.mpnet import with_own_bias
from compress.errors import UserError
from compress.methods.networks import attention_of, encoder_layers
from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed

# The axes of a parameter, by the first fragment that its name contains; a bias has the first axis only.
AXES = {
    "LayerNorm": ("hidden",),
    "embeddings": (None, "hidden"),
    "relative_attention_bias": (None, None),  # MPNet's, of all heads
    "attention.attn.o": ("hidden", "units"),  # MPNet's
    "attention.attn": ("units", "hidden"),
    "attention.self": ("units", "hidden"),
    "attention.output.dense": ("hidden", "units"),
    "intermediate.dense": ("neurons", "hidden"),
    "output.dense": ("hidden", "neurons"),
    "pooler.dense": ("pooled", "hidden"),
    "classifier.dense": ("pooled", "hidden"),  # RoBERTa's pooler
    "classifier": (None, "pooled"),
}


def make_student(parent: nn.Module, student: Student, initialization: str, seed: int) -> nn.Module:
    """A classifier of the student's shape: weights cut out of the parent's, or random from the seed alone.

    The vocabulary is the parent's. Raises UserError if the parent is smaller than the student, and Skip for an encoder
    that is not built like BERT.
    """
    encoder_layers(parent)
    if initialization != "random":
        check_shape(parent.config, student)
    set_seed(seed)
    model = with_own_bias(AutoModelForSequenceClassification.from_config(student_config(parent.config, student)))
    if initialization != "random":
        model.load_state_dict(cut_weights(parent, model, student.layers))
    return model.eval()


def student_config(config, student: Student):
    """The parent's config with the student's sizes; sizes that the student does not set are the parent's."""
    sizes = {
        "hidden_size": student.hidden_size,
        "intermediate_size": student.intermediate_size,
        "num_attention_heads": student.heads,
        "num_hidden_layers": len(student.layers),
    }
    return type(config)(**config.to_dict() | {key: size for key, size in sizes.items() if size is not None})


def check_shape(config, student: Student) -> None:
    """Raises UserError naming the first size that exceeds the parent's."""
    if config.pruned_heads:
        raise UserError("student: the larger network has lost heads, so its layers differ in shape; take its parent")
    small = student_config(config, student)
    limits = [
        ("layers", max(student.layers), config.num_hidden_layers - 1),
        ("hidden_size", small.hidden_size, config.hidden_size),
        ("intermediate_size", small.intermediate_size, config.intermediate_size),
        ("heads", small.num_attention_heads, config.num_attention_heads),
        ("size of a head", head_size(small), head_size(config)),
    ]
    for name, size, most in limits:
        if size > most:
            raise UserError(f"student: {name}: {size} is more than the larger network's {most}")
    if config.model_type == "mpnet" and small.num_attention_heads < config.num_attention_heads:
        raise UserError("student: heads: must be the parent's: an MPNet's layers share one position bias of all heads")


def head_size(config) -> int:
    return config.hidden_size // config.num_attention_heads


def cut_weights(parent: nn.Module, student: nn.Module, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The student's state dict cut out of the parent's: layer i is the parent's layer layers[i], narrowed."""
    source = parent.state_dict()
    shared = shared_indices(parent, student.config)
    by_layer = [layer_indices(encoder_layers(parent)[layer], parent.config, student.config) for layer in layers]
    state = {}
    for name in student.state_dict():
        head, in_layer, rest = name.partition(".layer.")
        number, _, rest = rest.partition(".")
        tensor = source[f"{head}.layer.{layers[int(number)]}.{rest}" if in_layer else name]
        indices = shared | by_layer[int(number)] if in_layer else shared
        axes = next(axes for fragment, axes in AXES.items() if fragment in name)
        for dim, axis in enumerate(axes[: tensor.dim()]):
            tensor = tensor if axis is None else tensor.index_select(dim, indices[axis])
        state[name] = tensor
    return state


def shared_indices(parent: nn.Module, config) -> dict[str, torch.Tensor]:
    """The dimensions of the residual stream to keep, the same in every layer, and those of the pooler's output.

    A dimension's importance in the stream is the norm of its embedding column times its LayerNorm weight. The pooler's
    output is a space of its own, ranked by the weights of the classifier that reads it.
    """
    embeddings = parent.base_model.embeddings
    stream = embeddings.word_embeddings.weight.norm(dim=0) * embeddings.LayerNorm.weight.abs()
    pooled = getattr(parent.classifier, "out_proj", parent.classifier).weight.norm(dim=0)
    return {"hidden": largest(stream, config.hidden_size), "pooled": largest(pooled, config.hidden_size)}


def layer_indices(layer: nn.Module, wide, narrow) -> dict[str, torch.Tensor]:
    """Attention units and FFN neurons of one parent layer to keep: whole heads, by the norm of their output projection.

    wide, narrow: the configs of parent and student. If the student's heads are smaller than the parent's, each keeps
    its first dimensions.
    """
    size = head_size(wide)
    output = attention_of(layer).output.weight.view(wide.hidden_size, wide.num_attention_heads, size)
    heads = largest(output.norm(dim=(0, 2)), narrow.num_attention_heads)
    units = heads[:, None] * size + torch.arange(head_size(narrow))
    neurons = layer.intermediate.dense.weight.norm(dim=1) * layer.output.dense.weight.norm(dim=0)
    return {"units": units.flatten(), "neurons": largest(neurons, narrow.intermediate_size)}


def largest(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the `count` largest values."""
    return importance.topk(count).indices.sort().values
