"""The one error that is the user's to mend."""


class InputError(ValueError):
    """A mistake in what was given: a file, a row, an option.

    The message is one or two sentences: where (file:line or option), what is wrong, what to do. The command line prints
    it after ``amends: error:`` without a traceback and exits with 2.
    """
