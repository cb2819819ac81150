"""Whatever a stranger hands over is read or refused: nothing crashes, grows, runs or escapes.

Seconds here; `make check-faults` gives each reader more than a minute.
"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import data_samples
import h5py
import hostile
import msgpack
import numpy as np
import pandas as pd
import policy_samples
import pytest
import torch
import vla_samples
from hypothesis import strategies as st

from diffrl import evidence
from diffrl import policy as policies
from diffrl.base import checkpoint
from diffrl.base.artifacts import Stage, read_json, write_csv, write_json
from diffrl.base.errors import UserError
from diffrl.data.hdf5 import read_attributes, validate_file, write_episodes
from diffrl.data.model_xml import body_poses
from diffrl.evaluation import lerobot
from diffrl.evaluation.openpi import UNREADABLE, OpenPI, pack
from diffrl.quality import read_trajectories
from diffrl.vla import model as vla

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def place(tmp_path):
    """The folder that a reader may write in; what lies beside it is not its own."""
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder.resolve()


def assert_safe(read, place, data=b""):
    outcome = hostile.read_in_child(read, place)
    assert outcome in ("read", "refused"), f"{outcome}\ninput: {bytes(data)[:200]!r}"


def fuzz_file(path: Path, read, strategy=None):
    """Read what `path` holds, then many changes of it."""
    valid = path.read_bytes()
    folder = path.parent.resolve()
    read()  # late imports are over
    assert hostile.read_in_child(read, folder) == "read"

    def check(data):
        path.write_bytes(data)
        assert_safe(read, folder, data)

    hostile.fuzz(hostile.mutated(valid) if strategy is None else strategy, check)


# -- data sets -------------------------------------------------------------------------------------
def ours(path):
    episodes = [data_samples.sample_episode(seed, images=4) for seed in range(2)]
    write_episodes(path, episodes, data_samples.ATTRS)


def official(path):
    episodes = [data_samples.sample_episode(seed, images=4) for seed in range(2)]
    data_samples.write_official(path, episodes)


def collected(path):
    data_samples.write_collected(path, [data_samples.sample_episode(seed) for seed in range(2)])


def robomimic(path):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}
        )
        for number in range(2):
            demo, steps = data.create_group(f"demo_{number}"), 30
            demo["actions"] = np.zeros((steps, 7))
            demo["obs/robot0_eef_pos"] = np.linspace(0, 0.1 + number, steps)[:, None] * np.ones(3)
            demo["rewards"] = demo["dones"] = np.arange(steps) == steps - 1
            demo.attrs["num_samples"] = steps


@pytest.mark.parametrize("write", [ours, official, collected])
def test_a_changed_data_set_is_validated_without_harm(place, write):
    path = place / "some_demo.hdf5"
    write(path)
    fuzz_file(path, lambda: validate_file(path))


@pytest.mark.parametrize("write", [ours, official, collected, robomimic])
def test_a_changed_data_set_is_measured_without_harm(place, write):
    path = place / "some_demo.hdf5"
    write(path)
    fuzz_file(path, lambda: read_trajectories(path, tell=lambda line: None))


def test_the_attributes_of_a_changed_data_set_are_read_without_harm(place):
    path = place / "some_demo.hdf5"
    official(path)
    fuzz_file(path, lambda: read_attributes(path))


def test_a_changed_model_of_a_data_set_is_read_without_harm(place):
    path, text = place / "model.xml", data_samples.MODEL_XML.encode()
    path.write_bytes(text)
    read = lambda: body_poses(path.read_bytes().decode("utf-8", "replace"))  # noqa: E731
    tags = [b"<body>", b"</body>", b"<!DOCTYPE a>", b'<body pos="1e999 0 0"/>', b"&a;", b"<!--"]
    inserted = st.tuples(st.integers(0, len(text)), st.sampled_from(tags), st.integers(1, 50)).map(
        lambda at: text[: at[0]] + at[1] * at[2] + text[at[0] :]
    )
    fuzz_file(path, read, hostile.mutated(text) | inserted)


LAUGHS = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))


@pytest.mark.parametrize(
    "xml",
    [
        "<mujoco>" + "<body>" * 200_000,
        "<mujoco>" + "<body>" * 200_000 + "</body>" * 200_000 + "</mujoco>",
        f'<!DOCTYPE a [<!ENTITY a0 "ha">{LAUGHS}]><mujoco>&a9;</mujoco>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><mujoco>&b;</mujoco>',
    ],
    ids=["open", "deep", "laughs", "outside"],
)
def test_xml_that_nests_unfolds_or_names_other_files_does_no_harm(place, xml):
    assert hostile.read_in_child(lambda: body_poses(xml), place) == (
        "read" if xml.endswith("</body></mujoco>") else "refused"
    )


# -- models ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ["diffusion", "gaussian"])
def test_a_changed_description_of_a_policy_is_read_without_harm(place, algorithm):
    policies.save(place, policy_samples.make(algorithm))
    path = place / "policy.json"
    strategy = hostile.changed_document(json.loads(path.read_text()))
    fuzz_file(path, lambda: policies.load(place), strategy | hostile.mutated(path.read_bytes()))


def test_changed_weights_of_a_policy_are_read_without_harm(place):
    policies.save(place, policy_samples.make())
    path = place / "policy.safetensors"
    head = path.read_bytes()
    fuzz_file(path, lambda: policies.load(place), hostile.mutated(head[:4000] + head[4000:]))


def test_a_changed_description_of_a_vla_is_read_without_harm(place):
    vla.save(vla_samples.make_model(), place, {})
    path = place / "model.json"
    strategy = hostile.changed_document(json.loads(path.read_text()))
    fuzz_file(path, lambda: vla.load(place), strategy | hostile.mutated(path.read_bytes()))


def test_changed_weights_of_a_vla_are_read_without_harm(place):
    vla.save(vla_samples.make_model(), place, {})
    fuzz_file(place / "model.safetensors", lambda: vla.load(place))


def test_a_changed_checkpoint_is_read_without_harm(place):
    path = place / "rl.safetensors"
    tree = {"a": [1, 2.5, "text", None], "b": {3: torch.ones(4)}, "c": (np.zeros(3), {"d": True})}
    checkpoint.save(path, tree, "0123456789ab")
    fuzz_file(path, lambda: checkpoint.load(path, "0123456789ab"))


def checkpoint_of(tree: str) -> bytes:
    """A checkpoint with one array whose tree is this text."""
    from safetensors.torch import save

    return save({"0": torch.ones(2)}, metadata={"tree": tree, "config": "0123456789ab"})


def test_a_checkpoint_with_a_changed_tree_is_read_without_harm(place):
    path = place / "rl.safetensors"
    checkpoint.save(path, {"a": [torch.ones(2), 1], "b": ({"c": 2},)}, "0123456789ab")
    tree = checkpoint.check(path, "0123456789ab")
    strategy = hostile.changed_document(tree).map(lambda text: checkpoint_of(text.decode()))
    fuzz_file(path, lambda: checkpoint.load(path, "0123456789ab"), strategy)


# -- records and settings --------------------------------------------------------------------------
def test_a_changed_json_file_is_read_without_harm(place):
    path = place / "config.json"
    write_json(path, {"a": [1, {"b": None}], "c": 1e5, "d": "text"})
    fuzz_file(path, lambda: read_json(path))


def test_a_changed_marker_is_read_without_harm(place):
    stage = Stage(place, "step", {"a": 1})
    stage.finish({"rows": [1]}, outputs=[place / "step.done.json"])
    strategy = hostile.changed_document(json.loads(stage.marker.read_text()))
    fuzz_file(stage.marker, lambda: Stage(place, "step", {"a": 1}).done, strategy)


def test_changed_metadata_of_a_lerobot_checkpoint_is_read_without_harm(place):
    path = place / "config.json"
    picture = {"type": "VISUAL", "shape": [3, 128, 128]}
    config = {"input_features": {"image": picture, "state": {"type": "STATE", "shape": [8]}}}
    write_json(path, config)
    python = str(place / "python")
    fuzz_file(
        path,
        lambda: lerobot.LeRobot(python, str(place)),
        hostile.changed_document(config) | hostile.mutated(path.read_bytes()),
    )


@pytest.fixture
def packed(place):
    """Evidence of a small run."""
    runs = place / "runs"
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    write_csv(runs / "experts.csv", table)
    write_csv(runs / "experts" / "one" / "trials.csv", table)
    Stage(runs / "experts" / "one", "expert", {"c": 3}).finish({"minutes": 1.0}, seed=0)
    policies.save(runs / "experts" / "suite-0-diffusion" / "seed0", policy_samples.make())
    evidence.pack(runs, place / "results")
    return place / "results"


NAMES = ("documents.csv", "experts_trials.csv", "configs.json")


def rezipped(path, name, data):
    """The bytes of a zip in which one member's are `data`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, data if member == name else old.read(member))
    return stream.getvalue()


@pytest.mark.parametrize("name", [*NAMES, "layouts.json", "environments.json"])
def test_changed_evidence_is_unpacked_without_harm(packed, place, name):
    path, again = packed / "records.zip", place / "again"
    whole = path.read_bytes()
    kept = place / "kept.zip"
    kept.write_bytes(whole)
    with zipfile.ZipFile(kept) as bundle:
        text = bundle.read(name)

    def zipped(data):
        return rezipped(kept, name, data)

    def read():
        shutil.rmtree(again, ignore_errors=True)
        evidence.unpack(packed, again)

    strategy = hostile.mutated(text).map(zipped)
    if name.endswith(".json"):
        strategy = strategy | hostile.changed_document(json.loads(text)).map(zipped)
    read()
    assert hostile.read_in_child(read, place) == "read"

    def check(data):
        path.write_bytes(data)
        assert_safe(read, place, data)

    hostile.fuzz(strategy | hostile.mutated(whole), check)


# -- a policy server -------------------------------------------------------------------------------
def use(answer: bytes):
    """What the client does with an answer; a lie is a trial's error, which is no crash."""
    client = OpenPI(model="some")
    try:
        client._actions(answer)
    except UNREADABLE as error:
        raise UserError(str(error)) from error


def test_a_changed_answer_of_a_policy_server_is_used_without_harm(place):
    valid = pack({"actions": np.zeros((5, 7)), "timing": {"ms": np.float32(1)}, "text": "x"})
    use(valid)

    def check(data):
        assert_safe(lambda: use(data), place, data)

    hostile.fuzz(hostile.mutated(valid), check)


def array(dtype, data, shape):
    return {b"__ndarray__": True, b"dtype": dtype, b"data": data, b"shape": shape}


def scalar(dtype, data):
    return {b"__npgeneric__": True, b"dtype": dtype, b"data": data}


LIES = {
    "void of a gigabyte": {"a": scalar("V4", 2**31)},
    "wide void": scalar("V2147483647", b""),
    "text of a gigabyte": scalar("S2147483647", b"x"),
    "array of objects": {"actions": array("O", bytes(56), [7])},
    "object": scalar("O", [1]),
    "empty, but large": {"actions": array("f8", b"", [0, 2**62])},
    "wide rows": {"actions": array("S1000000000", b"", [0, 7])},
    "too large a number": scalar("i8", 2**63),
    "fields": {"actions": array("f8,f8", bytes(112), [1, 7])},
    "no dtype": {"actions": array("f8)(", bytes(56), [1, 7])},
    "dtype of a dict": {"actions": array({"names": ["a"], "formats": ["V999999999"]}, b"", [0])},
    "shape of text": {"actions": array("f8", bytes(56), "17")},
    "negative": {"actions": array("f8", bytes(280), [-1, 7])},
    "list of text": {"actions": [["1e999999999"] * 7] * 5},
    "lists of maps": {"actions": [[{}] * 7] * 5},
    "ragged": {"actions": [[1.0] * 7, [1.0]]},
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_of_a_policy_server_is_refused(place, name):
    message = msgpack.packb(LIES[name])
    outcome = hostile.read_in_child(lambda: use(message), place)
    assert outcome == "refused"


@pytest.mark.parametrize(
    "opening", [b"\x81\xa1a", b"\x91", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_a_deep_or_endless_answer_is_refused(place, opening):
    assert hostile.read_in_child(lambda: use(opening * 200_000), place) == "refused"


def test_the_largest_answer_takes_little_memory(place):
    from diffrl.evaluation.openpi import LARGEST

    count = LARGEST - 5
    for filling in (b"\x80", b"\x90", b"\xa0", b"\xc0"):
        answer = b"\xdd" + count.to_bytes(4, "big") + filling * count
        assert hostile.read_in_child(lambda a=answer: use(a), place) == "refused"


# -- bombs -----------------------------------------------------------------------------------------
DEEP = b"[" * 200_000


@pytest.mark.parametrize("name", ["policy.json", "model.json", "config.json", "step.done.json"])
def test_deeply_nested_json_is_refused(place, name):
    (place / name).write_bytes(DEEP)
    reads = {
        "policy.json": lambda: policies.load(place),
        "model.json": lambda: vla.load(place),
        "config.json": lambda: lerobot.LeRobot("python", str(place)),
        "step.done.json": lambda: Stage(place, "step", {}).done,
    }
    outcome = hostile.read_in_child(reads[name], place)
    assert outcome == ("read" if name.startswith("step") else "refused")


def test_json_of_a_gigabyte_is_refused_unread(place):
    path = place / "policy.json"
    with path.open("wb") as stream:
        stream.truncate(2**30)
    assert hostile.read_in_child(lambda: policies.load(place), place) == "refused"


SIZES = {"width": 2**20, "horizon": 2**20, "training_steps": 2**40, "sampling_steps": 2**20}
LAYOUT_SIZES = {"objects": 2**30, "goals": 2**30, "joints": 2**30, "tail": 2**30}
LAYOUT_SIZES |= {"image_size": 2**20}


@pytest.mark.parametrize("field", [*SIZES, *LAYOUT_SIZES])
def test_a_policy_that_claims_to_be_huge_is_refused_before_it_is_built(place, field):
    policies.save(place, policy_samples.make())
    path = place / "policy.json"
    description = json.loads(path.read_text())
    part, value = ("config", SIZES) if field in SIZES else ("layout", LAYOUT_SIZES)
    description[part][field] = value[field]
    if field == "sampling_steps":
        description["config"]["training_steps"] = value[field]
    path.write_text(json.dumps(description))
    assert hostile.read_in_child(lambda: policies.load(place), place) == "refused"


VLA_SIZES = {"width": 2**16, "horizon": 2**30, "queries": 2**30, "image_size": 2**20}
VLA_SIZES |= {"encoder_layers": 10**6, "decoder_layers": 10**6}


@pytest.mark.parametrize("field", [*VLA_SIZES, "length"])
def test_a_vla_that_claims_to_be_huge_is_refused_before_it_is_built(place, field):
    vla.save(vla_samples.make_model(), place, {})
    path = place / "model.json"
    description = json.loads(path.read_text())
    part = description if field == "length" else description["config"]
    part[field] = VLA_SIZES.get(field, 2**30)
    path.write_text(json.dumps(description))
    assert hostile.read_in_child(lambda: vla.load(place), place) == "refused"


def test_evidence_that_unfolds_to_a_gigabyte_is_refused(packed, place):
    whole = place / "whole.zip"
    shutil.copy(packed / "records.zip", whole)
    for name in NAMES:
        bomb = rezipped(whole, name, bytes(2**30))
        assert len(bomb) < 2**21
        (packed / "records.zip").write_bytes(bomb)
        read = lambda: evidence.unpack(packed, place / "again")  # noqa: E731
        assert hostile.read_in_child(read, place) == "refused"


# -- what make check-faults recorded ---------------------------------------------------------------
def test_no_input_of_the_recorded_ten_minutes_harmed_and_the_page_says_how_many_there_were():
    root = Path(__file__).resolve().parents[1]
    record = pd.read_csv(root / "results" / "fuzz.csv")
    assert (record["read"] + record["refused"] == record["inputs"]).all()
    assert (record["harmed"] == 0).all()
    assert record["most_memory_mib"].max() <= hostile.MEMORY >> 20
    page = (root / "docs" / "run-on-a-cluster.md").read_text(encoding="utf-8")
    tried = f"Of {record['inputs'].sum()} inputs to {len(record)} readers (`results/fuzz.csv`), 0 "
    assert tried in page
    assert f"The most that any took was {record['most_memory_mib'].max()} MiB." in page
