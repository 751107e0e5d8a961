"""Compares the worker's optimizers with torch.optim.SGD and the adamp package: 100 steps with the same gradients.

Needs torch, adamp and safetensors, and the built example:

    python tests/parity/optim.py --program target/release/examples/parity

The gradients make AdamP take each of its ways: weights along and across their gradients, by channel and as a whole. Exits with 1
and names what differs if any parameter is further apart than the tolerance after any step.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from adamp import AdamP
from safetensors.torch import load_file, save_file

STEPS = 100
SHAPES = {
    "conv": (16, 8, 3, 3),
    "pointwise": (12, 24, 1, 1),
    "depthwise": (20, 1, 3, 3),
    "linear": (10, 32),
    "bn.weight": (16,),
    "bias": (10,),
}


def across(gradient, weight, dims):
    """The gradient without its part along the weight, over `dims`."""
    along = (gradient * weight).sum(dims, keepdim=True) / (weight * weight).sum(dims, keepdim=True)
    return gradient - along * weight


def reference(name, parameters, options):
    """The optimizer of PyTorch or of the package, in one group or two."""
    decays = [p for p in parameters if p.dim() > 1 or not options["only_weights_decay"]]
    others = [p for p in parameters if all(p is not q for q in decays)]
    groups = [{"params": decays, "weight_decay": options["wd"]}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=options["momentum"], nesterov=options["nesterov"])
    return AdamP(groups, lr=1.0, betas=(options["momentum"], 0.999), nesterov=options["nesterov"])


def steps(name, options, generator):
    """Start, gradients, learning rates, and the parameters after each step of the reference."""
    start = {n: torch.randn(shape, generator=generator) * 0.5 + 0.1 for n, shape in SHAPES.items()}
    parameters = {n: torch.nn.Parameter(p.clone()) for n, p in start.items()}
    optimizer = reference(name, list(parameters.values()), options)
    gradients, after = ({n: [] for n in SHAPES} for _ in range(2))
    rates = torch.linspace(0.05, 0.002, STEPS)
    for step in range(STEPS):
        for n, p in parameters.items():
            gradient = torch.randn(SHAPES[n], generator=generator)
            if p.dim() > 1 and step % 4 == 1:
                gradient = across(gradient, p.data, tuple(range(1, p.dim())))
            elif p.dim() > 1 and step % 4 == 2:
                gradient = across(gradient, p.data, tuple(range(p.dim())))
            elif step % 4 == 3:
                gradient = gradient + 3 * p.data
            p.grad = gradient
            gradients[n].append(gradient)
        for group in optimizer.param_groups:
            group["lr"] = rates[step].item()
        optimizer.step()
        for n, p in parameters.items():
            after[n].append(p.detach().clone())
    stacked = lambda lists: {n: torch.stack(tensors) for n, tensors in lists.items()}
    return start, stacked(gradients), rates, stacked(after)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built example `parity`")
    parser.add_argument("--worker", help="accepted, as for every comparison; not used")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()

    failed = 0
    generator = torch.Generator().manual_seed(7)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.safetensors", Path(folder) / "out.safetensors"
        cases = itertools.product(["sgd", "adamp"], [True, False], [False, True], [False, True])
        for name, nesterov, only_weights_decay, channels_last in cases:
            chosen = {"momentum": 0.9, "wd": 0.01, "nesterov": nesterov, "only_weights_decay": only_weights_decay}
            start, gradients, rates, expected = steps(name, chosen, generator)
            tensors = {f"p.{n}": t for n, t in start.items()} | {f"g.{n}": t for n, t in gradients.items()}
            save_file({**tensors, "lr": rates}, given)
            flags = ["--nesterov"] * nesterov + ["--only-weights-decay"] * only_weights_decay
            flags += ["--channels-last"] * channels_last
            command = [options.program, "optim", "--optimizer", name, "--momentum", "0.9", "--wd", "0.01", *flags]
            subprocess.run([*command, "--input", given, "--output", out], check=True)
            found = load_file(out)
            assert set(found) == {f"p.{n}" for n in SHAPES}
            far = {n: (found[f"p.{n}"] - expected[n]).abs().max().item() for n in SHAPES}
            # Not `d > tolerance`: a NaN must not pass.
            wrong = {n: d for n, d in far.items() if not d <= options.tolerance}
            what = f"{name}{', nesterov' * nesterov}{', two groups' * only_weights_decay}{', channels_last' * channels_last}"
            verdict = "FAILED" if wrong else "ok"
            print(f"{STEPS} steps of {what:44} largest difference {max(far.values()):.1e}  {verdict}")
            for n, distance in sorted(wrong.items(), key=lambda d: -d[1]):
                first = ((found[f"p.{n}"] - expected[n]).abs().flatten(1).amax(1) > options.tolerance).nonzero()[0].item()
                print(f"    {n} is {distance:.1e} apart, first in step {first}")
            failed += bool(wrong)
    if failed:
        sys.exit(f"{failed} comparisons failed")


if __name__ == "__main__":
    main()
