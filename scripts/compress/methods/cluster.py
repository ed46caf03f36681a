"""Weight clustering: one-dimensional k-means, and codebooks that are trained while every weight keeps its cluster.

Han et al., Deep Compression (ICLR 2016), section 3: a matrix becomes small codes into k shared values (centroids).
"""

import numpy as np
import torch
from compress.errors import UserError
from compress.methods.quantize import is_matrix
from compress.storage.packed import Codebook
from torch import nn
from torch.nn.utils import parametrize

BINS = 4096  # of the histogram behind one of the starts
MOVES = 33  # places that a cut may take when clusters are rearranged: odd, so that it may stay
TOLERANCE = 1e-6  # a smaller relative fall of the inertia is not worth another round
ITERATIONS = 10_000  # far more than Lloyd needs; rounding must not make it run for ever


def cluster(weights: np.ndarray, k: int, keep_zeros: bool = False, rate: float = 0.0) -> Codebook:
    """k-means of float weights (any shape): codes uint8 in that shape, codebook float32 [k], ascending.

    With keep_zeros one of the k centroids is exactly zero and holds the zeros alone; the others share the nonzeros.
    rate > 0 lets a weight go to a centroid that is not the nearest if its code is shorter (entropy_constrained), and
    can leave fewer than k centroids.
    Raises ValueError for weights that are not finite, k outside 1..256, or more centroids than distinct values.
    """
    weights = np.asarray(weights, np.float32)
    if not keep_zeros:
        codebook, first = kmeans(weights, k, rate)
        return Codebook(np.searchsorted(first, weights, side="right").astype(np.uint8), codebook)
    codebook, first = kmeans(weights[weights != 0], k - 1, rate)
    zero = int(np.searchsorted(codebook, 0))
    codes = np.searchsorted(first, weights, side="right").astype(np.uint8)
    codes += codes >= zero  # makes room for the zero
    codes[weights == 0] = zero
    return Codebook(codes, np.insert(codebook, zero, 0))


def kmeans(values: np.ndarray, k: int, rate: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(centroids float32 [k], ascending; the smallest value of each cluster but the first, float32 [k - 1]).

    In one dimension clusters are intervals, so that on sorted values with prefix sums one iteration of Lloyd's
    algorithm costs O(k log n). The best of three starts is rearranged as long as that helps.
    Raises ValueError as cluster() does.
    """
    if not 1 <= k <= 256:
        raise ValueError(f"k must lie in 1..256, is {k}")
    ordered = np.sort(np.asarray(values, np.float32), axis=None)
    if ordered.size and not np.isfinite(ordered[[0, -1]]).all():  # NaN is sorted to the end
        raise ValueError("the weights hold NaN or infinite values")
    # np.diff would be zero for neighbouring subnormals where the processor flushes them.
    distinct = bool(ordered.size) + np.count_nonzero(ordered[1:] != ordered[:-1])
    if distinct < k:
        raise ValueError(f"{k} clusters need {k} distinct weights, there are {distinct}")
    x = ordered.astype(np.float64)
    offset = x.mean()
    x -= offset  # squares of what is far from zero would cancel
    sums = np.concatenate([[0.0], x.cumsum()])
    squares = float(x @ x)
    runs = [lloyd(x, sums, squares, start) for start in starts(x, k)]
    cuts, inertias = min(runs, key=lambda run: run[1][-1])
    if not np.diff(cuts).all():  # differences from the mean have become equal
        raise ValueError("the weights are of too different magnitudes to be told apart in double precision")
    while True:
        rearranged = rearrange(sums, cuts)
        better, after = lloyd(x, sums, squares, np.diff(sums[rearranged]) / np.diff(rearranged))
        if not after[-1] < inertias[-1] * (1 - TOLERANCE):
            break
        cuts, inertias = better, after
    if rate:
        cuts = entropy_constrained(x, sums, cuts, rate * inertias[-1] / x.size)
    means = np.diff(sums[cuts]) / np.diff(cuts) + offset
    return means.astype(np.float32), ordered[cuts[1:-1]]


def starts(x: np.ndarray, k: int) -> list[np.ndarray]:
    """Three ascending sets of centroids [k] for sorted values: quantiles, even steps, and Panter and Dite's.

    For many levels the best density of centroids is that of the values to the power 1/3 (Panter and Dite, 1951).
    """
    middles = (np.arange(k) + 0.5) / k
    edges = np.linspace(x[0], x[-1], BINS + 1)
    counts = np.diff(np.searchsorted(x, edges))
    mass = np.concatenate([[0.0], np.cbrt(counts).cumsum()])
    dense = np.interp(middles * mass[-1], mass, edges)
    return [x[(middles * x.size).astype(int)], x[0] + middles * (x[-1] - x[0]), dense]


def lloyd(x: np.ndarray, sums: np.ndarray, squares: float, centroids: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Lloyd's algorithm until no value changes its cluster: (cuts int [k + 1], inertia after every iteration).

    x: sorted float64 [n]; sums: its prefix sums [n + 1]; squares: the sum of its squares; centroids: ascending [k].
    Cluster i is x[cuts[i]:cuts[i + 1]]. An empty cluster's centroid moves to the value that lies worst.
    """
    cuts, inertias = None, []
    for _ in range(ITERATIONS):
        before = cuts
        inner = np.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2)
        cuts = np.concatenate([[0], inner, [x.size]])
        counts, totals = np.diff(cuts), np.diff(sums[cuts])
        full = counts > 0
        # Rounding can leave less than nothing where every cluster is a single value.
        inertias.append(max(0.0, squares - float((totals[full] ** 2 / counts[full]).sum())))
        if full.all() and np.array_equal(cuts, before):
            break
        centroids = np.divide(totals, counts, out=centroids.copy(), where=full)
        if not full.all():
            centroids = _refill(x, cuts, centroids, full)
    return cuts, inertias


def _refill(x, cuts, centroids, full) -> np.ndarray:
    """Moves one empty cluster's centroid to the value furthest from its own: always at an end of a cluster."""
    ends = np.concatenate([x[cuts[:-1][full]], x[cuts[1:][full] - 1]])
    worst = ends[np.argmax(np.abs(ends - np.tile(centroids[full], 2)))]
    centroids[np.flatnonzero(~full)[0]] = worst
    return np.sort(centroids)


def rearrange(sums: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The best cuts [k + 1] of all that put each inner cut at one of MOVES places between its neighbours' places now.

    Dynamic programming, O(k MOVES^2). It can hand one cluster from any place to any other, cuts in between moving up
    one by one; Lloyd's algorithm can't, and stays where it is.
    """
    steps = np.linspace(-1, 1, MOVES)[:, None]
    gaps = np.diff(cuts)
    places = cuts[1:-1] + np.rint(np.where(steps < 0, steps * gaps[:-1], steps * gaps[1:])).astype(int)
    gain, here, came_from = np.zeros(1), np.zeros(1, int), []
    for there in [*places.T, cuts[-1:]]:
        counts = there - here[:, None]
        # Without its constant part a cluster's inertia is minus the square of its sum by its count.
        new = (sums[there] - sums[here][:, None]) ** 2 / np.maximum(counts, 1)
        total = np.where(counts > 0, gain[:, None] + new, -np.inf)
        came_from.append(total.argmax(0))
        gain, here = total.max(0), there
    chosen, i = [cuts[-1]], came_from[-1][0]
    for column, origins in zip(places.T[::-1], came_from[-2::-1], strict=True):
        chosen.append(column[i])
        i = origins[i]
    return np.array([0, *chosen[::-1]])


def entropy_constrained(x: np.ndarray, sums: np.ndarray, cuts: np.ndarray, price: float) -> np.ndarray:
    """Cuts [at most k + 1] of locally least mean squared error + price * entropy in bits per value.

    Chou, Lookabaugh and Gray (1989): Lloyd's algorithm with the length of a centroid's code, -log2 of its share, added
    to the squared distance. In one dimension that moves the cut between two neighbours towards the rarer one.
    """
    best, lowest = cuts, np.inf
    while True:
        counts, totals = np.diff(cuts), np.diff(sums[cuts])
        centroids, lengths = totals / counts, -np.log2(counts / x.size)
        cost = (price * (counts * lengths).sum() - (totals**2 / counts).sum()) / x.size  # without its constant part
        if not cost < lowest - TOLERANCE * abs(cost):
            return best
        best, lowest = cuts, cost
        between = np.diff(centroids**2) + price * np.diff(lengths)
        inner = np.searchsorted(x, between / (2 * np.diff(centroids)))
        # A centroid whose code is too long for anyone loses its whole interval, and goes.
        cuts = np.unique(np.concatenate([[0], np.maximum.accumulate(inner), [x.size]]))


class Lookup(torch.autograd.Function):
    """weight = codebook[codes]; a centroid's gradient is the sum over its weights (Deep Compression, equation 3).

    Faster than autograd's own indexing by far, which matters for an embedding of millions of weights.
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

    def __init__(self, found: Codebook):
        super().__init__()
        # Not in the checkpoints: clustering the parent again gives the same codes.
        self.register_buffer("codes", torch.from_numpy(found.codes.astype(np.int32)), persistent=False)
        self.register_buffer("free", torch.from_numpy(found.codebook != 0), persistent=False)
        self.start = found.codebook

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.start.copy())

    def forward(self, codebook: torch.Tensor) -> torch.Tensor:
        return Lookup.apply(codebook * self.free, self.codes)

    def stored(self, codebook: torch.Tensor) -> Codebook:
        values = (codebook * self.free).cpu().numpy()
        return Codebook(self.codes.cpu().numpy().astype(np.uint8), values)


def choose_sizes(model: nn.Module, k: int, embedding_k: int | None = None) -> dict[str, int]:
    """The number of centroids by weight name for every Linear and Embedding; biases and LayerNorms are not clustered.

    A matrix of fewer than 4 k weights stays as it is: a codebook for it would hardly be smaller than the matrix.
    """
    sizes = {}
    for name, module in model.named_modules():
        if is_matrix(module):
            size = embedding_k if embedding_k and isinstance(module, nn.Embedding) else k
            if module.weight.numel() >= 4 * size:
                sizes[f"{name}.weight"] = size
    return sizes


def start_clustering(model: nn.Module, sizes: dict[str, int], pruned: tuple[str, ...] = (), rate: float = 0) -> None:
    """Puts k-means codebooks in the place of the named weights, in place; those of `pruned` keep their zeros.

    compress.quantize.fix_weights ends it. Raises UserError naming the weight that can't be clustered.
    """
    for name, k in sizes.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        try:
            found = cluster(module.weight.detach().numpy(), k, keep_zeros=name in pruned, rate=rate)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        parametrize.register_parametrization(module, "weight", Centroids(found))
