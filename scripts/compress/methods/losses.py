"""Losses of distillation: on the teacher's logits, its hidden states and its attention relations."""

import math
from contextlib import contextmanager

import torch
from compress.errors import UserError
from compress.methods.networks import attention_of, encoder_layers
from torch import nn
from torch.nn import functional

UNLABELLED = -100  # the label that PyTorch's cross-entropy ignores


def distillation_loss(student, teacher, labels, temperature: float, soft_weight: float) -> torch.Tensor:
    """(1 - w) CE(labels) + w T^2 KL(teacher_T || student_T): Hinton et al. (2015), section 2.

    student, teacher: logits float [batch, classes]; labels: int64 [batch]. The first term is the mean over the labelled
    rows of the batch, and absent where all are UNLABELLED; the second is the mean over all rows.
    """
    log_student = functional.log_softmax(student / temperature, -1)
    log_teacher = functional.log_softmax(teacher / temperature, -1)
    soft = temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    if not bool((labels != UNLABELLED).any()):
        return soft_weight * soft
    hard = functional.cross_entropy(student, labels, ignore_index=UNLABELLED)
    return torch.lerp(hard, soft, soft_weight)


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
    # Half of the smallest number, so that the softmax can subtract from it.
    return scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min / 2).log_softmax(-1)


def relation_loss(student, teacher, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """KL(teacher || student) of relations, mean over heads and real tokens: MiniLM (Wang et al., 2020), eq. 5 and 7.

    student, teacher: (left, right) as in relations(); their widths may differ, the number of relation heads is common.
    """
    log_student, log_teacher = (relations(*pair, mask, heads) for pair in (student, teacher))
    by_key = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    by_key = by_key.masked_fill(~mask.bool()[:, None, None], 0.0)
    return by_key.sum(-1).transpose(1, 2)[mask.bool()].mean()


@contextmanager
def last_layer_outputs(model: nn.Module):
    """Yields a dict that holds hidden, query, key and value of the last layer in the latest forward pass."""
    layer = encoder_layers(model)[-1]
    attention = attention_of(layer)
    outputs: dict[str, torch.Tensor] = {}

    def keep(name):
        def hook(_module, _inputs, output):
            # float: under autocast the student's are 16-bit floats, the teacher's are not
            outputs[name] = (output[0] if isinstance(output, tuple) else output).float()

        return hook

    modules = {"hidden": layer, "query": attention.query, "key": attention.key, "value": attention.value}
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def inner_losses(student: nn.Module, teacher: nn.Module | None, hidden_weight: float, relation_weight: float):
    """Yields extra_loss(inputs, outputs) for train(); None if both weights are 0, where no teacher is needed.

    If the widths differ, a linear layer inside the student, trained with it and deleted at the end, maps its hidden
    states to the teacher's width. Raises UserError if the vocabularies differ in size: both models read the same ids.
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

    with last_layer_outputs(student) as of_student, last_layer_outputs(teacher) as of_teacher:

        def extra_loss(inputs, _outputs):
            mask = inputs["attention_mask"]
            with torch.no_grad():
                teacher(input_ids=inputs["input_ids"], attention_mask=mask)
            loss = 0.0
            if hidden_weight:
                hidden = student.hidden_projection(of_student["hidden"]) if projected else of_student["hidden"]
                loss = loss + hidden_weight * hidden_loss(hidden, of_teacher["hidden"], mask)
            for pair in (("query", "key"), ("value", "value")) if relation_weight else ():
                pairs = [[outputs[name] for name in pair] for outputs in (of_student, of_teacher)]
                loss = loss + relation_weight * relation_loss(*pairs, mask, heads)
            return loss

        try:
            yield extra_loss
        finally:
            if projected:
                del student.hidden_projection
