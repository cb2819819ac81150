"""Run the series of notebooks headlessly: ``python -m diffrl reproduce --preset smoke``.

A notebook is run again only if its source, the package, the preset or the executed notebook before
it has changed. Inside a notebook the stages look after themselves (`artifacts.Stage`), so a killed
run continues where it was and gives the same records.
"""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from diffrl import doctor, evidence
from diffrl.base import artifacts
from diffrl.base.errors import UserError
from diffrl.base.opengl import find_opengl
from diffrl.presets import Preset, get_preset

COUNT, VLA = 5, 4  # notebooks of the series; the first that needs VLAs
REFERENCE = "reference"  # tag of the cells that show another preset's findings
LARGEST = 2**28  # bytes of a notebook, with the pictures that an editor may have left in it
SHOWN = {  # records of longer runs that a notebook shows when they are there
    "01": ("experiments.csv",),
    "03": ("experiments.csv",),
    "05": ("vla_further.csv",),
}
PULSE = 60.0  # s between two lines of progress where there is no terminal
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class CellError(Exception):
    """A cell of a notebook failed; the message is what its reader wants to see."""


def notebooks() -> list[Path]:
    """Return the series, ``notebooks/01_….ipynb`` to ``05_….ipynb``."""
    folder = artifacts.root() / "notebooks"
    found = [sorted(folder.glob(f"{number:02d}_*.ipynb")) for number in range(1, COUNT + 1)]
    for number, matches in enumerate(found, start=1):
        if len(matches) != 1:
            raise UserError(
                f"{folder} holds {len(matches)} notebooks {number:02d}_*.ipynb where one belongs: "
                "run in a clone of the repository, or point DIFFRL_HOME to one."
            )
    return [matches[0] for matches in found]


def stage_of(notebook: Path, before: Path | None, preset: Preset) -> artifacts.Stage:
    """Return the stage of one notebook; `before` is the notebook that precedes it."""
    config = {
        "preset": preset,
        "notebook": _source_hash(notebook),
        "package": _package_hash(),
    }
    folder = executed_folder(preset.full_name)
    shown = [artifacts.runs_dir(preset.name) / name for name in SHOWN.get(notebook.stem[:2], ())]
    inputs = [path for path in (before and folder / before.name, *shown) if path and path.is_file()]
    return artifacts.Stage(folder, notebook.stem, config, inputs=inputs)


def executed_folder(preset: str) -> Path:
    """Return where the executed copies of a preset lie; a part (`full_name`) has its own."""
    return artifacts.runs_dir(preset) / "notebooks" / preset.partition(":")[2]


def _source_hash(notebook: Path) -> str:
    """Hash what a notebook says, not the outputs that an editor left in it."""
    cells = artifacts.read_json(notebook, LARGEST).get("cells", [])
    return artifacts.config_hash([[c.get("cell_type"), "".join(c.get("source"))] for c in cells])


def _package_hash() -> str:
    package = Path(__file__).parent
    files = sorted(p for p in package.rglob("*") if p.suffix in {".py", ".json", ".gz"})
    return artifacts.config_hash(
        [(str(path.relative_to(package)), artifacts.file_hash(path)) for path in files]
    )


def run_notebook(notebook: Path, target: Path, parameters: dict, label: str = "") -> None:
    """Execute `notebook` into `target` (.ipynb and .html beside it), both whole or not at all.

    Until it is whole the copy is called ``<name>.partial.ipynb``; after an error it stays for
    inspection. The kernel's output goes to ``<name>.log``, and to a terminal's stderr as it comes.
    Where there is no terminal, a line a minute says how far the kernel is; it begins with `label`.

    Raises:
        CellError: a cell failed.
        UserError: a cell raised one, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    artifacts.make_folder(target.parent)
    partial = target.with_suffix(".partial.ipynb")
    with target.with_suffix(".log").open("w", encoding="utf-8") as log, _pulse(label, log) as tee:
        try:
            papermill.execute_notebook(
                _without_reference(notebook),
                partial,
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                extra_arguments=["--log-level=ERROR"],
                stdout_file=log,
                stderr_file=tee,
                cwd=artifacts.root(),
            )
        except PapermillExecutionError as error:
            raise _told(error, notebook, partial) from None
        except DeadKernelError as error:
            raise UserError(
                f"The kernel of {notebook.name} died: most often the memory is full. Close other "
                f"programs or use a smaller preset, then call again; {partial} shows how far it "
                "came."
            ) from error
    _drop_bars(partial)
    _write_html(partial, target.with_suffix(".html"))
    os.replace(partial, target)


def _without_reference(notebook: Path):
    """The notebook without the cells that show the reference run's findings."""
    import nbformat

    book = nbformat.read(notebook, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in book.cells]
    book.cells = [cell for cell, tagged in zip(book.cells, tags) if REFERENCE not in tagged]
    return book


def _drop_bars(executed: Path) -> None:
    """Take the progress bars, red blocks in a browser, out of an executed notebook."""
    import nbformat

    book = nbformat.read(executed, as_version=4)
    for cell in book.cells:
        kept = [output for output in cell.get("outputs", ()) if not _is_bar(output)]
        if cell.cell_type == "code":
            cell.outputs = kept
    nbformat.write(book, executed)


def _is_bar(output) -> bool:
    """Whether an output is nothing but progress bars: the lines that tqdm overwrites."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    lines = [line for line in re.split(r"[\r\n]", output.text) if line.strip()]
    return all(re.search(r"\d+%\||\d+(it|s)/|\[\d\d:\d\d", line) for line in lines)


class _Tee:
    """A kernel's stderr: into the log, and onto the terminal if there is one."""

    def __init__(self, log):
        self.log, self.last = log, ""

    def write(self, text: str) -> None:
        self.log.write(text)
        if lines := [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]:
            self.last = _COLOURS.sub("", lines[-1])  # a bar's newest state
        if sys.stderr.isatty():
            sys.stderr.write(text)

    def flush(self) -> None:
        self.log.flush()
        sys.stderr.flush()


@contextlib.contextmanager
def _pulse(label: str, log) -> Iterator[_Tee]:
    """A kernel's stderr; where there is no terminal its newest line is printed every `PULSE` s."""
    tee, over, began = _Tee(log), threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(PULSE):
            told = f"{label}: at work for {_clock(time.monotonic() - began)}"
            print(f"{told}; {tee.last}" if tee.last else told, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    if not sys.stderr.isatty():
        thread.start()
    try:
        yield tee
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def _told(error, notebook: Path, partial: Path) -> Exception:
    """Turn a failed cell into a `UserError` if it raised one, else into a `CellError`."""
    if error.ename.split(".")[-1] == "UserError":
        return UserError(f"{notebook.name}: {error.evalue}")
    lines = "\n".join(error.traceback)
    trace = lines if sys.stderr.isatty() else _COLOURS.sub("", lines)
    return CellError(
        f"Error: {notebook.name} failed in cell In [{error.exec_count}] with {error.ename}: "
        f"{error.evalue}\n{trace}\nThe executed cells are in {partial}."
    )


def _write_html(executed: Path, target: Path) -> None:
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter().from_filename(str(executed))
    with artifacts.atomic_path(target) as temporary:
        temporary.write_text(html, encoding="utf-8")


@contextlib.contextmanager
def _alone(preset: str) -> Iterator[None]:
    """Refuse to run twice at once on the same results; the lock goes with the process."""
    folder = executed_folder(preset)
    busy = (
        f"Another reproduce of preset {preset!r} is running on {folder}: wait for it, or set "
        "DIFFRL_HOME to another folder."
    )
    handle = artifacts.lock(artifacts.make_folder(folder) / ".lock", busy)
    try:
        yield
    finally:
        os.close(handle)


def _chosen(first: int, only: int | None) -> range:
    if only is not None and first != 1:
        raise UserError("--from and --only exclude each other: give one of them.")
    for name, number in (("--from", first), ("--only", only or first)):
        if not 1 <= number <= COUNT:
            raise UserError(f"{name} {number}: the notebooks are numbered 1 to {COUNT}.")
    return range(first, COUNT + 1) if only is None else range(only, only + 1)


def _examine(preset: str) -> None:
    """Store the doctor's report beside the results, and go no further if something is off."""
    result = doctor.report()
    artifacts.write_json(artifacts.runs_dir(preset) / "doctor.json", result)
    problems = [f for f in result["findings"] if f["status"] == "problem"]
    if problems:
        told = " ".join(f"{f['check']}: {f['detail']}. {f['remedy']}" for f in problems)
        raise UserError(f"The doctor found {len(problems)} problem(s). {told}")
    os.environ.setdefault("MUJOCO_GL", find_opengl().backend)  # kernels and their workers inherit


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def series(preset: Preset, numbers: range) -> None:
    """Run those notebooks of the series (1 to 5) that are not done yet, and record the times."""
    paths, examined = notebooks(), False
    for number in numbers:
        notebook, before = paths[number - 1], paths[number - 2] if number > 1 else None
        label = f"[{number}/{COUNT}] {notebook.stem}"
        if number >= VLA and not preset.vla_tasks:
            print(f"{label}: left out, preset {preset.full_name} trains no VLA", flush=True)
            continue
        stage = stage_of(notebook, before, preset)
        if stage.done:
            print(f"{label}: found ({_clock(stage.records['seconds'])} when it ran)", flush=True)
            continue
        if not examined:
            _examine(preset.name)
            examined = True
        print(f"{label}: running", flush=True)
        start, target = time.monotonic(), executed_folder(preset.full_name) / notebook.name
        run_notebook(notebook, target, {"PRESET": preset.full_name}, label)
        seconds = time.monotonic() - start
        stage.finish({"seconds": seconds}, outputs=[target, target.with_suffix(".html")])
        print(f"{label}: done in {_clock(seconds)}", flush=True)
    _record(preset, paths)


def _record(preset: Preset, paths: list[Path]) -> None:
    """Write ``series.json``: settings, versions and times of all notebooks that are executed.

    That of a part lies with its notebooks.
    """
    times, folder = {}, executed_folder(preset.full_name)
    for notebook in paths:
        marker = folder / f"{notebook.stem}.done.json"
        if marker.is_file():
            times[notebook.stem] = round(artifacts.read_json(marker)["records"]["seconds"], 1)
    record = {"seconds": times, **artifacts.provenance(preset)}
    place = folder if preset.suites else artifacts.runs_dir(preset.name)
    artifacts.write_json(place / "series.json", record)


def main(
    preset: str = "smoke",
    suite: tuple[str, ...] = (),
    from_: Annotated[int, tyro.conf.arg(name="from")] = 1,
    only: int | None = None,
    force: bool = False,
) -> int:
    """Run notebooks 01 to 05. Finished stages are found and not computed again.

    Args:
        preset: smoke, laptop, libero, pixels, gpu or paper.
        suite: only these of the preset's suites, e.g. libero_object.
        from_: number of the first notebook, 1 to 5.
        only: number of the only notebook to run.
        force: compute everything again, the stages inside the notebooks as well.
    """
    settings = get_preset(preset, suite)
    numbers, start = _chosen(from_, only), time.monotonic()
    preset, full_name = settings.name, settings.full_name
    if force:
        os.environ[artifacts.FORCE] = repr(time.time())
    elif evidence.restore(preset):
        print(f"The records of preset {preset} come from {artifacts.results_dir(preset)}.")
    try:
        with _alone(preset):
            series(settings, numbers)
    except CellError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if force:  # it was for the kernels: what this process does next is not forced
            del os.environ[artifacts.FORCE]
    print(
        f"All done in {_clock(time.monotonic() - start)}. Notebooks: {executed_folder(full_name)}, "
        f"records: {artifacts.runs_dir(preset)}, figures: {artifacts.figures_dir(full_name)}."
    )
    _name_first_files(full_name)
    return 0


def _name_first_files(preset: str) -> None:
    """Name the three files that a reader opens first, those of them that this run made."""
    folder, drawn = executed_folder(preset), artifacts.figures_dir(preset)
    first = {
        "which data teach the better VLA": drawn / "05_success.png",
        "how RL improves the clones": folder / "01_rl_training.html",
        "how the data move": folder / "03_trajectory_quality.html",
    }
    made = {what: path for what, path in first.items() if path.is_file()}
    if made:
        print("Open first:", *(f"  {path}   {what}" for what, path in made.items()), sep="\n")
