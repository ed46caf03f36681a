"""Which exact content a source has, and which local files a profile reads."""

from pathlib import Path

from compress.config.profile import Profile
from compress.config.sources import Source
from compress.errors import UserError
from compress.files import digest, sha256_file
from compress.paths import ROOT


def profile_files(profile: Profile) -> list[Path]:
    """The local files of the profile's data and encoders; none for packages and the hub."""
    sources = (profile.data, *profile.encoders.values())
    return [file for source in sources if source.path for file in local_files(source)]


def local_files(source: Source) -> list[Path]:
    """The file, or all files in the folder, that source.path names; raises UserError if there is none."""
    path = ROOT / source.path
    files = [path] if path.is_file() else visible_files(path)
    if not files:
        raise UserError(f"{path}: no such file, and no folder with files that this user may read")
    return files


def visible_files(folder: Path) -> list[Path]:
    """All files in a folder but hidden ones and those in hidden folders, such as .git."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts)]


def identity(source: Source) -> str:
    """The pinned package, the hub's repository at a commit, or the path and a hash of its files."""
    if source.package:
        return source.package.requirement
    if parts := getattr(source, "parts", None):
        return ", ".join(part.requirement for part in parts)
    if source.hub:
        return source.hub
    path = ROOT / source.path
    hashes = [[str(file.relative_to(path)), sha256_file(file)] for file in local_files(source)]
    return f"{source.path}, SHA-256 {digest(hashes)}"
