"""The order of the tests, the series first, as the others run beside it; and shared records."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("notebooks") is None)


@pytest.fixture(scope="session")
def laptop_run(tmp_path_factory):
    """The folder of preset laptop's run, restored from its evidence."""
    from diffrl import evidence

    folder = tmp_path_factory.mktemp("laptop") / "run"
    evidence.unpack(Path(__file__).parents[1] / "results" / "laptop", folder)
    return folder
