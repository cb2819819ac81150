"""No damaged, foreign or hostile file is accepted, and nothing in it is executed."""

import io
import os
import pickle
import zipfile

import data_samples as samples
import h5py
import numpy as np
import pytest

from diffrl.base.errors import UserError
from diffrl.data import integrity
from diffrl.data.hdf5 import read_episodes, validate_file, write_episodes

DEMO = "data/demo_1"
ARRAYS = "actions dones fixtures rewards robot_states states obs/ee_pos obs/ee_ori obs/object"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound data set of ours, as bytes."""
    path = tmp_path_factory.mktemp("sound") / "sound.hdf5"
    episodes = [samples.sample_episode(seed, images=4) for seed in range(3)]
    write_episodes(path, episodes, samples.ATTRS)
    assert validate_file(path) == []
    return path.read_bytes()


def assert_refused(path, place=""):
    """The file is refused by name, with a place and a remedy, and nobody crashes."""
    findings = validate_file(path)
    assert findings, f"{path.name} was accepted"
    assert any(place in finding.place for finding in findings), [str(f) for f in findings]
    with pytest.raises(UserError) as refusal:
        read_episodes(path)
    assert path.name in str(refusal.value)
    assert "Remedy" in str(refusal.value)


def test_a_file_cut_anywhere_is_refused(sound, tmp_path):
    lengths = np.random.default_rng(0).integers(0, len(sound), 60).tolist()
    for length in [0, 1, 511, 512, 520, len(sound) - 1, *lengths]:
        path = tmp_path / f"cut-{length}.hdf5"
        path.write_bytes(sound[:length])
        assert_refused(path)


def test_a_flipped_bit_anywhere_is_refused(sound, tmp_path):
    rng = np.random.default_rng(1)
    places = [*range(0, 530, 60), *rng.integers(0, len(sound), 90).tolist()]
    for place in places:
        changed = bytearray(sound)
        changed[place] ^= 1 << rng.integers(8)
        path = tmp_path / f"flipped-{place}.hdf5"
        path.write_bytes(changed)
        assert_refused(path)


def test_bytes_that_were_added_or_overwritten_are_refused(sound, tmp_path):
    for index, changed in enumerate([sound + b"\0", sound[:2000] + bytes(3000) + sound[5000:]]):
        path = tmp_path / f"overwritten-{index}.hdf5"
        path.write_bytes(changed)
        assert_refused(path)


def remove(key):
    def mutate(file):
        del file[key]

    return mutate


def put(key, value):
    def mutate(file):
        if key in file:
            del file[key]
        file[key] = value

    return mutate


def change(key, function):
    """Replace an array by a function of it."""

    def mutate(file):
        values = function(file[key][()])
        del file[key]
        file[key] = values

    return mutate


def at(index, value):
    def function(values):
        values = values.copy()
        values[index] = value
        return values

    return function


def attribute(key, name, value=None):
    def mutate(file):
        if value is None:
            del file[key].attrs[name]
        else:
            file[key].attrs[name] = value

    return mutate


def rename(old, new):
    return lambda file: file.move(old, new)


def linked(key, link):
    def mutate(file):
        if key in file:
            del file[key]
        file[key] = link

    return mutate


def stored_elsewhere(file):
    del file[f"{DEMO}/states"]
    space, size = (12, 30), 12 * 30 * 8
    file[DEMO].create_dataset("states", space, np.float64, external=[("/etc/passwd", 0, size)])


def virtual(file):
    del file[f"{DEMO}/states"]
    source = h5py.VirtualLayout((12, 30), np.float64)
    source[:] = h5py.VirtualSource("/etc/passwd", "x", (12, 30))
    file[DEMO].create_virtual_dataset("states", source)


def bomb(file):
    del file[f"{DEMO}/states"]
    file[DEMO].create_dataset("states", (10**9, 30), np.float64, chunks=(1000, 30), compression=9)


def circle(file):
    file[f"{DEMO}/obs/back"] = file["data"]


def objects(file):
    del file[f"{DEMO}/actions"]
    text = h5py.string_dtype()
    file[DEMO].create_dataset("actions", (12,), text, data=[pickle.dumps(1).hex()] * 12)


def opaque(file):
    del file[f"{DEMO}/actions"]
    file[f"{DEMO}/actions"] = np.void(pickle.dumps([1]))


ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><mujoco>&e;</mujoco>'
HOSTILE = {
    "soft-link": (linked(f"{DEMO}/states", h5py.SoftLink("/data/demo_0/states")), DEMO),
    "external-link": (linked(f"{DEMO}/states", h5py.ExternalLink("/etc/passwd", "/")), DEMO),
    "external-data": (linked("data", h5py.ExternalLink("other.hdf5", "/data")), "data"),
    "external-storage": (stored_elsewhere, f"{DEMO}/states"),
    "virtual": (virtual, f"{DEMO}/states"),
    "bomb": (bomb, f"{DEMO}/states"),
    "circle": (circle, "obs/back"),
    "objects": (objects, f"{DEMO}/actions"),
    "opaque": (opaque, f"{DEMO}/actions"),
    "pickle-attribute": (attribute(DEMO, "model_file", np.void(pickle.dumps([1]))), DEMO),
    "entity": (attribute(DEMO, "model_file", ENTITY), DEMO),
    "dots": (rename(DEMO, "data/.."), "data/.."),
    "hidden": (rename(DEMO, "data/.demo_1"), "data"),
    "shell": (rename(DEMO, "data/demo_1;id"), "data"),
    "nul-path": (attribute("data", "bddl_file_name", "../../../etc/passwd"), "data@bddl"),
}
DAMAGED = {
    "gap": (rename("data/demo_1", "data/demo_7"), "data"),
    "zeros": (rename("data/demo_1", "data/demo_01"), "data"),
    "negative": (rename("data/demo_0", "data/demo_-1"), "data"),
    "other-name": (rename("data/demo_2", "data/trial_2"), "data"),
    "lost-demo": (remove("data/demo_2"), "data@num_demos"),
    "lost-data": (remove("data"), "data"),
    "data-array": (put("data", np.zeros(3)), "data"),
    "demo-array": (put(DEMO, np.zeros(3)), DEMO),
    "obs-array": (put(f"{DEMO}/obs", np.zeros(12)), f"{DEMO}/obs"),
    "extra-top": (put("extra", np.zeros(3)), ""),
    "extra-key": (put(f"{DEMO}/extra", np.zeros(12)), f"{DEMO}/extra"),
    "extra-obs": (put(f"{DEMO}/obs/extra", np.zeros(12)), f"{DEMO}/obs/extra"),
    "beyond": (change(f"{DEMO}/actions", at((3, 1), 1.0001)), f"{DEMO}/actions"),
    "far-beyond": (change(f"{DEMO}/actions", at((0, 6), -40.0)), f"{DEMO}/actions"),
    "reward-2": (change(f"{DEMO}/rewards", at(-1, 2)), f"{DEMO}/rewards"),
    "done-early": (change(f"{DEMO}/dones", at(2, 1)), f"{DEMO}/dones"),
    "states-gap": (change(f"{DEMO}/states", lambda s: at(slice(5, None), s[5:] + 0.05)(s)), DEMO),
    "states-swapped": (change(f"{DEMO}/states", lambda s: s[::-1]), f"{DEMO}/states"),
    "num-demos": (attribute("data", "num_demos", 4), "data@num_demos"),
    "total": (attribute("data", "total", 1), "data@total"),
    "num-samples": (attribute(DEMO, "num_samples", 3), f"{DEMO}/@num_samples"),
    "init-state": (attribute(DEMO, "init_state", np.zeros(30)), f"{DEMO}/@init_state"),
    "env-args": (attribute("data", "env_args", "{"), "data@env_args"),
    "env-args-list": (attribute("data", "env_args", "[]"), "data@env_args"),
    "no-problem": (attribute("data", "problem_info"), "data@problem_info"),
    "no-bddl": (attribute("data", "bddl_file_name"), "data@bddl_file_name"),
    "no-xml": (attribute(DEMO, "model_file", "<mujoco"), DEMO),
    "bad-pose": (
        attribute(DEMO, "model_file", '<mujoco><worldbody><body pos="1"/></worldbody></mujoco>'),
        DEMO,
    ),
}
for name in ARRAYS.split():
    DAMAGED |= {
        f"{name}-missing": (remove(f"{DEMO}/{name}"), DEMO),
        f"{name}-short": (change(f"{DEMO}/{name}", lambda a: a[:-1]), DEMO),
        f"{name}-long": (change(f"{DEMO}/{name}", lambda a: np.concatenate((a, a[:1]))), DEMO),
        f"{name}-float32": (change(f"{DEMO}/{name}", lambda a: a.astype(np.float32)), DEMO),
        f"{name}-text": (change(f"{DEMO}/{name}", lambda a: a.astype("S")), DEMO),
        f"{name}-complex": (change(f"{DEMO}/{name}", lambda a: a.astype(complex)), DEMO),
        f"{name}-flat": (change(f"{DEMO}/{name}", lambda a: a.reshape(1, *a.shape)), DEMO),
    }
    if name not in ("dones", "rewards"):
        DAMAGED |= {
            f"{name}-nan": (change(f"{DEMO}/{name}", at((1, 0), np.nan)), DEMO),
            f"{name}-infinite": (change(f"{DEMO}/{name}", at((0, 1), np.inf)), DEMO),
        }
OURS = {
    "no-seal": (attribute("data", "diffrl_format"), "seal"),
    "no-mask": (remove("mask"), ""),
    "no-filter": (remove("mask/train"), "mask"),
    "numbers-as-mask": (put("mask/train", np.array([1, 2])), "mask/train"),
    "scalar-mask": (put("mask/train", np.array(b"demo_0")), "mask/train"),
    "unknown-in-mask": (put("mask/train", np.array([b"demo_99"])), "mask/train"),
    "no-checksum": (attribute(DEMO, "checksum"), f"{DEMO}/@checksum"),
    "no-metadata": (attribute(DEMO, "episode"), f"{DEMO}/@episode"),
    "bad-metadata": (attribute(DEMO, "episode", "{}"), DEMO),
    "no-final": (remove(f"{DEMO}/final"), DEMO),
    "half-final": (remove(f"{DEMO}/final/obs/ee_pos"), f"{DEMO}/final"),
    "value": (change(f"{DEMO}/states", at((3, 3), 0.123)), f"{DEMO}/@checksum"),
    "pixel": (change(f"{DEMO}/obs/agentview_rgb", at((0, 0, 0, 0), 7)), f"{DEMO}/@checksum"),
    "derived": (change(f"{DEMO}/obs/ee_states", at((0, 0), 0.1)), f"{DEMO}/obs/ee_states"),
}


@pytest.mark.parametrize("mutation", [*HOSTILE, *DAMAGED, *OURS])
def test_a_changed_data_set_is_refused_even_with_a_fresh_seal(sound, tmp_path, mutation):
    mutate, place = (HOSTILE | DAMAGED | OURS)[mutation]
    path = tmp_path / "changed.hdf5"
    path.write_bytes(sound)
    with h5py.File(path, "r+") as file:
        mutate(file)
    integrity.seal(path)
    assert_refused(path, place)


def test_a_filter_of_h5pys_own_text_is_a_list_of_names(tmp_path):
    path = tmp_path / "official_demo.hdf5"
    samples.write_official(path, [samples.sample_episode(s, images=4) for s in range(3)])
    with h5py.File(path, "a") as file:
        file.create_dataset("mask/mine", data=["demo_0", "demo_2"], dtype=h5py.string_dtype())
    assert validate_file(path) == []
    with h5py.File(path, "a") as file:
        file["mask/mine"][0] = "demo_9"
    assert [f.place for f in validate_file(path)] == ["mask/mine"]


# keys that an official file need not have, or has not at all
NOT_OFFICIAL = {name for name in DAMAGED if name.startswith(("fixtures-", "obs/object-"))}
NOT_OFFICIAL |= {"robot_states-missing", "gap"}


@pytest.mark.parametrize("mutation", sorted({*HOSTILE, *DAMAGED} - NOT_OFFICIAL))
def test_a_changed_official_file_is_refused(tmp_path, mutation):
    mutate, place = (HOSTILE | DAMAGED)[mutation]
    path = tmp_path / "official_demo.hdf5"
    samples.write_official(path, [samples.sample_episode(s, images=4) for s in range(3)])
    with h5py.File(path, "r+") as file:
        mutate(file)
    assert_refused(path, place)


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_foreign_files_are_named_and_never_executed(tmp_path):
    marker, archive, array = tmp_path / "executed", io.BytesIO(), io.BytesIO()
    payload = pickle.dumps(Payload(marker))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", payload)
    np.save(array, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    foreign = {
        "pickle": payload,
        "zip archive": archive.getvalue(),
        "numpy": array.getvalue(),
        "no HDF5": b"demo,step\n" * 100,
        "cut off": b"",
    }
    for index, (word, content) in enumerate(foreign.items()):
        path = tmp_path / f"foreign-{index}.hdf5"
        path.write_bytes(content)
        assert_refused(path)
        assert word in validate_file(path)[0].problem
    assert not marker.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "folder.hdf5").mkdir()
    assert_refused(tmp_path / "folder.hdf5")
    assert_refused(tmp_path / "nothing.hdf5")


def test_an_interrupted_data_set_says_how_to_continue(tmp_path):
    (tmp_path / "a.hdf5.parts").mkdir()
    assert "interrupted" in validate_file(tmp_path / "a.hdf5")[0].remedy
