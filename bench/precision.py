#!/usr/bin/env python3
"""What each precision and KV type costs: a table for docs/precision.md.

For each model and each pair of types: the mean Kullback-Leibler divergence of the predictions from those
in f32 with an f32 cache, over all tokens of a prompt; the part of tokens whose likeliest successor is the
same; and the bytes of the KV cache. `realm logits` computes the predictions. Plain Python 3:

    bench/precision.py target/release/realm FOLDER > table.md

FOLDER holds models/NAME/model-f32.gguf with tokens.npy, and models/llama-256/quant. Other devices:

    bench/precision.py target/release/realm FOLDER --device cuda > table.md
"""

import argparse
import array
import ast
import json
import math
import pathlib
import subprocess
import sys
import tempfile

MODELS = ["llama", "llama-256", "llama3-rope", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
QUANTS = ["Q8_0", "Q4_K_M"]
PAIRS = [
    ("f32", "f16"),
    ("f32", "bf16"),
    ("f32", "q8_0"),
    ("f16", "f16"),
    ("bf16", "f16"),
    ("bf16", "bf16"),
    ("int8", "f16"),
    ("int8", "q8_0"),
]


def read_npy(path):
    """Shape and float32 numbers of an .npy file."""
    data = pathlib.Path(path).read_bytes()
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    header = ast.literal_eval(data[start : start + length].decode("latin-1"))
    if header["descr"] != "<f4" or header["fortran_order"]:
        raise SystemExit(f"{path}: not rows of float32")
    numbers = array.array("f")
    numbers.frombytes(data[start + length :])
    return header["shape"], numbers


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


def compare(reference, other):
    """Mean divergence in nats and the part of rows with the same likeliest token."""
    (rows, cols), wanted = reference
    shape, found = other
    if shape != (rows, cols):
        raise SystemExit(f"shapes {shape} and {(rows, cols)} differ")
    divergence, same = 0.0, 0
    for row in range(rows):
        p = log_softmax(wanted[row * cols : (row + 1) * cols])
        q = log_softmax(found[row * cols : (row + 1) * cols])
        divergence += sum(math.exp(a) * (a - b) for a, b in zip(p, q))
        same += p.index(max(p)) == q.index(max(q))
    return divergence / rows, same / rows


class Realm:
    def __init__(self, program, device):
        self.program, self.device = program, device

    def run(self, *words):
        line = [self.program, *map(str, words), "--device", self.device]
        return subprocess.run(line, capture_output=True, text=True)

    def logits(self, model, tokens, precision, kv_type, out):
        """The logits, or why there are none; and what Realm noted."""
        named = ["-m", model] if model else []
        types = ["--precision", precision, "--kv-type", kv_type]
        run = self.run("logits", *named, "--ids-file", tokens, *types, "--out", out)
        if run.returncode != 0:
            return None, run.stderr.strip().splitlines()[-1]
        notes = [line for line in run.stderr.splitlines() if "overflow" in line]
        return read_npy(out), "; ".join(notes)

    def cache_bytes(self, model, kv_type):
        """Bytes of a token's keys and values."""
        named = ["-m", model] if model else []
        tokens = 1024
        run = self.run("inspect", *named, "--json", "--kv-type", kv_type, "--ctx", tokens)
        if run.returncode != 0:
            return None
        return json.loads(run.stdout)["memory"]["kv_bytes"] / tokens


def models(folder):
    """Name, file and prompt of each model; the built-in one first."""
    yield "the built-in model", None, folder / "models/llama-256/tokens.npy"
    for name in MODELS:
        place = folder / "models" / name
        yield f"{name}, f32", place / "model-f32.gguf", place / "tokens.npy"
    place = folder / "models/llama-256"
    for kind in QUANTS:
        yield f"llama-256, {kind}", place / f"quant/model-{kind}.gguf", place / "tokens.npy"


def cell(compared):
    if compared is None:
        return "–"
    divergence, same = compared
    return f"{divergence:.1e}, {100 * same:.0f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("realm")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", help="only those whose name has this in it", default="")
    options = parser.parse_args()
    realm = Realm(options.realm, options.device)
    print("| model | " + " | ".join(f"{p}, KV {kv}" for p, kv in PAIRS) + " |")
    print("|---" * (len(PAIRS) + 1) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "logits.npy"
        for name, model, tokens in models(options.folder):
            if options.models not in name:
                continue
            reference, problem = realm.logits(model, tokens, "f32", "f32", out)
            if reference is None:
                raise SystemExit(f"{name}: {problem}")
            cells = []
            for precision, kv_type in PAIRS:
                found, said = realm.logits(model, tokens, precision, kv_type, out)
                if said:
                    print(f"{name}, {precision}, KV {kv_type}: {said}", file=sys.stderr)
                cells.append(cell(found and compare(reference, found)))
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    sizes = {kv: realm.cache_bytes(None, kv) for kv in ["f32", "f16", "bf16", "q8_0"]}
    print("\nbytes of KV cache a token, the built-in model: ", end="")
    print(", ".join(f"{kv} {size:.0f}" for kv, size in sizes.items() if size))


if __name__ == "__main__":
    main()
