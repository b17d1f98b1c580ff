"""Runs ONNX models in onnxruntime and compares their embeddings with those stored beside them.

    python tests/reference/run_onnx.py FOLDER MODEL.onnx...

FOLDER has the models, called ARCH-OPTIONS.onnx; ARCH.safetensors with the tensors `plain` and `flip`; images.bin, the bytes
of RGB images of 32 x 48. A line a model that starts with `ok` says that it is as it should be.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

HEIGHT, WIDTH = 32, 48
FLIP, F16 = 1, 2


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], dtype="<f4").reshape(entry["shape"])
    return tensors


def check(folder, name, x):
    arch, options = name.removesuffix(".onnx").rsplit("-", 1)
    options = int(options)
    model = onnx.load(folder / name)
    onnx.checker.check_model(model, full_check=True)
    domains = {node.domain for node in model.graph.node}
    assert domains <= {"", "ai.onnx"}, f"operators of {domains}"
    assert model.opset_import[0].version >= 17
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["arch"] == arch and metadata["channel_order"] == "RGB", metadata

    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input"]
    assert [value.name for value in session.get_outputs()] == ["embedding"]
    expected = read_safetensors(folder / f"{arch}.safetensors")["flip" if options & FLIP else "plain"]
    # Any batch: all at once, and one after the other.
    for parts in ([x], [x[i : i + 1] for i in range(len(x))]):
        got = np.concatenate([session.run(None, {"input": part})[0] for part in parts])
        assert got.shape == expected.shape and got.dtype == np.float32
        error = np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected)
        # An f16 weight is rounded by up to 2^-11, which is 5e-4.
        limit = 5e-3 if options & F16 else 1e-4
        assert error < limit, f"{name}: {error:.1e} from our embeddings"
    print(f"ok {name}: {len(model.graph.node)} nodes, error {error:.1e}")


def main():
    folder = Path(sys.argv[1])
    pixels = np.frombuffer((folder / "images.bin").read_bytes(), dtype=np.uint8)
    x = pixels.reshape(-1, HEIGHT, WIDTH, 3).transpose(0, 3, 1, 2).astype(np.float32)
    x = (x / 255 - 0.5) / 0.5
    for name in sys.argv[2:]:
        check(folder, name, np.ascontiguousarray(x))


if __name__ == "__main__":
    main()
