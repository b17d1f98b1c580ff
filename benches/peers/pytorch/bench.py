"""PyTorch's side of `cargo xtask bench`: the same requests and answers as `benches/work.rs` of epl, which explains them.

On CUDA where there is one, else on the CPU. --mode is `eager` (f32, TF32 off, channels last), `autocast` (the same under
autocast: f16 on CUDA, bf16 on a CPU) or `compile` (`eager` through torch.compile).
"""

import argparse
import contextlib
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--mode", choices=["eager", "autocast", "compile"], default="eager")
MODE = arguments.parse_args().mode

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.benchmark = True


def conv(cin, cout, window, stride):
    return nn.Conv2d(cin, cout, window, stride, 1 if window == 3 else 0, bias=False)


class Block(nn.Module):
    """A block of the release's improved residual network."""

    def __init__(self, cin, cout, first):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(cin)
        self.conv1 = conv(cin, cout, 3, 1)
        self.bn1 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = conv(cout, cout, 2, 2) if first else conv(cout, cout, 3, 1)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential(conv(cin, cout, 2, 2), nn.BatchNorm2d(cout)) if first else nn.Identity()

    def forward(self, x):
        y = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        return self.bn2(self.conv2(y)) + self.shortcut(x)


class Backbone(nn.Module):
    def __init__(self, depths):
        super().__init__()
        layers, cin = [], 64
        for layer, depth in enumerate(depths):
            for index in range(depth):
                layers.append(Block(cin, 64 << layer, index == 0))
                cin = 64 << layer
        self.stem = nn.Sequential(conv(3, 64, 3, 1), nn.BatchNorm2d(64), nn.PReLU(64))
        self.blocks = nn.Sequential(*layers)
        self.bn4 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Conv2d(512, 512, 7, bias=False)
        self.bn5 = nn.BatchNorm1d(512)

    def forward(self, x):
        x = self.dropout(self.bn4(self.blocks(self.stem(x))))
        # The last layer is in f32, as in epl.
        with torch.autocast(DEVICE.type, enabled=False):
            return self.bn5(self.fc(x.float()).flatten(1))


def cosface(embedding, weight, labels):
    cosines = F.normalize(embedding) @ F.normalize(weight).T
    # In place at the labels alone, as the field's code does: a mask of all classes would be the head's largest tensor.
    cosines[torch.arange(labels.shape[0], device=DEVICE), labels] -= 0.4
    return F.cross_entropy(64.0 * cosines, labels)


def labels_of(batch, classes):
    return torch.tensor([i * 7919 % classes for i in range(batch)], device=DEVICE)


def autocast():
    if MODE != "autocast":
        return contextlib.nullcontext()
    return torch.autocast(DEVICE.type, dtype=torch.float16 if CUDA else torch.bfloat16)


def compiled(function):
    return torch.compile(function) if MODE == "compile" else function


def optimizer_of(parameters):
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)


def matmul(request):
    a = torch.randn(request["m"], request["k"], device=DEVICE)
    b = torch.randn(request["k"], request["n"], device=DEVICE)
    product = compiled(torch.matmul)

    def execute():
        with autocast():
            product(a, b)

    return execute


def convolution(request):
    size, window, stride, padding = (request[key] for key in ("size", "window", "stride", "padding"))
    out = (size + 2 * padding - window) // stride + 1
    # As an op alone has nothing to convert, operands are of the type that autocast would compute with.
    dtype = torch.float32 if MODE != "autocast" else torch.float16 if CUDA else torch.bfloat16

    def random(*shape):
        return torch.randn(*shape, device=DEVICE, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x = random(request["batch"], request["cin"], size, size)
    w = random(request["cout"], request["cin"], window, window)
    dy = random(request["batch"], request["cout"], out, out)
    if request["pass"] == "forward":
        forward = compiled(lambda: F.conv2d(x, w, None, stride, padding))
        return forward
    mask = [request["pass"] == "dgrad", request["pass"] == "wgrad", False]

    def backward():
        torch.ops.aten.convolution_backward(
            dy, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
        )

    return backward


def step(request):
    depths = {"ir18": [2, 2, 2, 2], "ir50": [3, 4, 14, 3]}[request["arch"]]
    batch, classes = request["batch"], request["classes"]
    model = Backbone(depths).to(DEVICE).to(memory_format=torch.channels_last)
    weight = nn.Parameter(torch.randn(classes, 512, device=DEVICE) * 0.01)
    optimizer = optimizer_of([*model.parameters(), weight])
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=MODE == "autocast" and CUDA)
    images = torch.rand(batch, 3, 112, 112, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = labels_of(batch, classes)
    embed = compiled(model)

    def execute():
        with autocast():
            embedding = embed(images)
        loss = cosface(embedding.float(), weight, labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return execute


def head(request):
    batch, classes = request["batch"], request["classes"]
    embedding = torch.randn(batch, request["dim"], device=DEVICE, requires_grad=True)
    weight = nn.Parameter(torch.randn(classes, request["dim"], device=DEVICE) * 0.01)
    optimizer = optimizer_of([weight])
    labels = labels_of(batch, classes)
    loss_of = compiled(cosface)

    def execute():
        embedding.grad = None
        optimizer.zero_grad(set_to_none=True)
        loss_of(embedding, weight, labels).backward()
        optimizer.step()

    return execute


def timed(execute, times):
    if CUDA:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        execute()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


# Seconds of one execution from which on it is measured only twice.
LONG = 5.0


def serve(request):
    if request["kind"] == "hello":
        name = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
        return {"peer": f"pytorch {MODE}", "version": torch.__version__, "device": name}
    half = request.get("precision", "f32") == "mixed"
    if half != (MODE == "autocast") and MODE != "compile":
        return {"error": f"{MODE} is not {request.get('precision', 'f32')}"}
    if half and MODE == "compile":
        return {"error": "compile is measured in f32"}
    execute = {"matmul": matmul, "conv": convolution, "step": step, "head": head}[request["kind"]](request)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    # What is compiled or tuned is so in the first runs.
    timed(execute, 1)
    if timed(execute, 1) > LONG:
        return {"seconds": [timed(execute, 1), timed(execute, 1)]}
    timed(execute, 1)
    times = max(1, min(10_000, round(request["seconds"] / timed(execute, 1) + 0.5)))
    measured = {"seconds": [timed(execute, times) for _ in range(max(1, request["samples"]))]}
    if CUDA:
        measured["bytes"] = torch.cuda.max_memory_allocated()
    return measured


for line in sys.stdin:
    try:
        answer = serve(json.loads(line))
    except Exception as error:  # whatever it is, the other peers go on
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(answer), flush=True)
