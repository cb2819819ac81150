"""The explorer: at every step picture, cursor and dot are those of the same moment."""

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import data_samples as samples
import h5py
import imageio.v3 as imageio
import nbclient
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from quality_samples import arms as both_arms
from quality_samples import robomimic_file, write_data_set

from diffrl.__main__ import main as command_line
from diffrl.base.errors import UserError
from diffrl.explore import Library, explore
from diffrl.explore.board import SIDE, Board
from diffrl.explore.pictures import Pictures
from diffrl.explore.view import chosen
from diffrl.explore.widget import Explorer
from diffrl.sim.scene import load_scene
from diffrl.sim.starts import official_start_states


def shades(index, steps, size=32):
    """Frames whose upper half tells the step, and whose lower half is white."""
    frames = np.full((steps, size, size, 3), 255, np.uint8)
    frames[:, : size // 2] = np.arange(steps, dtype=np.uint8)[:, None, None, None]
    return frames


@pytest.fixture
def film(tmp_path):
    """robomimic's layout with upright images."""
    return robomimic_file(tmp_path / "film.hdf5", **{"obs/agentview_image": shades})


@pytest.fixture
def arms(tmp_path):
    """Two sources' files with the same start states."""
    files = [tmp_path / "datasets" / f"{source}.hdf5" for source in ("diffusion", "gaussian")]
    found = list(both_arms(effect=3.0, n=5))
    for file in files:
        file.parent.mkdir(exist_ok=True)
        write_data_set(file, [t for t in found if t.source == file.stem])
    return files


def board(path, number=0, **options):
    return Board([Library.of_files([path]).entries[number]], Pictures(), **options)


def test_a_step_shows_the_picture_and_the_cursor_of_its_moment(film):
    shown = board(film)
    left, top = shown.boxes[0]
    edge, scale, high, low = shown.cursors[0]
    for step in (0, 17, 39):
        frame = shown.frame(step)
        assert (frame[top + 5, left + 5] == step).all()
        assert (frame[top + SIDE - 5, left + 5] == 255).all()
        x = round(edge + scale * step / 20)
        assert (frame[high:low, x] == 0).all()
        assert (frame[(high + low) // 2, x + 6 : x + 9] > 0).all()


def test_stored_frames_of_libero_are_turned_upright(tmp_path):
    upside_down = {"obs/agentview_rgb": lambda i, n: shades(i, n)[:, ::-1]}
    shown = board(robomimic_file(tmp_path / "turned.hdf5", **upside_down))
    left, top = shown.boxes[0]
    assert (shown.frame(9)[top + 5, left + 5] == 9).all()


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32, 1), (32, 32, 4)])
def test_frames_without_colours_on_their_last_axis_are_told_in_words(tmp_path, shape):
    def frames(index, steps):
        return np.full((steps, *shape), 90, np.uint8)

    path = robomimic_file(tmp_path / "film.hdf5", **{"obs/agentview_image": frames})
    shown = board(path)
    if shape[-1] == 4:  # what is transparent is drawn, too
        assert (shown.picture(0, 5) == 90).all()
        return
    assert shown.picture(0, 5) is None
    why = shown.pictures.missing(shown.entries[0])
    assert f"obs/agentview_image {(40, *shape)}; colours are expected on the last axis" in why


@pytest.mark.sim
def test_a_collector_s_file_is_drawn_with_the_fixtures_of_its_own_model(tmp_path):
    scene = load_scene("libero_goal/7")  # a stove
    starts = official_start_states(scene)[:1]
    states = starts.states.repeat(13, axis=0)
    states[:, 0] = np.arange(13) / 20
    assert scene.fixture_names
    bodies = "".join(
        f'<body name="{body}" pos="{" ".join(map(str, pose[:3]))}" '
        f'quat="{" ".join(map(str, pose[3:]))}"/>'
        for body, pose in zip(scene.meta["fixtures"].values(), starts.fixtures[0])
    )
    xml = f"<mujoco><worldbody>{bodies}</worldbody></mujoco>"
    path = tmp_path / "raw.hdf5"
    episode = replace(samples.sample_episode(), task=scene.task.id, states=states)
    samples.write_collected(path, [episode], xml)
    with h5py.File(path, "r+") as file:
        name = f"{scene.task.suite}/{scene.task.name}.bddl"
        file["data"].attrs["bddl_file_name"] = name
    pictures = Pictures(32)
    entry = Library.of_files([path]).entries[0]
    assert pictures.missing(entry) == ""
    assert pictures.at(entry, 0).std() > 0
    pictures.close()


def test_dots_lie_on_the_drawn_path_from_its_black_start_to_its_black_end(film):
    shown = board(film)
    for dots in shown.dots[0]:
        for x, y in dots.points[[0, -1]]:
            assert (shown.background[round(y), round(x)] < 60).all()
        inner = [shown.background[round(y), round(x)] for x, y in dots.points[1:-1]]
        assert np.mean([(pixel < 250).any() for pixel in inner]) > 0.9


def test_the_shorter_episode_of_two_stays_at_its_end(tmp_path):
    long, short = (
        Library.of_files([robomimic_file(tmp_path / f"{n}.hdf5", steps=n)]).entries[0]
        for n in (50, 30)
    )
    shown = Board([long, short], Pictures())
    assert [shown.row(1, step) for step in (0, 29, 30, 49)] == [0, 29, 29, 29]
    assert shown.steps == 50


def test_a_board_of_two_rates_ends_when_both_episodes_have_ended(tmp_path):
    fast, slow = (
        Library.of_files([robomimic_file(tmp_path / f"{rate}.hdf5", steps=n, rate=rate)]).entries[0]
        for n, rate in ((100, 20), (80, 10))
    )
    for pair in ([fast, slow], [slow, fast]):
        shown = Board(pair, Pictures())
        assert shown.time(shown.steps - 1) == pytest.approx(7.9)  # the slow one's last sample
        ends = [shown.row(index, shown.steps - 1) for index in (0, 1)]
        assert ends == [len(entry.trajectory.position) - 1 for entry in pair]


def test_boundaries_of_chunks_are_drawn_for_policies_and_not_for_people(arms):
    first = Library.of_files(arms).entries[0]
    plain, marked = (Board([first], Pictures(), chunk) for chunk in (None, 5))
    assert (plain.background != marked.background).any()
    edge, scale, high, low = marked.cursors[1]
    at = round(edge + scale * 5 / 20)
    changed = (plain.background != marked.background)[high + 3 : low - 3, at - 1 : at + 2]
    assert changed.any(axis=(1, 2)).mean() > 0.8
    human = replace(first, trajectory=replace(first.trajectory, source="human"))
    backgrounds = [Board([human], Pictures(), chunk).background for chunk in (None, 5)]
    assert np.array_equal(*backgrounds)


@pytest.mark.parametrize("source", ["operator", "steady", "human", "teleoperation"])
def test_who_decides_step_by_step_has_no_boundaries_of_chunks(arms, source):
    first = Library.of_files(arms).entries[0]
    hand = replace(first, trajectory=replace(first.trajectory, source=source))
    plain, marked = (Board([hand], Pictures(), chunk) for chunk in (None, 5))
    assert np.array_equal(plain.background, marked.background)


def test_the_numbers_of_a_step_are_those_of_the_curves_under_the_cursor(arms):
    first = Library.of_files(arms).entries[0]
    path = np.zeros((41, 3))
    path[21:, 0] = 0.01  # between samples 20 and 21
    jump = replace(first, trajectory=replace(first.trajectory, position=path))
    shown = Board([jump], Pictures())
    told = [re.findall(r"(?:speed|jerk) ([\d.]+)", shown.reading(step)) for step in range(41)]
    speed, third = np.array(told, float).T
    assert speed.argmax() in (20, 21)
    assert speed[20] == speed[21]
    assert np.array_equal(third[1:], third[:0:-1])  # the two sides of the jump are alike
    for axes, values in zip(shown._curves, (speed, third)):
        [line] = axes.get_lines()
        at = np.interp(np.arange(41) / 20, *line.get_data())
        assert np.allclose(values, at, atol=0.06)


def test_a_command_is_not_drawn_on_an_axis_of_centimetres(arms):
    first, second = Library.of_files(arms).entries[:2]
    opening = np.full(len(first.trajectory.position), 0.04)
    known = replace(first, trajectory=replace(first.trajectory, opening=opening))
    unknown = replace(second, trajectory=replace(second.trajectory, opening=None))
    gripper = Board([known, unknown], Pictures())._curves[2]
    assert "cm" in gripper.get_ylabel()
    assert len(gripper.get_lines()) == 1
    assert len(Board([unknown, unknown], Pictures())._curves[2].get_lines()) == 2


def test_an_episode_stands_beside_that_of_another_arm_from_the_same_start_state(arms):
    library = Library.of_files(arms)
    [dataset] = library.datasets()
    [task] = library.tasks(dataset)
    assert [source for source, _ in library.arms(dataset, task)] == ["diffusion", "gaussian"]
    for entry in library.episodes(dataset, task, library.arms(dataset, task)[0]):
        [other] = library.beside(entry)
        assert other.trajectory.source == "gaussian"
        assert other.trajectory.start_state == entry.trajectory.start_state


def test_without_images_and_states_the_board_says_so(tmp_path):
    path = robomimic_file(tmp_path / "plain.hdf5")
    shown = board(path)
    assert shown.picture(0, 3) is None
    assert "no picture" in shown.pictures.missing(shown.entries[0])
    left, top = shown.boxes[0]
    assert (shown.frame(3)[top : top + SIDE, left : left + SIDE] < 100).any()  # the reason in words


@pytest.mark.sim
def test_pictures_are_drawn_from_states_once(demonstrations):
    from diffrl.data.hdf5 import read_episodes
    from diffrl.data.media import pictures

    shown = board(demonstrations)
    step = shown.steps // 2
    drawn = pictures(read_episodes(demonstrations)[0], every=1, size=SIDE)
    assert np.array_equal(shown.picture(0, step), drawn[step])
    assert shown.pictures.at(shown.entries[0], step) is shown.pictures.at(shown.entries[0], step)
    shown.pictures.close()


@pytest.mark.sim
def test_pictures_are_drawn_for_any_thread_that_asks(demonstrations):
    """JupyterLab runs a cell in one thread and the events of its widgets in another."""
    shown = board(demonstrations)
    with ThreadPoolExecutor(1) as cell:  # the first picture is this thread's
        first = cell.submit(shown.picture, 0, 0).result()
    with ThreadPoolExecutor(1) as events:
        last = events.submit(shown.picture, 0, shown.steps - 1).result()
    assert not np.array_equal(first, last)
    assert not np.array_equal(shown.picture(0, shown.steps // 2), last)
    shown.pictures.close()


# -- in a notebook ---------------------------------------------------------------------------------
def test_lists_and_slider_of_the_widget_change_the_picture(arms):
    explorer = Explorer(Library.of_files(arms), chunk=5)
    seen = [explorer.image.value]
    explorer.slider.value = 11
    seen.append(explorer.image.value)
    assert "step 11 · 0.55 s" in explorer.reading.value
    explorer.menus[2].value = ("gaussian", "deterministic")
    seen.append(explorer.image.value)
    assert explorer.entry.trajectory.source == "gaussian"
    explorer.menus[4].value = explorer.menus[4].options[1][1]
    seen.append(explorer.image.value)
    assert len(explorer.board.entries) == 2
    explorer.menus[3].value = explorer.menus[3].options[2][1]
    seen.append(explorer.image.value)
    assert len(set(seen)) == len(seen)


def test_a_step_from_the_cache_takes_at_most_300_ms_of_computing(film):
    explorer = Explorer(Library.of_files([film]))
    took = []
    for _ in range(2):  # the second time from the cache
        took.clear()
        for step in range(1, 40):
            start = time.process_time()
            explorer.slider.value = step
            took.append(time.process_time() - start)
        explorer.slider.value = 0
    assert np.median(took) < 0.3, took


def test_without_a_front_end_the_cell_shows_a_figure(arms):
    assert isinstance(explore(Library.of_files(arms)), Figure)
    code = "from pathlib import Path\nfrom diffrl.explore import Library, explore\n"
    code += f"explore(Library.of_files([Path({str(arms[0])!r}), Path({str(arms[1])!r})]))"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    [shown] = [o for o in book.cells[0].outputs if o["output_type"] == "execute_result"]
    assert "image/png" in shown["data"]
    assert not any("widget" in kind for kind in shown["data"])


# -- the command -----------------------------------------------------------------------------------
def test_view_writes_a_page_that_needs_nothing_else(film, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert command_line(["view", str(film), "--episode", "1", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    text = out.read_text("utf-8")
    assert not re.search(r"https?://|src=\"(?!data:)|<link", text)
    data = json.loads(re.search(r"const d = (.*);\n", text)[1])
    assert len(data["readings"]) == len(data["clips"][0]["pictures"]) == 40


def test_a_file_s_words_cannot_become_a_script_of_the_page(tmp_path):
    path, out = robomimic_file(tmp_path / "evil.hdf5"), tmp_path / "page.html"
    with h5py.File(path, "a") as file:
        file["data"].attrs["task"] = "</script><script>alert(1)</script>"
        file["data"].attrs["source"] = "</script><img src=x>"
    assert command_line(["view", str(path), "--out", str(out)]) == 0
    assert out.read_text("utf-8").count("<script>") == 1
    assert "<img src=x>" not in out.read_text("utf-8")


def test_view_writes_a_film_of_every_step(film, tmp_path):
    out = tmp_path / "film.mp4"
    assert command_line(["view", str(film), "--out", str(out)]) == 0
    frames = imageio.imread(out)
    assert len(frames) == 40
    shown = board(film)
    assert np.abs(frames[20].astype(int) - shown.frame(20)).mean() < 3


def test_the_second_file_shows_the_episode_from_the_same_start_state(arms, film, capsys):
    first, second = chosen(arms, 4)
    assert first.trajectory.start_state == second.trajectory.start_state
    assert first.trajectory.source != second.trajectory.source
    assert capsys.readouterr().err == ""
    chosen([arms[0], film], 0)
    assert "from start state" in capsys.readouterr().err


def test_start_states_of_two_tasks_are_two_though_their_names_are_one(arms, tmp_path, capsys):
    other = tmp_path / "other.hdf5"
    found = [t for t in both_arms(effect=3.0, n=5) if t.source == "gaussian"]
    write_data_set(other, [replace(t, task="libero_object/3") for t in found])
    first, second = chosen([arms[0], other], 1)
    assert first.trajectory.start_state == second.trajectory.start_state
    assert "no episode of libero_object/0 from start state" in capsys.readouterr().err
    texts = [text.get_text() for text in Board([first, second], Pictures())._figure.texts]
    assert any("libero_object/0" in text and "libero_object/3" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--episode", "3"], "no episode 3: choose one of 0-2"),
        (["--out", "film.gif"], "a film in .mp4"),
        (["--chunk", "0"], "--chunk 0"),
    ],
)
def test_what_cannot_be_viewed_is_said_with_the_remedy(film, options, told, capsys):
    assert command_line(["view", str(film), *options]) == 1
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        Library.of_files([tmp_path / "nowhere.hdf5"])


def test_lerobot_s_viewer_has_the_options_that_the_page_on_exploring_names():
    python = os.environ.get("LEROBOT_PYTHON")
    if not python:
        pytest.skip("LEROBOT_PYTHON names no environment with lerobot (make check-lerobot)")
    tool = Path(python).with_name("lerobot-dataset-viz")
    subprocess.run([python, "-c", "import rerun"], check=True)
    told = subprocess.run([tool, "--help"], capture_output=True, text=True, check=True).stdout
    page = (Path(__file__).parents[1] / "docs" / "explore.md").read_text("utf-8")
    [command] = re.findall(r"lerobot-dataset-viz (.*)", page)
    options = re.findall(r"--[a-z-]+", command)
    assert options == ["--repo-id", "--root", "--episode-index"]
    assert all(option in told for option in options)
