"""Compares `worker eval` and `worker predict` with torchvision's transforms and model, and the metrics with a plain
computation, on generated photos.

    python tests/parity/eval.py [--worker target/release/worker]

Needs torch, torchvision and numpy. Exits with 1 and names what differs if anything is further apart than allowed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

CLASSES = 12
IMAGES = 60
EPSILONS = [1, 4]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
KEYS = [f"n{10_000_000 + 37 * i}" for i in range(CLASSES)]
SIZES = [(500, 375), (375, 500), (224, 224), (640, 427), (90, 70), (1200, 260), (333, 500), (1024, 768)]


def photo(rng, width, height):
    """Smooth colours, edges and some noise: more like a photograph than noise alone."""
    y, x = np.arange(height), np.arange(width)
    image = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(6):
            fx, fy, phase = rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08), rng.uniform(0, 6)
            wave = np.outer(np.sin(fy * y + phase), np.cos(fx * x)) + np.outer(np.cos(fy * y + phase), np.sin(fx * x))
            image[..., channel] += wave * rng.uniform(10, 50)
    for _ in range(8):
        x0, y0 = rng.integers(0, width), rng.integers(0, height)
        image[y0 : y0 + height // 4, x0 : x0 + width // 4] += rng.uniform(-90, 90, 3)
    image += 120 + rng.normal(0, 8, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def transform(size=224):
    return transforms.Compose([
        transforms.Resize(int(np.ceil(size / 0.875))),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])


def network():
    """A resnet18 whose answers are spread over the classes, as a trained one's are."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18(num_classes=CLASSES)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def centre(model, batch):
    """Shifts the classifier so that no class is every image's answer, and scales it to logits of a trained size."""
    with torch.no_grad():
        logits = model(batch)
        spread = logits.std(0)
        model.fc.weight.mul_((2 / spread).unsqueeze(1))
        model.fc.bias.copy_((model.fc.bias - logits.mean(0)) * 2 / spread)


def write_set(root, rng, keys, images, name, formats=(".JPEG",), sizes=SIZES):
    """`images` photos dealt to class folders; returns (path, class) in the worker's order."""
    for number in range(images):
        key = keys[number % len(keys)]
        (root / key).mkdir(parents=True, exist_ok=True)
        suffix = formats[number % len(formats)]
        image = photo(rng, *sizes[number % len(sizes)])
        if suffix == ".JPEG" and number % 11 == 5:
            image = image.convert("L")
        path = root / key / f"{name(number)}{suffix}"
        image.save(path, **({"quality": 85} if suffix == ".JPEG" else {}))


def listed(root, class_of):
    return [(path, class_of(folder.name)) for folder in sorted(root.iterdir()) for path in sorted(folder.iterdir())]


def load(entries, size=224):
    batch = torch.stack([transform(size)(Image.open(path).convert("RGB")) for path, _ in entries])
    return batch, torch.tensor([label for _, label in entries])


def run(worker, *arguments):
    command = [str(worker), *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def shares(logits, labels):
    """Top-1, top-5 in percent and the mean loss, by the definitions."""
    order = logits.argsort(1, descending=True)
    top1 = (order[:, 0] == labels).double().mean().item() * 100
    top5 = (order[:, :5] == labels[:, None]).any(1).double().mean().item() * 100
    return top1, top5, torch.nn.functional.cross_entropy(logits.double(), labels).item()


def attack(model, batch, labels, epsilon, restrict=None):
    """The fast gradient sign method in pixels, outside of the worker's normalized arithmetic."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    pixels = (batch * std + mean).clamp(0, 1).requires_grad_(True)
    logits = model((pixels - mean) / std)
    if restrict is not None:
        logits = logits[:, restrict]
        labels = torch.tensor([restrict.index(int(label)) for label in labels])
    torch.nn.functional.cross_entropy(logits, labels).backward()
    moved = (pixels + epsilon / 255 * pixels.grad.sign()).clamp(0, 1).detach()
    with torch.no_grad():
        logits = model((moved - mean) / std)
    return logits if restrict is None else logits[:, restrict], labels


class Checks:
    def __init__(self):
        self.failed = 0

    def check(self, name, distance, allowed):
        good = distance <= allowed  # not `>`: a NaN must not pass
        print(f"{name:44} largest difference {distance:.1e} (allowed {allowed:.0e})  {'ok' if good else 'FAILED'}")
        self.failed += not good


def predictions(checks, worker, model, folder, entries, batch):
    """Every class's logit of every photo; a photo that cannot be read leaves the others."""
    with torch.no_grad():
        expected = model(batch)
    paths = [path for path, _ in entries]
    options = ["--weights", folder / "w.pth", "--arch", "resnet18", "--exact-resize", "--json", "--top", CLASSES]
    found = run(worker, "predict", *paths, *options, "--classes", folder / "classes.txt")
    assert [image["image"] for image in found] == [str(path) for path in paths]
    logits, probabilities = torch.zeros(2, len(paths), CLASSES, dtype=torch.float64)
    for row, image in enumerate(found):
        ranked = [prediction["logit"] for prediction in image["predictions"]]
        assert ranked == sorted(ranked, reverse=True)
        for prediction in image["predictions"]:
            assert prediction["folder"] == KEYS[prediction["class"]]
            logits[row, prediction["class"]] = prediction["logit"]
            probabilities[row, prediction["class"]] = prediction["probability"]
    spread = expected.std().item()
    print(f"{'':44} (logits of a standard deviation of {spread:.2f})")
    checks.check("predict: logits", (logits - expected).abs().max().item(), 1e-3)
    checks.check("predict: probabilities", (probabilities - expected.double().softmax(1)).abs().max().item(), 1e-3)


def evaluated(checks, worker, model, folder, rng):
    """ImageNet's layout with ReaL, both multi-labels and FGSM; ImageNetV2; a subset of the classes."""
    val, v2, subset = folder / "data" / "val", folder / "v2", folder / "imagenet-a"
    entries = listed(val, KEYS.index)
    batch, labels = load(entries)
    with torch.no_grad():
        logits = model(batch)
    answers = logits.argmax(1).tolist()

    real = [sorted(rng.choice(CLASSES, rng.integers(0, 4), replace=False).tolist()) for _ in range(IMAGES)]
    (folder / "real.json").write_text(json.dumps(real))
    annotations = {}
    for path, _ in entries:
        if rng.random() < 0.9:
            kinds = {kind: [KEYS[i] for i in rng.choice(CLASSES, rng.integers(0, 4), replace=False)]
                     for kind in ("correct", "wrong", "unclear")}
            annotations[path.name] = {kind: keys for kind, keys in kinds.items() if keys}
    problematic = {name: 1 for name in list(annotations)[::9]}
    human = {"initial_annots": annotations, "problematic_images": problematic}
    (folder / "human.json").write_text(json.dumps(human))

    v2_entries = listed(v2, int)
    subset_ids = [1, 4, 7, 9, 10, 11]
    subset_entries = listed(subset, KEYS.index)
    report = run(
        worker, "eval", "--weights", folder / "w.pth", "--arch", "resnet18", "--json", "--batch-size", 20,
        "--exact-resize", "--data", f"imagenet={folder / 'data'}", v2, subset, "--classes", folder / "classes.txt",
        "--real", folder / "real.json", "--multi-label", folder / "human.json", "--fgsm", *EPSILONS,
    )
    imagenet, version2, adversarial = report["sets"]
    assert [s["name"] for s in report["sets"]] == ["imagenet", "v2", "imagenet-a"]
    assert not imagenet["restricted"] and adversarial["restricted"]

    def compare(name, found, logits, labels):
        top1, top5, loss = shares(logits, labels)
        checks.check(f"{name}: top-1, top-5", max(abs(found["top1"] - top1), abs(found["top5"] - top5)), 1e-9)
        checks.check(f"{name}: loss", abs(found["loss"] - loss), 1e-3)

    compare("ImageNet", imagenet, logits, labels)
    v2_batch, v2_labels = load(v2_entries)
    with torch.no_grad():
        compare("ImageNetV2", version2, model(v2_batch), v2_labels)
    a_batch, a_labels = load(subset_entries)
    a_positions = torch.tensor([subset_ids.index(int(label)) for label in a_labels])
    with torch.no_grad():
        compare("a subset of the classes", adversarial, model(a_batch)[:, subset_ids], a_positions)

    right = [answer in real[int(path.stem.split("_")[-1]) - 1]
             for answer, (path, _) in zip(answers, entries) if real[int(path.stem.split("_")[-1]) - 1]]
    assert imagenet["real"]["images"] == len(right) < IMAGES and "real" not in version2
    checks.check("ReaL", abs(imagenet["real"]["accuracy"] - 100 * np.mean(right)), 1e-9)

    correct, by_class = [], {}
    for answer, (path, label) in zip(answers, entries):
        if path.name in annotations and path.name not in problematic:
            annotation = annotations[path.name]
            correct.append(KEYS[answer] in annotation.get("correct", []))
            either = annotation.get("correct", []) + annotation.get("unclear", [])
            by_class.setdefault(label, []).append(KEYS[answer] in either)
    found = imagenet["multi_label"]
    assert found["images"] == len(correct)
    class_mean = 100 * np.mean([np.mean(rights) for rights in by_class.values()])
    checks.check("multi-label: mean over classes", abs(found["class_mean"] - class_mean), 1e-9)
    checks.check("multi-label: correct only", abs(found["correct"] - 100 * np.mean(correct)), 1e-9)

    # A sign where the gradient is nearly 0 can turn with the last bit of a float: single pixels by 2 epsilon,
    # hence the loss is compared, and an answer may turn only where two logits are nearly equal.
    for epsilon, found in zip(EPSILONS, imagenet["fgsm"]):
        attacked, _ = attack(model, batch, labels, epsilon)
        top1, _, loss = shares(attacked, labels)
        checks.check(f"FGSM {epsilon}/255: loss", abs(found["loss"] - loss) / loss, 1e-3)
        checks.check(f"FGSM {epsilon}/255: top-1", abs(found["top1"] - top1), 100 / IMAGES + 1e-9)
    attacked, positions = attack(model, a_batch, a_labels, EPSILONS[0], subset_ids)
    _, _, loss = shares(attacked, positions)
    checks.check("FGSM on a subset: loss", abs(adversarial["fgsm"][0]["loss"] - loss) / loss, 1e-3)


def corrupted(checks, worker, model, folder, rng):
    """ImageNet-C's layout with a baseline from a file."""
    root, errors = folder / "imagenet-c", {}
    for group, name in [("weather", "fog"), ("noise", "shot_noise")]:
        for severity in range(1, 6):
            base = root / group / name / str(severity)
            write_set(base, rng, KEYS, CLASSES, lambda n: f"ILSVRC2012_val_{n + 1:08d}", sizes=[(224, 224)])
            batch, labels = load(listed(base, KEYS.index))
            with torch.no_grad():
                errors.setdefault(name, []).append((model(batch).argmax(1) != labels).double().mean().item())
    baseline = {"fog": 0.8, "shot_noise": [0.5, 0.6, 0.7, 0.8, 0.9]}
    (folder / "baseline.json").write_text(json.dumps(baseline))
    report = run(worker, "eval", "--weights", folder / "w.pth", "--arch", "resnet18", "--exact-resize", "--json", "--data", root,
                 "--classes", folder / "classes.txt", "--corruption-baseline", folder / "baseline.json")
    found = report["corrupted"][0]
    mean = 100 * np.mean([np.mean(errors[name]) for name in errors])
    mce = 100 * np.mean([np.mean(errors[name]) / np.mean(baseline[name]) for name in errors])
    checks.check("ImageNet-C: unnormalized mean error", abs(found["mean_error"] - mean), 1e-9)
    checks.check("ImageNet-C: mean corruption error", abs(found["mce"] - mce), 1e-9)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="target/release/worker", help="the built worker")
    parser.add_argument("--program", help="not used; as for the other comparisons")
    options = parser.parse_args()
    torch.set_num_threads(2)
    rng, checks = np.random.default_rng(7), Checks()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_set(folder / "data" / "val", rng, KEYS, IMAGES, lambda n: f"ILSVRC2012_val_{n + 1:08d}", (".JPEG", ".png"))
        write_set(folder / "v2", rng, [str(i) for i in range(CLASSES)], 2 * CLASSES, lambda n: f"{n:04d}")
        write_set(folder / "imagenet-a", rng, [KEYS[i] for i in (1, 4, 7, 9, 10, 11)], 24, lambda n: f"0.00_{n}")
        (folder / "classes.txt").write_text("".join(f"{key} thing {i}\n" for i, key in enumerate(KEYS)))
        model = network()
        entries = listed(folder / "data" / "val", KEYS.index)
        batch, _ = load(entries)
        centre(model, batch)
        torch.save(model.state_dict(), folder / "w.pth")
        predictions(checks, options.worker, model, folder, entries, batch)
        evaluated(checks, options.worker, model, folder, rng)
        corrupted(checks, options.worker, model, folder, rng)
    if checks.failed:
        sys.exit(f"{checks.failed} checks failed")


if __name__ == "__main__":
    main()
