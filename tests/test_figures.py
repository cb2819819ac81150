"""Figures keep the house style – readable, one colour per source – and are saved whole."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.text import Text

from diffrl import figures, quality
from diffrl.base import intervals
from diffrl.base.errors import UserError
from diffrl.evaluation import scores
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
    columns = ["arm", "algorithm", "task", "seed", "success", "auc", "jerk_rms", "steps"]
    runs = pd.DataFrame(
        [
            (f"{source}{change}", source, f"libero_object/{task}", seed, 0.9, 0.7, 12 + seed, 160)
            for source in ("diffusion", "gaussian")
            for change in ("", " white fade")
            for task in (0, 3)
            for seed in (1, 2, 3)
        ],
        columns=columns,
    ).assign(mode="deterministic", position_variance=5.0)
    moments = pd.DataFrame({"control_steps": [0, 3e4], "measured_success": [0.5, 0.9]})
    moments = moments.assign(measured_jerk_rms=[np.nan, 8.0])  # a clone that never succeeded
    effects = pd.DataFrame(
        [
            (effect, "deterministic", measure, 0.5, -0.2, 1.2, 0.3, 0.8, np.nan)
            for measure in ("jerk_rms", "ldlj_cartesian", "steps", "success")
            for effect in ("diffusion − gaussian", "policy × noise × hand-over")
        ],
        columns=["effect", "mode", "measure", "difference", "low", "high", "p_holm", "a/0", "a/1"],
    )
    units_of_work = [("data", f"{s}-{m}", f"a/{i}") for s, m in ARMS for i in range(3)]
    units_of_work += [("VLA", "diffusion-deterministic", "all")]
    work = pd.DataFrame(units_of_work, columns=["stage", "what", "task"])
    work = work.assign(state=STATES * 2 + STATES[:4], seed=0, done=4, total=[8, np.nan] * 8)
    return {
        "arm_comparison": (runs,),
        "factorial_forest": (effects,),
        "jerk_curves": (runs.merge(moments, how="cross"), 0.9),
        "measure_distributions": (units,),
        "quality_forest": (quality.summarise(units, config),),
        "end_effector_paths": (paths, figures.shared_start_state(paths)),
        "speed_profiles": (profiles,),
        "action_variance_over_phase": (profiles,),
        "learning_curves": (curves,),
        "success_forest": (rates,),
        "success_heatmap": (rates,),
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


def test_jerk_curves_fill_the_points_of_good_policies_alone(drawn):
    panels = drawn["jerk_curves"].axes
    filled = [
        tuple(colour) != (1, 1, 1, 1)
        for axes in panels
        for points in axes.collections
        for colour in points.get_facecolors()
    ]
    assert filled == [False, True] * (len(filled) // 2)
    runs = [len(axes.collections) for axes in panels]
    assert runs == [6, 0, 0, 6] * 2  # both policies, three seeds, of the cells that were run


def test_a_factorial_s_forest_has_its_first_effect_on_top_and_a_mark_for_each_task(drawn):
    panel = drawn["factorial_forest"].axes[0]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == ["policy × noise × hand-over", "diffusion − gaussian"]
    marks = [
        (line.get_marker(), *line.get_xydata()[0]) for line in panel.lines if len(line.get_xydata())
    ]
    for height in (0, 1):
        assert (".", 0.8, height) in marks  # of the first task
        assert ("o", 0.5, height) in marks


def test_nothing_is_cut_off_at_the_figures_edge(drawn):
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        page = figure.bbox.padded(2)
        parts = [*(a for a in figure.axes if a.get_visible()), *figure.texts, *figure.legends]
        for box in (part.get_tightbbox() for part in parts):
            assert page.x0 <= box.x0, name
            assert page.y0 <= box.y0, name
            assert np.all(box.max <= page.max), name


def test_fifteen_tasks_with_their_clones_fit_on_a_page_and_nothing_is_cut_off():
    rates = pd.DataFrame(
        [(f"libero_object/{i}", *arm, 49 + i % 2, 50) for i in range(15) for arm in ARMS],
        columns=["suite", "source", "mode", "successes", "trials"],
    )
    figure = figures.success_forest(rates, before=rates.assign(successes=20))
    figure.draw_without_rendering()
    assert np.all(figure.get_size_inches() <= (7.2, 9.5))
    page = figure.bbox.padded(2)
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert page.x0 <= box.x0
        assert np.all(box.max <= page.max)
    written = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert written == {"40 → 98 %", "40 → 100 %"}


def test_learning_curves_of_fifteen_tasks_fit_on_a_page(tables):
    (curves,) = tables["learning_curves"]
    many = pd.concat([curves.assign(task=f"libero_object/{k}") for k in range(15)])
    assert figures.learning_curves(many).get_size_inches()[1] <= 9.5


def test_each_seed_behind_a_mean_curve_is_a_thin_line_in_its_own_panel(tables):
    (curves,) = tables["learning_curves"]
    each, _ = tables["jerk_curves"]
    each = each.assign(task=curves["task"].iloc[0])
    figure = figures.learning_curves(curves, runs=each)
    thin = [[line for line in axes.lines if line.get_lw() < 1] for axes in figure.axes]
    assert [len(lines) for lines in thin] == [6, *[0] * (len(thin) - 1)]  # two policies, 3 seeds
    assert {figures.COLOURS[s] for s in ("diffusion", "gaussian")} == {
        line.get_color() for line in thin[0]
    }
    [legend] = figure.legends
    assert len(legend.get_texts()) == len(ARMS)


def test_the_marks_of_runs_have_the_colour_of_their_policy(tables, drawn):
    (runs,) = tables["arm_comparison"]
    rows = list(dict.fromkeys(runs["arm"]))[::-1]  # from below
    for axes in drawn["arm_comparison"].axes:
        for line in axes.get_lines():
            if line.get_label().startswith("_") and len(line.get_ydata()):
                source = rows[round(line.get_ydata()[0])].split()[0]
                assert same_color(line.get_color(), figures.COLOURS[source])


def test_arms_of_one_policy_are_named_by_what_they_change_and_shares_stay_below_one(tables):
    (runs,) = tables["arm_comparison"]

    def names(figure):
        return [text.get_text() for text in figure.axes[0].get_yticklabels()][::-1]

    rates = runs.assign(success=np.where(runs["seed"] == 1, 0.2, 1.0))  # an interval beyond 0 and 1
    figure = figures.arm_comparison(rates[rates["algorithm"] == "gaussian"])
    assert names(figure) == ["base", "white fade"]
    assert names(figures.arm_comparison(rates)) == list(dict.fromkeys(runs["arm"]))
    ends = [bar.get_segments() for bar in figure.axes[0].collections]
    assert len(ends) == 2
    assert np.min(ends) == 0
    assert np.max(ends) == pytest.approx(1)


def test_published_rates_stand_beside_their_own_mode_and_each_training_seed_is_a_dot():
    columns = ["suite", "source", "mode", "successes", "trials"]
    arms = [("diffusion", "deterministic"), ("diffusion", "stochastic")]
    rates = pd.DataFrame([("a", *arm, 80, 100) for arm in arms], columns=columns)
    seeds = pd.concat(
        [rates.assign(successes=35, trials=50), rates.assign(successes=45, trials=50)]
    )
    paper = scores.paper(rates)
    assert paper[["source", "mode", "value"]].values.tolist() == [
        ["diffusion", "deterministic", 0.819]
    ]
    figure = figures.success_forest(rates, paper, seeds=seeds)
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key == ["published", "one training seed"]
    assert not figures.success_forest(rates).legends
    [axes] = figure.axes
    drawn = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "."]
    assert sorted(drawn) == [70, 70, 90, 90]
    bars = [line.get_xdata()[0] for line in axes.lines if line.get_color() == "black"]
    assert bars == pytest.approx([81.9])


def test_a_heat_map_names_what_tells_a_task_from_the_others_of_its_suite():
    tasks = ["libero_object/0", "libero_object/5", "libero_goal/7"]
    assert figures.task_names(tasks) == [
        "libero_object/0 alphabet soup",
        "libero_object/5 tomato sauce",
        "libero_goal/7",
    ]


def test_the_legend_of_learning_curves_names_an_arm_that_the_first_panel_lacks(tables):
    (curves,) = tables["learning_curves"]
    first = curves["task"].eq(curves["task"].iloc[0])
    figure = figures.learning_curves(curves[~(first & curves["source"].eq("gaussian"))])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [figures.arm_label(*arm) for arm in ARMS]


def test_no_panel_of_distributions_cuts_off_what_another_holds(tables):
    (units,) = tables["measure_distributions"]
    for measure, factor in (("jerk_rms", 3.0), ("ldlj", 2.0)):  # above and below zero
        rows = units[units["measure"] == measure].copy()
        rows.loc[rows["task"] == "libero_object/1", "value"] *= factor
        figure = figures.measure_distributions(rows, measure)
        many = pd.concat([rows.assign(task=f"libero_object/{k}") for k in range(15)])
        assert figures.measure_distributions(many, measure).get_size_inches()[1] <= 9.5
        limits = {axes.get_xlim() for axes in figure.axes if axes.get_visible()}
        ((low, high),) = limits
        assert low <= rows["value"].min() < rows["value"].max() <= high


def test_a_source_has_one_colour_in_every_figure(drawn):
    named = ("learning_curves", "speed_profiles", "action_variance_over_phase", "scaling_curve")
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
    assert figures.arm_label("diffusion:10", "deterministic") == "Diffusion RL (10), deterministic"
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


def test_an_error_bar_is_drawn_where_rounding_put_the_mean_of_a_constant_outside():
    bar = figures.error_bar([59.0, 1.0], [59.000000000000007, 0.5], [59.000000000000007, np.nan])
    np.testing.assert_allclose(bar, [[0, 0.5], [7.1e-15, np.nan]], atol=1e-15)
    summary = pd.DataFrame(
        [("diffusion", "deterministic", "all", "steps", 59.0, 59.000000000000007, 59.1, 9)],
        columns=["source", "mode", "task", "measure", "value", "low", "high", "n"],
    )
    assert figures.quality_forest(summary).axes


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
