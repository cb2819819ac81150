"""What a source commands, step by step, against LIBERO's human demonstrations."""

import json
from collections.abc import Sequence
from importlib import resources

import numpy as np
import pandas as pd

from diffrl.data.episode import Episode
from diffrl.demonstrator.stage import idle


def command_statistics(episodes: Sequence[Episode]) -> pd.DataFrame:
    """Return dimension (0-6), mean, std, q01, q99 of the actions; idle steps are left out.

    So they compare with `human_statistics`, whose sets hold no idle steps either.
    """
    actions = np.concatenate([episode.actions[~idle(episode.actions)] for episode in episodes])
    low, high = np.quantile(actions, (0.01, 0.99), axis=0)
    columns = {"mean": actions.mean(axis=0), "std": actions.std(axis=0), "q01": low, "q99": high}
    return pd.DataFrame({"dimension": range(7), **columns})


def human_statistics(suite: str) -> pd.DataFrame | None:
    """Return the same of a suite's human demonstrations, without the quantiles; None if unknown.

    Source: the public sets without idle steps; their gripper (0 close, 1 open) is turned into ours
    (+1 close, -1 open).
    """
    known = json.loads(
        resources.files("diffrl.demonstrator").joinpath("human_actions.json").read_text()
    )
    if suite not in known:
        return None
    mean, std = (np.array(known[suite][name]) for name in ("mean", "std"))
    mean[6], std[6] = 1 - 2 * mean[6], 2 * std[6]
    table = pd.DataFrame({"dimension": range(7), "mean": mean, "std": std})
    return table.assign(q01=np.nan, q99=np.nan)
