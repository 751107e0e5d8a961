"""Makes wide_net.pt: a network for images of 8 x 8 pixels whose one large intermediate value takes 16 MB an image, so that
it is there that memory runs out.

    python tests/testdata/wide_net.py
"""

import pathlib

import torch


class WideNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = torch.nn.BatchNorm1d(4)
        self.fc = torch.nn.Linear(4, 10)

    def forward(self, x):
        pixels = x.flatten(1)[:, :64]
        wide = pixels.repeat(1, 65536)
        return self.fc(self.bn(pixels[:, :4] + wide[:, -4:]))


torch.manual_seed(0)
torch.jit.save(torch.jit.script(WideNet()), pathlib.Path(__file__).with_suffix(".pt"))
