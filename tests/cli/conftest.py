import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import Server, errors, progress_lines
from safetensors.numpy import save_file

MIXERS = [("SA", "SDP"), ("SA", "WMA"), ("LT", "DFT"), ("LT", "DCT"), ("DSC", 5), ("DSC", 9)]


@pytest.fixture(scope="session")
def flexibert_file(tmp_path_factory):
    """Twenty-four encoders in upstream's format, every mixer among them."""
    rows = []
    for index in range(24):
        kind, parameter = MIXERS[index % 6]
        layer = {
            "operation_type": kind,
            "operation_parameter": parameter,
            "num_operation_heads": 2 + 2 * (index % 2),
            "feed_forward_dimension": 512,
            "num_feed_forward": 1 + index % 2,
        }
        overrides = {
            "hidden_size": 128,
            "nas_config": {"encoder_layers": [layer] * (2 + 2 * (index % 3 == 0))},
        }
        score = 60 + 5 * (index % 3 == 0) + 0.1 * index
        rows.append(
            {
                "id": index,
                "scores": {"glue": score},
                "hparams": {"model_hparam_overrides": overrides},
            }
        )
    path = tmp_path_factory.mktemp("data") / "small.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """Tokens of which each follows from the one before, as a file."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    sequence = (np.arange(4200) * 7 % 4096).astype(np.int16)
    save_file({"train": sequence[:3900], "validation": sequence[3900:]}, file)
    return file


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def lmscout(server, cache, tmp_path, tmp_path_factory):
    """Run the command in an empty folder: (exit code, stdout, stderr without progress).

    Lines of progress of the last run are in its attribute `progress`.  With `stdout` that file or
    device takes the command's standard output.
    """

    def run(*arguments, stdout=None, **environment):
        folder = tmp_path_factory.mktemp("output")
        out, err = stdout or folder / "out", folder / "err"
        environment = os.environ | {"LMSCOUT_CACHE": str(cache)} | environment
        code = server.run([*map(str, arguments)], tmp_path, environment, out, err, seconds=300)
        run.progress = progress_lines(err.read_text())
        return code, "" if stdout else out.read_text(), errors(err.read_text())

    return run


@pytest.fixture
def installed_lmscout(tmp_path):
    """Run the installed command as a shell does, modules yet to be loaded."""
    command = Path(sys.executable).with_name("lmscout")

    def run(*arguments):
        done = subprocess.run(
            [str(command), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run
