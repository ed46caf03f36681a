"""Structured pruning: the importance, removal and tuning of attention heads and FFN neurons."""

from collections.abc import Iterable, Iterator

import torch
from compress.methods.networks import attention_of, encoder_layers
from torch import nn

DAMPING = 0.01  # of unit_scales


def unit_gradients(model: nn.Module, batches) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    """Derivatives of each sentence's loss by the gates of all units: [sentences, units] by ("head" or "neuron", layer).

    A unit's gate multiplies its output by 1. `batches` yields dicts of input_ids, attention_mask and labels.
    """
    model.eval()
    layers = encoder_layers(model)
    inputs: dict[tuple[str, int], torch.Tensor] = {}
    hooks = [hook for i, layer in enumerate(layers) for hook in keep_inputs(inputs, i, layer)]
    units = {"head": attention_of(layers[0]).heads, "neuron": layers[0].output.dense.in_features}
    for batch in batches:
        # A sum over sentences keeps the gradient of each sentence independent of the others.
        loss = nn.functional.cross_entropy(
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
            batch["labels"],
            reduction="sum",
        )
        model.zero_grad(set_to_none=True)
        loss.backward()
        by_unit = {key: (x.detach() * x.grad).sum(1) for key, x in inputs.items()}  # [sentences, width]
        yield {(kind, i): x.view(len(x), units[kind], -1).sum(2) for (kind, i), x in by_unit.items()}
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)


def unit_importance(gradients: Iterable[dict[tuple[str, int], torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher importance of every head [layers, heads] and FFN neuron [layers, neurons], from unit_gradients().

    It is the squared derivative of the loss by the unit's gate, summed over sentences (Kwon et al., 2022; Michel et
    al., 2019, take its absolute value).
    """
    total: dict[tuple[str, int], torch.Tensor] = {}
    for batch in gradients:
        for key, by_unit in batch.items():
            total[key] = total.get(key, 0.0) + by_unit.square().sum(0)
    layers = range(len(total) // 2)
    return tuple(torch.stack([total[kind, i] for i in layers]) for kind in ("head", "neuron"))


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


def swap_units(gradients, prune_heads: dict[int, list[int]], neurons: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """The arguments of remove_units() after swaps inside each layer; gradients: a list from unit_gradients()."""
    g = {key: torch.cat([batch[key] for batch in gradients]) for key in gradients[0]}
    heads = {i: rearranged(g["head", i], len(gone)).nonzero().flatten().tolist() for i, gone in prune_heads.items()}
    count = g["neuron", 0].shape[1] - neurons.shape[1]
    left = [~rearranged(g["neuron", i], count) for i in range(len(neurons))]
    return heads, torch.stack([kept.nonzero().flatten() for kept in left])


def rearranged(g: torch.Tensor, count: int) -> torch.Tensor:
    """Mask rearrangement (Kwon et al., 2022, section 4.2): which `count` units of a layer to remove, as booleans.

    g: unit_gradients() of the layer [sentences, units]. Removing the units with m = 1 costs m^T I m / 2, I = g^T g. The
    start is the least diagonal; then each unit that is left, in ascending order, may take the place of another one.
    """
    fisher = g.double().T @ g.double()
    diagonal = fisher.diagonal()
    order = diagonal.argsort()
    gone = torch.zeros(len(order), dtype=torch.bool)
    gone[order[:count]] = True
    slope = fisher[gone].sum(0)  # I m
    for unit in order[count:]:
        gone[unit], slope = True, slope + fisher[unit]
        back = (2 * slope - diagonal).masked_fill(~gone, -torch.inf).argmax()  # its return lowers the loss most
        gone[back], slope = False, slope - fisher[back]
    return gone


@torch.no_grad()
def tune_units(model: nn.Module, parent: nn.Module, batches) -> None:
    """Mask tuning (Kwon et al., 2022, section 4.3): scales what each head and neuron adds, in place.

    `model` is `parent` with fewer units. From the first layer to the last, the sums before each LayerNorm come as close
    to the parent's as scales of the units allow, on the tokens of `batches`; the weights absorb the scales.
    """
    for (*_, parent_norm), (linear, units, norm) in zip(outputs_of(parent), outputs_of(model), strict=True):
        (target,) = inputs_of(parent, [parent_norm], batches)
        x, total = inputs_of(model, [linear, norm], batches)
        scales = unit_scales(x, target - total, linear.weight, units)
        linear.weight.mul_(scales.repeat_interleave(linear.in_features // units))


def outputs_of(model: nn.Module) -> list[tuple[nn.Linear, int, nn.LayerNorm]]:
    """For attention and FFN of each layer: the last Linear, the units that it reads, and the LayerNorm after it."""
    found = []
    for layer in encoder_layers(model):
        attention, ffn = attention_of(layer), layer.output.dense
        norm = next(module for module in layer.attention.modules() if isinstance(module, nn.LayerNorm))
        found += [(attention.output, attention.heads, norm), (ffn, ffn.in_features, layer.output.LayerNorm)]
    return found


def inputs_of(model: nn.Module, modules: list[nn.Module], batches) -> list[torch.Tensor]:
    """The inputs of each module for the real tokens of all batches: float [tokens, width]."""
    kept: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in modules}
    hooks = [module.register_forward_pre_hook(lambda m, args: kept[m].append(args[0])) for module in modules]
    for batch in batches:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for values in kept.values():
            values[-1] = values[-1][batch["attention_mask"].bool()]
    for hook in hooks:
        hook.remove()
    return [torch.cat(values) for values in kept.values()]


def unit_scales(x: torch.Tensor, missing: torch.Tensor, weight: torch.Tensor, units: int) -> torch.Tensor:
    """s = argmin |sum_u (s_u - 1) A_u - missing|^2 + damping |s - 1|^2, where A_u = x_u W_u^T is what unit u adds.

    x: [tokens, width]; missing: [tokens, hidden]; weight W: [hidden, width], of `units` groups of columns. The damping
    is DAMPING times the mean of |A_u|^2.
    """
    gram = ((x.T @ x) * (weight.T @ weight)).view(units, -1, units, x.shape[1] // units).sum((1, 3)).double()
    products = (x * (missing @ weight)).sum(0).view(units, -1).sum(1).double()
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    return (1 + torch.linalg.solve(gram, products)).to(x.dtype)
