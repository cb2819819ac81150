"""Presets are found by their names."""

import pytest

from diffrl.base.errors import UserError
from diffrl.presets import get_preset


@pytest.mark.parametrize("name", [3, None, ["smoke"], "smoek"])
def test_what_names_no_preset_is_refused_with_the_names(name):
    with pytest.raises(UserError, match=r"There is no preset .*choose one of smoke, laptop"):
        get_preset(name)
    assert get_preset("smoke").name == "smoke"
