"""What a policy sees: one feature function over the simulator's observation, for every suite.

A row holds the gripper's pose and opening, each object's pose and its vector from the gripper,
the places that the goal names, and the joints of drawers and knobs. Vectors go through
tanh(x / 2 cm) and tanh(x / 10 cm) (our choice): a grasp is decided by millimetres, a reach by
decimetres, and one linear scale serves only one of them. The layout is fixed by the scene.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from diffrl.base.artifacts import added
from diffrl.base.control import ACTION_SIZE
from diffrl.base.errors import UserError
from diffrl.presets import CloneConfig, Detail
from diffrl.sim.observation import Observation
from diffrl.sim.tasks import CAMERAS

FINE, COARSE = 0.02, 0.10  # m, scales of the tanh
OPENING = 0.04  # m, a finger's travel
Features = dict[str, torch.Tensor]
"""Rows of n decisions: "state" (n, F) float32; beside it, where a policy sees pictures, "image"
(n, 3, S, S) uint8 or a frozen encoder's "cells" (n, cameras, cells, C) float16; and "privileged"
(n, P) float32, what only the critic may know."""


@dataclass(frozen=True)
class Layout:
    """The sizes that decide a feature row: of one scene, and of the policies trained in it."""

    task: str  # "libero_object/0"
    objects: int  # K
    goals: int  # G places named by the goal
    joints: int  # J hinges and slides of fixtures
    image_size: int = 0  # pixels; 0: the policy sees states
    tail: int = added(0)  # control steps of the last plan that are observed, too
    frozen: bool = added(False)  # pictures are seen as a frozen encoder's cells
    wrist: bool = added(False)  # the wrist's camera is seen, too
    detail: Detail = added("reduced")  # of the pictures

    @classmethod
    def of(cls, task: str, observation: Observation, tail: int = 0) -> "Layout":
        """Read the layout of a policy that sees states off an `observation` of the task."""
        objects, goals = observation.object_pos.shape[1], observation.goal_pos.shape[1]
        return cls(task, objects, goals, observation.fixture_qpos.shape[1], tail=tail)

    def seen_by(self, clone: CloneConfig) -> "Layout":
        """Return the layout of a policy that looks as `clone` says."""
        if clone.encoder == "state":
            return self
        return dataclasses.replace(
            self,
            image_size=clone.image_size,
            frozen=clone.encoder == "frozen",
            wrist=clone.wrist,
            detail=clone.detail,
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras whose pictures the policy wants."""
        return CAMERAS[: 1 + self.wrist] if self.image_size else ()

    @property
    def blind(self) -> "Layout":
        """The layout of a policy that sees the state instead."""
        return dataclasses.replace(self, image_size=0, frozen=False, wrist=False)

    @property
    def absolute(self) -> int:
        """Columns with a unit, which the encoder standardises; they come first."""
        return 11 if self.image_size else 11 + 9 * self.objects + self.joints

    @property
    def size(self) -> int:
        """Columns of a feature row."""
        if self.image_size:
            return self.absolute + self.tail_columns
        between = max(self.goals - 1, 0)
        return self.absolute + 6 * (self.objects + self.goals + between) + self.tail_columns

    @property
    def tail_columns(self) -> int:
        """The last columns: the tail's actions in plan units, and whether there is one."""
        return ACTION_SIZE * self.tail + 1 if self.tail else 0

    def check(self, observation: Observation) -> None:
        """Refuse an observation of another scene.

        Raises:
            UserError: the numbers of objects, places or joints differ.
        """
        found = Layout.of(self.task, observation)
        if (found.objects, found.goals, found.joints) != (self.objects, self.goals, self.joints):
            raise UserError(
                f"A policy trained on {self.task} sees {self.objects} objects, {self.goals} goal "
                f"places and {self.joints} joints, but this scene has {found.objects}, "
                f"{found.goals} and {found.joints}: use the policy of this task."
            )


def state_features(observation: Observation) -> np.ndarray:
    """Return the feature rows (n, F) float32 of an observation of n rows."""
    eef = observation.eef_pos
    objects, goals = observation.object_pos, observation.goal_pos
    n = len(eef)
    columns = [
        proprioception(observation),
        objects.reshape(n, -1),
        rotation_columns(observation.object_quat).reshape(n, -1),
        observation.fixture_qpos,
        *_two_scales(objects - eef[:, None]),
        *_two_scales(goals - eef[:, None]),
        *_two_scales(np.diff(goals, axis=1)),  # from a place of the goal to the next one
    ]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")


def proprioception(observation: Observation) -> np.ndarray:
    """Return (n, 11): gripper position in m, rotation (6), fingers in units of their travel."""
    rotation = rotation_columns(observation.eef_quat)
    return np.concatenate(
        [observation.eef_pos, rotation, observation.gripper_qpos / OPENING], axis=1
    )


def rotation_columns(quat: np.ndarray) -> np.ndarray:
    """Return the first two columns of the rotation matrix, (..., 6), of xyzw quaternions (..., 4).

    Continuous where a quaternion jumps between q and -q (Zhou et al. 2019, arXiv 1812.07035).
    """
    x, y, z, w = np.moveaxis(quat, -1, 0)
    first = 1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)
    second = 2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)
    return np.stack([*first, *second], axis=-1)


def _two_scales(vectors: np.ndarray) -> list[np.ndarray]:
    flat = vectors.reshape(len(vectors), -1)
    return [np.tanh(flat / FINE), np.tanh(flat / COARSE)]


def privileged(observation: Observation, tail: torch.Tensor) -> torch.Tensor:
    """Return (n, P) float32: the state, and the tails (n, k, 7) if there are any, for a critic."""
    rows = torch.from_numpy(state_features(observation))
    return torch.cat([rows, tail_columns(tail)], dim=1) if tail.shape[1] else rows


def tail_columns(tail: torch.Tensor) -> torch.Tensor:
    """Return (n, 7 k + 1) of tails (n, k, 7) in plan units: the actions, and 1; zeros where NaN."""
    planned = ~tail.isnan().flatten(1).any(dim=1, keepdim=True)
    return torch.cat([tail.flatten(1).nan_to_num(0.0), planned.to(tail.dtype)], dim=1)


def concatenate(parts: list[Features]) -> Features:
    """Join features along the rows."""
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def on_device(features: Features, device: torch.device) -> Features:
    """Return `features` on a device."""
    return {key: value.to(device) for key, value in features.items()}


def select(features: Features, rows: torch.Tensor) -> Features:
    """Return the given rows of `features`."""
    return {key: value[rows] for key, value in features.items()}
