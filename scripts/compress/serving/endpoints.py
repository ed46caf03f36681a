"""The two POST endpoints: they check a request and have its texts classified.

POST /process takes a JSON string and returns {model: {label, score}} (the course's contract). POST /predict takes
{"text": string or list, "scores": bool}. Nothing that a client sent is logged or repeated in an error.
"""

import asyncio
import logging
import math
import time
from functools import cached_property

import orjson
from compress.serving.limits import MAX_BODY, MAX_TEXT, MAX_TEXTS
from compress.serving.responses import JSON, ServiceError, overloaded
from compress.serving.scheduler import Overloaded, Prediction
from compress.serving.state import Disconnected, Service

PLAIN = (b"", b"identity", b"chunked")  # encodings of a body that is not compressed
logger = logging.getLogger("compress.serving")


class Endpoint:
    """A POST endpoint as a bare ASGI application. parse(body) returns (texts, render); render(predictions) is sent."""

    def __init__(self, service: Service, path: str):
        self.service, self.path = service, path

    async def __call__(self, scope, receive, send) -> None:
        started = time.perf_counter()
        try:
            response = await self.respond(scope, receive)
        except Overloaded as error:
            response = overloaded(math.ceil(error.seconds))
        except ServiceError as error:
            response = error.response()
        except Disconnected:
            self.service.metrics.requests.labels(self.path, "disconnected").inc()
            return
        except Exception:
            logger.exception("a request failed")
            response = ServiceError(500, "internal", "the service failed on this request").response()
        self.service.metrics.requests.labels(self.path, str(response.status_code)).inc()
        self.service.metrics.seconds.observe(time.perf_counter() - started)
        await response(scope, receive, send)

    async def respond(self, scope, receive) -> JSON:
        is_read = False
        try:
            check_head(scope)
            async with asyncio.timeout(self.service.deadline):
                body = await read_body(receive)
                is_read = True
                texts, render = self.parse(parse_json(body))
                return JSON(render(await self.service.classify(texts, scope)))
        except TimeoutError:
            if is_read:
                raise ServiceError(504, "deadline", "no response within the deadline") from None
            raise ServiceError(408, "slow_request", "the body did not arrive in time") from None


class Process(Endpoint):
    """A JSON string -> {model: {label, score}}."""

    def parse(self, value):
        return [check_text(value)], self.render

    def render(self, predictions):
        return {name: self.brief(name, prediction) for name, prediction in predictions[0].items()}

    def brief(self, name: str, prediction: Prediction) -> dict:
        best = int(prediction.scores.argmax())
        return {"label": self.labels[name][best], "score": round(float(prediction.scores[best]), 6)}

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
        scores = value.get("scores", False)
        if not isinstance(scores, bool):
            raise ServiceError(400, "not_a_boolean", "scores must be true or false")
        return check_texts(value.get("text")), lambda predictions: self.rows(predictions, scores)

    def rows(self, predictions, scores: bool):
        return {"predictions": [{name: self.full(name, p, scores) for name, p in row.items()} for row in predictions]}

    def full(self, name: str, prediction: Prediction, scores: bool) -> dict:
        content = self.brief(name, prediction) | {"milliseconds": round(1000 * prediction.seconds, 3)}
        if scores:
            pairs = zip(self.labels[name], prediction.scores, strict=True)
            content["scores"] = {label: round(float(score), 6) for label, score in pairs}
        return content


def check_head(scope) -> None:
    """Checks method, media type, encoding and announced length; raises ServiceError."""
    if scope["method"] != "POST":
        raise ServiceError(405, "method_not_allowed", "use POST", {"Allow": "POST"})
    media, length = b"", None
    for name, value in scope["headers"]:
        if name == b"content-type":
            media = value
        elif name == b"content-length":
            length = int(value)
        elif name in (b"content-encoding", b"transfer-encoding") and value.lower() not in PLAIN:
            raise ServiceError(415, "encoding", "send the body uncompressed", {"Accept-Encoding": "identity"})
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


def check_texts(value) -> list[str]:
    if not isinstance(value, list):
        return [check_text(value)]
    if not value:
        raise ServiceError(400, "empty_text", "the list of texts is empty")
    if len(value) > MAX_TEXTS:
        raise ServiceError(413, "too_many_texts", f"at most {MAX_TEXTS} texts in one request")
    return [check_text(text, f"text {number}") for number, text in enumerate(value, 1)]


def check_text(value, name: str = "the text") -> str:
    if not isinstance(value, str):
        raise ServiceError(400, "not_a_string", f"{name} must be a JSON string")
    if len(value) > MAX_TEXT:
        raise ServiceError(413, "text_too_long", f"{name} has more than {MAX_TEXT} characters")
    if not value.strip():
        raise ServiceError(400, "empty_text", f"{name} is empty or blank")
    return value
