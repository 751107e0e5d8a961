"""Draws the ratios of a benchmark: a bar each, on a logarithmic axis, with the goal as a line across it."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

TICKS = (1, 2, 5, 10, 20, 50, 100)
# Of a line, in inches.
HEIGHT = 0.21


def lines_of(results):
    """From the top: a row's title with no ratio, then its ratios with their goals. Who does only a part of it is no peer."""
    for kept in results["rows"].values():
        yield kept["title"], None, None
        for pair, ratio in kept["ratios"].items():
            ours, peer = pair.split(" / ")
            if not peer.endswith("alone"):
                which = ours.removeprefix("ours").removeprefix(", ")
                yield ", ".join(filter(None, [which, f"beside {peer}"])), ratio, kept["goals"].get(pair)


def draw(results, path):
    lines = list(lines_of(results))
    figure, axes = plt.subplots(figsize=(10, 0.9 + HEIGHT * len(lines)), layout="constrained")
    for place, (_, ratio, goal) in enumerate(lines):
        if ratio is None:
            continue
        axes.barh(place, ratio - 1, left=1, color="#2f6f9f" if ratio >= 1 else "#b5533c", height=0.7)
        axes.annotate(f"{ratio:.2f}x", (max(ratio, goal or 0), place), xytext=(5, 0), textcoords="offset points", va="center",
                      fontsize=7)
        if goal:
            axes.plot([goal, goal], [place - 0.42, place + 0.42], color="black", linewidth=1.5)
    ticks = axes.set_yticks(range(len(lines)), [label for label, *_ in lines], fontsize=7)
    for tick, (_, ratio, _) in zip(ticks, lines):
        if ratio is None:
            tick.label1.set_fontweight("bold")
            tick.tick1line.set_visible(False)
    axes.set_ylim(len(lines) - 0.4, -0.7)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{ratio}x" for ratio in TICKS], minor=False)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("our rate as a multiple of the peer's; the black line is what is aimed at")
    axes.margins(x=0.12)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
