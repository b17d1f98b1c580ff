"""Writes the PyTorch files of tests/fixtures/torch, with what each of them holds as safetensors.

    python tests/reference/torch_files.py [FOLDER]

Needs torch, numpy and safetensors; the files in the repository were written with torch 2.15. For NAME.pth there is
NAME.safetensors with the tensors that a reader must find: floats as f32, integers as i64. The files named refused_*.pth
have none: they are to be refused. No file is larger than a few KiB.
"""

import io
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
    with zipfile.ZipFile(OUT / f"{source}.pth") as old, zipfile.ZipFile(OUT / f"{name}.pth", "w", compression) as new:
        for entry in old.namelist():
            folder, _, rest = entry.partition("/")
            contents = old.read(entry)
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
