import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_checkpoints
import torch

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tests run side by side, one a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    return tiny_checkpoints.save(
        tmp_path_factory.mktemp("models") / "llama", tiny_checkpoints.llama()
    )


@pytest.fixture(scope="session")
def shared_models():
    given = os.environ.get("LMSCOUT_MODELS", "").split(os.pathsep)
    for directory in [*(Path(item) for item in given if item), SHARED / "models"]:
        if (directory / "wiki-llama-16m" / "config.json").exists():
            return directory
    pytest.skip("trained models are neither in LMSCOUT_MODELS nor in ../shared/models")


@pytest.fixture(scope="session")
def wikitext_test():
    given = os.environ.get("LMSCOUT_DATA", "").split(os.pathsep)
    for directory in [*(Path(item) for item in given if item), SHARED / "data"]:
        file = directory / "text" / "wikitext2.test.tokens.gz"
        if file.exists():
            return file
    pytest.skip("WikiText-2 is neither in LMSCOUT_DATA nor in ../shared/data")


@pytest.fixture
def lmscout_without():
    """Run the command line in a process of its own, in which a module cannot be imported."""

    def run(module, *arguments):
        code = (
            f"import sys; sys.modules[{module!r}] = None; sys.argv = {['lmscout', *arguments]!r}\n"
            "from lmscout.cli.main import main; main()"
        )
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )

    return run
