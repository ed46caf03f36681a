"""Low-rank factors: two narrow matrices in place of each matrix in the encoder's layers.

Chen et al., DRONE (NeurIPS 2021): the factors keep a layer's outputs on real inputs, since the weights alone are not
close to a low rank.
"""

import torch
from compress.engines.factored import with_factors
from compress.engines.pytorch import load_model
from compress.errors import UserError
from compress.methods.gptq import layer_hessians
from compress.methods.made import Context, Made, made
from compress.methods.networks import encoder_matrices
from compress.methods.teaching import sentences, teach
from compress.storage.packed import write_packed
from torch import nn


def low_rank(variant, context: Context) -> Made:
    """Two factors for each matrix of the encoder's layers, then trained if the variant has a training.

    Stored packed: from_pretrained of model.safetensors would build whole matrices and fill them at random.
    """
    model = load_model(context.parent)
    ids = sentences(context, "train", variant.calibration_sentences) if variant.weighting == "inputs" else None
    factor_encoder(model, variant.kept, ids)
    seconds = teach(model, variant, context)
    details = {"ranks": sorted(set(model.config.ranks.values()))}
    return made(model, lambda folder: write_packed(model, folder, {}), train_seconds=seconds, details=details)


@torch.no_grad()
def factor_encoder(model: nn.Module, kept: float, ids: list[list[int]] | None = None) -> None:
    """Replaces each Linear in the encoder's layers by two, in place; the config names their ranks.

    kept: the share of a matrix's parameters that its factors have. ids: token ids of the sentences whose inputs weight
    the errors; None: a plain SVD. Raises UserError if the matrices are factors already.
    """
    if hasattr(model.config, "ranks"):
        raise UserError("low-rank: the parent's matrices are factors already")
    moments = layer_hessians(model, model.base_model, ids) if ids else {}
    names = [name.removesuffix(".weight") for name in encoder_matrices(model)]
    old = {name: model.get_submodule(name) for name in names}
    model.config.ranks = {name: rank_of(*linear.weight.shape, kept) for name, linear in old.items()}
    with_factors(model)
    for name, linear in old.items():
        first, second = model.get_submodule(name)
        U, V = factors(linear.weight, moments.get(linear), first.out_features)
        first.weight.copy_(V)
        second.weight.copy_(U)
        if linear.bias is not None:
            second.bias.copy_(linear.bias)


def rank_of(rows: int, columns: int, kept: float) -> int:
    """The largest rank whose factors have at most `kept` of the matrix's parameters, but at least 1."""
    return max(1, int(kept * rows * columns / (rows + columns)))


def factors(W: torch.Tensor, H: torch.Tensor | None, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """U [rows, rank] and V [rank, columns] with the least ||W X - U V X||; float64.

    W: float [rows, columns]; H: X X^T [columns, columns] or a multiple; None: the identity, which gives the SVD of W.
    The best approximation of W X projects it on its first left singular vectors U, so V = U^T W. This is the optimum of
    DRONE's theorem 1, found without an inverse, so that H may be singular: U are eigenvectors of W H W^T.
    """
    W = W.detach().double()
    energy = W @ W.T if H is None else W @ H.double() @ W.T
    U = torch.linalg.eigh(energy).eigenvectors[:, -rank:].flip(1)  # the largest first
    return U, U.T @ W
