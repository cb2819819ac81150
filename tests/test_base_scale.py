"""Stages map over tasks in processes: in order, loudly, and leaving nobody behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from diffrl.base import scale
from diffrl.base.errors import UserError
from diffrl.base.progress import advance, progress, report
from diffrl.base.scale import RETRIES, StageError, map_tasks, shares


def later_first(item):
    time.sleep(0.2 if item == 0 else 0.0)
    return item * 10, os.getpid()


def fail_on_two(item):
    if item == 2:
        raise ZeroDivisionError("cause 2")
    return item


def complain(item):
    raise UserError(f"no such thing as {item}")


def die_at_first(item):
    """Die the first few times that an item is tried; each try leaves a file."""
    folder, number, deaths = item
    tries = len(list(folder.glob(f"{number}-*")))
    (folder / f"{number}-{tries}").touch()
    if tries < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


def fail_on_even(item):
    folder, number = item
    if number % 2 == 0:
        raise ZeroDivisionError(f"cause {number}")
    (folder / str(number)).touch()


def test_results_come_in_the_items_order_whoever_finishes_first():
    results = map_tasks(later_first, [0, 1, 2, 3], workers=2)
    assert [value for value, _ in results] == [0, 10, 20, 30]
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_no_processes_and_parts_of_one_are_refused(workers):
    for ask in (lambda: map_tasks(later_first, [1], workers=workers), lambda: shares(1, workers)):
        with pytest.raises(UserError, match=f"workers is {workers}"):
            ask()


def test_one_worker_is_this_process():
    assert map_tasks(later_first, [1, 2], workers=1) == [(10, os.getpid()), (20, os.getpid())]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_task_and_shows_the_workers_traceback(workers):
    with pytest.raises(StageError) as caught:
        map_tasks(fail_on_two, [1, 2], names=["task one", "task two"], workers=workers)
    assert "task two" in str(caught.value)
    assert "cause 2" in str(caught.value)
    assert "in fail_on_two" in str(caught.value)


def test_a_users_error_stays_a_users_error():
    with pytest.raises(UserError, match="libero_object/0: no such thing"):
        map_tasks(complain, ["libero_object/0", "libero_object/0"], workers=2)


def test_a_worker_that_keeps_dying_is_told_with_its_task_and_the_others_finish(tmp_path, capfd):
    items = [(tmp_path, number, 9 if number == 1 else 0) for number in range(4)]
    with pytest.raises(StageError) as caught:
        map_tasks(die_at_first, items, names=["zero", "one", "two", "three"], workers=2)
    assert "one: its worker process died without a word, 3 times in a row" in str(caught.value)
    assert "1 of 4 failed; the others are finished" in str(caught.value)
    assert not any(name in str(caught.value) for name in ("zero", "two", "three"))
    assert len(list(tmp_path.glob("1-*"))) == 1 + RETRIES
    assert capfd.readouterr().err.count("it is tried again") == RETRIES


def test_a_worker_that_died_is_replaced_and_its_item_tried_again(tmp_path):
    items = [(tmp_path, number, RETRIES if number == 1 else 0) for number in range(4)]
    assert map_tasks(die_at_first, items, workers=2) == [0, 10, 20, 30]
    assert [len(list(tmp_path.glob(f"{n}-*"))) for n in range(4)] == [1, 1 + RETRIES, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_fails_does_not_stop_the_others(tmp_path, workers):
    with pytest.raises(StageError, match="2 of 5 failed"):
        map_tasks(fail_on_even, [(tmp_path, n) for n in (2, 1, 4, 3, 5)], workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "5"]


def test_a_long_list_of_failures_is_cut():
    with pytest.raises(UserError, match=r"and 4 more\. 12 of 12 failed"):
        map_tasks(complain, list(range(12)), workers=1)


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (1, None, (1, 8)),  # one item has all cores
        (2, None, (2, 8)),  # both begin with all: one's are the other's when it has ended
        (4, None, (4, 4)),
        (8, None, (8, 2)),
        (9, None, (9, 1)),  # one round of nine, not two of which the second has one
        (16, None, (8, 1)),
        (16, 4, (4, 2)),
        (4, 4, (4, 4)),
        (1, 4, (1, 8)),
    ],
)
def test_no_core_waits_while_few_items_are_left(count, workers, expected, monkeypatch):
    monkeypatch.setattr(scale, "cores", lambda: 8)
    monkeypatch.delenv(scale.RAY, raising=False)
    assert scale.shares(count, workers) == expected


def test_another_executor_may_do_the_work():
    with ThreadPoolExecutor(2) as pool:
        assert map_tasks(abs, [-1, -2], executor=pool) == [1, 2]


def test_no_items_give_no_results():
    assert map_tasks(abs, []) == []


def test_names_must_match_the_items():
    with pytest.raises(ValueError, match="1 names for 2 items"):
        map_tasks(abs, [1, 2], names=["one"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_parent_leaves_no_worker_behind(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\nfrom diffrl.base.scale import map_tasks\n"
        # one write: print's word and newline are two where Python does not buffer, and two workers'
        # may come mixed
        "def work(item):\n    os.write(1, b'up\\n')\n    time.sleep(120)\n"
        "if __name__ == '__main__':\n    map_tasks(work, [1, 2], workers=2)\n"
    )
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # a shell's background job ignores Ctrl-C, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as parent:
        assert parent.stdout.readline() == b"up\n"
        assert parent.stdout.readline() == b"up\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(number)
        gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) >= 2
    assert not alive


def _full(_):
    raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_machine_refuses_to_a_worker_is_one_paragraph(workers):
    with pytest.raises(UserError, match=r"first: The file or folder /somewhere/file cannot be"):
        map_tasks(_full, [0, 1], names=["first", "first"], workers=workers)


def report_half(item):
    """Report half of item 1 and wait until a file is there; item 0 ends at once."""
    folder, number = item
    if number:
        report(0.5)
        while not (folder / "go").exists():
            time.sleep(0.05)
    return number


def test_the_bar_counts_what_workers_report_of_unfinished_items(tmp_path, monkeypatch):
    seen = []

    def spy(bar, items):
        seen.append(items)
        if items == 1.5:
            (tmp_path / "go").touch()

    monkeypatch.setattr(scale, "advance", spy)
    monkeypatch.setattr(scale, "POLL", 0.1)
    assert map_tasks(report_half, [(tmp_path, 0), (tmp_path, 1)], workers=2) == [0, 1]
    assert 1.5 in seen
    assert seen[-1] == 2


def test_a_bar_shows_shares_after_a_leap_of_items_that_were_found(capsys):
    with progress(20, "experts") as bar:
        bar.mininterval = 0
        for items in (9, 9.4, 9.5):
            advance(bar, items)
        shown = capsys.readouterr().err
    assert [text in shown for text in ("9/20", "9.4/20", "9.5/20")] == [True] * 3


def test_a_bar_shows_shares_and_the_remaining_time_and_never_goes_back(capsys):
    with progress(4, "experts") as bar:
        bar.start_t -= 30  # as if half a minute had gone
        advance(bar, 1.5)
        advance(bar, 1.2)
        assert bar.n == 1.5
        assert "1.5/4 [00:30<00:50]" in str(bar)


def test_what_a_worker_imports_leaves_scipy_s_statistics_out():
    """Every process of every stage would load them, for a quantile or two."""
    stages = ("rl", "generation", "vla", "evaluation")
    code = "import sys; import " + ", ".join(f"diffrl.{stage}.stage" for stage in stages)
    code += "; print('scipy.stats' in sys.modules, 'scipy.special' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
