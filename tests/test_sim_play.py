"""The loop that plays start states: the same trials on any number of copies, whoever acts."""

from dataclasses import replace

import numpy as np
import pytest

from diffrl.sim.play import play
from diffrl.sim.scene import load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states

pytestmark = pytest.mark.sim


class Drawn:
    """Random chunks of three control steps, from a generator of each trial's own."""

    chunk = 3

    def __init__(self, silent: int | None = None):
        self.silent = silent
        self.memory, self.asked = {}, []

    def begin(self, playing):
        self.memory[playing.number] = np.random.default_rng(playing.number)

    def act(self, simulator, playing):
        self.asked.append([one.number for one in playing])
        for one in playing:
            if one.number == self.silent:
                one.status, one.message = "error", "it says nothing"
        return np.stack([self.memory[one.number].uniform(-1, 1, (3, 7)) for one in playing])

    def end(self, playing):
        del self.memory[playing.number]


@pytest.fixture(scope="module")
def scene():
    return load_scene("libero_object/0")


def trials_of(scene, copies, actor, starts=None, keep=lambda number: True):
    starts = fresh_start_states(scene, 4, seed=3) if starts is None else starts
    with Simulator(scene, copies, threads=1, max_steps=10) as simulator:
        played = {one.number: one for one in play(simulator, starts, actor, keep)}
    assert not actor.memory  # every trial that began has ended
    return played


def test_the_number_of_copies_changes_no_trial(scene):
    alone, beside = trials_of(scene, 1, Drawn()), trials_of(scene, 3, Drawn())
    assert sorted(alone) == sorted(beside) == [0, 1, 2, 3]
    for number, one in alone.items():
        assert (one.status, one.steps) == ("failure", 10)  # the limit is inside a chunk
        assert len(one.actions) == 10
        assert len(one.states) == 11
        np.testing.assert_array_equal(one.states, beside[number].states)
        np.testing.assert_array_equal(one.actions, beside[number].actions)


def test_a_trial_whose_actor_says_nothing_ends_and_its_copy_is_free_again(scene):
    actor = Drawn(silent=1)
    played = trials_of(scene, 2, actor)
    assert (played[1].status, played[1].message, played[1].steps) == ("error", "it says nothing", 0)
    assert len(played[1].states) == 1
    assert actor.asked[:2] == [[0, 1], [0, 2]]
    whole = trials_of(scene, 2, Drawn())
    np.testing.assert_array_equal(played[2].states, whole[2].states)


def test_a_start_that_flies_apart_while_it_settles_is_an_error_before_anybody_acts(scene):
    starts = fresh_start_states(scene, 3, seed=3)
    states = starts.states.copy()
    states[1, 1 + scene.model.nq :] = 1e5  # m/s
    actor = Drawn()
    played = trials_of(scene, 3, actor, replace(starts, states=states))
    assert [played[number].status for number in range(3)] == ["failure", "error", "failure"]
    assert played[1].message == "the physics diverged while the start state settled"
    assert all(asked == [0, 2] for asked in actor.asked)


def test_only_the_states_that_are_wanted_are_kept(scene):
    played = trials_of(scene, 2, Drawn(), keep=lambda number: number == 2)
    assert [len(played[number].states) for number in range(4)] == [0, 0, 11, 0]
    assert [played[number].kept for number in range(4)] == [False, False, True, False]
