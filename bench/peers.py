#!/usr/bin/env python3
"""What PyTorch reaches on the GPU: the ceilings beside which Realm's kernels stand.

    peers.py [--quick] [--only PREFIX] [--seconds N]   measures; a JSON row a line on stdout
    peers.py --dry-run                                 lists the rows and needs no GPU

Copy and read bandwidth of the memory, cuBLAS's products at the sizes of Llama-3.1-8B, PyTorch's
attention (flash, cuDNN) for prompts and for decoding. A row is {bench, median, unit, ratio,
ratio_to}, as docs/benchmarks/README.md describes it. What is read from memory is rotated among so
many buffers that they exceed the L2 cache several times, and a CUDA graph of all of them is
replayed; a row's time is the median of the replays, divided.

Exit codes: 0 measured; 1 a row failed, the others were measured; 77 no PyTorch here, or no GPU.
"""

import argparse
import json
import statistics
import sys
import time

NOTHING_HERE = 77

# Bytes that rotate: some L2 caches hold 60 MB, some 126.
ROTATE = 1 << 30
LAUNCHES = 50
REPLAYS = 20

# Llama-3.1-8B: gate and up, down; query heads, KV heads, head size.
SHAPES = [(14336, 4096), (4096, 14336)]
HEADS, KV_HEADS, HEAD = 32, 8, 128
TYPES = ["bf16", "f16"]
ROWS = [1, 16, 64, 512, 4096]
BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
DECODE = [(4096, 1), (4096, 8), (32768, 1), (32768, 8)]
PREFILL = [(4096, 128), (16384, 64), (16384, 128), (16384, 256)]


def thousands(tokens):
    """4096 as 4k."""
    return f"{tokens // 1024}k"


def benches():
    """Every row's name with the function that measures it, in order: ceilings before what is held
    against them."""
    yield "peer/torch/copy", copy
    yield "peer/torch/read", read
    for kind in TYPES:
        yield f"peer/cublas/{kind}/8192x8192/m8192", lambda kind=kind: product(kind, 8192, 8192, 8192)
        for n, k in SHAPES:
            for m in ROWS:
                yield f"peer/cublas/{kind}/{n}x{k}/m{m}", (
                    lambda kind=kind, n=n, k=k, m=m: product(kind, n, k, m))
    for backend in BACKENDS:
        for length, batch in DECODE:
            yield f"peer/sdpa-{backend}/decode/d{HEAD}/{thousands(length)}/b{batch}", (
                lambda backend=backend, length=length, batch=batch: decode(backend, length, batch))
        for length, size in PREFILL:
            yield f"peer/sdpa-{backend}/prefill/causal/{thousands(length)}/d{size}", (
                lambda backend=backend, length=length, size=size: prefill(backend, length, size))


class Bench:
    """PyTorch, and what was measured so far."""

    def __init__(self, torch, quick):
        self.torch = torch
        self.replays = 5 if quick else REPLAYS
        self.rotate = ROTATE // 4 if quick else ROTATE
        self.medians = {}

    def seconds(self, calls):
        """Seconds a call: the median over replays of a CUDA graph of all `calls`, at least LAUNCHES."""
        torch = self.torch
        calls = [calls[at % len(calls)] for at in range(max(LAUNCHES, len(calls)))]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls[:3]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        for _ in range(3):
            graph.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.replays + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        marks[-1].synchronize()
        spans = [a.elapsed_time(b) for a, b in zip(marks, marks[1:])]
        return statistics.median(spans) * 1e-3 / len(calls)

    def sets(self, bytes_each):
        """How many buffers of that size rotate."""
        return max(2, -(-self.rotate // bytes_each))

    def ratio(self, name, value):
        """The ratio to a row that came before, where there is one."""
        other = self.medians.get(name)
        return (value / other, name) if other else (None, None)


BENCH = None


def copy():
    """A copy of 2 GiB, bytes read and written."""
    torch, size = BENCH.torch, 1 << 31
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = BENCH.seconds([lambda: target.copy_(source)] * 4)
    return 2 * size / seconds * 1e-9, "GB/s", None, None


def read():
    """A sum over 2 GiB of f32: bytes read."""
    torch, size = BENCH.torch, 1 << 31
    source = torch.rand(size // 4, device="cuda")
    seconds = BENCH.seconds([lambda: torch.sum(source)] * 4)
    rate = size / seconds * 1e-9
    return (rate, "GB/s", *BENCH.ratio("peer/torch/copy", rate))


def dtype(kind):
    """PyTorch's type."""
    return {"bf16": BENCH.torch.bfloat16, "f16": BENCH.torch.float16}[kind]


def product(kind, n, k, m):
    """[m, k] times [n, k] transposed. Few rows: bytes of weights a second; many: operations."""
    torch = BENCH.torch
    weights = [torch.randn(n, k, device="cuda", dtype=dtype(kind)) * k**-0.5
               for _ in range(BENCH.sets(2 * n * k))]
    rows = torch.randn(m, k, device="cuda", dtype=dtype(kind))
    out = torch.empty(m, n, device="cuda", dtype=dtype(kind))
    calls = [lambda w=w: torch.mm(rows, w.t(), out=out) for w in weights]
    seconds = BENCH.seconds(calls)
    if m < 256:
        rate = 2 * n * k / seconds * 1e-9
        return (rate, "GB/s", *BENCH.ratio("peer/torch/copy", rate))
    rate = 2 * m * n * k / seconds * 1e-12
    peak = f"peer/cublas/{kind}/8192x8192/m8192"
    return (rate, "TFLOP/s", *BENCH.ratio(peak, rate))


def attention(backend, calls):
    """Seconds a call with one of PyTorch's attention backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, BACKENDS[backend])]):
        return BENCH.seconds(calls)


def decode(backend, length, batch):
    """One token a sequence. The four query heads of a KV head stand in the place of rows: without a
    mask that is the same, and keys and values are read once."""
    torch, sdpa = BENCH.torch, BENCH.torch.nn.functional.scaled_dot_product_attention
    size = 2 * batch * KV_HEADS * length * HEAD * 2
    caches = [torch.randn(2, batch, KV_HEADS, length, HEAD, device="cuda", dtype=torch.float16)
              for _ in range(BENCH.sets(size))]
    query = torch.randn(batch, KV_HEADS, HEADS // KV_HEADS, HEAD, device="cuda",
                        dtype=torch.float16)
    calls = [lambda c=c: sdpa(query, c[0], c[1]) for c in caches]
    rate = size / attention(backend, calls) * 1e-9
    return (rate, "GB/s", *BENCH.ratio("peer/torch/copy", rate))


def prefill(backend, length, size):
    """A prompt, causal, heads of `size`: 4 · rows² · size operations a head, half of them masked."""
    torch, sdpa = BENCH.torch, BENCH.torch.nn.functional.scaled_dot_product_attention
    shape = (1, HEADS, length, size)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    calls = [lambda: sdpa(q, k, v, is_causal=True)]
    seconds = attention(backend, calls)
    rate = 2 * HEADS * length * length * size / seconds * 1e-12
    return (rate, "TFLOP/s", *BENCH.ratio("peer/cublas/bf16/8192x8192/m8192", rate))


def find_torch():
    """PyTorch with a GPU, or the reason why there is none."""
    try:
        import torch
    except ImportError as error:
        return None, f"no PyTorch here: {error}"
    if not torch.cuda.is_available():
        return None, f"PyTorch {torch.__version__} sees no CUDA device"
    return torch, None


def measure(names, deadline):
    """Prints a row for each name; how many failed."""
    failed = 0
    for name, function in names:
        if time.monotonic() > deadline:
            print(f"no time left for {name} and what follows it", file=sys.stderr)
            return failed + 1
        try:
            median, unit, ratio, ratio_to = function()
        except (RuntimeError, ImportError, AttributeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(f"{name}: {reason[0]}", file=sys.stderr)
            failed += 1
            continue
        finally:
            BENCH.torch.cuda.empty_cache()
        BENCH.medians[name] = median
        row = {"bench": name, "median": median, "unit": unit, "ratio": ratio, "ratio_to": ratio_to}
        print(json.dumps(row), flush=True)
    return failed


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="list the rows; measure nothing")
    parser.add_argument("--quick", action="store_true", help="fewer replays, smaller buffers")
    parser.add_argument("--only", default="", metavar="PREFIX", help="rows whose names start so")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no row after so long")
    args = parser.parse_args()
    start = time.monotonic()
    names = [(name, f) for name, f in benches() if name.startswith(args.only)]
    if args.dry_run:
        for name, _ in names:
            print(name)
    torch, problem = find_torch()
    if problem:
        print(problem, file=sys.stderr)
        return 0 if args.dry_run else NOTHING_HERE
    print(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, "
          f"{torch.cuda.get_device_name()}", file=sys.stderr)
    if args.dry_run:
        return 0
    global BENCH
    BENCH = Bench(torch, args.quick)
    torch.manual_seed(0)
    with torch.inference_mode():
        return 1 if measure(names, start + args.seconds) else 0


if __name__ == "__main__":
    sys.exit(main())
