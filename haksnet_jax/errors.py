"""The one error that is the user's to mend."""


class UserError(ValueError):
    """A mistake of use, or input that cannot be used, told in one sentence.

    The message says what was expected, what came, where (file and line, argument, config key) and what to do. It is
    raised where the fault is found; commands print it and end with status 1. Every other exception is a bug and keeps
    its traceback. A room has a subclass of its own only where code must tell its errors from others.
    """
