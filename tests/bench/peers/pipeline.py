"""The reference's data: Pillow and torchvision for the picture, torch.load, a dense map of all classes and roi_align for its target."""

import pathlib

import torch
import torchvision
from PIL import Image
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000


class Lighting:
    """PCA noise, as the reference adds it."""

    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __call__(self, image):
        alpha = torch.normal(0.0, 0.1, (3,))
        noise = (self.vectors * alpha.view(1, 3) * self.values.view(1, 3)).sum(1)
        return image + noise.view(3, 1, 1)


def after_the_crop(plain=False):
    """What is done with a crop; plain: without jitter and lighting."""
    steps = [transforms.RandomHorizontalFlip()]
    steps += [] if plain else [transforms.ColorJitter(0.4, 0.4, 0.4)]
    steps += [transforms.ToTensor()]
    steps += [] if plain else [Lighting()]
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def target(path, box):
    """`box` [1, 5]: 0 and the crop's corners in cells of the map."""
    label = torch.load(path, weights_only=True).float()
    dense = torch.zeros(CLASSES, 15, 15)
    dense.scatter_(0, label[1].long(), label[0])
    pooled = torchvision.ops.roi_align(dense.unsqueeze(0), box, output_size=(1, 1), spatial_scale=1.0, aligned=True)
    return torch.softmax(pooled.flatten(), 0)


def crop(picture):
    """A random box of `picture`, [C, height, width] or Pillow's: where it is, and as `target` wants it."""
    where = transforms.RandomResizedCrop.get_params(picture, (0.08, 1), (3 / 4, 4 / 3))
    top, left, height, width = where
    channels, full_height, full_width = transforms.functional.get_dimensions(picture)
    corners = [left / full_width, top / full_height, (left + width) / full_width, (top + height) / full_height]
    return where, torch.tensor([[0, *(15 * corner for corner in corners)]])


class Pictures(torch.utils.data.Dataset):
    """Random crops of the pictures in `folder`/train with their targets out of `folder`/labels."""

    def __init__(self, folder, size):
        self.folder, self.size = pathlib.Path(folder), size
        self.paths = sorted((self.folder / "train").glob("*/*.jpg"))
        self.after = after_the_crop()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        path = self.paths[number]
        picture = Image.open(path).convert("RGB")
        where, box = crop(picture)
        label = self.folder / "labels" / path.parent.name / f"{path.stem}.pt"
        return self.after(transforms.functional.resized_crop(picture, *where, [self.size] * 2)), target(label, box)
