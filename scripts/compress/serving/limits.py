"""Every limit and default of the service. /info and --help show the options."""

from dataclasses import dataclass, field

from compress.cpu import cores

MAX_BODY = 64 * 1024  # bytes
MAX_TEXT = 8192  # characters
MAX_TEXTS = 32  # in one /predict
MAX_HEAD = 16 * 1024  # bytes
MAX_PIPELINED = 64  # requests of a connection that wait behind the running one
MAX_CONNECTIONS = 4000  # of 9 kB while idle, and 80 kB with a body; fewer if the process may not open so many files
EXTRA_CONNECTIONS = 64  # above the limit, which may each send one request; any further one gets 503 at once
EXTRA_SECONDS = 0.25  # to send that request's head
OWN_FILES = 64  # that the process opens besides its connections
HEAD_SECONDS = 10  # to send a request's head, the rest of a refused request, or anything on a new connection
STALL_SECONDS = 10  # that a client may leave its responses unread
PROBE_SECONDS = 0.05  # between interim responses to a client that has ended its half of the connection
GRACE_SECONDS = 2  # that a connection stays open beyond the advertised keep-alive, for a request on its way
LINGER_SECONDS = 0.5  # that idle connections stay open when the service ends
DRAIN_SECONDS = 20  # from SIGTERM to the end of the last admitted request


def option(default: int, about: str):
    return field(default=default, metadata={"help": f"{about} (default: %(default)s)"})


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the models run: the options of serve.py, and the limits in /info."""

    workers: int = option(cores(), "threads that run models; by default one per core")
    threads: int = option(1, "CPU threads of one model in each worker")
    max_batch: int = option(4, "texts in a batch; 1: no batching")
    max_tokens: int = option(1024, "word pieces in a batch, padding included")
    window: int = option(
        64, "a batch takes texts of similar length from this many that wait longest; up to --max-batch: in their order"
    )
    deadline_ms: int = option(1000, "milliseconds from a request to its response, or to 504")
    max_wait_ms: int = option(250, "expected milliseconds of waiting beyond which a request gets 429")
    keep_alive_s: int = option(
        75, "seconds that an idle connection stays open; choose more than your load balancer does"
    )
