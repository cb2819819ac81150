"""Files are whole or absent; a stage is done only while what made it is unchanged."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import mujoco
import numpy as np
import pandas as pd
import pytest

from diffrl.base import artifacts
from diffrl.base.errors import UserError, refused_by_the_machine


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "record.json"
    artifacts.write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), artifacts.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("power cut")
    assert artifacts.read_json(target) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "record.json"
    artifacts.write_json(target, {"whole": True})
    code = (
        "import sys, time\nfrom diffrl.base.artifacts import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, target], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
    assert artifacts.read_json(target) == {"whole": True}


def test_the_temporary_file_keeps_the_suffix_that_writers_look_at(tmp_path):
    with artifacts.atomic_path(tmp_path / "weights.safetensors") as temporary:
        assert temporary.suffix == ".safetensors"


def test_json_holds_numpy_and_dataclasses_in_a_stable_order(tmp_path):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    artifacts.write_json(first, {"b": np.arange(3), "a": Config(), "c": np.float64(0.5)})
    artifacts.write_json(second, {"c": 0.5, "a": Config(), "b": (0, 1, 2)})
    assert first.read_bytes() == second.read_bytes()
    assert artifacts.read_json(first)["a"] == {"rate": 0.1, "sizes": [1, 2]}


def test_what_has_no_json_form_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match="object"):
        artifacts.write_json(tmp_path / "x.json", {"a": object()})
    assert not list(tmp_path.iterdir())


def test_a_csv_round_trips_to_ten_digits(tmp_path):
    table = pd.DataFrame({"task": ["a", "b"], "value": [1 / 3, 1e-9], "n": [1, 2]})
    artifacts.write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table, rtol=1e-9)


@pytest.mark.parametrize("content", [None, "{not json"])
def test_a_missing_or_broken_json_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"record\.json"):
        artifacts.read_json(path)


def test_the_config_hash_depends_on_values_and_not_on_the_order_of_keys():
    assert artifacts.config_hash({"a": 1, "b": 2}) == artifacts.config_hash({"b": 2, "a": 1})
    assert artifacts.config_hash(Config()) != artifacts.config_hash(Config(rate=0.2))
    assert len(artifacts.config_hash(Config())) == 12


def test_a_stage_is_done_until_config_input_or_output_changes(tmp_path):
    source, product = tmp_path / "in.csv", tmp_path / "out" / "data.bin"
    source.write_text("1")
    artifacts.write_json(product, {})

    def stage(config=Config()):
        return artifacts.Stage(tmp_path / "out", "clone", config, inputs=[source])

    assert not stage().done
    stage().finish({"success": 0.5}, outputs=[product])
    assert stage().done
    assert stage().records == {"success": 0.5}
    assert not stage(Config(rate=0.2)).done
    source.write_text("2")
    assert not stage().done
    source.write_text("1")
    assert stage().done
    product.unlink()
    assert not stage().done


@pytest.mark.parametrize("force", [False, True])
def test_an_input_that_changes_during_the_work_leaves_the_stage_undone(tmp_path, force):
    source = tmp_path / "in.csv"
    source.write_text("what the work read")
    stage = artifacts.Stage(tmp_path, "clone", 1, [source])
    assert stage.due(force)
    source.write_text("what came while it ran")
    stage.finish()
    assert not artifacts.Stage(tmp_path, "clone", 1, [source]).done
    source.write_text("what the work read")
    assert artifacts.Stage(tmp_path, "clone", 1, [source]).done


def test_a_marker_that_is_cut_short_means_not_done(tmp_path):
    stage = artifacts.Stage(tmp_path, "clone", 1)
    stage.finish()
    stage.marker.write_text(stage.marker.read_text()[:20])
    assert not stage.done


def test_a_marker_carries_config_seed_versions_and_commit(tmp_path):
    stage = artifacts.Stage(tmp_path, "clone", Config())
    stage.finish(seed=3)
    record = json.loads(stage.marker.read_text())
    assert record["config"] == {"rate": 0.1, "sizes": [1, 2]}
    assert record["seed"] == 3
    assert record["versions"]["mujoco"] == "3.3.2"
    assert {"git_commit", "platform", "diffrl", "config_hash"} <= record.keys()


def test_a_package_inside_another_repository_does_not_take_its_commit(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "diffrl" / "base" / "artifacts.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(artifacts, "__file__", str(installed))
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "foreign"], check=True)
    assert artifacts.git_commit.__wrapped__() is None
    subprocess.run([*git, "add", installed], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "its own"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert artifacts.git_commit.__wrapped__() == head.stdout.strip()


def test_a_missing_input_is_refused_with_its_name(tmp_path):
    artifacts.Stage(tmp_path, "clone", 1).finish()
    with pytest.raises(UserError, match=r"experts\.csv"):
        assert artifacts.Stage(tmp_path, "clone", 1, inputs=[tmp_path / "experts.csv"]).done


def test_a_file_is_hashed_once_unless_it_changed_or_did_so_just_now(tmp_path, monkeypatch):
    hashed = []
    plain = artifacts._sha256
    monkeypatch.setattr(artifacts, "_sha256", lambda path: hashed.append(path) or plain(path))
    path = tmp_path / "data.hdf5"
    path.write_text("1")
    first = artifacts.file_hash(path)
    path.write_text("2")  # as long as before, and perhaps at the same tick of the clock
    assert artifacts.file_hash(path) != first
    monkeypatch.setattr(artifacts, "SETTLED", 0.0)
    known = artifacts.file_hash(path)
    assert artifacts.file_hash(path) == known
    assert len(hashed) == 3
    path.write_text("a change")
    assert artifacts.file_hash(path) != known


def test_a_folder_as_input_counts_with_the_names_and_bytes_in_it(tmp_path):
    (tmp_path / "a.txt").write_text("1")
    before = artifacts.file_hash(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert artifacts.file_hash(tmp_path) != before


@pytest.mark.parametrize("url", ["s3://lab/runs", "gs://lab/runs", "memory://x", "file:///tmp/x"])
@pytest.mark.parametrize("variable", ["DIFFRL_HOME", "DIFFRL_CACHE"])
def test_a_url_is_no_folder_and_the_error_says_what_to_do(tmp_path, monkeypatch, variable, url):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, url)
    function = artifacts.root if variable == "DIFFRL_HOME" else artifacts.cache_dir
    with pytest.raises(UserError, match=rf"{variable} is the URL {url}.*Mount the store.*copy it"):
        function()
    assert list(tmp_path.iterdir()) == []


def test_results_lie_where_diffrl_home_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    assert artifacts.runs_dir("smoke") == tmp_path / "runs" / "smoke"
    assert artifacts.figures_dir("smoke").is_dir()


def test_a_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="DIFFRL_HOME"):
        artifacts.runs_dir("smoke")


def test_a_setting_added_later_changes_no_hash_until_it_has_another_value():
    @dataclasses.dataclass(frozen=True)
    class Before:
        rate: float = 0.1

    @dataclasses.dataclass(frozen=True)
    class After(Before):
        physics: str = artifacts.added("exact")
        noise: str = artifacts.added("white", default="same")

    plain_, hash_ = artifacts.plain, artifacts.config_hash
    assert hash_({"rl": After(noise="white")}) == hash_({"rl": Before()})
    assert hash_([After()]) != hash_([Before()])
    assert hash_([After(noise="white", physics="training")]) != hash_([Before()])
    assert plain_(After()) == {"rate": 0.1, "physics": "exact", "noise": "same"}


def test_an_empty_variable_of_a_folder_counts_as_unset(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIFFRL_CACHE", "")
    assert artifacts.cache_dir() == tmp_path / ".cache" / "diffrl"


@pytest.mark.parametrize("variable", ["DIFFRL_HOME", "DIFFRL_CACHE"])
def test_a_home_that_does_not_exist_is_told(monkeypatch, variable):
    monkeypatch.setenv(variable, "~nobody-of-this-name/folder")
    with pytest.raises(UserError, match="set HOME, or DIFFRL_HOME"):
        artifacts.root() if variable == "DIFFRL_HOME" else artifacts.cache_dir()


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(artifacts.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(artifacts.os, "open", refuse)
    with pytest.raises(UserError, match=rf"in the folder {tmp_path} \(Permission denied\)"):
        artifacts.write_json(tmp_path / "record.json", {})
    with pytest.raises(UserError, match=rf"in the folder {tmp_path} \(Permission denied\)"):
        artifacts.lock(tmp_path / ".lock", "busy")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        artifacts.write_json(tmp_path / "file" / "record.json", {})


def test_a_lock_keeps_others_out_until_it_is_closed(tmp_path):
    first = artifacts.lock(tmp_path / ".lock", "busy")
    with pytest.raises(UserError, match="busy"):
        artifacts.lock(tmp_path / ".lock", "busy")
    os.close(first)
    os.close(artifacts.lock(tmp_path / ".lock", "busy"))


def test_a_folder_is_one_process_s_alone_for_a_while(tmp_path):
    busy = pytest.raises(UserError, match=r"Another process is at work on .*run: wait for it")
    with artifacts.alone(tmp_path / "run"), busy, artifacts.alone(tmp_path / "run"):
        pytest.fail("there were two")
    with artifacts.alone(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", 28),
        ("Unable to write (file write failed: errno = 30, error message = '…')", 30),
    ],
)
def test_what_a_library_says_of_the_disk_is_the_machine_s_error_of_that_file(tmp_path, said, code):
    named = pytest.raises(OSError, match=r"some\.bin")
    with named as caught, artifacts.atomic_path(tmp_path / "some.bin"):
        raise RuntimeError(said)
    assert caught.value.errno == code
    assert refused_by_the_machine(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        mujoco.FatalError("Could not allocate memory"),
    ],
)
def test_a_full_memory_is_told_whoever_says_so(error):
    assert "memory is full" in refused_by_the_machine(error)
    assert refused_by_the_machine(RuntimeError("something else")) is None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_is_told_and_is_no_other_process(
    tmp_path, monkeypatch, capsys, code
):
    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    os.close(artifacts.lock(tmp_path / ".lock", "busy"))
    assert f"offers no locks ({os.strerror(code)})" in capsys.readouterr().err
