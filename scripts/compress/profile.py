"""Profiles: which backbone, which data, which budgets, which variants; and where each artifact lies.

A profile is one TOML file in scripts/profiles/. Every field is checked on load, and an unknown, missing
or mistyped key is an error that names the file and the key.
"""

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCRIPTS = Path(__file__).resolve().parents[1]
ROOT = SCRIPTS.parent
PROFILES = SCRIPTS / "profiles"
DEFAULT_PROFILE = "minilm"

Positive = Annotated[int, Field(gt=0)]


class UserError(Exception):
    """Something the user can mend: its text says what was wrong, where, and what to do."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Package(Strict):
    """An archive on the package registry, pinned to the byte."""

    requirement: Annotated[str, Field(pattern=r"^[\w.-]+==[\w.]+$")]
    file: Annotated[str, Field(pattern=r"^[\w.+-]+\.(whl|zip|tar\.gz)$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(Strict):
    """Something that comes from a package or from the Hugging Face hub."""

    package: Package | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def one_source(self):
        if (self.package is None) == (self.hub is None):
            raise ValueError("give exactly one of the keys 'package' and 'hub'")
        return self


class Backbone(Source):
    """The pretrained encoder: a folder inside a package, or a repository of the Hugging Face hub."""

    folder: str = ""  # where the model lies inside the package
    # Sizes that replace the config's own; the weights are then random and only the tokenizer is kept.
    random_config: dict[str, int] | None = None


class Data(Source):
    """Sentences with two or more classes: the rated snippets of a package, or a data set of the hub."""

    member: str = ""  # the inner archive that holds the snippets
    configuration: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    max_train: Positive | None = None  # keep only so many training sentences
    validation: Positive = 1000
    test: Positive = 2000
    domain_test: Positive = 500  # test sentences of every other domain; the rest is unlabelled text
    split_seed: int = 0
    max_length: Annotated[int, Field(ge=8, le=512)] = 128


class Measure(Strict):
    """Budgets of the measurement protocol; they are the same for every variant."""

    warmup: Positive = 30
    latency_calls: Positive = 300
    throughput_sentences: Positive = 512
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [8, 16, 32, 64]


class Untrained(Strict):
    """The pretrained encoder under a random classification head."""

    stage: ClassVar[str] = "finetune"
    chapter: ClassVar[str] = "baseline"
    trained: ClassVar[bool] = False
    name: str
    method: Literal["untrained"]
    parent: None = None


class Finetune(Strict):
    """The whole network trained on the labels."""

    stage: ClassVar[str] = "finetune"
    chapter: ClassVar[str] = "baseline"
    trained: ClassVar[bool] = True
    name: str
    method: Literal["finetune"]
    parent: None = None
    epochs: Annotated[float, Field(gt=0)]
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    evaluations_per_epoch: Positive = 2


Variant = Annotated[Untrained | Finetune, Field(discriminator="method")]


class Profile(Strict):
    name: str
    description: str
    baseline: str  # the variant that every other one is compared with
    backbone: Backbone
    data: Data
    measure: Measure = Measure()
    variants: Annotated[list[Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def names_fit(self):
        names = [variant.name for variant in self.variants]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"variants: the name {sorted(twice)[0]!r} is given twice")
        if self.baseline not in names:
            raise ValueError(f"baseline: no variant is called {self.baseline!r}")
        for variant in self.variants:
            if variant.parent is not None and variant.parent not in names:
                raise ValueError(f"variants: {variant.name}: its parent {variant.parent!r} is no variant")
        return self

    @property
    def build(self) -> Path:
        return ROOT / "build" / self.name

    @property
    def data_folder(self) -> Path:
        return self.build / "data"

    @property
    def backbone_folder(self) -> Path:
        return self.data_folder / "backbone"

    @property
    def results(self) -> Path:
        return ROOT / "results" / self.name

    @property
    def figures(self) -> Path:
        return ROOT / "figures" / self.name

    @property
    def report(self) -> Path:
        """The default profile's report is the paper; the others lie beside it."""
        return ROOT / "report" / ("" if self.name == DEFAULT_PROFILE else self.name)

    def model(self, run: str) -> Path:
        return self.build / "models" / run

    def predictions(self, run: str) -> Path:
        return self.build / "predictions" / f"{run}.npz"

    def record(self, run: str) -> Path:
        return self.build / "records" / f"{run}.json"


def run_name(variant: str, seed: int = 0, device: str = "cpu") -> str:
    """One name per variant, seed and device; the default seed and device leave the variant's name as it is."""
    return variant + (f"-seed{seed}" if seed else "") + (f"-{device}" if device != "cpu" else "")


def load_profile(name: str) -> Profile:
    """The profile scripts/profiles/<name>.toml; raises UserError naming the file and the key."""
    path = PROFILES / f"{name}.toml"
    known = sorted(p.stem for p in PROFILES.glob("*.toml"))
    if name not in known:
        raise UserError(f"unknown profile {name!r}: choose one of {', '.join(known)}")
    try:
        profile = Profile.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise UserError(explain(path, error)) from error
    if profile.name != name:
        raise UserError(f"{path}: name: is {profile.name!r}, must be the file's own name {name!r}")
    return profile


def explain(path: Path, error: ValidationError) -> str:
    """Pydantic's errors as 'file: key: what is wrong', one a line."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        lines.append(f"{path}: {key}: {item['msg']}")
    return "\n".join(lines)
