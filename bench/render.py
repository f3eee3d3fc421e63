#!/usr/bin/env python3
"""Writes the GPU part of docs/benchmarks.md from the measurements in docs/benchmarks/*.json.

    render.py           writes it
    render.py --check   says whether it is as it would be written, and whether the files are sound

What stands between the two marks in docs/benchmarks.md is this script's; everything else is not.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "gpu"))

import rows  # noqa: E402: found by the line above

PAGE = ROOT / "docs" / "benchmarks.md"
FOLDER = ROOT / "docs" / "benchmarks"
# Every kernel unit, and what the rows of its benchmarks begin with.
UNITS = ROOT / "bench" / "units.json"
START, END = "<!-- rendered by bench/render.py -->", "<!-- end of what is rendered -->"


def read():
    """The files of measurements, newest first."""
    paths = sorted(FOLDER.glob("*.json"), key=lambda path: path.stem[-10:], reverse=True)
    return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def figure(entry):
    """A row's median as people read it."""
    value = entry["median"]
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2
    return f"{value:.{digits}f} {entry['unit']}"


def percent(value):
    """A part as people read it."""
    return f"{100 * value:.0f} %"


def limit(key, value, unit):
    """What a row must reach."""
    if key == "ratio":
        return percent(value)
    return f"{'≤' if rows.times(unit) else '≥'} {value:g} {unit}"


def unit_of(bench):
    """The unit of a target, before it was measured."""
    return "ms" if bench.endswith("/outside") else "tokens/s"


def targets(measured, device="NVIDIA H200"):
    """The table of what must be reached. Tokens and times are an H200's; parts of the bandwidth hold for
    every device."""
    yield "| row | must | goal | measured | |"
    yield "|---|---|---|---|---|"
    for bench, key, must, goal in rows.TARGETS:
        unit = unit_of(bench)
        cells = [f"`{bench}`", limit(key, must, unit), limit(key, goal, unit)]
        entry = measured.get(bench)
        if entry is None or entry[key] is None:
            cells += ["never measured", ""]
        else:
            found = figure(entry)
            if entry["ratio"] is not None:
                found += f", {percent(entry['ratio'])} of {entry['ratio_to']}"
            words = {"goal": "goal met", "must": "must met", "MISSED": "**missed**"}
            counts = key == "ratio" or "H200" in device
            cells += [found, words[rows.verdict(entry, key, must, goal)] if counts else ""]
        yield "| " + " | ".join(cells) + " |"


def everything(measured):
    """The table of all other rows."""
    others = [entry for bench, entry in measured.items()
              if bench not in {target[0] for target in rows.TARGETS}]
    if not others:
        return
    yield ""
    yield "Everything else that was measured in that run:"
    yield ""
    yield "| row | median | of |"
    yield "|---|---|---|"
    for entry in others:
        part = "" if entry["ratio"] is None else f"{percent(entry['ratio'])} of {entry['ratio_to']}"
        yield f"| `{entry['bench']}` | {figure(entry)} | {part} |"


def never_run(files):
    """Which kernels no device has run, by name, and where all of them computed rightly."""
    whole = []
    for _, it in files:
        suite = next((entry for entry in it["rows"] if entry["bench"] == "conformance"), None)
        # It runs every unit; what failed may never have come to its kernel.
        if suite and suite["ratio"] == 1:
            whole.append(f"{it['device']} at commit `{it['commit']}` ({suite['median']:.0f} tests)")
    if whole:
        return f"Every kernel has run on a real device; the whole suite passed on {', '.join(whole)}."
    benches = {entry["bench"] for _, it in files for entry in it["rows"]}
    units = json.loads(UNITS.read_text(encoding="utf-8"))
    missing = [unit for unit, prefix in units.items()
               if not any(bench.startswith(prefix) for bench in benches)]
    if not missing:
        return "Every kernel was measured on a real device, but the whole suite has passed on none."
    listed = ", ".join(f"`{unit}`" for unit in missing)
    return f"Never run on a real device, only on the emulated one: {listed}."


def render():
    """The part between the marks."""
    files = read()
    lines = []
    if not files:
        lines += ["No GPU has run this version yet. What an H200 must reach:", ""]
        lines += targets({})
    for path, it in files:
        measured = {entry["bench"]: entry for entry in it["rows"]}
        lines += [f"### {it['device']}, {path.stem[-10:]}", ""]
        lines += [f"Driver {it['driver']}, commit `{it['commit']}`; all rows: "
                  f"[{path.name}](benchmarks/{path.name}).", ""]
        lines += targets(measured, it["device"])
        lines += everything(measured)
        lines.append("")
    while lines[-1] == "":
        lines.pop()
    lines += ["", never_run(files)]
    return "\n".join(lines)


def main(args):
    """The command line."""
    if args not in ([], ["--check"]):
        sys.exit(__doc__)
    faults = [fault for path in sorted(FOLDER.glob("*.json")) for fault in rows.faults_of_file(path)]
    page = PAGE.read_text(encoding="utf-8")
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        faults.append(f"{PAGE}: the marks {START} and {END} are not there")
    if not faults:
        new = f"{before}{START}\n\n{render()}\n\n{END}{after}"
        if not args:
            PAGE.write_text(new, encoding="utf-8")
        elif new != page:
            faults.append(f"{PAGE} is not what docs/benchmarks/*.json say: run bench/render.py")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
