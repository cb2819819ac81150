"""Figures keep the house style – readable, one colour per source – and are saved whole."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.text import Text

from diffrl import figures, quality
from diffrl.base import intervals
from diffrl.base.arm import Arm
from diffrl.base.errors import UserError
from diffrl.presets import QualityConfig
from diffrl.quality.trajectory import Trajectory

ARMS = [
    ("operator", "recorded"),
    ("gaussian", "deterministic"),
    ("gaussian", "stochastic"),
    ("diffusion", "deterministic"),
    ("diffusion", "stochastic"),
]
STATES = ["running", "running", "done", "failed", "stale", "lost"]


def trajectories(n=6, tasks=("libero_object/0", "libero_object/1")):
    rng, t = np.random.default_rng(0), np.linspace(0, 1, 60)[:, None]
    for task in tasks:
        for source, mode in ARMS:
            for index in range(n):
                position = t * [0.1, 0.3, 0.1] + 0.1 * np.sin(6 * t) + rng.normal(0, 1e-3, (60, 3))
                yield Trajectory(
                    position=position,
                    actions=rng.uniform(-1, 1, (59, 7)),
                    rate=20.0,
                    task=task,
                    source=source,
                    mode=mode,
                    start_state=f"fresh/0/{index}",
                )


@pytest.fixture(scope="module")
def tables():
    """One small table per figure, as the rooms produce them."""
    found, config = list(trajectories()), QualityConfig(phases=20, neighbours=3, resamples=50)
    units = quality.measure(found, config)
    profiles = figures.phase_profiles([t for t in found if t.task == "libero_object/0"])
    paths = figures.path_table(found[: 5 * 6])
    rates = pd.DataFrame(
        [("libero_90", f"libero_90/{i}", *arm, 30 + i, 50) for i in (0, 20) for arm in ARMS],
        columns=["suite", "task", "source", "mode", "successes", "trials"],
    )
    low, high = intervals.wilson(rates["successes"], rates["trials"])
    curves = rates.assign(steps=np.arange(len(rates)) * 1000, value=0.6, low=low, high=high)
    scaling = pd.concat([rates.assign(demonstrations=n, success=0.6) for n in (10, 50)])
    scaling = scaling[scaling["task"] == "libero_90/0"].assign(low=0.5, high=0.7)
    speed = pd.DataFrame({"suite": ["a", "a"], "kind": ["LIBERO", "ours"], "value": [100, 900.0]})
    spread = {"mean": 0.0, "std": 0.3, "q01": -0.9, "q99": 0.9}
    actions = pd.DataFrame(
        [
            {"suite": "a", "source": source, "dimension": d, **spread}
            for source in ("human", "operator")
            for d in range(7)
        ]
    )
    images = np.zeros((3, 8, 8, 3), np.uint8)
    gaps = pd.DataFrame(
        [
            ("Noise", "white", "jerk_rms", 1.2, 0.7, 1.7, np.nan),
            ("Noise", "held", "jerk_rms", -0.5, np.nan, np.nan, np.nan),
            ("Class", "diffusion", "jerk_rms", -0.8, -6.1, 4.6, 12.6),
        ],
        columns=["group", "label", "measure", "value", "low", "high", "paper"],
    )
    points = pd.DataFrame(
        [
            (label, "jerk_rms", f"a/{task}", value + task)
            for label, value in (("white", 0.2), ("held", -1.0), ("diffusion", -2.0))
            for task in range(3)
        ],
        columns=["label", "measure", "task", "value"],
    )
    summary = quality.summarise(units, config)
    before = pd.concat([rates.assign(policy="expert"), rates.assign(policy="clone", successes=9)])
    both = curves.assign(mode="deterministic", task="libero_90/0")
    both = pd.concat([both[both["source"] == "diffusion"]] * 2).assign(steps=[0, 5e3, 9e3, 2e4] * 2)
    shares = rates.assign(share=1 - rates["successes"] / rates["trials"])
    units_of_work = [("data", f"{s}-{m}", f"a/{i}") for s, m in ARMS for i in range(3)]
    units_of_work += [("VLA", "diffusion-deterministic", "all")]
    work = pd.DataFrame(units_of_work, columns=["stage", "what", "task"])
    work = work.assign(state=STATES * 2 + STATES[:4], seed=0, done=4, total=[8, np.nan] * 8)
    return {
        "gap_plot": (gaps, points, {"jerk_rms": "Jerk, RMS (m/s³)"}, 1),
        "quality_heatmap": (figures.quality_changes(summary, Arm("operator")),),
        "success_differences": (rates, Arm("operator")),
        "dumbbells": (before[before["mode"] != "recorded"],),
        "share_strips": (shares, "thrown away (%)"),
        "mean_learning": (figures.mean_curves(both),),
        "end_effector_paths": (paths, figures.shared_start_state(paths)),
        "phase_curves": (profiles,),
        "learning_curves": (curves,),
        "success_forest": (rates,),
        "scaling_curve": (scaling,),
        "throughput_bars": (speed,),
        "action_statistics": (actions,),
        "work_heatmap": (work,),
        "contact_sheet": ({"before RL": images, "after RL": images}, [0, 1, 2]),
    }


@pytest.fixture(scope="module")
def drawn(tables):
    return {name: getattr(figures, name)(*given) for name, given in tables.items()}


def test_every_figure_is_no_wider_than_a_page_and_no_text_is_below_seven_points(drawn):
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        assert figure.get_size_inches()[0] <= 7.2, name
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        assert min(t.get_fontsize() for t in texts) >= 7, name


def test_nothing_is_cut_off_at_the_figures_edge(drawn):
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        page = figure.bbox.padded(2)
        parts = [*(a for a in figure.axes if a.get_visible()), *figure.texts, *figure.legends]
        for box in (part.get_tightbbox() for part in parts):
            assert page.x0 <= box.x0, name
            assert page.y0 <= box.y0, name
            assert np.all(box.max <= page.max), name


def test_learning_curves_of_fifteen_tasks_fit_on_a_page(tables):
    (curves,) = tables["learning_curves"]
    many = pd.concat([curves.assign(task=f"libero_90/{k}") for k in range(15)])
    assert figures.learning_curves(many).get_size_inches()[1] <= 9.5


def test_a_heat_map_names_what_tells_a_task_from_the_others_of_its_suite():
    tasks = ["libero_object/0", "libero_object/5", "libero_goal/7"]
    assert figures.task_names(tasks) == [
        "libero_object/0 alphabet soup",
        "libero_object/5 tomato sauce",
        "libero_goal/7 turn on the stove",
    ]


def test_the_legend_of_learning_curves_names_an_arm_that_the_first_panel_lacks(tables):
    (curves,) = tables["learning_curves"]
    first = curves["task"].eq(curves["task"].iloc[0])
    figure = figures.learning_curves(curves[~(first & curves["source"].eq("gaussian"))])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [figures.arm_label(*arm) for arm in ARMS]


def test_a_source_has_one_colour_in_every_figure(drawn):
    named = ("learning_curves", "phase_curves", "mean_learning", "scaling_curve", "dumbbells")
    for name in named:
        for axes in drawn[name].axes:
            for line in axes.get_lines():
                label = line.get_label()
                source = next((s for s, text in figures.LABELS.items() if text in label), None)
                if source:
                    assert same_color(line.get_color(), figures.COLOURS[source]), (name, label)


def test_stochastic_is_open_and_dashed_and_deterministic_filled_and_solid():
    filled = figures.arm_style("diffusion", "deterministic")
    empty = figures.arm_style("diffusion", "stochastic")
    assert filled["color"] == empty["color"] == filled["markerfacecolor"]
    assert empty["markerfacecolor"] == "white"
    assert filled["linestyle"] == "-" != empty["linestyle"]


def test_parts_and_mixtures_of_sources_are_named_by_their_sources():
    assert figures.arm_label("diffusion:10", "deterministic") == "Diffusion RL (10) without noise"
    assert figures.arm_label("human+gaussian:5") == "Human + Gaussian RL (5)"


def test_colours_stay_apart_in_grey_and_for_colour_blind_readers():
    # Machado et al. 2009, deuteranopia and protanopia at full severity, linear RGB.
    deuteranopia = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    protanopia = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    tones = np.array([mpl.colors.to_rgb(c) for c in figures.COLOURS.values()]) ** 2.2
    for matrix in (np.eye(3), deuteranopia, protanopia):
        seen = np.clip(tones @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[np.triu_indices(len(tones), 1)].min() > 0.18


def test_drawing_leaves_the_users_own_settings_alone(tables):
    before = dict(mpl.rcParams)
    figures.throughput_bars(*tables["throughput_bars"])
    assert dict(mpl.rcParams) == before


def test_saving_writes_pdf_png_csv_and_caption_the_same_bytes_twice(
    tmp_path, monkeypatch, drawn, tables
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    data = tables["learning_curves"][0]
    for _ in range(2):
        paths = figures.save_figure(
            drawn["learning_curves"], "smoke", "curve", data, "Success.\n n = 50."
        )
        contents = {suffix: path.read_bytes() for suffix, path in paths.items()}
        first = locals().get("first", contents)
        assert contents == first
    assert paths["pdf"] == tmp_path / "runs/smoke/figures/curve.pdf"
    assert contents["pdf"].startswith(b"%PDF")
    assert contents["txt"] == b"Success. n = 50.\n"
    assert len(pd.read_csv(paths["csv"])) == len(data)
    assert len(list(paths["pdf"].parent.iterdir())) == 4


def test_a_figure_without_data_or_caption_is_not_saved(tmp_path, monkeypatch, drawn):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    for data, caption in ((pd.DataFrame(), "text"), (pd.DataFrame({"a": [1]}), " ")):
        with pytest.raises(UserError, match="curve"):
            figures.save_figure(drawn["learning_curves"], "smoke", "curve", data, caption)
    assert not (tmp_path / "figures").exists()


def test_a_contact_sheet_needs_rows_of_equal_length():
    rows = {"a": np.zeros((2, 4, 4, 3), np.uint8), "b": np.zeros((3, 4, 4, 3), np.uint8)}
    with pytest.raises(UserError, match="'a': 2, 'b': 3"):
        figures.contact_sheet(rows)


# -- what each figure shows ------------------------------------------------------------------------
def marks(axes, shape):
    return [tuple(line.get_xydata()[0]) for line in axes.lines
            if line.get_marker() == shape and len(line.get_xydata())]  # fmt: skip


def test_a_gap_plot_has_headings_a_mark_a_task_and_the_paper_s_gap(drawn):
    [axes] = drawn["gap_plot"].axes
    rows = [label.get_text() for label in axes.get_yticklabels()][::-1]
    assert rows == ["Noise", "white", "held", "Class", "diffusion"]
    assert marks(axes, "o") == [(1.2, 3), (-0.5, 2), (-0.8, 0)]
    assert marks(axes, "|") == [(12.6, 0)]
    points = [marks(axes, shape)[0] for shape in ".^x"]
    np.testing.assert_allclose(points, [(0.2 + k, 3 - 0.27) for k in range(3)])
    told = [text.get_text() for text in axes.texts]
    assert told == ["mean  [95 %]", "+1.2  [+0.7, +1.7]", "−0.5", "−0.8  [−6.1, +4.6]"]
    [legend] = drawn["gap_plot"].legends
    assert [t.get_text() for t in legend.get_texts()] == ["a/0", "a/1", "a/2", "the paper's gap"]


def test_a_group_of_larger_effects_has_axes_of_its_own_and_an_arrow_says_what_is_better():
    rows = [("small", "a", "m", 1.0, 0.5, 1.5), ("large", "b", "m", -90.0, -95.0, -85.0)]
    gaps = pd.DataFrame(rows, columns=["group", "label", "measure", "value", "low", "high"])
    gaps = pd.concat([gaps, gaps.assign(measure="n")])
    points = gaps[["label", "measure", "value"]]
    titles, better = {"m": "M", "n": "N"}, {"m": +1, "n": -1}
    figure = figures.gap_plot(gaps, points, titles, better=better, apart="large")
    above, _, below, _ = figure.axes
    assert np.ptp(above.get_xlim()) < 3
    assert np.ptp(below.get_xlim()) > 90
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "better →", "← better"]
    assert [axes.get_title() for axes in figure.axes] == ["M", "N", "", ""]
    assert [label.get_text() for label in below.get_yticklabels()] == ["b", "large"]


def test_a_wide_interval_does_not_squeeze_the_others():
    rows = [("x", "m", 1.0, 0.5, 1.5)] * 9 + [("wide", "m", 1.0, -1000.0, 1000.0)]
    gaps = pd.DataFrame(rows, columns=["label", "measure", "value", "low", "high"])
    points = pd.DataFrame({"label": ["x"], "measure": ["m"], "value": [2.0]})
    [axes] = figures.gap_plot(gaps, points, {"m": "m"}).axes
    assert np.ptp(axes.get_xlim()) < 3
    assert axes.get_xlim()[1] > 2
    [(left, row)], [(right, same)] = marks(axes, "<"), marks(axes, ">")  # it goes on
    assert row == same == 0
    assert axes.get_xlim()[0] < left < right < axes.get_xlim()[1]


def test_a_dumbbell_goes_from_the_clone_to_the_expert_in_the_colour_of_its_class(drawn, tables):
    (rates,) = tables["dumbbells"]
    panel = drawn["dumbbells"].axes[0]
    assert panel.get_title() == "acting without noise"
    tasks = rates["task"].nunique()
    ends = [bar.get_segments() for bar in panel.collections]
    assert [len(segments) for segments in ends] == [tasks, tasks]  # two classes
    clones = [line for line in panel.lines if line.get_markerfacecolor() == "white"]
    assert all((line.get_xdata() == 18).all() for line in clones)  # 9 of 50


def test_the_mean_curve_carries_stops_forward_and_ends_where_most_runs_have_ended():
    short = pd.DataFrame({"task": "a", "steps": [0, 10], "value": [0.0, 1.0]})
    long = pd.DataFrame({"task": "b", "steps": [0, 100], "value": [0.0, 0.5]})
    curves = pd.concat([short, long]).assign(source="diffusion", mode="deterministic")
    mean = figures.mean_curves(curves.assign(low=0.0, high=1.0), points=92)
    assert mean["steps"].max() == pytest.approx(91)  # the 0.9 quantile of 10 and 100
    at = mean.set_index(mean["steps"].round())["value"]
    assert at[10] == pytest.approx((1 + 0.05) / 2)
    assert at[90] == pytest.approx((1 + 0.45) / 2)  # the short one stays at 1
    assert mean["low"].min() >= 0
    assert mean["high"].max() <= 1


def test_a_change_against_the_demonstrator_is_less_where_less_is_better():
    rows = [
        (source, mode, task, measure, value)
        for source, mode, jerk, ldlj in (
            ("operator", "recorded", 10.0, -9.0),
            ("diffusion", "deterministic", 8.0, -8.0),  # closer to zero is smoother
        )
        for task, factor in (("a", 1.0), ("b", 2.0))
        for measure, value in (("jerk_rms", factor * jerk), ("ldlj_cartesian", ldlj))
    ]
    summary = pd.DataFrame(rows, columns=["source", "mode", "task", "measure", "value"])
    changes = figures.quality_changes(summary, Arm("operator")).set_index("measure")
    assert changes.loc["jerk_rms", "percent"] == pytest.approx(-20)
    assert changes.loc["ldlj_cartesian", "percent"] == pytest.approx(100 * (np.exp(-1) - 1))
    assert changes.loc["ldlj_cartesian", "label"] == "Dimensionless jerk, path"


def test_the_bold_path_is_black_and_a_stray_one_does_not_shrink_the_others(tables):
    paths, start = tables["end_effector_paths"]
    stray = paths.copy()
    stray.loc[stray.index[:2], ["x", "y", "z"]] = 9.0  # metres
    figure = figures.end_effector_paths(stray, start)
    assert max(np.ptp(axes.get_xlim()) for axes in figure.axes) < 100  # cm
    bold = [line for line in figure.axes[0].lines if line.get_lw() > 1 and line.get_ls() == "-"]
    assert [line.get_color() for line in bold] == ["black"]


def test_the_differences_of_tasks_are_in_points_above_the_demonstrator(drawn):
    axes = drawn["success_differences"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "libero_90/0 close the top drawer of the …",
        "libero_90/20 turn on the stove",
    ]
    assert {text.get_text() for text in axes.texts} == {"60 %", "100 %", "+0"}
