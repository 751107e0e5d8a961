"""Compares weights that torch and the worker write for each other: every way that torch.save and safetensors keep a
state_dict, through `worker inspect weights` and `worker export`, back into torch.load(weights_only=True) and torchvision's
load_state_dict(strict=True); and a checkpoint of a real run, with the state of its optimizer.

    python tests/parity/weights.py --worker target/release/worker [--archs resnet18 resnet50]

Needs torch, torchvision and safetensors, and the coordinator beside the worker. Exits with 1 where one bit differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ARCHS = ["resnet18", "resnet50", "efficientnet_b0"]
CLASSES = 37
KINDS = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64"}


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program} {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")
    return done


def model_of(arch):
    """A model all of whose tensors could only come from this one: statistics and counters too."""
    model = getattr(torchvision.models, arch)(num_classes=CLASSES)
    for i, (name, buffer) in enumerate(model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            buffer.fill_(2**40 + i)
        else:
            buffer.uniform_(0.5, 1.5)
    return model


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def differences(found, expected):
    """What is not the same to the bit, by name."""
    wrong = sorted(set(found) ^ set(expected))
    for name in set(found) & set(expected):
        f, e = found[name], expected[name]
        if f.dtype != e.dtype or f.shape != e.shape or not torch.equal(bits(f), bits(e)):
            wrong.append(name)
    return wrong


def largest(found, expected):
    names = set(found) & set(expected)
    far = [(found[n].double() - expected[n].double()).abs().max() for n in names if found[n].shape == expected[n].shape]
    return max(far).item() if far else float("nan")


def stepped(model):
    """SGD on `model` after a step, so that it has momentum buffers."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    sgd.step()
    return sgd


def saved(arch, folder):
    """(what, file, state_dict that stands in it, key that it stands under, prefix of the names) of every way."""
    model = model_of(arch)
    checkpoint = {"epoch": 7, "arch": arch, "accuracy": 71.25, "optimizer": stepped(model).state_dict()}
    state = model.state_dict()
    module = {f"module.{name}": tensor for name, tensor in state.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    last = {n: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in state.items()}
    half = model_of(arch).half().state_dict()

    def legacy(name, value):
        torch.save(value, folder / name, _use_new_zipfile_serialization=False)
        return folder / name

    def zipped(name, value):
        torch.save(value, folder / name)
        return folder / name

    def tensors(name, value):
        save_file({n: t.clone() for n, t in value.items()}, folder / name)
        return folder / name

    yield "zip", zipped("zip.pth", state), state, None, ""
    yield "legacy", legacy("legacy.pth", state), state, None, ""
    yield "zip checkpoint, module.", zipped("c.pth", {**checkpoint, "state_dict": module}), state, "state_dict", "module."
    yield "legacy checkpoint", legacy("cl.pth", {**checkpoint, "state_dict": module}), state, "state_dict", "module."
    yield "zip under model, compiled", zipped("m.pth", {"model": compiled, "args": None}), state, "model", "_orig_mod."
    yield "zip of parameters", zipped("p.pth", parameters), state, None, ""
    yield "zip, channels_last", zipped("last.pth", last), state, None, ""
    yield "legacy, channels_last", legacy("lastl.pth", last), state, None, ""
    yield "zip, float16", zipped("half.pth", half), half, None, ""
    yield "safetensors", tensors("w.safetensors", state), state, None, ""
    yield "safetensors, module.", tensors("wm.safetensors", module), state, None, "module."


def inspected(worker, file, state, under, prefix):
    """What `worker inspect weights` says that torch does not."""
    told = json.loads(run(worker, "inspect", "weights", file, "--json").stdout)
    found = {t["name"]: (t["shape"], t["kind"]) for t in told["tensors"]}
    expected = {name: (list(t.shape), KINDS[t.dtype]) for name, t in state.items()}
    wrong = [name for name in set(found) | set(expected) if found.get(name) != expected.get(name)]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(t.numel() for name, t in state.items() if not name.endswith(statistics))
    facts = {"parameters": count, "classes": CLASSES, "under": under, "prefix": prefix}
    return wrong + [f"{key}: {told[key]}, not {value}" for key, value in facts.items() if told[key] != value]


def exported(worker, arch, file, state, folder):
    """Largest difference and what differs of what torch and torchvision get from `worker export` of `file`."""
    wrong, far = [], 0.0
    # With the architecture named, where this worker knows it, half precision becomes the model's float32.
    checked = {name: t.float() if t.dtype == torch.float16 else t for name, t in state.items()}
    ways = [([], state)] + ([(["--arch", arch], checked)] if arch.startswith("resnet") else [])
    for flags, expected in ways:
        for ending in [".pth", ".safetensors"]:
            out = folder / f"out{ending}"
            run(worker, "export", file, out, *flags)
            if ending == ".pth":
                found = torch.load(out, weights_only=True)
                wrong += differences(torch.load(out, weights_only=True, mmap=True), found)
            else:
                found = load_file(out)
                with safe_open(out, "pt") as opened:
                    wrong += [] if opened.metadata()["format"] == "pt" else ["metadata"]
            # torchvision's model of the same kinds, which converts nothing.
            model = getattr(torchvision.models, arch)(num_classes=CLASSES)
            model = model.half() if next(iter(expected.values())).dtype == torch.float16 else model
            model.load_state_dict(found, strict=True)
            wrong += differences(found, expected) + differences(model.state_dict(), expected)
            far = max(far, largest(model.state_dict(), expected))
            if flags and ending == ".pth" and list(found) != list(model.state_dict()):
                wrong.append("order")
    return far, wrong


def reference(worker, folder):
    """A run of the coordinator, its checkpoint as the reference's, loaded and trained on by torch."""
    data, run_dir, out = folder / "data", folder / "run", folder / "reference.pth"
    run(worker, "synth", data, "--classes", 4, "--size", "64x48", "--train", 32, "--val", 8)
    optim = {"lr": 0.02, "momentum": 0.85, "weight_decay": 3e-4, "nesterov": True}
    options = {
        "data.data_path": data,
        "data.relabel.use": "false",
        "data.image_size": 32,
        "model.arch": "resnet18",
        "optim.batch_size": 16,
        "optim.epochs": 2,
        "optim.lr.init": optim["lr"],
        "optim.lr.decay_type": "default",
        "optim.momentum": optim["momentum"],
        "optim.wd.base": optim["weight_decay"],
        "optim.nesterov": optim["nesterov"],
        "optim.warmup.epochs": 0,
        "compute.seed": 1,
        "compute.num_workers": 1,
    }
    flags = [part for key, value in options.items() for part in (f"--{key}", value)]
    coordinator = Path(worker).with_name("coordinator")
    run(coordinator, "--workers", 1, "--local", "--threads", 2, "--run-dir", run_dir, *flags)
    file = run_dir / "checkpoints" / "resnet18-e0002-s000000.safetensors"
    run(worker, "export", file, out, "--reference")
    inside, found = load_file(file), torch.load(out, weights_only=True)

    momentum = "optimizer.momentum_buffer."
    model = torchvision.models.resnet18(num_classes=4)
    model.load_state_dict(found["state_dict"], strict=True)
    wrong = differences(model.state_dict(), {n: t for n, t in inside.items() if not n.startswith(momentum)})
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    sgd.load_state_dict(found["optimizer"])
    buffers = {name: sgd.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    expected = {n.removeprefix(momentum): t for n, t in inside.items() if n.startswith(momentum)}
    wrong += differences(buffers, expected)
    far = largest(buffers, expected)
    group = sgd.param_groups[0]
    wrong += [f"{key}: {group[key]}, not {value}" for key, value in optim.items() if group[key] != value]
    top1 = json.loads(run(worker, "inspect", "checkpoint", file, "--json").stdout)["top1"]
    facts = {"epoch": 2, "arch": "resnet18", "accuracy": 100 * top1}
    wrong += [f"{key}: {found[key]}, not {value}" for key, value in facts.items() if found[key] != value]
    # torch can go on from it.
    before = model.conv1.weight.detach().clone()
    model(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    sgd.step()
    wrong += ["a step"] if torch.equal(model.conv1.weight, before) else []
    return far, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="target/release/worker")
    parser.add_argument("--program", help="taken for the sake of the other comparisons; not used")
    parser.add_argument("--archs", nargs="+", default=ARCHS)
    options = parser.parse_args()
    torch.manual_seed(3)
    failed = 0

    def told(arch, what, far, wrong):
        print(f"{arch:16} {what:28} largest difference {far:.1e}  {'FAILED' if wrong else 'ok'}", flush=True)
        for name in wrong[:5]:
            print(f"    {name}")
        return bool(wrong)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for arch in options.archs:
            for what, file, state, under, prefix in saved(arch, folder):
                wrong = inspected(options.worker, file, state, under, prefix)
                far, differs = exported(options.worker, arch, file, state, folder)
                failed += told(arch, what, far, wrong + differs)
                file.unlink()
        failed += told("resnet18", "a run's checkpoint", *reference(options.worker, folder))
    if failed:
        sys.exit(f"{failed} checks failed")


if __name__ == "__main__":
    main()
