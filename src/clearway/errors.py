"""The two ways a command stops: a check or a failure (exit 1), and wrong usage or configuration (exit 2).

Both carry one line for a person: the file, the key or field, the value, and what to do.
"""


class ClearwayError(Exception):
    """The line stopped: a check failed, an input is broken, or an effect could not be carried out."""

    exit_code = 1


class UsageError(ClearwayError):
    """The caller asked for something impossible, or the configuration is wrong."""

    exit_code = 2
