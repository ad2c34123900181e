"""Shared by all tests: hypothesis without a deadline, as machines are noisy; benchmark files."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from script_server import ScriptServer

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

gc.disable()  # while tests are collected: a fifth of the time of importing what they test


LONGEST = (
    *("test_docs_site", "test_ray_cluster", "test_pruning_workflow", "test_report_browser"),
    *("test_cli_commands", "test_testing_families", "test_discovery_deep", "test_cli_prune"),
    *("test_cli_foreign_code", "test_pruning_study_lock", "test_pruning_tails"),
)


def pytest_collection_modifyitems(items):
    """The files that take longest first: at the end no process waits for another."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    gc.enable()
    gc.freeze()


BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    given = os.environ.get("LMSCOUT_DATA", "").split(os.pathsep)
    for directory in [*(Path(item) for item in given if item), BESIDE]:
        if (directory / "flexibert" / "BERT_benchmark.json").exists():
            return directory
    pytest.skip("benchmark files are neither in LMSCOUT_DATA nor in ../shared/data")


@pytest.fixture(scope="session")
def script_server():
    server = ScriptServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def forked_reloads(script_server):
    """Load saved models again in processes that begin with PyTorch loaded, a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmscout.pruning.export.run_script", script_server.run)
        yield
