"""Criteria of gradual pruning: the score of each weight, of which the lowest are dropped."""

from collections import defaultdict
from functools import partial

import torch

LAMBDA = 1e-7  # damping of F, as in the paper
BLOCK = 50  # weights at most
INVERSE_VALUES = 2**29  # of all blocks, 2 GiB: blocks of 48 for MiniLM, of 6 for BERT base
RANK = 8  # gradients per update of F^-1, which reads and writes all of it; kept until then: 2.7 GB for BERT base


def magnitude(weights: dict[str, torch.Tensor], _optimizer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().abs() for name, weight in weights.items()}


def fisher(weights: dict[str, torch.Tensor], optimizer) -> dict[str, torch.Tensor]:
    """w^2 F / 2, the saliency of Optimal Brain Damage (LeCun et al., 1990) with a Fisher diagonal F for the Hessian's.

    F is Adam's second moment, the running mean of squared mini-batch gradients as the optimizer receives them, clipped
    to norm 1. It stands for the mean of squared gradients per sentence; a common factor does not change the ranking.
    """
    state = optimizer.state
    return {name: weight.detach() ** 2 * state[weight]["exp_avg_sq"] / 2 for name, weight in weights.items()}


class Criterion:
    """A criterion without memory: score(weights, optimizer) of the moment."""

    has_memory = False  # sums that no checkpoint holds

    def __init__(self, score, weights: dict[str, torch.Tensor], m: int):
        self.score = score

    def observe(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes the gradients of one step; there are m steps before the first masks."""

    def scores(self, weights, masks, optimizer) -> dict[str, torch.Tensor]:
        # Dropped weights get the lowest score of all, so that they are never chosen to return.
        return {name: score.masked_fill(~masks[name], -1.0) for name, score in self.score(weights, optimizer).items()}

    def change(self, weights, old, new) -> None:
        """Prepares the weights for new masks, in place."""


class BlockFisher(Criterion):
    """w_i^2 / (2 [F^-1]_ii), and the optimal update of the remaining weights (oBERT: Kurtic et al., 2022).

    F = lambda I + 1/m sum g g^T for blocks of neighbours in a row; g are the training's own mini-batch gradients,
    clipped to norm 1 as for `fisher`, so that both cost the same backward passes. m is their number at the first masks;
    the sum goes on, so that the damping loses weight as gradients accumulate.
    """

    has_memory = True

    def __init__(self, weights, m):
        self.m, self.gradients, self.inverse = m, defaultdict(list), {}
        largest = max(1, min(BLOCK, INVERSE_VALUES // sum(w.numel() for w in weights.values())))
        for name, weight in weights.items():
            size = max(b for b in range(1, largest + 1) if weight.shape[1] % b == 0)
            self.inverse[name] = torch.diag_embed((weight != 0).view(-1, size) / LAMBDA)

    def observe(self, weights):
        for name, weight in weights.items():
            self.gradients[name].append(weight.grad.detach().clone())
            if len(self.gradients[name]) == RANK:
                self.absorb(name)

    def absorb(self, name):
        P = self.inverse[name]
        if gradients := self.gradients.pop(name, None):
            add_gradients(P, torch.stack([g.view(P.shape[:2]) for g in gradients], 1), self.m)

    def score(self, weights, _optimizer):
        for name in weights:
            self.absorb(name)
        diagonals = {name: P.diagonal(dim1=1, dim2=2).reshape(weights[name].shape) for name, P in self.inverse.items()}
        return {name: weight.detach() ** 2 / (2 * diagonals[name]) for name, weight in weights.items()}

    def change(self, weights, old, new):
        for name, P in self.inverse.items():
            remove_weights(weights[name].detach().view(P.shape[:2]), P, (old[name] & ~new[name]).view(P.shape[:2]))


def add_gradients(P: torch.Tensor, G: torch.Tensor, m: int) -> None:
    """P = F^-1 when F gains 1/m G^T G, in place, by Woodbury's identity (Kurtic et al., 2022, for k = 1).

    P: [blocks, B, B]; G: k gradients [blocks, k, B].
    """
    PG = P @ G.mT
    P.sub_(PG @ torch.linalg.solve(m * torch.eye(G.shape[1], device=G.device) + G @ PG, PG.mT))


def remove_weights(w: torch.Tensor, P: torch.Tensor, gone: torch.Tensor) -> None:
    """Optimal Brain Surgeon (Hassibi and Stork, 1993): removes weights one after the other, in place.

    Weight q becomes zero and the others move by -w_q P e_q / P_qq; then P becomes the inverse of F without row and
    column q. Together the steps are the optimal update for all removed weights. w, gone (boolean): [blocks, B];
    P: [blocks, B, B].
    """
    for q in range(w.shape[1]):
        i = gone[:, q].nonzero().squeeze(1)
        p = P[i, :, q]
        p_by_pqq = p / p[:, q, None]
        w[i] -= w[i, q, None] * p_by_pqq
        P[i] -= p[:, :, None] * p_by_pqq[:, None]


class Movement(Criterion):
    """Movement pruning (Sanh et al., 2020): S = -sum dL/dW W over the steps; only the ranking counts.

    The straight-through estimator also scores dropped weights, by the value that they had: they can return with it,
    unless they were zero before the training. One ranking for all matrices, as for the other criteria.
    """

    has_memory = True

    def __init__(self, weights, m):
        self.S = {name: torch.zeros_like(w).masked_fill(w == 0, -torch.inf) for name, w in weights.items()}
        self.dropped = {name: torch.zeros_like(weight) for name, weight in weights.items()}  # their values

    def observe(self, weights):
        for name, weight in weights.items():
            self.S[name] -= weight.grad * (weight.detach() + self.dropped[name])

    def scores(self, weights, masks, optimizer):
        return self.S

    def change(self, weights, old, new):
        for name, weight in weights.items():
            values = torch.where(old[name], weight.detach(), self.dropped[name])
            weight.detach().copy_(values)
            self.dropped[name] = values * ~new[name]


CRITERIA = {
    "magnitude": partial(Criterion, magnitude),
    "fisher": partial(Criterion, fisher),
    "block-fisher": BlockFisher,
    "movement": Movement,
}
