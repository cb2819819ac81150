"""Signs of life: what a run writes of itself, and what a reader makes of it."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from diffrl.base import heartbeat as beats
from diffrl.base.heartbeat import heartbeat, read


def test_a_run_says_where_it_is_and_leaves_nothing_at_its_end(tmp_path):
    with heartbeat(tmp_path, "expert") as sign:
        sign.tell(phase="RL", done=3, total=12, success=0.5, rate=600.0)
        sign.write()
        seen = read(tmp_path, "expert")
        assert (seen["state"], seen["host"], seen["pid"]) == (
            "running",
            socket.gethostname(),
            os.getpid(),
        )
        assert (seen["phase"], seen["done"], seen["total"], seen["success"]) == ("RL", 3, 12, 0.5)
    assert read(tmp_path, "expert") is None
    assert list(tmp_path.iterdir()) == []


def test_a_map_s_bar_gets_to_know_how_far_a_run_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(beats, "report", seen.append)
    with heartbeat(tmp_path, "expert") as sign:
        sign.tell(phase="clone", done=0, total=4000, span=(0.0, 0.2))
        sign.tell(phase="RL", done=3, total=12, span=(0.2, 0.9))
        sign.tell(done=12)
        sign.tell(phase="evaluating", done=None, total=None)
    assert seen == pytest.approx([0.0, 0.375, 0.9])


def test_a_run_is_alive_although_it_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(beats, "EVERY", 0.02)
    with heartbeat(tmp_path, "expert"):
        first = read(tmp_path, "expert")["updated"]
        deadline = time.monotonic() + 10
        while read(tmp_path, "expert")["updated"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_exception_leaves_its_message_until_the_next_attempt(tmp_path):
    with pytest.raises(ValueError, match="no loss"), heartbeat(tmp_path, "vla"):
        raise ValueError("no loss")
    seen = read(tmp_path, "vla")
    assert (seen["state"], seen["error"], seen["message"]) == ("failed", "ValueError", "no loss")
    with heartbeat(tmp_path, "vla"):
        assert read(tmp_path, "vla")["state"] == "running"
    assert read(tmp_path, "vla") is None


def test_an_interruption_by_the_user_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), heartbeat(tmp_path, "vla"):
        raise KeyboardInterrupt
    assert read(tmp_path, "vla") is None


def test_a_killed_run_is_lost(tmp_path):
    code = "import os,sys,signal\nfrom diffrl.base.heartbeat import heartbeat\n"
    code += "with heartbeat(sys.argv[1], 'expert'): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert read(tmp_path, "expert")["state"] == "lost"


def test_a_silent_run_of_another_host_is_lost_and_a_fast_clock_is_not(tmp_path):
    path = tmp_path / "expert.running.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    now = time.time()
    for age, state in ((0, "running"), (-86400, "running"), (beats.SILENT + 60, "lost")):
        os.utime(path, (now - age, now - age))
        assert read(tmp_path, "expert")["state"] == state


def test_a_folder_that_cannot_be_written_or_vanishes_breaks_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    with heartbeat(tmp_path / "file" / "folder", "expert") as sign:
        sign.write()
    with heartbeat(tmp_path / "gone", "expert") as sign:
        sign.running.unlink()
        sign.running.parent.rmdir()
        sign.write()
    assert not (tmp_path / "gone").exists()


def test_a_sign_that_is_no_json_is_none(tmp_path):
    (tmp_path / "expert.running.json").write_text("{")
    assert read(tmp_path, "expert") is None
