#!/usr/bin/env python3
"""Block-AP as EfficientQAT's code does it (OpenGVLab/EfficientQAT@78fd3fb: quantize/quantizer.py and
quantize/block_ap.py), in plain torch operations and fp32: the oracle for preset REFERENCE.
Independent of this project's code on purpose. PyTorch of Debian 12 (python3-torch 1.13) is enough.

Usage: block_ap.py OUTPUT_FILE            writes the golden run of tests/testdata
       block_ap.py --check GOLDEN_FILE    runs it again and compares
       block_ap.py --speed TOKENS STEPS THREADS
           speed and memory of a block of SmolLM2-135M, for compare_speed.py
"""

import json
import math
import resource
import statistics
import struct
import sys
import time

try:
    import numpy
    import torch
except ImportError as error:
    print(f"skipped: {error}; apt-get install python3-torch")
    sys.exit(77)

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN = 32, 4, 2, 8, 64
SEQUENCES, LENGTH, BATCH, EPOCHS = 10, 16, 2, 10  # 50 steps
GROUP = 16  # not one that jobs allow: small matrices with several groups to a row
EPS, THETA = 1e-5, 10000.0
MATRICES = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
NORMS = ("input_layernorm", "post_attention_layernorm")


class RoundSte(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.round()

    @staticmethod
    def backward(context, grad):
        return grad


def clamp_ste(x, low, high):
    return (x.clamp(low, high) - x).detach() + x


class Clamp(torch.autograd.Function):
    """clamp whose gradient is 1 on the bounds too, whatever torch's own does."""

    @staticmethod
    def forward(context, x, low, high):
        context.save_for_backward((x >= low) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    def backward(context, grad):
        (inside,) = context.saved_tensors
        return grad * inside, None, None


class Quantizer:
    def __init__(self, weight, bits):
        self.qmax = 2**bits - 1
        groups = weight.detach().reshape(-1, GROUP)
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        self.scale = ((high - low) / self.qmax).clamp(1e-4, 1e4).requires_grad_()
        self.zero = (-(low / self.scale.detach()).clamp(-1e4, 1e4)).round().requires_grad_()

    def codes(self, weight):
        scale = clamp_ste(self.scale, 1e-4, 1e4)
        zero = clamp_ste(RoundSte.apply(self.zero), 0, self.qmax)
        u = RoundSte.apply(weight.reshape(-1, GROUP) / scale) + zero
        return Clamp.apply(u, 0, self.qmax), scale, zero

    def __call__(self, weight):
        codes, scale, zero = self.codes(weight)
        return ((codes - zero) * scale).reshape(weight.shape)


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def rotate(x):
    """x: [sequences, heads, tokens, head_dim]; element i turns with element i + head_dim / 2."""
    half = HEAD_DIM // 2
    frequency = THETA ** (-torch.arange(half, dtype=torch.float64) * 2 / HEAD_DIM)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(q, k, v):
    tokens = q.shape[2]
    scores = q @ k.transpose(2, 3) / math.sqrt(HEAD_DIM)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


def run_block(x, weights, norms):
    sequences, tokens, _ = x.shape
    heads = lambda y, n: y.view(sequences, tokens, n, HEAD_DIM).transpose(1, 2)
    normed = rms_norm(x, norms["input_layernorm"])
    q = rotate(heads(normed @ weights["self_attn.q_proj"].t(), HEADS))
    k = rotate(heads(normed @ weights["self_attn.k_proj"].t(), KV_HEADS))
    v = heads(normed @ weights["self_attn.v_proj"].t(), KV_HEADS)
    k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
    attention = attend(q, k, v)
    attention = attention.transpose(1, 2).reshape(sequences, tokens, -1)
    x = x + attention @ weights["self_attn.o_proj"].t()
    normed = rms_norm(x, norms["post_attention_layernorm"])
    gate = torch.nn.functional.silu(normed @ weights["mlp.gate_proj"].t())
    return x + (gate * (normed @ weights["mlp.up_proj"].t())) @ weights["mlp.down_proj"].t()


class Training:
    def __init__(self, start, norm_start, bits, weight_rate, quant_rate, steps):
        self.weights = {name: w.clone().requires_grad_() for name, w in start.items()}
        self.norms = {name: w.clone().requires_grad_() for name, w in norm_start.items()}
        self.quantizers = {name: Quantizer(w, bits) for name, w in self.weights.items()}
        groups = [
            ([*self.weights.values(), *self.norms.values()], weight_rate),
            ([t for q in self.quantizers.values() for t in (q.scale, q.zero)], quant_rate),
        ]
        self.optimizers = [torch.optim.AdamW(p, lr=rate, weight_decay=0) for p, rate in groups]
        self.schedules = [
            torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=rate / 20)
            for o, (_, rate) in zip(self.optimizers, groups)
        ]

    def step(self, x, target):
        """The loss before the step."""
        fake = {name: self.quantizers[name](w) for name, w in self.weights.items()}
        loss = torch.nn.functional.mse_loss(run_block(x, fake, self.norms), target)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(self.optimizers, self.schedules):
            optimizer.step()
            schedule.step()
        return loss.item()


def train(bits, weight_rate, quant_rate):
    """The golden run: inputs and block, then losses and what training left."""
    generator = torch.Generator().manual_seed(bits)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    start = {name: normal(*shape) / math.sqrt(shape[1]) for name, shape in MATRICES.items()}
    norm_start = {name: 1 + 0.1 * normal(HIDDEN) for name in NORMS}
    source_input = normal(SEQUENCES, LENGTH, HIDDEN)
    student_input = source_input + 0.05 * normal(SEQUENCES, LENGTH, HIDDEN)
    tensors = {"source_input": source_input, "student_input": student_input}
    for name, value in {**start, **norm_start}.items():
        tensors[f"start.{name}"] = value.clone()
    with torch.no_grad():
        target = run_block(source_input, start, norm_start)
    training = Training(start, norm_start, bits, weight_rate, quant_rate,
                        EPOCHS * SEQUENCES // BATCH)
    losses = []
    for _ in range(EPOCHS):
        for begin in range(0, SEQUENCES, BATCH):
            rows = slice(begin, begin + BATCH)
            losses.append(training.step(student_input[rows], target[rows]))
    weights, norms, quantizers = training.weights, training.norms, training.quantizers
    tensors["losses"] = torch.tensor(losses)
    for name, weight in weights.items():
        codes, scale, zero = quantizers[name].codes(weight)
        tensors[f"codes.{name}"] = codes.detach().reshape(weight.shape)
        tensors[f"scales.{name}"] = scale.detach().reshape(weight.shape[0], -1)
        tensors[f"zero_points.{name}"] = zero.detach().reshape(weight.shape[0], -1)
    for name, norm in norms.items():
        tensors[f"norms.{name}"] = norm.detach()
    return tensors


def golden():
    # The recipe's rates, and such as fit 50 steps: codes, scales and zero points move.
    runs = {"published": train(2, 2e-5, 1e-4), "fast": train(3, 1e-3, 1e-3)}
    return {f"{run}.{name}": t for run, tensors in runs.items() for name, t in tensors.items()}


def save(tensors, path):
    """safetensors, without its package."""
    header, data = {}, b""
    for name, tensor in sorted(tensors.items()):
        array = numpy.ascontiguousarray(tensor.numpy(), dtype="<f4")
        header[name] = {"dtype": "F32", "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def load(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(size)), file.read()
    return {name: torch.from_numpy(numpy.frombuffer(
                data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"]).copy())
            for name, entry in header.items()}


def check(path):
    kept, again = load(path), golden()
    assert kept.keys() == again.keys(), kept.keys() ^ again.keys()
    worst = 0.0
    for name, tensor in again.items():
        worst = max(worst, ((kept[name] - tensor).abs().max() / tensor.abs().max()).item()
                    if ".codes." not in name else (kept[name] != tensor).float().mean().item())
    print(f"{len(again)} tensors, largest difference {worst:.2g} of a tensor's largest value")
    return 0 if worst < 1e-3 else 1


def speed(tokens, steps, threads):
    """Steps on a block of SmolLM2-135M's shape and groups of 64, attention as fast as PyTorch has it."""
    global HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, GROUP, attend
    HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, GROUP = 576, 9, 3, 64, 1536, 64
    if hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        attend = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True)
    torch.set_num_threads(threads)
    kv, heads = KV_HEADS * HEAD_DIM, HEADS * HEAD_DIM
    shapes = zip(MATRICES, [(heads, HIDDEN), (kv, HIDDEN), (kv, HIDDEN), (HIDDEN, heads),
                            (FFN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN)])
    start = {name: torch.randn(*shape) / math.sqrt(shape[1]) for name, shape in shapes}
    norms = {name: torch.ones(HIDDEN) for name in NORMS}
    inputs = torch.randn(2 * BATCH, tokens, HIDDEN)
    with torch.no_grad():
        target = run_block(inputs, start, norms)
    training = Training(start, norms, 2, 2e-5, 1e-4, steps)
    times = [time.monotonic()]
    for step in range(steps):
        rows = slice(step % 2 * BATCH, step % 2 * BATCH + BATCH)
        training.step(inputs[rows], target[rows])
        times.append(time.monotonic())
    step_seconds = statistics.median(b - a for a, b in zip(times[1:], times[2:]))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_second": BATCH * tokens / step_seconds, "peak_rss_bytes": rss}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        sys.exit(check(sys.argv[2]))
    if len(sys.argv) == 5 and sys.argv[1] == "--speed":
        sys.exit(speed(*map(int, sys.argv[2:])))
    save(golden(), sys.argv[1])
