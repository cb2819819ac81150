"""The whole series, preset smoke, as a newcomer runs it: it finishes, shows learning, is recorded.

The second run, killed in every notebook, takes as long again: `make check-kills` asks for it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = ["minutes", "seconds", "seconds_collect", "seconds_update", "sps", "time"]  # may differ
COMMAND = [sys.executable, "-m", "diffrl", "reproduce", "--preset", "smoke"]

pytestmark = pytest.mark.notebooks


def new_home(folder):
    """A folder with the notebooks and no results, and the environment that makes it home."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    environment = {k: v for k, v in os.environ.items() if k != "DIFFRL_FORCE_BEFORE"}
    return folder, {**environment, "DIFFRL_HOME": str(folder), "PYTHONUNBUFFERED": "1"}


def call(environment):
    return subprocess.run(
        COMMAND, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    home, environment = new_home(tmp_path_factory.mktemp("unbroken") / "home")
    result = call(environment)
    assert result.returncode == 0, result.stderr[-4000:]
    return home, environment


@pytest.fixture(scope="module")
def results(series):
    return series[0] / "runs" / "smoke"


def test_five_notebooks_are_executed_without_an_error(results):
    executed = sorted((results / "notebooks").glob("0?_*.ipynb"))
    assert len(executed) == 5
    for path in executed:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in code if "".join(cell["source"]).strip())
        assert path.with_suffix(".html").stat().st_size > 10_000


def test_a_second_call_finds_everything(series):
    result = call(series[1])
    assert result.returncode == 0
    assert result.stdout.count("found") == 5
    assert "running" not in result.stdout


def test_rl_improves_the_clone(results):
    table = pd.read_csv(results / "experts.csv")
    headline = table[(table["algorithm"] == "diffusion") & (table["mode"] == "deterministic")]
    assert set(table["algorithm"]) == {"diffusion", "gaussian"}
    assert (headline["success"] > headline["clone_success"]).all()
    assert (headline["low"] > headline["clone_success"]).all()  # beyond chance
    assert (table["low"] <= table["success"]).all()
    assert (table["success"] <= table["high"]).all()


def test_a_vla_of_rl_data_solves_most_official_start_states(results):
    table = pd.read_csv(results / "evaluation.csv")
    learned = table[table["source"] != "operator"]
    assert (table["trials"] == 20).all()
    assert learned["success"].max() >= 0.6


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("experts.csv", "task algorithm mode seed trials successes success low high control_steps"),
        ("quality.csv", "source mode task measure value low high n"),
        ("vla_trials.csv", "suite task source mode training_seed start_state trial_seed status"),
        ("evaluation.csv", "suite source mode trials successes success low high"),
    ],
)
def test_each_stage_leaves_its_record(results, name, columns):
    table = pd.read_csv(results / name)
    assert set(columns.split()) <= set(table.columns)
    assert len(table) > 0


def test_the_records_say_with_which_config_versions_and_machine(results):
    record = json.loads((results / "series.json").read_text())
    assert record["config"]["name"] == "smoke"
    assert record["versions"]["mujoco"] == "3.3.2"
    assert len(record["seconds"]) == 5
    assert json.loads((results / "doctor.json").read_text())["ok"]


def test_every_figure_comes_as_pdf_png_and_csv_with_a_caption(series):
    figures = series[0] / "runs" / "smoke" / "figures"
    names = {path.stem for path in figures.iterdir()}
    assert {name[:2] for name in names} == {"01", "02", "03", "04", "05"}
    for name in names:
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(figures / f"{name}.csv")) > 0
        assert "smoke" in (figures / f"{name}.txt").read_text(encoding="utf-8")
        with Image.open(figures / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn


def records(results):
    """The content of all records that must not depend on when or where a run happened."""
    found = {}
    for path in sorted(results.rglob("*")):
        name = str(path.relative_to(results))
        if path.suffix == ".csv":
            found[name] = pd.read_csv(path).drop(columns=CLOCKS, errors="ignore").to_csv()
        elif path.suffix in (".safetensors", ".hdf5"):
            found[name] = path.read_bytes()
    return found


def kill_in(number, after, environment):
    """Start the series, and kill it `after` seconds into notebook `number`."""
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            assert not line.startswith("All done"), "it was over before it could be killed"
            if line.startswith(f"[{number}/5]") and "running" in line:
                time.sleep(after)
                child.send_signal(signal.SIGKILL)
                return


@pytest.mark.skipif("DIFFRL_KILLS" not in os.environ, reason="as long again: make check-kills")
def test_a_series_killed_in_every_notebook_ends_with_the_same_records(series, tmp_path):
    seconds = json.loads((series[0] / "runs" / "smoke" / "series.json").read_text())["seconds"]
    home, environment = new_home(tmp_path / "home")
    for number, duration in enumerate(seconds.values(), start=1):
        kill_in(number, duration / 2, environment)
    assert call(environment).returncode == 0
    unbroken, killed = records(series[0] / "runs/smoke"), records(home / "runs/smoke")
    assert killed.keys() == unbroken.keys()
    assert [name for name in unbroken if killed[name] != unbroken[name]] == []
