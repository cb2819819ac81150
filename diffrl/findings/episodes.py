"""Episodes as pictures: what a demonstration looks like, and the first episode of each source."""

import numpy as np
import pandas as pd

from diffrl import figures
from diffrl.base.arm import Arm
from diffrl.base.control import CONTROL_HZ
from diffrl.base.errors import UserError
from diffrl.data.episode import Episode
from diffrl.data.media import pictures
from diffrl.demonstrator.episodes import operator_demonstrations
from diffrl.findings.finding import Finding
from diffrl.presets import Preset
from diffrl.sim.scene import load_scene

SIZE, FRAMES = 256, 5  # pixels of LIBERO's own pictures; pictures a row


def demonstration(preset: Preset) -> Finding | None:
    """The first demonstration that the clones learn from, before anything is trained."""
    task, seed = preset.tasks[0], preset.rl.seeds[0]
    scene = load_scene(task)
    (shown,), _ = operator_demonstrations(scene, 1, seed, preset.of(task).demonstrations)
    words = scene.instruction[0].upper() + scene.instruction[1:]
    caption = f"""{words}: the scripted operator's first demonstration of {task}. n = 1. Preset
    {preset.name}."""
    return _sheet("01_task", {Arm("operator"): shown}, caption)


def contact_sheet(episodes: dict[Arm, Episode], task: str, preset: str) -> Finding | None:
    """The first episode of each arm."""
    caption = f"""The first episode of each source on {task}. n = 1 each, so this shows and proves
    nothing. Preset {preset}."""
    return _sheet("02_contact_sheet", episodes, caption)


def _sheet(name: str, episodes: dict[Arm, Episode], caption: str) -> Finding | None:
    """Five exact pictures of each episode, from its first state to its last.

    None, and the reason is printed, where this machine has no renderer.
    """
    strips, times = {}, {}
    try:
        for arm, episode in episodes.items():
            every = max(1, (len(episode.states) - 1) // (FRAMES - 1))
            film = pictures(episode, every, SIZE, "exact")
            rows = np.minimum(every * np.arange(len(film)), len(episode.states) - 1)
            chosen = [*range(FRAMES - 1), -1]
            strips[arm.label], times[arm.label] = film[chosen], rows[chosen] / CONTROL_HZ
    except UserError as error:
        print(error)
        return None
    caption += f" Agentview, {SIZE} × {SIZE} pixels in exact detail, drawn from the stored states."
    sheet = figures.contact_sheet(strips, times, upside_down=False)
    return Finding(name, sheet, pd.DataFrame(times), caption)
