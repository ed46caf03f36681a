"""Profiles: which backbone, which data, which budgets and which variants; and where their files are.

A profile is one TOML file in scripts/profiles/. Every field is checked when it is loaded: an unknown, missing or
mistyped key is an error that names the file and the key.
"""

import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from compress.config.budgets import Measure, Serving
from compress.config.groups import Listing, list_variants
from compress.config.sources import Backbone, Data
from compress.config.strict import Strict, explain
from compress.config.variants import Cascade, Classifier, Mixed, Scope, Variant
from compress.errors import UserError
from compress.paths import DEFAULT_PROFILE, PROFILES, ROOT
from pydantic import Field, ValidationError, model_validator

FOLDERS = {"cache", "data", "logs", "work"}  # of a seed and of the plan, which no variant may be called


class Champion(Strict):
    """The rule that chooses a champion: the best variant for a goal that loses little validation F1."""

    goal: Literal["balanced", "fast", "tiny"]
    tolerance: Annotated[float, Field(ge=0)]  # largest loss, in F1 points
    scope: Scope = "core"

    @property
    def name(self) -> str:
        return f"champion-{self.goal}"


def on_device(folder: str, device: str) -> str:
    """The name of a folder of the build on a device: the CPU's has no suffix."""
    return folder if device == "cpu" else f"{folder}-{device}"


class Profile(Strict):
    name: str
    description: str
    baseline: str  # the variant that all others are compared with
    no_quality: Annotated[str, Field(min_length=1)] | None = None  # why quality is meaningless and stays empty
    # Rows of report/course.csv ("name device"), and the variants that repeat them.
    course: dict[Annotated[str, Field(pattern=r"^\S+ (cpu|cuda)$")], str] = {}
    backbone: Backbone
    student_backbone: Backbone | None = None  # a smaller encoder, of students with initialization = "encoder"
    data: Data
    teacher: str | None = None  # the profile whose baseline is the large teacher
    measure: Measure = Measure()
    serving: Serving | None = None
    champions: list[Champion] = []
    variants: Annotated[list[Variant], Field(min_length=1)]  # from list_variants(); parents before children

    @model_validator(mode="after")
    def names_exist(self):
        names = [variant.name for variant in self.variants]
        taken = [*names, *(rule.name for rule in self.champions), *(service.name for service in self.services)]
        if twice := {name for name in taken if taken.count(name) > 1}:
            raise ValueError(f"variants: the name {sorted(twice)[0]!r} is given twice")
        if reserved := FOLDERS & set(taken):
            raise ValueError(f"variants: the name {sorted(reserved)[0]!r} is that of a folder of the build")
        used = {"baseline": [self.baseline], "measure.shapes.variants": self.measure.shapes.variants}
        used["course"] = list(self.course.values())
        if serving := self.serving:
            used["serving"] = [name for name in (serving.parent, serving.ablated) if name]
            used["serving.variants"] = serving.variants
            used["serving.core.variants"] = serving.of_scope("core").variants
        for key, wanted in used.items():
            if unknown := set(wanted) - set(names):
                raise ValueError(f"{key}: no variant is called {sorted(unknown)[0]!r}")
        untimed = {variant.name for variant in self.variants if not variant.timed}
        if wrong := untimed & set(self.measure.shapes.variants):
            raise ValueError(f"measure.shapes.variants: {sorted(wrong)[0]!r} is not timed")
        for number, variant in enumerate(self.variants):
            for key, parent in zip(("parent", "second"), variant.parents, strict=False):
                if parent not in names[:number]:
                    raise ValueError(f"variants: {variant.name}: {key}: no variant before it is called {parent!r}")
            if getattr(variant, "counterpart", None) not in [None, *names]:
                raise ValueError(f"variants: {variant.name}: counterpart: no variant is called {variant.counterpart!r}")
        return self

    @model_validator(mode="after")
    def students_have_an_encoder(self):
        for variant in self.variants:
            if getattr(variant, "initialization", None) == "encoder" and self.student_backbone is None:
                raise ValueError(f"variants: {variant.name}: initialization: the profile has no student_backbone")
        return self

    @model_validator(mode="after")
    def large_teacher_is_known(self):
        for variant in self.everything:
            if variant.learns_from_large and self.teacher is None:
                raise ValueError(f'variants: {variant.name}: teacher: is "large", but the profile names no teacher')
        return self

    @model_validator(mode="after")
    def quality_is_needed(self):
        if self.no_quality and self.champions:
            raise ValueError("champions: are chosen by quality, which no_quality rules out")
        for variant in self.variants:
            if self.no_quality and isinstance(variant, Mixed | Cascade):
                raise ValueError(f"variants: {variant.name}: is chosen by quality, which no_quality rules out")
        if self.services and not self.data.package:
            raise ValueError("serving.tasks: need the rated snippets of data.package, which this profile lacks")
        return self

    @model_validator(mode="after")
    def core_is_complete(self):
        """Whatever a core variant, the baseline or the core's load test needs is core, too."""
        listed = {variant.name for variant in self.in_scope("core")}
        needed = {parent: variant.name for variant in self.in_scope("core") for parent in variant.parents}
        needed[self.baseline] = "baseline"
        if self.serving:
            core = self.serving.of_scope("core")
            served = filter(None, [self.serving.parent, core.ablated, *core.variants])
            needed |= dict.fromkeys(served, "serving")
        if missing := sorted(needed.keys() - listed):
            raise ValueError(f"core: must list {missing[0]!r}, which {needed[missing[0]]} needs")
        return self

    @property
    def encoders(self) -> dict[str, Backbone]:
        """The pretrained encoders by their key."""
        both = {"backbone": self.backbone, "student_backbone": self.student_backbone}
        return {key: source for key, source in both.items() if source}

    @property
    def longest_input(self) -> int:
        """The most word pieces that a model gets: of a text, or of an input whose shape is timed."""
        shapes = self.measure.shapes
        return max([self.data.max_length, *(shapes.lengths if shapes.variants else ())])

    @cached_property
    def services(self) -> list[Classifier]:
        """The classifiers of the service. The one for movies is the parent without further training."""
        serving = self.serving
        return [
            Classifier(
                name=f"service-{task}",
                method="service",
                parent=serving.parent,
                task=task,
                training=None if task == "movies" else serving.training,
            )
            for task in (serving.tasks if serving else ())
        ]

    @property
    def everything(self) -> list[Variant | Classifier]:
        """All variants, and after them the classifiers of the service."""
        return [*self.variants, *self.services]

    def in_scope(self, scope: Scope) -> list[Variant]:
        """The variants of a scope; full means all."""
        return [variant for variant in self.variants if scope in ("full", variant.scope)]

    def ancestors(self, name: str) -> set[str]:
        """The variant itself, its parents, their parents and so on."""
        parents = {variant.name: variant.parents for variant in self.everything}
        names, todo = set(), [name]
        while todo:
            names.add(todo[-1])
            todo += parents[todo.pop()]
        return names

    def is_trained(self, variant: Variant) -> bool:
        """True if the variant or one of its ancestors was trained on the task."""
        ancestors = self.ancestors(variant.name)
        return any(v.has_training for v in self.everything if v.name in ancestors)

    @property
    def file(self) -> Path:
        return PROFILES / f"{self.name}.toml"

    @property
    def build(self) -> Path:
        return ROOT / "build" / self.name

    def data_folder(self, seed: int) -> Path:
        """The splits of a seed and their card."""
        return self.build / "data" / f"seed{seed}"

    def encoder_folder(self, key: str) -> Path:
        """One of the pretrained encoders, by its key in `encoders`."""
        return self.build / "data" / key

    @property
    def backbone_folder(self) -> Path:
        return self.encoder_folder("backbone")

    def plan_folder(self, device: str = "cpu") -> Path:
        return self.build / on_device("plan", device)

    def seed_folder(self, seed: int = 0, device: str = "cpu") -> Path:
        return self.build / on_device(f"seed{seed}", device)

    def variant_folder(self, name: str, seed: int = 0, device: str = "cpu") -> Path:
        """The artifact of a variant or service, with its predictions, times and record."""
        return self.seed_folder(seed, device) / name

    def results_on(self, device: str) -> Path:
        """The CPU's results are the paper's; those of another device have a folder of their own."""
        return ROOT / "results" / self.name / ("" if device == "cpu" else device)

    @property
    def results(self) -> Path:
        return self.results_on("cpu")

    def teacher_file(self, seed: int) -> Path:
        """The logits of the large teacher on a seed's training, augmented and unlabelled sentences."""
        return logits_file(self.teacher, seed)

    @property
    def figures(self) -> Path:
        return ROOT / "figures" / self.name

    @property
    def report(self) -> Path:
        """The default profile's report is the paper; the others are in folders below it."""
        return ROOT / "report" / ("" if self.name == DEFAULT_PROFILE else self.name)


def logits_file(name: str, seed: int) -> Path:
    """Where the logits of a profile's baseline are stored for the students of other profiles."""
    return ROOT / "results" / name / "logits" / f"seed{seed}.npz"


def load_profile(name: str) -> Profile:
    """The profile scripts/profiles/<name>.toml; raises UserError naming the file and the key."""
    path = PROFILES / f"{name}.toml"
    known = sorted(p.stem for p in PROFILES.glob("*.toml"))
    if name not in known:
        raise UserError(f"unknown profile {name!r}: choose one of {', '.join(known)}")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        listing = Listing.model_validate({key: content.pop(key) for key in Listing.model_fields if key in content})
        variants = list_variants(path, listing)
        if unknown := set(listing.core or ()) - {variant.name for variant in variants}:
            raise UserError(f"{path}: core: no variant is called {sorted(unknown)[0]!r}")
        profile = Profile.model_validate(content | {"variants": variants})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise UserError(explain(path, error)) from error
    if profile.teacher is not None and profile.teacher not in set(known) - {name}:
        raise UserError(
            f"{path}: teacher: no other profile is called {profile.teacher!r}; there are {', '.join(known)}"
        )
    if profile.name != name:
        raise UserError(f"{path}: name: is {profile.name!r}, must be the name of the file, {name!r}")
    return profile
