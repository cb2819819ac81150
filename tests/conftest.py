"""The order of the tests, the series first, as the others run beside it; and shared records."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_samples import TASK


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("notebooks") is None)


@pytest.fixture(scope="session")
def laptop_run(tmp_path_factory):
    """The folder of preset laptop's run, restored from its evidence."""
    from diffrl import evidence

    folder = tmp_path_factory.mktemp("laptop") / "run"
    evidence.unpack(Path(__file__).parents[1] / "results" / "laptop", folder)
    return folder


@pytest.fixture(scope="session")
def libero_run(tmp_path_factory):
    """The folder of preset libero's run, restored from its evidence, with its experts' weights."""
    from diffrl import evidence

    folder = tmp_path_factory.mktemp("libero") / "run"
    evidence.unpack(Path(__file__).parents[1] / "results" / "libero", folder)
    return folder


@pytest.fixture
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture
def serve():
    """Start `openpi_server.py` with a behaviour; returns its address."""
    children = []

    def start(behaviour: str, *arguments: str) -> str:
        script = Path(__file__).with_name("openpi_server.py")
        command = [sys.executable, str(script), behaviour, *arguments]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        children.append(child)
        return f"ws://127.0.0.1:{int(child.stdout.readline())}"

    yield start
    for child in children:
        child.kill()
        child.wait()


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    """A data set of three demonstrations by the scripted operator."""
    from diffrl.data.attributes import libero_attributes
    from diffrl.data.hdf5 import write_episodes
    from diffrl.demonstrator.episodes import operator_demonstrations
    from diffrl.presets import OperatorConfig
    from diffrl.sim.scene import load_scene

    scene = load_scene(TASK)
    episodes, _ = operator_demonstrations(scene, 3, 0, OperatorConfig(count=3))
    path = tmp_path_factory.mktemp("data") / "soup_demo.hdf5"
    write_episodes(path, episodes, libero_attributes(scene.task))
    return path
