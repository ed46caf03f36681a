"""The process around the application: sockets with limits, loading beside listening, and an orderly end.

On SIGTERM (or Ctrl-C) /readyz turns 503 and nothing new is admitted; what was admitted is answered, for at most
DRAIN_SECONDS, and the process exits with status 0. A second signal ends it at once.
"""

import asyncio
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import uvicorn
from compress.serving.app import JSON, ON_DISCONNECT, Service
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

DRAIN_SECONDS = 20
HEAD_SECONDS = 10  # to send a request's head, what is left of an answered one, or anything on a new connection
STALL_SECONDS = 10  # that a client may leave its answers unread
MAX_HEAD = 16 * 1024  # bytes
MAX_CONNECTIONS = 1024
IDLE_SECONDS = 30
BODIES = (b"content-length", b"transfer-encoding")


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
    stall_timer = None
    in_message = False  # between a request's first byte and its last
    new_message = False  # it began in the read that is being parsed
    in_head = True
    turned_away = False  # the request that is under way has its answer already
    ended = False  # nothing more is read
    head_bytes = 0
    unfinished = 0  # bytes of reads that lay wholly within one head
    running = None  # the cycle whose answer the application is making; self.cycle is that of the last request read

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
        self._end_stall()
        super().connection_lost(exc)
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
            self.running.scope.setdefault(ON_DISCONNECT, lambda: None)()

    def _start_asgi_task(self, cycle, app) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stall_timer = self.loop.call_later(STALL_SECONDS, self._cut)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def shutdown(self) -> None:
        if self.flow.write_paused:
            self._cut()
        super().shutdown()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_message, self.new_message = True, True
        self._start_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self.in_head and not self.turned_away:  # else a trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.ended:  # the head was too large
            return
        if self.parser.should_upgrade() and any(name in BODIES for name, _ in self.headers):
            # The parser stops at the head of what asks for an upgrade, and never shows its body.
            self._end(501, "upgrade", "no upgrade from HTTP/1.1 is supported: leave the Upgrade header out")
            return
        waits = self._is_busy()  # its turn comes after another's answer
        if waits or not (refusal := self.service.refusal(self.parser.get_method(), self.url)):
            self._end_head()
            super().on_headers_complete()
            self.cycle.keep_alive &= not self.parser.should_upgrade()
            return
        if self.flow.write_paused:  # a client that asks and asks and reads nothing
            self._cut()
            return
        self.cycle, self.turned_away = Answered, True
        last = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self._write(refusal, last)
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        if not self.ended:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.ended:
            return
        self._end_head()  # of a request that was turned away: its body counts as head, in bytes and in time
        self.in_message = self.turned_away = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self.new_message = False
        super().data_received(data)
        if self.in_head and not self.new_message:
            self.unfinished += len(data)  # the parser tells a header only when it is whole
            if self.unfinished > MAX_HEAD:
                self._too_large()
        self._watch()

    def _watch(self) -> None:
        """Bytes end uvicorn's wait for a request, though they may be blank lines, or the body of an answered one."""
        if self._is_busy() or self.timeout_keep_alive_task or self.head_timer or self.transport.is_closing():
            return
        if self.in_message:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self._late)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        self._end(400, "bad_request", "the request is not valid HTTP")

    def _end(self, status: int, error_type: str, error: str) -> None:
        """A connection's last answer, unless this request has one, or an earlier one still waits for its own.

        That one is then the last.
        """
        if self.transport.is_closing():
            return
        self.ended = True
        if self._is_busy():
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not self.turned_away and (self.in_head or not self.in_message):
            self._write(JSON({"error": error, "error_type": error_type}, status), last=True)
        self.transport.close()

    def _cut(self) -> None:
        """Ends the connection by a reset: else the kernel would keep megabytes that the client never reads."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > MAX_HEAD:
            self._too_large()

    def _too_large(self) -> None:
        self._end(431, "head_too_large", f"a request's head has at most {MAX_HEAD} bytes")

    def _write(self, response, last: bool) -> None:
        headers = self.server_state.default_headers + response.raw_headers
        head = [STATUS_LINE[response.status_code], *(b"%s: %s\r\n" % header for header in headers)]
        closing = b"connection: close\r\n\r\n" if last else b"\r\n"
        self.transport.write(b"".join([*head, closing, response.body]))
        if last:
            self.transport.close()

    def _start_head(self) -> None:
        self.in_head, self.head_bytes, self.unfinished = True, 0, 0
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _late(self) -> None:
        self._end(408, "slow_request", "the request's head did not come in time")

    def _end_stall(self) -> None:
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None

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
            left = self.drain_until - time.monotonic()
            self.config.timeout_graceful_shutdown = max(1, round(left))
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
