"""Models with factored matrices: two Linear layers of a small rank in place of one.

The config names these modules and their ranks under `ranks`, so that a folder says how to build its model.
"""

from torch import nn


def with_factors(model: nn.Module) -> nn.Module:
    """The model, whose Linear layers in config.ranks become pairs of new layers, in place; others are left alone."""
    for name, rank in getattr(model.config, "ranks", {}).items():
        model.set_submodule(name, _pair(model.get_submodule(name), rank))
    return model


def _pair(linear: nn.Linear, rank: int) -> nn.Sequential:
    dtype = linear.weight.dtype
    first = nn.Linear(linear.in_features, rank, bias=False, dtype=dtype)
    return nn.Sequential(first, nn.Linear(rank, linear.out_features, bias=linear.bias is not None, dtype=dtype))
