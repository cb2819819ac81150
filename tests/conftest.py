"""The order of the tests: the series first, since the others are run beside it."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("notebooks") is None)
