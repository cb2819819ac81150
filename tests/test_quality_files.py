"""Strangers' files of demonstrations are measured with the right values, or refused with reason."""

import tempfile
from pathlib import Path

import file_variations as variations
import numpy as np
import pytest

from diffrl import quality
from diffrl.errors import UserError

FILES = 130  # of each layout


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where the machine has one: a file system's own speed is not tested."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


# -- any legal file --------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", variations.LAYOUTS)
def test_any_legal_file_is_measured_rightly_or_refused_with_the_true_reason(layout, memory):
    measured = refused = 0
    for seed in range(FILES):
        path = memory / f"{seed}.hdf5"
        sample = variations.write(layout, np.random.default_rng((seed, len(layout))), path)
        good = [demo for demo in sample.demos if not demo.refusals]
        bad = [demo for demo in sample.demos if demo.refusals]
        lines = []
        with_seed = f"{layout} {seed}"
        if bad and not (sample.options.get("skip_bad") and good):
            with pytest.raises(UserError) as refusal:
                quality.read_trajectories(path, **sample.options, tell=lines.append)
            reasons = [reason for demo in bad for reason in demo.refusals]
            assert any(reason in str(refusal.value) for reason in reasons), (with_seed, refusal)
            assert path.name in str(refusal.value), with_seed
            refused += 1
        else:
            found = quality.read_trajectories(path, **sample.options, tell=lines.append)
            assert len(found) == len(good), with_seed
            assert_right(found, good, sample, lines, with_seed)
            assert sum("left out: " in line for line in lines) == len(bad), with_seed
            measured += 1
        path.unlink()
    assert min(measured, refused) > FILES / 10  # neither of the two is all that was tried


def assert_right(found, demos, sample, lines, seed):
    """The values are those that were computed from the arrays as stored."""
    commands = variations.measured_actions(demos, sample.clips)
    known = variations.known_success(demos)
    assert [t.success for t in found] == known, seed
    for trajectory, demo, actions in zip(found, demos, commands, strict=True):
        got = quality.trajectory_measures(trajectory)
        assert trajectory.rate == pytest.approx(sample.rate, rel=1e-6), seed
        close = {"rel": 1e-6, "abs": 1e-9}
        assert got["jerk_rms"] == pytest.approx(
            variations.jerk_rms(demo.position, sample.rate), **close
        ), seed
        assert got["path_length"] == pytest.approx(variations.path_length(demo.position)), seed
        assert got["steps"] == demo.steps, seed
        if actions is None:
            assert np.isnan([got[k] for k in ("action_change", "idle_share")]).all(), seed
        else:
            change = np.abs(actions[1:, :6] - actions[:-1, :6]).mean()
            assert got["action_change"] == pytest.approx(change), seed
            switches = np.count_nonzero(actions[1:, 6] * actions[:-1, 6] < 0)
            assert got["gripper_switches"] == switches, seed
    if any(k is None for k in known):
        assert any("does not tell" in line for line in lines), seed
    if commands[0] is None:
        assert any("measures of actions are left out" in line for line in lines), seed
    elif any(np.abs(d.actions).max() > 1.01 for d in demos):
        assert any("are clipped" in line for line in lines), seed
