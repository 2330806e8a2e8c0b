"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the value, what was expected and how to fix it. The command line prints it
    without a traceback and exits with status 2.
    """
