"""The one exception that reaches a person."""

import re

_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]+@")
_VALUE = re.compile(
    r"([?&;](?:\w*passw(?:or)?d|pwd|secret|\w*token))=(?!\*{3})[^\s&;]+", re.IGNORECASE
)


class LmscoutError(Exception):
    """Something the user can mend; the message is one line: what, where, and what to do.

    The command line prints the message and exits with code 2.  Anything else that is
    raised is a defect of lmscout and keeps its traceback.
    """


def without_passwords(words: str) -> str:
    """Words in which URLs have no passwords, wherever in the line they are."""
    return _VALUE.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", words))
