"""The steps of the experiment, and the programs that do them."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import maps
import report
from design import CLASSES, DATA, METHODS, SCHEDULE, SEEDS, SIZES
from steps import Clock, Failed, Step, together, write_json


class Experiment:
    # How many students, for the estimate of the time left.
    STUDENTS = len(METHODS) * len(SEEDS)

    def __init__(self, args):
        self.dir = args.dir.resolve()
        self.worker, self.coordinator = args.worker.resolve(), args.coordinator.resolve()
        self.sizes = SIZES[args.size]
        self.jobs = args.jobs
        self.threads = max(1, (os.cpu_count() or 1) // args.jobs)
        self.clock = Clock(self.costs(self.STUDENTS))
        self.programs = set()

    def stop(self, *_):
        """Ends on a signal, and with it what was started: runs save a checkpoint first."""
        for program in list(self.programs):
            # Popen's terminate would take the program's end from the wait in `call`.
            with contextlib.suppress(ProcessLookupError):
                os.kill(program.pid, signal.SIGTERM)
        raise KeyboardInterrupt

    def costs(self, students):
        """Work by kind in images times pixels of a forward and backward pass, for the estimate of what is left."""
        sizes = self.sizes

        def training(part, data):
            seen = part["epochs"] * (data["train"] + data["val"] / 3)
            return seen * part["image_size"] ** 2

        test = 2 * sizes["test"] * sizes["student"]["image_size"] ** 2 / 3
        parts = enumerate(sizes["annotator"], 1)
        annotator = {f"annotator-{number}": training(part, sizes["single"]) for number, part in parts}
        return annotator | {
            "label": sizes["several"]["train"] * sizes["label_size"] ** 2 / 3,
            "students": students * (training(sizes["student"], sizes["several"]) + test),
        }

    def prepare(self):
        """Everything but students: the steps of the pictures by name, those of the annotator, and that of its maps."""
        self.dir.mkdir(parents=True, exist_ok=True)
        data = {
            "single": self.data("single", seed=101, **self.sizes["single"], objects=1),
            "several": self.data("several", seed=202, **self.sizes["several"], objects=4),
            "test": self.data("test", seed=303, train=CLASSES, val=self.sizes["test"], objects=4),
        }
        annotator = self.annotator(data["single"])
        return data, annotator, self.label(annotator[-1], data["several"], data["test"])

    def run(self):
        data, annotator, label_maps = self.prepare()
        # Seeds outermost: one that is stopped early has compared all methods.
        runs = [
            (name, title, method, seed, label_maps if method.get("data.relabel.use") else None)
            for seed in SEEDS
            for name, title, method in METHODS
        ]
        students = self.students(runs, data["several"], data["test"])
        before = [*data.values(), *annotator, label_maps]
        results = {
            "sizes": self.sizes,
            "machine": report.machine(),
            "annotator": [step.outcome for step in annotator],
            "label_maps": label_maps.outcome,
            "methods": report.summarize(METHODS, SEEDS, [step.outcome for step in students]),
            "seconds": sum(s.seconds for s in before) + sum(s.seconds for s in students) / self.jobs,
            "cpu_seconds": {
                "pictures": sum(s.cpu for s in data.values()),
                "annotator": sum(s.cpu for s in annotator),
                "label maps": label_maps.cpu,
                "students": sum(s.cpu for s in students),
            },
        }
        write_json(self.dir / "results.json", results)
        table = report.table(results)
        (self.dir / "results.md").write_text(table)
        (self.dir / "results.svg").write_text(report.plot(results))
        print("\n" + table)
        print(f"table, plot and all numbers: {self.dir / 'results'}.md, .svg, .json")

    def data(self, name, seed, train, val, objects):
        """Pictures that `worker synth` makes."""
        step = Step(self.dir / name, {"seed": seed, "train": train, "val": val, "objects": objects, "data": DATA})
        arguments = ["--train", train, "--val", val, "--objects-max", objects, "--seed", seed]

        def make():
            self.call(step, [self.worker, "synth", step.dir / "data", *DATA, *arguments])
            return {"train": train, "val": val}

        self.clock.say(step.do(make), f"pictures: {name}")
        return step

    def train(self, step, part, data, options, workers, clock):
        """One run of the coordinator. Returns the path of its last weights and its last epoch's validation. `clock`
        is the kind of work that it is, and its share of that."""
        run = step.dir / "run"
        options = SCHEDULE | part.get("options", {}) | options | {
            "model.arch": "resnet18",
            "model.num_classes": CLASSES,
            "data.data_path": data.dir / "data",
            "data.image_size": part["image_size"],
            "data.rrc_minimum": part["rrc_minimum"],
            "optim.epochs": part["epochs"],
            "optim.batch_size": part["batch_size"],
            "optim.lr.init": part["lr"],
        }
        start = [self.coordinator, "--local", "--workers", workers, "--threads", self.threads, "--run-dir", run]
        start += [text for key, value in options.items() for text in (f"--{key}", value)]
        if any((run / "checkpoints").glob("*.safetensors")):
            start.append("--resume")
            kind, share = clock
            self.clock.skip(kind, share * len(report.epochs(run)) / part["epochs"])
        else:
            shutil.rmtree(run, ignore_errors=True)
        self.call(step, start)
        epochs = report.epochs(run)
        if len(epochs) != part["epochs"]:
            raise Failed(f"{run}: {len(epochs)} of {part['epochs']} epochs are in metrics.jsonl; start with --fresh")
        # Of the last epoch, as nothing is to be chosen by the validation: its name says how far it is.
        return max((run / "checkpoints").glob("resnet18-e*.safetensors")), epochs[-1]

    def annotator(self, single):
        """Trains the annotator in parts, each from the weights of the one before. Returns their steps."""
        steps = []
        for number, part in enumerate(self.sizes["annotator"], 1):
            name = f"annotator-{number}"
            settings = {"part": part, "data": single.settings, "from": steps[-1].settings if steps else None}
            step = Step(self.dir / name, settings)
            options = {"compute.seed": number}
            if steps:
                options["model.pretrained"] = steps[-1].dir / "weights.safetensors"

            def make(step=step, part=part, options=options, name=name):
                weights, last = self.train(step, part, single, options, self.jobs, (name, 1.0))
                shutil.copyfile(weights, step.dir / "weights.safetensors")
                return {"epochs": report.epochs(step.dir / "run"), "single_top1": last["top1"]}

            with self.clock.watch(name, lambda step=step, part=part: [(step.dir / "run", part["epochs"])]):
                cached = step.do(make)
            shutil.rmtree(step.dir / "run", ignore_errors=True)
            self.clock.done(name, 1.0, cached)
            self.clock.say(cached, f"{name}: {step.outcome['single_top1']:.1f}% on new pictures of one object")
            steps.append(step)
        return steps

    def label(self, annotator, several, test):
        """The student's label maps, by the annotator; never by the generator."""
        size = self.sizes["label_size"]
        settings = {"annotator": annotator.settings, "data": several.settings, "test": test.settings, "size": size}
        step = Step(self.dir / "maps", settings)

        def make():
            out = step.dir / "labels"
            weights = annotator.dir / "weights.safetensors"
            arguments = ["--data", several.dir / "data", "--out", out, "--arch", "resnet18", "--weights", weights]
            # All classes: of so few, the fifth may well have a logit under the 0 that a class left out has.
            self.call(step, [self.worker, "label", *arguments, "--size", size, "--top-k", CLASSES])
            # Reported alone: what the annotator makes of the students' test pictures, as large as it labels.
            scores = self.evaluate(step, weights, test, size, self.threads * self.jobs)
            return maps.quality(out, several.dir / "data" / "labels", CLASSES) | {"test": scores}

        cached = step.do(make)
        self.clock.done("label", 1.0, cached)
        side, right = step.outcome["side"], 100 * step.outcome["object_cells_right"]
        self.clock.say(
            cached,
            f"label maps {side}x{side}: {right:.1f}% of the cells on an object name it; the annotator names "
            f"an object of {step.outcome['test']['several_any']:.1f}% of the test pictures of several",
        )
        return step

    def students(self, runs, several, test, longer=1):
        """Trains students, in this order, on the same pictures: `runs` are tuples of name, title, options, seed and
        the step with their label maps, None for those without. They train `longer` times the comparison's epochs.
        Returns their steps."""
        part = self.sizes["student"] | {"epochs": longer * self.sizes["student"]["epochs"]}
        steps, work = [], []
        for name, title, method, seed, label_maps in runs:
            settings = {"part": part, "method": method, "seed": seed}
            settings |= {"data": several.settings, "test": test.settings}
            options = method | {"compute.seed": seed}
            if label_maps is not None:
                settings["maps"] = label_maps.settings
                options["data.relabel.path"] = label_maps.dir / "labels"
            steps.append(Step(self.dir / "students" / f"{name}-{seed}", settings))
            work.append((steps[-1], name, title, seed, options))
        share = longer / self.STUDENTS
        active = {}

        def one(item):
            step, name, title, seed, options = item

            def make():
                active[name, seed] = (step.dir / "run", part["epochs"])
                weights, last = self.train(step, part, several, options, 1, ("students", share))
                exact = options.get("data.resize") == "exact"
                scores = self.evaluate(step, weights, test, part["image_size"], self.threads, exact)
                return {"method": name, "seed": seed, "train_loss": last["train_loss"], **scores}

            cached = step.do(make)
            active.pop((name, seed), None)
            shutil.rmtree(step.dir / "run", ignore_errors=True)
            self.clock.done("students", share, cached)
            scores = step.outcome
            self.clock.say(
                cached,
                f"{title}, seed {seed}: {scores['single_top1']:.1f}% one object, {scores['several_any']:.1f}% several",
            )

        with self.clock.watch("students", lambda: list(active.values()), share):
            together(one, work, self.jobs)
        return steps

    def evaluate(self, step, weights, test, size, threads, exact=False):
        """Accuracies in percent on the test pictures, which no run has seen, resized to Pillow's exact pixels where
        `exact`: `single_top1` on those of one object; on those of several, `several_any` counts any object that is
        there, `several_top1` the folder's."""
        scores = {}
        for name, folder, truth in [("single", "val", "real.json"), ("several", "val-multi", "real-multi.json")]:
            sets = [f"{name}={test.dir / 'data' / folder}", "--real", test.dir / "data" / truth]
            options = ["--image-size", size, "--crop-ratio", 1.0, "--threads", threads, "--json"]
            options += ["--exact-resize"] if exact else []
            command = [self.worker, "eval", "--weights", weights, "--arch", "resnet18", "--data", *sets, *options]
            found = report.parse_eval(self.call(step, command))
            scores |= {f"{name}_top1": found["top1"], f"{name}_any": found["real"]["accuracy"]}
        return scores

    def call(self, step, command):
        """Runs a program of a step; its output goes to the step's log, and what it prints is returned."""
        command = [str(part) for part in command]
        log = step.dir / "log"
        with open(log, "a") as errors:
            print("+", *command, file=errors, flush=True)
            program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            self.programs.add(program)
            printed = program.stdout.read()
            # Instead of Popen's own wait: it says what the program and those that it started have used.
            _, status, usage = os.wait4(program.pid, 0)
            program.returncode = os.waitstatus_to_exitcode(status)
            self.programs.discard(program)
            step.cpu += usage.ru_utime + usage.ru_stime
            errors.write(printed)
        if program.returncode != 0:
            raise Failed(f"{Path(command[0]).name} ended with {program.returncode}; {log} says why")
        return printed
