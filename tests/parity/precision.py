"""Compares training in bf16 and fp16 with torch.autocast and torch.amp.GradScaler: losses, scales and weights.

Needs torch, torchvision and safetensors, and the built example:

    python tests/parity/precision.py --program target/release/examples/parity

20 steps of a ResNet-18 with SGD from weights of the same seed, on the CPU; in bf16 with images whose last maps are not small, in
fp16 with small images, for some processors have no fast convolutions of it. In fp16 some batches have targets so large that the
gradient overflows; on some processors others overflow as well, in PyTorch too. Where GradScaler leaves an update out PyTorch keeps
the batch's BatchNorm statistics; the worker does not, and so neither does the comparison. The scales have to be equal after each of
20,000 steps of which some overflow, by chance. Exits with 1 if anything is further apart than the tolerance.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file

from curve import ARCH, CLASSES, PER_EPOCH, SEED, STEPS, WARMUP_EPOCHS, batches, distance, rate

LR, WD = 0.01, 1e-4
# Steps whose targets are too large for a gradient of float16, and how large they are.
OVERFLOWS = {2: 1e5, 3: 1e5, 11: 1e6}


def train(images, targets, dtype):
    """Losses, scales after each step, and the model in PyTorch."""
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, ARCH)(num_classes=CLASSES).to(memory_format=torch.channels_last)
    scaled = dtype == torch.float16
    # As the worker's, which leaves steps out before it; PyTorch's fused one does so within, on the CPU with other results.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=WD, fused=not scaled)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    losses, scales = [], []
    model.train()
    for step in range(STEPS):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.autocast("cpu", dtype=dtype):
            logits = model(images[step].permute(0, 3, 1, 2))
            loss = -(targets[step] * logits.log_softmax(-1, dtype=torch.float32)).sum(-1).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, LR)
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < scale:
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return torch.tensor(losses), torch.tensor(scales), model.state_dict()


def curves(program, folder, tolerance):
    """How many of the two curves differ."""
    given, out = folder / "given.safetensors", folder / "out.safetensors"
    failed = 0
    for name, dtype, size in [("bf16", torch.bfloat16, 160), ("fp16", torch.float16, 32)]:
        images, targets = batches(size)
        if dtype == torch.float16:
            for step, factor in OVERFLOWS.items():
                targets[step] *= factor
        save_file({"images": images, "targets": targets}, given)
        command = [program, "curve", "--arch", ARCH, "--seed", SEED, "--optimizer", "sgd", "--momentum", 0.9, "--nesterov"]
        command += ["--wd", WD, "--lr", LR, "--warmup-epochs", WARMUP_EPOCHS, "--steps-per-epoch", PER_EPOCH]
        command += ["--label-smoothing", 0, "--ema-decay", 0, "--precision", name, "--input", given, "--output", out]
        subprocess.run([str(word) for word in command], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found, (losses, scales, weights) = load_file(out), train(images, targets, dtype)
        apart = {
            "losses": ((found["loss"] - losses).abs() / losses.abs()).max().item(),
            "weights": distance({n[6:]: t for n, t in found.items() if n.startswith("model.")}, weights),
        }
        # Not `d > tolerance`: a NaN must not pass.
        ok = all(d <= tolerance for d in apart.values())
        what = ", ".join(f"{part} {d:.1e}" for part, d in apart.items())
        if dtype == torch.float16:
            overflowed = [step for step in range(STEPS) if scales[step] < ([65536.0] + scales.tolist())[step]]
            assert set(OVERFLOWS) <= set(overflowed), overflowed
            ok &= found["loss_scale"].tolist() == scales.tolist()
            what += f", scale {scales[0]:.0f} to {scales[-1]:.0f} after {len(overflowed)} overflows"
        print(f"{STEPS} steps in {name}: largest differences: {what}  {'ok' if ok else 'FAILED'}")
        failed += not ok
    return failed


def scale_sequence(program, folder):
    """Whether the scales differ, over steps of which some overflow."""
    given, out = folder / "finite.safetensors", folder / "scales.safetensors"
    steps = 20_000
    generator = torch.Generator().manual_seed(9)
    finite = (torch.rand(steps, generator=generator) > 1 / 1500).float()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu")
    expected = []
    for good in finite:
        parameter.grad = scaler.scale(torch.ones(1)) if good else torch.full((1,), torch.inf)
        scaler.step(optimizer)
        scaler.update()
        expected.append(scaler.get_scale())
    save_file({"finite": finite}, given)
    subprocess.run([program, "scales", "--input", given, "--output", out], check=True)
    found = load_file(out)["scale"].tolist()
    ok = found == expected
    changes = sum(a != b for a, b in zip(expected, expected[1:]))
    print(f"{steps} steps of the loss scale, {changes} changes, equal  ok" if ok else "the loss scales differ  FAILED")
    return not ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built example `parity`")
    parser.add_argument("--worker", help="accepted, as for every comparison; not used")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    options = parser.parse_args()

    # With the same number of threads sums are taken in the same order.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        failed = curves(options.program, Path(folder), options.tolerance)
        failed += scale_sequence(options.program, Path(folder))
    if failed:
        sys.exit(f"{failed} comparisons failed")


if __name__ == "__main__":
    main()
