"""Times this project and its peers side by side on the machine at hand. Run by `make bench` and `make bench-quick`.

Each row's contenders run in turns, each time in a process of its own, and what is reported is the median of their figures,
their spread, and how many times better ours is than each peer's. The table goes to standard output and bench.md, all numbers to bench.json,
the ratios to bench.svg. Where --against names the JSON of an earlier run, ratios that fell by more than a tenth are told.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import pictures
import plot
import rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
LATEST = pathlib.Path(__file__).parent / "results.json"
FALLEN = 0.9


def timed(row, repeats):
    """The rates of each contender, taken in turns."""
    rates = {name: [] for name in row.contenders}
    for turn in range(repeats):
        for name, run in row.contenders.items():
            began = time.time()
            rates[name].append(run())
            print(f"  {turn + 1}/{repeats} {name}: {row.shown(rates[name][-1])} ({time.time() - began:.0f} s)", file=sys.stderr)
    return rates


def judged(row, rates):
    """What is kept of a row."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peers = [name for name in rates if name not in row.ours]

    def better(ours, peer):
        return medians[peer] / medians[ours] if row.lower else medians[ours] / medians[peer]
    return {
        "title": row.title,
        "unit": row.unit,
        "rates": rates,
        "medians": medians,
        "lower": row.lower,
        "ours": row.ours,
        "ratios": {f"{ours} / {peer}": better(ours, peer) for ours in row.ours for peer in peers},
        "goals": row.goals,
        "bound": row.bound and {"what": row.bound[0], "rate": row.bound[1]()},
    }


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(results):
    lines = ["| what | who | median | least to most | how many times better is |", "|---|---|---|---|---|"]
    for kept in results["rows"].values():
        what = f"{kept['title']}, {kept['unit']}" + (" (less is better)" if kept["lower"] else "")
        for name, values in kept["rates"].items():
            pairs = {pair.split(" / ")[0]: ratio for pair, ratio in kept["ratios"].items() if pair.endswith(f" / {name}")}
            beside = "; ".join(f"{ours}: {ratio:.2f}x{aim(kept, ours, name)}" for ours, ratio in pairs.items())
            spread = f"{min(values):.4g} to {max(values):.4g}"
            lines.append(f"| {what} | {name} | {kept['medians'][name]:.4g} | {spread} | {beside} |")
            what = ""
        if kept["bound"]:
            bound = kept["bound"]["rate"]
            reached = "; ".join(f"{ours}: {kept['medians'][ours] / bound:.0%} of it" for ours in kept["ours"])
            lines.append(f"|  | bound: {kept['bound']['what']} | {bound:.4g} |  | {reached} |")
    return "\n".join(lines) + "\n"


def aim(kept, ours, peer):
    """What is aimed at, where it has not been reached."""
    pair = f"{ours} / {peer}"
    goal = kept["goals"].get(pair)
    return f" (aim {goal:g}x)" if goal and kept["ratios"][pair] < goal else ""


def fallen(results, before):
    """Pairs whose ratio is under FALLEN of what it was, as lines."""
    for key, kept in results["rows"].items():
        for pair, ratio in kept["ratios"].items():
            was = before.get("rows", {}).get(key, {}).get("ratios", {}).get(pair)
            if was and ratio < FALLEN * was:
                yield f"{kept['title']}: {pair} fell from {was:.2f} to {ratio:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats, in under five minutes")
    parser.add_argument("--only", nargs="*", help="these rows alone: " + ", ".join(rows.ALL))
    parser.add_argument("--repeats", type=int, help="turns (5, quick: 3)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench")
    parser.add_argument("--against", type=pathlib.Path, default=LATEST)
    args = parser.parse_args()
    repeats = args.repeats or (3 if args.quick else 5)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures.make(args.out / "pictures", 240)
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "repeats": repeats}
    results = {"machine": machine, "rows": {}}
    chosen = args.only or [key for key, make in rows.ALL.items() if not args.quick or make in rows.QUICK]
    with tempfile.TemporaryDirectory() as scratch:
        for key in chosen:
            row = rows.ALL[key](ROOT, args.out / "pictures", pathlib.Path(scratch), args.quick)
            print(f"{row.title}:", file=sys.stderr)
            results["rows"][key] = judged(row, timed(row, repeats))
    text = table(results)
    print("\n" + text)
    (args.out / "bench.md").write_text(text)
    (args.out / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    plot.draw(results, args.out / "bench.svg")
    if args.against.exists():
        for line in fallen(results, json.loads(args.against.read_text())):
            print(f"bench: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
