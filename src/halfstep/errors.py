"""The one exception that means "you can mend this yourself"."""


class UserError(Exception):
    """A mistake in parameters, files or names that the user can mend.

    The message is one line: the offending value, where it stands, and the way out. Commands print it without
    a traceback and exit with code 2 (see `halfstep.console`).
    """
