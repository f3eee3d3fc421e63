#!/usr/bin/env python3
"""Writes docs/benchmarks/kernels.md: what the assembler says of the kernels (`ptxas -v`), a row a unit.

    kernels.py [--archs LIST] [--check]

Builds realm-compute-gpu with the feature cuda for LIST (default: 80,90a), which takes minutes where the
cache of kernels does not hold them, and reads what the build script notes of each kernel. --check writes
nothing and fails where a kernel spills registers or the assembler serializes its wgmma. Needs what that
build needs: Cargo, g++, nvcc.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "kernels.md"

LINE = re.compile(r"(\S+) +(\S+) +(sm_\w+) +(\d+) registers +(\d+) B spilled +(\d+) B stack +(\d+) B shared")


def read(text):
    """The lines of a kernels.txt: unit, kernel, architecture, registers, spills, stack, shared memory."""
    found = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if not match:
            sys.exit(f"error: no line about a kernel: {line}")
        found.append((*match.groups()[:3], *map(int, match.groups()[3:])))
    return found


def table(kernels):
    """A row a unit, with columns for each architecture."""
    archs = list(dict.fromkeys(kernel[2] for kernel in kernels))
    cells = ["unit"]
    for arch in archs:
        cells += [f"{arch}: kernels", "most registers", "spills, B", "most static shared memory, B"]
    yield f"| {' | '.join(cells)} |"
    yield "|---" * len(cells) + "|"
    for unit in dict.fromkeys(kernel[0] for kernel in kernels):
        cells = [f"`{unit}`"]
        for arch in archs:
            mine = [kernel for kernel in kernels if kernel[0] == unit and kernel[2] == arch]
            if not mine:
                cells += [""] * 4
                continue
            spilling = [kernel[4] for kernel in mine if kernel[4]]
            spills = f"**{sum(spilling)}** ({len(spilling)})" if spilling else "0"
            cells += [len(mine), max(kernel[3] for kernel in mine), spills,
                      max(kernel[6] for kernel in mine)]
        yield "|" + "|".join(f" {cell} " if cell != "" else " " for cell in cells) + "|"


def build(archs, deny):
    """The text of kernels.txt, after a build: one that fails, with `deny`, where speed is lost."""
    # A folder of its own: the others' builds are for other architectures, and would start anew.
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "kernels"
    command = ["cargo", "check", "-p", "realm-compute-gpu", "--features", "cuda", "--locked",
               "--target-dir", str(target), "--message-format", "json-render-diagnostics"]
    environment = {**os.environ, "REALM_CUDA_ARCHS": archs}
    if deny:
        environment["REALM_KERNEL_SPILLS"] = "deny"
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=False)
    if built.returncode:
        sys.exit(built.returncode)
    for line in built.stdout.decode().splitlines():
        message = json.loads(line)
        if message.get("reason") == "build-script-executed":
            path = Path(message["out_dir"], "kernels.txt")
            if path.is_file():
                return path.read_text(encoding="utf-8")
    sys.exit("error: the build made no kernels.txt")


def page(kernels, version):
    """The page."""
    spilling = [kernel for kernel in kernels if kernel[4]]
    named = "; ".join(f"`{kernel[1]}` {kernel[4]} B on {kernel[2]}" for kernel in spilling)
    lines = [
        "# The kernels, as the assembler sees them", "",
        "Written by `bench/gpu/kernels.py` from what `ptxas -v` says of each kernel; a row a unit of",
        "`build/manifest.rs`. Shared memory is what a kernel declares itself: most of what it uses is asked",
        "for at the launch. Local memory that is no spill is not counted.", "",
        f"{datetime.date.today().isoformat()}, {version}: {len({kernel[:2] for kernel in kernels})} kernels. "
        + (f"Spilled registers: {named}." if spilling else "None spills registers."), "",
        *table(kernels),
    ]
    return "\n".join(lines) + "\n"


def nvcc_version():
    """nvcc's release, of the one that REALM_NVCC names or PATH has."""
    nvcc = os.environ.get("REALM_NVCC") or "nvcc"
    try:
        said = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True, check=False).stdout
    except OSError:
        return "nvcc of an unknown release"
    found = re.search(r"release [\d.]+, V([\d.]+)", said)
    return f"nvcc {found[1]}" if found else "nvcc of an unknown release"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80,90a")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    kernels = read(build(args.archs, args.check))
    if not args.check:
        PAGE.write_text(page(kernels, nvcc_version()), encoding="utf-8")
    faults = [f"{kernel[0]}: {kernel[1]} spills {kernel[4]} bytes on {kernel[2]}"
              for kernel in kernels if kernel[4]]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len({kernel[:2] for kernel in kernels})} kernels for {args.archs}; spills: {len(faults)}")
    sys.exit(1 if faults and args.check else 0)


if __name__ == "__main__":
    main()
