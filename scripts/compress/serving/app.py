"""The service as an ASGI application: two POST endpoints, and GET routes for probes, metrics, documents and a page."""

from pathlib import Path

from compress.serving.endpoints import Predict, Process
from compress.serving.openapi import DOCUMENT
from compress.serving.responses import JSON, http_error, internal_error
from compress.serving.state import Service
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

PAGE = Path(__file__).parent / "page.html"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
}


def create_app(service: Service, limits: dict) -> ASGIApp:
    """The application; /info shows `limits` unchanged."""

    async def livez(_: Request) -> Response:
        complete = service.scheduler is None or service.scheduler.is_complete()
        return JSON({"status": "alive" if complete else "broken"}, 200 if complete else 503)

    async def readyz(_: Request) -> Response:
        return JSON({"status": service.state}, 200 if service.state == "ready" else 503)

    async def info(_: Request) -> Response:
        return JSON({"status": service.state, "models": service.infos, "limits": limits})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics_text(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(_: Request) -> Response:
        return JSON(DOCUMENT)

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes(), headers=PAGE_HEADERS)

    gets = {"/livez": livez, "/readyz": readyz, "/healthcheck": readyz, "/info": info, "/metrics": metrics}
    gets |= {"/openapi.json": openapi, "/": page}
    others = Starlette(
        routes=[Route(path, function, methods=["GET"]) for path, function in gets.items()],
        exception_handlers={HTTPException: http_error, Exception: internal_error},
    )
    others.router.redirect_slashes = False  # the target would come from the client's own Host header
    posts = {"/process": Process(service, "/process"), "/predict": Predict(service, "/predict")}

    async def app(scope, receive, send) -> None:
        # Up to a thousand requests a second: they bypass Starlette's router.
        await posts.get(scope["path"], others)(scope, receive, send)

    return app
