import pytest


@pytest.fixture(scope="module", autouse=True)
def reloads(request):
    if request.module.__name__ != "test_pruning_export":  # which tests the process itself
        request.getfixturevalue("forked_reloads")
