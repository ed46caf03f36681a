"""The former home of profile_files; import it from compress.data.identity."""

from compress.data.identity import profile_files  # noqa: F401
