"""How a profile lists its variants without repeating options: single ones, groups, and the grid.

A group's options hold for all its variants; a variant's own options come on top. The grid builds every model in every
engine and precision, named <model>-<engine>-<precision>. The variants of the chapters HW4 and HW6 come last, so that
those of the grid are listed with their chapter.
"""

from pathlib import Path
from typing import Annotated

from compress.config.strict import Strict, explain
from compress.config.variants import METHODS, Variant
from compress.errors import UserError
from pydantic import ConfigDict, Field, ValidationError

ENGINE_CHAPTERS = ("HW4", "HW6")
Table = dict[str, dict]  # options by name


class Common(Strict):
    """A table whose further keys are options that its entries share."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict:
        return self.model_extra


class Group(Common):
    variants: Table


class Precision(Common):
    models: list[str] | None = None  # default: the grid's


class Engine(Common):
    precisions: dict[str, Precision]


class Grid(Strict):
    models: Annotated[list[str], Field(min_length=1)]
    engines: dict[str, Engine]


class Listing(Strict):
    """The part of a profile's file that lists variants."""

    variants: Table = {}
    groups: dict[str, Group] = {}
    grid: Grid | None = None
    core: list[str] | None = None  # names of the variants in the main text; default: all

    def entries(self) -> list[tuple[str, dict]]:
        """(key in the file, all options) of every variant."""
        listed = [(f"variants.{name}", {"name": name} | own) for name, own in self.variants.items()]
        for key, group in self.groups.items():
            for name, own in group.variants.items():
                listed.append((f"groups.{key}.variants.{name}", {"name": name} | merged(group.options, own)))
        for key, engine in self.grid.engines.items() if self.grid else ():
            for precision, own in engine.precisions.items():
                options = merged(engine.options, own.options)
                for model in own.models or self.grid.models:
                    about = {"name": f"{model}-{key}-{precision}", "parent": model}
                    listed.append((f"grid.engines.{key}.precisions.{precision}", about | options))
        return listed


def merged(common: dict, own: dict) -> dict:
    """Both tables' options; the second's win, and tables in them are merged likewise."""
    both = [key for key in common.keys() & own if isinstance(common[key], dict) and isinstance(own[key], dict)]
    tables = {key: merged(common[key], own[key]) for key in both}
    return common | own | tables


def list_variants(path: Path, listing: Listing) -> list[Variant]:
    """The listed variants, checked one by one; raises UserError naming the file and the key of the first bad one."""
    variants = []
    for key, entry in listing.entries():
        method = entry.get("method")
        if not isinstance(method, str) or method not in METHODS:
            raise UserError(f"{path}: {key}.method: is {method!r}, must be one of {', '.join(METHODS)}")
        if "scope" in entry:
            raise UserError(f"{path}: {key}.scope: list the variant in `core` instead")
        if key.startswith(("variants.", "groups.")) and entry["name"] != key.rpartition(".")[2]:
            raise UserError(f"{path}: {key}.name: the variant's name is its key")
        scope = "core" if listing.core is None or entry["name"] in listing.core else "full"
        try:
            variants.append(METHODS[method].model_validate(entry | {"scope": scope}))
        except ValidationError as error:
            raise UserError(explain(path, error, key)) from error
    return sorted(variants, key=lambda variant: variant.chapter if variant.chapter in ENGINE_CHAPTERS else "")
