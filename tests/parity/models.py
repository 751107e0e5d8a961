"""Compares the worker's networks with torchvision's and timm's: names and their order, parameter counts, initial
weights, logits, gradients, running statistics, with the masks of dropout and stochastic depth drawn from equal seeds;
and any TorchScript module with the Python module that it was made from.

    python tests/parity/models.py --program target/release/examples/parity [--archs resnet18 rexnet_100]

Needs torch, torchvision, timm and safetensors, and the built example. Exits with 1 and names what differs if
anything is further apart than the tolerance.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"]
RESNETS += ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]
EFFICIENTNETS = [f"efficientnet_b{i}" for i in range(8)]
REXNETS = ["rexnet_100", "rexnet_130", "rexnet_150", "rexnet_200", "rexnet_300"]
ARCHS = RESNETS + EFFICIENTNETS + REXNETS + ["script"]
# Compared in every way; the others, made of the same layers, only as they are trained unless --thorough.
THOROUGH = {"resnet18", "resnet50", "resnext50_32x4d", "efficientnet_b0", "rexnet_100", "script"}
CLASSES = 1000
SEED = 11


class Small(torch.nn.Module):
    """For `script:`: every role that a tensor can have, two BatchNorms, and random masks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, -0.2, 0.3])[:, None, None])
        self.scale = torch.nn.Parameter(torch.full((3, 1, 1), 1.5), requires_grad=False)
        layers = [torch.nn.Conv2d(3, 16, 5, stride=4), torch.nn.BatchNorm2d(16, eps=1e-3, momentum=0.3)]
        layers += [torch.nn.GELU(), torch.nn.Conv2d(16, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers)
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(32, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers((x - self.mean) * self.scale)
        return self.head(x.mean([2, 3]))


def reference(arch):
    if arch == "script":
        return Small()
    return timm.create_model(arch) if arch in REXNETS else getattr(torchvision.models, arch)(num_classes=CLASSES)


def authors_name(name):
    """ReXNet's authors' name of one of timm's tensors, by the layout of both: written apart from the worker's."""
    parts = name.split(".")
    if parts[0] == "stem":
        return f"features.{('conv', 'bn').index(parts[1])}.{parts[2]}"
    if parts[0] == "head":
        return f"output.1.{parts[2]}"
    block = int(parts[1])
    if block == 16:
        return f"features.{19 + ('conv', 'bn').index(parts[2])}.{parts[3]}"
    # [conv_exp, bn, swish], conv_dw, bn, [se], relu6, conv_pwl, bn
    sequence = (["conv_exp.conv", "conv_exp.bn", ""] if block > 0 else []) + ["conv_dw.conv", "conv_dw.bn"]
    sequence += (["se"] if block > 2 else []) + ["", "conv_pwl.conv", "conv_pwl.bn"]
    if parts[2] == "se":
        inner = {"fc1": "fc.0", "bn": "fc.1", "fc2": "fc.3"}[parts[3]]
        return f"features.{block + 3}.out.{sequence.index('se')}.{inner}.{parts[4]}"
    return f"features.{block + 3}.out.{sequence.index('.'.join(parts[2:4]))}.{parts[4]}"


def ours(arch, tensors):
    """`tensors` of the reference by our names and with our shapes."""
    if arch not in REXNETS:
        return dict(tensors)
    renamed = {authors_name(name): tensor for name, tensor in dict(tensors).items()}
    if "output.1.weight" in renamed:
        renamed["output.1.weight"] = renamed["output.1.weight"][..., None, None]
    return renamed


def worker(binary, arch, folder, *arguments):
    """The tensors that the program writes, the state_dict's names in order, and its number of parameters."""
    out = folder / "out.safetensors"
    arch = f"script:{folder / 'small.pt'}" if arch == "script" else arch
    command = [binary, "--arch", arch, "--classes", CLASSES, "--seed", SEED, "--output", out, *arguments]
    subprocess.run(list(map(str, command)), check=True)
    with safe_open(out, "pt") as file:
        notes = file.metadata()
    return load_file(out), notes["names"].split(), int(notes["parameters"])


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
    expected = reference(arch).state_dict()
    found, names, _ = worker(binary, arch, folder)
    assert names == list(expected), "the names or their order differ"
    return compare([(n, found[f"init.{n}"], t) for n, t in expected.items()], 0.0)


def distributed(binary, arch, folder, _tolerance):
    """ReXNet's initial weights have their constructor's bound, which a layer of any size comes near to, and its spread."""
    shapes = ours(arch, reference(arch).state_dict())
    found, names, _ = worker(binary, arch, folder)
    assert set(names) == set(shapes), "the names differ"
    pairs = []
    for name in names:
        fan_in = shapes[name.replace("bias", "weight")][0].numel() if name.endswith(("weight", "bias")) else 0
        tensor = found[f"init.{name}"]
        if name.endswith("weight") and tensor.dim() == 4:
            bound, many = fan_in**-0.5, tensor.numel()
            assert tensor.abs().max() <= bound, name
            # The standard error of a uniform distribution's deviation is 0.45 / sqrt(n) of it: 6 of them.
            off = (tensor.std() / (bound / 3**0.5) - 1).abs() * many**0.5 / (6 * 0.45)
            pairs.append((name, off, torch.zeros(())))
    return compare(pairs, 1.0)


def computed(binary, arch, folder, tolerance, *, channels_last, frozen):
    """One forward in evaluation, one forward and backward in training."""
    torch.manual_seed(SEED + 1)
    model = reference(arch)
    # Statistics that a trained model could have, so that evaluation is not nearly the identity.
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(4, 3, 64, 64)
    target = torch.randn(4, CLASSES).softmax(-1)
    given = folder / "given.safetensors"
    weights = {name: tensor.clone() for name, tensor in ours(arch, model.state_dict()).items()}
    save_file({**weights, "input": x, "target": target}, given)
    flags = ["--channels-last"] * channels_last + ["--frozen"] * frozen
    found, names, parameters = worker(binary, arch, folder, "--input", given, *flags)
    assert set(names) == set(weights) and (arch in REXNETS or names == list(weights)), "the names or their order differ"
    wanted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parameters == wanted, f"{parameters} parameters, where it has {wanted}"

    # In f32 and the same memory format, hence with the same kernels: against f64 even torchvision's own
    # gradients are 4e-4 to 2e-2 apart at this depth, which would hide a small mistake.
    model.eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits_eval = model(x)
    model.train()
    for module in model.modules():
        if frozen and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(SEED)
    logits = model(x)
    loss = -(target * logits.log_softmax(-1)).sum()
    loss.backward()
    pairs = [("logits_eval", logits_eval), ("logits", logits.detach()), ("loss", loss.detach())]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    pairs += [(f"grad.{name}", gradient) for name, gradient in ours(arch, gradients).items()]
    pairs += [(f"buffer.{name}", buffer) for name, buffer in ours(arch, model.named_buffers()).items()]
    assert set(found) == {name for name, _ in pairs}, "not the same gradients and buffers"
    return compare([(name, found[name], expected) for name, expected in pairs], tolerance)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/examples/parity", help="the built example `parity`")
    parser.add_argument("--worker", help="not needed here")
    parser.add_argument("--archs", nargs="+", default=ARCHS)
    parser.add_argument("--thorough", action="store_true", help="every network in every way")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()

    checks = {
        "initial weights": lambda arch, *a: (distributed if arch in REXNETS else initial)(options.program, arch, *a),
        "train": lambda *a: computed(options.program, *a, channels_last=False, frozen=False),
        "train, channels_last": lambda *a: computed(options.program, *a, channels_last=True, frozen=False),
        "train, frozen BatchNorm": lambda *a: computed(options.program, *a, channels_last=False, frozen=True),
    }
    failed, done, furthest = 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        torch.manual_seed(SEED)
        torch.jit.script(Small()).save(str(folder / "small.pt"))
        for arch in options.archs:
            for name, check in checks.items():
                if name != "train, channels_last" and arch not in THOROUGH and not options.thorough:
                    continue
                if name == "train, frozen BatchNorm" and arch == "script":  # refused
                    continue
                try:
                    differences, largest = check(arch, folder, options.tolerance)
                except (AssertionError, subprocess.CalledProcessError) as error:
                    differences, largest = [(str(error), float("nan"))], float("nan")
                print(f"{arch:17} {name:24} largest difference {largest:.1e}  {'FAILED' if differences else 'ok'}", flush=True)
                for tensor, far in sorted(differences, key=lambda d: -d[1])[:5]:
                    print(f"    {tensor} is {far:.1e} apart")
                failed, done = failed + bool(differences), done + 1
                if name != "initial weights":
                    furthest = max(furthest, largest)
    print(f"models: {done} comparisons, {failed} failed, largest difference {furthest:.1e} (allowed {options.tolerance:.0e})")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
