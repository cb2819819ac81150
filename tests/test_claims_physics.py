"""What the log says of training physics, and of libero's experts, is what the records say."""

import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import fisher_exact
from test_claims_log import log_rows, log_text

from diffrl.base.intervals import interval_over_tasks
from diffrl.evidence import packed_table
from diffrl.presets import ALGORITHMS, RETRY, get_preset

RETRIES = ("task", "policy", "held-out, retry", "official, retry")
LAPTOP = Path(__file__).parents[1] / "results" / "laptop"


def test_the_log_s_runs_of_both_physics_are_those_of_the_record():
    table = pd.read_csv(LAPTOP.parent / "training_physics.csv")
    assert (table["trials"] == 192).all()
    assert (table["success"] - table["successes"] / 192).abs().max() < 1e-9
    share = (
        (100 * table["success"])
        .round(1)
        .set_axis(pd.MultiIndex.from_frame(table[["task", "algorithm", "seed", "physics"]]))
    )
    rows = log_rows("task", "policy", "training", "exact")
    told = {
        (task, policy, seed, physics): float(value)
        for task, policy, *cells in rows
        for physics, cell in zip(("training", "exact"), cells)
        for seed, value in enumerate(cell.split())
        if value != "–"
    }
    assert told == share.to_dict()
    assert len(told) == 72  # six tasks, both classes, three seeds, both physics
    flattered = share["libero_goal/0", "diffusion", 0, "training"]
    assert f"with {flattered:.1f} % of the 192 states" in log_text()


def test_what_is_said_of_success_jerk_and_steps_in_both_physics_is_what_the_runs_give():
    """As was planned: classes and seeds are averaged within a task."""
    runs = pd.read_csv(LAPTOP.parent / "training_physics.csv")

    def paired(measure, runs=runs):
        table = runs.groupby(["task", "physics"])[measure].mean().unstack()
        return table["training"] - table["exact"]

    def interval(values, digits):
        value, *ends = (f"{number:+.{digits}f}" for number in interval_over_tasks(values))
        return f"{value} [{', '.join(ends)}]".replace("-", "−")

    readme = " ".join((LAPTOP.parents[1] / "README.md").read_text(encoding="utf-8").split())
    change = 100 * paired("success")
    assert interval_over_tasks(change).value > -1
    assert f"{interval(change, 1)} points" in log_text()
    assert "success by {} points [{}".format(*interval(change, 1).split(" [")) in readme
    for algorithm, name in (("diffusion", "diffusion's"), ("gaussian", "Gaussian's")):
        own = 100 * paired("success", runs[runs["algorithm"] == algorithm])
        assert f"the {name} is {interval(own, 1)}" in log_text()
    assert change.min() > -3  # no task learns in exact physics
    (first, lost), (second, less) = change.nsmallest(2).items()
    told = f"{first} loses {-lost:.1f} points and {second} {-less:.1f}"
    assert told in log_text()
    assert f"jerk changes by {interval(paired('jerk_rms'), 1)} m/s³" in log_text()
    assert f"the successes' steps by {interval(paired('steps'), 1)}" in log_text()
    rough = paired("jerk_rms", runs[runs["algorithm"] == "gaussian"])
    assert f"Of the Gaussian alone jerk changes by {interval(rough, 1)} m/s³" in log_text()


def test_no_measurement_of_laptops_experts_would_have_left_training_physics():
    """Their training was in exact physics: the check compares what `Learner` compares."""
    smallest = []
    for name in ("experts_diagnostics.csv", "tried_diagnostics.csv"):
        for _, run in packed_table(LAPTOP, name).groupby("run"):
            block = run["measured"].gt(0).shift(fill_value=False).cumsum()
            for _, rows in run.groupby(block):
                last, ended = rows.iloc[-1], rows["episodes"].sum()
                if last["measured"] and ended:
                    good = (rows["success"] * rows["episodes"]).sum().round()
                    won = round(last["measured_success"] * last["measured"])
                    table = [(good, ended - good), (won, last["measured"] - won)]
                    smallest.append(fisher_exact(table, alternative="greater").pvalue)
    assert min(smallest) > get_preset("libero").rl.physics_check == 0.01
    assert f"Among {len(smallest)} measurements of `laptop`'s experts" in log_text()


def test_the_log_says_when_libero_goal_0_left_training_physics():
    runs = packed_table(LAPTOP.parent / "libero", "experts_diagnostics.csv")
    played = runs.loc[runs["run"] == "libero_goal-0/diffusion-seed0/", "physics"]
    assert played.tolist() == ["training"] * 10 + ["exact"] * 10
    assert "leaves training physics after ten iterations and ends after twenty" in log_text()


def test_the_log_says_what_training_physics_without_any_success_did_to_an_expert():
    table = packed_table(LAPTOP.parent / "libero", "tried_diagnostics.csv")
    first, last = [], []
    for end in ("", "-gaussian"):
        run = table[table["run"] == f"libero_spatial-5-fallen{end}/"]
        assert len(run) == 60
        assert run["success"].fillna(0).max() == 0
        assert f"none of {run['episodes'].sum():.0f} training episodes succeeded" in log_text()
        measured = (100 * run["measured_success"].dropna()).tolist()
        first, last = [*first, measured[0]], [*last, measured[-1]]
    said = (
        f"found {first[0]:.0f} % (diffusion) and {first[1]:.0f} % (Gaussian) of 48 held-out states,"
    )
    assert f"{said} and the last {last[0]:.0f} and {last[1]:.0f} %" in log_text()


def test_the_log_says_what_the_experts_reached_whom_training_physics_had_misled():
    libero, best, left = LAPTOP.parent / "libero", {}, {}
    kinds = {5: "experts_diagnostics.csv", 4: "tried_diagnostics.csv"}  # of 4 the first tries
    for task, name in kinds.items():
        table = packed_table(libero, name)
        for algorithm, end in (("diffusion", ""), ("gaussian", "-gaussian")):
            runs = {4: f"libero_spatial-4-first{end}/", 5: f"libero_spatial-5/{algorithm}-seed0/"}
            run = table[table["run"] == runs[task]]
            confirmed = run["confirmed_success"].fillna(run["measured_success"])
            known = run["confirmed"] > 0
            best[task, algorithm] = 100 * confirmed[known if known.any() else slice(None)].max()
            left[task, algorithm] = (run["physics"] == "training").sum()
    said = f"succeed on {best[5, 'diffusion']:.1f} % (diffusion) and {best[5, 'gaussian']:.1f} %"
    assert f"{said} (Gaussian) of 192 held-out states" in log_text()
    assert f"learned: {best[4, 'diffusion']:.1f} and {best[4, 'gaussian']:.1f} %" in log_text()
    said = f"by {left[5, 'diffusion']} and by {left[5, 'gaussian']} iterations it flattered them"
    assert said in log_text()


@pytest.mark.parametrize(
    ("suite", "retried"),
    [
        ("libero_object", ()),
        ("libero_goal", ("3",)),
        ("libero_spatial", ("4",)),
        ("libero_10", ("1", "4", "8")),
    ],
)
def test_a_suite_of_libero_has_both_classes_of_all_its_tasks_by_one_recipe(suite, retried):
    """But for the tasks that were trained again, which have another one for both classes."""
    libero = LAPTOP.parent / "libero"
    made = pd.read_csv(libero / "runs.csv").query("kind == 'experts' and seed == 0")
    made = made[made["run"].str.startswith(f"{suite}-")]
    assert len(made) == 10 * len(ALGORITHMS)
    with zipfile.ZipFile(libero / "records.zip") as bundle:
        configs = json.loads(bundle.read("configs.json"))
    again = made["run"].str.split("[-/]").str[1].isin(retried)
    for part in (made[~again], made[again]):
        recipes = [configs[name]["rl"] for name in part["config"]]
        assert all(recipe == recipes[0] for recipe in recipes)
    assert again.sum() == len(retried) * len(ALGORITHMS)
    assert "Both classes of their ten tasks each are trained with the final recipe" in log_text()


def first_tries(name, tasks):
    """A packed table's rows of the first tries of `tasks`, their runs named as the later ones."""
    table = packed_table(LAPTOP.parent / "libero", name)
    runs = {
        f"{task.replace('/', '-')}-first{end}/": f"{task.replace('/', '-')}/{algorithm}-seed0/"
        for task in tasks
        for algorithm, end in (("diffusion", ""), ("gaussian", "-gaussian"))
    }
    return table[table["run"].isin(runs)].replace({"run": runs})


def official_success(first=(), of="success"):
    """Seed 0 without noise, in per cent, a row a task, a column a class; of `first` first tries."""
    experts = pd.read_csv(LAPTOP.parent / "libero" / "experts.csv")
    experts = pd.concat(
        [experts[~experts["task"].isin(first)], first_tries("tried_expert.csv", first)]
    ).query("seed == 0 and mode == 'deterministic'")
    return 100 * experts.pivot(index="task", columns="algorithm", values=of)


def held_out_success(first=()):
    """Seed 0's best of 192 held-out states, in per cent, arranged as `official_success`."""
    runs = packed_table(LAPTOP.parent / "libero", "experts_diagnostics.csv")
    own = r"^(\w+)-(\d+)/(\w+)-seed0/$"
    tasks = runs["run"].str.replace(own, r"\1/\2", regex=True)
    runs = pd.concat([runs[~tasks.isin(first)], first_tries("tried_diagnostics.csv", first)])
    best = 100 * runs.query("confirmed == 192").groupby("run")["confirmed_success"].max()
    names = best.index.to_series().str.extract(own).dropna()
    best = names.assign(task=names[0] + "/" + names[1], success=best)
    return best.pivot(index="task", columns=2, values="success")


def test_the_log_says_what_the_experts_of_libero_spatial_reached():
    official, held_out = official_success(), held_out_success()
    suite = official[official.index.str.startswith("libero_spatial/")]
    assert suite.notna().sum().tolist() == [10, 10]
    said = "On 50 official start states without noise its diffusion experts succeed on {:.1f} %"
    said += " in the mean, the Gaussian ones on {:.1f} %"
    assert said.format(suite["diffusion"].mean(), suite["gaussian"].mean()) in log_text()
    four = suite.loc["libero_spatial/4"]
    assert f"{four['diffusion']:.0f} and {four['gaussian']:.0f} % of the official" in log_text()
    four = held_out.loc["libero_spatial/4"].round(1)
    assert four.nunique() == 1
    assert f"and on {four.iloc[0]:.1f} % of the held-out ones, both" in log_text()
    eight, nine = (held_out.loc[f"libero_spatial/{number}", "diffusion"] for number in (8, 9))
    assert f"experts succeed on {eight:.1f} and {nine:.1f} % of 192 held-out" in log_text()


def test_the_log_says_what_the_retry_of_libero_goal_3_reached():
    official, best = official_success(), held_out_success().loc["libero_goal/3"]
    task = official.loc["libero_goal/3"]
    assert f"they have {task['diffusion']:.0f} and {task['gaussian']:.0f} %" in log_text()
    mean = official[official.index.str.startswith("libero_goal/")].mean()
    said = f"diffusion experts now succeed on {mean['diffusion']:.1f} % in the mean, the Gaussian"
    assert f"{said} ones on {mean['gaussian']:.1f} %" in log_text()
    said = f"the diffusion expert succeeds on {best['diffusion']:.1f} % of 192 held-out states, the"
    assert f"{said} Gaussian one on {best['gaussian']:.1f} %" in log_text()
    assert best["diffusion"] >= 90 > best["gaussian"]


def test_the_log_says_what_the_first_experts_of_libero_10_reached():
    suite = [f"libero_10/{index}" for index in range(10)]
    first = [f"libero_10/{index}" for index in "148"]
    official, held_out = official_success(first), held_out_success(first)
    for task in suite:
        for algorithm in ALGORITHMS:
            best, reached = held_out.loc[task, algorithm], official.loc[task, algorithm]
            assert f"| {task} | {algorithm} | {best:.1f} | {reached:.0f} |" in log_text()
    unlearned = held_out.loc[suite].max(axis=1) < 90
    assert [task[-1] for task in suite if unlearned[task]] == ["0", "1", "4", "8"]
    mean = official.loc[suite].mean()
    said = "{:.1f} % of the official start states in the mean, the Gaussian ones on {:.1f} %"
    assert said.format(mean["diffusion"], mean["gaussian"]) in log_text()
    by_suite = official.groupby(official.index.str.split("/").str[0]).mean()
    assert (by_suite["diffusion"] - by_suite["gaussian"]).idxmax() == "libero_10"


def test_the_log_says_what_the_retries_of_libero_10_reached():
    tasks = [f"libero_10/{index}" for index in "148"]
    official, held_out = official_success(), held_out_success()
    told = {(task, algorithm): cells for task, algorithm, *cells in log_rows(*RETRIES)}
    assert told == {
        (task, algorithm): [
            f"{held_out.loc[task, algorithm]:.1f}",
            f"{official.loc[task, algorithm]:.0f}",
        ]
        for task in tasks
        for algorithm in ALGORITHMS
    }
    learned = held_out.loc[tasks].max(axis=1) >= 90
    assert [task[-1] for task in tasks if learned[task]] == ["4"]
    for where, said in (("libero_10/", "in the mean of the suite"), ("libero_", "of the forty")):
        mean = official[official.index.str.startswith(where)].mean()
        told = (
            f"{mean['diffusion']:.1f} % (diffusion) and {mean['gaussian']:.1f} % (Gaussian) {said}"
        )
        assert told in log_text()


def test_the_log_says_what_more_demonstrations_did_for_the_clones_of_libero_10():
    tasks = [f"libero_10/{index}" for index in "148"]
    clones = [official_success(first, "clone_success").loc[tasks].mean() for first in (tasks, ())]
    for algorithm, name in (
        ("diffusion", "diffusion clones succeed on"),
        ("gaussian", "Gaussian ones"),
    ):
        first, again = (mean[algorithm] for mean in clones)
        assert f"the {name} {again:.1f} % instead of {first:.1f} %" in log_text()


def test_a_retry_on_libero_10_changes_the_number_of_demonstrations_alone():
    own = get_preset("libero").of("libero_10/2")
    changed = []
    for key, value in RETRY.items():
        stage, field = key.split(".")
        if getattr(getattr(own, stage), field) != value:
            changed.append(key)
    assert changed == ["demonstrations.count"]


def test_the_log_says_what_libero_goal_reached_and_which_task_was_not_learned():
    first = ["libero_goal/3"]
    official, best = official_success(first), held_out_success(first)
    official, best = (t[t.index.str.startswith("libero_goal/")] for t in (official, best))
    assert official.notna().sum().tolist() == best.notna().sum().tolist() == [10, 10]
    mean = official.mean()
    said = f"succeed on {mean['diffusion']:.1f} % in the mean, the Gaussian ones on"
    assert f"{said} {mean['gaussian']:.1f} %" in log_text()
    assert best.index[best.max(axis=1) < 90].tolist() == first
    task = best.loc[first[0]]
    said = f"experts succeeds on {task['diffusion']:.0f} % of 192 held-out states (Gaussian"
    assert f"{said} {task['gaussian']:.0f} %)" in log_text()
