"""Ternary weights, trained with the baseline as teacher: TernaryBERT (Zhang et al., EMNLP 2020).

A weight is -s, 0 or s by the thresholds of Ternary Weight Networks (Li and Liu, 2016): one s for a matrix of the
encoder, one per row for the table of word pieces, and inputs of 8 bits, as in the paper. The small tables of positions
and token types have 8 bits, which the paper leaves float. Of its losses only the one on the logits is used. The
classification head stays float.
"""

import torch
from compress.engines.pytorch import load_model
from compress.methods.integers import FakeQuantizedRows, start_quantization_aware, stop_quantization_aware
from compress.methods.made import Context, Made
from compress.methods.quantize import packed_int8
from compress.methods.teaching import teach
from compress.storage.packed import Integer
from torch import nn


def ternary_bert(variant, context: Context) -> Made:
    """The matrices of the encoder and its word pieces as ternary weights; stored in 2 bits or less, run in int8."""
    model = load_model(context.parent)
    hooks = start_ternary(model)
    seconds = teach(model, variant, context)
    return packed_int8(model, stop_quantization_aware(model, hooks), train_seconds=seconds)


def start_ternary(model: nn.Module) -> list:
    """Makes the weights ternary in each forward pass, in place; returns the hooks for stop_quantization_aware."""
    words = model.get_input_embeddings()

    def parametrization(module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Embedding) and module is not words:
            return FakeQuantizedRows(module.weight, 8)
        return Ternary(per_row=module is words)

    return start_quantization_aware(model.base_model, parametrization)


class Ternary(nn.Module):
    """Parametrization: the weight as ternary codes times a scale, with a straight-through gradient."""

    def __init__(self, per_row: bool):
        super().__init__()
        self.per_row = per_row

    def ternary(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ternarize(weight.detach().reshape(len(weight) if self.per_row else 1, -1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        codes, scale = self.ternary(weight)
        return (codes * scale).view_as(weight) + (weight - weight.detach())  # the sum with zero is exact

    def stored(self, weight: torch.Tensor) -> Integer:
        codes, scale = self.ternary(weight)
        return Integer(codes.to(torch.int8).view_as(weight).numpy(), scale.reshape(-1).numpy(), 2)


def ternarize(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes -1, 0, 1 (float [rows, columns]) and scales [rows, 1] of each row, as in Ternary Weight Networks.

    W: float [rows, columns]. The threshold is 0.7 times the mean magnitude; the scale is the mean magnitude of the
    weights above it.
    """
    large = W.abs() > 0.7 * W.abs().mean(1, keepdim=True)
    scale = (W.abs() * large).sum(1, keepdim=True) / large.sum(1, keepdim=True).clamp_min(1)
    return W.sign() * large, scale
