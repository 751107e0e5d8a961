"""Does ReLabel help? The paper's comparison at a size that two CPU cores do in half an hour; `make experiment`.

An annotator is trained on pictures of one object. It labels the student's training pictures, which show two to four
objects of different classes while their folder names one. Students differ in their targets alone: same pictures,
network, schedule and seeds. All training is done by our coordinator and workers, as a user would start them.

Every step leaves its settings and outcome in a JSON file in the folder of the experiment. A second start repeats no
step whose settings are the same, and goes on with runs that were interrupted; --fresh starts over.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import maps
import report
from steps import Clock, Failed, Step, together, write_json

CLASSES = 6
# Square pictures, evaluated whole: a central crop would cut off objects at the sides.
DATA = ["--classes", str(CLASSES), "--size", "96x96"]
SCHEDULE = {
    "data.crop_ratio": 1.0,
    "optim.optimizer": "sgd",
    "optim.lr.decay_type": "cos",
    "optim.warmup.epochs": 1,
    "optim.nesterov": True,
    "optim.momentum": 0.9,
    "optim.wd.base": 1e-4,
    "checkpoint.every_epochs": 0,
    "checkpoint.keep": 1,
    "compute.num_workers": 1,
    "util.print_freq": 20,
    "util.val_batch_size": 200,
}

# What sets the students apart: name, title, options.
RELABEL = {"data.relabel.use": True}
METHODS = [
    ("baseline", "Baseline: the folder's class", {}),
    ("smoothing", "Label smoothing 0.1", {"optim.label_smoothing": 0.1}),
    ("global", "ReLabel, global multi-label", RELABEL | {"data.relabel.mode": "global"}),
    ("localized", "ReLabel, localized multi-label", RELABEL | {"data.relabel.mode": "localized"}),
    (
        "localized-cutmix",
        "ReLabel, localized, with CutMix",
        RELABEL
        | {
            "data.relabel.mode": "localized",
            "data.cutmix.prob": 1.0,
            "data.cutmix.beta": 1.0,
            "data.cutmix.off_epoch": 1,
        },
    ),
]
SEEDS = [1, 2, 3]
# For the annotator's second part: half of the batches paste a picture of one object into another, so that it
# meets neighbours before it labels pictures of several.
CROWDED = {
    "options": {
        "data.cutmix.prob": 0.5,
        "data.cutmix.beta": 1.0,
        "data.cutmix.off_epoch": 0,
        "optim.warmup.epochs": 0,
    }
}

SIZES = {
    "full": {
        "single": {"train": 6000, "val": 300},
        # Small crops first, which are cheap, then large ones: its map of a large picture is finer.
        "annotator": [
            {"image_size": 64, "rrc_minimum": 0.2, "epochs": 3, "batch_size": 64, "lr": 0.08},
            {"image_size": 112, "rrc_minimum": 0.2, "epochs": 1, "batch_size": 64, "lr": 0.03} | CROWDED,
        ],
        "label_size": 160,
        "several": {"train": 1200, "val": 100},
        "student": {"image_size": 32, "rrc_minimum": 0.08, "epochs": 14, "batch_size": 64, "lr": 0.08},
        "test": 1000,
    },
    # For working on the experiment itself: everything happens, and nothing is learned.
    "tiny": {
        "single": {"train": 60, "val": 20},
        "annotator": [
            {"image_size": 32, "rrc_minimum": 0.25, "epochs": 1, "batch_size": 20, "lr": 0.05},
            {"image_size": 40, "rrc_minimum": 0.25, "epochs": 1, "batch_size": 20, "lr": 0.02} | CROWDED,
        ],
        "label_size": 64,
        "several": {"train": 60, "val": 20},
        "student": {"image_size": 32, "rrc_minimum": 0.08, "epochs": 2, "batch_size": 20, "lr": 0.05},
        "test": 20,
    },
}


class Experiment:
    def __init__(self, args):
        self.dir = args.dir.resolve()
        self.worker, self.coordinator = args.worker.resolve(), args.coordinator.resolve()
        self.sizes = SIZES[args.size]
        self.jobs = args.jobs
        self.threads = max(1, (os.cpu_count() or 1) // args.jobs)
        self.clock = Clock(self.costs(len(METHODS) * len(SEEDS)))
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
        return {
            "annotator-1": training(sizes["annotator"][0], sizes["single"]),
            "annotator-2": training(sizes["annotator"][1], sizes["single"]),
            "label": sizes["several"]["train"] * sizes["label_size"] ** 2 / 3,
            "students": students * (training(sizes["student"], sizes["several"]) + test),
        }

    def run(self):
        self.dir.mkdir(parents=True, exist_ok=True)
        single = self.data("single", seed=101, **self.sizes["single"], objects=1)
        several = self.data("several", seed=202, **self.sizes["several"], objects=4)
        test = self.data("test", seed=303, train=CLASSES, val=self.sizes["test"], objects=4)
        annotator = self.annotator(single)
        label_maps = self.label(annotator[-1], several, test)
        students = self.students(label_maps, several, test)
        before = [single, several, test, *annotator, label_maps]
        results = {
            "sizes": self.sizes,
            "machine": report.machine(),
            "annotator": [step.outcome for step in annotator],
            "label_maps": label_maps.outcome,
            "methods": report.summarize(METHODS, SEEDS, [step.outcome for step in students]),
            "seconds": sum(s.seconds for s in before) + sum(s.seconds for s in students) / self.jobs,
            "cpu_seconds": {
                "pictures": sum(s.cpu for s in [single, several, test]),
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
            self.call(step, [self.worker, "label", *arguments, "--size", size])
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

    def students(self, label_maps, several, test):
        part = self.sizes["student"]
        steps, work = [], []
        for seed in SEEDS:
            # Seeds outermost: one that is stopped early has compared all methods.
            for name, title, method in METHODS:
                settings = {"part": part, "method": method, "seed": seed}
                settings |= {"data": several.settings, "test": test.settings}
                uses_maps = method.get("data.relabel.use", False)
                if uses_maps:
                    settings["maps"] = label_maps.settings
                step = Step(self.dir / "students" / f"{name}-{seed}", settings)
                options = method | {"compute.seed": seed}
                if uses_maps:
                    options["data.relabel.path"] = label_maps.dir / "labels"
                steps.append(step)
                work.append((step, name, title, seed, options))
        share = 1 / len(work)
        active = {}

        def one(item):
            step, name, title, seed, options = item

            def make():
                active[name, seed] = (step.dir / "run", part["epochs"])
                weights, last = self.train(step, part, several, options, 1, ("students", share))
                scores = self.evaluate(step, weights, test, part["image_size"], self.threads)
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

    def evaluate(self, step, weights, test, size, threads):
        """Accuracies in percent on the test pictures, which no run has seen: `single_top1` on those of one
        object; on those of several, `several_any` counts any object that is there, `several_top1` the folder's."""
        scores = {}
        for name, folder, truth in [("single", "val", "real.json"), ("several", "val-multi", "real-multi.json")]:
            sets = [f"{name}={test.dir / 'data' / folder}", "--real", test.dir / "data" / truth]
            options = ["--image-size", size, "--crop-ratio", 1.0, "--threads", threads, "--json"]
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


def claim(folder, fresh):
    """Takes the folder for this process, for as long as what is returned lives, and empties it where asked to."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / "experiment.lock"
    if not mine.exists() and any(folder.iterdir()):
        raise Failed(f"{folder} holds something else than an experiment; name another --dir")
    lock = open(mine, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed(f"another start works in {folder}") from None
    if fresh:
        for part in folder.iterdir():
            if part.is_dir():
                shutil.rmtree(part)
            elif part != mine:
                part.unlink()
    return lock


def main():
    release = Path(__file__).resolve().parents[2] / "target" / "release"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path("experiment"), help="folder of the experiment")
    parser.add_argument("--worker", type=Path, default=release / "worker")
    parser.add_argument("--coordinator", type=Path, default=release / "coordinator")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--fresh", action="store_true", help="remove what earlier starts left, and start over")
    args = parser.parse_args()
    for program in [args.worker, args.coordinator]:
        if not program.is_file():
            parser.error(f"{program} is not there; run `make build`")
    try:
        with claim(args.dir, args.fresh):
            experiment = Experiment(args)
            for number in [signal.SIGINT, signal.SIGTERM]:
                signal.signal(number, experiment.stop)
            experiment.run()
    except Failed as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
