"""Every limit and default of the service. /info, the API document and --help show them."""

from dataclasses import dataclass

MAX_BODY = 64 * 1024  # bytes
MAX_TEXT = 8192  # characters
MAX_TEXTS = 32  # in one /predict
MAX_HEAD = 16 * 1024  # bytes
MAX_CONNECTIONS = 1024
HEAD_SECONDS = 10  # to send a request's head, the rest of a refused request, or anything on a new connection
STALL_SECONDS = 10  # that a client may leave its responses unread
PROBE_SECONDS = 0.05  # between interim responses to a client that has ended its half of the connection
IDLE_SECONDS = 30  # between two requests of a connection
DRAIN_SECONDS = 20  # from SIGTERM to the end of the last admitted request


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the models run: the options of serve.py, and the limits in /info."""

    workers: int  # threads that run models
    threads: int = 1  # of one model in each worker
    max_batch: int = 4  # texts
    max_tokens: int = 1024  # word pieces in a batch, padding included
    window: int = 64  # waiting texts from which a batch is chosen
    deadline_ms: int = 1000  # of every request
    max_wait_ms: int = 250  # expected wait beyond which requests get 429
