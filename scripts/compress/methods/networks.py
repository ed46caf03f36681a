"""The parts of a network that the methods work on."""

from dataclasses import dataclass

import torch
from compress.errors import Skip
from torch import nn
from torch.nn.utils import parametrize


def is_matrix(module: nn.Module) -> bool:
    """Whether the module's weight is a matrix that the methods compress: a Linear or an Embedding."""
    return isinstance(module, nn.Linear | nn.Embedding)


def encoder_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of every Linear inside the encoder's layers by name: no bias, LayerNorm, embedding or head."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in name
    }


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a BERT, RoBERTa or MPNet; raises Skip for an encoder with other module names (DistilBERT)."""
    if not hasattr(model.base_model, "encoder"):
        raise Skip(f"needs a network built like BERT; {model.config.model_type} is not")
    return model.base_model.encoder.layer


@dataclass(frozen=True)
class Attention:
    """The projections of a layer's self-attention, and the number of its heads."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    heads: int


def attention_of(layer: nn.Module) -> Attention:
    """The attention of one of encoder_layers(): MPNet names its parts otherwise than BERT and RoBERTa."""
    inner = getattr(layer.attention, "attn", None)
    if inner is not None:
        return Attention(inner.q, inner.k, inner.v, inner.o, inner.num_attention_heads)
    inner = layer.attention.self
    output = layer.attention.output.dense
    return Attention(inner.query, inner.key, inner.value, output, inner.num_attention_heads)


@torch.no_grad()
def remove_parametrizations(model: nn.Module) -> dict:
    """Replaces parametrized weights by ordinary ones in place; returns what to store for each, by parameter name.

    The parametrization's method stored(original) returns the form: Integer or Codebook of compress.storage.packed.
    """
    encoded = {}
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            weights = module.parametrizations.weight
            encoded[f"{name}.weight"] = weights[0].stored(weights.original)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return encoded
