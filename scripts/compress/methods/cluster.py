"""Weight clustering: k shared values per matrix, trained while every weight keeps its cluster.

Han et al., Deep Compression (ICLR 2016), section 3: a matrix becomes small codes into k shared values (centroids).
"""

from dataclasses import replace

import numpy as np
import torch
from compress.engines.pytorch import load_model
from compress.errors import UserError
from compress.methods.kmeans import cluster_weights
from compress.methods.made import Context, Made, made
from compress.methods.masks import GradualPruning, sparsity_of
from compress.methods.networks import encoder_matrices, is_matrix, remove_parametrizations
from compress.methods.teaching import teach
from compress.storage.coding import entropy_bytes
from compress.storage.packed import Codebook, write_packed
from torch import nn
from torch.nn.utils import parametrize


def cluster(variant, context: Context) -> Made:
    """k-means of every matrix; with a training, the centroids then learn from the baseline's logits."""
    model = load_model(context.parent)
    start_clustering(model, choose_sizes(model, variant.k), rate=variant.rate)
    return finish(model, variant, context)


def deep_compression(variant, context: Context) -> Made:
    """Prune, cluster, entropy-code (Han et al., ICLR 2016), in two trainings.

    First the pruned parent adapts to clustered embeddings while its zeros stay zero; then its nonzeros share k - 1
    trained centroids (k if nothing was pruned).
    """
    model = load_model(context.parent)
    pruned = encoder_matrices(model)
    sparsity = sparsity_of(pruned)
    sizes = choose_sizes(model, variant.k, variant.embedding_k)
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    first = {name: size for name, size in sizes.items() if name in tables}
    start_clustering(model, first, rate=variant.rate)
    keep_zeros = GradualPruning(model, "magnitude", sparsity, sparsity)
    adapting = variant.model_copy(update={"training": variant.adaptation})
    work = replace(context, work=context.work / f"{variant.name}-adaptation")
    seconds = teach(model, adapting, work, callbacks=[keep_zeros])
    rest = {name: size for name, size in sizes.items() if name not in first}
    start_clustering(model, rest, tuple(pruned) if sparsity else (), variant.rate)
    return finish(model, variant, context, seconds, sparsity=sparsity)


def finish(model: nn.Module, variant, context: Context, seconds_before: float = 0.0, **details) -> Made:
    """Trains the codebooks that are in the model, if the variant has a training, and stores weights as codes."""
    seconds = teach(model, variant, context)
    encoded = remove_parametrizations(model)
    # A lower limit for one code per matrix; a coder that adapts to each block can need less.
    details["entropy_bytes"] = sum(entropy_bytes(value.codes) for value in encoded.values())
    details["codebook_bytes"] = sum(value.codebook.nbytes for value in encoded.values())
    seconds = None if seconds is None else seconds + seconds_before
    return made(model, lambda folder: write_packed(model, folder, encoded), train_seconds=seconds, details=details)


class Lookup(torch.autograd.Function):
    """weight = codebook[codes]; a centroid's gradient is the sum over its weights (Deep Compression, equation 3).

    Much faster than autograd's own indexing, which matters for an embedding of millions of weights.
    """

    @staticmethod
    def forward(ctx, codebook: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """float [k], int32 of any shape -> float in the shape of the codes."""
        ctx.save_for_backward(codes)
        ctx.k = len(codebook)
        return codebook.index_select(0, codes.reshape(-1)).view(codes.shape)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (codes,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.k).index_add_(0, codes.reshape(-1), gradient.reshape(-1)), None


class Centroids(nn.Module):
    """Parametrization: the trained parameter is the codebook [k], the codes are fixed; an exact zero stays zero."""

    def __init__(self, start: Codebook):
        super().__init__()
        # Not in the checkpoints: clustering the parent again gives the same codes.
        self.register_buffer("codes", torch.from_numpy(start.codes.astype(np.int32)), persistent=False)
        self.register_buffer("free", torch.from_numpy(start.codebook != 0), persistent=False)
        self.start = start.codebook

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.start.copy())

    def forward(self, codebook: torch.Tensor) -> torch.Tensor:
        return Lookup.apply(codebook * self.free, self.codes)

    def stored(self, codebook: torch.Tensor) -> Codebook:
        values = (codebook * self.free).cpu().numpy()
        return Codebook(self.codes.cpu().numpy().astype(np.uint8), values)


def choose_sizes(model: nn.Module, k: int, embedding_k: int | None = None) -> dict[str, int]:
    """The number of centroids by weight name for every Linear and Embedding; biases and LayerNorms are not clustered.

    A matrix of fewer than 4 k weights is left out: its codebook would be hardly smaller than the matrix.
    """
    sizes = {}
    for name, module in model.named_modules():
        if is_matrix(module):
            size = embedding_k if embedding_k and isinstance(module, nn.Embedding) else k
            if module.weight.numel() >= 4 * size:
                sizes[f"{name}.weight"] = size
    return sizes


def start_clustering(model: nn.Module, sizes: dict[str, int], pruned: tuple[str, ...] = (), rate: float = 0) -> None:
    """Replaces the named weights by k-means codebooks, in place; the weights in `pruned` keep their zeros.

    remove_parametrizations() ends it. Raises UserError naming the weight that can't be clustered.
    """
    for name, k in sizes.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        try:
            start = cluster_weights(module.weight.detach().numpy(), k, keep_zeros=name in pruned, rate=rate)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        parametrize.register_parametrization(module, "weight", Centroids(start))
