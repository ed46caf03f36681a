"""Integer quantization: symmetric integers per row or per tensor, the modules that run them, fake quantization.

Jacob et al. (CVPR 2018), equation 1 with a zero zero-point for weights: real = scale * integer.
"""

import numpy as np
import torch
from compress.storage.packed import Integer
from torch import nn
from torch.nn.utils import parametrize

SHRINK = np.linspace(0.5, 1.0, 26)  # candidates for clipping below 8 bits, as shares of the largest weight


def quantize(weight: torch.Tensor, bits: int, per_channel: bool = True) -> Integer:
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


def quantized(model: nn.Module, per_channel: bool = True, embeddings: bool = True) -> dict[str, Integer]:
    """The weights of every Linear (and Embedding) as 8-bit integers, by parameter name."""
    kinds = (nn.Linear, nn.Embedding) if embeddings else nn.Linear
    return {
        f"{name}.weight": quantize(module.weight, 8, per_channel)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)


class Int8Embedding(nn.Module):
    """An embedding whose rows lie in memory as int8 with a float scale (per row, or one for all)."""

    def __init__(self, table: Integer):
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(table.codes))
        self.register_buffer("scale", torch.from_numpy(table.scale).reshape(-1, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> float32 [..., width]."""
        scale = self.scale[ids] if len(self.scale) > 1 else self.scale[0]
        return self.codes[ids] * scale


def int8_linear(weight: Integer, bias: torch.Tensor | None) -> nn.Module:
    """torch's dynamically quantized Linear around integers that are already there (8 bits or fewer)."""
    from torch.ao.nn.quantized.dynamic import Linear

    codes, scale = torch.from_numpy(weight.codes), torch.from_numpy(weight.scale).double()
    if len(scale) == 1:
        packed = torch._make_per_tensor_quantized_tensor(codes, float(scale), 0)
    else:
        packed = torch._make_per_channel_quantized_tensor(codes, scale, torch.zeros(len(scale), dtype=torch.long), 0)
    layer = Linear(codes.shape[1], codes.shape[0], bias_=bias is not None)
    layer.set_weight_bias(packed, bias)
    return layer


class FakeQuantizedRows(nn.Module):
    """Parametrization: the weight on an integer grid; gradients pass straight through (Bengio et al., 2013).

    The grid's scales are those that suit the weight at the start: one row moves little in fine-tuning.
    """

    def __init__(self, weight: torch.Tensor, bits: int):
        super().__init__()
        self.bits, self.top = bits, (1 << (bits - 1)) - 1
        self.register_buffer("scale", torch.from_numpy(quantize(weight, bits).scale))
        self.register_buffer("zero", torch.zeros(len(self.scale), dtype=torch.int32))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero, 0, -self.top, self.top)

    def stored(self, weight: torch.Tensor) -> Integer:
        """The grid points that forward() stands for."""
        codes = (weight / self.scale[:, None]).round().clamp(-self.top, self.top)
        return Integer(codes.to(torch.int8).numpy(), self.scale.numpy(), self.bits)


def fake_quantize_activations(_, inputs):
    """Forward pre-hook: the input rounded to 8 bits over its own range, as engines do it (torch leaves one out)."""
    (x,) = inputs
    low, high = torch.aminmax(x.detach())
    scale = ((high.clamp_min(0) - low.clamp_max(0)) / 255).clamp_min(1e-8)
    zero = (-low.clamp_max(0) / scale).round().to(torch.int32)
    return (torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255),)


def start_quantization_aware(model: nn.Module, bits: int) -> list:
    """Makes every Linear and Embedding train on its integer grid; returns the hooks for stop_quantization_aware."""
    hooks = []
    for module in [m for m in model.modules() if is_matrix(m)]:
        parametrize.register_parametrization(module, "weight", FakeQuantizedRows(module.weight, bits))
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(fake_quantize_activations))
    return hooks


def stop_quantization_aware(model: nn.Module, hooks: list) -> dict[str, Integer]:
    """Leaves ordinary float weights that lie on the grid, and returns the integers behind them by parameter name."""
    for hook in hooks:
        hook.remove()
    return fix_weights(model)


@torch.no_grad()
def fix_weights(model: nn.Module) -> dict:
    """Leaves ordinary weights in the place of parametrized ones; returns what is to be stored, by parameter name.

    The parametrization's stored(original) says in which form: Integer here, Codebook in compress.cluster.
    """
    found = {}
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            weights = module.parametrizations.weight
            found[f"{name}.weight"] = weights[0].stored(weights.original)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return found
