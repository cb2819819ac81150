"""The explorer's slider in a real Chromium: on the page of `view`, and in JupyterLab."""

import hashlib
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
from quality_file_samples import robomimic_file

from diffrl.__main__ import main as command_line

pytestmark = pytest.mark.browser
RIGHT = "\ue014"  # WebDriver's arrow key


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
        time.sleep(0.3)
    raise AssertionError("it did not come")


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


@pytest.fixture
def lab(file, tmp_path):
    """JupyterLab on a notebook with the explorer; yields its address."""
    code = "from pathlib import Path\nfrom diffrl.explore import Library, explore\n"
    code += f"explore(Library.of_files([Path({str(file)!r})]))"
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = kernel  # else JupyterLab asks for one
    nbformat.write(book, tmp_path / "look.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--notebook-dir={tmp_path}"]
    home = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "HOME": str(tmp_path)}
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, **home, "PYTHONPATH": root}
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        pattern = re.compile(r"(http://(?:localhost|127\.0\.0\.1):\d+)/lab")
        found = until(lambda: pattern.search((tmp_path / "lab.log").read_text()))
        yield found[1]
        server.terminate()
        server.wait()


def test_the_widget_s_slider_moves_the_picture_in_jupyterlab(lab, chromium):
    from selenium.webdriver import ActionChains, Keys

    chromium.get(f"{lab}/lab/tree/look.ipynb")
    cell = until(lambda: chromium.find_element("css selector", ".jp-CodeCell .cm-content"))
    until(lambda: "Idle" in chromium.find_element("tag name", "body").text)
    cell.click()
    ActionChains(chromium).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    image = until(lambda: chromium.find_element("css selector", "img.widget-image"))
    handle = chromium.find_element("css selector", ".widget-slider .noUi-handle")
    before = image.get_attribute("src"), digest(image)
    handle.send_keys(*[RIGHT] * 12)
    until(lambda: "step 12 · 0.60 s" in chromium.find_element("tag name", "body").text)
    until(lambda: image.get_attribute("src") != before[0])
    assert digest(image) != before[1]
