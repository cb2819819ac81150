"""In a real Chromium: the explorer's page, and the five notebooks by "Run All" in JupyterLab."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from quality_samples import robomimic_file

from diffrl.__main__ import main as command_line

pytestmark = pytest.mark.browser
LEFT, RIGHT = "\ue012", "\ue014"  # WebDriver's arrow keys
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-5]_*.ipynb"))
STEP = 0.3  # seconds that a step of the slider may take, its pictures being cached


def shades(index, steps):
    """Frames, each of one grey of its own."""
    return np.full((steps, 32, 32, 3), np.arange(steps)[:, None, None, None] * 5, np.uint8)


@pytest.fixture
def file(tmp_path):
    return robomimic_file(tmp_path / "film.hdf5", **{"obs/agentview_image": shades})


@pytest.fixture
def chromium(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900")
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    if folder := os.environ.get("DIFFRL_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{tmp_path.name}.png"))
    browser.quit()


def digest(element):
    return hashlib.sha256(element.screenshot_as_png).hexdigest()


def until(found, seconds=120):
    """The first true value of `found`, which may fail before."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except WebDriverException:
            pass
        time.sleep(0.1)
    raise AssertionError("it did not come")


def click(chromium, selector):
    """Click what a CSS selector finds, when it has come to rest."""
    until(lambda: chromium.find_element("css selector", selector).click() or True)


def test_the_slider_of_the_page_moves_picture_cursor_and_numbers(file, tmp_path, chromium):
    page = tmp_path / "page.html"
    assert command_line(["view", str(file), "--out", str(page)]) == 0
    chromium.get(page.as_uri())
    cursor = "const pen = document.querySelector('canvas').getContext('2d');"
    cursor += "return [...pen.getImageData(0, 100, 1120, 1).data]"

    def seen():
        picture = chromium.find_element("id", "picture0").get_attribute("src")
        painted = np.flatnonzero(np.reshape(chromium.execute_script(cursor), (-1, 4))[:, 3])
        return picture, int(painted[0]), chromium.find_element("id", "reading").text

    states = [seen()]
    for _ in range(3):
        chromium.find_element("id", "step").send_keys(*[RIGHT] * 10)
        states.append(seen())
    pictures, places, readings = zip(*states)
    assert len(set(pictures)) == len(set(readings)) == 4
    assert np.ptp(np.diff(places)) <= 1  # ten steps are as wide each time
    assert places[1] > places[0] + 50
    assert readings[3].startswith("step 30 · 1.50 s")
    assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []


@contextlib.contextmanager
def jupyterlab(folder, **environment):
    """JupyterLab on a folder, with settings of its own; yields its address."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--notebook-dir={folder}"]
    command += ["--LabApp.expose_app_in_browser=True"]  # so that a test can read the notebook
    environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    for kind in ("CONFIG", "DATA", "RUNTIME"):
        environment[f"JUPYTER_{kind}_DIR"] = str(folder / f".jupyter_{kind.lower()}")
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        pattern = re.compile(r"(http://(?:localhost|127\.0\.0\.1):\d+)/lab")
        yield until(lambda: pattern.search((folder / "lab.log").read_text()))[1]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def lab(file, tmp_path):
    """JupyterLab on a notebook with the explorer; yields its address."""
    code = "from pathlib import Path\nfrom diffrl.explore import Library, explore\n"
    code += f"explore(Library.of_files([Path({str(file)!r})]))"
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = kernel  # else JupyterLab asks for one
    nbformat.write(book, tmp_path / "look.ipynb")
    with jupyterlab(tmp_path) as address:
        yield address


def test_the_widget_s_slider_moves_the_picture_in_jupyterlab(lab, chromium):
    from selenium.webdriver import ActionChains, Keys

    chromium.get(f"{lab}/lab/tree/look.ipynb")
    until(lambda: "Idle" in chromium.find_element("tag name", "body").text)
    click(chromium, ".jp-CodeCell .cm-content")
    ActionChains(chromium).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    image = until(lambda: chromium.find_element("css selector", "img.widget-image"))
    handle = chromium.find_element("css selector", ".widget-slider .noUi-handle")
    before = image.get_attribute("src"), digest(image)
    handle.send_keys(*[RIGHT] * 12)
    until(lambda: "step 12 · 0.60 s" in chromium.find_element("tag name", "body").text)
    until(lambda: image.get_attribute("src") != before[0])
    assert digest(image) != before[1]


# -- the notebooks ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def clone(tmp_path_factory, laptop_run, demonstrations):
    """A folder as a clone is: the notebooks, preset laptop restored, one data set made here."""
    from diffrl.base.arm import Arm
    from diffrl.generation.stage import dataset_path
    from diffrl.presets import get_preset

    home, preset = tmp_path_factory.mktemp("clone"), get_preset("laptop")
    for name in ("figures", "docs"):  # links out of the folder are not served
        shutil.copytree(ROOT / name, home / name)
    shutil.copytree(laptop_run, home / "runs" / "laptop")
    (home / "notebooks").mkdir()
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert text.count('PRESET = \\"smoke\\"') == 1
        text = text.replace('PRESET = \\"smoke\\"', 'PRESET = \\"laptop\\"')
        (home / "notebooks" / path.name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFRL_HOME", str(home))
        target = dataset_path(preset, preset.tasks[0], Arm("operator"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(demonstrations, target)
    return home


@pytest.fixture(scope="module")
def lab_of_clone(clone):
    with jupyterlab(clone, DIFFRL_HOME=str(clone)) as address:
        yield address


def run_all(chromium, address, name):
    """Open a notebook, choose Run → Run All Cells, wait; return its code cells as JSON."""
    chromium.get(f"{address}/lab/tree/notebooks/{name}")
    until(lambda: "Idle" in chromium.find_element("tag name", "body").text)
    menu = "//li[contains(@class, 'lm-MenuBar-item')][.='Run']"
    until(lambda: chromium.find_element("xpath", menu).click() or True)
    click(chromium, 'li.lm-Menu-item[data-command="runmenu:run-all"]')
    read = "return JSON.stringify(jupyterapp.shell.currentWidget.content.model.toJSON().cells)"

    def ended():
        cells = json.loads(chromium.execute_script(read))
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        failed = [cell for cell in code if "error" in kinds(cell)]
        done = code if all(cell["execution_count"] for cell in code) else []
        idle = chromium.execute_script(
            "return jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
        )
        return failed or (done if idle == "idle" else [])

    return until(ended, 300)


def kinds(cell):
    """What a cell put out: "error", "stderr", "stdout", "image/png", …"""
    for output in cell["outputs"]:
        yield output.get("name") or output["output_type"]
        yield from output.get("data", {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_by_run_all_without_an_error_or_a_warning(path, lab_of_clone, chromium):
    cells = run_all(chromium, lab_of_clone, path.name)
    for cell in cells:
        assert "error" not in kinds(cell), cell["outputs"]
        assert "stderr" not in kinds(cell), cell["outputs"]
        assert "Warning" not in json.dumps(cell["outputs"]), cell["outputs"]
    pictures = [kind for cell in cells for kind in kinds(cell) if kind == "image/png"]
    assert len(pictures) >= 2
    severe = [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []


def test_a_step_of_the_explorer_in_notebook_two_takes_less_than_300_ms(
    lab_of_clone, chromium, record_property
):
    cells = run_all(chromium, lab_of_clone, "02_trajectory_generation.ipynb")
    [number] = [i for i, cell in enumerate(cells) if "explore.explore" in "".join(cell["source"])]
    chromium.execute_script(
        "const book = jupyterapp.shell.currentWidget.content;"
        "const cells = book.widgets.filter(cell => cell.model.type === 'code');"
        "book.scrollToCell(cells[arguments[0]], 'start')",
        number,
    )
    image = until(lambda: chromium.find_element("css selector", "img.widget-image"))
    handle = until(lambda: chromium.find_element("css selector", ".widget-slider .noUi-handle"))
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    chromium.execute_script(
        "window.steps = []; let start;"
        "document.addEventListener('keydown', () => { start = performance.now() }, true);"
        "arguments[0].addEventListener('load', () => steps.push(performance.now() - start))",
        image,
    )
    count = "return steps.length"
    for done, key in enumerate([RIGHT] * 20 + [LEFT] * 20):  # the way back is cached
        handle.send_keys(key)
        until(lambda done=done: chromium.execute_script(count) > done, 20)
    cached = np.array(chromium.execute_script("return steps")[20:]) / 1000
    record_property("median, maximum (s)", (np.median(cached), cached.max()))
    print(f"a cached step: median {np.median(cached):.3f} s, maximum {cached.max():.3f} s")
    assert len(cached) == 20
    assert np.median(cached) <= STEP
    assert cached.max() <= 2 * STEP  # another program may hold the processor for a moment
