"""Evidence: a run is packed into few files and comes back byte by byte, or names the fault."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffrl import evidence, gallery, presets
from diffrl.__main__ import main
from diffrl.base import artifacts, bundles
from diffrl.base.artifacts import Stage
from diffrl.base.errors import UserError
from diffrl.presets import get_preset

LAPTOP = Path(__file__).parents[1] / "results" / "laptop"


def small_run(folder: Path, weights: torch.Tensor) -> Path:
    """A run of one expert and one data set, as the stages write it."""
    expert = folder / "experts" / "libero_object-0" / "diffusion-seed0"
    expert.mkdir(parents=True)
    save_file({"layer.weight": weights}, expert / "policy.safetensors")
    trials = pd.DataFrame({"start_state": ["official/0", "a,b"], "success": [True, False]})
    artifacts.write_csv(expert / "trials.csv", trials)
    artifacts.write_json(expert / "config.json", {"seed": 0})
    Stage(expert, "expert", {"seed": 0}).finish({"rows": [{"minutes": 1.5}]}, seed=0)
    data = folder / "datasets" / "diffusion-deterministic" / "libero_object"
    artifacts.write_csv(data / "soup_demo.attempts.csv", trials.iloc[:0])
    (data / "soup_demo.hdf5").write_bytes(b"large")
    Stage(data, "soup_demo", {"episodes": 2}, [data / "soup_demo.hdf5"]).finish(
        {"rows": []}, outputs=[data / "soup_demo.hdf5"]
    )
    artifacts.write_csv(folder / "experts.csv", pd.DataFrame({"success": [0.5, float("nan")]}))
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "01.done.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path):
    return small_run(tmp_path / "runs" / "small", torch.tensor([0.5, 0.25]))


def test_what_is_unpacked_has_the_bytes_of_what_was_packed(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    evidence.unpack(tmp_path / "results", tmp_path / "again")
    tables = list(run.rglob("*.csv"))
    assert len(tables) == 3
    for path in tables:
        assert (tmp_path / "again" / path.relative_to(run)).read_bytes() == path.read_bytes()
    expert = "experts/libero_object-0/diffusion-seed0"
    again = artifacts.read_json(tmp_path / "again" / expert / "expert.done.json")
    assert again.pop(artifacts.UNPACKED) is True
    assert again == artifacts.read_json(run / expert / "expert.done.json")
    assert not list((tmp_path / "again").rglob("*.hdf5"))
    assert not (tmp_path / "again" / "notebooks").exists()


def test_the_same_run_is_packed_into_the_same_bytes(run, tmp_path):
    for name in ("first", "second"):
        evidence.pack(run, tmp_path / name)
    files = sorted((tmp_path / "first").rglob("*.*"))
    assert len(files) == 4  # experts.csv, runs.csv, records.zip and a suite's weights
    for path in files:
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("value", "kept"), [(0.25, torch.float16), (0.1, torch.float32)])
def test_weights_are_kept_as_float16_where_that_loses_nothing(tmp_path, value, kept):
    run = small_run(tmp_path / "runs", torch.tensor([value, 1.0]))
    evidence.pack(run, tmp_path / "results")
    (packed,) = load_file(tmp_path / "results/weights/libero_object.safetensors").values()
    assert packed.dtype == kept
    evidence.unpack(tmp_path / "results", tmp_path / "again")
    place = "experts/libero_object-0/diffusion-seed0/policy.safetensors"
    again = load_file(tmp_path / "again" / place)["layer.weight"]
    assert torch.equal(again, torch.tensor([value, 1.0]))


def test_who_may_read_a_runs_records_may_read_its_weights(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    evidence.unpack(tmp_path / "results", tmp_path / "again")
    for folder in (tmp_path / "results", tmp_path / "again"):
        (weights,) = folder.glob("**/*.safetensors")
        (table,) = folder.glob("experts.csv")
        assert weights.stat().st_mode == table.stat().st_mode


def test_first_seeds_and_first_tasks_keep_their_weights_where_room_is_short(
    tmp_path, monkeypatch, capsys
):
    run = tmp_path / "runs"
    small_run(run, torch.tensor([0.5, 1.0]))
    for task in ("libero_goal-10", "libero_goal-2", "libero_object-2"):
        for expert in ("gaussian-seed0", "diffusion-seed0", "diffusion-seed1"):
            path = run / "experts" / task / expert / "policy.safetensors"
            path.parent.mkdir(parents=True)
            save_file({"layer.weight": torch.tensor([0.5, 1.0])}, path)
    monkeypatch.setattr(evidence, "MOST_WEIGHTS", 5 * 4)  # two float16 numbers each
    evidence.pack(run, tmp_path / "results")
    assert "5 of 10 experts' weights" in capsys.readouterr().out
    kept = [
        name.removesuffix("/layer.weight")
        for path in sorted((tmp_path / "results" / "weights").iterdir())
        for name in load_file(path)
    ]
    assert sorted(kept) == [
        "libero_goal-2/diffusion-seed0",
        "libero_goal-2/gaussian-seed0",
        "libero_object-0/diffusion-seed0",
        "libero_object-2/diffusion-seed0",
        "libero_object-2/gaussian-seed0",
    ]


def test_a_restored_stage_is_done_without_its_data_set_but_not_with_other_settings(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    evidence.unpack(tmp_path / "results", tmp_path / "again")
    data = tmp_path / "again/datasets/diffusion-deterministic/libero_object"
    missing = [data / "soup_demo.hdf5"]
    assert Stage(data, "soup_demo", {"episodes": 2}, missing).done
    assert not Stage(data, "soup_demo", {"episodes": 3}, missing).done


def test_a_run_packed_before_its_end_goes_on_and_a_finished_one_does_not(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    results, again = artifacts.results_dir("libero"), artifacts.run_folder("libero")
    expert = again / "experts/libero_object-0/diffusion-seed0"
    data = again / "datasets/diffusion-deterministic/libero_object"
    weights = [run / "experts/libero_object-0/diffusion-seed0/policy.safetensors"]
    Stage(run, "quality", {"k": 1}, weights).finish(outputs=[run / "experts.csv"])
    evidence.pack(run, results)
    assert evidence.restore("libero")
    assert not artifacts.restored("libero")  # or its tables would stand for the whole run's
    assert Stage(expert, "expert", {"seed": 0}).done
    missing = [data / "soup_demo.hdf5"]
    assert not (data / "soup_demo.done.json").exists()
    quality = {"folder": again, "name": "quality", "config": {"k": 1}}
    assert Stage(**quality, inputs=[expert / "policy.safetensors"]).done
    assert not Stage(**quality, inputs=[expert / "trials.csv"]).done  # of other data
    data.joinpath("soup_demo.hdf5").write_bytes(b"large")  # as the stage makes it again
    assert not Stage(data, "soup_demo", {"episodes": 2}, missing).done
    shutil.rmtree(again)
    artifacts.write_csv(run / evidence.LAST_TABLE, pd.DataFrame({"trials": [9]}))
    evidence.pack(run, results)
    assert evidence.restore("libero")
    assert artifacts.restored("libero")
    assert Stage(data, "soup_demo", {"episodes": 2}, missing).done


def test_an_expert_whose_weights_git_does_not_keep_is_trained_again(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setattr(evidence, "MOST_WEIGHTS", 0)
    evidence.pack(run, artifacts.results_dir("libero"))
    assert evidence.restore("libero")
    expert = artifacts.run_folder("libero") / "experts/libero_object-0/diffusion-seed0"
    assert (expert / "trials.csv").is_file()
    assert not Stage(expert, "expert", {"seed": 0}).done


def test_an_expert_that_makes_no_data_is_found_without_its_weights(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    first = run / "experts/libero_object-0/diffusion-seed0"
    shutil.copytree(first, first.with_name("diffusion-seed1"))
    settings = {"rl.seeds": (0, 1), "generation.experts": 1}
    preset = get_preset("smoke").with_settings(settings)
    monkeypatch.setitem(presets.PRESETS, "smoke", preset)
    evidence.pack(run, artifacts.results_dir("smoke"), preset)
    assert evidence.restore("smoke")
    here = artifacts.run_folder("smoke") / "experts/libero_object-0"
    for seed, kept in ((0, True), (1, False)):
        expert = here / f"diffusion-seed{seed}"
        assert (expert / "policy.safetensors").is_file() == kept
        assert Stage(expert, "expert", {"seed": 0}).done
    every = preset.with_settings({"generation.experts": None})
    evidence.pack(run, artifacts.results_dir("smoke"), every)
    (packed,) = (artifacts.results_dir("smoke") / "weights").iterdir()
    kept = {name.split("/")[1] for name in load_file(packed)}
    assert kept == {"diffusion-seed0", "diffusion-seed1"}


def test_a_run_whose_last_table_has_an_arm_without_trials_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    artifacts.write_csv(run / evidence.LAST_TABLE, pd.DataFrame({"trials": [9, 0]}))
    evidence.pack(run, artifacts.results_dir("libero"))
    assert evidence.restore("libero")
    assert not artifacts.restored("libero")
    artifacts.write_csv(run / evidence.LAST_TABLE, pd.DataFrame({"trials": [9, 9]}))
    artifacts.write_csv(run / evidence.SEED_TABLE, pd.DataFrame({"trials": [9, 0]}))
    evidence.pack(run, artifacts.results_dir("smoke"))
    assert evidence.restore("smoke")  # a training seed is missing
    assert not artifacts.restored("smoke")


def test_of_processes_that_begin_at_once_one_restores(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    evidence.pack(run, artifacts.results_dir("libero"))
    unpack = evidence.unpack

    def slowly(*args, **options):
        time.sleep(0.5)
        unpack(*args, **options)

    monkeypatch.setattr(evidence, "unpack", slowly)
    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(evidence.restore, ["libero"] * 3)) == [False, False, True]
    assert (artifacts.run_folder("libero") / "experts.csv").is_file()


def test_a_command_finds_what_git_keeps_of_an_unfinished_run(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    evidence.pack(run, artifacts.results_dir("libero"))
    assert main(["status", "--preset", "libero"]) == 0
    assert "The run of preset libero goes on from" in capsys.readouterr().out
    assert (artifacts.run_folder("libero") / "experts.csv").is_file()
    assert main(["status", "--preset", "libero"]) == 0
    assert "goes on" not in capsys.readouterr().out
    artifacts.write_csv(run / evidence.LAST_TABLE, pd.DataFrame({"trials": [9]}))
    evidence.pack(run, artifacts.results_dir("smoke"))
    assert main(["status", "--preset", "smoke"]) == 0  # a finished one stays packed
    assert not (artifacts.run_folder("smoke") / "experts.csv").exists()


def test_evidence_is_never_replaced_by_a_part_of_it(run, tmp_path):
    results = tmp_path / "results"
    artifacts.write_csv(run / "vla_trials.csv", pd.DataFrame({"a": ["x" * 2**20]}))  # in the zip
    evidence.pack(run, results)
    before = {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()}
    shutil.rmtree(run / "experts")
    (run / "vla_trials.csv").unlink()
    lost = "lacks: experts/libero_object-0/diffusion-seed0, vla_trials.csv. Move the run away"
    with pytest.raises(UserError, match=lost):
        evidence.pack(run, results)
    assert {p.name: p.read_bytes() for p in results.iterdir() if p.is_file()} == before


def test_tables_without_a_bundle_are_not_replaced_by_a_part_of_them_either(run, tmp_path):
    results = tmp_path / "results"  # as git keeps those of preset pixels
    artifacts.write_csv(results / "quality.csv", pd.DataFrame({"a": [1]}))
    with pytest.raises(UserError, match=r"lacks: quality\.csv"):
        evidence.pack(run, results)
    assert [path.name for path in results.iterdir()] == ["quality.csv"]


def test_what_is_at_work_stays_and_takes_from_git_what_it_lacks(run, tmp_path, monkeypatch):
    """Another run of the preset was begun here before anything was restored."""
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    second = run / "experts/libero_object-1/diffusion-seed0"
    shutil.copytree(run / "experts/libero_object-0/diffusion-seed0", second)
    evidence.pack(run, artifacts.results_dir("libero"))
    here = artifacts.run_folder("libero")
    begun = here / "experts/libero_object-0/diffusion-seed0/checkpoint/rl.safetensors"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"hours of work")
    (here / second.relative_to(run) / "checkpoint").mkdir(parents=True)  # empty: nothing begun
    (here / "experts.csv").write_text("own\n")
    (here / "dry_run.csv").write_text("own\n")
    assert evidence.go_on("libero")
    assert begun.read_bytes() == b"hours of work"
    assert [path.name for path in begun.parents[1].iterdir()] == ["checkpoint"]
    assert (here / "experts.csv").read_text() == "own\n"
    again = here / second.relative_to(run)
    assert {p.name for p in again.iterdir()} == {p.name for p in second.iterdir()}
    assert Stage(again, "expert", {"seed": 0}).done
    assert not evidence.go_on("libero")  # once for this evidence


def test_work_that_was_begun_is_no_empty_run_that_a_finished_one_may_replace(
    run, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    artifacts.write_csv(run / evidence.LAST_TABLE, pd.DataFrame({"trials": [9]}))
    evidence.pack(run, artifacts.results_dir("smoke"))
    here = artifacts.run_folder("smoke")
    for name in ("figures/05_success.png", "dry_run.csv", ".lock"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("kept")
    assert evidence.restore("smoke")  # nothing of these is work
    assert (here / "figures/05_success.png").read_text() == "kept"
    shutil.rmtree(here)
    (here / "experts/x/checkpoint").mkdir(parents=True)
    (here / "experts/x/checkpoint/rl.safetensors").write_bytes(b"hours of work")
    assert not evidence.restore("smoke")
    assert (here / "experts/x/checkpoint/rl.safetensors").exists()


def test_a_run_that_went_on_elsewhere_is_packed_with_what_lies_only_there(
    run, tmp_path, monkeypatch
):
    """Its VLA is not in git, nor the weights of an expert beyond the room."""
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    monkeypatch.setattr(evidence, "MOST_WEIGHTS", 0)
    model = run / "vla/operator-recorded-seed0"
    artifacts.write_csv(model / "losses.csv", pd.DataFrame({"loss": [0.5]}))
    (model / "model.safetensors").write_bytes(b"large")
    Stage(model, "vla", {"steps": 9}).finish({}, outputs=[model / "model.safetensors"], seed=0)
    results = artifacts.results_dir("libero")
    evidence.pack(run, results)
    before = (results / evidence.RUN_TABLE).read_text()
    assert evidence.go_on("libero")
    here = artifacts.run_folder("libero")
    vla, expert = here / "vla/operator-recorded-seed0", "experts/libero_object-0/diffusion-seed0"
    assert not Stage(vla, "vla", {"steps": 9}).done
    assert not Stage(here / expert, "expert", {"seed": 0}).done
    evidence.pack(here, results)
    assert (results / evidence.RUN_TABLE).read_text() == before
    Stage(vla, "vla", {"steps": 10}).finish({}, outputs=[], seed=0)  # done anew: that one counts
    evidence.pack(here, results)
    configs = json.loads(bundles.read(results / evidence.BUNDLE)[evidence.CONFIGS])
    assert [c["steps"] for c in configs.values() if "steps" in c] == [10]


def test_a_marker_of_thousands_of_inputs_comes_back(run, tmp_path):
    inputs = {f"datasets/{i:05}_demo.hdf5": "0" * 64 for i in range(3000)}
    document = artifacts.read_json(next(run.glob("experts/*/*/expert.done.json")))
    document["key"]["inputs"] = inputs
    artifacts.write_json(run / "quality.done.json", document)
    evidence.pack(run, tmp_path / "results")
    evidence.unpack(tmp_path / "results", tmp_path / "again")
    again = artifacts.read_json(tmp_path / "again" / "quality.done.json")
    assert again["key"]["inputs"] == inputs


def test_a_stage_made_by_another_format_is_told_and_not_used(tmp_path, monkeypatch):
    Stage(tmp_path, "quality", {"k": 1}).finish()
    assert Stage(tmp_path, "quality", {"k": 1}).done
    with pytest.raises(UserError, match=r"done\.json was made by format 1 .* now 2: delete"):
        _ = Stage(tmp_path, "quality", {"k": 1}, format=2).done
    assert not Stage(tmp_path, "quality", {"k": 2}, format=2).done  # other settings: just not done
    monkeypatch.setenv(artifacts.FORCE, "1e12")
    assert not Stage(tmp_path, "quality", {"k": 1}, format=2).done
    monkeypatch.delenv(artifacts.FORCE)
    Stage(tmp_path, "quality", {"k": 1}, format=2).finish()
    assert Stage(tmp_path, "quality", {"k": 1}, format=2).done


def test_evidence_names_no_file_outside_its_run(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    bundle = tmp_path / "results" / evidence.BUNDLE
    texts = bundles.read(bundle)
    named = texts[evidence.DOCUMENT_TABLE].replace("experts/", "../../x/")
    bundles.write(bundle, {**texts, evidence.DOCUMENT_TABLE: named})
    with pytest.raises(UserError, match="lies outside the run"):
        evidence.unpack(tmp_path / "results", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path.parent / "x").exists()


def test_evidence_that_lacks_a_file_is_refused_whole(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    bundle = tmp_path / "results" / evidence.BUNDLE
    texts = bundles.read(bundle)
    bundles.write(bundle, {name: texts[name] for name in texts.keys() - {evidence.CONFIGS}})
    with pytest.raises(UserError, match=r"results is not whole .*git"):
        evidence.unpack(tmp_path / "results", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_empty_run_is_no_evidence_and_leaves_the_older_one(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no records"):
        evidence.pack(tmp_path / "empty", tmp_path / "results")
    assert (tmp_path / "results" / "experts.csv").exists()


def test_a_file_that_would_not_come_back_stops_the_packing(run, tmp_path):
    (run / "odd" / "run").mkdir(parents=True)
    (run / "odd" / "run" / "table.csv").write_text('a,b\n"1",2\n')  # quoted without need
    with pytest.raises(UserError, match=r"table\.csv cannot be packed without loss"):
        evidence.pack(run, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_kind_of_run_whose_name_would_not_come_back_is_named(run, tmp_path):
    artifacts.write_csv(run / "own_runs" / "one" / "trials.csv", pd.DataFrame({"success": [1]}))
    with pytest.raises(UserError, match=r"own_runs holds tables.*rename the folder"):
        evidence.pack(run, tmp_path / "results")


def test_records_are_restored_only_where_nothing_was_computed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path / "home"))
    evidence.pack(run, artifacts.results_dir("laptop"))
    assert evidence.restore("laptop")
    assert (artifacts.runs_dir("laptop") / "experts.csv").exists()
    assert not evidence.restore("laptop")  # now there is something
    assert not evidence.restore("smoke")  # and of this there is no evidence


def test_the_laptops_evidence_is_what_a_run_packs(laptop_run, tmp_path):
    evidence.pack(laptop_run, tmp_path / "again")
    for path in sorted(LAPTOP.rglob("*.*")):
        other = tmp_path / "again" / path.relative_to(LAPTOP)
        assert other.read_bytes() == path.read_bytes()
    index = pd.read_csv(LAPTOP / evidence.RUN_TABLE)
    tried = len(pd.read_csv(LAPTOP / "experiments.csv")) // 2  # in two modes
    assert index.groupby("kind").size().to_dict() == {
        "experiments": tried,
        "experts": 30,
        "vla": 10,
    }
    configs = json.loads(bundles.read(LAPTOP / evidence.BUNDLE)[evidence.CONFIGS])
    assert set(index["config"]) <= set(configs)


def test_a_packed_table_is_read_by_its_name(run, tmp_path):
    evidence.pack(run, tmp_path / "results")
    table = evidence.packed_table(tmp_path / "results", "experts_trials.csv")
    assert table["start_state"].tolist() == ["official/0", "a,b"]
    assert table["run"].tolist() == ["libero_object-0/diffusion-seed0/"] * 2
    with pytest.raises(UserError, match=r"records\.zip gives no other\.csv"):
        evidence.packed_table(tmp_path / "results", "other.csv")


def test_a_preset_table_above_a_mebibyte_lies_in_the_zip_and_comes_back(run, tmp_path):
    artifacts.write_csv(run / "trials.csv", pd.DataFrame({"a": range(200_000)}))
    evidence.pack(run, tmp_path / "results")
    assert not (tmp_path / "results" / "trials.csv").exists()
    evidence.unpack(tmp_path / "results", tmp_path / "again")
    assert (tmp_path / "again/trials.csv").read_bytes() == (run / "trials.csv").read_bytes()


def draw(folder: Path, name: str, caption: str) -> None:
    artifacts.write_csv(folder / f"{name}.csv", pd.DataFrame({"caption": [caption]}))
    (folder / f"{name}.txt").write_text(caption + "\n")
    (folder / f"{name}.pdf").write_bytes(b"%PDF")
    (folder / f"{name}.png").write_bytes(caption.encode())


def test_figures_are_kept_as_png_with_numbers_and_words_and_stay_if_not_drawn_again(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFRL_HOME", str(tmp_path))
    folder = artifacts.figures_dir("smoke")
    draw(folder, "01_a", "First.")
    draw(folder, "02_b", "Second.")
    kept = gallery.copy_figures("smoke")
    assert kept == tmp_path / "figures" / "smoke"
    names = ["01_a.png", "02_b.png", "README.md", "numbers.zip"]
    assert sorted(path.name for path in kept.iterdir()) == names
    for path in folder.glob("01_a.*"):
        path.unlink()
    draw(folder, "02_b", "Another.")
    gallery.copy_figures("smoke")
    assert gallery.gallery(kept) == {"01_a": "First.", "02_b": "Another."}
    texts = bundles.read(kept / bundles.NUMBERS)
    assert texts == {"01_a.csv": "caption\nFirst.\n", "02_b.csv": "caption\nAnother.\n"}
    assert "![01_a](01_a.png)" in (kept / gallery.GALLERY).read_text()
