"""One-dimensional k-means of a network's weights. Pure functions on NumPy arrays.

Weights are sorted once, so that clusters are intervals: cluster i is x[cuts[i]:cuts[i + 1]] with cuts int [k + 1], and
prefix sums give the sum of every cluster.
"""

import numpy as np
from compress.storage.packed import Codebook

BINS = 4096  # of the histogram behind one of the initializations
MOVES = 33  # positions tried for a cut when clusters are rearranged; odd, so that it may stay
TOLERANCE = 1e-6  # rounds end when the inertia decreases by a smaller share
ITERATIONS = 10_000  # far more than Lloyd needs; a limit in case rounding errors make it cycle


def cluster_weights(weights: np.ndarray, k: int, keep_zeros: bool = False, rate: float = 0.0) -> Codebook:
    """k-means of float weights (any shape): codes uint8 in that shape, codebook float32 [k], ascending.

    With keep_zeros one of the k centroids is exactly zero and holds only the zeros; the others share the nonzeros.
    With rate > 0 a weight may go to a centroid that is not the nearest if its code is shorter (entropy_constrained),
    which can leave fewer than k centroids.
    Raises ValueError for weights that are not finite, k outside 1..256, or more centroids than distinct values.
    """
    weights = np.asarray(weights, np.float32)
    if not keep_zeros:
        codebook, first = kmeans(weights, k, rate)
        return Codebook(np.searchsorted(first, weights, side="right").astype(np.uint8), codebook)
    codebook, first = kmeans(weights[weights != 0], k - 1, rate)
    zero = int(np.searchsorted(codebook, 0))
    codes = np.searchsorted(first, weights, side="right").astype(np.uint8)
    codes += codes >= zero  # inserts the zero's code
    codes[weights == 0] = zero
    return Codebook(codes, np.insert(codebook, zero, 0))


def kmeans(values: np.ndarray, k: int, rate: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(centroids float32 [k], ascending; the smallest value of each cluster but the first, float32 [k - 1]).

    One iteration of Lloyd's algorithm costs O(k log n). The best of three initializations is rearranged as long as the
    inertia decreases. Raises ValueError as cluster_weights() does.
    """
    if not 1 <= k <= 256:
        raise ValueError(f"k must lie in 1..256, is {k}")
    ordered = np.sort(np.asarray(values, np.float32), axis=None)
    if ordered.size and not np.isfinite(ordered[[0, -1]]).all():  # NaN sorts to the end
        raise ValueError("the weights hold NaN or infinite values")
    # np.diff would be zero for neighbouring subnormals if the processor flushes them to zero.
    distinct = bool(ordered.size) + np.count_nonzero(ordered[1:] != ordered[:-1])
    if distinct < k:
        raise ValueError(f"{k} clusters need {k} distinct weights, there are {distinct}")
    x = ordered.astype(np.float64)
    offset = x.mean()
    x -= offset  # squares of values far from zero would cancel
    sums = np.concatenate([[0.0], x.cumsum()])
    squares = float(x @ x)
    runs = [lloyd(x, sums, squares, start) for start in initial_centroids(x, k)]
    cuts, inertias = min(runs, key=lambda run: run[1][-1])
    if not np.diff(cuts).all():  # differences from the mean have become equal
        raise ValueError("the weights are of too different magnitudes for double precision")
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


def initial_centroids(x: np.ndarray, k: int) -> list[np.ndarray]:
    """Three ascending sets of centroids [k] for sorted values: quantiles, equal steps, and Panter and Dite's density.

    For many levels the optimal density of centroids is the values' density to the power 1/3 (Panter and Dite, 1951).
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
    An empty cluster's centroid moves to the value with the largest error.
    """
    cuts, inertias = None, []
    for _ in range(ITERATIONS):
        before = cuts
        inner = np.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2)
        cuts = np.concatenate([[0], inner, [x.size]])
        counts, totals = np.diff(cuts), np.diff(sums[cuts])
        full = counts > 0
        # Rounding can give a negative inertia if every cluster is a single value.
        inertias.append(max(0.0, squares - float((totals[full] ** 2 / counts[full]).sum())))
        if full.all() and np.array_equal(cuts, before):
            break
        centroids = np.divide(totals, counts, out=centroids.copy(), where=full)
        if not full.all():
            centroids = _refill(x, cuts, centroids, full)
    return cuts, inertias


def _refill(x, cuts, centroids, full) -> np.ndarray:
    """Moves one empty cluster's centroid to the value furthest from its centroid, which is at an end of a cluster."""
    ends = np.concatenate([x[cuts[:-1][full]], x[cuts[1:][full] - 1]])
    worst = ends[np.argmax(np.abs(ends - np.tile(centroids[full], 2)))]
    centroids[np.flatnonzero(~full)[0]] = worst
    return np.sort(centroids)


def rearrange(sums: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The best cuts [k + 1] with each inner cut at one of MOVES positions between its two neighbours.

    Dynamic programming, O(k MOVES^2). Shifting all cuts in between, it can move a cluster from any region to any
    other, which Lloyd's algorithm can't: it ends in a local minimum.
    """
    steps = np.linspace(-1, 1, MOVES)[:, None]
    gaps = np.diff(cuts)
    places = cuts[1:-1] + np.rint(np.where(steps < 0, steps * gaps[:-1], steps * gaps[1:])).astype(int)
    gain, here, came_from = np.zeros(1), np.zeros(1, int), []
    for there in [*places.T, cuts[-1:]]:
        counts = there - here[:, None]
        # Up to a constant, a cluster's inertia is minus its squared sum divided by its count.
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
    """Cuts [at most k + 1] of locally minimal mean squared error + price * entropy in bits per value.

    Chou, Lookabaugh and Gray (1989): Lloyd's algorithm with the length of a centroid's code, -log2 of its share, added
    to the squared distance. In one dimension this moves the cut between two neighbours towards the rarer one.
    x, sums, cuts: as in lloyd(); price: squared error per bit.
    """
    best, lowest = cuts, np.inf
    while True:
        counts, totals = np.diff(cuts), np.diff(sums[cuts])
        centroids, lengths = totals / counts, -np.log2(counts / x.size)
        cost = (price * (counts * lengths).sum() - (totals**2 / counts).sum()) / x.size  # up to a constant
        if not cost < lowest - TOLERANCE * abs(cost):
            return best
        best, lowest = cuts, cost
        between = np.diff(centroids**2) + price * np.diff(lengths)
        inner = np.searchsorted(x, between / (2 * np.diff(centroids)))
        # A centroid whose code is too long loses its whole interval and disappears.
        cuts = np.unique(np.concatenate([[0], np.maximum.accumulate(inner), [x.size]]))
