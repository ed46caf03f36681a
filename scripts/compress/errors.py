"""UserError for what the user can repair, and Skip for what this machine can't build."""


class UserError(Exception):
    """A problem the user can repair. Its text says what is wrong, where, and what to do."""


class Skip(UserError):
    """This machine, these library versions or this network can't build a variant. Its text is the reason."""


def in_words(error: Exception) -> str:
    """The error in one line: a UserError's text; of any other error its kind, too."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
