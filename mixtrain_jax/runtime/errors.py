"""Mistakes a user can make, told in one line.

Code that meets bad input raises `UserError` with a sentence that says what is wrong, in which file
or field, and what to do. The programs turn it into that one line on standard error and exit code 2,
so a traceback always means a bug of ours.
"""

BAD_INPUT = 2  # the exit code


class UserError(Exception):
    """Bad input: the message is one line, complete and meant for the person at the terminal."""
