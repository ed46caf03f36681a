"""JSON responses. An error is {"error", "error_type"} and never repeats what a client sent."""

from functools import lru_cache

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response


class JSON(Response):
    media_type = "application/json"

    def render(self, content) -> bytes:
        return orjson.dumps(content)


class ServiceError(Exception):
    def __init__(self, status: int, error_type: str, error: str, headers: dict[str, str] | None = None):
        super().__init__(error)
        self.status, self.error_type, self.error, self.headers = status, error_type, error, headers

    def response(self) -> Response:
        # The connection closes after a body that is too long or too slow; the HTTP parser skips any other body.
        headers = (self.headers or {}) | ({"Connection": "close"} if self.status in (408, 413) else {})
        return JSON({"error": self.error, "error_type": self.error_type}, self.status, headers)


@lru_cache
def overloaded(seconds: int) -> Response:
    """429 for a request that would wait for so many whole seconds."""
    error = f"the queue is full; try again in {seconds} s"
    return ServiceError(429, "overloaded", error, {"Retry-After": str(seconds)}).response()


async def http_error(_: Request, error: HTTPException) -> Response:
    """Starlette's own errors, such as an unknown path."""
    kinds = {404: "not_found", 405: "method_not_allowed"}
    kind = kinds.get(error.status_code, "http")
    return ServiceError(error.status_code, kind, error.detail, error.headers).response()


async def internal_error(_: Request, error: Exception) -> Response:
    return ServiceError(500, "internal", "the service failed on this request").response()
