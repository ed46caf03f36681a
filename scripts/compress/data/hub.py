"""Repositories of the Hugging Face hub, from its local cache if there is no network."""

import os
from contextlib import contextmanager
from pathlib import Path

import requests
from compress.errors import UserError
from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import disable_progress_bars

TIMEOUT_SECONDS = 10


def download(repository: str, kind: str, patterns: list[str] | None = None) -> Path:
    """The folder of a hub's repository owner/name@commit in the local cache; kind is model or dataset.

    Raises UserError saying what is wrong and how to supply the files by hand.
    """
    if not os.isatty(2):
        disable_progress_bars()
    name, commit = repository.split("@")
    about = {"repo_type": kind, "revision": commit}
    with explained(name, commit, kind):
        try:  # first, because snapshot_download waits forever for a hub that does not respond
            HfApi().repo_info(name, **about, timeout=TIMEOUT_SECONDS)
            reached = True
        except (ConnectionError, requests.ConnectionError, requests.Timeout):  # or HF_HUB_OFFLINE is set
            reached = False
        return Path(snapshot_download(name, **about, allow_patterns=patterns, local_files_only=not reached))


@contextmanager
def explained(name: str, commit: str, kind: str):
    """Turns the hub's and the network's errors into a UserError with a reason and a remedy."""
    reasons = {  # the first that fits
        errors.GatedRepoError: "it is gated: request access on its page, then log in with: hf auth login",
        errors.RevisionNotFoundError: f"it has no revision {commit}",
        errors.RepositoryNotFoundError: "no such repository, or it is private: check the name, or run: hf auth login",
        errors.LocalEntryNotFoundError: f"the hub can't be reached, and {constants.HF_HUB_CACHE} does not contain it",
        requests.RequestException: "the hub can't be reached",
        errors.HfHubHTTPError: "the hub refused the request",
    }
    try:
        yield
    except tuple(reasons) as error:
        reason = next(text for kind_of, text in reasons.items() if isinstance(error, kind_of))
        option = "--repo-type dataset " if kind == "dataset" else ""
        raise UserError(
            f"{kind} {name}: {reason}\nWithout a network: on a machine that has one, run\n"
            f"  hf download {option}{name} --revision {commit}\n"
            f"and copy its cache to {constants.HF_HUB_CACHE}, or copy the downloaded folder and name it in the profile "
            f"by the key path instead of hub."
        ) from None
    except OSError as error:  # the errors above are OSErrors, too
        raise UserError(
            f"{kind} {name}: can't be stored in {constants.HF_HUB_CACHE}: {error}\n"
            f"Set HF_HOME to a folder that you may write to and that has free space."
        ) from None
