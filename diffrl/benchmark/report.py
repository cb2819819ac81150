"""The record of a benchmark as a table and as figures."""

import pandas as pd

from diffrl.benchmark.common import EPISODE
from diffrl.figures import save_figure, throughput_bars
from diffrl.presets import ALGORITHMS


def report(record: dict) -> str:
    """Return the record as a table for people."""
    lines = []
    for suite, row in record.get("suites", {}).items():
        ratio = f"{row['ours_1'] / row['libero']:.1f} × LIBERO, "
        ratio += f"{100 * row['ours_1'] / row['physics']:.0f} % of bare physics a core"
        rates = f"LIBERO {row['libero']:6.0f}   physics {row['physics']:6.0f}   ours "
        rates += f"{row['ours_1']:6.0f}, {row['threads']} threads {row['ours_n']:6.0f}"
        lines.append(f"{suite:<15} {rates} control steps/s ({ratio})")
    if "reset_ms" in record:
        reset, start = record["reset_ms"], record["start_s"]
        lines.append(
            f"reset           LIBERO {reset['libero']:.0f} ms, ours {reset['ours']:.1f} ms"
        )
        times = f"LIBERO {start['libero']:.1f} s, ours first {start['first']:.1f} s"
        lines.append(f"start           {times}, cached {start['cached']:.2f} s")
    if "camera_fps" in record:
        fps = record["camera_fps"]
        rates = f"exact {fps['exact']:.0f}, reduced {fps['reduced']:.0f} frames/s at {fps['size']}²"
        quality = f"{fps['psnr_db']:.1f} dB, {fps['states']} states; {fps['renderer']}"
        lines.append(f"camera          {rates} ({quality})")
    if "data" in record:
        rates = record["data"]
        written = f"{rates['writing'] / rates['simulating']:.0f} × as fast as they are simulated"
        share = f"{rates['export'] / rates['camera']:.0%} of the camera's {rates['camera']:.0f}"
        lines.append(f"data            control steps written {written}")
        lines.append(f"export          {rates['export']:.0f} images/s, {share}")
    if "quality" in record:
        part = record["quality"]
        rate = f"{part['rate']:.0f} trajectories/s of {part['steps']} steps, all measures of one"
        lines.append(f"quality         {rate}")
    for algorithm in ALGORITHMS if "training" in record else ():
        rates = record["training"][algorithm]
        share = (
            f"{rates['training'] / rates['bare']:.0%} of the bare simulator's {rates['bare']:.0f}"
        )
        lines.append(
            f"training        {algorithm} {rates['training']:.0f} control steps/s, {share}"
        )
    for task, rates in record.get("training_physics", {}).items():
        ratio = f"{rates['training'] / rates['exact']:.1f} × exact physics' {rates['exact']:.0f}"
        lines.append(
            f"{task:<15} training physics {rates['training']:.0f} control steps/s, {ratio}"
        )
    for name in sorted(key for key in record if key.startswith("minutes_to_")):
        for task, minutes in record[name].items():
            said = "not reached" if minutes is None else f"{minutes:.1f} min"
            lines.append(f"{task:<15} {name.replace('_', ' ')} %: {said}")
    if "vla" in record:
        part = record["vla"]
        steps = ", ".join(f"{name} {1000 * taken:.0f} ms" for name, taken in part["step_s"].items())
        pictures = f"{part['encoding']:.0f} pictures/s of {part['size']}² encoded"
        lines.append(f"VLA             a step: {steps} ({part['precision']}); {pictures}")
    if "evaluation" in record:
        rates = record["evaluation"]
        ours = (
            f"{detail} pictures {rates[detail]:.0f} ({rates[detail] / rates['libero']:.1f} ×)"
            for detail in ("exact", "reduced")
        )
        lines.append(
            f"evaluation      LIBERO {rates['libero']:.1f} control steps/s, {', '.join(ours)}"
        )
    return "\n".join(lines) + "\n"


def save_figures(record: dict) -> None:
    """Draw what the record holds into figures/benchmark/."""
    suites, machine = record.get("suites", {}), record["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores"
    labels = {"libero": "LIBERO", "physics": "bare physics", "ours_1": "ours, 1 thread"}
    rows = []
    for suite, row in suites.items():
        more = (
            {}
            if row["threads"] == 1
            else {f"ours_{row['threads']}": f"ours, {row['threads']} threads"}
        )
        for arm, label in (labels | more).items():
            low, high = row[f"{arm}_range"]
            rows.append(
                {"suite": suite, "kind": label, "value": row[arm], "low": low, "high": high}
            )
    if rows:
        data = pd.DataFrame(rows)
        caption = (
            f"Control steps a second on {where}: medians over "
            f"{next(iter(suites.values()))['rounds']} interleaved rounds, lines from the "
            f"slowest to the fastest round; episodes of {EPISODE} steps, one task a suite."
        )
        save_figure(throughput_bars(data), "benchmark", "simulator", data, caption)
    if "camera_fps" in record:
        fps = record["camera_fps"]
        data = pd.DataFrame(
            {"suite": task.removeprefix("libero_"), "kind": detail, "value": row[detail]}
            for task, row in fps["tasks"].items()
            for detail in ("exact", "reduced")
        )
        caption = (
            f"Images a second at {fps['size']}², both cameras, on {fps['renderer']} ({where}); "
            f"the reduced ones lie {fps['psnr_db']} dB (mean PSNR, n = {fps['states']} states) "
            "from the exact ones."
        )
        figure = throughput_bars(data, "images / s")
        save_figure(figure, "benchmark", "camera", data, caption)
