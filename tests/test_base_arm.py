"""Arms: one way to write where data come from, and to read what records say of it."""

import pandas as pd
import pytest

from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.presets import PRESETS


@pytest.mark.parametrize("separator", ["-", " ", "/"])
def test_an_arm_is_read_as_any_record_writes_it(separator):
    for arm in (Arm("diffusion", "deterministic"), Arm("human (mine)"), Arm("a+b:10", "x+y")):
        assert Arm.parse(arm.joined(separator)) == arm
    assert Arm.parse(str(Arm("gaussian", "stochastic"))) == ("gaussian", "stochastic")


@pytest.mark.parametrize("text", ["", "diffusion", "-recorded", "diffusion-", "a-b:10"])
def test_what_names_no_arm_is_refused(text):
    with pytest.raises(UserError, match="write <source>-<mode>"):
        Arm.parse(text)


def test_every_presets_training_data_are_arms():
    for preset in PRESETS.values():
        assert [str(Arm.parse(data)) for data in preset.vla.data] == list(preset.vla.data)


def test_arms_stand_in_the_series_order_and_strange_ones_behind():
    ordered = [Arm("operator"), Arm("gaussian", "stochastic"), Arm("diffusion", "deterministic")]
    ordered += [Arm("diffusion", "stochastic"), Arm("mine")]
    assert sorted(set(ordered), key=lambda arm: arm.order) == ordered != sorted(ordered)


def test_the_arms_of_the_laptops_records_are_read(laptop_run):
    for name, columns in (("evaluation_pairs", 14), ("quality_tests", 8)):
        table = pd.read_csv(laptop_run / f"{name}.csv")
        arms = {Arm.parse(text) for column in ("first", "second") for text in table[column]}
        assert 3 <= len(arms) <= columns
        assert arms <= {Arm.parse(data) for data in PRESETS["laptop"].vla.data}
