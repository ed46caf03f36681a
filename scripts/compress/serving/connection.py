"""One HTTP connection: uvicorn's protocol with the limits that it lacks.

Added are the size and time of a request's head, the number of connections, and the time of unread responses. A request
that the scheduler would refuse is refused here, without a task; the application learns of a disconnect without waiting
for it; and a client that has ended only its own half of the connection still gets its responses.
"""

import asyncio
import select
import socket
import struct

from compress.serving.limits import (
    EXTRA_CONNECTIONS,
    EXTRA_SECONDS,
    HEAD_SECONDS,
    LINGER_SECONDS,
    MAX_HEAD,
    MAX_PIPELINED,
    PROBE_SECONDS,
    STALL_SECONDS,
)
from compress.serving.responses import JSON
from compress.serving.state import ON_DISCONNECT, Service
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

CROWDED = (503, "too_many_connections", "too many connections are open")
LATE = (408, "slow_request", "the request's head did not arrive in time")
TOO_LARGE = (431, "head_too_large", f"a request's head has at most {MAX_HEAD} bytes")


class Refused:
    """Replaces uvicorn's cycle of a request that was refused without the application."""

    response_complete = True
    message_event = asyncio.Event()


class Connection(HttpToolsProtocol):
    head_timer = None
    stall_timer = None
    in_message = False  # between a request's first byte and its last
    new_message = False  # the message began in the current read
    in_head = True
    is_extra = False  # above the limit: gets one response, which is 503 except to GET (probes and metrics)
    is_refused = False  # the current request already has its response
    ended = False  # ignores further input
    head_bytes = 0
    unparsed_bytes = 0  # of reads that began and ended within one head
    running = None  # the cycle that the application works on; self.cycle is that of the last request read

    def __init__(self, service: Service, most: int, *args, **options):
        super().__init__(*args, **options)
        self.service, self.most = service, most  # connections

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        extra = len(self.connections) - self.most
        self.is_extra = extra > 0
        self._start_head()
        if extra > EXTRA_CONNECTIONS:
            self._end(*CROWDED)

    def connection_lost(self, exc) -> None:
        self._end_head()
        self._end_stall()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves the timer running after a reset
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
        """The service ends: an idle connection stays for LINGER_SECONDS, for a request that is on its way."""
        if self.flow.write_paused:
            self._cut()
        elif self._is_busy():
            super().shutdown()
        else:
            self.loop.call_later(LINGER_SECONDS, self._stop_lingering)

    def _stop_lingering(self) -> None:
        if not self._has_unread():
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
        if self.in_head and not self.is_refused:  # trailers are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.ended:  # the head was too large
            return
        if self.parser.get_method() == b"CONNECT":
            self._end(405, "method_not_allowed", "this is no proxy")
        if self.is_extra and self.parser.get_method() != b"GET":
            self._end(*CROWDED)
        if self.ended or self.parser.should_upgrade():
            return
        is_queued = self._is_busy()  # behind another request of this connection
        if len(self.pipeline) >= MAX_PIPELINED:  # the last of these gets the connection's last response
            self._end(*CROWDED)
            return
        if is_queued or not (refusal := self.service.refusal(self.parser.get_method(), self.url)):
            super().on_headers_complete()  # raises HttpParserError for an invalid URL
            self._end_head()
            if self.is_extra or self.service.draining:
                self.cycle.keep_alive = False
            return
        if self.flow.write_paused:  # the client sends requests and reads no response
            self._cut()
            return
        self.cycle, self.is_refused = Refused, True
        last = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self._write(refusal, last)
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        if not self.ended:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.ended or self.parser.should_upgrade():
            return
        self._end_head()  # the body of a refused request counts as head, in bytes and in time
        self.in_message = self.is_refused = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self.new_message = False
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except HttpParserError:
            self._end(400, "bad_request", "the request is not valid HTTP")
        if self.in_head and not self.new_message:
            self.unparsed_bytes += len(data)  # the parser reports only complete headers
            if self.unparsed_bytes > MAX_HEAD:
                self._end(*TOO_LARGE)
        self._watch()

    def _watch(self) -> None:
        """Sets a timer where uvicorn has none: any byte ends its wait, even a blank line or a refused body."""
        if self._is_busy() or self.timeout_keep_alive_task or self.head_timer or self.transport.is_closing():
            return
        if self.in_message:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self._end, *LATE)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, unless a request waits in it."""
        self.timeout_keep_alive_task = None
        if not self._has_unread():
            super().timeout_keep_alive_handler()

    def _has_unread(self) -> bool:
        """Whether bytes wait that the loop has not read yet: timers may run before reads."""
        if self.transport.is_closing():
            return False
        waiting = select.poll()
        waiting.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(waiting.poll(0))

    def _parse(self, data: memoryview) -> None:
        """Feeds the parser. An offer of another protocol (Upgrade) is ignored, as RFC 9110 allows.

        The parser stops behind the head of such a request; a new one reads the head without the offer, and goes on.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
            if self.ended:
                return
            version = self.parser.get_http_version().encode()
            head = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
            head += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(b"".join([*head, b"\r\n"]))

    def eof_received(self) -> bool:
        """True keeps the connection until all complete requests have their responses: the client may wait for them."""
        if not self._is_busy() or (self.in_message and not self.in_head):
            return False
        self.cycle.keep_alive = False
        self.loop.call_later(PROBE_SECONDS, self._probe)
        return True

    def _probe(self) -> None:
        """Sends interim responses to a client that has ended its half; one that has ended both resets the connection.

        Until a byte is sent, the two look the same.
        """
        if not self._is_busy() or self.transport.is_closing():
            return
        if self.running.scope["http_version"] == "1.1" and not self.running.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(PROBE_SECONDS, self._probe)

    def _end(self, status: int, error_type: str, error: str) -> None:
        """Sends a connection's last response and closes it.

        If an earlier request still waits for its response, that one becomes the last; a refused request needs no other.
        """
        if self.transport.is_closing():
            return
        self.ended = True
        if self._is_busy():
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not self.is_refused and (self.in_head or not self.in_message):
            self.service.metrics.requests.labels("", str(status)).inc()
            self._write(JSON({"error": error, "error_type": error_type}, status), last=True)
        self.transport.close()

    def _cut(self) -> None:
        """Resets the connection: otherwise the kernel would keep megabytes that the client never reads."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > MAX_HEAD:
            self._end(*TOO_LARGE)

    def _write(self, response, last: bool) -> None:
        headers = self.server_state.default_headers + response.raw_headers
        head = [STATUS_LINE[response.status_code], *(b"%s: %s\r\n" % header for header in headers)]
        closing = b"connection: close\r\n\r\n" if last else b"\r\n"
        self.transport.write(b"".join([*head, closing, response.body]))
        if last:
            self.transport.close()

    def _start_head(self) -> None:
        self.in_head, self.head_bytes, self.unparsed_bytes = True, 0, 0
        if self.head_timer is None:
            seconds, reason = (EXTRA_SECONDS, CROWDED) if self.is_extra else (HEAD_SECONDS, LATE)
            self.head_timer = self.loop.call_later(seconds, self._end, *reason)

    def _end_stall(self) -> None:
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None

    def _end_head(self) -> None:
        self.in_head = False
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
