"""Structured pruning: the importance of attention heads and FFN neurons, and their removal."""

import torch
from compress.methods.networks import attention_of, encoder_layers
from torch import nn


def unit_importance(model: nn.Module, batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher importance of every head [layers, heads] and FFN neuron [layers, neurons].

    A unit's gate multiplies its output by 1; its importance is the squared derivative of the loss by that gate,
    summed over sentences (Kwon et al., 2022; Michel et al., 2019, take its absolute value). `batches` yields input_ids,
    attention_mask and labels as a dict of tensors.
    """
    model.eval()
    layers = encoder_layers(model)
    inputs: dict[tuple[str, int], torch.Tensor] = {}
    hooks = [hook for i, layer in enumerate(layers) for hook in keep_inputs(inputs, i, layer)]
    heads = torch.zeros(len(layers), attention_of(layers[0]).heads)
    neurons = torch.zeros(len(layers), layers[0].output.dense.in_features)
    for batch in batches:
        # A sum over sentences keeps the gradient of each sentence independent of the others.
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


def keep_inputs(inputs: dict[tuple[str, int], torch.Tensor], i: int, layer: nn.Module) -> list:
    """Hooks that keep, with their gradients, what heads and neurons of layer i output: inputs of the next Linear."""

    def keep(kind):
        def hook(_, args):
            inputs[kind, i] = args[0]
            args[0].retain_grad()

        return hook

    modules = {"head": attention_of(layer).output, "neuron": layer.output.dense}
    return [module.register_forward_pre_hook(keep(kind)) for kind, module in modules.items()]


def choose_heads(importance: torch.Tensor, keep: int) -> dict[int, list[int]]:
    """Heads to prune per layer so that `keep` remain: the most important of each layer, then the best overall.

    importance: [layers, heads].
    """
    score = importance.clone()
    score[torch.arange(len(score)), score.argmax(1)] = torch.inf  # a layer without heads can't run
    kept = set(score.flatten().topk(keep).indices.tolist())
    layers, heads = importance.shape
    return {i: [h for h in range(heads) if i * heads + h not in kept] for i in range(layers)}


def remove_units(model: nn.Module, prune_heads: dict[int, list[int]], neurons: torch.Tensor) -> None:
    """Removes heads and keeps only the FFN neurons [layers, kept] (indices); changes the config, too, in place."""
    model.prune_heads({i: heads for i, heads in prune_heads.items() if heads})
    with torch.no_grad():
        for layer, kept in zip(encoder_layers(model), neurons, strict=True):
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
