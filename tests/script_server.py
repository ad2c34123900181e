"""Scripts in processes that begin with PyTorch and transformers loaded, and without lmscout.

Loading both takes most of the time of a script that loads a small model.  A server, started once,
has loaded them and forks for each script.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

LOADED = (  # imported, and nothing run: a process with threads must not be forked
    "safetensors.torch",
    *(f"transformers.models.{one}.modeling_{one}" for one in ("auto", "gpt2", "llama")),
    *(f"transformers.models.{one}.modeling_{one}" for one in ("mistral", "qwen2", "qwen3")),
    *(f"transformers.models.{one}.modeling_{one}" for one in ("granite", "smollm3", "olmo2")),
    *(f"transformers.models.{one}.modeling_{one}" for one in ("phi3", "gemma2", "gemma3")),
    *(f"transformers.models.{one}.modeling_{one}" for one in ("mixtral", "qwen3_moe")),
    "transformers.models.auto.tokenization_auto",
)
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # of `export`


class ScriptServer:
    """Loads modules at its first script; scripts run one after the other."""

    def __init__(self):
        self._process = None
        self._modules = tempfile.mkdtemp()  # of code that comes with models

    def start(self, env):
        """Start the server, if it has not been; processes that are forked afterwards share it."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                env={**env, **ENVIRONMENT, "HF_MODULES_CACHE": self._modules},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def run(self, script, arguments, env):
        """As `lmscout.children.run_script`, with the environment that the server was started in."""
        self.start(env)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("out", "err")]
            number = time.monotonic_ns()
            request = number, [script, *arguments], list(map(str, files))
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code, answered = None, None
            while answered != number:  # of another process, which was ended meanwhile
                code, answered = map(int, self._process.stdout.readline().split())
            return subprocess.CompletedProcess(script, code, *(one.read_text() for one in files))

    def stop(self):
        """End the server, which waits for nothing else."""
        if self._process is not None:
            self._process.communicate()
        shutil.rmtree(self._modules)


def _serve():
    """Answer requests for ever; returns in the forked process alone."""
    for one in LOADED:
        import_module(one)
    for line in sys.stdin:
        pid = os.fork()
        number, *request = json.loads(line)
        if pid == 0:
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), number, flush=True)
    os._exit(0)  # to take down what is loaded takes longer than a script


if __name__ == "__main__":
    arguments, names = _serve()
    for descriptor, name in enumerate(names, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = arguments
    code = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
