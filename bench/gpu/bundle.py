#!/usr/bin/env python3
"""Builds the GPU bundle: a folder with all that a host without Rust and without a toolkit needs to
test and measure Realm on its GPU.

    bundle.py [--out DIR] [--reference DIR] [--archs LIST]

It holds `realm`, the conformance suite, the tests of the crates that name a device, the kernel
benchmark, peers.py, small models with recorded token ids, and run.sh. There, `run.sh --dry-run`
checks it and `run.sh` does everything; docs/benchmarks/README.md tells more. Every program has all
kernels in it: they travel in one archive whose compression sees them as one, and run.sh unpacks it
elsewhere.

Needs what a build with `--features cuda` needs: Cargo, gcc, nvcc. DIR (default: bundle, which git
ignores) is written anew. --reference (default: $REALM_REFERENCE, else ../shared/reference) is the
folder of reference data; without it the bundle has no models and says so. --archs is
REALM_CUDA_ARCHS for this build (default: $REALM_CUDA_ARCHS, else 80,90a,ptx: Ampere, Ada, Hopper and
what follows).
"""

import argparse
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Most bytes that the bundle may have: it is carried to hosts by hand.
LIMIT = 40_000_000

# Programs of the bundle: name there, package, kind and name of Cargo's target.
PROGRAMS = [
    ("conformance", "realm-compute-gpu", "test", "conformance"),
    ("gpu-tests", "realm-compute-gpu", "lib", "realm_compute_gpu"),
    ("runtime-tests", "realm-runtime", "lib", "realm_runtime"),
    ("whole-models", "realm-runtime", "test", "whole_models"),
    ("kernels", "realm-compute-gpu", "bench", "kernels"),
    ("realm", "realm-cli", "bin", "realm"),
]

# `realm` as users have it, without what only tests enable; and the tests.
BUILDS = [
    ["build", "-p", "realm-cli", "--bin", "realm"],
    ["test", "--no-run", "-p", "realm-compute-gpu", "--lib", "--test", "conformance",
     "--bench", "kernels"],
    ["test", "--no-run", "-p", "realm-runtime", "--lib", "--test", "whole_models"],
]

SCRIPTS = ["bench/gpu/run.sh", "bench/gpu/rows.py", "bench/peers.py"]

# Models of the reference data, and their quantized files.
MODELS = {
    "llama": [],
    "llama-256": ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "Q4_0", "F16", "Q2_K", "Q3_K_M", "IQ4_XS"],
    "llama3-rope": [],
    "qwen2": [],
    "qwen3": [],
    "gemma2": [],
    "gemma3": [],
    "phi3": [],
    "mistral": [],
}

# What a test makes the model with a window from; the recorded greedy tokens are that one's, not those
# of the file.
WINDOWED = ["model.safetensors", "config.json", "logits_full_attention.npy"]


def build(archs):
    """Builds everything; the path of each program."""
    environment = {**os.environ, "REALM_CUDA_ARCHS": archs, "CARGO_PROFILE_RELEASE_STRIP": "symbols"}
    found = {}
    for words in BUILDS:
        command = ["cargo", *words, "--release", "--locked", "--features", "cuda",
                   "--message-format", "json-render-diagnostics"]
        print("REALM_CUDA_ARCHS=" + archs, " ".join(command), flush=True)
        built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=False)
        if built.returncode:
            sys.exit(built.returncode)
        for line in built.stdout.decode().splitlines():
            message = json.loads(line)
            if message.get("reason") == "compiler-artifact" and message.get("executable"):
                target = message["target"]
                package = message["package_id"].split("#")[0].rsplit("/", 1)[-1]
                for kind in target["kind"]:
                    found[package, kind, target["name"]] = Path(message["executable"])
    programs = {}
    for name, *key in PROGRAMS:
        if tuple(key) not in found:
            sys.exit(f"error: Cargo built no {' '.join(key)}; it built {sorted(found)}")
        programs[name] = found[tuple(key)]
    return programs


def commit():
    """The commit, with `-dirty` where the tree has changes."""
    def git(*words):
        return subprocess.check_output(["git", *words], cwd=ROOT, text=True).strip()

    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")


def numbers(path):
    """A one-dimensional `.npy` file of little-endian integers of 4 or 8 bytes."""
    data = path.read_bytes()
    length, = struct.unpack_from("<H", data, 8)
    header, body = data[10:10 + length].decode(), data[10 + length:]
    wide = "<i8" in header
    if data[:8] != b"\x93NUMPY\x01\x00" or not (wide or "<i4" in header):
        sys.exit(f"error: {path}: no list of integers")
    return struct.unpack(f"<{len(body) // (8 if wide else 4)}{'q' if wide else 'i'}", body)


def models(reference, out):
    """Copies the models with what is recorded of them, ids as text too."""
    for name, kinds in MODELS.items():
        source, target = reference / "models" / name, out / "reference" / "models" / name
        files = ["model-f32.gguf", "tokens.npy", "greedy.npy", "logits.npy",
                 *(f"quant/model-{kind}.gguf" for kind in kinds),
                 *(WINDOWED if name == "mistral" else [])]
        for file in files:
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, place)
        for kind, ids in (("prompt", "tokens.npy"), ("greedy", "greedy.npy")):
            if name == "mistral" and kind == "greedy":
                continue
            text = ",".join(map(str, numbers(source / ids)))
            (target / f"{kind}.ids").write_text(text + "\n", encoding="ascii")


def pack(folder, archive):
    """Packs a folder. What occurs twice within 128 MiB, such as the kernels, is stored once."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 128 << 20}]
    with lzma.open(archive, "wb", filters=filters) as compressed:
        with tarfile.open(fileobj=compressed, mode="w") as tar:
            # Programs side by side, and nothing of this machine's users.
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = tar.gettarinfo(path, path.relative_to(folder))
                entry.uid = entry.gid = entry.mtime = 0
                entry.uname = entry.gname = ""
                with path.open("rb") as file:
                    tar.addfile(entry, file)


def fill(out, programs, reference, archs):
    """Writes the folder. Returns the lengths of the archive's files."""
    if out.exists():
        # Nothing of somebody else's.
        if any(out.iterdir()) and not (out / "manifest.json").is_file():
            sys.exit(f"error: {out} is no bundle; name another folder, or empty it")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        inside = Path(folder)
        (inside / "bin").mkdir()
        for name, path in programs.items():
            shutil.copy(path, inside / "bin" / name)
        if reference.is_dir():
            models(reference, inside)
        else:
            print(f"no models: {reference} is not there; name the reference data with --reference")
        files = {str(path.relative_to(inside)): path.stat().st_size
                 for path in sorted(inside.rglob("*")) if path.is_file()}
        pack(inside, out / "payload.tar.xz")
    for script in SCRIPTS:
        shutil.copy(ROOT / script, out)
    manifest = {"commit": commit(), "archs": archs, "files": files}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="ascii")
    return files


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("REALM_REFERENCE") or ROOT.parent / "shared" / "reference"
    parser.add_argument("--out", type=Path, default=ROOT / "bundle")
    parser.add_argument("--reference", type=Path, default=default)
    parser.add_argument("--archs", default=os.environ.get("REALM_CUDA_ARCHS") or "80,90a,ptx")
    args = parser.parse_args()
    files = fill(args.out, build(args.archs), args.reference, args.archs)
    for name, size in files.items():
        print(f"{size / 1e6:8.2f} MB  {name}")
    total = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{total / 1e6:8.2f} MB  {args.out}, of {sum(files.values()) / 1e6:.2f} MB unpacked")
    if total > LIMIT:
        sys.exit(f"error: more than {LIMIT / 1e6:.0f} MB; narrow --archs")


if __name__ == "__main__":
    main()
