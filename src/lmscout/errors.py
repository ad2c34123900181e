"""The one exception that reaches a person, and the check of numbers that raises it."""


class LmscoutError(Exception):
    """Something the user can mend; the message is one line: what, where, and what to do.

    The command line prints the message and exits with code 2.  Anything else that is
    raised is a defect of lmscout and keeps its traceback.
    """


def check_whole(name: str, given: object, least: int, most: int | None = None) -> None:
    """Refuse a setting that is no whole number, or is out of its bounds.

    Args:
        name: of the setting, as the message is to call it.
        given: its value.
        least: the smallest that is allowed.
        most: the largest; None for no such bound.

    Raises:
        LmscoutError: it is.
    """
    if isinstance(given, bool) or not isinstance(given, int):
        raise LmscoutError(f"{name} of {given!r} is no whole number: give {least} or more")
    if given < least:
        raise LmscoutError(f"{name} of {given} is too small: give {least} or more")
    if most is not None and given > most:
        raise LmscoutError(f"{name} of {given} is too large: give {most} or less")
