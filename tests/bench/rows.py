"""The rows of the benchmark: what is done, by whom, and how its rate is found."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable

import ours

PEERS = "tests/bench/peers"
# One thread everywhere, unless a program is told otherwise by its own options.
ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclasses.dataclass
class Row:
    title: str
    unit: str
    # Name to what runs it once and gives its figure.
    contenders: dict[str, Callable[[], float]]
    ours: list[str]
    # Pairs of ours and a peer as in the ratios, and the least that is aimed at.
    goals: dict[str, float]
    # Whether less is better.
    lower: bool = False
    # What cannot be passed on this machine, in words and as a rate, where it can be measured.
    bound: tuple[str, Callable[[], float]] | None = None

    def shown(self, rate):
        return f"{rate:.4g} {self.unit}"


def output(command, **environment):
    """The last line of what a command prints, as JSON."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Multiplications and additions of a training step for one image, in thousands of millions: three times the forward pass.
WORK = {("resnet50", 224): 3 * 2 * 4.09, ("resnet18", 64): 3 * 2 * 1.82 * (64 / 224) ** 2}


def products(root, arch, size, precision):
    """Images a second at the rate of large matrix products on two threads."""
    command = [sys.executable, root / PEERS / "bounds.py", "matrices", "--threads", 2, "--precision", precision]
    return "all of it at the rate of oneDNN's large matrix products", lambda: output(command)["rate"] / (
        WORK[arch, size] * 1e9
    )


def options_of(shape):
    return [part for key, value in shape.items() for part in (f"--{key}", value)]


def rate(*command, environment=ONE):
    """A contender whose command prints either its rate, or how many in how many seconds."""

    def run():
        found = output(command, **environment)
        return found["rate"] if "rate" in found else found["images"] / found["seconds"]

    return run


def example(root, name):
    return root / "target/release/examples" / name


def images(threads, plain=False):
    def row(root, pictures, _, quick):
        count = (1000 if quick else 3000) * threads
        options = ["--data", pictures / "train", "--threads", threads] + (["--plain"] if plain else [])
        ours = [example(root, "bench"), "images", *options]
        peer = [sys.executable, root / PEERS / "images.py"]
        contenders = {
            "ours": rate(*ours, "--images", count),
            "ours, exact": rate(*ours, "--exact", "--images", count),
            "torchvision": rate(*peer, "torchvision", *options, "--images", count // 4),
            "DALI": rate(*peer, "dali", *options, "--images", count // 2),
        }
        crops = [example(root, "bench"), "crops", "--data", pictures / "train", "--images", count]
        if threads == 1:
            contenders["simplejpeg, decoding alone"] = rate(*peer, "simplejpeg", *options, "--images", count // 2)
            contenders["libjpeg-turbo, decoding the same crops alone"] = rate(*crops, "--libjpeg")
        return Row(
            f"JPEG files to training tensors, {'crop and flip' if plain else 'full augmentation'}, {threads} thread"
            + "s" * (threads > 1),
            "images/s",
            contenders,
            ["ours", "ours, exact"],
            {} if plain else {"ours / torchvision": 6.0, "ours / DALI": 4.0},
            bound=("decoding the same crops and nothing else", rate(*crops)) if threads == 1 else None,
        )

    return row


def labels(root, pictures, scratch, quick):
    packed = scratch / "labels.pack"
    if not packed.exists():
        worker = root / "target/release/worker"
        subprocess.run([worker, "pack", pictures / "labels", packed], check=True, capture_output=True)
    ours = [example(root, "bench"), "labels", "--data", pictures / "train", "--images", 20000, "--maps"]
    peer = [sys.executable, root / PEERS / "labels.py", "--maps", pictures / "labels", "--images", 300 if quick else 1000]
    return Row(
        "label map to the target of a crop, 1 thread",
        "targets/s",
        {
            "ours, packed": rate(*ours, packed),
            "ours, .pt files": rate(*ours, pictures / "labels"),
            "torch.load and roi_align": rate(*peer),
        },
        ["ours, packed", "ours, .pt files"],
        {"ours, packed / torch.load and roi_align": 100.0, "ours, .pt files / torch.load and roi_align": 20.0},
    )


def all_reduce(ranks):
    def row(root, _pictures, _scratch, quick):
        rounds = 5 if quick else 15
        return Row(
            f"all-reduce of ResNet-50's gradients (102 MB), {ranks} processes on this host",
            "GB/s of bus bandwidth",
            {
                "ours": rate(example(root, "all_reduce"), ranks, 102, rounds),
                "Gloo": rate(sys.executable, root / PEERS / "all_reduce.py", "--ranks", ranks, "--rounds", rounds),
            },
            ["ours"],
            {"ours / Gloo": 2.0},
            bound=(
                "each process copying memory at the same time",
                lambda: output([sys.executable, root / PEERS / "bounds.py", "copies", "--ranks", ranks], **ONE)["rate"],
            ),
        )

    return row


def steps(arch, size, batch, precision, goal):
    """Steps alone, the images in memory."""

    def row(root, _pictures, _scratch, quick):
        count = 6 if arch == "resnet50" else 30
        shape = {"arch": arch, "size": size, "batch": batch, "threads": 2, "precision": precision, "steps": count}
        options = options_of(shape)
        peer = [sys.executable, root / PEERS / "train.py", *options]
        contenders = {
            "ours": rate(example(root, "bench"), "steps", *options, environment={"OMP_NUM_THREADS": "2"}),
            "PyTorch": lambda: output(peer)["rate"],
        }
        if not quick:
            contenders["torch.compile"] = lambda: output([*peer, "--compile"])["rate"]
        goals = {f"ours / {name}": goal for name in contenders if name != "ours"}
        title = f"training steps of {arch} at {size} px in {precision}, batch {batch}, 2 threads, images in memory"
        return Row(title, "images/s", contenders, ["ours"], goals, bound=products(root, arch, size, precision))

    return row


def training(arch, size, batch, workers, goal):
    """From JPEG files and label maps, on 2 cores."""

    def row(root, pictures, scratch, quick):
        count = 6 if arch == "resnet50" else 20
        shape = {"arch": arch, "size": size, "batch": batch, "workers": workers, "threads": 2 // workers}
        peer = [sys.executable, root / PEERS / "train.py", "--steps", count, "--files", pictures, *options_of(shape)]
        name = "PyTorch" + " DDP" * (workers > 1)
        each = "2 threads" if workers == 1 else "1 thread each"
        return Row(
            f"training {arch} at {size} px from JPEGs and label maps, batch {batch}, {workers} worker{'s' * (workers > 1)}, {each}",
            "images/s",
            {
                "ours": lambda: ours.train(root, pictures, scratch, count, **shape)["rate"],
                name: lambda: output(peer)["rate"],
            },
            ["ours"],
            {f"ours / {name}": goal},
        )

    return row


def one_worker(title, unit, part, goal, arch="resnet50", size=224, batch=8, checkpoint=None):
    """What a run of one worker shows beside its speed, less of which is better. Both read JPEGs and label maps."""

    def row(root, pictures, scratch, quick):
        shape = {"arch": arch, "size": size, "batch": batch, "threads": 2}
        peer = [sys.executable, root / PEERS / "train.py", "--steps", 3, "--files", pictures, *options_of(shape)]
        return Row(
            f"{title} ({arch}, {size} px, batch {batch})",
            unit,
            {
                "ours": lambda: ours.train(root, pictures, scratch, 3, **shape, checkpoint=checkpoint)[part],
                "PyTorch": lambda: output(peer)[part],
            },
            ["ours"],
            {"ours / PyTorch": goal},
            lower=True,
        )

    return row


ALL = {
    "images-1": images(1),
    "images-2": images(2),
    "images-plain": images(1, plain=True),
    "labels": labels,
    "all-reduce-2": all_reduce(2),
    "all-reduce-4": all_reduce(4),
    "steps-resnet50-fp32": steps("resnet50", 224, 16, "fp32", 1.15),
    "steps-resnet50-bf16": steps("resnet50", 224, 16, "bf16", 1.15),
    "steps-resnet18": steps("resnet18", 64, 64, "fp32", 1.25),
    "steps-resnet18-bf16": steps("resnet18", 64, 64, "bf16", 1.25),
    "resnet50": training("resnet50", 224, 16, 1, 1.15),
    "resnet18": training("resnet18", 64, 64, 1, 1.25),
    "resnet50-2-workers": training("resnet50", 224, 16, 2, 1.2),
    "resnet18-2-workers": training("resnet18", 64, 64, 2, 1.5),
    "first-step": one_worker("program start to the end of the first step", "s", "first_step", 5.0, "resnet18", 64, 16),
    "checkpoint": one_worker("pause of training at the first checkpoint", "s", "saving", 20.0, checkpoint=2),
    "memory": one_worker("memory of a worker at its most", "MB", "memory", 1.0),
}
QUICK = [ALL[key] for key in ("images-1", "labels", "all-reduce-2", "steps-resnet18", "first-step")]
