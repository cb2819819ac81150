"""What a notebook says under a figure comes from the records of the preset at hand."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from diffrl import experiments
from diffrl.base import bundles
from diffrl.base.artifacts import restored
from diffrl.evaluation import scores
from diffrl.findings import Finding, movement, recorded, show, show_kept, teaching, training
from diffrl.findings.finding import listed, times, verdict, with_interval
from diffrl.gallery import gallery
from diffrl.presets import get_preset
from diffrl.reproduce import REFERENCE, _drop_bars, _without_reference
from diffrl.rl import records
from diffrl.vla import stage as vla_stage

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-5]_*.ipynb"))


@pytest.fixture(scope="module")
def home(tmp_path_factory, laptop_run):
    """A home folder with preset laptop restored from its evidence."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "runs").mkdir()
    (folder / "runs" / "laptop").symlink_to(laptop_run, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFRL_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def found(home):
    """Every finding that the tables of preset laptop alone can make, by its name."""
    preset, folder = get_preset("laptop"), home / "runs" / "laptop"
    played = pd.read_csv(folder / "vla_trials.csv")
    unseen = played["suite"].isin(preset.evaluation.suites)
    trials, other = played[~unseen], played[unseen]
    protocol, beyond = (scores.protocol(table, preset.vla) for table in (trials, other))
    quality = pd.read_csv(folder / "quality.csv")
    factorial = experiments.finished_runs("laptop", "factorial")
    made = [
        training.success(records.final_trials(preset), "laptop"),
        training.learning(records.learning_curves(preset), "laptop"),
        training.classes(experiments.finished_runs("laptop", "rates"), "laptop"),
        training.ablations(experiments.finished_runs("laptop", "ablations"), "laptop"),
        movement.thrown_away(pd.read_csv(folder / "generation.csv"), "laptop"),
        movement.gaps(quality, "laptop"),
        movement.against_demonstrator(quality, "laptop"),
        movement.factorial(factorial, "laptop"),
        movement.ways(factorial, "laptop"),
        teaching.losses(vla_stage.losses_of(preset), preset.vla, "laptop"),
        teaching.gaps(trials, "laptop", protocol),
        teaching.tasks(trials, "laptop", protocol),
        teaching.beyond(other, "laptop", beyond),
    ]
    return {finding.name: finding for finding in made}


def test_a_policy_that_never_gets_to_90_percent_has_its_last_success_told(home):
    curves = records.learning_curves(get_preset("laptop"))
    low = ["value", "low", "high"]
    weak = curves.assign(**{name: 0.5 * curves[name] for name in low if name in curves})
    said = training.learning(weak, "laptop").text
    assert said.count("ends at") == 2
    assert "reaches" not in said


@pytest.mark.parametrize(
    ("preset", "where"),
    [
        ("laptop", ""),
        ("pixels", ", in training physics"),
        ("libero", ", in training physics until it misleads the policy"),
    ],
)
def test_success_in_training_physics_is_named_so_beside_exact_rates(home, preset, where):
    curves = records.learning_curves(get_preset("laptop"))
    caption = " ".join(training.learning_by_task(curves, preset).caption.split())
    assert f"of the training episodes{where}, of which" in caption


def test_learning_is_compared_on_the_tasks_that_all_classes_have(home):
    curves = records.learning_curves(get_preset("laptop"))
    gaussian, tasks = curves["source"] == "gaussian", list(dict.fromkeys(curves["task"]))
    some = curves[~gaussian | curves["task"].isin(tasks[:2])]
    told, both = (
        training.learning(table, "laptop")
        for table in (some, curves[curves["task"].isin(tasks[:2])])
    )
    assert told.text == both.text
    assert "the two tasks that all classes have learned" in " ".join(told.caption.split())
    apart = curves[gaussian != curves["task"].isin(tasks[:2])]
    caption = " ".join(training.learning(apart, "laptop").caption.split())
    each = f"2 of the diffusion policy, {len(tasks) - 2} of the Gaussian policy"
    assert f"({each}; they share none)" in caption


def test_a_class_of_one_s_own_is_told_of_as_it_is_called(home):
    trials = records.final_trials(get_preset("laptop"))
    own = trials.assign(source=trials["source"].replace("gaussian", "mine"))
    assert "the mine policy succeeds" in training.success(own, "laptop").text


def test_a_part_is_told_of_its_own_tasks_alone(home):
    part = get_preset("laptop", ["libero_goal"])
    tables = [records.learning_curves(part), records.final_trials(part)]
    for name in ("experts.csv", "expert_noise.csv", "generation.csv"):
        whole = recorded(get_preset("laptop"), name, None)
        tables.append(recorded(part, name, None))
        assert len(tables[-1]) < len(whole)
    assert all(set(table["task"]) == {"libero_goal/0", "libero_goal/7"} for table in tables)


def test_the_gallery_of_the_reference_run_says_what_its_records_say(found):
    kept = gallery(ROOT / "figures" / "laptop")
    assert len(found.keys() & kept.keys()) >= 10
    for name, finding in found.items():
        if name not in kept:
            continue  # drawn in the notebook alone
        words = [" ".join(part.split()) for part in (finding.caption, finding.text) if part]
        assert kept[name] == "\n\n".join(words), name


def test_every_kept_figure_has_its_words_and_its_table():
    folder = ROOT / "figures" / "laptop"
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == set(gallery(folder))
    assert pictures == {Path(name).stem for name in bundles.read(folder / bundles.NUMBERS)}


def test_a_caption_says_how_many_which_interval_and_which_preset(found):
    for name, finding in found.items():
        assert "preset laptop" in " ".join(finding.caption.split()).lower(), name
        other = r"95 %|preset \w+|\d+ × \d+|LIBERO-\w+"  # numbers that count nothing
        counted = re.sub(other, "", finding.caption, flags=re.IGNORECASE)
        assert re.search(r"\d|\b(one|two|three|five|ten)\b", counted), name
        assert re.search("interval", finding.caption) or name in (
            "01_success", "05_tasks", "04_losses",
        ), name  # fmt: skip


def test_a_caption_of_a_vla_says_which_pictures_it_sees(found):
    kept = gallery(ROOT / "figures" / "laptop")
    words = {name: " ".join(finding.caption.split()) for name, finding in found.items()}
    for name, caption in (words | kept).items():
        if name[:2] in ("04", "05"):
            assert "pictures of 128 × 128 pixels in reduced detail" in caption, name


def four_suites(home):
    """Trials as preset libero plans them: ten tasks of each of two suites, arms of unequal size."""
    played = pd.read_csv(home / "runs" / "laptop" / "vla_trials.csv")
    object_ = played[played["suite"] == "libero_object"]
    goal = object_.assign(suite="libero_goal")
    goal["task"] = goal["task"].str.replace("libero_object", "libero_goal")
    both = pd.concat([object_, goal], ignore_index=True)
    early = both["start_state"].isin([f"official/{i}" for i in range(10)])
    return both[early | (both["mode"] != "stochastic")]


def test_the_planned_contrasts_are_over_the_tasks_of_all_suites(home, found):
    finding = teaching.gaps(four_suites(home), "libero", "25 trials")
    assert set(finding.data["scope"]) == {"mean_tasks"}
    assert finding.data["label"].is_unique
    assert (finding.data["tasks"] == 20).all()
    assert "the trials that its arms share" in finding.caption
    assert "the trials that its arms share" not in found["05_success"].caption


def test_libero_s_text_begins_with_its_primary_contrasts_which_are_a_family_of_their_own(home):
    """The log registered them before the runs; what it did not register stays in the table."""
    finding = teaching.gaps(four_suites(home), "libero:libero_object+libero_goal", "25 trials")
    first, second, third, *rest = finding.text.split("over 20 tasks ")
    assert first == "Diffusion − Gaussian, without noise is −0.7 points [−5.4, +4.0] "
    assert "Diffusion − demonstrator, without noise is" in second
    assert "Gaussian − demonstrator, without noise is" in third
    assert [part.count("three primary contrasts") for part in (second, third, *rest)] == [
        1,
        1,
        1,
        0,
    ]
    assert "RL's data" not in finding.text
    assert list(finding.data["label"])[:3] == list(scores.REGISTERED["libero"]["primary"])
    alone = teaching.gaps(four_suites(home), "laptop", "25 trials").data.set_index("label")[
        "p_holm"
    ]
    family = finding.data.set_index("label")["p_holm"]
    assert (
        family["diffusion − demonstrator, without noise"]
        < (alone["diffusion − demonstrator, without noise"])
    )


def test_every_registered_contrast_is_one_that_is_computed_and_stands_in_the_log():
    log = " ".join((ROOT / "docs" / "LOG.md").read_text(encoding="utf-8").split())
    plan = scores.REGISTERED["libero"]
    assert {*plan["primary"], *plan["secondary"]} <= {*scores.CONTRASTS, *scores.LADDER}
    told = log[log.index("**Primary contrasts**") : log.index("**Secondary**")].lower()
    for contrast in plan["primary"]:
        assert contrast.partition(",")[0] in told


def test_tasks_are_compared_on_the_trials_that_all_arms_have(home):
    finding = teaching.tasks(four_suites(home), "libero", "25 trials")
    assert finding.data.groupby(["task", "source", "mode"])["trials"].sum().unique() == [20]
    assert "n = 20 trials a cell" in " ".join(finding.caption.split())


def test_a_single_task_excludes_nothing_of_the_paper(home):
    trials = four_suites(home)
    said = teaching.gaps(trials[trials["task"] == "libero_goal/1"], "libero", "25 trials").text
    assert "over one task (too few for a test)" in said
    assert "cludes the paper" not in said


def test_unequal_training_seeds_are_said_and_the_widest_interval_is_theirs():
    rows = [("libero_goal/0", seed) for seed in (0, 1, 2)] + [("libero_goal/1", 0)]
    parts = [
        pd.DataFrame({"task": task, "training_seed": seed, "success": [True, False] * 25})
        for task, seed in rows
    ]
    trials = pd.concat(parts).assign(source="diffusion", mode="deterministic", policy="expert")
    trials = pd.concat([trials, trials.assign(policy="clone")]).assign(error=False)
    said = " ".join(training.success(trials, "libero").caption.split())
    assert "Success on 50 official start states a task" in said
    assert "Training seeds: 1 to 3" in said
    assert "at most ± 13 points" in said


def test_a_class_that_lacks_a_task_is_compared_on_those_that_both_have_learned():
    names = [f"libero_goal/{index}" for index in range(4)]
    trials = pd.DataFrame({"task": names[:3], "successes": [9, 5, 1]})
    trials = trials.loc[trials.index.repeat(10)].assign(number=list(range(10)) * 3)
    trials = trials.assign(success=trials["number"] < trials["successes"], training_seed=0)
    trials = trials.assign(mode="deterministic", error=False)
    diffusion = trials.assign(source="diffusion", success=True)
    both = pd.concat([diffusion, trials[trials["task"] != names[2]].assign(source="gaussian")])
    both = pd.concat([both.assign(policy=name) for name in ("clone", "expert")])
    text = training.success(both, "libero").text
    assert "Diffusion − Gaussian is +30.0 points" in text
    assert "over the two tasks that both have learned" in text
    alone = both.assign(task=both["task"].where(both["source"] != "gaussian", names[3]))
    assert "Diffusion − Gaussian" not in training.success(alone, "libero").text


def test_jerk_at_equal_speed_is_that_of_the_episodes_where_the_record_has_it():
    shared = {"mode": "deterministic", "task": "libero_goal/0"}
    rows = [
        {"source": source, "measure": name, "value": value, **shared}
        for source, values in {"diffusion": (4, 90, 1, 30), "gaussian": (2, 100, 1, 20)}.items()
        for name, value in zip(("jerk_rms", "steps", "path_length", "dimensionless_jerk"), values)
    ]
    table = pd.DataFrame(rows)
    assert "at equal speed and path length 1.50 times" in movement.jerk_sentence(table)
    old = table[table["measure"] != "dimensionless_jerk"]
    assert f"path length {2 * 0.9**3:.2f} times" in movement.jerk_sentence(old)


def test_sentences_have_the_numbers_of_readme_and_report(found):
    assert "+6.6 points [+2.6, +10.5]" in found["05_success"].text
    report = " ".join((ROOT / "docs" / "report.md").read_text(encoding="utf-8").split())
    assert "1.25 times [1.13, 1.38] the jerk" in found["03_gaps"].text
    for interval in re.findall(r"\[[^]]*\d[^]]*\]", found["03_factorial_effects"].text)[:3]:
        assert interval in report


def test_a_verdict_follows_p_and_one_task_has_none():
    assert verdict(0.049) == "(significant, $p$ = 0.049)"
    assert "not significant" in verdict(0.051)
    assert "significant" not in verdict(np.nan)
    assert with_interval(-0.75, -6.149, 4.649, "points") == "−0.8 points [−6.1, +4.6]"
    assert with_interval(1.0, np.nan, np.nan) == "+1.0"
    assert times(1.25, np.nan, np.nan) == "1.25 times"
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("none", "a", "a, b and c")


def test_contrasts_of_tasks_have_the_mean_that_the_effects_have(home):
    trials = pd.read_csv(home / "runs" / "laptop" / "vla_trials.csv")
    each = scores.contrasts_by_task(trials).groupby(["scope", "contrast"])["points"].mean()
    table = scores.effects(trials).set_index(["scope", "contrast"])["points"]
    assert len(each) == len(table)
    np.testing.assert_allclose(each[table.index], table, atol=1e-9)


def test_a_section_without_records_is_not_shown(home, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    nothing = experiments.finished_runs("smoke", "ablations")
    show("smoke", training.ablations(nothing, "smoke"), heading="## One setting")
    show("smoke", training.classes(nothing, "smoke"), heading=training.CLASSES)
    show("smoke", movement.factorial(nothing, "smoke"), movement.ways(nothing, "smoke"))
    assert shown == []
    assert show_kept("smoke", "01_success") is False


def test_a_figure_that_needs_states_is_drawn_anew_from_the_table_that_git_keeps(home, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    (home / "figures").symlink_to(ROOT / "figures", target_is_directory=True)
    try:
        assert show_kept("laptop", "03_phases", lambda t: movement.phases(t, "a task", "laptop"))
        figure, _, text = shown
        assert figure.axes[0].get_ylabel() == "speed (cm/s)"
        assert text.data in gallery(ROOT / "figures" / "laptop")["03_phases"]
        assert show_kept("laptop", "02_contact_sheet", lambda t: None)  # a picture has no table
        assert len(shown) == 3
    finally:
        (home / "figures").unlink()


def test_a_finding_is_saved_and_shown_with_its_caption_under_the_figure(found, home, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    one = found["05_success"]
    show("smoke", one, heading="## Heading")
    heading, figure, caption, text = shown
    assert (heading.data, figure, text.data) == ("## Heading", one.figure, one.text)
    assert caption.data.startswith("*Differences in success")
    words = (home / "runs/smoke/figures/05_success.txt").read_text("utf-8")
    assert words.strip().endswith(one.text)


def test_a_restored_run_shows_its_record_and_a_forced_one_is_computed(home, monkeypatch):
    preset = get_preset("laptop")

    def compute(preset):
        return pd.DataFrame({"computed": [1], "task": preset.tasks[0]})

    assert restored("laptop")
    assert "computed" not in recorded(preset, "experts.csv", compute)
    assert "computed" in recorded(preset, "no_such_table.csv", compute)
    monkeypatch.setenv("DIFFRL_FORCE_BEFORE", "1")
    assert "computed" in recorded(preset, "experts.csv", compute)


# -- the notebooks ---------------------------------------------------------------------------------
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_at_most_twenty_cells_and_nine_hundred_words(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(cells) <= 20
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert len(text.split()) <= 900


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_takes_from_a_module_exists(path):
    """Notebooks run for minutes; a function that was renamed is found here in a second."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    tree, names = ast.parse(code), {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), path.name, "exec"), names)
    modules = {name: value for name, value in names.items() if isinstance(value, ModuleType)}
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    }
    assert used
    assert [f"{m}.{name}" for m, name in used if not hasattr(modules[m], name)] == []


def test_reference_cells_say_what_the_gallery_says():
    tool = ROOT / "tools" / "refresh_notebooks.py"
    result = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_reference_cells_embed_figures_that_exist_and_are_left_out_of_a_run(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    [cell] = [c for c in cells if REFERENCE in c["metadata"].get("tags", [])]
    pictures = re.findall(r"\]\((\S+\.png)\)", "".join(cell["source"]))
    assert pictures
    assert all((path.parent / name).is_file() for name in pictures)
    assert len(_without_reference(path).cells) == len(cells) - 1


def test_an_executed_notebook_has_no_progress_bars_and_keeps_other_warnings(tmp_path):
    import nbformat

    def stream(text):
        return nbformat.v4.new_output("stream", name="stderr", text=text)

    bar = "\rexperts: 100%|████| 30/30 [00:27<00:00,  1.09task/s]\n"
    cell = nbformat.v4.new_code_cell("x", outputs=[stream(bar), stream("UserWarning: look\n")])
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("a"), cell])
    nbformat.write(book, tmp_path / "a.ipynb")
    _drop_bars(tmp_path / "a.ipynb")
    kept = nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[1].outputs
    assert [output.text for output in kept] == ["UserWarning: look\n"]


def test_a_finding_is_a_figure_with_its_table_caption_and_words():
    assert Finding._fields == ("name", "figure", "data", "caption", "text")
