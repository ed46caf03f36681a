"""The folders of the repository."""

from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
ROOT = SCRIPTS.parent
PROFILES = SCRIPTS / "profiles"
DEFAULT_PROFILE = "minilm"
