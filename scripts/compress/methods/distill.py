"""Knowledge distillation: a student cut from a larger model, its transfer set, and losses on what happens inside."""

import math
import random
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from compress.config.profile import Student
from compress.errors import Skip, UserError
from compress.methods import distributed as processes
from compress.methods.prune import layers_of
from torch import nn
from torch.nn import functional

# Which axes of a parameter are which, by the first fragment that its name contains; a bias has the first axis alone.
AXES = {
    "LayerNorm": ("hidden",),
    "embeddings": (None, "hidden"),
    "attention.self": ("units", "hidden"),
    "attention.output.dense": ("hidden", "units"),
    "intermediate.dense": ("neurons", "hidden"),
    "output.dense": ("hidden", "neurons"),
    "pooler.dense": ("pooled", "hidden"),
    "classifier.dense": ("pooled", "hidden"),  # RoBERTa's pooler
    "classifier": (None, "pooled"),
}
UNTESTED = ("train", "unlabelled")  # splits that a student may see


def make_student(parent, student: Student, initialization: str, seed: int):
    """A BERT classifier of the student's shape: weights cut out of the parent's, or random by the seed alone.

    The vocabulary stays the parent's here. Raises UserError if there is nothing to cut such a student from, and Skip
    for an encoder that is not built like BERT.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    layers_of(parent)
    if initialization == "parent":
        check_shape(parent.config, student)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_config(student_config(parent.config, student))
    if initialization == "parent":
        model.load_state_dict(cut_weights(parent, model, student.layers))
    return model.eval()


def student_config(config, student: Student):
    """The parent's config with the student's sizes; what the student leaves open is the parent's."""
    sizes = {
        "hidden_size": student.hidden_size,
        "intermediate_size": student.intermediate_size,
        "num_attention_heads": student.heads,
        "num_hidden_layers": len(student.layers),
    }
    return type(config)(**config.to_dict() | {key: size for key, size in sizes.items() if size is not None})


def check_shape(config, student: Student) -> None:
    """Raises UserError naming the first size that is more than the parent has."""
    small = student_config(config, student)
    limits = [
        ("layers", max(student.layers), config.num_hidden_layers - 1),
        ("hidden_size", small.hidden_size, config.hidden_size),
        ("intermediate_size", small.intermediate_size, config.intermediate_size),
        ("heads", small.num_attention_heads, config.num_attention_heads),
        ("size of a head", head_size(small), head_size(config)),
    ]
    for name, asked, most in limits:
        if asked > most:
            raise UserError(f"student: {name}: {asked} asked for, but the parent only has up to {most}")


def head_size(config) -> int:
    return config.hidden_size // config.num_attention_heads


def cut_weights(parent, student, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The student's state dict cut out of the parent's: layer i is the parent's layer layers[i], narrowed."""
    source = parent.state_dict()
    shared = shared_indices(parent, student.config)
    by_layer = [layer_indices(layers_of(parent)[layer], parent.config, student.config) for layer in layers]
    state = {}
    for name in student.state_dict():
        head, found, rest = name.partition(".layer.")
        number, _, rest = rest.partition(".")
        tensor = source[f"{head}.layer.{layers[int(number)]}.{rest}" if found else name]
        indices = shared | by_layer[int(number)] if found else shared
        axes = next(axes for fragment, axes in AXES.items() if fragment in name)
        for dim, axis in enumerate(axes[: tensor.dim()]):
            tensor = tensor if axis is None else tensor.index_select(dim, indices[axis])
        state[name] = tensor
    return state


def shared_indices(parent, config) -> dict[str, torch.Tensor]:
    """The residual stream's dimensions that stay, the same ones in every layer, and those of the pooler's output.

    A dimension's importance is what the embeddings send into it: the norm of its column times its LayerNorm weight.
    The pooler's output has a space of its own, ranked by what the classifier reads from it.
    """
    embeddings = parent.base_model.embeddings
    stream = embeddings.word_embeddings.weight.norm(dim=0) * embeddings.LayerNorm.weight.abs()
    pooled = getattr(parent.classifier, "out_proj", parent.classifier).weight.norm(dim=0)
    return {"hidden": largest(stream, config.hidden_size), "pooled": largest(pooled, config.hidden_size)}


def layer_indices(layer, wide, narrow) -> dict[str, torch.Tensor]:
    """Attention units and FFN neurons of one parent layer that stay: whole heads by their output projection's norm.

    Where the student's heads are smaller than the parent's, each keeps its leading dimensions.
    """
    size = head_size(wide)
    output = layer.attention.output.dense.weight.view(wide.hidden_size, wide.num_attention_heads, size)
    heads = largest(output.norm(dim=(0, 2)), narrow.num_attention_heads)
    units = heads[:, None] * size + torch.arange(head_size(narrow))
    neurons = layer.intermediate.dense.weight.norm(dim=1) * layer.output.dense.weight.norm(dim=0)
    return {"units": units.flatten(), "neurons": largest(neurons, narrow.intermediate_size)}


def largest(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the `count` largest values."""
    return importance.topk(count).indices.sort().values


def augment(texts: Sequence[str], seed: int) -> list[str]:
    """One copy of each text cut to a random run of 50 to 100 % of its words, of three words at least."""
    chance = random.Random(seed)
    copies = []
    for text in texts:
        words = text.split()
        shortest = min(len(words), max(3, math.ceil(len(words) / 2)))
        length = chance.randint(shortest, len(words))
        start = chance.randint(0, len(words) - length)
        copies.append(" ".join(words[start : start + length]))
    return copies


def transfer_set(context, parts: Sequence[str]) -> list[tuple[list[str], list[int]]]:
    """(texts, labels) of every part asked for; the label is -1 where only the teacher answers."""
    splits = context.splits
    if "unlabelled" in parts and "unlabelled" not in splits:
        raise Skip("the profile's data have no unlabelled text")
    found = {name: (splits[name]["text"][:], splits[name]["label"][:]) for name in UNTESTED if name in splits}
    if "augmented" in parts:
        copies = augment(found["train"][0], context.seed)
        found["augmented"] = copies, [-1] * len(copies)
    return [found[part] for part in parts]


def trim_vocabulary(model, context, size: int):
    """Cuts the model's embeddings to `size` pieces in place and returns the folder of the tokenizer that goes with it.

    Training text counts first, then unlabelled text; never a test set. Raises Skip for pieces that are not WordPiece's.
    """
    from compress.engines.predictor import load_tokenizer
    from compress.methods.vocabulary import choose_pieces, count_pieces, trim_embeddings, write_trimmed
    from tokenizers.models import WordPiece

    tokenizer = load_tokenizer(context.parent, context.profile.data.max_length)
    if not isinstance(tokenizer.model, WordPiece):
        raise Skip(f"pieces are left out of a WordPiece vocabulary; this one is {type(tokenizer.model).__name__}'s")
    counts = [count_pieces(tokenizer, context.splits[name]["text"][:]) for name in UNTESTED if name in context.splits]
    kept = choose_pieces(tokenizer, counts, size)
    folder = context.work / "tokenizer"
    with processes.main_first():
        if processes.is_main():
            write_trimmed(context.parent, folder, kept)
    trim_embeddings(model, kept, pad_id=kept.index(tokenizer.token_to_id("[PAD]")))
    return folder


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error over real tokens: TinyBERT (Jiao et al., 2020), equation 8.

    student (already projected to the teacher's width), teacher: float [batch, length, width]; mask [batch, length].
    """
    real = mask.bool()
    return functional.mse_loss(student[real], teacher[real])


def relations(left: torch.Tensor, right: torch.Tensor, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """log softmax(A B^T / sqrt(d)) per relation head: MiniLMv2 (Wang et al., 2021), equation 5.

    left, right: float [batch, length, width], width = heads * d; mask: [batch, length], padding gets no weight.
    Returns float [batch, heads, length, length].
    """
    left, right = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (left, right))
    scores = left @ right.transpose(-1, -2) / math.sqrt(left.shape[-1])
    # Half of the least number: the softmax must be able to subtract from it.
    return scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min / 2).log_softmax(-1)


def relation_loss(student, teacher, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """KL(teacher || student) of relations, mean over heads and real tokens: MiniLM (Wang et al., 2020), eq. 5 and 7.

    student, teacher: (left, right) as in `relations`; the widths may differ, the number of relation heads is common.
    """
    log_student, log_teacher = (relations(*pair, mask, heads) for pair in (student, teacher))
    by_key = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    by_key = by_key.masked_fill(~mask.bool()[:, None, None], 0.0)
    return by_key.sum(-1).transpose(1, 2)[mask.bool()].mean()


@contextmanager
def listening(model):
    """Yields a dict that holds the last layer's outputs of the latest forward pass: hidden, query, key and value."""
    layer = layers_of(model)[-1]
    attention = layer.attention.self
    heard: dict[str, torch.Tensor] = {}

    def keep(name):
        def hook(_module, _inputs, output):
            # float: under autocast the student's are of 16 bits, the teacher's are not
            heard[name] = (output[0] if isinstance(output, tuple) else output).float()

        return hook

    modules = {"hidden": layer, "query": attention.query, "key": attention.key, "value": attention.value}
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def inner_losses(student, teacher, hidden_weight: float, relation_weight: float):
    """Yields extra_loss(inputs, outputs) for compress.training.train; None if both weights are 0.

    Where widths differ a linear layer inside the student, trained with it and deleted at the end, maps its hidden
    states to the teacher's width. Raises UserError if the two number word pieces differently: both read the same ids.
    """
    if not hidden_weight and not relation_weight:
        yield None
        return
    if student.config.vocab_size != teacher.config.vocab_size:
        raise UserError(
            "hidden_weight and relation_weight must be 0: the parent has other word pieces than the teacher"
        )
    narrow, wide = student.config.hidden_size, teacher.config.hidden_size
    projected = bool(hidden_weight) and narrow != wide
    if projected:
        student.hidden_projection = nn.Linear(narrow, wide, bias=False)
    heads = math.gcd(teacher.config.num_attention_heads, narrow)  # divides both widths

    with listening(student) as own, listening(teacher) as wanted:

        def extra_loss(inputs, _outputs):
            mask = inputs["attention_mask"]
            with torch.no_grad():
                teacher(input_ids=inputs["input_ids"], attention_mask=mask)
            loss = 0.0
            if hidden_weight:
                hidden = student.hidden_projection(own["hidden"]) if projected else own["hidden"]
                loss = loss + hidden_weight * hidden_loss(hidden, wanted["hidden"], mask)
            for pair in (("query", "key"), ("value", "value")) if relation_weight else ():
                of_student, of_teacher = ([heard[name] for name in pair] for heard in (own, wanted))
                loss = loss + relation_weight * relation_loss(of_student, of_teacher, mask, heads)
            return loss

        try:
            yield extra_loss
        finally:
            if projected:
                del student.hidden_projection
