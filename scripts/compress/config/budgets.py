"""Budgets: what is measured and how long, and the load on the service."""

from typing import Annotated, ClassVar, Literal

from compress.config.strict import Positive, Strict
from compress.config.variants import LabelTraining, Scope
from pydantic import Field, model_validator

# Names of servers in serving.csv, which the benchmark writes and the report reads.
PEER = "peer-"  # another server
BESIDE_PEERS = "-beside-peers"  # suffix of our own server when it takes turns with the peers
FIVE = "five-services"
ABLATIONS = {  # options of serve.py on top of the usual ones; {threads} is the usual number of workers
    "no-batching": ("--max-batch=1",),
    "no-sorting": ("--window=4",),
    "batches-of-8": ("--max-batch=8",),
    "one-worker": ("--workers=1", "--threads={threads}"),
}
CALM = 0.7  # of one server's saturation rate, at which others are measured, too
RATES = [0.5, 0.7, 0.8, 0.9, 1.0, 1.5, 3.0]


class Shapes(Strict):
    """Latency over batch size, length and threads for a few variants, on synthetic input."""

    variants: list[str]
    batches: Annotated[list[Positive], Field(min_length=1)] = [1, 4, 16, 64]
    lengths: Annotated[list[Annotated[int, Field(ge=2, le=512)]], Field(min_length=1)] = [16, 32, 64, 128, 256]
    threads: Annotated[list[Positive], Field(min_length=1)] = [1, 2]
    calls: Positive = 3


class Measure(Strict):
    """Budgets of the measurement protocol, the same for every variant; calls and sentences are totals of all passes."""

    passes: Positive = 3  # over all variants, each in a process of its own
    latency_calls: Positive = 200
    throughput_sentences: Positive = 512
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [16, 32]
    cuda_batch_sizes: list[Positive] = [64, 128]  # in addition, on a GPU
    shapes: Shapes = Shapes(variants=[])


class Load(Strict):
    """Budgets of the load test. A rate is a fraction of the server's saturation rate."""

    connections: Positive = 32
    saturation_seconds: Annotated[float, Field(gt=0)] = 5.0
    saturation_repeats: Positive = 5  # the servers take turns, so that slow drift of the machine averages out
    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = RATES
    responses: Positive = 10_000  # per open-loop rate, all repeats together; more requests are sent in overload
    least_seconds: Annotated[float, Field(gt=0)] = 2.0  # of an open-loop run
    most_seconds: Annotated[float, Field(gt=0)] = 120.0  # of an open-loop run: slow servers get fewer requests
    repeats: Positive = 2  # of an open-loop run
    deadline_ms: Positive = 500
    p99_ms: Positive = 130  # MLPerf's server limit for BERT; defines the largest sustained rate

    @model_validator(mode="after")
    def seconds_fit(self):
        if self.most_seconds < self.least_seconds:
            raise ValueError("most_seconds: must be at least least_seconds")
        return self


class CoreServing(Strict):
    """The part of the load test that belongs to the core; it has no ablations."""

    variants: Annotated[list[str], Field(min_length=1)]
    load: Load
    ablated: ClassVar[None] = None


class Serving(Strict):
    """HW7: the five-classifier service, and which variants the load test serves."""

    tasks: list[Literal["movies", "amazon", "tweets", "nyt", "domain"]] = []  # need the rated snippets
    parent: str | None = None  # of the classifiers
    training: LabelTraining | None = None  # of the classifiers
    variants: Annotated[list[str], Field(min_length=1)]
    ablated: str  # the variant that is also served without batching, without sorting, and by one worker
    load: Load = Load()
    core: CoreServing | None = None  # default: the same as full

    @model_validator(mode="after")
    def tasks_fit(self):
        if self.tasks and (self.parent is None or self.training is None):
            raise ValueError("tasks: need the keys parent and training, too")
        return self

    def of_scope(self, scope: Scope) -> "Serving | CoreServing":
        """What holds the variants, the load and the ablated variant of a scope."""
        return self.core if self.core and scope == "core" else self
