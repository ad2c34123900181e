import sys
from pathlib import Path

import pytest
import torch

# The scripts that make what ships are no package; they import one another from beside them.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tests run side by side, one a core; and sums over threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
