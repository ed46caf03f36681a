"""The service's HTTP side: a Starlette application around one scheduler.

POST /process takes a JSON string and answers {model: {label, score}} (the course's contract); POST /predict takes
{"text": string or list, "scores": bool}. Errors are {"error", "error_type"}. Nothing that a client sent is logged or
comes back in an error.
"""

import asyncio
import logging
import math
import time
from functools import cached_property, lru_cache
from pathlib import Path

import orjson
from compress.serving.scheduler import Answer, BackendError, Overloaded, Scheduler
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

MAX_BODY = 64 * 1024  # bytes
MAX_TEXT = 8192  # characters
MAX_TEXTS = 32  # in one /predict
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)  # seconds
PAGE = Path(__file__).parent / "page.html"
# In a request's scope: what our server calls, or has called, when the client goes away.
ON_DISCONNECT = "compress.on_disconnect"
logger = logging.getLogger("compress.serving")


class ServiceError(Exception):
    def __init__(self, status: int, error_type: str, error: str, headers: dict[str, str] | None = None):
        super().__init__(error)
        self.status, self.error_type, self.error, self.headers = status, error_type, error, headers


class Disconnected(Exception):
    """The client went away: there is nobody to answer."""


class JSON(Response):
    media_type = "application/json"

    def render(self, content) -> bytes:
        return orjson.dumps(content)


class Metrics:
    """What /metrics says, in a registry of its own: several services may live in one process (tests)."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("requests", "Answered requests", ["path", "status"], registry=registry)
        self.seconds = Histogram("request_seconds", "From the body's arrival", buckets=BUCKETS, registry=registry)
        self.waiting = Gauge("waiting_requests", "Admitted and not yet answered", registry=registry)
        self.wait = Gauge("wait_seconds", "Expected wait of a request that comes now", registry=registry)
        self.batches = Counter("batches", "Batches run", ["model"], registry=registry)
        self.items = Counter("items", "Texts in those batches", ["model"], registry=registry)
        self.tokens = Counter("tokens", "Word pieces in those batches", ["model"], registry=registry)
        self.padded = Counter("padded_tokens", "The same with padding", ["model"], registry=registry)
        self.busy = Counter("model_seconds", "Seconds spent in models, all lanes", ["model"], registry=registry)

    def observe(self, model, items: int, tokens: int, padded: int, seconds: float) -> None:
        self.batches.labels(model.name).inc()
        self.items.labels(model.name).inc(items)
        self.tokens.labels(model.name).inc(tokens)
        self.padded.labels(model.name).inc(padded)
        self.busy.labels(model.name).inc(seconds)


class Service:
    """State of one process: starting (no scheduler yet), ready, draining."""

    def __init__(self, deadline: float):
        self.deadline = deadline  # seconds
        self.metrics = Metrics()
        self.scheduler: Scheduler | None = None
        self.infos: list[dict] = []
        self.failure: str | None = None  # why it will never be ready
        self.draining = False

    @property
    def state(self) -> str:
        if self.draining:
            return "draining"
        return "ready" if self.scheduler else "starting"

    def refusal(self, method: bytes, path: bytes) -> Response | None:
        """The answer to a request that the scheduler would turn away: the sooner it goes, the less it costs."""
        name = path.decode("latin-1")
        if method != b"POST" or name not in POSTS or self.state != "ready":
            return None
        try:
            self.scheduler.check()
            return None
        except Overloaded as error:
            self.metrics.requests.labels(name, "429").inc()
            return overloaded(math.ceil(error.seconds))

    async def answers(self, texts: list[str], scope) -> list[dict[str, Answer]]:
        """The models' answers, or a ServiceError; Disconnected as soon as the client is gone."""
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


class Endpoint:
    """A POST endpoint as a bare ASGI application: parse(body) -> texts, render(answers, body) -> JSON value."""

    def __init__(self, service: Service, path: str):
        self.service, self.path = service, path

    async def __call__(self, scope, receive, send) -> None:
        started = time.perf_counter()
        read = False
        try:
            check_head(scope)
            async with asyncio.timeout(self.service.deadline):
                body = await read_body(receive)
                read = True
                texts, render = self.parse(parse_json(body))
                response = JSON(render(await self.service.answers(texts, scope)))
        except TimeoutError:
            if read:
                response = error_response(ServiceError(504, "deadline", "no answer within the deadline"))
            else:
                response = error_response(ServiceError(408, "slow_request", "the body did not come in time"))
        except Overloaded as error:
            response = overloaded(math.ceil(error.seconds))
        except ServiceError as error:
            response = error_response(error)
        except Disconnected:
            self.service.metrics.requests.labels(self.path, "disconnected").inc()
            return
        except Exception:
            logger.exception("a request failed")
            response = error_response(ServiceError(500, "internal", "the service failed on this request"))
        self.service.metrics.requests.labels(self.path, str(response.status_code)).inc()
        self.service.metrics.seconds.observe(time.perf_counter() - started)
        await response(scope, receive, send)


class Process(Endpoint):
    """A JSON string -> {model: {label, score}}."""

    def parse(self, value):
        return [check_text(value)], self.render

    def render(self, answers):
        return {name: self.brief(name, answer) for name, answer in answers[0].items()}

    def brief(self, name: str, answer: Answer) -> dict:
        best = int(answer.scores.argmax())
        return {"label": self.labels[name][best], "score": round(float(answer.scores[best]), 6)}

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        return {info["name"]: info["labels"] for info in self.service.infos}


class Predict(Process):
    """{"text": string or list of strings, "scores": bool} -> {"predictions": [{model: {label, score, ...}}]}."""

    def parse(self, value):
        if not isinstance(value, dict):
            raise ServiceError(400, "not_an_object", 'send {"text": "..."} or {"text": ["...", "..."]}')
        if unknown := set(value) - {"text", "scores"}:
            raise ServiceError(400, "unknown_key", f"{len(unknown)} unknown keys; known are text and scores")
        text, scores = value.get("text"), value.get("scores", False)
        if not isinstance(scores, bool):
            raise ServiceError(400, "not_a_boolean", "scores must be true or false")
        texts = text if isinstance(text, list) else [text]
        if not texts:
            raise ServiceError(400, "empty_text", "the list of texts is empty")
        if len(texts) > MAX_TEXTS:
            raise ServiceError(413, "too_many_texts", f"at most {MAX_TEXTS} texts in one request")
        return [check_text(item) for item in texts], lambda answers: self.rows(answers, scores)

    def rows(self, answers, scores: bool):
        return {"predictions": [{name: self.full(name, a, scores) for name, a in row.items()} for row in answers]}

    def full(self, name: str, answer: Answer, scores: bool) -> dict:
        found = self.brief(name, answer) | {"milliseconds": round(1000 * answer.seconds, 3)}
        if scores:
            found["scores"] = {
                label: round(float(score), 6) for label, score in zip(self.labels[name], answer.scores, strict=True)
            }
        return found


POSTS = {"/process": Process, "/predict": Predict}


def check_head(scope) -> None:
    """Method, media type and announced length; raises ServiceError."""
    if scope["method"] != "POST":
        raise ServiceError(405, "method_not_allowed", "use POST", {"Allow": "POST"})
    media, length = b"", None
    for name, value in scope["headers"]:
        if name == b"content-type":
            media = value
        elif name == b"content-length":
            length = int(value)
    kind, _, options = media.decode("latin-1").lower().partition(";")
    if kind.strip() != "application/json" or options.replace(" ", "").replace('"', "") not in ("", "charset=utf-8"):
        raise ServiceError(415, "media_type", "send Content-Type: application/json")
    if length is not None and length > MAX_BODY:
        raise ServiceError(413, "body_too_large", f"a body has at most {MAX_BODY} bytes")


async def read_body(receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message["body"]
        if len(body) > MAX_BODY:
            raise ServiceError(413, "body_too_large", f"a body has at most {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def parse_json(body: bytes):
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise ServiceError(400, "bad_json", "the body is not valid JSON") from None


def check_text(value) -> str:
    if not isinstance(value, str):
        raise ServiceError(400, "not_a_string", "a text must be a JSON string")
    if len(value) > MAX_TEXT:
        raise ServiceError(413, "text_too_long", f"a text has at most {MAX_TEXT} characters")
    if not value.strip():
        raise ServiceError(400, "empty_text", "the text is empty or blank")
    return value


def error_response(error: ServiceError) -> Response:
    # The rest of a body that is too long or too slow is not waited for; any other is skipped by the HTTP parser.
    headers = (error.headers or {}) | ({"Connection": "close"} if error.status in (408, 413) else {})
    return JSON({"error": error.error, "error_type": error.error_type}, error.status, headers)


@lru_cache
def overloaded(seconds: int) -> Response:
    error = f"the queue is full; try again in {seconds} s"
    return error_response(ServiceError(429, "overloaded", error, {"Retry-After": str(seconds)}))


def create_app(service: Service, limits: dict) -> ASGIApp:
    """The application; `limits` is shown by /info as it is."""

    async def livez(_: Request) -> Response:
        whole = service.scheduler is None or service.scheduler.is_whole()
        return JSON({"status": "alive" if whole else "broken"}, 200 if whole else 503)

    async def readyz(_: Request) -> Response:
        return JSON({"status": service.state}, 200 if service.state == "ready" else 503)

    async def info(_: Request) -> Response:
        return JSON({"status": service.state, "models": service.infos, "limits": limits})

    async def metrics(_: Request) -> Response:
        if service.scheduler:
            service.metrics.waiting.set(service.scheduler.waiting)
            service.metrics.wait.set(service.scheduler.wait_seconds())
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(_: Request) -> Response:
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(
            PAGE.read_bytes(), headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        )

    async def openapi(_: Request) -> Response:
        from compress.serving.openapi import DOCUMENT

        return JSON(DOCUMENT)

    async def http_error(_: Request, error: HTTPException) -> Response:
        kinds = {404: "not_found", 405: "method_not_allowed"}
        return error_response(
            ServiceError(error.status_code, kinds.get(error.status_code, "http"), error.detail, error.headers)
        )

    async def internal_error(_: Request, error: Exception) -> Response:
        return error_response(ServiceError(500, "internal", "the service failed on this request"))

    gets = {
        "/livez": livez,
        "/readyz": readyz,
        "/healthcheck": readyz,
        "/info": info,
        "/metrics": metrics,
        "/openapi.json": openapi,
        "/": page,
    }
    rest = Starlette(
        routes=[Route(path, function, methods=["GET"]) for path, function in gets.items()],
        exception_handlers={HTTPException: http_error, Exception: internal_error},
    )
    rest.router.redirect_slashes = False  # to an address that the client's own Host header would choose
    posts = {path: kind(service, path) for path, kind in POSTS.items()}

    async def app(scope, receive, send) -> None:
        # What is called a thousand times a second, and turned away still more often, does without a router.
        await posts.get(scope["path"], rest)(scope, receive, send)

    return app
