"""Unstructured pruning: which weights are set to zero, and when during a training."""

import numpy as np
import torch
from compress.methods.criteria import CRITERIA, magnitude
from compress.methods.networks import encoder_matrices
from torch import nn
from transformers import TrainerCallback


def sparsity_of(weights: dict[str, torch.Tensor]) -> float:
    """The share of zeros in all the weights together."""
    return 1 - sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def global_masks(scores: dict[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Boolean masks that drop exactly round(sparsity * N) of all N weights: those with the lowest scores overall."""
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    keep = torch.ones(len(flat), dtype=torch.bool)
    drop = round(sparsity * len(flat))
    keep[torch.from_numpy(np.argpartition(flat.cpu().numpy(), drop - 1)[:drop]) if drop else []] = False
    parts = keep.to(flat.device).split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def two_of_four_masks(scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Masks that keep the two largest scores of every four neighbours along the input (Mishra et al., 2021)."""
    masks = {}
    for name, score in scores.items():
        groups = score.reshape(-1, 4)
        kept = groups.topk(2, dim=1).indices
        masks[name] = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True).view_as(score)
    return masks


@torch.no_grad()
def set_zeros(weights: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> None:
    """Sets the weights that the masks drop to zero, in place."""
    for name, weight in weights.items():
        weight.mul_(masks[name])


def cubic_sparsity(start: float, end: float, progress: float) -> float:
    """end + (start - end) (1 - progress)^3, Zhu and Gupta (2017), equation 1; progress is clipped to 0..1."""
    return end + (start - end) * (1 - min(max(progress, 0.0), 1.0)) ** 3


class GradualPruning(TrainerCallback):
    """Raises the sparsity from `start` to `end` along the cubic schedule, then holds it while the network recovers.

    The schedule takes the share `ramp` of the steps; masks are chosen every `every` steps. After each step the dropped
    weights are set to zero again. With the pattern 2:4 the masks hold from the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: str,
        start: float,
        end: float,
        pattern: str = "unstructured",
        every: int = 16,
        ramp: float = 0.6,
    ):
        self.model, self.name, self.pattern = model, criterion, pattern
        self.start, self.end, self.every, self.ramp = start, end, every, ramp
        self.masks: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, **_):
        weights = encoder_matrices(self.model)
        if self.pattern == "2:4":
            self.masks = two_of_four_masks(magnitude(weights, None))
        else:  # zeros stay zero, also those of a resumed checkpoint
            self.masks = {name: weight != 0 for name, weight in weights.items()}
        set_zeros(weights, self.masks)
        self.criterion = CRITERIA[self.name](weights, self.every)

    def last_change(self, state) -> int:
        """The step whose masks are final."""
        return max(int(self.ramp * state.max_steps), 1)

    def on_step_end(self, args, state, control, **_):
        if self.criterion.has_memory and state.global_step < self.last_change(state):
            control.should_save = False  # a checkpoint would lack the criterion's sums

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step < self.last_change(state):
            self.criterion.observe(encoder_matrices(self.model))

    def on_optimizer_step(self, args, state, control, optimizer=None, **_):
        weights = encoder_matrices(self.model)
        step = state.global_step + 1
        last = self.last_change(state)
        if self.pattern != "2:4" and ((step % self.every == 0 and step < last) or step == last):
            scores = self.criterion.scores(weights, self.masks, getattr(optimizer, "optimizer", optimizer))
            masks = global_masks(scores, cubic_sparsity(self.start, self.end, step / last))
            self.criterion.change(weights, self.masks, masks)
            self.masks = masks
        set_zeros(weights, self.masks)
