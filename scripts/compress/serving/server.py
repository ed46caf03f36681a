"""The process around the application: sockets with limits, loading beside listening, and an orderly end.

On SIGTERM (or Ctrl-C) /readyz turns 503 and nothing new is admitted; what was admitted is answered, for at most
DRAIN_SECONDS, and the process exits with status 0. A second signal ends it at once.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import uvicorn
from compress.serving.app import JSON, ON_DISCONNECT, Service
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

DRAIN_SECONDS = 20
HEAD_SECONDS = 10  # to send a request's head, and to send anything at all on a new connection
MAX_HEAD = 16 * 1024  # bytes
MAX_CONNECTIONS = 1024
IDLE_SECONDS = 30


class Answered:
    """What stands in the place of uvicorn's cycle for a request whose answer has been sent without the application."""

    response_complete = True
    message_event = asyncio.Event()


class Protocol(HttpToolsProtocol):
    """uvicorn's, with the limits that it lacks: size and time of a request's head, number of connections.

    What the service would only turn away is answered here, without a task and a cycle of its own; and the application
    learns that its client is gone without a task that waits for it.
    """

    head_timer = None
    in_head = True
    turned_away = False  # the request that is under way has its answer already
    head_bytes = 0

    def __init__(self, service: Service, *args, **options):
        super().__init__(*args, **options)
        self.service = service

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._end(503, "too_many_connections", "too many connections are open")
            return
        self._start_head()

    def connection_lost(self, exc) -> None:
        self._end_head()
        super().connection_lost(exc)
        if self.scope is not None:
            self.scope.setdefault(ON_DISCONNECT, lambda: None)()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_head()

    def on_headers_complete(self) -> None:
        waits = self.cycle is not None and not self.cycle.response_complete  # its turn comes after another's answer
        if waits or not (refusal := self.service.refusal(self.parser.get_method(), self.url)):
            self._end_head()
            super().on_headers_complete()
            return
        if self.flow.write_paused:  # a client that asks and asks and reads nothing
            self.transport.abort()
            return
        self.cycle, self.turned_away = Answered, True
        last = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self._write(refusal, last)
        self.on_response_complete()

    def on_message_complete(self) -> None:
        self._end_head()  # of a request that was turned away: its body counts as head, in bytes and in time
        self.turned_away = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.in_head:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD:
                self._end(431, "head_too_large", f"a request's head has at most {MAX_HEAD} bytes")

    def send_400_response(self, msg: str) -> None:
        self._end(400, "bad_request", "the request is not valid HTTP")

    def _end(self, status: int, error_type: str, error: str) -> None:
        """A connection's last answer, unless this request has one, or the one before it still waits for its own."""
        if self.transport.is_closing():
            return
        if not self.turned_away and (self.cycle is None or self.cycle.response_complete):
            self._write(JSON({"error": error, "error_type": error_type}, status), last=True)
        self.transport.close()

    def _write(self, response, last: bool) -> None:
        headers = self.server_state.default_headers + response.raw_headers
        head = [STATUS_LINE[response.status_code], *(b"%s: %s\r\n" % header for header in headers)]
        closing = b"connection: close\r\n\r\n" if last else b"\r\n"
        self.transport.write(b"".join([*head, closing, response.body]))
        if last:
            self.transport.close()

    def _start_head(self) -> None:
        self.in_head, self.head_bytes = True, 0
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _late(self) -> None:
        self._end(408, "slow_request", "the request's head did not come in time")

    def _end_head(self) -> None:
        self.in_head = False
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None


class Server(uvicorn.Server):
    """uvicorn's, with a drain before its own shutdown and exit status 0 after it."""

    def __init__(self, config: uvicorn.Config, service: Service, start: Callable[[asyncio.AbstractEventLoop], None]):
        super().__init__(config)
        self.service, self.start = service, start

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self.start, args=(loop,), daemon=True).start()

    def handle_exit(self, sig, frame) -> None:
        if self.service.draining:
            self.force_exit = self.should_exit = True
        self.service.draining = True
        self.drain_until = time.monotonic() + DRAIN_SECONDS

    async def on_tick(self, counter: int) -> bool:
        if self.service.failure:
            print(f"error: {self.service.failure}", file=sys.stderr)
            return True
        scheduler = self.service.scheduler
        if self.service.draining and (not (scheduler and scheduler.waiting) or time.monotonic() > self.drain_until):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(service: Service, app, start, host: str, port: int) -> int:
    """Serves until a signal comes or `start` (run in a thread once the socket listens) fails; the exit status."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(Protocol, service),
        ws="none",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="error",  # uvicorn warns of every malformed request: anyone could fill the log, or a pipe not read
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
        proxy_headers=False,
        backlog=MAX_CONNECTIONS,
    )
    Server(config, service, start).run()
    if service.scheduler:
        service.scheduler.stop()
    return 1 if service.failure else 0
