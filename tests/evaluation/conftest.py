import os
import sys
from pathlib import Path

import pytest
import tiny_checkpoints
import torch

from lmscout.cli.main import main

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
def lmscout_without(monkeypatch, capsys):
    """Run the command line where a module cannot be imported: its exit code and its stderr."""

    def run(module, *arguments):
        for name in [module, *(one for one in sys.modules if one.startswith(f"{module}."))]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr("sys.argv", ["lmscout", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr().err

    return run
