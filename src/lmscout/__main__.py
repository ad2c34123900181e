"""The command `lmscout`: signals are handled before anything else is loaded."""

import os
import signal
from types import FrameType


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, b"lmscout: interrupted before any work; run the same command again\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from lmscout.cli import stopping

    stopping.listen()
    from lmscout.cli.main import main as run

    try:
        run()
    finally:
        stopping.finish()


if __name__ == "__main__":
    main()
