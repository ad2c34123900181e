"""The one exception that reaches a person."""


class LmscoutError(Exception):
    """Something the user can mend; the message is one line: what, where, and what to do.

    The command line prints the message and exits with code 2.  Anything else that is
    raised is a defect of lmscout and keeps its traceback.
    """
