"""Compares `worker label` with the same computation in PyTorch: Pillow's resize, the last feature map, the fully
connected layer as a 1x1 convolution, topk. Then `worker pack` with the maps that it was given.

    python tests/parity/label.py --worker target/release/worker [--archs resnet18 rexnet_100 resnet50]

Needs torch, torchvision, timm and Pillow. Scores may be 2e-5 of the largest one apart; a class may stand in another
place only where its score is that close to the one in that place. Exits with 1 where anything differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import timm
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional

CLASSES = 100
TOP_K = 5
TOLERANCE = 2e-5
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_images(folder):
    """Photographs of nothing, wide, tall, small and large, one grey: smooth waves with edges and noise."""
    generator = numpy.random.default_rng(7)
    names = []
    for i, (width, height) in enumerate([(500, 375), (375, 500), (640, 427), (90, 60), (224, 224), (900, 300)]):
        y, x = numpy.mgrid[0:height, 0:width].astype(float)
        a, b, c = generator.uniform(20, 90, 3)
        pixels = numpy.stack([numpy.sin(x / a) + y / height, numpy.cos(y / b), (x > width / 3) * 1.2 - x / width], -1)
        pixels = 127 + 70 * pixels + generator.normal(0, 12, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
        path = folder / "train" / f"n{i % 2}" / f"n{i % 2}_{i}.dots.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        (image.convert("L") if i == 4 else image).save(path, quality=90)
        names.append(path)
    return names


def trained(arch, seed):
    """A network with weights and statistics that it could have after training."""
    torch.manual_seed(seed)
    if arch.startswith("rexnet"):
        model = timm.create_model(arch, num_classes=CLASSES)
    else:
        model = getattr(torchvision.models, arch)(num_classes=CLASSES)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def body_and_head(model):
    """The module that gives the last feature map, and the linear layer after the pooling."""
    if hasattr(model, "forward_features"):
        return model.forward_features, model.head.fc
    if hasattr(model, "fc"):
        return torch.nn.Sequential(*list(model.children())[:-2]), model.fc
    return model.features, model.classifier[-1]


def expected_scores(body, head, path, size):
    """[classes, h, w]: height first, as torch has it."""
    image = Image.open(path).convert("RGB")
    # What torchvision's Resize does with a picture of Pillow. In two steps because Pillow 13 does the columns first
    # for some sizes and all versions before do the rows first: one level of 255 apart, which is seen here.
    image = image.resize((size, image.height), Image.BILINEAR).resize((size, size), Image.BILINEAR)
    x = functional.normalize(functional.to_tensor(image), MEAN, STD)[None]
    with torch.no_grad():
        features = body(x)
        return torch.nn.functional.conv2d(features, head.weight[:, :, None, None], head.bias)[0]


def compare(found, scores, k, half=False):
    """The largest difference of a map [2, k, h, w] from the top k of [classes, h, w], as a share of the largest
    score; raises where a class stands where it may not."""
    assert list(found.shape) == [2, k, *scores.shape[1:]], (found.shape, scores.shape)
    assert found.dtype == (torch.float16 if half else torch.float32), found.dtype
    logits, ids = found[0].double(), found[1].long()
    assert (found[1] == ids).all()
    scale = scores.abs().max().double()
    values, _ = scores.double().topk(k, 0)
    ours = scores.double().gather(0, ids)
    rank = ((ours - values).abs().max() / scale).item()
    assert rank < TOLERANCE, f"a class stands {rank:.1e} of the largest score from its place"
    assert all(len(set(cell)) == k for cell in ids.flatten(1).T.tolist()), "a class stands twice in a cell"
    return ((logits - ours).abs().max() / scale).item()


def label(worker, *arguments):
    subprocess.run([worker, "label", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def check(name, largest, tolerance, failed):
    ok = largest < tolerance  # a NaN is not
    print(f"label {name:36} largest difference {largest:.1e} (allowed {tolerance:.0e})  {'ok' if ok else 'FAILED'}", flush=True)
    failed += [] if ok else [name]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="target/release/worker")
    parser.add_argument("--program", help="not needed here")
    parser.add_argument("--archs", nargs="+", default=["resnet18", "efficientnet_b0", "rexnet_100", "resnet50"])
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        images = make_images(data)

        def maps(out):
            return [torch.load(out / p.parent.name / f"{p.name[:-5]}.pt", weights_only=True) for p in images]

        for seed, arch in enumerate(options.archs):
            model = trained(arch, seed)
            weights = Path(folder) / f"{arch}.pth"
            torch.save({"state_dict": model.state_dict()}, weights)
            common = ["--data", data, "--arch", arch, "--weights", weights, "--top-k", TOP_K]
            body, head = body_and_head(model)
            variants = [(475, []), (480, ["--map", 15]), (224, ["--size", 224, "--half"]), (224, ["--size", 224])]
            for size, flags in variants if seed == 0 else variants[-1:]:
                out = Path(folder) / "-".join(map(str, [arch, *flags, "x"]))
                label(options.worker, *common, "--out", out, *flags)
                half = "--half" in flags
                scores = [expected_scores(body, head, path, size) for path in images]
                largest = max(compare(m, s, TOP_K, half) for m, s in zip(maps(out), scores))
                check(f"{arch} {' '.join(map(str, flags)) or 'as it comes'}", largest, 1e-3 if half else TOLERANCE, failed)
                if size == 475:
                    swapped = min(
                        (m[0].double() - s.transpose(1, 2).gather(0, m[1].long()).double()).abs().max().item()
                        for m, s in zip(maps(out), scores)
                    )
                    assert swapped > 0.01, "the images do not tell the axes apart"

        # The same network as TorchScript: the feature map with its head beside it, and the scores themselves.
        class Scores(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = body, head

            def forward(self, x):
                return torch.nn.functional.conv2d(self.body(x), self.head.weight[:, :, None, None], self.head.bias)

        torch.jit.trace(body, torch.zeros(1, 3, 96, 96)).save(Path(folder) / "body.pt")
        torch.jit.trace(Scores().eval(), torch.zeros(1, 3, 96, 96)).save(Path(folder) / "scores.pt")
        scores = [expected_scores(body, head, path, 224) for path in images]
        for name, flags in [("body", ["--head", weights]), ("scores", [])]:
            out = Path(folder) / f"script-{name}"
            script = f"script:{Path(folder) / name}.pt"
            label(options.worker, "--data", data, "--out", out, "--size", 224, "--arch", script, *flags)
            largest = max(compare(m, s, TOP_K) for m, s in zip(maps(out), scores))
            check(f"TorchScript that gives its {name}", largest, TOLERANCE, failed)

        # What the packed store says of a map is what torch.load says of the file, rounded to float16.
        out, store = Path(folder) / "script-scores", Path(folder) / "packed"
        for flags, dtype in [([], torch.float16), (["--full"], torch.float32)]:
            subprocess.run([options.worker, "pack", out, store, *flags], check=True, stdout=subprocess.DEVNULL)
            largest = 0.0
            for path, stored in zip(images, maps(out)):
                key = f"{path.parent.name}/{path.name[:-5]}"
                inspect = [options.worker, "inspect", "label-map", "--json", "--classes", str(CLASSES)]
                found = [subprocess.run([*inspect, *a], check=True, stdout=subprocess.PIPE).stdout
                         for a in ([store, "--key", key], [path_of(out, path, stored, dtype, folder)])]
                packed, single = (json.loads(report)["crops"] for report in found)
                assert packed == single, f"{key}: packed and .pt teach different things"
                difference = (stored[0] - stored[0].to(dtype).float()).abs().max() / stored[0].abs().max()
                largest = max(largest, difference.item())
            check(f"packed as {str(dtype)[6:]} against .pt", largest, 5e-4, failed)
    if failed:
        sys.exit(f"{len(failed)} comparisons failed: {', '.join(failed)}")


def path_of(out, path, stored, dtype, folder):
    """The map as a .pt file whose logits are of `dtype`'s precision."""
    rounded = Path(folder) / "rounded.pt"
    torch.save(torch.stack([stored[0].to(dtype).float(), stored[1]]), rounded)
    return rounded


if __name__ == "__main__":
    main()
