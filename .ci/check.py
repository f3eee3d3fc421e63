#!/usr/bin/env python3
"""Checks that need no build; used by .ci/run.

    check.py tree                 links between documents, imports between crates
    check.py skipped LOG DEVICES  fails if a test in LOG did not run; DEVICES: those required
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What each crate may import of the others: the table of docs/architecture.md. Development
# dependencies are free: tests may reach sideways.
IMPORTS = {
    "realm-core": set(),
    "realm-gguf": {"realm-core"},
    "realm-tokenizer": set(),
    "realm-compute-cpu": {"realm-core"},
    "realm-compute-gpu": {"realm-core"},
    "realm-compute-candle": {"realm-core"},
    "realm-conformance": {"realm-core"},
    "realm-runtime": {
        "realm-core",
        "realm-gguf",
        "realm-tokenizer",
        "realm-compute-cpu",
        "realm-compute-gpu",
        "realm-compute-candle",
    },
    "realm-server": {"realm-runtime"},
    "realm-candle": {"realm-core", "realm-compute-cpu", "realm-compute-gpu"},
    "realm-cli": {
        "realm-core",
        "realm-gguf",
        "realm-tokenizer",
        "realm-compute-cpu",
        "realm-compute-gpu",
        "realm-runtime",
        "realm-server",
    },
}

DEVICES = {"cpu", "cpu-avx2", "cpu-avx512", "wgpu", "cuda-emulated", "cuda"}


def imports():
    """Faults in the dependencies between the workspace's crates."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    packages = json.loads(subprocess.check_output(command, cwd=ROOT))["packages"]
    names = {package["name"] for package in packages}
    for package in packages:
        name = package["name"]
        if name not in IMPORTS:
            yield f"{name}: give the crate a row in docs/architecture.md and in .ci/check.py"
            continue
        for dependency in package["dependencies"]:
            other = dependency["name"]
            if dependency["kind"] == "dev" or other not in names or other in IMPORTS[name]:
                continue
            yield f"{name} imports {other}: docs/architecture.md does not allow it"


def anchors(text):
    """The fragments that a Markdown document's headings can be reached by."""
    for heading in re.findall(r"^#+\s+(.*)$", text, re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        yield plain.replace(" ", "-")


def links():
    """Relative links in the documents that lead nowhere."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, text=True
    )
    for name in listed.splitlines():
        document = ROOT / name
        if not document.is_file():
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, fragment = target.partition("#")
            there = document.parent / path if path else document
            if not there.exists():
                yield f"{name}: no file {target}"
            elif fragment and fragment not in anchors(there.read_text(encoding="utf-8")):
                yield f"{name}: no heading for {target}"


def skipped(log, required):
    """Tests in the log of a test run that did not run, though they could have."""
    others = DEVICES - set(required.split(","))
    passed = 0
    for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines():
        result = re.match(r"test result: \w+\. (\d+) passed", line)
        if result:
            passed += int(result[1])
        ignored = re.match(r"test .* \.\.\. ignored\b", line)
        if not ignored and "skipped:" not in line:
            continue
        # The longest name first, so that "cuda-emulated" is not read as "cuda".
        named = re.search(r"\b(cuda-emulated|cuda|wgpu|cpu-avx512|cpu-avx2|cpu)\b", line.lower())
        if named and named[1] in others:
            print(f"not required here: {line}")
        else:
            yield f"did not run: {line}"
    if passed == 0:
        yield f"{log}: no test has passed"
    print(f"{passed} tests passed")


def main():
    match sys.argv[1:]:
        case ["tree"]:
            faults = [*imports(), *links()]
        case ["skipped", log, required]:
            faults = list(skipped(log, required))
        case _:
            sys.exit(__doc__)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
