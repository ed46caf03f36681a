"""Profiles: which backbone, which data, which budgets, which variants; and where each artifact lies.

A profile is one TOML file in scripts/profiles/. Every field is checked on load, and an unknown, missing
or mistyped key is an error that names the file and the key.
"""

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from compress.errors import UserError
from compress.paths import DEFAULT_PROFILE, PROFILES, ROOT
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def exactly_one(model: Strict, *keys: str) -> Strict:
    """The model; raises ValueError unless exactly one of the keys is given."""
    if sum(getattr(model, key) is not None for key in keys) != 1:
        raise ValueError(f"give exactly one of the keys {', '.join(map(repr, keys))}")
    return model


class Package(Strict):
    """An archive on the package registry, pinned to the byte."""

    requirement: Annotated[str, Field(pattern=r"^[\w.-]+==[\w.]+$")]
    file: Annotated[str, Field(pattern=r"^[\w.+-]+\.(whl|zip|tar\.gz)$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(Strict):
    """Something that comes from a package, from the Hugging Face hub, or from a file or folder at hand."""

    package: Package | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+@[0-9a-f]{40}$")] | None = None  # owner/name@commit
    path: str | None = None  # relative to the repository's folder

    @model_validator(mode="after")
    def one_source(self):
        return exactly_one(self, "package", "hub", "path")


class Backbone(Source):
    """The pretrained encoder: a folder inside a package, a repository of the hub, or a folder in its format."""

    folder: str = ""  # where the model lies inside the package
    # Sizes that replace the config's own; the weights are then random and only the tokenizer is kept.
    random_config: dict[str, int] | None = None


class Data(Source):
    """Sentences with two or more classes.

    They are the rated snippets of a package, a data set of the hub, or a path: one CSV, TSV or JSON-lines file; a
    folder with train, validation and test files of that kind (the first is a must); or a folder in the hub's format.
    """

    member: str = ""  # the inner archive that holds the snippets
    configuration: str | None = None  # of a hub's data set that has several
    text_column: str | None = None  # else text or sentence, whichever there is
    label_column: str = "label"
    max_train: Positive | None = None  # keep only so many training sentences
    validation: Positive = 1000
    test: Positive = 2000
    domain_test: Positive = 500  # test sentences of every other domain; the rest is unlabelled text
    split_seed: int = 0
    max_length: Annotated[int, Field(ge=8, le=512)] = 128


class Shapes(Strict):
    """Latency over batch, length and threads, for a few variants: what sentences of the data don't show."""

    variants: list[str]
    batches: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 16, 64]
    lengths: Annotated[list[Annotated[int, Field(ge=2, le=512)]], Field(min_length=1)] = [16, 32, 64, 128, 256]
    threads: Annotated[list[Positive], Field(min_length=1)] = [1, 2]
    calls: Positive = 3


class Measure(Strict):
    """Budgets of the measurement protocol; they are the same for every variant."""

    warmup: Positive = 30
    latency_calls: Positive = 200
    throughput_sentences: Positive = 512
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [16, 32]
    cuda_batch_sizes: list[Positive] = [64, 128]  # that a GPU tries besides
    patience: Annotated[float, Field(ge=0)] = 20.0  # seconds per variant to wait for cores near each other
    shapes: Shapes = Shapes(variants=[])


class Training(Strict):
    """How long and how fast a network is trained; on a teacher's answers where the method has a teacher."""

    epochs: Annotated[float, Field(gt=0)]
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    evaluations_per_epoch: Positive = 1  # checkpoints, too
    temperature: Annotated[float, Field(gt=0)] = 2.0
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.9  # of the teacher's answers; the labels get the rest
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # if not what the model's config says
    freeze_embeddings: bool = False


class BaseVariant(Strict):
    """What every entry of [[variants]] has; the class variable is the CSV's column of the same name."""

    chapter: ClassVar[str]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    parent: str | None = None
    timed: bool = True  # false: its arithmetic at run time is that of another row, which says its speed
    cpu_only: ClassVar[str | None] = None  # why it does not run on a GPU, if it does not

    @property
    def has_training(self) -> bool:
        """True if the variant itself is trained, not its parents alone."""
        return getattr(self, "training", None) is not None


class Untrained(BaseVariant):
    """The pretrained encoder under a random classification head."""

    chapter: ClassVar[str] = "baseline"
    method: Literal["untrained"]
    parent: None = None


class Finetune(BaseVariant):
    """The whole network trained on the labels."""

    chapter: ClassVar[str] = "baseline"
    method: Literal["finetune"]
    parent: None = None
    training: Training


class HW1(BaseVariant):
    chapter: ClassVar[str] = "HW1"
    parent: str


NO_INT8 = "torch.ao's dynamic int8 has kernels for the CPU only"


class Int8(HW1):
    """Weights of 8 bits, stored packed; Linear layers run on integers, their inputs quantized as they come."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["int8-dynamic"]
    per_channel: bool
    embeddings: bool = True  # quantize the embedding tables too


class Int8Saved(HW1):
    """torch's own quantize_dynamic of the Linear layers, its state saved by torch.save: what the course did."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["int8-saved"]


class TorchAO(HW1):
    """The same by torchao's own modules."""

    cpu_only: ClassVar[str] = "torchao's modules are made and tried for the CPU here"
    method: Literal["torchao"]
    scheme: Literal["int8-weight-only", "int8-dynamic", "int4-weight-only"]


class Cast(HW1):
    """Weights stored as 16-bit floats, float32 again when loaded."""

    method: Literal["cast"]
    dtype: Literal["bfloat16", "float16"]


class Mixed(HW1):
    """8 or 4 bits per group of tensors, chosen by their sensitivity on validation."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["mixed-precision"]
    tolerance: Annotated[float, Field(ge=0)]  # F1 points that validation may lose


class QAT(HW1):
    """Quantization-aware training with the baseline as teacher."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["qat"]
    bits: Annotated[int, Field(ge=2, le=8)]
    training: Training


class Prune(HW1):
    """Single weights of the encoder's matrices set to zero, gradually with a teacher or at once without training."""

    method: Literal["prune"]
    criterion: Literal["magnitude", "fisher"] = "magnitude"
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    sparsity: Annotated[float, Field(gt=0, lt=1)]
    training: Training | None = None

    @model_validator(mode="after")
    def options_fit(self):
        if self.pattern == "2:4" and (self.sparsity, self.criterion) != (0.5, "magnitude"):
            raise ValueError('pattern: "2:4" is sparsity 0.5 by magnitude')
        if self.criterion == "fisher" and self.training is None:
            raise ValueError('criterion: "fisher" is taken from the gradients of a training, and there is none')
        return self


class Structured(HW1):
    """Heads and FFN neurons taken out, the least important first."""

    method: Literal["structured"]
    heads: Annotated[float, Field(gt=0, le=1)]  # share of all heads that stays
    intermediate_size: Positive  # FFN neurons that stay in every layer
    sentences: Positive = 1024  # of the training split, to rank them
    training: Training | None = None


class HW2(BaseVariant):
    chapter: ClassVar[str] = "HW2"
    parent: str


class Cluster(HW2):
    """k shared values per matrix, by k-means, then trained with the baseline as teacher if there is a training."""

    method: Literal["cluster"]
    k: Annotated[int, Field(ge=2, le=256)]
    rate: Annotated[float, Field(ge=0)] = 0.0  # price of a bit, in mean squared errors of plain k-means
    training: Training | None = None


class DeepCompression(HW2):
    """A parent clustered, a zero that pruning left among the k values, codebooks trained, everything entropy-coded."""

    method: Literal["deep-compression"]
    k: Annotated[int, Field(ge=2, le=256)]
    embedding_k: Annotated[int, Field(ge=2, le=256)] | None = None  # of the embedding tables, if not k
    rate: Annotated[float, Field(ge=0)] = 0.0
    adaptation: Training  # of the weights that are left, to clustered embeddings
    training: Training  # of the codebooks


class HW3(BaseVariant):
    """A smaller network, cut out of its parent; the baseline is the teacher."""

    chapter: ClassVar[str] = "HW3"
    parent: str


class Student(Strict):
    """The student's shape; a size that is left out is its parent's."""

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]  # of the parent, from 0
    hidden_size: Positive | None = None
    intermediate_size: Positive | None = None
    heads: Positive | None = None
    vocabulary: Positive | None = None  # pieces at most

    @model_validator(mode="after")
    def heads_fit(self):
        if self.hidden_size and self.heads and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class Distill(HW3):
    """Training on the teacher's answers and hidden states, or on the labels alone for comparison."""

    method: Literal["distill"]
    student: Student
    initialization: Literal["parent", "random"] = "parent"  # random: of student.layers only the number counts
    transfer: Annotated[list[Literal["train", "augmented", "unlabelled"]], Field(min_length=1)] = ["train"]
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0  # of the last layer's hidden states
    relation_weight: Annotated[float, Field(ge=0)] = 0.0  # of its attention and value relations
    training: Training

    @model_validator(mode="after")
    def options_fit(self):
        if len(set(self.transfer)) < len(self.transfer):
            raise ValueError("transfer: a part is given twice")
        if self.training.soft_weight == 0 and self.transfer != ["train"]:
            raise ValueError(
                'transfer: with soft_weight 0 only labelled rows teach anything: transfer must be ["train"]'
            )
        if self.student.vocabulary and (self.hidden_weight or self.relation_weight):
            raise ValueError(
                "student.vocabulary: with pieces of its own the student's tokens are not the teacher's: "
                "hidden_weight and relation_weight must be 0"
            )
        return self


class Cut(HW3):
    """A student cut out of its parent, and nothing trained."""

    method: Literal["cut"]
    student: Student

    @field_validator("student")
    @classmethod
    def same_pieces(cls, student):
        if student.vocabulary is not None:
            raise ValueError("vocabulary: a cut student keeps its parent's; fewer pieces are the method trim")
        return student


class Trim(HW3):
    """The parent with fewer word pieces, and nothing trained."""

    method: Literal["trim"]
    vocabulary: Positive


NO_ENGINE = "the engine's pinned package runs on the CPU only"


class HW4(BaseVariant):
    """The parent in an inference engine."""

    chapter: ClassVar[str] = "HW4"
    cpu_only: ClassVar[str] = NO_ENGINE
    parent: str


class Calibrated(HW4):
    calibration_sentences: Positive = 200  # of the training split


class Onnx(Calibrated):
    """An ONNX file for ONNX Runtime."""

    method: Literal["onnx"]
    precision: Literal["fp32", "fp16", "int8-dynamic", "int8-static"]
    fused: bool = True  # ONNX Runtime's own operators for BERT
    calibration: Literal["minmax", "percentile"] | None = None

    @model_validator(mode="after")
    def options_fit(self):
        static = self.precision == "int8-static"
        if static != (self.calibration is not None):
            raise ValueError('calibration: goes with precision "int8-static", and only with it')
        if static and self.fused:
            raise ValueError('fused: must be false for "int8-static": the quantizer leaves fused attention in float')
        if self.precision == "fp16" and not self.fused:
            raise ValueError('fused: must be true for "fp16"')
        return self


class OpenVINO(Calibrated):
    """OpenVINO's own format."""

    method: Literal["openvino"]
    compression: (
        Literal["fp16", "int8", "int8-smooth", "int8-accuracy", "int8-weights", "int4-weights", "codebook-weights"]
        | None
    ) = None
    execution: Literal["f32", "default"] = "f32"  # of what is not quantized; default: what the engine picks
    hint: Literal["LATENCY", "THROUGHPUT"] = "LATENCY"
    tolerance: Annotated[float, Field(gt=0)] = 1.0  # F1 points on validation that int8-accuracy may lose


class HW6(BaseVariant):
    chapter: ClassVar[str] = "HW6"
    parent: str


class OptimumOrt(HW6):
    """ONNX Runtime through optimum-onnx."""

    cpu_only: ClassVar[str] = NO_ENGINE
    method: Literal["optimum-onnx"]
    level: Literal["O1", "O2", "O3", "O4"] | None = None
    quantization: Literal["dynamic", "static"] | None = None
    twin: str  # the variant that does the same thing without Optimum

    @model_validator(mode="after")
    def one_thing(self):
        return exactly_one(self, "level", "quantization")


class OptimumIntel(HW6):
    """OpenVINO through optimum-intel."""

    cpu_only: ClassVar[str] = NO_ENGINE
    method: Literal["optimum-intel"]
    quantization: Literal["int8", "int8-weights", "int4-weights"]
    twin: str


class TorchRuntime(HW6):
    """The parent in PyTorch with another arithmetic, or compiled."""

    method: Literal["torch"]
    precision: Literal["fp32", "bf16", "int8"]
    compile: bool = False

    @property
    def cpu_only(self) -> str | None:
        return NO_INT8 if self.precision == "int8" else None


class Champion(HW6):
    """The best variant before it by a rule on validation F1 and measured cost; its parent is the baseline."""

    method: Literal["champion"]
    goal: Literal["balanced", "fast", "tiny"]
    tolerance: Annotated[float, Field(ge=0)]  # F1 points on validation that it may lose


class Service(BaseVariant):
    """A classifier of the five-model service: further trained on its task's labels, then static int8 as ONNX."""

    chapter: ClassVar[str] = "HW7"
    method: Literal["service"]
    parent: str
    task: str
    training: Training | None


Variant = Annotated[
    Untrained
    | Finetune
    | Int8
    | Int8Saved
    | TorchAO
    | Cast
    | Mixed
    | QAT
    | Prune
    | Structured
    | Cluster
    | DeepCompression
    | Distill
    | Cut
    | Trim
    | Onnx
    | OpenVINO
    | OptimumOrt
    | OptimumIntel
    | TorchRuntime
    | Champion,
    Field(discriminator="method"),
]


class Load(Strict):
    """Budgets of the HTTP benchmark; rates are shares of the rate at which the variant was saturated."""

    connections: Positive = 32
    saturation_seconds: Annotated[float, Field(gt=0)] = 5.0
    saturation_repeats: Positive = 5  # a machine drifts: the servers take turns so often
    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        0.2,
        0.4,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
        1.5,
        3.0,
    ]
    responses: Positive = 1000  # at least so many behind any percentile of an open-loop run
    least_seconds: Annotated[float, Field(gt=0)] = 2.0  # of an open-loop run
    repeats: Positive = 2  # of an open-loop run
    deadline_ms: Positive = 500
    p99_ms: Positive = 130  # MLPerf's limit for BERT in a server: what counts as the largest sustained rate


class Serving(Strict):
    """HW7: five small classifiers for one service, and which variants the HTTP benchmark serves."""

    tasks: list[Literal["movies", "amazon", "tweets", "nyt", "domain"]] = []  # of the rated snippets
    parent: str | None = None  # what the five are further trained from
    training: Training | None = None
    variants: Annotated[list[str], Field(min_length=1)]
    ablated: str  # the variant that is also served without batching, without sorting, and in one lane of all threads
    load: Load = Load()

    @model_validator(mode="after")
    def tasks_fit(self):
        if self.tasks and (self.parent is None or self.training is None):
            raise ValueError("tasks: need the keys parent and training, too")
        return self


class Profile(Strict):
    name: str
    description: str
    baseline: str  # the variant that every other one is compared with
    backbone: Backbone
    data: Data
    measure: Measure = Measure()
    serving: Serving | None = None
    no_quality: Annotated[str, Field(min_length=1)] | None = None  # why answers mean nothing: quality stays empty
    course: dict[str, str] = {}  # rows of report/course.csv by name, and the variants that repeat them
    variants: Annotated[list[Variant], Field(min_length=1)]

    @field_validator("variants", mode="before")
    @classmethod
    def one_per_parent(cls, entries):
        """An entry with `parents` for `parent` stands for one variant each; {parent} in its name is filled in."""
        if not isinstance(entries, list):
            return entries
        found = []
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("parents"), list):
                found.append(entry)
                continue
            if "{parent}" not in str(entry.get("name")):
                raise ValueError(f"{entry.get('name')}: name: must hold {{parent}} where parents are given")
            rest = {key: value for key, value in entry.items() if key != "parents"}
            for parent in entry["parents"]:
                found.append(rest | {"name": entry["name"].replace("{parent}", str(parent)), "parent": parent})
        return found

    @model_validator(mode="after")
    def names_fit(self):
        names = [variant.name for variant in self.variants]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"variants: the name {sorted(twice)[0]!r} is given twice")
        if self.baseline not in names:
            raise ValueError(f"baseline: no variant is called {self.baseline!r}")
        if unknown := set(self.measure.shapes.variants) - set(names):
            raise ValueError(f"measure.shapes.variants: no variant is called {sorted(unknown)[0]!r}")
        served = [self.serving.parent, self.serving.ablated, *self.serving.variants] if self.serving else []
        if unknown := set(served) - {None, *names}:
            raise ValueError(f"serving: no variant is called {sorted(unknown)[0]!r}")
        if self.services and not self.data.package:
            raise ValueError("serving.tasks: are made of the rated snippets of data.package, which this profile lacks")
        if unknown := set(self.course.values()) - set(names):
            raise ValueError(f"course: no variant is called {sorted(unknown)[0]!r}")
        for variant in self.variants:
            if self.no_quality and isinstance(variant, Mixed | Champion):
                raise ValueError(f"variants: {variant.name}: is chosen by quality, which no_quality rules out")
            # Parents come first: a stage makes its variants in the profile's order.
            if variant.parent is not None and variant.parent not in names[: names.index(variant.name)]:
                raise ValueError(f"variants: {variant.name}: parent: no variant before it is {variant.parent!r}")
            if getattr(variant, "twin", None) not in [None, *names]:
                raise ValueError(f"variants: {variant.name}: twin: no variant is called {variant.twin!r}")
        return self

    def ancestors(self, name: str) -> set[str]:
        """The variant itself, its parent, the parent's parent and so on."""
        parents = {variant.name: variant.parent for variant in self.variants}
        found = set()
        while name is not None:
            found.add(name)
            name = parents[name]
        return found

    def is_trained(self, variant: BaseVariant) -> bool:
        """True if the variant or one of its ancestors was trained on the task."""
        ancestors = self.ancestors(variant.parent) if variant.parent else set()
        family = [variant, *(v for v in self.variants if v.name in ancestors)]
        return any(v.has_training for v in family)

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
        return self.results_on("cpu")

    def results_on(self, device: str) -> Path:
        """The CPU's rows are the paper's; those of another device lie in a folder of their own."""
        return ROOT / "results" / self.name / ("" if device == "cpu" else device)

    @property
    def figures(self) -> Path:
        return ROOT / "figures" / self.name

    @property
    def report(self) -> Path:
        """The default profile's report is the paper; the others lie beside it."""
        return ROOT / "report" / ("" if self.name == DEFAULT_PROFILE else self.name)

    @property
    def services(self) -> list[str]:
        """Names of the five classifiers' models."""
        return [f"service-{task}" for task in self.serving.tasks] if self.serving else []

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
