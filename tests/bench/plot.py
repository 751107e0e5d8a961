"""Draws the ratios of a benchmark: a bar each, on a logarithmic axis, with the goal as a line across it."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def draw(results, path):
    bars = [
        (f"{kept['title']}\n{pair}", ratio, kept["goals"].get(pair))
        for kept in results["rows"].values()
        for pair, ratio in kept["ratios"].items()
    ]
    figure, axes = plt.subplots(figsize=(10, 0.8 + 0.55 * len(bars)), layout="constrained")
    for place, (label, ratio, goal) in enumerate(reversed(bars)):
        axes.barh(place, ratio - 1, left=1, color="#2f6f9f" if ratio >= 1 else "#b5533c", height=0.6)
        axes.annotate(f"{ratio:.2f}x", (ratio, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        if goal:
            axes.plot([goal, goal], [place - 0.42, place + 0.42], color="black", linewidth=1.5)
    axes.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)], fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], [f"{ratio}x" for ratio in (1, 2, 5, 10, 20, 50, 100)], minor=False)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("our rate as a multiple of the peer's; the black line is what is aimed at")
    axes.margins(x=0.12)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
