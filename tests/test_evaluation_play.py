"""Trials in the simulator, errors apart from failures."""

import numpy as np
import pytest
from evaluation_samples import EXPERTS, TASK, run

from diffrl.base.errors import UserError
from diffrl.evaluation import policies
from diffrl.evaluation.play import play
from diffrl.evaluation.policies import BLOCK, open_policy
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.scores import summarise
from diffrl.evaluation.stage import plan


@pytest.mark.sim
def test_a_trial_s_every_state_is_the_same_in_any_company(laptop_run):
    trials, kept = plan([TASK], BLOCK + 1), []
    for copies, order in ((BLOCK + 1, 1), (2, -1)):
        policy = open_policy(f"expert:{laptop_run / EXPERTS / 'diffusion-seed0'}?mode=stochastic")
        played = play(policy, trials[::order], copies, keep=lambda trial: True)
        kept.append(played[::order])
    assert len({outcome.steps for outcome in kept[0]}) > 2  # or swapped trials would not show
    for one, other in zip(*kept):
        assert (one.trial, one.status, one.steps) == (other.trial, other.status, other.steps)
        assert np.array_equal(one.states, other.states)


@pytest.mark.sim
def test_the_openpi_adapter_drives_whole_episodes_and_errors_are_kept_apart(
    demonstrations, serve, tmp_path
):
    trial, episode = next(iter(open_policy(f"oracle:{demonstrations}").episodes.items()))
    np.save(tmp_path / "actions.npy", episode.actions)
    policy = f"openpi:{serve('replay', str(tmp_path / 'actions.npy'))}?model=replay&timeout=20"
    table = run(policy, [trial], tmp_path / "sound", workers=1)
    assert table["status"].tolist() == ["success"]
    assert table["steps"].tolist() == [episode.length]
    policy = f"openpi:{serve('dies')}?model=dies&timeout=5"
    table = run(policy, plan([TASK], 2), tmp_path / "dead", workers=1)
    assert table["status"].tolist() == ["error", "error"]
    assert "policy server" in (tmp_path / "dead" / "trials.json").read_text()
    assert summarise(table).iloc[0]["trials"] == 0


class Wrong(policies.Random):
    """A policy for another robot, or a broken one."""

    def __init__(self, size: int = 6, value: float = 0.0):
        super().__init__()
        self.size, self.value = size, value

    def act(self, observation, images, trials):
        return np.full((len(trials), self.chunk, self.size), self.value)


@pytest.mark.sim
def test_actions_of_a_wrong_size_or_without_a_value_stop_the_evaluation():
    with pytest.raises(UserError, match=r"shape \(1, 8, 6\); expected \(1, 8, 7\)"):
        play(Wrong(size=6), plan([TASK], 1), copies=1)
    with pytest.raises(UserError, match="not finite"):
        play(Wrong(size=7, value=np.nan), plan([TASK], 1), copies=1)


@pytest.mark.sim
def test_unknown_start_states_are_refused_by_name():
    for name in ("official/50", "somewhere/1", "fresh/1", "official"):
        with pytest.raises(UserError, match=name):
            play(Wrong(), [Trial(TASK, name, 0)], copies=1)
