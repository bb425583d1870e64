"""The one exception that a user is meant to read."""


class SphereBenchError(Exception):
    """Something the user can mend: one line that names the thing and the mend.

    The command line prints it without a traceback and exits with a non-zero code.
    """
