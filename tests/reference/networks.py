"""The architectures in PyTorch, written from their definitions, and what they compute: tests/fixtures/networks.json.

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/reference/networks.py tests/fixtures/networks.json

Weights and images are a formula of their name, which the test computes as well, so that only results are stored.
All networks are small (width 8 or 16, images of 32 x 48), and as deep as their names say.
"""

import json
import sys

import numpy as np
import torch
from torch import nn

from formula import uniform

INPUT = (32, 48)
EMBEDDING = 24
IMAGES = 2
TRAINING_IMAGES = 4


def parameter(name, shape, names):
    """Values that keep the signal alive through any depth: all that a network computes should show in its embedding."""
    u = uniform(name, int(np.prod(shape))).reshape(shape)
    signed = np.float32(2) * u - np.float32(1)
    if name.endswith("running_var"):
        return np.float32(0.5) + np.float32(0.5) * u
    if name.endswith("running_mean") or name.endswith("bias"):
        return np.float32(0.125) * signed
    if len(shape) > 1:
        return np.float32((6.0 / np.prod(shape[1:])) ** 0.5) * signed
    if name.replace(".weight", ".running_var") in names:
        return np.float32(0.5) + np.float32(0.5) * u
    return np.float32(0.25) + np.float32(0.25) * u


def images(count):
    u = uniform("images", count * INPUT[0] * INPUT[1] * 3).reshape(count, *INPUT, 3)
    return np.floor(u * np.float32(256)).astype(np.uint8)


def convolution(cin, cout, window, stride, padding, groups=1):
    return nn.Conv2d(cin, cout, window, stride, padding, groups=groups, bias=False)


class IrBlock(nn.Module):
    """A block of the EPL release: the first of a layer halves with 2x2 windows and no padding."""

    def __init__(self, cin, cout, first):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(cin)
        self.conv1 = convolution(cin, cout, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = convolution(cout, cout, 2, 2, 0) if first else convolution(cout, cout, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = nn.Sequential(convolution(cin, cout, 2, 2, 0), nn.BatchNorm2d(cout)) if first else None

    def forward(self, x):
        y = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        return self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class IResNetBlock(nn.Module):
    """A block of InsightFace's IResNet."""

    def __init__(self, cin, cout, first):
        super().__init__()
        stride = 2 if first else 1
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = convolution(cin, cout, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = convolution(cout, cout, 3, stride, 1)
        self.bn3 = nn.BatchNorm2d(cout)
        self.downsample = nn.Sequential(convolution(cin, cout, 1, 2, 0), nn.BatchNorm2d(cout)) if first else None

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class Residual4(nn.Module):
    """What the two residual networks share."""

    def __init__(self, block, blocks, width, extent, embedding):
        super().__init__()
        self.conv1 = convolution(3, width, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        cin = width
        for layer, count in enumerate(blocks):
            cout = width << layer
            stack = [block(cin if index == 0 else cout, cout, index == 0) for index in range(count)]
            setattr(self, f"layer{layer + 1}", nn.Sequential(*stack))
            cin = cout
        self.end(cin, extent, embedding)

    def trunk(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Ir(Residual4):
    def end(self, channels, extent, embedding):
        self.bn4 = nn.BatchNorm2d(channels)
        self.fc5 = convolution(channels, embedding, extent, 1, 0)
        self.bn5 = nn.BatchNorm1d(embedding)
        self.bn5.weight.requires_grad = False

    def forward(self, x):
        return self.bn5(self.fc5(self.bn4(self.trunk(x))).flatten(1))


class IResNet(Residual4):
    def end(self, channels, extent, embedding):
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * extent[0] * extent[1], embedding)
        self.features = nn.BatchNorm1d(embedding)
        self.features.weight.requires_grad = False

    def forward(self, x):
        return self.features(self.fc(self.bn2(self.trunk(x)).flatten(1)))


class Named(nn.Module):
    """Modules in a sequence called `layers`, as MobileFaceNet nests them."""

    def __init__(self, *modules, residual=False):
        super().__init__()
        self.layers = nn.Sequential(*modules)
        self.residual = residual

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


def unit(cin, cout, window, stride, padding, groups=1, linear=False):
    modules = [convolution(cin, cout, window, stride, padding, groups), nn.BatchNorm2d(cout)]
    return Named(*modules, *([] if linear else [nn.PReLU(cout)]))


def bottleneck(cin, inner, cout, stride):
    return Named(
        unit(cin, inner, 1, 1, 0),
        unit(inner, inner, 3, stride, 1, inner),
        unit(inner, cout, 1, 1, 0, linear=True),
        residual=stride == 1,
    )


def residual(channels, inner, count):
    return Named(*[bottleneck(channels, inner, channels, 1) for _ in range(count)])


class MobileFaceNet(nn.Module):
    def __init__(self, blocks, width, extent, embedding):
        super().__init__()
        w, (first, second, third, fourth) = width, blocks
        self.layers = nn.ModuleList([
            unit(3, w, 3, 2, 1),
            unit(w, w, 3, 1, 1, w // 2) if first == 1 else residual(w, w, first),
            bottleneck(w, w, w, 2),
            residual(w, w, second),
            bottleneck(w, 2 * w, 2 * w, 2),
            residual(2 * w, 2 * w, third),
            bottleneck(2 * w, 4 * w, 2 * w, 2),
            residual(2 * w, 2 * w, fourth),
        ])
        self.conv_sep = unit(2 * w, 4 * w, 1, 1, 0)
        self.features = Named(
            unit(4 * w, 4 * w, extent, 1, 0, 4 * w, linear=True),
            nn.Flatten(),
            nn.Linear(4 * w, embedding, bias=False),
            nn.BatchNorm1d(embedding),
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


DEPTHS = {
    "ir18": (2, 2, 2, 2),
    "ir34": (3, 4, 6, 3),
    "ir50": (3, 4, 14, 3),
    "ir100": (3, 13, 30, 3),
    "ir200": (3, 33, 60, 3),
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
    "mobilefacenet": (1, 4, 6, 2),
}
# Architectures whose gradients are stored as well: one of each family.
TRAINED = ("ir18", "iresnet18", "mobilefacenet")


def build(arch, blocks, width, extent, embedding):
    if arch == "mobilefacenet":
        return MobileFaceNet(blocks, width, extent, embedding)
    if arch.startswith("iresnet"):
        return IResNet(IResNetBlock, blocks, width, extent, embedding)
    return Ir(IrBlock, blocks, width, extent, embedding)


def small(arch, blocks=None):
    width = 16 if arch == "mobilefacenet" else 8
    extent = (INPUT[0] // 16, INPUT[1] // 16)
    model = build(arch, blocks or DEPTHS[arch], width, extent, EMBEDDING)
    values, names = {}, model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            values[name] = tensor
        else:
            values[name] = torch.from_numpy(np.ascontiguousarray(parameter(name, tuple(tensor.shape), names)))
    model.load_state_dict(values)
    return model


def normalised(count):
    x = torch.from_numpy(images(count)).permute(0, 3, 1, 2).float()
    return (x / 255 - 0.5) / 0.5


def projection(name, values):
    """Two numbers for a tensor: its product with a formula of its name, and the sum of its magnitudes."""
    flat = values.detach().double().reshape(-1).numpy()
    direction = 2 * uniform(name + ".projection", flat.size).astype(np.float64) - 1
    return [float(flat @ direction), float(np.abs(flat).sum())]


def describe(arch, blocks=None):
    # In f64, so that the stored numbers are those of the mathematics and not of one implementation's rounding.
    model = small(arch, blocks).double()
    model.eval()
    with torch.no_grad():
        embedding = model(normalised(IMAGES).double())
    result = {"blocks": list(blocks or DEPTHS[arch]), "embedding": embedding.numpy().tolist()}
    if arch in TRAINED and blocks is None:
        model.train()
        output = model(normalised(TRAINING_IMAGES).double())
        upstream = 2 * uniform("upstream", output.numel()).reshape(tuple(output.shape)).astype(np.float64) - 1
        (output * torch.from_numpy(upstream)).sum().backward()
        named = model.named_parameters()
        result["gradients"] = {n: projection(n, p.grad) for n, p in named if p.requires_grad}
        statistics = {n: b for n, b in model.named_buffers() if "running" in n}
        result["statistics"] = {n: projection(n, b) for n, b in statistics.items()}
    return result


def main():
    result = {"torch": torch.__version__, "input": INPUT, "embedding": EMBEDDING, "networks": {}, "elements": {}}
    for arch, blocks in DEPTHS.items():
        print(arch, file=sys.stderr)
        result["networks"][arch] = describe(arch)
        width = 128 if arch == "mobilefacenet" else 64
        full = build(arch, blocks, width, (7, 7), 512)
        result["elements"][arch] = sum(p.numel() for p in full.parameters())
    # A first layer that is not one block is built of others.
    result["networks"]["mobilefacenet, 2 blocks"] = describe("mobilefacenet", (2, 1, 1, 1))
    with open(sys.argv[1], "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
