"""What docs/LOG.md says of results is what the records say."""

from pathlib import Path

import numpy as np
import pandas as pd

from diffrl.base.artifacts import read_json
from diffrl.base.intervals import mean_interval
from diffrl.evidence import packed_table
from diffrl.experiments import EXPERIMENTS, effects
from diffrl.presets import ALGORITHMS, get_preset

LAPTOP = Path(__file__).parents[1] / "results" / "laptop"


def log_text():
    """docs/LOG.md in one line."""
    text = (Path(__file__).parents[1] / "docs" / "LOG.md").read_text(encoding="utf-8")
    return " ".join(text.split())


def log_rows(*columns):
    """The cells of the log's table whose header is `columns`, row by row."""
    text = (Path(__file__).parents[1] / "docs" / "LOG.md").read_text(encoding="utf-8")
    table = text.split("| " + " | ".join(columns) + " |\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.split("\n")[1:]]


def test_the_log_s_table_of_settings_is_that_of_the_records():
    tuning = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "tuning.csv")
    names = ["base", "warmup-", "noise half", "noise+", "noise++", "clip+", "rate+"]
    names += ["noise+ rate+", "noise+ minibatch-", "laptop"]
    assert set(tuning["try"]) == set(names)
    runs = tuning.set_index(["algorithm", "try"])
    for name, cells in zip(names, log_rows("setting", "diffusion", "Gaussian"), strict=True):
        for algorithm, cell in zip(ALGORITHMS, cells[1:], strict=True):
            run = runs.loc[(algorithm, name)]
            shares = " ".join(f"{100 * float(share):.0f}" for share in run["measured"].split())
            task = "" if run["task"] == "libero_object/3" else f" ({run['task']})"
            assert cell == f"{shares} %, jerk {run['jerk_rms']:.1f}{task}"


def test_the_log_says_how_much_the_best_of_several_measurements_flatters(laptop_run):
    looks = packed_table(LAPTOP, "experts_diagnostics.csv").query("measured > 0")
    best = looks.groupby("run")["measured_success"].transform("max")
    chosen = looks[looks["measured_success"] == best].groupby("run").last()
    experts = pd.read_csv(laptop_run / "experts.csv").query("mode == 'deterministic'")
    names = experts["task"].str.replace("/", "-") + "/" + experts["algorithm"] + "-seed0/"
    loss = chosen["measured_success"] - experts.set_index(names)["success"]
    assert chosen["measured"].value_counts().to_dict() == {192: 20, 48: 10}
    text = log_text()
    sentences = {
        48: "succeed {:.1f} points less often than on those that chose them",
        192: "192 states chose lose {:.1f} points",
    }
    for states, sentence in sentences.items():
        mean, *ends = 100 * np.array(mean_interval(loss[chosen["measured"] == states]))
        assert sentence.format(mean) + " [{:.1f}, {:.1f}]".format(*ends) in text
    long = looks[looks["run"] == "libero_10-2/gaussian-seed0/"].groupby("measured").max()
    assert (100 * long["measured_success"]).round().to_dict() == {48: 96, 192: 93}


def test_the_log_says_what_six_looks_at_24_states_flatter_by(laptop_run):
    curves = packed_table(LAPTOP, "experiments_curve.csv")
    curves = curves[~curves["run"].str.contains("training-physics")]  # of later days
    assert (curves["measured"] == 24).all()
    assert (curves.groupby("run").size() == 6).all()
    trials = packed_table(LAPTOP, "experiments_trials.csv")
    played = trials[(trials["policy"] != "clone") & (trials["mode"] == "deterministic")]
    official = played.groupby("run")["success"].mean()
    loss = (curves.groupby("run")["measured_success"].max() - official).dropna()
    mean, *ends = 100 * np.array(mean_interval(loss))
    interval = "[{:.1f}, {:.1f}]".format(*ends)
    sentence = f"{mean:.1f} points above the official states {interval} ({len(loss)} runs)"
    assert sentence in log_text()


def signed(row, digits, scale=1):
    """A row of `effects` as "+0.9 [−3.0, +4.8]"."""
    mean, *ends = (f"{scale * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{mean} [{', '.join(ends)}]".replace("-", "−")


def test_the_log_says_what_one_covariance_changes():
    base, other = (arm.within("training").name for arm in EXPERIMENTS["covariance"].variants)
    table = pd.read_csv(LAPTOP / "experiments.csv")
    measures = ("clone_success", "success", "auc", "jerk_rms")
    found = effects(table, [(base, other)], measures)
    assert (found["n"] == 9).all()
    assert (found["low"] * found["high"] < 0).all()  # it decides nothing
    found, text = found.set_index(["mode", "measure"]), log_text()
    quiet = found.loc["deterministic"]
    means = table[table["mode"] == "deterministic"].groupby("arm")["clone_success"].mean()
    said = f"{100 * means[other]:.1f} % of 24 held-out states instead of {100 * means[base]:.1f} %"
    assert said in text
    assert signed(quiet.loc["clone_success"], 1, 100).replace(" [", " points [") in text
    said = f"{signed(quiet.loc['success'], 1, 100).replace(' [', ' points [')} without noise and "
    noisy = found.loc[("stochastic", "success")]
    assert said + f"{signed(noisy, 1, 100)} with it" in text
    assert f"learning curve {signed(quiet.loc['auc'], 3)}" in text
    assert f"jerk {signed(quiet.loc['jerk_rms'], 2).replace(' [', ' m/s³ [')}" in text


def test_the_log_s_table_of_epsilon_is_that_of_the_records():
    runs = pd.read_csv(LAPTOP / "experiments.csv").sort_values("seed")
    names = [arm.within("training").name for arm in EXPERIMENTS["epsilon"].variants]
    columns = ["variant", "clone", "RL, without noise", "with noise"]
    rows = log_rows(*columns, "in training, first", "last", "jerk")
    assert len(rows) == len(names) == 9
    for name, (variant, *cells) in zip(names, rows, strict=True):
        assert name == f"diffusion {variant}, training physics"
        own = runs[runs["arm"] == name].set_index("mode")
        quiet, noisy = own.loc["deterministic"], own.loc["stochastic"]
        assert quiet["seed"].tolist() == noisy["seed"].tolist() == [1, 2, 3]
        parts = [quiet["clone_success"], quiet["success"], noisy["success"]]
        parts += [quiet["training_first"], quiet["training_last"]]
        known = [f"{100 * part.mean():.0f}" for part in parts]
        known[1] = " ".join(f"{100 * success:.0f}" for success in quiet["success"])
        assert cells == [*known, f"{quiet['jerk_rms'].mean():.1f}"]


def test_what_the_log_says_of_epsilon_is_what_its_runs_say():
    runs = pd.read_csv(LAPTOP / "experiments.csv").query("mode == 'deterministic'")
    names = [arm.within("training").name for arm in EXPERIMENTS["epsilon"].variants[1:]]
    wide = runs[runs["arm"].isin(names)].pivot(index="arm", columns="seed")
    residual = wide.index.str.contains("residual net")
    assert wide["success"][residual].min(axis=None) == 0.8
    assert wide["success"][~residual].max(axis=None) == 0.56
    assert "ends at 80 % or more in every seed" in log_text()
    assert (
        "no run of our plain net ends above 56 % without noise; in the ablations one" in log_text()
    )
    faster = pd.read_csv(LAPTOP / "experiments.csv").query("mode == 'deterministic'")
    faster = faster[faster["arm"] == "diffusion DPPO's defaults sharp clone faster"]
    assert f"one reaches {100 * faster['success'].max():.0f} % (`faster`" in log_text()
    slow = "diffusion epsilon leading sharp white slow"
    plain, deep = (wide.loc[f"{slow}{end}, training physics"] for end in ("", ", residual net"))
    assert plain["clone_success"][3] == deep["clone_success"][3] == 0.5
    assert (deep["success"][3], plain["success"][3]) == (0.8, 0.56)
    ends = [(100 * plain[name]).round() for name in ("training_first", "training_last")]
    assert [end.tolist() for end in ends] == [[37, 62, 64], [37, 76, 74]]
    said = "in two of three seeds, from 62 and 64 to 76 and 74 %, and keeps its 37 % in the other"
    assert said in log_text()
    noisy = pd.read_csv(LAPTOP / "experiments.csv").query("mode == 'stochastic'")
    noisy = noisy[noisy["arm"] == f"{slow}, training physics"].set_index("seed")["success"]
    assert (noisy > plain["success"]).all()
    ends = " ".join(f"{100 * success:.0f}" for success in deep["success"])
    gallery = LAPTOP.parents[1] / "figures" / "laptop" / "README.md"
    said = f"white noise and a rate of 2e-4 epsilon reaches {ends} %, by seed."
    assert said in gallery.read_text(encoding="utf-8")
    forgotten = wide.loc["diffusion epsilon leading sharp, training physics"]
    assert (forgotten["success"] < forgotten["clone_success"]).all()
    page = " ".join((Path(__file__).parents[1] / "docs" / "laptop.md").read_text("utf-8").split())
    assert "ends at 90, 94 and 80 %, and with DPPO's defaults and sixty iterations at 98" in page
    report = " ".join((LAPTOP.parents[1] / "docs" / "report.md").read_text("utf-8").split())
    best = [arm for arm in wide.index if "residual net" in arm]
    first, second = ([f"{100 * n:.0f}" for n in wide["success"].loc[arm]] for arm in best[::-1])
    said = "the noise ends at {}, {} and {} %, and with DPPO's defaults and sixty iterations at "
    assert said.format(*first) + "{}, {} and {} %.".format(*second) in report
    assert "ends at 56 % or less in all of eighteen runs" in page
    assert (~residual).sum() * 3 == 18
    base = runs[runs["arm"] == "diffusion sharp clone, training physics"]["jerk_rms"].mean()
    jerk = wide["jerk_rms"][residual].mean(axis=1)
    said = f"{jerk.min():.1f} and {jerk.max():.1f} m/s³ of jerk, where $x_0$ has {base:.1f}"
    assert said in page


TAIL_MEASURES = ["clone_success", "success", "auc", "jerk_rms"]


def tail_runs():
    """The runs of experiment `tail`, and its variants' names: without and with the tail, in turn.

    The last rows are means over the four blocks of policy and noise, named "blind" and "observed";
    a run with fewer than ten successes has no jerk, nor has a mean that it belongs to.
    """
    names = [arm.within("training").name for arm in EXPERIMENTS["tail"].variants]
    runs = pd.read_csv(LAPTOP / "experiments.csv")
    parts = [runs[runs["arm"].isin(names)]]
    for name, arms in (("blind", names[::2]), ("observed", names[1::2])):
        blocks = runs[runs["arm"].isin(arms)].groupby(["task", "seed", "mode"])[TAIL_MEASURES]
        means = blocks.agg(lambda values: values.mean(skipna=False)).reset_index()
        parts.append(means.assign(arm=name))
    return pd.concat(parts, ignore_index=True), names


def test_the_log_s_table_of_the_tail_is_that_of_the_records():
    runs, names = tail_runs()
    columns = ["variant", "clone", "RL, without noise", "with noise", "area", "jerk"]
    rows = log_rows(*columns)
    assert len(rows) == len(names) == 8
    for name, (variant, *cells) in zip(names, rows, strict=True):
        assert name == f"{variant}, training physics"
        own = runs[runs["arm"] == name].set_index("mode")
        quiet, noisy = own.loc["deterministic"], own.loc["stochastic"]
        assert len(quiet) == len(noisy) == 9
        known = [f"{100 * part.mean():.0f}" for part in (quiet["clone_success"], quiet["success"])]
        known += [f"{100 * noisy['success'].mean():.0f}", f"{quiet['auc'].mean():.2f}"]
        assert cells == [*known, f"{quiet['jerk_rms'].mean():.1f}"]


def test_what_the_log_says_of_the_tail_is_what_its_runs_say():
    runs, names = tail_runs()
    found = effects(runs, [("blind", "observed")], TAIL_MEASURES).set_index(["mode", "measure"])
    quiet, text = found.loc["deterministic"], log_text()
    said = f"success without noise {signed(quiet.loc['success'], 1, 100)}"
    assert said.replace(" [", " points [") in text
    assert f"with noise {signed(found.loc['stochastic', 'success'], 1, 100)}" in text
    assert f"the clones' {signed(quiet.loc['clone_success'], 1, 100)}" in text
    assert f"area {signed(quiet.loc['auc'], 3)}" in text
    assert f"jerk {signed(quiet.loc['jerk_rms'], 2).replace(' [', ' m/s³ [')}" in text
    assert (found["low"] * found["high"] < 0).all()
    assert found["n"].groupby("measure").min().to_dict() == dict(
        zip(TAIL_MEASURES, (9, 9, 9, 7), strict=True)
    )
    single = effects(runs, list(zip(names[::2], names[1::2], strict=True)), TAIL_MEASURES)
    assert f"Of the {len(single)} contrasts of single variants none is" in text
    assert single["p_holm"].min() > 0.05
    wild = runs[runs["arm"].isin(names[2:4])].query("mode == 'deterministic'")
    blind, observed = (sorted(wild[wild["arm"] == name]["success"]) for name in names[2:4])
    assert blind[:2] == [0, 0]
    assert blind[2] > 0.7
    assert observed[:2] == [0.24, 0.54]
    page = (Path(__file__).parents[1] / "docs" / "laptop.md").read_text(encoding="utf-8")
    said = f"success is {signed(quiet.loc['success'], 1, 100)}".replace(" [", " points [")
    assert f"(experiment `tail`, {len(runs[runs['arm'].isin(names)]) // 2} runs" in page
    assert said in " ".join(page.split())


def test_the_log_s_table_of_experts_that_see_is_that_of_the_records():
    index = ["task", "algorithm", "mode"]
    seen = pd.read_csv(LAPTOP.parent / "pixels" / "experts.csv").set_index(index)
    state = pd.read_csv(LAPTOP / "experts.csv").query("seed == 0").set_index(index)
    header = ["task", "policy", "clone", "expert", "expert with noise", "thousand control steps"]
    rows = log_rows(*header, "minutes", "state expert")
    assert len(rows) == 10
    for task, policy, *cells in rows:
        quiet, noisy = (seen.loc[(task, policy, mode)] for mode in ("deterministic", "stochastic"))
        rates = [
            f"{100 * row.success:.0f} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
            for row in (quiet, noisy)
        ]
        numbers = [100 * quiet.clone_success, quiet.control_steps / 1000, quiet.minutes]
        clone, *work = [f"{number:.0f}" for number in numbers]
        beside = f"{100 * state.loc[(task, policy, 'deterministic')].success:.0f}"
        assert cells == [clone, *rates, *work, beside]


def test_log_and_readme_say_how_the_experts_that_see_did():
    table = pd.read_csv(LAPTOP.parent / "pixels" / "experts.csv")
    quiet = table.query("mode == 'deterministic'")
    assert len(quiet) == 10
    good = quiet[quiet["success"] >= 0.9].groupby("task")["algorithm"].nunique()
    assert (good == 2).sum() == len(good) == 4
    assert "Both classes reach 90 % without noise on four of the five tasks" in log_text()
    gain, clones = 100 * (quiet["success"] - quiet["clone_success"]), 100 * quiet["clone_success"]
    said = f"on {clones.min():.0f} to {clones.max():.0f} %, and RL adds {gain.mean():.1f} points"
    assert said in log_text()
    assert f"between {gain.min():+.0f} and {gain.max():+.0f}".replace("-", "−") in log_text()
    success, minutes = 100 * quiet["success"], quiet["minutes"]
    readme = " ".join((LAPTOP.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"succeed on {success.min():.0f} to {success.max():.0f} % of the official" in readme
    assert f"after {minutes.min():.0f} to {minutes.max():.0f} minutes each" in readme


def test_the_log_s_table_of_how_they_move_is_that_of_the_records():
    tables = [pd.read_csv(LAPTOP.parent / name / "quality.csv") for name in ("pixels", "laptop")]
    index = ["task", "source", "mode", "measure"]
    seen, state = (table.set_index(index)["value"] for table in tables)
    measures = ["jerk_rms", "steps", "position_variance", "own_position_variance"]
    header = ["task", "policy", "RMS jerk", "steps", "position variance, cm²"]
    rows = log_rows(*header, "the same, one start state")
    assert len(rows) == 10
    for task, policy, *cells in rows:
        keys = [(task, policy, "deterministic", measure) for measure in measures]
        assert cells == [f"{seen[key]:.3g}, {state[key]:.3g}" for key in keys]
    tests = pd.read_csv(LAPTOP.parent / "pixels" / "quality_tests.csv")
    pair = ("diffusion/deterministic", "gaussian/deterministic")
    own = tests[(tests["first"] == pair[0]) & (tests["second"] == pair[1])].set_index("measure")
    assert own.loc["jerk_rms", "tasks"] == "5 of 5"
    assert own.loc["steps", "tasks"] == "0 of 5"
    names = ["difference_tasks", "low_tasks", "high_tasks"]
    jerk = "more jerk on all five tasks, {:+.1f} m/s³ in the mean [{:+.1f}, {:+.1f}]"
    assert jerk.format(*own.loc["jerk_rms", names]) in log_text()
    steps = "fewer steps, {:+.1f} [{:+.1f}, {:+.1f}]".format(*own.loc["steps", names])
    assert steps.replace("-", "−") in log_text()


def test_the_log_says_what_the_vla_of_experts_that_see_can_do():
    folder = LAPTOP.parent / "pixels"
    trials = pd.read_csv(folder / "vla_trials.csv")
    won = trials["status"].eq("success").groupby(trials["task"]).agg(["size", "mean"])
    assert won.index.tolist() == ["libero_object/0", "libero_object/5", "libero_spatial/0"]
    assert (won["size"] == 50).all()
    first, second, third = 100 * won["mean"]
    mean = pd.read_csv(folder / "evaluation.csv").set_index("suite").loc["mean_tasks"]
    whole, low, high = 100 * mean[["success", "low", "high"]].astype(float)
    said = f"on {first:.0f}, {second:.0f} and {third:.0f} %: {whole:.0f} % [{low:.0f}, {high:.0f}]"
    assert said in log_text()


def test_the_log_counts_the_operator_s_new_skills_as_the_record_does():
    table = pd.read_csv(LAPTOP / "operator.csv").set_index("task")
    for task, *counts in log_rows("task", "successes", "attempts"):
        assert counts == [str(table.loc[task, name]) for name in ("successes", "attempts")]
    able = (table["rate"] >= 0.5).sum()
    assert f"on {able} of the {len(table)} tasks, five more than before" in log_text()


def test_the_log_s_table_of_second_tries_is_that_of_the_records(laptop_run):
    held_out = pd.read_csv(laptop_run / "tried" / "held_out.csv")
    assert (held_out["trials"] == 192).all()
    known = held_out.set_index(["task", "algorithm", "try"])["successes"]
    names = {
        "the expert": "expert",
        "small batches, annealed": "small-batches-annealed",
        "small batches, constant": "small-batches-constant",
        "low rate": "low-rate",
        "annealed": "annealed",
        "twenty demonstrations, 54 iterations": "more-demonstrations",
    }
    experts = pd.read_csv(laptop_run / "experts.csv").set_index(["task", "algorithm", "mode"])
    rows = log_rows("task", "try", "official, of 50", "held out, of 192")
    assert len(rows) == len(known)
    for where, title, official, successes in rows:
        task, _, rival = where.partition(", ")
        algorithm, name = rival.lower() or "diffusion", names[title]
        assert known[task, algorithm, name] == int(successes)
        found = experts.loc[(task, algorithm)]
        if name != "expert":
            folder = f"{task.replace('/', '-')}-{name}" + f"-{rival.lower()}" * bool(rival)
            found = pd.read_csv(laptop_run / "tried" / folder / "expert.csv").set_index("mode")
        assert found.loc["deterministic", "successes"] == int(official)


def test_what_the_log_says_of_libero_s_clones_is_what_the_scan_says():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "libero" / "clones.csv")
    table["suite"] = table["task"].str.partition("/")[0]
    scanned = table[table["task"].str[-1].isin(["0", "3", "4"])]
    means = 100 * scanned.groupby(["suite", "demonstrations"])[["diffusion", "gaussian"]].mean()
    for suite in means.index.unique("suite"):
        for algorithm, name in (("diffusion", "diffusion"), ("gaussian", "Gaussian")):
            found = means.loc[suite, algorithm].round()
            cells = [f" {found[n]:.0f}" if n in found else "" for n in (1, 2, 3, 5, 10)]
            assert f"| {suite} | {name} |{' |'.join(cells)} |" in log_text()
    clones = table.set_index(["task", "demonstrations"])[["diffusion", "gaussian"]]
    one = clones.xs(1, level="demonstrations")
    assert [*one.index[one["gaussian"] < 0.1]] == [f"libero_object/{n}" for n in (3, 7, 8, 9)]
    assert [*one.index[one["diffusion"] < 0.1]] == ["libero_object/3"]
    assert ((one.loc["libero_object/3"] * 24).round() == 2).all()
    assert (one.loc["libero_object/1"] == 1).all()
    assert (clones.loc[("libero_goal/0", 10)] == 1).all()
    assert "with 33 and 8 % from ten" in log_text()
    assert [*(100 * clones.loc[("libero_goal/3", 10)]).round()] == [33, 8]
    missed = means.loc[("libero_object", 2)].max()
    assert f"2 demonstrations missed it by {missed - 75:.0f} point" in log_text()


def test_what_the_log_says_of_experts_and_physics_is_what_the_records_say():
    results = Path(__file__).parents[1] / "results"
    experts = pd.read_csv(results / "laptop" / "experts.csv").query("mode == 'deterministic'")
    counts = experts.groupby("algorithm")["successes"].sum()
    assert f"diffusion {counts['diffusion']} of 750 official trials" in log_text()
    assert f"Gaussian {counts['gaussian']} (" in log_text()
    assert ((experts["minutes"] > 20).sum(), len(experts)) == (11, 30)
    long = experts.loc[experts["control_steps"] > 600_000, "task"]
    assert [*long] == ["libero_10/2"] * 2
    clones = pd.read_csv(results / "laptop" / "clones.csv").set_index(["task", "demonstrations"])
    shares = [clones.loc[("libero_object/0", n), "diffusion"] for n in (1, 2, 3)]
    assert "{:.0f}, {:.0f} and {:.0f} %".format(*(100 * np.array(shares))) in log_text()

    physics = pd.read_csv(results / "training_physics_options.csv")
    cheap = physics[physics["option"] == "frozen, 12 steps"]
    assert len(cheap) == 8
    ratios = f"{cheap['ratio'].min():.1f} to {cheap['ratio'].max():.1f} times as"
    assert f"{ratios} cheap" in log_text()
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"On eight tasks the simulator's control step is {ratios} fast" in " ".join(
        readme.split()
    )
    assert cheap["hand_mm"].between(0.45, 0.55).all()
    hasty = physics[physics["option"] == "frozen, 12 steps, 1 iteration"]
    assert (hasty["hand_mm"] > 100).sum() == 5


def test_what_the_log_says_of_waking_frozen_things_is_what_the_record_says():
    results = Path(__file__).parents[1] / "results"
    table = pd.read_csv(results / "training_physics_touches.csv").set_index("task")
    assert (table["episodes"] == 24).all()
    assert (table["touching"] == 0).sum() == 4
    assert len(table) == 6
    assert table.loc["libero_10/2", "touching"] == 1
    drawer = table.loc["libero_goal/0"]
    assert (drawer["touching"], drawer["success"]) == (24, 1.0)
    assert f"play {100 * drawer['share_after']:.0f} % of the control steps" in log_text()


def test_what_the_log_says_of_the_settings_that_were_tried_is_what_the_records_say():
    table = pd.read_csv(Path(__file__).parents[1] / "results" / "laptop" / "tuning.csv")
    assert table["algorithm"].value_counts().to_dict() == {"diffusion": 10, "gaussian": 10}
    assert table["seed"].unique().tolist() == [0]
    rl = get_preset("laptop").rl  # the rows `laptop` are called after it
    own = f"rl.noise_start={rl.noise_start}; rl.actor_learning_rate={rl.actor_learning_rate}"
    assert table.loc[table["try"] == "laptop", "changes"].tolist() == [own, own]
    there = table[table["task"] == "libero_object/3"]
    good = there["measured"].map(lambda row: max(map(float, row.split())) >= 0.9)
    assert good.groupby(there["algorithm"]).sum().to_dict() == {"diffusion": 4, "gaussian": 9}
    assert there["algorithm"].value_counts().to_dict() == {"diffusion": 8, "gaussian": 10}
    assert not good[(there["algorithm"] == "diffusion") & (there["try"] == "laptop")].any()
    assert "laptop" not in there.loc[there.groupby("algorithm")["auc"].idxmax(), "try"].tolist()


def test_the_log_says_how_much_faster_training_physics_is():
    rates = read_json(LAPTOP.parent / "throughput.json")["training_physics"]
    ratios = [rate["training"] / rate["exact"] for rate in rates.values()]
    assert len(ratios) == 8
    text = log_text()
    assert f"is {min(ratios):.1f} to {max(ratios):.1f} times as fast as exact physics" in text
    assert f"five suites, {np.median(ratios):.1f} times in the median" in text
    readme = " ".join((LAPTOP.parents[1] / "README.md").read_text(encoding="utf-8").split())
    said = f"RL's own loop {min(ratios):.1f} to {max(ratios):.1f} times, {np.median(ratios):.1f} in"
    assert said in readme


def test_an_object_expert_is_there_within_five_minutes_in_the_median_and_ten_at_most():
    minutes = read_json(LAPTOP.parent / "throughput.json")["minutes_to_97"]
    assert list(minutes) == [f"libero_object/{index}" for index in range(10)]
    least, middle, most = np.quantile([*minutes.values()], (0, 0.5, 1))
    assert middle <= 5
    assert most <= 10
    assert f"take {least:.1f} to {most:.1f} minutes, {middle:.1f} in the median" in log_text()
    experts = pd.read_csv(LAPTOP / "experts.csv").query("mode == 'deterministic'")
    before = experts[experts["task"].isin(minutes) & (experts["algorithm"] == "diffusion")]
    assert len(before) == 10
    assert f"Laptop's took {before['minutes'].mean():.0f} in the mean" in log_text()
    readme = " ".join((LAPTOP.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"takes {least:.1f} to {most:.1f} minutes on each of libero_object's ten tasks" in readme


def test_the_log_says_how_often_the_demonstrator_succeeds_on_the_forty_tasks():
    table = pd.read_csv(LAPTOP.parent / "libero" / "generation.csv").query("source == 'operator'")
    assert len(table) == 40
    assert (table["episodes"] == 50).all()
    success = 100 * table.set_index("task")["success"]
    said = f"{success.mean():.1f} % of its attempts succeed in the mean over tasks, the fewest on"
    assert f"{said} {success.idxmin()} too, {success.min():.1f} %" in log_text()


def test_the_log_says_for_how_many_tests_a_claim_is_corrected():
    noise = pd.read_csv(LAPTOP / "evaluation_effects.csv").set_index(["suite", "effect"])
    noise = noise.loc[("libero_object", "without noise − with it")]
    alone, whole = f"{noise['p_tasks']:.3f}"[1:], f"{noise['p_tasks_holm']:.2f}"[1:]
    said = f"points, has p {alone} over tasks uncorrected, and {whole} corrected for the factorial"
    assert said in log_text()
    assert f"(p {alone} over tasks, uncorrected)" in log_text()


def test_the_readme_counts_libero_s_experts_so_far():
    made = pd.read_csv(LAPTOP.parent / "libero" / "experts.csv")
    count = made.groupby(["task", "algorithm", "seed"]).ngroups
    readme = (LAPTOP.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"days; {count} experts so far" in readme
