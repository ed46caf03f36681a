"""The state of one service process: starting, ready or draining, and its metrics."""

import logging
import math

from compress.serving.responses import ServiceError, overloaded
from compress.serving.scheduler import BackendError, Overloaded, Prediction, Scheduler
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.responses import Response

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)  # seconds
CLASSIFYING = (b"/process", b"/predict")  # paths whose requests the scheduler admits
# Key of a request's scope: the service stores a callback there, which the connection calls when its client goes away.
# A connection that was lost before that has stored another value.
ON_DISCONNECT = "compress.on_disconnect"
logger = logging.getLogger("compress.serving")


class Disconnected(Exception):
    """The client went away before its response was ready."""


class Metrics:
    """The content of /metrics, in a registry of its own, because tests run several services in one process."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("requests", "Responses sent", ["path", "status"], registry=registry)
        self.seconds = Histogram("request_seconds", "From the head's arrival", buckets=BUCKETS, registry=registry)
        self.waiting = Gauge("waiting_requests", "Admitted and not finished", registry=registry)
        self.wait = Gauge("wait_seconds", "Expected wait of a request that arrives now", registry=registry)
        self.batches = Counter("batches", "Batches run", ["model"], registry=registry)
        self.items = Counter("items", "Texts in those batches", ["model"], registry=registry)
        self.tokens = Counter("tokens", "Word pieces in those batches", ["model"], registry=registry)
        self.padded = Counter("padded_tokens", "Word pieces and padding in those batches", ["model"], registry=registry)
        self.busy = Counter("model_seconds", "Seconds spent in models, all workers", ["model"], registry=registry)
        self.cpu = Counter(
            "model_cpu_seconds", "CPU seconds of workers in models of one thread", ["model"], registry=registry
        )

    def observe(self, model, items: int, tokens: int, padded: int, seconds: float, cpu: float) -> None:
        """Counts one batch; seconds and CPU seconds are those of the model's own call."""
        self.batches.labels(model.name).inc()
        self.items.labels(model.name).inc(items)
        self.tokens.labels(model.name).inc(tokens)
        self.padded.labels(model.name).inc(padded)
        self.busy.labels(model.name).inc(seconds)
        self.cpu.labels(model.name).inc(cpu)


class Service:
    """Starting (no scheduler yet), ready, or draining."""

    def __init__(self, deadline: float):
        self.deadline = deadline  # seconds
        self.metrics = Metrics()
        self.scheduler: Scheduler | None = None
        self.infos: list[dict] = []  # per model, for /info
        self.failure: str | None = None  # why it will never be ready
        self.draining = False

    @property
    def state(self) -> str:
        if self.draining:
            return "draining"
        return "ready" if self.scheduler else "starting"

    def refusal(self, method: bytes, path: bytes) -> Response | None:
        """429 for a request that the scheduler would refuse, known from its head alone; otherwise None."""
        if method != b"POST" or path not in CLASSIFYING or self.state != "ready":
            return None
        try:
            self.scheduler.check()
            return None
        except Overloaded as error:
            self.metrics.requests.labels(path.decode(), "429").inc()
            return overloaded(math.ceil(error.seconds))

    async def classify(self, texts: list[str], scope) -> list[dict[str, Prediction]]:
        """Per text a prediction of every model; raises ServiceError, or Disconnected once the client is gone."""
        if self.state != "ready":
            raise ServiceError(503, self.state, f"the service is {self.state}", {"Retry-After": "1"})
        request = self.scheduler.submit(texts)

        def gone() -> None:
            if not request.future.done():
                request.future.set_exception(Disconnected())

        try:
            if scope.setdefault(ON_DISCONNECT, gone) is not gone:
                gone()
            return await request.future
        except BackendError as error:
            logger.error("%s", str(error).encode("unicode_escape").decode()[:500])
            raise ServiceError(500, "backend_error", "a model failed on this text") from None

    def metrics_text(self) -> bytes:
        if self.scheduler:
            self.metrics.waiting.set(self.scheduler.waiting)
            self.metrics.wait.set(self.scheduler.wait_seconds())
        return generate_latest(self.metrics.registry)
