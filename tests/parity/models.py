"""Compares the worker's models with torchvision's: initial weights, logits, gradients, running statistics.

Needs torch, torchvision and safetensors, and the built example:

    python tests/parity/models.py --program target/release/examples/parity [--archs resnet18 resnet50]

Exits with 1 and names what differs if anything is further apart than the tolerance.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file

ARCHS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
CLASSES = 1000
SEED = 11


def worker(binary, *arguments):
    subprocess.run([binary, *map(str, arguments)], check=True)


def distance(found, expected):
    """Largest difference, as a share of the largest expected value (or of 1, if that is more)."""
    expected = expected.double()
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def compare(pairs, tolerance):
    """The (name, distance) of all pairs further apart than the tolerance, and the largest distance."""
    distances = [(name, distance(found, expected)) for name, found, expected in pairs]
    # Not `d > tolerance`: a NaN must not pass.
    return [(n, d) for n, d in distances if not d <= tolerance], max(d for _, d in distances)


def initial(binary, arch, folder, _tolerance):
    """Equal seeds give equal weights, to the last bit."""
    torch.manual_seed(SEED)
    expected = getattr(torchvision.models, arch)(num_classes=CLASSES).state_dict()
    out = folder / "initial.safetensors"
    worker(binary, "--arch", arch, "--classes", CLASSES, "--seed", SEED, "--output", out)
    found = load_file(out)
    assert set(found) == {f"init.{name}" for name in expected}
    return compare([(f"init.{n}", found[f"init.{n}"], t) for n, t in expected.items()], 0.0)


def computed(binary, arch, folder, tolerance, *, channels_last, frozen):
    """One forward in evaluation, one forward and backward in training."""
    torch.manual_seed(SEED + 1)
    model = getattr(torchvision.models, arch)(num_classes=CLASSES)
    # Statistics that a trained model could have, so that evaluation is not nearly the identity.
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(8, 3, 96, 96)
    target = torch.randn(8, CLASSES).softmax(-1)
    given, out = folder / "given.safetensors", folder / "out.safetensors"
    save_file({**{n: t.clone() for n, t in model.state_dict().items()}, "input": x, "target": target}, given)
    flags = ["--channels-last"] * channels_last + ["--frozen"] * frozen
    worker(binary, "--arch", arch, "--classes", CLASSES, "--input", given, "--output", out, *flags)
    found = load_file(out)

    # In f32 and the same memory format, hence with the same kernels: against f64 even torchvision's own
    # gradients are 4e-4 to 2e-2 apart at this depth, which would hide a small mistake.
    model.eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits_eval = model(x)
    model.train(not frozen)
    logits = model(x)
    loss = -(target * logits.log_softmax(-1)).sum()
    loss.backward()
    pairs = [("logits_eval", logits_eval), ("logits", logits.detach()), ("loss", loss.detach())]
    pairs += [(f"grad.{name}", p.grad) for name, p in model.named_parameters()]
    pairs += [(f"buffer.{name}", b) for name, b in model.named_buffers()]
    assert set(found) == {name for name, _ in pairs}
    return compare([(name, found[name], expected) for name, expected in pairs], tolerance)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built example `parity`")
    parser.add_argument("--archs", nargs="+", default=ARCHS)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()

    checks = {
        "initial weights": initial,
        "train": lambda *a: computed(*a, channels_last=False, frozen=False),
        "train, channels_last": lambda *a: computed(*a, channels_last=True, frozen=False),
        "train, frozen BatchNorm": lambda *a: computed(*a, channels_last=False, frozen=True),
    }
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for arch in options.archs:
            for name, check in checks.items():
                differences, largest = check(options.program, arch, Path(folder), options.tolerance)
                print(f"{arch:10} {name:24} largest difference {largest:.1e}  {'FAILED' if differences else 'ok'}")
                for tensor, far in sorted(differences, key=lambda d: -d[1])[:5]:
                    print(f"    {tensor} is {far:.1e} apart")
                failed += bool(differences)
    if failed:
        sys.exit(f"{failed} checks failed")


if __name__ == "__main__":
    main()
