"""The contract between a method and the build: what a method may use (Context) and what it returns (Made)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compress.config.profile import Profile
from compress.errors import UserError


@dataclass(frozen=True)
class Context:
    """What a method may use: the profile, its data, and folders."""

    profile: Profile
    seed: int
    device: str  # of measuring
    train_device: str
    threads: int  # of this build
    splits: object  # a DatasetDict with the columns text and label
    labels: list[str]
    parent: Path | None  # artifact folder
    baseline: Path  # artifact folder
    work: Path  # checkpoints and intermediate files; survives a killed build, removed after a finished one
    cache: Path  # shared by all variants of a seed


@dataclass(frozen=True)
class Made:
    """What a method returns: how to write the model's files, and facts that the files don't show."""

    write: Callable[[Path], None]
    parameters: int
    nonzero_parameters: int
    backend: str = "torch"
    train_seconds: float | None = None
    details: dict = field(default_factory=dict)  # JSON, for readers of the results
    runtime: dict = field(default_factory=dict)  # how the backend runs it; see compress.engines.predictor
    tokenizer: Path | None = None  # folder of its own tokenizer; None: the parent's


Maker = Callable[[object, Context], Made]  # (variant, context) -> Made


def made(model, write: Callable[[Path], None], **about) -> Made:
    """A Made that counts the parameters of a torch model with float weights.

    Raises UserError if a weight is not finite.
    """
    weights = list(model.parameters())
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(f"not finite: {', '.join(broken[:3])} ({len(broken)} of {len(weights)} tensors)")
    return Made(write, sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights), **about)
