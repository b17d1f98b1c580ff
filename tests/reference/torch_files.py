"""Writes the PyTorch files of tests/fixtures/torch, with what each of them holds as safetensors.

    python tests/reference/torch_files.py [FOLDER]

Needs torch, numpy and safetensors; the files in the repository were written with torch 2.15. For NAME.pth there is
NAME.safetensors with the tensors that a reader must find: floats as f32, integers as i64. The files named refused_*.pth
have none: they are to be refused. tiny_*.pth
are networks, and tiny_*.json what they make of an image. No file is larger than a few KiB.
"""

import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "fixtures" / "torch")


class Net(nn.Module):
    """A little of everything that a module holds."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.prelu = nn.PReLU(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Identity())
        self.tied = self.prelu
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("grid", torch.arange(6).reshape(2, 3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_parameter("none", None)
        self.drop = nn.Dropout(0.4)


WIDTHS = [1, 2, 4, 8]
BLOCKS = [2, 1, 1, 1]
SIDE = 32
EMBEDDING = 4


class Block(nn.Module):
    """A block of the EPL release's network, or of InsightFace's, whose batch norms are called one more."""

    def __init__(self, cin, cout, first, insightface):
        super().__init__()
        names = ["bn1", "bn2", "bn3"] if insightface else ["bn0", "bn1", "bn2"]
        self.names, stride = names, 2 if first else 1
        self.add_module(names[0], nn.BatchNorm2d(cin))
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.add_module(names[1], nn.BatchNorm2d(cout))
        self.prelu = nn.PReLU(cout)
        if first and not insightface:
            self.conv2 = nn.Conv2d(cout, cout, 2, stride=2, bias=False)
        else:
            self.conv2 = nn.Conv2d(cout, cout, 3, stride=stride, padding=1, bias=False)
        self.add_module(names[2], nn.BatchNorm2d(cout))
        self.downsample = None
        if first:
            window = 1 if insightface else 2
            shortcut = nn.Conv2d(cin, cout, window, stride=2, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(cout))

    def forward(self, x):
        first, second, third = (getattr(self, name) for name in self.names)
        y = third(self.conv2(self.prelu(second(self.conv1(first(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class Ir(nn.Module):
    """The improved residual network, tiny: the release's, or InsightFace's."""

    def __init__(self, insightface):
        super().__init__()
        self.insightface = insightface
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        cin = WIDTHS[0]
        for layer, (cout, count) in enumerate(zip(WIDTHS, BLOCKS)):
            blocks = [Block(cin if at == 0 else cout, cout, at == 0, insightface) for at in range(count)]
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))
            cin = cout
        left = SIDE // 16
        if insightface:
            self.bn2 = nn.BatchNorm2d(cin)
            self.fc = nn.Linear(cin * left * left, EMBEDDING)
            self.features = nn.BatchNorm1d(EMBEDDING)
        else:
            self.bn4 = nn.BatchNorm2d(cin)
            self.fc5 = nn.Conv2d(cin, EMBEDDING, left, bias=False)
            self.bn5 = nn.BatchNorm1d(EMBEDDING)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for layer in range(4):
            x = getattr(self, f"layer{layer + 1}")(x)
        if self.insightface:
            return self.features(self.fc(torch.flatten(self.bn2(x), 1)))
        return self.bn5(torch.flatten(self.fc5(self.bn4(x)), 1))


def image():
    """The image of tests/convert.rs, [1, 3, SIDE, SIDE], normalised."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    rgb = torch.stack([x * 7 % 256, y * 5 % 256, x * y % 256]).float()
    return ((rgb / 255 - 0.5) / 0.5)[None]


def write_network(name, insightface, prefix):
    """A network with values that f16 holds, as views of one storage, packed small; and what it makes of the image."""
    net = Ir(insightface).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_((torch.rand_like(tensor) - 0.3).half())
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_var.copy_((module.running_var + 1).half())
        for block in (net.layer1[0], net.layer2[0], net.layer3[0], net.layer4[0]) if insightface else ():
            # What the release's kernel of 2x2 has no place for.
            block.conv2.weight[:, :, 0, :] = 0
            block.conv2.weight[:, :, :, 0] = 0
        embedding = net(image())[0]
    floats = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    storage = torch.cat([tensor.reshape(-1) for tensor in floats.values()]).half()
    views, at = OrderedDict(), 0
    for key, tensor in floats.items():
        views[prefix + key] = storage[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    torch.save({"epoch": 1, "state_dict": views}, OUT / f"{name}.pth")
    repack(name, name, None, zipfile.ZIP_DEFLATED)
    (OUT / f"{name}.json").write_text(json.dumps([float(f"{value:.7g}") for value in embedding.tolist()]) + "\n")


def expected(tensors):
    def plain(tensor):
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor.long()).contiguous().clone()

    return {name: plain(tensor) for name, tensor in tensors.items()}


def write(name, value, tensors, **options):
    torch.save(value, OUT / f"{name}.pth", **options)
    save_file(expected(tensors), OUT / f"{name}.safetensors")


def repack(source, name, tensors, compression=zipfile.ZIP_STORED, top=None, force_zip64=False, order=None):
    """The archive of `source` as another program would pack it."""
    with zipfile.ZipFile(OUT / f"{source}.pth") as old:
        entries = [(entry, old.read(entry)) for entry in old.namelist()]
    with zipfile.ZipFile(OUT / f"{name}.pth", "w", compression) as new:
        for entry, contents in entries:
            folder, _, rest = entry.partition("/")
            if rest == "byteorder" and order is not None:
                contents = order
            info = zipfile.ZipInfo(f"{top or folder}/{rest}", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = compression
            with new.open(info, "w", force_zip64=force_zip64) as file:
                file.write(contents)
    if tensors is not None:
        save_file(expected(tensors), OUT / f"{name}.safetensors")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    net = Net()
    net.bn1.running_mean.uniform_()
    net.bn1.num_batches_tracked.fill_(7)
    state = net.state_dict()

    write("state_dict", state, state)
    write("plain_dict", dict(state), state)
    write("module", net, state)
    write("data_parallel", nn.DataParallel(net), {f"module.{name}": tensor for name, tensor in state.items()})
    write("data_parallel_dict", nn.DataParallel(net).state_dict(), nn.DataParallel(net).state_dict())

    base = torch.randn(4, 6)
    views = {
        "base": base,
        "transposed": base.t(),
        "row": base[2],
        "column": base[:, 3],
        "block": base[1:3, 2:5],
        "steps": base[::2, ::3],
        "expanded": base[:, :1].expand(4, 5),
        "scalar_expanded": torch.tensor(2.5).expand(2, 3, 2),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "zero_dim": torch.tensor(3.25),
        "of_base": base[3, 5],
        "empty": torch.zeros(0, 3),
        "empty_view": base[4:],
        "ones": base[:1, :1],
    }
    write("views", views, views)

    numbers = torch.tensor([0.0, -0.0, 1.0, -1.5, 0.1, 3.0e38, 1.0e-40, float("inf"), -float("inf")])
    dtypes = {
        "double": torch.tensor([0.1, -1e300, 1e-310, 1 / 3], dtype=torch.float64),
        "float": numbers,
        "half": torch.tensor([0.1, 65504.0, 6e-8, -2.0], dtype=torch.float16),
        "bfloat16": numbers.bfloat16(),
        "long": torch.tensor([-(2**63), 2**63 - 1, 5]),
        "int": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
        "short": torch.tensor([-32768, 32767], dtype=torch.int16),
        "char": torch.tensor([-128, 127], dtype=torch.int8),
        "byte": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "uint16": torch.tensor([0, 65535], dtype=torch.uint16),
        "uint32": torch.tensor([0, 2**32 - 1], dtype=torch.uint32),
        "half_transposed": torch.arange(6, dtype=torch.float16).reshape(2, 3).t(),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    write("dtypes", dtypes, dtypes)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = net.state_dict()
    checkpoint = {
        "epoch": 3,
        "best": np.float64(0.5),
        "history": np.arange(3),
        "when": None,
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state()[:16].clone(),
    }
    write("checkpoint", checkpoint, state)
    write("checkpoint_module", {"epoch": 1, "model": net, "ema": {"conv1.weight": torch.ones(1)}}, state)
    write("alone", torch.arange(6.0).reshape(3, 2), {"weight": torch.arange(6.0).reshape(3, 2)})
    write("protocol4", state, state, pickle_protocol=4)
    write("two_keys", {"generator": {"g": torch.ones(2)}, "critic": {"c": torch.zeros(1)}}, {"c": torch.zeros(1)})

    repack("checkpoint", "deflated", state, zipfile.ZIP_DEFLATED, top="my weights")
    repack("checkpoint", "zip64", state, force_zip64=True)
    repack("state_dict", "refused_big_endian", None, order=b"big")

    write_network("tiny_ir", False, "module.")
    write_network("tiny_iresnet", True, "backbone.")

    torch.save(state, OUT / "refused_legacy.pth", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), OUT / "refused_script.pth")
    torch.save({"a": np.ones(2), "b": np.zeros(3)}, OUT / "refused_arrays.pth")
    with open(OUT / "refused_pickled_arrays.pth", "wb") as file:
        pickle.dump({"a": np.ones(2)}, file, protocol=4)
    torch.save({"epoch": 3}, OUT / "refused_empty.pth")
    torch.save({"w": torch.eye(2).to_sparse()}, OUT / "refused_sparse.pth")
    torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, OUT / "refused_complex.pth")
    torch.save({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, OUT / "refused_float8.pth")

    class Evil:
        def __reduce__(self):
            import os

            return os.system, ("true",)

    torch.save(OrderedDict(w=torch.zeros(1), x=Evil()), OUT / "refused_evil.pth")


if __name__ == "__main__":
    main()
