"""PyTorch modules that compute in int8 on the CPU."""

import warnings

import torch
from compress.storage.packed import Integer
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear


class Int8Embedding(nn.Module):
    """An embedding whose rows are kept as int8 with a float scale (per row, or one for all)."""

    def __init__(self, table: Integer):
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(table.codes))
        self.register_buffer("scale", torch.from_numpy(table.scale).reshape(-1, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> float32 [..., width]."""
        scale = self.scale[ids] if len(self.scale) > 1 else self.scale[0]
        return self.codes[ids] * scale


class Int8Linear(Linear):
    """torch's dynamically quantized Linear, whose inputs use all 256 steps of their 8 bits.

    torch's own class uses 128 (reduce_range=True), so that sums fit into 16 bits on CPUs without VNNI. At BERT base's
    size that costs a fine-tuned MPNet more than three points of F1.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 [..., in_features] -> float32 [..., out_features]; inputs are rounded with one scale for all."""
        return torch.ops.quantized.linear_dynamic(inputs, self._packed_params._packed_params, reduce_range=False)


def int8_linear(weight: Integer, bias: torch.Tensor | None) -> Int8Linear:
    """A Linear that computes in int8, with the given integers (8 bits or fewer) as its weight."""
    codes, scale = torch.from_numpy(weight.codes), torch.from_numpy(weight.scale).double()
    if len(scale) == 1:
        packed = torch._make_per_tensor_quantized_tensor(codes, float(scale), 0)
    else:
        packed = torch._make_per_channel_quantized_tensor(codes, scale, torch.zeros(len(scale), dtype=torch.long), 0)
    layer = Int8Linear(codes.shape[1], codes.shape[0], bias_=bias is not None)
    layer.set_weight_bias(packed, bias)
    return layer


def dynamic_int8(model: nn.Module) -> nn.Module:
    """A copy of the model whose Linear layers quantize_dynamic of torch.ao has replaced: one scale per weight.

    Inputs keep torch's 128 steps, since this repeats what the course did.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but it is what the course used
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def computes_in_int8(model: nn.Module) -> bool:
    return any(isinstance(module, Linear) for module in model.modules())
