"""Wrote small_net.pt beside it: the TorchScript module of the tests of `model.arch: script:FILE`.

    python tests/testdata/small_net.py
"""

from pathlib import Path

import torch


class SmallNet(torch.nn.Module):
    """Four classes; every role that a tensor can have, and a random mask."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, -0.2, 0.3])[:, None, None])
        self.scale = torch.nn.Parameter(torch.full((3, 1, 1), 1.5), requires_grad=False)
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.2)
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv((x - self.mean) * self.scale)
        return self.fc(self.drop(torch.relu(self.bn(x)).mean([2, 3])))


torch.manual_seed(0)
torch.jit.script(SmallNet()).save(str(Path(__file__).with_name("small_net.pt")))
