"""Compares 20 training steps of a ResNet-18 with the same steps in PyTorch: losses, weights and their moving average.

Needs torch, torchvision, timm, adamp and safetensors, and the built example:

    python tests/parity/curve.py --program target/release/examples/parity

Fixed batches with soft targets, label smoothing, linear warmup and cosine decay, with SGD and AdamP, from weights of the same seed.
The smallest change grows within ten steps to a visible one, in PyTorch as well, on some processors sooner than on others. SGD's
arithmetic is PyTorch's to the bit, so that all of it must stay equal. AdamP's differs in its last bits, and a fused BatchNorm and
convolutions to small maps take their sums in another order: of these the first losses must be equal, and the rest may be about as
far apart as PyTorch's results for images that differ in their last bit. Exits with 1 if anything is further apart.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from adamp import AdamP
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV2

ARCH, SEED, CLASSES, BATCH = "resnet18", 3, 20, 8
STEPS, PER_EPOCH, WARMUP_EPOCHS = 20, 5, 1
SMOOTHING, EMA = 0.1, 0.9
# `size` is that of the images: the last maps of 96 pixels are libtorch's, of 64 they are small. `equal` is how many of the first
# losses must be, and how far they may be apart.
CASES = {
    "SGD": {"size": 96, "optimizer": "sgd", "lr": 0.01, "wd": 1e-4, "equal": (STEPS, 1e-5)},
    "SGD, no decay of norms and biases": {
        "size": 96, "optimizer": "sgd", "lr": 0.01, "wd": 1e-2, "only_weights_decay": True, "equal": (STEPS, 1e-5),
    },
    "SGD, small maps": {"size": 64, "optimizer": "sgd", "lr": 0.01, "wd": 1e-4, "equal": (3, 1e-4)},
    "SGD, small maps, BatchNorm fused": {
        "size": 64, "optimizer": "sgd", "lr": 0.01, "wd": 1e-4, "fused": True, "equal": (3, 1e-4),
    },
    "SGD, small maps, bf16": {
        "size": 64, "optimizer": "sgd", "lr": 0.01, "wd": 1e-4, "precision": "bf16", "equal": (3, 1e-2),
    },
    "AdamP": {"size": 96, "optimizer": "adamp", "lr": 2e-4, "wd": 1e-2, "equal": (5, 1e-5)},
}


class AdamPAnyMemory(AdamP):
    """The package's AdamP, which cannot `view` weights in channels_last memory: `reshape` gives the same values."""

    def _channel_view(self, x):
        return x.reshape(x.size(0), -1)

    def _layer_view(self, x):
        return x.reshape(1, -1)


def rate(step, peak):
    """Linear warmup from 0, then half a cosine to 0."""
    warmup = WARMUP_EPOCHS * PER_EPOCH
    if step < warmup:
        return peak * step / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))


def batches(size):
    """Images `[STEPS, BATCH, size, size, 3]` and soft targets for every step."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(STEPS, BATCH, size, size, 3, generator=generator)
    return images, (3 * torch.randn(STEPS, BATCH, CLASSES, generator=generator)).softmax(-1)


def train(images, targets, case):
    """The curve in PyTorch, the model and the average."""
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, ARCH)(num_classes=CLASSES).to(memory_format=torch.channels_last)
    average = ModelEmaV2(model, decay=EMA)
    decays = [p for p in model.parameters() if p.dim() > 1 or not case.get("only_weights_decay", False)]
    others = [p for p in model.parameters() if p.dim() <= 1 and case.get("only_weights_decay", False)]
    groups = [{"params": decays, "weight_decay": case["wd"]}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    if case["optimizer"] == "adamp":
        optimizer = AdamPAnyMemory(groups, lr=1.0, betas=(0.9, 0.999), nesterov=True)
    else:
        # Fused, as the worker's: it rounds the last elements of some tensors otherwise.
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, fused=True)
    losses = []
    model.train()
    for step in range(STEPS):
        x = images[step].permute(0, 3, 1, 2)
        target = targets[step] * (1 - SMOOTHING) + SMOOTHING / CLASSES
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.get("precision") == "bf16"):
            logits = model(x)
        loss = -(target * logits.log_softmax(-1, dtype=torch.float32)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, case["lr"])
        optimizer.step()
        average.update(model)
        losses.append(loss.item())
    return torch.tensor(losses), model.state_dict(), average.module.state_dict()


def distance(found, expected):
    """Largest difference of two state_dicts, as a share of each tensor's largest value (or of 1, if that is more).

    Without BatchNorm's counters: timm averages them and cuts off what is behind the point.
    """
    assert set(found) == set(expected)
    names = [n for n in expected if not n.endswith("num_batches_tracked")]
    return max(((found[n] - expected[n]).abs().max() / expected[n].abs().max().clamp(min=1)).item() for n in names)


def differences(found, expected):
    """How far two results of `train` are apart."""
    return {
        "losses": (found[0] - expected[0]).abs().max().item(),
        "weights": distance(found[1], expected[1]),
        "average": distance(found[2], expected[2]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built example `parity`")
    parser.add_argument("--worker", help="accepted, as for every comparison; not used")
    options = parser.parse_args()

    # With the same number of threads sums are taken in the same order; more than one gains little at this size.
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.safetensors", Path(folder) / "out.safetensors"
        for name, case in CASES.items():
            images, targets = batches(case["size"])
            save_file({"images": images, "targets": targets}, given)
            command = [options.program, "curve", "--arch", ARCH, "--seed", SEED, "--optimizer", case["optimizer"]]
            command += ["--momentum", 0.9, "--nesterov", "--wd", case["wd"], "--lr", case["lr"]]
            command += ["--only-weights-decay"] * case.get("only_weights_decay", False) + ["--fused"] * case.get("fused", False)
            command += ["--precision", case.get("precision", "fp32")]
            command += ["--warmup-epochs", WARMUP_EPOCHS, "--steps-per-epoch", PER_EPOCH]
            command += ["--label-smoothing", SMOOTHING, "--ema-decay", EMA, "--input", given, "--output", out]
            subprocess.run([str(word) for word in command], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            found = load_file(out)
            expected = train(images, targets, case)
            part = lambda prefix: {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}
            far = differences((found["loss"], part("model."), part("ema.")), expected)
            count, tolerance = case["equal"]
            allowed = dict.fromkeys(far, tolerance)
            if count < STEPS:
                # One curve is one draw of what rounding grows to, so that it may be three times as far.
                for sign in (-1, 1):
                    noise = differences(train(images * (1 + sign * 2**-23), targets, case), expected)
                    allowed = {what: max(allowed[what], 3 * d) for what, d in noise.items()}
                far[f"first {count} losses"] = (found["loss"][:count] - expected[0][:count]).abs().max().item()
                allowed[f"first {count} losses"] = tolerance
            ok = all(d <= allowed[what] for what, d in far.items())
            shown = ", ".join(f"{what} {d:.1e} (allowed {allowed[what]:.0e})" for what, d in far.items())
            first, last = expected[0][0], expected[0][-1]
            print(f"{STEPS} steps with {name}, loss {first:.3f} to {last:.3f}: {shown}  {'ok' if ok else 'FAILED'}")
            failed += not ok
    if failed:
        sys.exit(f"{failed} curves differ")


if __name__ == "__main__":
    main()
