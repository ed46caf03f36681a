"""Integer quantization: symmetric integers per row or per tensor, and training with fake quantization.

Jacob et al. (CVPR 2018), equation 1 with a zero zero-point for weights: real = scale * integer.
"""

from collections.abc import Callable

import numpy as np
import torch
from compress.methods.networks import is_matrix, remove_parametrizations
from compress.storage.packed import Integer
from torch import nn
from torch.nn.utils import parametrize

SHRINK = np.linspace(0.5, 1.0, 26)  # clipping points tried below 8 bits, as shares of the largest weight


def quantize_weight(weight: torch.Tensor, bits: int, per_channel: bool = True) -> Integer:
    """A float matrix [rows, columns] as signed integers of 2 to 8 bits with a scale per row, or one for all.

    8 bits: the largest weight maps to 127. Fewer bits: of 26 clipping points, the one with the least squared error.
    Raises ValueError for weights that are not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weights hold NaN or infinite values")
    rows = weight.detach().float().reshape(weight.shape[0] if per_channel else 1, -1)
    top = (1 << (bits - 1)) - 1
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * top)
    best = largest / top
    if bits < 8:
        error = torch.full_like(largest, torch.inf)
        for share in SHRINK:
            scale = largest * float(share) / top
            new = ((rows / scale).round_().clamp_(-top, top) * scale - rows).square_().sum(1, keepdim=True)
            best, error = torch.where(new < error, scale, best), torch.minimum(new, error)
    codes = (rows / best).round_().clamp_(-top, top).to(torch.int8)
    return Integer(codes.reshape(weight.shape).numpy(), best.reshape(-1).numpy(), bits)


def int8_weights(model: nn.Module, per_channel: bool = True, embeddings: bool = True) -> dict[str, Integer]:
    """The weights of every Linear (and Embedding) as 8-bit integers, by parameter name."""
    kinds = (nn.Linear, nn.Embedding) if embeddings else nn.Linear
    return {
        f"{name}.weight": quantize_weight(module.weight, 8, per_channel)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


class FakeQuantizedRows(nn.Module):
    """Parametrization: the weight rounded to an integer grid, with a straight-through gradient (Bengio et al., 2013).

    The scales are fitted to the weights once: fine-tuning changes the range of a row little.
    """

    def __init__(self, weight: torch.Tensor, bits: int):
        super().__init__()
        self.bits, self.top = bits, (1 << (bits - 1)) - 1
        self.register_buffer("scale", torch.from_numpy(quantize_weight(weight, bits).scale))
        self.register_buffer("zero", torch.zeros(len(self.scale), dtype=torch.int32))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero, 0, -self.top, self.top)

    def stored(self, weight: torch.Tensor) -> Integer:
        """The integers of the grid points in forward()."""
        codes = (weight / self.scale[:, None]).round().clamp(-self.top, self.top)
        return Integer(codes.to(torch.int8).numpy(), self.scale.numpy(), self.bits)


def fake_quantize_activations(_, inputs):
    """Forward pre-hook: the input rounded to 8 bits over its own range, as engines quantize it (torch uses 7 bits)."""
    (x,) = inputs
    low, high = torch.aminmax(x.detach())
    scale = ((high.clamp_min(0) - low.clamp_max(0)) / 255).clamp_min(1e-8)
    zero = (-low.clamp_max(0) / scale).round().to(torch.int32)
    return (torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255),)


def start_quantization_aware(model: nn.Module, parametrization: Callable[[nn.Module], nn.Module]) -> list:
    """Quantizes the weight of every Linear and Embedding, and the inputs of every Linear, in each forward pass.

    parametrization: makes, for one of these modules, the parametrization of its weight. Changes the model in place;
    returns the hooks for stop_quantization_aware.
    """
    hooks = []
    for module in [m for m in model.modules() if is_matrix(m)]:
        parametrize.register_parametrization(module, "weight", parametrization(module))
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(fake_quantize_activations))
    return hooks


def stop_quantization_aware(model: nn.Module, hooks: list) -> dict[str, Integer]:
    """Leaves ordinary float weights on the grid, in place; returns their integers by parameter name."""
    for hook in hooks:
        hook.remove()
    return remove_parametrizations(model)
