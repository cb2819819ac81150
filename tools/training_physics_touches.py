"""How often a policy that learns touches a thing that training physics has frozen.

    .venv/bin/python -m diffrl reproduce --preset laptop   # or its experts, trained
    .venv/bin/python tools/training_physics_touches.py

Such a thing could be woken: exact physics from the touch to the episode's end. This measures what
that would cost and change: the diffusion experts play fresh start states in training physics with
exploration noise, and each control step looks for a contact between what moves and what was frozen,
beside the contacts that the start state has.

Writes `results/training_physics_touches.csv`: task, episodes, touching (episodes with such a
contact), share_after (of the control steps, after the first one), success, touched (the bodies).
"""

import numpy as np
import pandas as pd
import torch
import tyro

from diffrl import policy as policies
from diffrl.base.artifacts import root, write_csv
from diffrl.policy import ChainPolicy
from diffrl.presets import get_preset
from diffrl.rl.records import expert_folder
from diffrl.rl.rollout import Senses
from diffrl.sim.scene import Scene, load_scene
from diffrl.sim.simulator import Simulator
from diffrl.sim.starts import fresh_start_states

TASKS = (
    "libero_object/0",
    "libero_spatial/0",
    "libero_goal/0",
    "libero_goal/7",
    "libero_90/1",
    "libero_10/2",
)
STARTS = 3_500_000  # seed of the start states: no stage of the series draws them


class Touches:
    """Finds contacts between moving and frozen bodies in one copy of a simulator."""

    def __init__(self, moving):
        self.data, model = moving.data, moving.face.model
        frozen = np.zeros(model.nbody, bool)
        frozen[moving.face.placed] = True
        for body in range(1, model.nbody):  # parents come first
            frozen[body] |= frozen[model.body_parentid[body]] and model.body_weldid[body] == 0
        self.body, self.model = model.geom_bodyid, model
        self.frozen, self.free = frozen[self.body], model.body_weldid[self.body] != 0
        self.known = self.now()

    def now(self) -> set[str]:
        """Names of the pairs that touch."""
        pairs = self.data.contact.geom.reshape(-1, 2)
        first, second = pairs[:, 0], pairs[:, 1]
        hit = (self.frozen[first] & self.free[second]) | (self.free[first] & self.frozen[second])
        name = lambda geom: self.model.body(self.body[geom]).name  # noqa: E731
        return {" on ".join(sorted(map(name, pair))) for pair in pairs[hit]}

    def new(self) -> set[str]:
        """Pairs that touch now and did not at the start."""
        return self.now() - self.known


def measure(task: str, policy: ChainPolicy, scene: Scene, episodes: int) -> dict:
    """Play the episodes side by side and return the task's row."""
    generator, everyone = torch.Generator().manual_seed(0), np.arange(episodes)
    first, touched = np.full(episodes, -1), set()
    with Simulator(scene, episodes, physics="training") as simulator:
        senses, tail = Senses(policy, scene, simulator), policy.no_tail(episodes)
        simulator.reset(fresh_start_states(scene, episodes, STARTS))
        touches = [Touches(moving) for moving in simulator._copies]
        while not simulator.done.all():
            features = policy.with_tail(senses(everyone), tail)
            plan, _ = policy.sample(features, policy.noise(generator, episodes), "stochastic")
            actions, tail = policy.execute(plan, tail)
            for step in actions.double().numpy().swapaxes(0, 1):
                alive = np.flatnonzero(~simulator.done & (first < 0))
                simulator.step(step)
                for copy in alive:
                    if new := touches[copy].new():
                        first[copy], touched = simulator.elapsed[copy], touched | new
        after = np.where(first >= 0, simulator.elapsed - first, 0).sum()
        share, success = after / simulator.elapsed.sum(), simulator.success.mean()
    row = {"task": task, "episodes": episodes, "touching": int((first >= 0).sum())}
    return row | {
        "share_after": round(float(share), 3),
        "success": round(float(success), 3),
        "touched": "; ".join(sorted(touched)),
    }


def main(tasks: tuple[str, ...] = TASKS, preset: str = "laptop", episodes: int = 24) -> None:
    """Measure each task with the diffusion expert of a preset, seed 0, and print the table."""
    torch.set_num_threads(1)
    rows = []
    for task in tasks:
        policy = policies.load(expert_folder(get_preset(preset), task, "diffusion", 0))
        rows.append(measure(task, policy, load_scene(task), episodes))
    table = pd.DataFrame(rows)
    write_csv(root() / "results" / "training_physics_touches.csv", table)
    print(table.to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main)
