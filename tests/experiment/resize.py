"""`--resize`: does the default resize cost accuracy? The comparison's baseline and localized students once more, with
Pillow's exact pixels in training and in the test, beside those of the default; the same seeds, pictures and maps."""

import report
from comparison import Experiment
from design import METHODS, RESIZE_METHODS, RESIZE_SEEDS
from steps import write_json

EXACT = {"data.resize": "exact"}


class Resize(Experiment):
    STUDENTS = 2 * len(RESIZE_METHODS) * len(RESIZE_SEEDS)

    def run(self):
        data, _, label_maps = self.prepare()
        # Each method with exact pixels, and as it is, which for the comparison's seeds may be done already.
        pairs = [
            [(f"{name}-exact", f"{title}, exact", options | EXACT), (name, title, options)]
            for name, title, options in METHODS
            if name in RESIZE_METHODS
        ]
        runs = [
            (name, title, options, seed, label_maps if options.get("data.relabel.use") else None)
            for seed in RESIZE_SEEDS
            for pair in pairs
            for name, title, options in pair
        ]
        outcomes = [step.outcome for step in self.students(runs, data["several"], data["test"])]
        results = {
            "machine": report.machine(),
            "seeds": RESIZE_SEEDS,
            "methods": [report.summarize(pair, RESIZE_SEEDS, outcomes) for pair in pairs],
        }
        write_json(self.dir / "resize.json", results)
        table = report.resize_table(results)
        (self.dir / "resize.md").write_text(table)
        print("\n" + table)
        print(f"table and all numbers: {self.dir / 'resize'}.md, .json")
