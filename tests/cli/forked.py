"""Run the command in a process of its own that begins with its modules loaded.

Loading PyTorch and transformers takes most of the time of a short command.  A server, started
once, has loaded them and forks for each command: what runs is `lmscout.cli.main` with
arguments, folder, environment, output, exit and exit code of its own, as it is for a user.
Only the modules that the server has loaded are not taken down again, which takes longer than a
short command.
"""

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from lmscout.children import load_modules

LOADED = (  # imported, and nothing run: a process with threads must not be forked
    "lmscout.api",
    "lmscout.cli.main",
    "lmscout.discovery",
    "lmscout.evaluation",
    "lmscout.pruning.workflow",
    "transformers.models.llama.modeling_llama",
)

_PROGRESS = re.compile(r"^[^\n]+: \d+/\d+(, \d+ s)?\n", re.MULTILINE)


def progress_lines(stderr):
    """The lines of progress on standard error: one per stage, then one per minute."""
    return [one.group().rstrip() for one in _PROGRESS.finditer(stderr)]


def errors(stderr):
    """Standard error without lines of progress."""
    return _PROGRESS.sub("", stderr)


class Server:
    """Loads modules at its first command; commands run one after the other."""

    def __init__(self):
        self._process = None

    def run(self, arguments, folder, environment, out, err, seconds):
        """The command's exit code (minus the signal that ended it); its output is in files.

        Args:
            arguments: of the command.
            folder: in which it runs.
            environment: all of it.
            out: file for its standard output.
            err: file for its standard error.
            seconds: after which it is ended.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        request = [arguments, str(folder), dict(environment), str(out), str(err), seconds]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self):
        """End the server, which waits for nothing else."""
        if self._process is not None:
            self._process.communicate()


def _serve():
    """Answer requests for ever; returns in the forked process alone."""
    load_modules(*LOADED)  # and frozen: neither copied nor searched where a command ends
    from lmscout.pruning import export
    from script_server import ScriptServer

    scripts = ScriptServer()
    for line in sys.stdin:
        if json.loads(line)[0][:1] == ["prune"]:  # which loads what it saves again
            scripts.start(os.environ)
            export.run_script = scripts.run
        pid = os.fork()
        if pid == 0:
            return _become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    scripts.stop()
    raise SystemExit


def _become(arguments, folder, environment, out, err, seconds):
    with open(out, "wb") as stdout, open(err, "wb") as stderr, open(os.devnull, "rb") as nothing:
        for descriptor, file in enumerate((nothing, stdout, stderr)):
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["lmscout", *arguments]
    signal.alarm(seconds)


def _end(code):
    """End as the interpreter does, but for the modules: threads, exit handlers, output."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    _serve()
    from lmscout.cli.main import main

    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int):
            _end(end.code)
        raise
