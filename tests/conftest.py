"""A fresh copy of the repository on which the smoke profile has been run once, as a user would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads crawl on a busy machine
ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *command: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=timeout
    )


def copy_repository(folder: Path) -> Path:
    """The tracked files as they are now, with the environment linked and the verified archives at hand."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # The environment under test is the one that runs the tests.
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / ".venv" / ".installed").touch()
    downloads = ROOT / "build" / "downloads"
    if downloads.exists():
        shutil.copytree(downloads, folder / "build" / "downloads", ignore=shutil.ignore_patterns("tmp*"))
    return folder


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """(folder, output of make smoke); later tests read it and leave it as they found it."""
    folder = copy_repository(tmp_path_factory.mktemp("clone"))
    done = run(folder, "make", "smoke", timeout=1800)  # minutes on a quiet machine
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout
