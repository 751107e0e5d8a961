"""`--why`: what stands behind the comparison's order, by two changes.

First of the label maps: the localized student, and the global one, with maps that are changed on purpose. The
generator's truth goes into the maps of this study, and into nothing else. Then of the time: all methods of the
comparison, as they are, trained for LONGER times the epochs.
"""

import altered
import maps
import report
from comparison import Experiment
from design import CLASSES, LONGER, METHODS, WHY_SEEDS
from steps import Step, write_json


class Study(Experiment):
    STUDENTS = (4 + len(altered.STUDIES) + LONGER * len(METHODS)) * len(WHY_SEEDS)

    def run(self):
        data, _, made = self.prepare()
        true = data["several"].dir / "data" / "labels"
        factors = Step(self.dir / "why" / "factors", {"maps": made.settings})
        factors.do(lambda: altered.scales(made.dir / "labels", true, CLASSES))
        found = made.outcome | factors.outcome
        label_maps = {}
        for name, title, change, annotators_cells in altered.STUDIES:
            if change is altered.made:
                label_maps[name] = made
                continue
            step = Step(self.dir / "why" / name, {"maps": made.settings, "change": name})

            def make(step=step, change=change, annotators_cells=annotators_cells):
                out = step.dir / "labels"
                altered.write_all(change, annotators_cells, made.dir / "labels", true, out, CLASSES, found)
                return maps.quality(out, true, CLASSES)

            cached = step.do(make)
            right = 100 * step.outcome["object_cells_right"]
            self.clock.say(cached, f"label maps {name}: {right:.1f}% of the cells on an object name it")
            label_maps[name] = step
        options = {name: options for name, _, options in METHODS}
        mixed = options["localized-cutmix"]
        cutmix = {option: value for option, value in mixed.items() if option.startswith("data.cutmix.")}
        titles = {name: title for name, title, _ in METHODS}
        runs, longer = [], []
        for seed in WHY_SEEDS:
            runs.append(("baseline", titles["baseline"], options["baseline"], seed, None))
            for name, title, change, _ in altered.STUDIES:
                # That of the comparison itself, done there or here.
                student = "localized" if change is altered.made else name
                runs.append((student, title, options["localized"], seed, label_maps[name]))
            runs.append(("true-global", "the generator's, taught globally", options["global"], seed, label_maps["true"]))
            runs.append(("true-cutmix", "the generator's, with CutMix", mixed, seed, label_maps["true"]))
            runs.append(("baseline-cutmix", "Baseline, with CutMix", cutmix, seed, None))
            for name, title, method in METHODS:
                of_it = made if method.get("data.relabel.use") else None
                longer.append((f"{name}-longer", title, method, seed, of_it))
        # First what takes longest: the estimate of the time left is the better for it.
        students = self.students(longer, data["several"], data["test"], LONGER)
        students += self.students(runs, data["several"], data["test"])
        maps_of = {("localized" if step is made else name): step.outcome for name, step in label_maps.items()}
        results = {
            "factors": factors.outcome,
            "label_maps": maps_of,
            "students": [step.outcome for step in students],
            "cpu_seconds": sum(step.cpu for step in students),
        }
        write_json(self.dir / "why.json", results)
        table = report.why_table(named(runs), WHY_SEEDS, results)
        epochs = LONGER * self.sizes["student"]["epochs"]
        table += f"\nAll methods with {epochs} epochs:\n\n" + report.scores_table(named(longer), results["students"])
        (self.dir / "why.md").write_text(table)
        print("\n" + table)
        print(f"table and all numbers: {self.dir / 'why'}.md, .json")


def named(runs):
    """Their names and titles, once each."""
    return list(dict.fromkeys((name, title) for name, title, *_ in runs))
