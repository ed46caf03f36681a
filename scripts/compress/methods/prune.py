"""Pruning: which weights, heads and neurons go, when they go, and how what is left becomes a smaller model."""

import numpy as np
import torch
from compress.errors import Skip
from torch import nn


def encoder_matrices(model) -> dict[str, nn.Parameter]:
    """The weights of every Linear inside the encoder's layers by name: no bias, LayerNorm, embedding or head."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in name
    }


def sparsity_of(weights: dict[str, torch.Tensor]) -> float:
    return 1 - sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def global_masks(scores: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Boolean masks that drop exactly round(sparsity * N) of all N weights: those of least score anywhere."""
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    keep = torch.ones(len(flat), dtype=torch.bool)
    drop = round(sparsity * len(flat))
    keep[torch.from_numpy(np.argpartition(flat.cpu().numpy(), drop - 1)[:drop]) if drop else []] = False
    parts = keep.to(flat.device).split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def two_of_four_masks(scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of every four neighbours along the input, the two of largest score stay (Mishra et al., 2021)."""
    masks = {}
    for name, score in scores.items():
        groups = score.reshape(-1, 4)
        kept = groups.topk(2, dim=1).indices
        masks[name] = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True).view_as(score)
    return masks


@torch.no_grad()
def set_zeros(weights: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> None:
    """Zeroes, in place, what the masks drop."""
    for name, weight in weights.items():
        weight.mul_(masks[name])


def cubic_sparsity(start: float, end: float, progress: float) -> float:
    """end + (start - end) (1 - progress)^3, Zhu and Gupta (2017), equation 1; progress is clipped to 0..1."""
    return end + (start - end) * (1 - min(max(progress, 0.0), 1.0)) ** 3


def magnitude(weights: dict[str, torch.Tensor], _optimizer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().abs() for name, weight in weights.items()}


def fisher(weights: dict[str, torch.Tensor], optimizer) -> dict[str, torch.Tensor]:
    """w^2 F / 2, the saliency of Optimal Brain Damage (LeCun et al., 1990) with a Fisher diagonal F for the Hessian's.

    F is Adam's second moment, the running mean of squared mini-batch gradients of the training's own loss: an estimate
    up to a factor, which the ranking does not see, of what squared gradients of single sentences would give.
    """
    state = optimizer.state
    return {name: weight.detach() ** 2 * state[weight]["exp_avg_sq"] / 2 for name, weight in weights.items()}


CRITERIA = {"magnitude": magnitude, "fisher": fisher}


def gradual_pruning(model, criterion: str, start: float, end: float, pattern: str, every: int = 16, ramp: float = 0.6):
    """A Trainer callback: sparsity rises along the cubic schedule for `ramp` of the steps, then stays for recovery.

    After each step the dropped weights are set back to zero. With the pattern 2:4 the masks hold from the first step.
    """
    from transformers import TrainerCallback

    class GradualPruning(TrainerCallback):
        masks: dict[str, torch.Tensor] | None = None

        def on_train_begin(self, args, state, control, **_):
            if pattern == "2:4":
                self.masks = two_of_four_masks(magnitude(encoder_matrices(model), None))
            else:  # also after a resumed checkpoint: what is zero stays zero
                self.masks = {name: weight != 0 for name, weight in encoder_matrices(model).items()}
            set_zeros(encoder_matrices(model), self.masks)

        def on_optimizer_step(self, args, state, control, optimizer=None, **_):
            step = state.global_step + 1
            last = int(ramp * state.max_steps)
            if pattern != "2:4" and ((step % every == 0 and step < last) or step == max(last, 1)):
                weights = encoder_matrices(model)
                inner = getattr(optimizer, "optimizer", optimizer)
                scores = CRITERIA[criterion](weights, inner)
                # What is gone has the least score of all and can't come back.
                scores = {name: score.masked_fill(~self.masks[name], -1.0) for name, score in scores.items()}
                self.masks = global_masks(scores, cubic_sparsity(start, end, step / max(last, 1)))
            set_zeros(encoder_matrices(model), self.masks)

    return GradualPruning()


def layers_of(model) -> nn.ModuleList:
    """The layers of a BERT or RoBERTa; raises Skip for an encoder whose modules have other names (DistilBERT)."""
    if not hasattr(model.base_model, "encoder"):
        raise Skip(f"takes a network apart that is built like BERT; {model.config.model_type} is not")
    return model.base_model.encoder.layer


def unit_importance(model, batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher importance of every head [layers, heads] and FFN neuron [layers, neurons].

    A unit's gate multiplies its output by 1; its importance is the squared derivative of the loss by that gate,
    summed over sentences (Kwon et al., 2022; Michel et al., 2019, take its absolute value). `batches` yields input_ids,
    attention_mask and labels as a dict of tensors.
    """
    model.eval()
    layers = layers_of(model)
    inputs: dict[tuple[str, int], torch.Tensor] = {}

    def keep(kind, i):
        def hook(_, args):
            inputs[kind, i] = args[0]
            args[0].retain_grad()

        return hook

    hooks = []
    for i, layer in enumerate(layers):
        hooks.append(layer.attention.output.dense.register_forward_pre_hook(keep("head", i)))
        hooks.append(layer.output.dense.register_forward_pre_hook(keep("neuron", i)))
    heads = torch.zeros(len(layers), layers[0].attention.self.num_attention_heads)
    neurons = torch.zeros(len(layers), layers[0].output.dense.in_features)
    for batch in batches:
        # A sum over sentences, so that each sentence's gradient is its own.
        loss = nn.functional.cross_entropy(
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
            batch["labels"],
            reduction="sum",
        )
        model.zero_grad(set_to_none=True)
        loss.backward()
        for i in range(len(layers)):
            for kind, into in (("head", heads), ("neuron", neurons)):
                x = inputs[kind, i]
                by_unit = (x.detach() * x.grad).sum(1)  # [sentences, width], summed over positions
                by_unit = by_unit.view(len(by_unit), into.shape[1], -1).sum(2)
                into[i] += by_unit.square().sum(0)
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return heads, neurons


def choose_heads(importance: torch.Tensor, keep: int) -> dict[int, list[int]]:
    """Heads to prune per layer so that `keep` stay in all: the most important of each layer, then the best anywhere."""
    score = importance.clone()
    score[torch.arange(len(score)), score.argmax(1)] = torch.inf  # a layer without heads can't run
    kept = set(score.flatten().topk(keep).indices.tolist())
    layers, heads = importance.shape
    return {i: [h for h in range(heads) if i * heads + h not in kept] for i in range(layers)}


def remove_units(model, prune_heads: dict[int, list[int]], neurons: torch.Tensor) -> None:
    """Takes heads out and keeps only the FFN neurons [layers, kept] (indices); the config says so, in place."""
    model.prune_heads({i: heads for i, heads in prune_heads.items() if heads})
    with torch.no_grad():
        for layer, kept in zip(layers_of(model), neurons, strict=True):
            kept = kept.sort().values
            layer.intermediate.dense = _sliced(layer.intermediate.dense, kept, 0)
            layer.output.dense = _sliced(layer.output.dense, kept, 1)
    model.config.intermediate_size = neurons.shape[1]


def _sliced(linear: nn.Linear, kept: torch.Tensor, dim: int) -> nn.Linear:
    weight = linear.weight.detach().index_select(dim, kept)
    new = nn.Linear(weight.shape[1], weight.shape[0])
    new.weight = nn.Parameter(weight)
    new.bias = nn.Parameter(linear.bias.detach()[kept] if dim == 0 else linear.bias.detach().clone())
    return new
