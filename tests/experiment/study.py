"""`--why`: what students miss in the annotator's label maps, by maps that are changed on purpose.

All students are the localized one of the comparison, with other maps. The generator's truth goes into the maps of
this study, and into nothing else.
"""

import altered
import maps
import report
from comparison import Experiment
from design import CLASSES, METHODS, WHY_SEEDS
from steps import Step, write_json


class Study(Experiment):
    STUDENTS = (1 + len(altered.STUDIES)) * len(WHY_SEEDS)

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
        titles = {name: title for name, title, _ in METHODS}
        runs = []
        for seed in WHY_SEEDS:
            runs.append(("baseline", titles["baseline"], options["baseline"], seed, None))
            for name, title, change, _ in altered.STUDIES:
                # That of the comparison itself, done there or here.
                student = "localized" if change is altered.made else name
                runs.append((student, title, options["localized"], seed, label_maps[name]))
        students = self.students(runs, data["several"], data["test"])
        maps_of = {("localized" if step is made else name): step.outcome for name, step in label_maps.items()}
        results = {
            "factors": factors.outcome,
            "label_maps": maps_of,
            "students": [step.outcome for step in students],
            "cpu_seconds": sum(step.cpu for step in students),
        }
        write_json(self.dir / "why.json", results)
        named = list(dict.fromkeys((name, title) for name, title, *_ in runs))
        table = report.why_table(named, WHY_SEEDS, results)
        (self.dir / "why.md").write_text(table)
        print("\n" + table)
        print(f"table and all numbers: {self.dir / 'why'}.md, .json")
