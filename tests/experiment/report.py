"""Reads what the programs report, and makes the table and the plot of the experiment."""

import json
import os
import statistics
from html import escape

# What is reported: key of a student's scores, heading of the table, heading of the plot.
SCORES = [
    ("single_top1", "one object", "top-1 on pictures of one object, %"),
    ("several_any", "several, any of them", "pictures of several: an object that is there, %"),
    ("several_top1", "several, the folder's", "pictures of several: the folder's object, %"),
]


def epochs(run):
    """The epochs that `metrics.jsonl` of a run holds."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    # A line that is being written has no end yet.
    points = [json.loads(line) for line in lines if line.endswith("}")]
    return [point for point in points if point["kind"] == "epoch"]


def parse_eval(text):
    """The one set of `worker eval --json`."""
    (found,) = json.loads(text)["sets"]
    return found


def machine():
    """Cores and processor of this machine."""
    name = "an unknown processor"
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    name = line.split(":", 1)[1].strip()
                    break
    except OSError:
        pass
    return {"cores": os.cpu_count(), "processor": name}


def summarize(methods, seeds, outcomes):
    """For each method and score: values by seed, mean, sample standard deviation, and the mean of the differences
    from the first method of the same seed with the standard error of that mean."""
    by_run = {(outcome["method"], outcome["seed"]): outcome for outcome in outcomes}
    first = methods[0][0]
    summary = []
    for name, title, options in methods:
        scores = {}
        for key, _, _ in SCORES:
            values = [by_run[name, seed][key] for seed in seeds]
            apart = [by_run[name, seed][key] - by_run[first, seed][key] for seed in seeds]
            scores[key] = {
                "values": values,
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values),
                "difference": statistics.fmean(apart),
                "difference_error": statistics.stdev(apart) / len(apart) ** 0.5,
            }
        summary.append({"name": name, "title": title, "options": options, "scores": scores})
    return summary


def table(results):
    """Markdown."""
    methods = results["methods"]
    seeds = len(methods[0]["scores"][SCORES[0][0]]["values"])
    lines = [
        "| targets | " + " | ".join(f"{heading} | difference" for _, heading, _ in SCORES) + " |",
        "|---|" + "---|---|" * len(SCORES),
    ]
    for index, method in enumerate(methods):
        row = [method["title"]]
        for key, _, _ in SCORES:
            score = method["scores"][key]
            row.append(f"{score['mean']:.1f} ± {score['deviation']:.1f}")
            row.append(f"{score['difference']:+.1f} ± {score['difference_error']:.1f}" if index else "")
        lines.append("| " + " | ".join(row) + " |")
    made, machine = results["label_maps"], results["machine"]
    annotator, cpu = made["test"], sum(results["cpu_seconds"].values())
    lines += [
        "",
        f"Percent of {results['sizes']['test']} test pictures each, mean ± standard deviation of {seeds} seeds; "
        "differences from the baseline seed by seed, ± standard error of their mean. "
        f"Annotator: {annotator['single_top1']:.1f}% of the test pictures of one object; it names an object "
        f"of {annotator['several_any']:.1f}% of those of several. Its maps of {made['side']}x{made['side']} cells "
        f"name the object in {100 * made['object_cells_right']:.1f}% of the cells that lie on one; the largest part "
        f"of a whole picture's target is {made['whole_largest']:.2f} on average. "
        f"{cpu:.0f} CPU seconds, {cpu / 120:.0f} minutes on two quiet cores; this time it took "
        f"{results['seconds'] / 60:.0f} minutes on {machine['cores']} cores ({machine['processor']}).",
    ]
    return "\n".join(lines) + "\n"


def resize_table(results):
    """Markdown: for each method its scores with exact pixels and with the default's, and the difference."""
    headings = [f"{heading}: exact | default | difference" for _, heading, _ in SCORES]
    lines = ["| targets | " + " | ".join(headings) + " |", "|---|" + "---|---|---|" * len(SCORES)]
    for exact, default in results["methods"]:
        row = [default["title"]]
        for key, _, _ in SCORES:
            score = default["scores"][key]
            row += [f"{exact['scores'][key]['mean']:.1f}", f"{score['mean']:.1f}"]
            row.append(f"{score['difference']:+.1f} ± {score['difference_error']:.1f}")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", f"Means of {len(results['seeds'])} seeds; differences seed by seed, ± standard error of their mean."]
    return "\n".join(lines) + "\n"


def why_table(named, seeds, results):
    """Markdown: for each student of the study its maps' quality and its scores, means over the seeds."""
    headings = ["label maps", "cells", "right on objects", "sharpness", *(heading for _, heading, _ in SCORES)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for name, title in named:
        row = [title, "", "", ""]
        if name in results["label_maps"]:
            found = results["label_maps"][name]
            right = 100 * found["object_cells_right"]
            row = [title, f"{found['side']}x{found['side']}", f"{right:.0f}%", f"{found['whole_largest']:.2f}"]
        row += means(name, results["students"])
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", f"Seeds: {', '.join(str(seed) for seed in seeds)}; {results['cpu_seconds']:.0f} CPU seconds."]
    return "\n".join(lines) + "\n"


def scores_table(named, students):
    """Markdown: for each method its scores, means over its seeds."""
    headings = ["method", *(heading for _, heading, _ in SCORES)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join([title, *means(name, students)]) + " |" for name, title in named]
    return "\n".join(lines) + "\n"


def means(name, students):
    """The scores of the students of this name, as text."""
    scores = [student for student in students if student["method"] == name]
    return [f"{statistics.fmean(s[key] for s in scores):.1f}" for key, _, _ in SCORES]


def plot(results):
    """SVG: for each score a panel, for each method its seeds as dots, their mean and its standard deviation."""
    methods = results["methods"]
    labels, panel, row, top = 230, 250, 34, 48
    width, height = labels + panel * len(SCORES), top + row * len(methods) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    bottom = top + row * len(methods)
    for index, method in enumerate(methods):
        y = top + row * (index + 0.5)
        out.append(f'<text x="{labels - 14}" y="{y + 4}" text-anchor="end">{escape(method["title"])}</text>')
    for place, (key, _, heading) in enumerate(SCORES):
        scores = [method["scores"][key] for method in methods]
        ends = [v for s in scores for v in s["values"] + [s["mean"] - s["deviation"], s["mean"] + s["deviation"]]]
        step = next(s for s in (1, 2, 5, 10, 20, 50) if (max(ends) - min(ends)) / s <= 6)
        low, high = step * (min(ends) // step), step * (max(ends) // step + 1)
        left = labels + panel * place
        inner = panel - 30

        def x(value):
            return left + inner * (value - low) / (high - low)

        middle = f'x="{left + inner / 2}" y="{top - 26}" text-anchor="middle" font-size="10"'
        out.append(f"<text {middle}>{escape(heading)}</text>")
        for tick in range(int((high - low) / step) + 1):
            value = low + tick * step
            out.append(f'<path d="M{x(value):.1f} {top - 8}V{bottom}" stroke="#ddd"/>')
            out.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{value:g}</text>')
        base = x(scores[0]["mean"])
        out.append(f'<path d="M{base:.1f} {top - 8}V{bottom}" stroke="#888" stroke-dasharray="4 3"/>')
        for index, score in enumerate(scores):
            y = top + row * (index + 0.5)
            color = "#555" if index == 0 else "#1565c0"
            mean, spread = score["mean"], score["deviation"]
            span = f"M{x(mean - spread):.1f} {y}H{x(mean + spread):.1f}"
            out.append(f'<path d="{span}" stroke="{color}" stroke-width="2"/>')
            out.append(f'<path d="M{x(mean):.1f} {y - 8}v16" stroke="{color}" stroke-width="3"/>')
            for value in score["values"]:
                out.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="3.5" fill="{color}" fill-opacity="0.45"/>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
