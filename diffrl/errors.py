"""The exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: the message names the file or setting and the remedy.

    The command line prints the message as one paragraph, without a traceback, and exits with 1.
    """


class TrainingError(UserError):
    """Learning itself went wrong with these settings, and would again: a result, too."""
