"""Generation: the first n successes of a fixed plan, whatever the batches, threads and kills."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time

import data_samples as samples
import numpy as np
import pandas as pd
import pytest

from diffrl.base import artifacts
from diffrl.base.arm import Arm
from diffrl.base.artifacts import FORCE
from diffrl.base.errors import UserError
from diffrl.data.hdf5 import read_attributes, read_episodes, validate_file
from diffrl.demonstrator.episodes import operator_episodes
from diffrl.generation import stage
from diffrl.generation.attempts import Attempt, Player, demonstrations_of, expert_folders
from diffrl.generation.stage import arms_of, collect, dataset_path, generate
from diffrl.presets import PRESETS, OperatorConfig, get_preset
from diffrl.quality import Trajectory
from diffrl.rl.records import FORMAT, config_of, expert_folder
from diffrl.sim import starts as sim_starts
from diffrl.sim.scene import load_scene
from diffrl.sim.tasks import get_task


def attempt(number):
    """Attempt k: its outcome and episode depend on k alone; three of seven fail, one diverges."""
    outcome = {2: "failure", 5: "failure", 6: "error"}.get(number % 7, "success")
    episode = dataclasses.replace(samples.sample_episode(number), attempt=number)
    return Attempt(number, f"fresh/1/{number}", "diffusion-seed0", outcome, episode)


def play(first, count):
    return [attempt(first + offset) for offset in range(count)]


def run(path, wanted=12, limit=100, batch=5):
    return collect(path, samples.TASK, samples.ATTRS, play, wanted, limit, batch)


def contents(path):
    return path.read_bytes(), path.with_suffix(".attempts.csv").read_bytes()


def test_the_first_successes_are_kept_and_the_others_counted(tmp_path):
    attempts = run(tmp_path / "a.hdf5")
    episodes = read_episodes(tmp_path / "a.hdf5")
    assert [episode.attempt for episode in episodes] == [
        number for number in range(21) if number % 7 not in (2, 5, 6)
    ]
    assert attempts["outcome"].value_counts().to_dict() == {
        "success": 12,
        "failure": 5,
        "error": 2,
    }


def test_the_batch_size_changes_no_byte(tmp_path):
    for batch in (1, 4, 50):
        run(tmp_path / f"{batch}.hdf5", batch=batch)
    assert len({contents(tmp_path / f"{batch}.hdf5") for batch in (1, 4, 50)}) == 1


def test_more_episodes_continue_the_same_data_set(tmp_path):
    run(tmp_path / "at-once.hdf5", wanted=12)
    run(tmp_path / "later.hdf5", wanted=5)
    run(tmp_path / "later.hdf5", wanted=12)
    assert contents(tmp_path / "at-once.hdf5") == contents(tmp_path / "later.hdf5")


def test_the_limit_of_attempts_ends_a_hopeless_source(tmp_path):
    attempts = run(tmp_path / "a.hdf5", wanted=50, limit=10)
    assert len(attempts) == 10
    assert len(read_episodes(tmp_path / "a.hdf5")) == 6


def test_thirty_kills_while_generating_end_in_the_same_bytes(tmp_path):
    started = time.perf_counter()
    run(tmp_path / "unbroken.hdf5")
    duration = time.perf_counter() - started
    path, rng = tmp_path / "killed.hdf5", np.random.default_rng(0)
    for _ in range(30):
        child = os.fork()
        if child == 0:
            run(path)
            os._exit(0)
        time.sleep(rng.uniform(0, duration / 5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for file in tmp_path.rglob("[!.]*.hdf5"):  # dot files are work in progress
            assert validate_file(file) == []
    run(path)
    assert contents(path) == contents(tmp_path / "unbroken.hdf5")


def test_a_data_set_that_is_being_written_is_neither_removed_nor_mixed(tmp_path):
    path, other = tmp_path / "a.hdf5", samples.ATTRS | {"generation": "other settings"}
    run(tmp_path / "alone.hdf5")

    def intruded(first, count):
        if first:  # in the middle
            clear = functools.partial(stage._discard_other, path, other, True)
            with pytest.raises(UserError, match="is being written by another process"):
                collect(path, samples.TASK, other, play, 4, 100, clear=clear)
        return play(first, count)

    collect(path, samples.TASK, samples.ATTRS, intruded, 12, 100, 5)
    assert contents(path) == contents(tmp_path / "alone.hdf5")


@pytest.mark.parametrize("damage", ["", "a,b\n1,2\n", "attempt,outcome\n0,succ"])
def test_a_damaged_list_of_attempts_is_made_anew_with_its_data_set(tmp_path, damage):
    path = tmp_path / "a.hdf5"
    run(path, wanted=3)
    whole = contents(path)
    path.with_suffix(".attempts.csv").write_text(damage)
    clear = functools.partial(stage._discard_other, path, read_attributes(path), False)
    collect(path, samples.TASK, samples.ATTRS, play, 3, 100, 5, clear=clear)
    assert contents(path) == whole


def test_a_missing_expert_is_named_with_the_command_that_trains_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m diffrl train --task libero_object/0"):
        generate(get_preset("smoke"), samples.TASK, Arm("diffusion", "deterministic"))


def finished_expert(folder, config):
    folder.mkdir(parents=True)
    (folder / "policy.safetensors").touch()
    artifacts.Stage(folder, "expert", config, format=FORMAT).finish({"rows": []})


def test_an_expert_of_other_settings_makes_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = get_preset("smoke")
    folder = expert_folder(smoke, samples.TASK, "diffusion", 0)
    finished_expert(folder, config_of(smoke, samples.TASK, "diffusion", 0))
    assert expert_folders(smoke, samples.TASK, "diffusion") == [folder]
    other = smoke.with_settings({"rl.iterations": 99})
    with pytest.raises(UserError, match=r"of the settings of preset smoke: run notebook 01"):
        generate(other, samples.TASK, Arm("diffusion", "deterministic"))
    (folder / "policy.safetensors").unlink()
    with pytest.raises(UserError, match=r"records are there.*--seed 0 --force` trains it again"):
        generate(smoke, samples.TASK, Arm("diffusion", "deterministic"))


def test_a_clone_is_a_source_of_its_own_in_the_folder_of_its_expert(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke = get_preset("smoke").with_settings({"rl.seeds": (0, 1), "generation.experts": 1})
    folder = expert_folder(smoke, samples.TASK, "gaussian", 0)
    finished_expert(folder, config_of(smoke, samples.TASK, "gaussian", 0))
    assert expert_folders(smoke, samples.TASK, "gaussian_clone") == [folder / "clone"]
    assert expert_folders(smoke, samples.TASK, "gaussian") == [folder]  # the first of two seeds
    with pytest.raises(UserError, match=r"no diffusion expert.*--algorithm diffusion"):
        expert_folders(smoke, samples.TASK, "diffusion_zero")


def test_a_clone_that_evidence_did_not_keep_is_made_again_before_it_plays(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    smoke, made = get_preset("smoke"), []
    folder = expert_folder(smoke, samples.TASK, "gaussian", 0)
    finished_expert(folder, config_of(smoke, samples.TASK, "gaussian", 0))

    def again(run):
        made.append((run.task, run.algorithm, run.seed, run.folder))
        (folder / "clone").mkdir()
        (folder / "clone" / "policy.safetensors").write_bytes(b"weights")

    monkeypatch.setattr("diffrl.rl.train.Training.clone_again", again)
    monkeypatch.setattr(stage, "collect", lambda path, *_: pd.DataFrame(columns=stage.ATTEMPT))
    for _ in range(2):
        generate(smoke, samples.TASK, Arm("gaussian_clone", "deterministic"), force=True)
    generate(smoke, samples.TASK, Arm("gaussian", "deterministic"), force=True)
    assert made == [(samples.TASK, "gaussian", 0, folder)]


def test_another_file_of_people_s_demonstrations_makes_their_data_set_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setenv("LIBERO_DATASETS", str(tmp_path))
    recorded = tmp_path / f"{get_task(samples.TASK).name}_demo.hdf5"
    made = []

    def store(path, task, attrs, *_):
        made.append(json.loads(attrs["generation"]))
        return pd.DataFrame(columns=stage.ATTEMPT)

    for name in ("load_scene", "replay", "read_episodes", "Player"):
        monkeypatch.setattr(stage, name, lambda *a, **k: [])
    monkeypatch.setattr(stage, "collect", store)
    for content in ("first", "first", "corrected"):
        recorded.write_text(content)
        generate(get_preset("smoke"), samples.TASK, Arm("human"))
    first, second = made
    assert first["recorded"] != second["recorded"]  # so none of the first file's is continued
    generate(get_preset("smoke"), samples.TASK, Arm("operator"))
    assert "recorded" not in made[2]


def test_libero_makes_the_ladder_s_data_and_a_vla_of_each():
    libero = get_preset("libero")
    made = set(map(str, arms_of(libero)))
    assert len(made) == 9
    assert set(libero.vla.data) == made


def test_the_steady_operator_is_the_operator_without_tremor():
    libero = get_preset("libero")
    steady = demonstrations_of(libero, "steady")
    assert steady.tremor == 0
    assert dataclasses.replace(steady, tremor=libero.demonstrations.tremor) == (
        demonstrations_of(libero, "operator")
    )


@pytest.mark.sim
def test_without_tremor_the_same_layouts_are_played_on_the_same_ways_but_smoother():
    scene = load_scene(samples.TASK)
    shown = {}
    for tremor in (0.0, 1.0):
        config = OperatorConfig(tremor=tremor)
        starts = sim_starts.fresh_start_states(scene, 2, 1)
        found = [e for e, _ in operator_episodes(scene, starts, 1, config, threads=1)]
        shown[tremor] = found
    for still, shaking in zip(shown[0.0], shown[1.0], strict=True):
        assert still.start_state == shaking.start_state
        assert np.array_equal(still.states[0], shaking.states[0])
        paths = [Trajectory.from_episode(e).position for e in (still, shaking)]
        assert abs(len(paths[0]) / len(paths[1]) - 1) < 0.25
        gaps = np.linalg.norm(paths[0][:, None] - paths[1][None], axis=-1).min(axis=1)
        assert np.median(gaps) < 0.02  # m: one way
        change = [np.abs(np.diff(e.actions[:, :6], axis=0)).mean() for e in (still, shaking)]
        assert change[0] < change[1]


def test_every_preset_makes_demonstrations_and_both_experts_and_most_both_modes():
    counts = {"libero": 9, "smoke": 3, "pixels": 3}  # libero: arms that say why
    for name in PRESETS:
        made = arms_of(get_preset(name))
        assert len(made) == counts.get(name, 5)
        noisy = set() if counts.get(name) == 3 else {"stochastic"}
        assert {mode for _, mode in made} == {"recorded", "deterministic"} | noisy


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Preset smoke with four episodes, in a folder of its own."""
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    preset = get_preset("smoke")
    small = dataclasses.replace(preset.generation, episodes=4)
    return dataclasses.replace(preset, generation=small)


@pytest.mark.sim
def test_the_operators_data_set_is_sound_and_away_from_the_evaluation(short, monkeypatch):
    from diffrl.sim.scene import load_scene
    from diffrl.sim.starts import official_start_states

    scene, home = load_scene(samples.TASK), os.environ["DIFFRL_HOME"]
    (row,) = generate(short, samples.TASK, Arm("operator")).to_dict("records")
    path = dataset_path(get_preset("smoke"), samples.TASK, Arm("operator"))
    assert validate_file(path) == []
    episodes = read_episodes(path)
    assert row["episodes"] == len(episodes) == 4
    assert row["attempts"] == row["episodes"] + row["failures"] + row["errors"]
    official = official_start_states(scene)
    near = sim_starts.distance_to_official(scene, [episode.start_state for episode in episodes])
    assert near > 1e-3  # none is a state of the evaluation
    moved = official[7]
    moved.states[0, 1 + scene.arm_qpos] += 0.02  # the arm's noise hides no layout
    monkeypatch.setattr(sim_starts, "fresh_start_states", lambda *_, **__: moved)
    assert sim_starts.distance_to_official(scene, ["fresh/1/0"]) == 0
    monkeypatch.undo()
    monkeypatch.setenv("DIFFRL_HOME", home)
    before = path.stat().st_mtime_ns
    generate(short, samples.TASK, Arm("operator"))  # finds it done
    assert path.stat().st_mtime_ns == before
    other = dataclasses.replace(short.generation, seed=2)
    generate(dataclasses.replace(short, generation=other), samples.TASK, Arm("operator"))
    assert {e.start_state.split("/")[1] for e in read_episodes(path)} == {"2"}


@pytest.mark.sim
def test_a_deleted_a_damaged_and_a_too_large_data_set_are_made_anew(short, monkeypatch):
    def make(episodes):
        asked = dataclasses.replace(short.generation, episodes=episodes)
        preset = dataclasses.replace(short, generation=asked)
        (row,) = generate(preset, samples.TASK, Arm("operator")).to_dict("records")
        return row["episodes"], contents(path)

    path = dataset_path(get_preset("smoke"), samples.TASK, Arm("operator"))
    whole = make(2)[1]
    path.unlink()  # its list of attempts stays
    assert make(2) == (2, whole)
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    assert make(2) == (2, whole)
    before = path.stat().st_mtime_ns
    monkeypatch.setenv(FORCE, repr(time.time() + 1))  # `reproduce --force`
    assert make(2) == (2, whole)
    assert path.stat().st_mtime_ns > before
    monkeypatch.delenv(FORCE)
    assert make(3)[0] == len(read_episodes(path)) == 3
    assert make(2) == (2, whole)


@pytest.mark.sim
def test_a_source_that_never_succeeds_is_recorded_and_stops_nothing(short, monkeypatch):
    def fail(self, first, count):
        numbers = range(first, first + count)
        return [Attempt(k, f"fresh/1/{k}", "operator", "failure", None) for k in numbers]

    monkeypatch.setattr(Player, "__call__", fail)
    few = dataclasses.replace(short.generation, max_attempts=5)
    preset = dataclasses.replace(short, generation=few)
    (row,) = generate(preset, samples.TASK, Arm("operator")).to_dict("records")
    assert (row["episodes"], row["attempts"], row["success"]) == (0, 5, 0.0)
    assert not dataset_path(get_preset("smoke"), samples.TASK, Arm("operator")).exists()


@pytest.mark.sim
def test_libero_itself_replays_our_actions_to_success(short):
    """Must show: from the same settled start, LIBERO's own environment succeeds as ours did."""
    from libero_reference import begin, make_env

    from diffrl.sim.scene import load_scene
    from diffrl.sim.starts import fresh_start_states

    generate(short, samples.TASK, Arm("operator"))
    episodes = read_episodes(dataset_path(get_preset("smoke"), samples.TASK, Arm("operator")))
    scene, env = load_scene(samples.TASK), make_env(samples.TASK)
    successes = 0
    for episode in episodes:
        env.reset()  # else the controller keeps the goal orientation of the episode before
        number = int(episode.start_state.rsplit("/", 1)[1])
        begin(env, fresh_start_states(scene, 1, short.generation.seed, number))
        for _ in range(10):
            env.step([0.0] * 6 + [-1.0])
        done = [env.step(action)[2] for action in episode.actions]
        successes += any(done)
    env.close()
    assert successes == len(episodes)


@pytest.mark.slow
def test_the_command_line_survives_kills(tmp_path):
    command = [sys.executable, "-m", "diffrl", "generate", "--preset", "smoke"]
    command += ["--source", "operator", "--task", samples.TASK]
    results = {}
    for name, kills in (("unbroken", []), ("killed", [1, 10])):
        environment = {**os.environ, "DIFFRL_HOME": str(tmp_path / name)}
        for episodes in kills:
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            while len(list((tmp_path / name).rglob("*.parts/[0-9]*.hdf5"))) < episodes:
                assert process.poll() is None
                time.sleep(0.02)
            process.kill()
            process.wait()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        (path,) = (tmp_path / name).rglob("datasets/**/*_demo.hdf5")
        table = pd.read_csv(next((tmp_path / name).rglob("generation.csv")))
        results[name] = (*contents(path), table.drop(columns="minutes").to_csv())
    assert results["killed"] == results["unbroken"]


@pytest.mark.sim
def test_a_repeated_start_state_is_played_with_other_noise_each_time(tmp_path, monkeypatch):
    """The operator here: a Player asks an expert in the same way."""
    from diffrl.generation.stage import repeat_all
    from diffrl.sim.scene import load_scene

    smoke = get_preset("smoke")
    scene = load_scene(samples.TASK)
    once = Player(scene, Arm("operator"), smoke, threads=1)
    player = dataclasses.replace(once, repeats=2)
    attempts = player(0, 4)
    assert [a.start_state for a in attempts] == ["fresh/1/0", "fresh/1/0", "fresh/1/1", "fresh/1/1"]
    first, again = attempts[0].episode, attempts[1].episode
    assert np.array_equal(first.states[0], again.states[0])
    assert first.actions.shape != again.actions.shape or (first.actions != again.actions).any()
    assert first.checksum() == once(0, 1)[0].episode.checksum()  # the first turn is the data set's
    assert player(1, 1)[0].episode.checksum() == again.checksum()
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    few = smoke.with_settings({"generation.repeats": 2, "generation.repeated_starts": 1})
    table = repeat_all(few, arms=[Arm("operator"), Arm("human")], workers=1)
    assert table["attempts"].tolist() == [2]
    path = dataset_path(get_preset("smoke"), samples.TASK, Arm("operator"), repeated=True)
    assert {e.start_state for e in read_episodes(path)} <= {"fresh/1/0"}
    assert not (tmp_path / "runs/smoke/generation.csv").exists()


def test_a_missing_expert_stops_no_other_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    preset, task = get_preset("smoke"), "libero_object/0"

    def folders(preset, task, source):
        if source == "gaussian":
            raise UserError("There is no gaussian expert")
        return []

    def make(work, items, **_):
        empty = dict.fromkeys(stage.RECORD, 0)
        return [pd.DataFrame([empty | {"task": t, **arm._asdict()}]) for t, arm in items]

    monkeypatch.setattr(stage, "expert_folders", folders)
    monkeypatch.setattr(stage, "map_tasks", make)
    with pytest.raises(UserError, match=r"1 data sets were left out.* no gaussian expert"):
        stage.generate_all(preset, [task])
    made = pd.read_csv(tmp_path / "runs" / "smoke" / "generation.csv")
    assert set(made["source"]) == {"operator", "diffusion"}
    with pytest.raises(UserError, match=r"^There is no gaussian expert$"):
        stage.generate_all(preset, [task], [Arm("gaussian", "deterministic")])
