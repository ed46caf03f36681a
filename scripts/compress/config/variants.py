"""One class of options per method. A variant is a method, its options, and the parent that it is built from.

To add a method, write its class here, add the class to OPTIONS, and write the function that builds it: `script` is
the numbered script that offers the method, `module` the module of compress.methods with the function.
"""

from typing import Annotated, ClassVar, Literal, get_args

from compress.config.strict import Positive, Strict, exactly_one
from pydantic import AfterValidator, Field, field_validator, model_validator

Scope = Literal["core", "full"]  # core: in the paper's main text; full: in the appendix
Chapter = Literal["baseline", "HW1", "HW2", "HW3", "HW4", "HW6", "HW7"]
Family = Literal["baseline", "quantization", "pruning", "low-rank", "clustering", "distillation", "engine", "service"]
Share = Annotated[float, Field(gt=0, le=1)]
DISPLAY = {"timed", "scope", "chapter", "family"}  # fields of a variant that don't decide what is built
NO_INT8 = "torch.ao's dynamic int8 has kernels for the CPU only"
NO_ENGINE = "the engine's pinned package runs on the CPU only"


class Training(Strict):
    """Duration and speed of a training; the loss is on the teacher's logits where the method has a teacher."""

    epochs: Annotated[float, Field(gt=0)]
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    evaluations_per_epoch: Positive = 1  # each also writes a checkpoint
    temperature: Annotated[float, Field(gt=0)] = 2.0
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.9  # of the teacher's logits; the labels have the rest
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # default: as in the model's config
    freeze_embeddings: bool = False
    # What a method with a teacher trains on; only train has labels.
    transfer: Annotated[list[Literal["train", "augmented", "unlabelled"]], Field(min_length=1)] = ["train"]
    teacher: Literal["baseline", "large"] = "baseline"  # large: the logits of the profile's teacher

    @model_validator(mode="after")
    def transfer_fits(self):
        if len(set(self.transfer)) < len(self.transfer):
            raise ValueError("transfer: lists a part twice")
        if self.soft_weight == 0 and self.transfer != ["train"]:
            raise ValueError('transfer: must be ["train"] if soft_weight is 0, because only train has labels')
        if self.soft_weight == 0 and self.teacher != "baseline":
            raise ValueError("teacher: has no effect if soft_weight is 0")
        return self


def without_teacher(training: Training) -> Training:
    """The training; raises ValueError if it sets options that need a teacher."""
    if unused := training.model_fields_set & {"transfer", "teacher", "temperature", "soft_weight"}:
        raise ValueError(f"{', '.join(sorted(unused))}: only for methods with a teacher")
    return training


LabelTraining = Annotated[Training, AfterValidator(without_teacher)]


class Variant(Strict):
    """The fields that all variants have; the methods' classes add their options."""

    script: ClassVar[str]
    module: ClassVar[str]
    cpu_only: ClassVar[str | None] = None  # the reason, if the method does not run on a GPU

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    method: str
    parent: str | None = None
    chapter: Chapter
    family: Family
    scope: Scope = "core"
    timed: bool = True  # false: the same arithmetic as another row, which has the times
    threads: Positive | None = None  # of the build; default: one

    @property
    def parents(self) -> list[str]:
        """The variants that it is built from, the first one being `parent`."""
        return [self.parent] if self.parent else []

    @property
    def trainings(self) -> list[Training]:
        """Those of the variant itself, not of its ancestors."""
        return [value for _, value in self if isinstance(value, Training)]

    @property
    def has_training(self) -> bool:
        return bool(self.trainings)

    @property
    def learns_from_large(self) -> bool:
        """Whether its own training uses the logits of the large teacher."""
        return any(training.teacher == "large" for training in self.trainings)

    @property
    def recipe(self) -> dict:
        """The fields that decide what is built, as JSON values."""
        return self.model_dump(mode="json", exclude=DISPLAY)


class Derived(Variant):
    """A variant that is built from another one."""

    parent: str


class Baseline(Variant):
    """A variant without a parent."""

    script: ClassVar[str] = "01_finetune.py"
    module: ClassVar[str] = "baseline"
    chapter: Chapter = "baseline"
    family: Family = "baseline"
    parent: None = None


class Untrained(Baseline):
    """The pretrained encoder with a random classification head."""

    method: Literal["untrained"]


class Finetune(Baseline):
    """The whole network, trained on the labels."""

    method: Literal["finetune"]
    training: LabelTraining


class Tfidf(Baseline):
    """Logistic regression on tf-idf of word pieces and their bigrams."""

    module: ClassVar[str] = "no_encoder"
    cpu_only: ClassVar[str] = NO_ENGINE
    method: Literal["tfidf"]
    has_training: ClassVar[bool] = True  # scikit-learn's, which has no options here


class Static(Derived):
    """A vector per word piece from the parent, and a small head, trained on labels and the teacher's logits."""

    script: ClassVar[str] = "01_finetune.py"
    module: ClassVar[str] = "no_encoder"
    cpu_only: ClassVar[str] = NO_ENGINE
    chapter: Chapter = "baseline"
    family: Family = "baseline"
    method: Literal["static"]
    width: Positive = 256  # of a vector
    training: Training

    @model_validator(mode="after")
    def trains_its_vectors(self):
        if self.training.freeze_embeddings:
            raise ValueError("training.freeze_embeddings: the vectors of static are trained")
        return self


class Quantized(Derived):
    """Weights in fewer bits, in PyTorch."""

    script: ClassVar[str] = "02_quantize_prune.py"
    module: ClassVar[str] = "quantize"
    chapter: Chapter = "HW1"
    family: Family = "quantization"


class Int8(Quantized):
    """Packed int8 weights; Linear layers compute in int8 and quantize their inputs dynamically."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["int8-dynamic"]
    per_channel: bool
    embeddings: bool = True  # quantize the embedding tables, too


class Int8Saved(Quantized):
    """torch's own quantize_dynamic of the Linear layers, written by torch.save, as the course did it."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["int8-saved"]


class TorchAO(Quantized):
    """Quantized modules of torchao."""

    cpu_only: ClassVar[str] = "torchao's modules are built for and tested on the CPU here"
    method: Literal["torchao"]
    scheme: Literal["int8-weight-only", "int8-dynamic", "int4-weight-only"]


class Cast(Quantized):
    """Weights stored as 16-bit floats and loaded as float32."""

    method: Literal["cast"]
    dtype: Literal["bfloat16", "float16"]


class Mixed(Quantized):
    """8 or 4 bits per group of tensors, chosen by sensitivity on validation."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["mixed-precision"]
    tolerance: Annotated[float, Field(ge=0)]  # largest loss of validation F1 against 8 bits everywhere, in points


class QAT(Quantized):
    """Quantization-aware training with the baseline as teacher."""

    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["qat"]
    bits: Annotated[int, Field(ge=2, le=8)]
    training: Training


class WeightOnly(Quantized):
    """The encoder's matrices in few bits with a scale per row, rounded to the nearest or by GPTQ; not trained."""

    module: ClassVar[str] = "gptq"
    method: Literal["weight-only"]
    bits: Annotated[int, Field(ge=2, le=8)]
    rounding: Literal["nearest", "gptq"]
    calibration_sentences: Positive = 256  # of the training split, for GPTQ


class TernaryBERT(Quantized):
    """Weights of three values, trained with the baseline as teacher."""

    module: ClassVar[str] = "ternary_bert"
    cpu_only: ClassVar[str] = NO_INT8
    method: Literal["ternary-bert"]
    training: Training


class Pruned(Derived):
    """Parts of the network removed."""

    script: ClassVar[str] = "02_quantize_prune.py"
    module: ClassVar[str] = "prune"
    chapter: Chapter = "HW1"
    family: Family = "pruning"


class Prune(Pruned):
    """Single weights of the encoder's matrices set to zero: gradually with a teacher, or at once without training."""

    method: Literal["prune"]
    criterion: Literal["magnitude", "fisher", "block-fisher", "movement"] = "magnitude"
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    sparsity: Annotated[float, Field(gt=0, lt=1)]
    training: Training | None = None

    @model_validator(mode="after")
    def options_fit(self):
        if self.pattern == "2:4" and (self.sparsity, self.criterion) != (0.5, "magnitude"):
            raise ValueError('pattern: "2:4" needs sparsity = 0.5 and criterion = "magnitude"')
        if self.criterion != "magnitude" and self.training is None:
            raise ValueError(f'criterion: "{self.criterion}" needs a training, whose gradients it uses')
        return self


class Structured(Pruned):
    """Attention heads and FFN neurons removed, the least important first."""

    method: Literal["structured"]
    heads: Share  # of all heads, that stays
    intermediate_size: Positive  # FFN neurons that stay in each layer
    sentences: Positive = 1024  # of the training split, to rank and tune heads and neurons
    tuned: bool = False  # swap units inside each layer, then scale them so that its outputs come close to the parent's
    training: Training | None = None


class LowRank(Pruned):
    """Each of the encoder's matrices as a product of two narrow ones, then trained with the baseline as teacher."""

    module: ClassVar[str] = "low_rank"
    family: Family = "low-rank"
    method: Literal["low-rank"]
    kept: Share  # of each matrix's parameters, that its two factors have
    weighting: Literal["none", "inputs"] = "inputs"  # of errors: none is a plain SVD
    calibration_sentences: Positive = 256  # of the training split, whose inputs weight the errors
    training: Training | None = None


class Clustered(Derived):
    """Weights that share few values."""

    script: ClassVar[str] = "03_cluster.py"
    module: ClassVar[str] = "cluster"
    chapter: Chapter = "HW2"
    family: Family = "clustering"


class Cluster(Clustered):
    """k shared values per matrix by k-means, then trained with the baseline as teacher if there is a training."""

    method: Literal["cluster"]
    k: Annotated[int, Field(ge=2, le=256)]
    rate: Annotated[float, Field(ge=0)] = 0.0  # price of a bit, in mean squared errors of plain k-means
    training: Training | None = None


class DeepCompression(Clustered):
    """A pruned parent, clustered while its zeros stay, with trained codebooks and entropy coding."""

    method: Literal["deep-compression"]
    k: Annotated[int, Field(ge=2, le=256)]
    embedding_k: Annotated[int, Field(ge=2, le=256)] | None = None  # of the embedding tables, if not k
    rate: Annotated[float, Field(ge=0)] = 0.0
    adaptation: Training  # of the remaining weights to clustered embeddings
    training: Training  # of the codebooks


class Distilled(Derived):
    """A smaller network, cut out of its parent unless `initialization` says otherwise."""

    script: ClassVar[str] = "04_distill.py"
    module: ClassVar[str] = "distill"
    chapter: Chapter = "HW3"
    family: Family = "distillation"


class Student(Strict):
    """The student's shape; a missing size is the parent's."""

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]  # indices of the parent's layers, from 0
    hidden_size: Positive | None = None
    intermediate_size: Positive | None = None
    heads: Positive | None = None
    vocabulary: Positive | None = None  # word pieces at most

    @model_validator(mode="after")
    def heads_fit(self):
        if self.hidden_size and self.heads and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class Distill(Distilled):
    """Training on the teacher's logits and hidden states, or on the labels alone as a control."""

    method: Literal["distill"]
    student: Student
    # encoder: cut out of the profile's student_backbone; random: only the number of student.layers counts
    initialization: Literal["parent", "encoder", "random"] = "parent"
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0  # of the loss on the last layer's hidden states
    relation_weight: Annotated[float, Field(ge=0)] = 0.0  # of the loss on its attention and value relations
    training: Training

    @model_validator(mode="after")
    def options_fit(self):
        if self.initialization == "encoder" and (self.hidden_weight or self.relation_weight):
            raise ValueError(
                "initialization: hidden_weight and relation_weight must be 0, because the encoder's word pieces are "
                "not the teacher's"
            )
        if self.student.vocabulary and (self.hidden_weight or self.relation_weight):
            raise ValueError(
                "student.vocabulary: hidden_weight and relation_weight must be 0, "
                "because the student's tokens differ from the teacher's"
            )
        return self


class Cut(Distilled):
    """A student cut out of its parent, not trained."""

    method: Literal["cut"]
    student: Student

    @field_validator("student")
    @classmethod
    def same_vocabulary(cls, student):
        if student.vocabulary is not None:
            raise ValueError("vocabulary: not for method cut; method trim reduces the vocabulary")
        return student


class Trim(Distilled):
    """The parent with fewer word pieces, not trained."""

    method: Literal["trim"]
    vocabulary: Positive


class Exported(Derived):
    """The parent in an inference engine."""

    script: ClassVar[str] = "05_export.py"
    module: ClassVar[str] = "export"
    cpu_only: ClassVar[str] = NO_ENGINE
    chapter: Chapter = "HW4"
    family: Family = "engine"
    calibration_sentences: Positive = 200  # of the training split


class Onnx(Exported):
    """An ONNX file for ONNX Runtime."""

    method: Literal["onnx"]
    precision: Literal["fp32", "fp16", "int8-dynamic", "int8-static", "int4"]
    fused: bool = True  # use ONNX Runtime's fused operators for BERT
    reduced_range: bool = False  # 7 bits per weight in 8, so that no CPU's 8-bit products overflow
    calibration: Literal["minmax", "percentile"] | None = None

    @model_validator(mode="after")
    def options_fit(self):
        static = self.precision == "int8-static"
        if static != (self.calibration is not None):
            raise ValueError('calibration: belongs to precision "int8-static" only, which needs it')
        if static and self.fused:
            raise ValueError('fused: must be false for "int8-static": the quantizer leaves fused attention in float')
        if self.precision == "int4" and self.fused:
            raise ValueError('fused: must be false for "int4": the 4-bit kernel takes the place of plain products')
        if self.reduced_range and not self.precision.startswith("int8"):
            raise ValueError('reduced_range: belongs to the precisions "int8-dynamic" and "int8-static" only')
        if self.precision == "fp16" and not self.fused:
            raise ValueError('fused: must be true for "fp16"')
        return self


class OpenVINO(Exported):
    """OpenVINO's intermediate representation."""

    method: Literal["openvino"]
    compression: Literal["fp16", "int8", "int8-smooth", "int8-weights", "int4-weights", "codebook-weights"] | None = (
        None
    )
    execution: Literal["f32", "default"] = "f32"  # of layers that are not quantized; default: the engine's choice
    hint: Literal["LATENCY", "THROUGHPUT"] = "LATENCY"


class Tooled(Derived):
    """The parent by Hugging Face Optimum, or by PyTorch's own fast paths."""

    script: ClassVar[str] = "06_optimum.py"
    module: ClassVar[str] = "hf_optimum"
    chapter: Chapter = "HW6"
    family: Family = "engine"


class OptimumOrt(Tooled):
    """ONNX Runtime through optimum-onnx."""

    cpu_only: ClassVar[str] = NO_ENGINE
    method: Literal["optimum-onnx"]
    level: Literal["O1", "O2", "O3", "O4"] | None = None
    quantization: Literal["dynamic", "static"] | None = None
    counterpart: str  # the variant that does the same without Optimum

    @model_validator(mode="after")
    def level_or_quantization(self):
        return exactly_one(self, "level", "quantization")


class OptimumIntel(Tooled):
    """OpenVINO through optimum-intel."""

    cpu_only: ClassVar[str] = NO_ENGINE
    method: Literal["optimum-intel"]
    quantization: Literal["int8", "int8-weights", "int4-weights"]
    counterpart: str


class TorchRuntime(Tooled):
    """The parent in PyTorch in another precision, or compiled."""

    method: Literal["torch"]
    precision: Literal["fp32", "bf16", "int8"]
    compile: bool = False

    @property
    def cpu_only(self) -> str | None:
        return NO_INT8 if self.precision == "int8" else None


class Cascade(Derived):
    """Two models in one: the slower and better `second` classifies the sentences of which the parent is not sure."""

    script: ClassVar[str] = "06_optimum.py"
    module: ClassVar[str] = "cascade"
    chapter: Chapter = "HW6"
    family: Family = "engine"
    method: Literal["cascade"]
    second: str
    tolerance: Annotated[float, Field(ge=0)] = 0.2  # largest loss of validation F1 against `second` alone, in points

    @property
    def parents(self) -> list[str]:
        return [self.parent, self.second]

    @model_validator(mode="after")
    def models_differ(self):
        if self.second == self.parent:
            raise ValueError("second: must be another variant than parent")
        return self


class Classifier(Derived):
    """A classifier of the service: the parent trained further on the task's labels, then static int8 in ONNX."""

    script: ClassVar[str] = "07_serve_bench.py"
    module: ClassVar[str] = "service"
    cpu_only: ClassVar[str] = NO_ENGINE
    method: Literal["service"]
    chapter: Chapter = "HW7"
    family: Family = "service"
    timed: bool = False
    task: str
    training: Training | None


OPTIONS = (
    Untrained, Finetune, Tfidf, Static,
    Int8, Int8Saved, TorchAO, Cast, Mixed, QAT, WeightOnly, TernaryBERT,
    Prune, Structured, LowRank, Cluster, DeepCompression,
    Distill, Cut, Trim, Onnx, OpenVINO, OptimumOrt, OptimumIntel, TorchRuntime,
    Cascade,
)  # fmt: skip
METHODS = {get_args(option.model_fields["method"].annotation)[0]: option for option in OPTIONS}
