"""The two exceptions with a meaning: the user can repair it, or this machine can't do it."""


class UserError(Exception):
    """A problem the user can repair. Its text says what is wrong, where, and what to do."""


class Skip(UserError):
    """This machine, these library versions or this network can't build a variant. Its text is the reason."""
