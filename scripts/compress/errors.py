"""UserError for what the user can repair, Skip for what this machine can't build, and errors in words."""

import shutil

from compress.paths import ROOT


class UserError(Exception):
    """A problem the user can repair. Its text says what is wrong, where, and what to do."""


class Skip(UserError):
    """This machine, these library versions or this network can't build a variant. Its text is the reason."""


def in_words(error: Exception) -> str:
    """The error in one line: a UserError's text; of any other error its kind, too."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def failure(error: Exception) -> str:
    """What the console says of a model that could not be measured; a full disk is raised, since it stops all others."""
    if disk_is_full(error):
        raise error
    return f"FAILED: {in_words(error)}"


def disk_is_full(error: Exception) -> bool:
    """Whether a full disk caused the error: not every library that writes files says so."""
    build = ROOT / "build"
    return "No space left" in str(error) or shutil.disk_usage(build if build.exists() else ROOT).free < 2**20
