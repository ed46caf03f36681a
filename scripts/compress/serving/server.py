"""The service's process: it listens first, loads the models in a thread, and drains before it exits.

On SIGTERM (or Ctrl-C) /readyz turns 503 and new requests are refused. Admitted requests finish within DRAIN_SECONDS,
and the process exits with status 0. A second signal ends it at once.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import uvicorn
from compress.cli import base_url
from compress.cpu import cores, raise_file_limit
from compress.errors import in_words
from compress.serving.app import create_app
from compress.serving.connection import Connection
from compress.serving.limits import (
    DRAIN_SECONDS,
    EXTRA_CONNECTIONS,
    GRACE_SECONDS,
    MAX_CONNECTIONS,
    OWN_FILES,
    Options,
)
from compress.serving.loading import load_models
from compress.serving.scheduler import Scheduler
from compress.serving.state import Service

BACKLOG = 1024  # connections that the kernel holds until they are accepted
SWITCH_SECONDS = 0.0005  # workers that return from a model get the interpreter sooner than after Python's 5 ms


class DrainingServer(uvicorn.Server):
    """uvicorn's server with a thread that loads the models, and a drain before the shutdown."""

    def __init__(self, config: uvicorn.Config, service: Service, folders: Sequence[Path], options: Options):
        super().__init__(config)
        self.service, self.folders, self.options = service, folders, options

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        threading.Thread(target=self.load, args=(asyncio.get_running_loop(),), daemon=True).start()

    def load(self, loop: asyncio.AbstractEventLoop) -> None:
        """Loads the models and makes the service ready, or stores why it will never be."""
        service, options = self.service, self.options
        try:
            models, tokenizers, service.infos = load_models(self.folders, options)
            service.scheduler = Scheduler(
                models,
                tokenizers,
                options.workers,
                loop,
                max_tokens=options.max_tokens,
                window=options.window,
                max_wait=options.max_wait_ms / 1000,
                observe=service.metrics.observe,
            )
        except Exception as error:
            service.failure = in_words(error)
            return
        url, names = base_url(self.config.host, self.config.port), ", ".join(model.name for model in models)
        print(f"ready: {url} serves {names}", flush=True)

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


def fitted(options: Options) -> Options:
    """The options with no more threads than cores; says on standard error what it has changed."""
    threads = min(options.threads, cores())
    workers = min(options.workers, cores() // threads)
    if (workers, threads) != (options.workers, options.threads):
        print(
            f"warning: --workers {options.workers} with --threads {options.threads} are more threads than cores "
            f"({cores()}), which would delay every request: using {workers} with {threads}",
            file=sys.stderr,
        )
    return replace(options, workers=workers, threads=threads)


def most_connections() -> int:
    """The connections that the process may hold, after it has raised its limit of open files as far as it may."""
    return max(1, min(MAX_CONNECTIONS, raise_file_limit() - OWN_FILES - EXTRA_CONNECTIONS))


def serve(folders: Sequence[Path], options: Options, host: str, port: int) -> int:
    """Serves the models in these folders until a signal arrives or loading fails; returns the exit status."""
    sys.setswitchinterval(SWITCH_SECONDS)
    options = fitted(options)
    service, most = Service(options.deadline_ms / 1000), most_connections()
    config = uvicorn.Config(
        create_app(service, asdict(options) | {"connections": most}),
        host=host,
        port=port,
        http=partial(Connection, service, most),
        ws="none",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="error",  # uvicorn warns of every malformed request: clients could fill the log
        timeout_keep_alive=options.keep_alive_s + GRACE_SECONDS,
        headers=[("keep-alive", f"timeout={options.keep_alive_s}")],
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )
    DrainingServer(config, service, folders, options).run()
    if service.scheduler:
        service.scheduler.stop()
    return 1 if service.failure else 0
