"""One `Policy` protocol for everything that can be evaluated, and the policies that live here.

A policy is named by a short text, so that any process can open it by itself:
`compact:<folder>` · `expert:<folder>[?mode=stochastic]` · `oracle:<data set>` · `random:` ·
`openpi:ws://host:port?model=<name>` · `lerobot:<its python>?checkpoint=<path>` ·
`<module>:<class>` or `<file.py>:<class>`, a policy of one's own (`diffrl.evaluation.own`).
Nothing in a name is decoded, so paths may hold any character; a leading ~ is the home folder.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from diffrl import policy as rl_policy
from diffrl.base.arm import POLICY_MODES
from diffrl.base.artifacts import config_hash, file_hash, read_json, user_path
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.data.hdf5 import read_episodes
from diffrl.evaluation.protocol import Base, Policy, Trial, read_options
from diffrl.policy import trial_generator
from diffrl.policy.decide import decide, in_blocks
from diffrl.sim.observation import Observation
from diffrl.vla import model as vla
from diffrl.vla.model import CAMERAS, Inputs, proprioception

BLOCK = 8  # rows of one forward pass; fewer are padded, so company never changes a result


class Random(Base):
    """Uniform actions in [−1, 1]: what success means when nothing is known."""

    fingerprint = "random"

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        draws = [torch.rand(self.chunk, ACTION_SIZE, generator=self.memory[t]) for t in trials]
        return (2 * torch.stack(draws) - 1).double().numpy()


class Oracle(Base):
    """Replays the recorded actions of the episode with the trial's start state and seed."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = user_path(path)
        self.fingerprint = f"oracle {file_hash(self.path)}"
        self.episodes = {Trial(e.task, e.start_state, e.seed): e for e in read_episodes(self.path)}

    def begin(self, trial: Trial, instruction: str) -> None:
        if trial not in self.episodes:
            raise UserError(
                f"{self.path} holds no episode of {trial.task} from {trial.start_state} with seed "
                f"{trial.seed}: an oracle can replay only what was recorded."
            )
        self.memory[trial] = 0

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        return np.stack([self._next(trial) for trial in trials])

    def _next(self, trial: Trial) -> np.ndarray:
        actions, at = self.episodes[trial].actions, self.memory[trial]
        self.memory[trial] = at + self.chunk
        rest = np.zeros((self.chunk, ACTION_SIZE))  # past the end: stay, keep the gripper's command
        rest[:, -1] = actions[-1, -1]
        played = actions[at : at + self.chunk]
        rest[: len(played)] = played
        return rest


class Expert(Base):
    """A diffusion or Gaussian policy of `diffrl.rl`, in either mode."""

    def __init__(self, folder: str | Path, mode: str = "deterministic"):
        super().__init__()
        if mode not in POLICY_MODES:
            raise UserError(f"An expert's mode is deterministic or stochastic, not {mode!r}.")
        folder = user_path(folder)
        if not (folder / rl_policy.DESCRIPTION).is_file():
            raise UserError(
                f"{folder} holds no expert: name a folder with {rl_policy.DESCRIPTION}, or train "
                "one (`python -m diffrl train --task TASK` says where it lies)."
            )
        self.policy, self.mode = rl_policy.load(folder), mode
        weights = file_hash(folder / rl_policy.WEIGHTS)
        self.fingerprint = f"{mode} {weights} {config_hash(self.policy.config)}"
        self.cameras, self.chunk = tuple(self.policy.cameras), self.policy.chunk
        if self.cameras:
            self.image_size, self.detail = self.policy.layout.image_size, self.policy.layout.detail

    def begin(self, trial: Trial, instruction: str) -> None:
        self.memory[trial] = trial_generator(*trial), self.policy.no_tail(1)

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        features = self.policy.features(observation, images)
        noises, tails = zip(*(self.memory[trial] for trial in trials))
        # as in the rollouts that made its data
        actions, ends = decide(self.policy, features, noises, tails, self.mode)
        self.memory |= dict(zip(trials, zip(noises, ends)))
        return actions


class Compact(Base):
    """The compact VLA."""

    cameras = CAMERAS

    def __init__(self, folder: str | Path):
        super().__init__()
        folder = user_path(folder)
        if not (folder / "model.json").is_file():
            raise UserError(
                f"{folder} holds no compact VLA: name a folder with model.json, or train one there "
                f"(`python -m diffrl train-vla --data FILE --out {folder}`)."
            )
        self.model = vla.load(folder)
        config, stored = self.model.config, read_json(folder / "model.json")
        weights = file_hash(folder / "model.safetensors")
        del stored["about"]
        self.fingerprint = f"compact {weights} {config_hash(stored)}"
        self.image_size, self.detail, self.chunk = config.image_size, config.detail, config.chunk
        self.horizon = config.horizon

    def begin(self, trial: Trial, instruction: str) -> None:
        words = torch.from_numpy(self.model.read(instruction))
        self.memory[trial] = trial_generator(*trial), words

    def act(
        self, observation: Observation, images: np.ndarray | None, trials: Sequence[Trial]
    ) -> np.ndarray:
        assert images is not None  # it has cameras
        feel = proprioception(observation.eef_pos, observation.eef_quat, observation.gripper_qpos)
        generators, words = zip(*(self.memory[trial] for trial in trials))
        noise = [torch.randn(self.horizon, ACTION_SIZE, generator=g) for g in generators]
        inputs = Inputs(self.model.look(images), torch.from_numpy(feel), torch.stack(words))
        actions = in_blocks(
            lambda noise, *parts: self.model.sample(Inputs(*parts), noise),
            torch.stack(noise),
            *inputs,
            block=BLOCK,
        )
        return actions[:, : self.chunk].double().numpy()


def open_policy(name: str) -> Policy:
    """Open the policy that `name` describes (see the module's first lines).

    Raises:
        UserError: the kind is unknown, or what it names is missing or broken.
    """
    from diffrl.evaluation.own import open_own, parse

    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        if named := parse(name):
            return open_own(named)
        raise UserError(
            f"There is no policy {name!r}: write compact:<folder>, expert:<folder>[?mode="
            "stochastic], oracle:<data set>, random:, openpi:ws://<host>:<port>?model=<name>, "
            "lerobot:<python>?checkpoint=<path>, or <module>:<class> or <file.py>:<class> for one "
            "of your own."
        )
    make = _maker(kind)
    place, options = read_options(rest, list(inspect.signature(make).parameters)[1:], kind)
    try:
        return make(*([place] if place else []), **options)
    except TypeError as error:
        raise UserError(
            f"The policy {name!r} is not complete or not understood: {error}."
        ) from error


def label_of(name: str) -> str:
    """Return what records call a policy: its kind, or the class of one of one's own."""
    from diffrl.evaluation.own import parse

    kind, named = name.partition(":")[0], parse(name)
    return named.what if named and kind not in KINDS else kind


KINDS = ("compact", "expert", "oracle", "random", "openpi", "lerobot")


def _maker(kind: str) -> Callable[..., Policy]:
    if kind == "openpi":
        from diffrl.evaluation.openpi import OpenPI

        return OpenPI
    if kind == "lerobot":
        from diffrl.evaluation.lerobot import LeRobot

        return LeRobot
    makers = {"compact": Compact, "expert": Expert, "oracle": Oracle, "random": Random}
    return makers[kind]
