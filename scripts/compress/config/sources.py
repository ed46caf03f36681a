"""Where the data and the pretrained encoder of a profile come from, and how the data are split."""

from typing import Annotated, ClassVar

from compress.config.strict import Positive, Strict, exactly_one
from pydantic import Field, model_validator


class Package(Strict):
    """An archive in the package registry, pinned by its checksum."""

    requirement: Annotated[str, Field(pattern=r"^[\w.-]+==[\w.]+$")]
    file: Annotated[str, Field(pattern=r"^[\w.+-]+\.(whl|zip|tar\.gz)$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(Strict):
    """A package, a repository of the Hugging Face hub, or a local file or folder."""

    kinds: ClassVar[tuple[str, ...]] = ("package", "hub", "path")

    package: Package | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+@[0-9a-f]{40}$")] | None = None  # owner/name@commit
    path: Annotated[str, Field(min_length=1)] | None = None  # relative to the root of the clone

    @model_validator(mode="after")
    def one_source(self):
        return exactly_one(self, *self.kinds)


class Backbone(Source):
    """The pretrained encoder: a folder inside a package, a repository of the hub, or a folder in the hub's format.

    A large one may be a zip archive in parts, each in a package of its own.
    """

    kinds: ClassVar[tuple[str, ...]] = ("package", "parts", "hub", "path")

    parts: Annotated[list[Package], Field(min_length=1)] | None = None  # in the order of their numbers .001, .002...
    member: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None  # the name of the archive that the parts make
    folder: str = ""  # of the model inside the package, or inside the archive
    # Sizes that replace those of the config. The weights are then random; only the tokenizer is used.
    random_config: dict[str, int | float] | None = None

    @model_validator(mode="after")
    def parts_have_a_name(self):
        if (self.parts is None) != (self.member is None):
            raise ValueError("member: the name of the archive that the parts make; give both or none")
        return self


class Data(Source):
    """Sentences with two or more classes.

    The source is a package with rated snippets, a data set of the hub, or a path. A path is a CSV, TSV or JSON-lines
    file; a folder with one such file, or with train, validation and test files (only train is required); or a folder in
    the hub's format.
    """

    member: str = ""  # the archive inside the package that holds the snippets
    configuration: str | None = None  # for a data set of the hub that has several
    text_column: str | None = None  # default: text or sentence, whichever exists
    label_column: str = "label"
    max_train: Positive | None = None  # training sentences to keep
    validation: Positive = 1000
    test: Positive = 2000
    domain_test: Positive = 1500  # at least as many test sentences per out-of-domain set, of whole documents
    split_seed: int = 0  # of the shuffle that fixes every seed's test sentences
    older_split_seeds: list[int] = []  # earlier splits that settings were chosen on; their overlap is counted
    max_length: Annotated[int, Field(ge=8, le=512)] = 128

    @model_validator(mode="after")
    def older_splits_are_known(self):
        if self.older_split_seeds and not self.package:
            raise ValueError("older_split_seeds: only the rated snippets of a package have had other splits")
        return self
