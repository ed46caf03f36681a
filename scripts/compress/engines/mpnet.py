"""MPNet with fewer heads in some layers.

MPNet computes one position bias for all heads and adds it to the scores of every layer (Song et al., NeurIPS 2020).
transformers prunes a layer's heads but not its share of the bias, so that the shapes no longer fit.
"""

from torch import nn


def with_own_bias(model: nn.Module) -> nn.Module:
    """The model, whose layers now take the position bias of the heads that they have left; others are left alone."""
    if model.config.model_type == "mpnet":
        for layer in model.base_model.encoder.layer:
            layer.attention.register_forward_pre_hook(_of_own_heads, with_kwargs=True)
    return model


def _of_own_heads(attention: nn.Module, args: tuple, kwargs: dict):
    """Replaces position_bias [batch, all heads, length, length] by the bias of the layer's heads."""
    if not attention.pruned_heads:
        return None
    heads = attention.attn.num_attention_heads + len(attention.pruned_heads)
    kept = [head for head in range(heads) if head not in attention.pruned_heads]
    return args, kwargs | {"position_bias": kwargs["position_bias"][:, kept]}
