"""Policies of one's own: any class with `infer(obs)`, by module, by file, or as an object."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.evaluation import own, protocol
from diffrl.evaluation import stage as evaluation_stage
from diffrl.evaluation.play import play
from diffrl.evaluation.policies import open_policy
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.stage import Job, evaluate, plan

TASK = "libero_object/0"
TRIAL = Trial(TASK, "official/0", 0)
MINE = """
import numpy as np

SPEED = -0.2

class Mine:
    cameras = ()
    def __init__(self, speed="0.0", weights=""):
        self.speed = float(speed)
    def infer(self, obs):
        action = [0, 0, SPEED + self.speed, 0, 0, 0, -1]
        return {"actions": np.tile(action, (20, 1))}

class Other:
    pass

def make(speed="0.1"):
    return Mine(speed)

class Broken(Mine):
    def infer(self, obs):
        return obs["observation/nothing"]
"""


class Seen:
    """An observation of n robots."""

    def __init__(self, n: int = 1):
        self.eef_pos = np.arange(3.0 * n).reshape(n, 3)
        self.eef_quat = np.tile([1.0, 0.0, 0.0, 0.0], (n, 1))
        self.gripper_qpos = np.full((n, 2), 0.04)


def ask(policy, trials=(TRIAL,), images=None) -> np.ndarray:
    for trial in trials:
        policy.begin(trial, "pick up the alphabet soup")
    return policy.act(Seen(len(trials)), images, list(trials))


class Answers:
    """A policy that returns what it is told to."""

    cameras = ()

    def __init__(self, answer):
        self.answer = answer

    def infer(self, obs):
        return self.answer


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # opening a policy adds its folder


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "a + b %20 ~c" / "my_policy.py"
    path.parent.mkdir()
    path.write_text(MINE)
    return path


def test_an_observation_is_openpi_s():
    seen = {}

    class Looks:
        def infer(self, obs):
            seen.update(obs)
            return np.zeros(7)

    images = np.zeros((1, 2, 256, 256, 3), np.uint8)
    images[0, 0, :128] = 255  # OpenGL's first row is the lowest
    policy = own.adapt(Looks())
    assert (policy.image_size, policy.detail) == (256, "exact")
    assert ask(policy, images=images).shape == (1, 1, 7)
    images = ["observation/image", "observation/wrist_image"]
    assert list(seen) == [*images, "observation/state", "prompt"]
    assert seen["observation/image"].shape == (224, 224, 3)
    assert (seen["observation/image"][0, 0, 0], seen["observation/image"][-1, 0, 0]) == (0, 255)
    state = [0, 1, 2, np.pi, 0, 0, 0.04, 0.04]
    np.testing.assert_allclose(seen["observation/state"], state)
    assert seen["prompt"] == "pick up the alphabet soup"


@pytest.mark.parametrize(
    "answer",
    [
        np.zeros((5, 7), np.float32),
        [[0.0] * 7] * 5,
        {"actions": np.zeros((5, 7)), "timing": 1},
        torch.zeros(5, 7, requires_grad=True),
        torch.zeros(5, 7, dtype=torch.bfloat16),
    ],
)
def test_a_chunk_may_be_any_array_list_tensor_or_openpi_s_map(answer):
    assert ask(own.adapt(Answers(answer))).shape == (1, 5, 7)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (np.zeros((5, 6)), r"shape \(5, 6\); expected \(1 or more, 7\)"),
        (np.zeros((1, 5, 7)), r"shape \(1, 5, 7\)"),
        (np.zeros((0, 7)), r"shape \(0, 7\)"),
        (np.full((5, 7), np.nan), "not finite"),
        ({"action": np.zeros(7)}, r"without `actions`: \['action'\]"),
        (None, "no array of numbers|not finite|shape"),
        ("left", "no array of numbers"),
        ([[0.0] * 7, [0.0] * 6], "no array of numbers"),
    ],
)
def test_what_is_no_chunk_of_actions_is_refused_with_the_class_s_name(answer, told):
    with pytest.raises(UserError, match=f"Answers.infer returned.*({told})"):
        ask(own.adapt(Answers(answer)))


def test_replan_executes_the_first_actions_of_each_chunk():
    policy = Answers(np.arange(70.0).reshape(10, 7))
    policy.replan = 3
    assert np.array_equal(ask(own.adapt(policy))[0], policy.answer[:3])
    policy.answer = policy.answer[:2]
    with pytest.raises(UserError, match="expected \\(3 or more, 7\\)"):
        ask(own.adapt(policy))


def test_a_chunk_that_changes_its_length_is_refused():
    inner = Answers(np.zeros((5, 7)))
    policy = own.adapt(inner)
    ask(policy)
    inner.answer = np.zeros((4, 7))
    with pytest.raises(UserError, match="set `replan`"):
        ask(policy)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("cameras", wrong) for wrong in (("front",), None, 2, [["agentview"]], "agentview")],
        *(("image_size", 0), ("detail", "fine"), ("detail", None), ("replan", 2.5)),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting, value):
    policy = Answers(np.zeros(7))
    setattr(policy, setting, value)
    with pytest.raises(UserError, match=rf"Answers\.{setting} is"):
        own.adapt(policy)


def test_a_policy_that_is_reset_plays_one_trial_at_a_time_and_gets_the_trial_s_seed():
    class Remembers(Answers):
        def reset(self, seed):
            self.seeds = [*getattr(self, "seeds", []), seed]

    inner = Remembers(np.zeros(7))
    policy = own.adapt(inner)
    assert not policy.together
    assert own.adapt(Answers(np.zeros(7))).together
    other = Trial(TASK, "official/1", 0)
    for trial in (TRIAL, other, TRIAL):
        ask(policy, [trial])
    assert inner.seeds[0] == inner.seeds[2] != inner.seeds[1]
    assert 0 <= inner.seeds[0] < 2**32


def test_what_a_policy_raises_is_told_with_its_line(mine):
    policy = open_policy(f"{mine}:Broken")
    line = MINE[: MINE.index("observation/nothing")].count("\n") + 1
    with pytest.raises(
        UserError, match=rf"Broken\.infer raised KeyError.*my_policy\.py, line {line}"
    ):
        ask(policy)
    mine.write_text("import nowhere_at_all\n")
    with pytest.raises(UserError, match=r"ModuleNotFoundError.*nowhere_at_all.*line 1"):
        open_policy(f"{mine}:Mine")
    mine.write_text("class Mine\n")
    with pytest.raises(UserError, match="SyntaxError"):
        open_policy(f"{mine}:Mine")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("{file}:Nobody", "has no Nobody; it has Mine, Broken"),
        ("{file}:Other", r"Other is no policy: give it a method infer\(obs\)"),
        ("{file}:SPEED", "SPEED"),
        ("{file}:Mine?sped=1", "Mine has no option 'sped': its options are speed, weights"),
        ("{file}:Mine?speed=fast", "ValueError.*fast"),
        ("{folder}/none.py:Mine", "There is no file"),
        ("no_such_module:Mine", "no module 'no_such_module'"),
        ("math:pi", "pi"),
        ("robot arm:Mine", "There is no policy 'robot arm:Mine'"),
        ("mine", "There is no policy 'mine'"),
    ],
)
def test_a_name_that_leads_to_no_policy_is_refused(mine, name, told):
    with pytest.raises(UserError, match=told):
        open_policy(name.format(file=mine, folder=mine.parent))


def test_a_file_and_a_module_are_opened_by_name_with_options(mine, monkeypatch):
    for name, speed in (("Mine", -0.2), ("Mine?speed=0.5", 0.3), ("make", -0.1)):
        assert np.isclose(ask(open_policy(f"{mine}:{name}"))[0, 0, 2], speed)
    monkeypatch.chdir(mine.parent)
    assert ask(open_policy("my_policy:Mine")).shape == (1, 20, 7)
    mine.write_text(MINE.replace("-0.2", "-0.25"))
    with pytest.raises(UserError, match="my_policy has changed since it was imported"):
        open_policy("my_policy:Mine")
    sys.modules.pop("my_policy")


def test_a_policy_is_another_when_its_file_options_or_weights_change(mine):
    weights = mine.with_name("weights+1.bin")
    weights.write_bytes(b"one")
    plain, names = f"{mine}:Mine", [f"{mine}:Mine?weights={weights}", f"{mine}:Mine?speed=1"]
    prints = [open_policy(name).fingerprint for name in [plain, *names]]
    assert open_policy(plain).fingerprint == prints[0]
    weights.write_bytes(b"two")
    prints.append(open_policy(names[0]).fingerprint)
    mine.write_text(MINE.replace("-0.2", "-0.3"))  # of the same size, in the same second
    prints.append(open_policy(plain).fingerprint)
    assert len(set(prints)) == 5
    assert ask(open_policy(plain))[0, 0, 2] == -0.3


def test_a_class_that_follows_the_whole_protocol_is_opened_by_its_name(mine):
    mine.write_text(
        "from diffrl.evaluation.policies import Random\nclass Mine(Random):\n    chunk = 3\n"
    )
    policy = open_policy(f"{mine}:Mine")
    assert ask(policy).shape == (1, 3, 7)
    before = policy.fingerprint
    mine.write_text(mine.read_text() + "    # edited\n")
    assert open_policy(f"{mine}:Mine").fingerprint != before != "random"
    mine.write_text("class Mine:\n    cameras = ()\n    def act(self, *a): pass\n")
    with pytest.raises(UserError, match="image_size, detail, chunk, failures, begin, end"):
        open_policy(f"{mine}:Mine")


def test_a_class_in_place_of_an_object_is_refused():
    with pytest.raises(UserError, match="Answers is a class"):
        evaluate([Job(Answers, tuple(plan([TASK], 1)), Path("x"), Arm("mine"))])


@pytest.mark.parametrize("word", ["", "my policy", " mine"])
def test_an_arm_s_name_that_tables_would_take_apart_is_refused(word):
    with pytest.raises(UserError, match="single words"):
        Job("random:", (), Path("x"), Arm(word))


# ---- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a+b", "a b", "50%20", "what?", "a&b", "x=y", "~/ü"])
def test_a_path_may_hold_any_character(place):
    found = protocol.read_options(f"{place}?mode=stochastic", ["mode"], "expert")
    assert found == (place, {"mode": "stochastic"})
    found = protocol.read_options(
        f"python?replan=5&checkpoint={place}", ["checkpoint", "replan"], ""
    )
    assert found == ("python", {"replan": "5", "checkpoint": place})


def test_unknown_and_repeated_options_are_refused():
    for name in (
        "expert:folder?mod=stochastic",
        "openpi:ws://h:1?model=k&api_key=abc",
        "random:?x=1",
    ):
        with pytest.raises(UserError, match="has no option"):
            open_policy(name)
    with pytest.raises(UserError, match="given twice"):
        open_policy("openpi:ws://h:1?model=a&model=b")


def test_a_tilde_is_the_home_folder_wherever_a_policy_is_named(tmp_path, monkeypatch):
    import vla_samples

    from diffrl.vla import model as vla

    monkeypatch.setenv("HOME", str(tmp_path))
    vla.save(vla_samples.make_model(), tmp_path / "my+model", {})
    assert open_policy("compact:~/my+model").chunk > 0
    with pytest.raises(UserError, match=str(tmp_path)):
        open_policy("expert:~/nothing")
    with pytest.raises(UserError, match=str(tmp_path)):
        open_policy("oracle:~/nothing.hdf5")
    for folder in ("a+b", "a+b/checkpoints/last/pretrained_model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"input_features": {}}')
    lerobot = open_policy("lerobot:~/bin/python?checkpoint=~/a+b")
    assert lerobot.command[0] == str(tmp_path / "bin" / "python")
    assert lerobot.command[-1] == str(tmp_path / "a+b")
    lerobot = open_policy("lerobot:python?checkpoint=~/a+b/checkpoints/last")
    assert lerobot.command[-1].endswith("last/pretrained_model")
    with pytest.raises(UserError, match=r"missing holds no config\.json"):
        open_policy("lerobot:python?checkpoint=~/missing")


def test_a_lerobot_checkpoint_sees_pictures_of_the_size_that_it_was_trained_on(tmp_path):
    def describe(*shapes):
        features = {f"image{k}": {"type": "VISUAL", "shape": s} for k, s in enumerate(shapes)}
        features["observation.state"] = {"type": "STATE", "shape": [8]}
        (tmp_path / "config.json").write_text(json.dumps({"input_features": features}))
        return open_policy(f"lerobot:python?checkpoint={tmp_path}&detail=reduced")

    small, large = describe([3, 128, 128], [3, 128, 128]), describe([3, 256, 256])
    assert (small.image_size, small.sent_size, small.detail) == (128, 128, "reduced")
    assert (large.image_size, large.sent_size) == (256, 256)
    with pytest.raises(UserError, match=r"\[96, 128\] pixels"):
        describe([3, 128, 96])
    with pytest.raises(UserError, match="detail is exact or reduced"):
        open_policy("lerobot:python?checkpoint=user/name&detail=fine")


def test_policies_whose_names_differ_have_folders_of_their_own():
    names = ["compact:a+b", "compact:a b", "compact:a-b", "compact:" + "x" * 300]
    folders = {evaluation_stage._folder_name(name, plan([TASK], 1)) for name in names}
    assert len(folders) == len(names)
    assert max(map(len, folders)) < 120


# ---- in the simulator ----------------------------------------------------------------------------


def records(folder: Path) -> str:
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds").to_csv()


@pytest.mark.sim
def test_a_class_of_ones_own_is_evaluated_by_processes_as_in_one(mine, tmp_path):
    trials = tuple(plan([TASK], 3))
    for workers in (1, 2):
        job = Job(f"{mine}:Mine?speed=0.1", trials, tmp_path / str(workers), Arm("Mine"))
        table = evaluate([job], workers=workers)
        assert table["status"].tolist() == ["failure"] * 3
    assert records(tmp_path / "1") == records(tmp_path / "2")


@pytest.mark.sim
def test_the_command_evaluates_a_module_s_class_of_the_working_folder(mine, tmp_path):
    command = [sys.executable, "-m", "diffrl", "evaluate", "--policy", "my_policy:Mine"]
    command += ["--suite", TASK, "--trials", "1", "--out", str(tmp_path / "out")]
    for found in (False, True):
        result = subprocess.run(command, cwd=mine.parent, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert ("1 of 1 trials" in result.stdout) == found
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert table["source"].tolist() == ["Mine"]
    about = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert about["policy"] == "my_policy:Mine"


@pytest.mark.sim
def test_an_object_is_found_again_only_if_it_says_what_it_is(tmp_path, capsys):
    policy, threads = Answers(np.zeros((20, 7))), torch.get_num_threads()
    job = Job(policy, tuple(plan([TASK], 1)), tmp_path, Arm("mine"))
    for _ in range(2):
        table = evaluate([job], workers=2)
        assert table["status"].tolist() == ["failure"]
        assert "found in" not in capsys.readouterr().out
    assert list((tmp_path / "checkpoint").iterdir()) == []  # nobody could ask for them
    policy.fingerprint = "weights of Monday"
    evaluate([job])
    evaluate([job])
    assert "1 of 1 trials of test_evaluation_own.Answers are found" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


@pytest.mark.sim
def test_an_object_that_remembers_plays_its_trials_one_after_the_other():
    class Counts:
        cameras = ()

        def __init__(self):
            self.log = []

        def reset(self):
            self.log.append(0)

        def infer(self, obs):
            self.log[-1] += 1
            return np.zeros((70, 7))

    policy = Counts()
    play(own.adapt(policy), plan([TASK], 3), copies=3)
    assert policy.log == [4, 4, 4]
