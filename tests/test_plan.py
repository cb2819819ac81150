"""The plan of a preset: sums that fit together, guesses that are named, hours near the measured."""

import json
from pathlib import Path

import pandas as pd
import pytest

from diffrl.__main__ import main
from diffrl.base.errors import UserError
from diffrl.evidence import packed_table
from diffrl.plan import Rates, control_steps, plan, wall_hours
from diffrl.plan.rates import RECORDED, _second_looks
from diffrl.plan.work import STAGES, frames_of, text
from diffrl.presets import ALGORITHMS, PRESETS, get_preset

RESULTS = Path(__file__).parents[1] / "results"
LAPTOP = get_preset("laptop")


@pytest.fixture(scope="module")
def rates():
    return Rates.read(RESULTS, precision="float32")


def core_minutes(table, stage, what=""):
    rows = table[(table["stage"] == stage) & table["what"].str.contains(what, regex=False)]
    return 60 * rows["core_hours"].sum()


def recorded(name):
    return pd.read_csv(RESULTS / "laptop" / name)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("gpus", [0, 2])
def test_every_preset_has_a_plan_and_more_nodes_are_faster_up_to_their_number(name, gpus, rates):
    one, four = (plan(get_preset(name), nodes, 16, gpus, rates) for nodes in (1, 4))
    hours = ["core_hours", "gpu_hours", "disk_gib", "wall_hours", "amount"]
    assert (one[hours] >= 0).all(axis=None)
    assert tuple(dict.fromkeys(one["stage"])) == STAGES
    assert one[["core_hours", "gpu_hours"]].equals(four[["core_hours", "gpu_hours"]])
    assert wall_hours(one) / 4 <= wall_hours(four) * (1 + 1e-9)
    assert (one["gpu_hours"].sum() > 0) == bool(gpus)
    total = one["core_hours"].sum() / 16
    assert total / 5 <= wall_hours(one)  # no time is lost between cores and GPUs


def test_a_job_takes_one_core_of_a_cluster_and_cannot_be_split(rates):
    few = plan(get_preset("smoke"), 8, 1000, 0, rates)
    rows = few[few["what"] == "diffusion: RL on the simulator"]
    assert rows["wall_hours"].item() == pytest.approx(rows["core_hours"].item())  # a single job
    alone = plan(get_preset("smoke"), 1, 4, 0, rates)
    shared = alone[alone["what"] == "diffusion: RL on the simulator"]
    assert shared["wall_hours"].item() == pytest.approx(rows["core_hours"].item() / 4)


def test_cores_and_gpus_work_side_by_side_and_stages_follow_each_other():
    table = pd.DataFrame(
        [
            ("experts", 5.0, 0.0, 2.0),
            ("experts", 1.0, 0.0, 1.0),
            ("experts", 0.0, 9.0, 7.0),
            ("data", 1.0, 0.0, 4.0),
        ],
        columns=["stage", "core_hours", "gpu_hours", "wall_hours"],
    )
    assert wall_hours(table) == 7 + 4


def test_what_is_guessed_is_named_and_what_is_recorded_names_its_file(rates):
    table = plan(get_preset("paper"), 1, 16, 1, rates)
    parts = {part for basis in table["basis"] for part in basis.split("; ")}
    kinds = {part.partition(": ")[0] for part in parts}
    assert kinds == {"guess", "recorded"}
    assert all(row["basis"].startswith("guess") for _, row in table.iterrows() if row["gpu_hours"])
    for part in parts:
        if part.startswith("recorded"):
            assert (RESULTS.parent / part.split(": ")[1].split(",")[0]).is_file(), part
    laptop = plan(LAPTOP, 1, 2, 0, rates)
    learned = laptop[laptop["what"].str.contains("RL on")]["basis"]
    assert all("recorded: results/laptop/experts.csv" in basis for basis in learned)


def test_the_predicted_minutes_are_within_30_percent_of_those_that_laptop_measured(rates):
    table = plan(LAPTOP, 1, 2, 0, rates)
    experts = recorded("experts.csv").query("mode == 'deterministic'")["minutes"].sum()
    assert core_minutes(table, "experts", "RL on") == pytest.approx(experts, rel=0.3)
    data = recorded("generation.csv")["minutes"].sum()
    assert core_minutes(table, "data", "data sets") == pytest.approx(data, rel=0.3)
    vlas = recorded("vla.csv")
    assert set(vlas["precision"]) == {"bfloat16"}
    fast = plan(LAPTOP, 1, 2, 0, Rates.read(RESULTS, precision="bfloat16"))
    assert core_minutes(fast, "VLAs") == pytest.approx(vlas["minutes"].sum(), rel=0.3)
    assert core_minutes(table, "VLAs") > core_minutes(fast, "VLAs")
    # a trial's seconds run beside those of the other robots that its process simulates
    trials = recorded("vla_trials.csv")["seconds"].sum() / LAPTOP.evaluation.copies / 60
    assert core_minutes(table, "evaluation") == pytest.approx(trials, rel=0.3)


@pytest.mark.parametrize("learned", ["libero_object", "others"])
def test_the_rates_of_some_suites_predict_the_minutes_of_the_others(learned):
    """Nothing is fitted to what is predicted: control steps as played, rates of other tasks."""
    experts = recorded("experts.csv").query("mode == 'deterministic'")
    at_home = experts["task"].str.startswith("libero_object/") == (learned == "libero_object")
    rates = Rates.read(RESULTS, tasks=set(experts[at_home]["task"]))
    others = experts[~at_home]
    minutes = [
        row.control_steps * (1 / rates.speed(row.task).value + rates.learning[row.algorithm].value)
        for row in others.itertuples()
    ]
    assert sum(minutes) / 60 == pytest.approx(others["minutes"].sum(), rel=0.3)


def test_the_predicted_control_steps_of_laptop_are_those_that_it_played(rates):
    experts = recorded("experts.csv").query("mode == 'deterministic'")
    planned = sum(sum(control_steps(LAPTOP.of(task), task, rates)) for task in LAPTOP.tasks)
    played = experts["control_steps"].sum() / len(ALGORITHMS)
    assert planned == pytest.approx(played, rel=0.15)


def test_a_vla_learns_from_as_many_frames_as_recorded_and_holds_their_pictures(rates):
    planned = frames_of(LAPTOP, rates)
    assert planned == pytest.approx(recorded("vla.csv")["frames"].mean(), rel=0.15)
    cells = 64 * 272 * 2  # of a picture of 128²: 8 × 8 cells of 272 float16
    vla = LAPTOP.vla
    held = planned * vla.demonstrations / (vla.demonstrations - vla.held_out)  # those that validate
    memory = plan(LAPTOP, 1, 2, 0, rates)["memory_gib"].max()
    assert memory * 2**30 == pytest.approx(held * 2 * cells)
    union = LAPTOP.with_settings({"vla.data": ("a-recorded", "b-recorded+c-recorded")})
    assert plan(union, 1, 2, 0, rates)["memory_gib"].max() == pytest.approx(2 * memory)


def test_training_physics_makes_the_rl_of_smoke_cheaper(rates):
    smoke = get_preset("smoke")
    exact = plan(smoke.with_settings({"rl.physics": "exact"}), 1, 2, 0, rates)
    cheap = plan(smoke, 1, 2, 0, rates)
    assert core_minutes(cheap, "experts", "RL on") < 0.8 * core_minutes(exact, "experts", "RL on")
    assert core_minutes(cheap, "data") == core_minutes(exact, "data")


def test_scenes_and_clones_are_counted_once_each(rates):
    """A scene serves both classes; in training physics its layouts settle first."""
    smoke = get_preset("smoke")
    scene = core_minutes(plan(smoke, 1, 2, 0, rates), "experts", "scenes")
    exact = plan(smoke.with_settings({"rl.physics": "exact"}), 1, 2, 0, rates)
    settling = 60 * (scene - core_minutes(exact, "experts", "scenes"))
    assert settling == pytest.approx(1024 * 10 / rates.speed("libero_object/0").value)
    clones = plan(LAPTOP, 1, 2, 0, rates).query("unit == 'clones'")
    assert clones["jobs"].tolist() == [15, 15]
    documents = packed_table(RESULTS / "laptop", "documents.csv")
    made = documents[documents["path"].str.match("experts/.*/clone.done.json")]["records"]
    taken = sum(json.loads(record)["seconds"] for record in made)
    assert 3600 * clones["core_hours"].sum() == pytest.approx(taken)


def test_the_log_says_what_share_of_smoke_s_experts_scenes_and_clones_are(rates):
    table = plan(get_preset("smoke"), 1, 2, 0, rates)
    parts = sum(core_minutes(table, "experts", what) for what in ("scenes", "cloning"))
    assert parts / core_minutes(table, "experts") == pytest.approx(1 / 5, abs=0.01)
    log = " ".join((RESULTS.parent / "docs" / "LOG.md").read_text(encoding="utf-8").split())
    assert "they are a fifth of what is planned for experts" in log


def test_the_predicted_minutes_of_smoke_are_within_30_percent_of_those_measured(rates):
    """Processor minutes of a run from nothing (tools/measure_plan.py)."""
    record = pd.read_csv(RESULTS / "plan.csv").query("preset == 'smoke'").set_index("stage")
    assert list(record.index) == ["experts", "data", "VLAs", "evaluation"]
    table, said = plan(get_preset("smoke"), 1, 2, 0, rates), []
    for stage, measured in record["measured_core_minutes"].items():
        parts = ("pictures", "VLAs") if stage == "VLAs" else (stage,)
        planned = sum(core_minutes(table, part) for part in parts)
        assert measured == pytest.approx(planned, rel=0.3)
        said.append(f"{stage} {planned:.1f} and {measured:.1f}")
    text = (RESULTS.parent / "docs" / "run-on-a-cluster.md").read_text(encoding="utf-8")
    page = " ".join(text.split())
    assert f"planned and measured core-minutes of `smoke` are: {', '.join(said)}." in page


def test_the_command_prints_the_sums_and_the_guesses(capsys):
    command = ["plan", "--preset", "paper", "--nodes", "8", "--cores", "64", "--gpus", "8"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "on 8 × (64 cores, 8 GPUs) about" in printed
    assert "Guess: a GPU draws 1000 pictures a second" in printed


def test_experts_that_see_draw_and_encode_a_picture_a_decision(rates):
    """Planned control steps are more than were played, so minutes are compared for each of them."""
    pixels = get_preset("pixels")
    table = plan(pixels, 1, 2, 0, rates)
    own = table[table["stage"] == "experts"].set_index("what")
    blind = plan(pixels.with_settings({"clone.encoder": "state"}), 1, 2, 0, rates)
    assert not blind["what"].str.contains("encoding").where(blind["stage"] != "pictures").any()
    experts = pd.read_csv(RESULTS / "pixels" / "experts.csv").query("mode == 'deterministic'")
    for algorithm, record in experts.groupby("algorithm"):
        learned = own.loc[f"{algorithm}: RL on the simulator"]
        steps = learned["amount"] + own.loc[f"{algorithm}: final trials", "amount"]
        parts = [own.loc[f"{algorithm}: {name}"] for name in ("pictures", "encoding")]
        assert [part["amount"] for part in parts] == [steps / pixels.clone.chunk] * 2
        seen = sum(part["core_hours"] for part in parts) * learned["amount"] / steps
        planned = 60 * (learned["core_hours"] + seen) / learned["amount"]
        measured = record["minutes"].sum() / record["control_steps"].sum()
        assert planned == pytest.approx(measured, rel=0.3)
    assert core_minutes(table, "data", "encoding") > 0
    assert plan(pixels, 1, 2, 1, rates).query("stage == 'experts'")["gpu_hours"].sum() > 0


@pytest.mark.parametrize("name", ["gpu", "paper"])
def test_experts_that_learn_to_see_draw_and_encode_their_own_pictures_wherever_they_play(
    name, rates
):
    preset = get_preset(name)
    table = plan(preset, 1, 64, 0, rates)
    drawn = table[table["what"].str.endswith(": pictures")]
    assert set(drawn["stage"]) == {"experts", "data"}
    seconds = 3600 * drawn["core_hours"] / drawn["amount"]
    assert seconds.to_numpy() == pytest.approx(1 / rates.pictures[preset.clone.detail])
    played = table.set_index("what")["amount"]
    for algorithm in ALGORITHMS:
        parts = ("RL on the simulator", "final trials")
        steps = sum(played[f"{algorithm}: {part}"] for part in parts)
        for work in ("pictures", "encoding"):
            assert played[f"{algorithm}: {work}"] == pytest.approx(steps / preset.clone.chunk)
    for kind in ("data sets", "repeated start states"):
        assert 0 < played[f"{kind}: pictures"] == played[f"{kind}: encoding"]
    assert plan(preset, 1, 64, 1, rates).query("stage == 'data'")["gpu_hours"].sum() > 0


def test_the_evaluation_counts_the_trials_that_each_vla_plays(rates):
    libero = get_preset("libero")
    as_many = libero.with_settings({"evaluation.fewer_trials": None})
    own, same = (
        plan(each, 1, 2, 0, rates).query("stage == 'evaluation'") for each in (libero, as_many)
    )
    assert own["amount"].item() / same["amount"].item() == pytest.approx(13_800 / 21_000)


def test_a_part_without_a_task_of_the_vla_plans_no_vla(rates):
    table = plan(get_preset("libero:libero_90"), 1, 2, 0, rates)
    assert set(table["stage"]) == {"experts", "data"}
    assert "on one machine about" in text(table, "one machine")
    laptop = plan(get_preset("laptop:libero_goal"), 1, 2, 0, rates)  # with suites beyond its own
    assert set(laptop["stage"]) == {"experts", "data"}


def test_no_nodes_and_half_a_core_are_refused(rates):
    with pytest.raises(UserError, match=r"--nodes is 0"):
        plan(LAPTOP, 0, 2, 0, rates)
    with pytest.raises(UserError, match=r"--cores is 0\.5"):
        plan(LAPTOP, 1, 0.5, 0, rates)


def test_a_folder_of_work_without_records_is_planned_by_those_of_the_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    assert Rates.read().stepping == Rates.read(RESULTS).stepping


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"throughput\.json is missing"):
        Rates.read(tmp_path)


@pytest.mark.parametrize(
    ("gap", "command"),
    [
        (("suites", "libero_10"), "benchmark simulator --suites libero_10`"),
        (("suites",), "benchmark simulator --suites libero_spatial libero_object"),
        (("camera_fps",), "benchmark camera`"),
        (("vla",), "benchmark vla`"),
        (("evaluation",), "benchmark evaluation`"),
    ],
)
def test_what_a_benchmark_left_out_is_told_with_the_command_that_measures_it(
    gap, command, tmp_path
):
    record = json.loads((RESULTS / "throughput.json").read_text())
    holder = record[gap[0]] if len(gap) > 1 else record
    del holder[gap[-1]]
    (tmp_path / "throughput.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=command):
        Rates.read(tmp_path)


def test_a_table_of_the_plan_goes_into_a_folder_that_is_not_there_yet(tmp_path, capsys):
    path = tmp_path / "new" / "plan.csv"
    assert main(["plan", "--preset", "smoke", "--cores", "2", "--csv", str(path)]) == 0
    assert set(pd.read_csv(path)["stage"]) == set(STAGES)


def test_all_looks_at_a_policy_count_in_records_of_either_format():
    first = get_preset(RECORDED).rl.measure_starts
    old = pd.DataFrame({"measured": [4 * first, 0, 2 * first]})  # all looks in one
    assert _second_looks(old).value == 3
    new = pd.DataFrame({"measured": [first, 0, first], "played": [4 * first, 0, 2 * first]})
    assert _second_looks(new).value == 3
