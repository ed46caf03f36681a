"""The peers of our service: other servers for the same artifacts, each in an environment of its own.

The servers are the scripts in scripts/peers/, which run in build/peers/<name>/ (make peers-env).
"""

from dataclasses import dataclass
from pathlib import Path

from compress.paths import ROOT


@dataclass(frozen=True)
class Peer:
    name: str  # of build/peers/<name>, requirements-<name>.txt and <name>_server.py
    sweep: tuple[tuple[int, int, int], ...]  # settings: (workers, threads, batch); batch 0 means no limit

    @property
    def environment(self) -> Path:
        return ROOT / "build" / "peers" / self.name

    @property
    def installed(self) -> Path:
        """The file that exists once the environment is complete."""
        return self.environment / ".installed"

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"


# First the default of most frameworks (one worker with all threads, batches of 32), then settings for two cores.
SWEEP = ((1, 2, 32), (2, 1, 4), (2, 1, 8), (2, 1, 16))
PEERS = {
    "peer-mosec": Peer("mosec", SWEEP),
    "peer-litserve": Peer("litserve", SWEEP),
    "peer-infinity": Peer("infinity", ((1, 2, 32), (1, 1, 8), (2, 1, 8))),
    "peer-course": Peer("course", ((1, 2, 0),)),  # the only one that serves several models
}
