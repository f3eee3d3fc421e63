#!/usr/bin/env python3
"""Rows of measurements: what they look like, where they come from, which figures they must reach.

    rows.py merge DIR…               one file a device, <gpu>-<date>.json, in the first DIR, from the
                                     logs in DIR/logs
    rows.py model BENCH INSPECT DIR  rows of whole models, from `realm bench --json` and `realm inspect
                                     --json`; the copy bandwidth is taken from the logs in DIR
    rows.py prefill BENCH TYPE       rows of prompts, of the model with weights of that type
    rows.py suite LOG                the conformance suite's row, from its output
    rows.py check FILE…              whether files of measurements are as docs/benchmarks/README.md says
    rows.py show FILE…               their rows, as a table

Python 3.8 or later, nothing else: it also runs on the host with the GPU.
"""

import json
import math
import re
import sys
from pathlib import Path

FORMATS = ["Q4_K", "Q5_K", "Q6_K", "Q8_K", "Q8_0", "Q4_0", "F16"]
SHAPES = ["14336x4096", "4096x14336"]
MODEL = "decode/llama-3.1-8b/q4_k_m"
PREFILL = "prefill/llama-3.1-8b"
GEMM = "gemm/Q4_K/bf16/14336x4096"

# The keys of a row and of a file.
ROW = {"bench": str, "median": float, "unit": str, "ratio": (float, type(None)),
       "ratio_to": (str, type(None))}
FILE = {"commit": str, "device": str, "driver": str, "rows": list}

# What an H200 must reach and is meant to: bench, the key that counts, must, goal. Greater is better
# but for times.
TARGETS = [
    *((f"matvec/{name}/{shape}/m1", "ratio", 0.70, 0.90) for name in FORMATS for shape in SHAPES),
    ("attention/decode/d128/32k/b8", "ratio", 0.70, 0.90),
    (f"{MODEL}/d0", "median", 450.0, 730.0),
    (f"{MODEL}/d16k", "ratio", 0.60, 0.75),
    (f"{MODEL}/d0/outside", "median", 1.0, 0.3),
    (f"{GEMM}/m512", "ratio", 0.50, 0.80),
    (f"{GEMM}/m4096", "ratio", 0.60, 0.90),
    (f"{GEMM}/m16", "ratio", 0.50, 0.80),
    (f"{GEMM}/m64", "ratio", 0.50, 0.80),
    *((f"attention/prefill/causal/16k/d{d}", "ratio", 1.0, 1.6) for d in (64, 128, 256)),
    (f"{PREFILL}/q4_k_m/p4096", "ratio", 0.60, 0.90),
]

# Rows that are held against another one of the same run, which may have been measured later.
AGAINST = [
    (r"gemm/[^/]+/(b?f16)/(\d+x\d+/m\d+)", r"peer/cublas/\1/\2"),
    (r"attention/(prefill/causal/\w+/d\d+)", r"peer/sdpa-flash/\1"),
    (rf"{PREFILL}/(?!bf16/)[^/]+/(p\d+)", rf"{PREFILL}/bf16/\1"),
]


def times(unit):
    """Whether less is better."""
    return unit in ("s", "ms", "µs")


def row(bench, median, unit, ratio=None, ratio_to=None):
    """A row."""
    ratio = None if ratio is None else float(ratio)
    return {"bench": bench, "median": float(median), "unit": unit, "ratio": ratio,
            "ratio_to": ratio_to}


def number(value):
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def faults_of_row(it):
    """What is wrong with a row."""
    if not isinstance(it, dict) or set(it) != set(ROW):
        yield f"a row has the keys {', '.join(ROW)}; this one: {json.dumps(it)[:120]}"
        return
    name = it["bench"]
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*", name):
        yield f"bench {name!r} is no name like matvec/Q4_K/14336x4096/m1"
    if not number(it["median"]) or it["median"] < 0:
        yield f"{name}: median {it['median']!r} is no number from 0 on"
    if not isinstance(it["unit"], str) or not it["unit"]:
        yield f"{name}: no unit"
    if (it["ratio"] is None) != (it["ratio_to"] is None):
        yield f"{name}: ratio and ratio_to come together"
    if it["ratio"] is not None and not number(it["ratio"]):
        yield f"{name}: ratio {it['ratio']!r} is no number"
    if it["ratio_to"] is not None and not isinstance(it["ratio_to"], str):
        yield f"{name}: ratio_to {it['ratio_to']!r} names nothing"


def faults_of_file(path):
    """What is wrong with a file of measurements."""
    if not re.fullmatch(r"[a-z0-9.-]+-\d{4}-\d\d-\d\d\.json", path.name):
        yield f"{path}: the name is not <gpu>-<year>-<month>-<day>.json"
    try:
        it = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"{path}: {error}"
        return
    if not isinstance(it, dict) or set(it) != set(FILE):
        yield f"{path}: its keys are not {', '.join(FILE)}"
        return
    for key, kind in FILE.items():
        if not isinstance(it[key], kind) or not it[key]:
            yield f"{path}: {key} is missing or empty"
            return
    seen = set()
    for entry in it["rows"]:
        problems = list(faults_of_row(entry))
        yield from (f"{path}: {problem}" for problem in problems)
        if not problems and entry["bench"] in seen:
            yield f"{path}: {entry['bench']} twice"
        if not problems:
            seen.add(entry["bench"])


def objects(log):
    """The JSON objects that stand alone on a line of a log."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                # A line that was cut off when its program was stopped.
                print(f"{log}: no JSON: {line[:80]}", file=sys.stderr)


def logs(folder):
    """The logs of a run, oldest first."""
    return sorted(Path(folder, "logs").glob("*.log"), key=lambda log: log.stat().st_mtime)


def rows_of(folder):
    """The rows in the logs of a folder; of a bench that was measured twice the later one."""
    found = {}
    for log in logs(folder):
        for it in objects(log):
            if "bench" in it:
                problems = list(faults_of_row(it))
                for problem in problems:
                    print(f"{log}: {problem}", file=sys.stderr)
                if not problems:
                    found[it["bench"]] = it
    return found


def setting(folder):
    """Commit, device, driver and date, as the run wrote them."""
    for log in logs(folder):
        for it in objects(log):
            if {"commit", "device", "driver", "date"} <= set(it):
                return it
    return None


def slug(device):
    """A device's name for a file: `NVIDIA H100 80GB HBM3` becomes `h100-80gb-hbm3`."""
    name = re.sub(r"^nvidia\s+", "", device.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or "gpu"


def hold(rows):
    """Fills the ratios of rows that are held against others."""
    for it in rows.values():
        for pattern, other in AGAINST:
            found = re.fullmatch(pattern, it["bench"])
            peer = rows.get(found.expand(other)) if found and it["ratio"] is None else None
            if peer and peer["unit"] == it["unit"] and peer["median"] > 0:
                it["ratio"], it["ratio_to"] = it["median"] / peer["median"], peer["bench"]


def merge(folders):
    """Joins what runs on one device measured at one commit."""
    settings, rows = [], {}
    for folder in folders:
        where = setting(folder)
        if where is None:
            sys.exit(f"error: {folder}/logs does not say which device was measured")
        settings.append(where)
        rows.update(rows_of(folder))
    keys = {(where["device"], where["driver"], where["commit"]) for where in settings}
    if len(keys) > 1:
        listed = "; ".join(" ".join(key) for key in sorted(keys))
        sys.exit(f"error: runs of different devices, drivers or commits belong in files apart: {listed}")
    if not rows:
        sys.exit("error: nothing was measured")
    hold(rows)
    device, driver, commit = keys.pop()
    date = max(where["date"] for where in settings)
    path = Path(folders[0], f"{slug(device)}-{date}.json")
    text = dump({"commit": commit, "device": device, "driver": driver, "rows": list(rows.values())})
    path.write_text(text, encoding="utf-8")
    print(path)


def suite(log):
    """Prints the row of the conformance suite: how many tests passed, and which part of those run.
    Where that is all, a file says with it that its kernels compute rightly; otherwise this fails."""
    text = Path(log).read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"test result: \S+ (\d+) passed; (\d+) failed", text)
    passed, failed = map(int, found[0]) if found else (0, 0)
    if passed + failed == 0:
        sys.exit("error: no test of the suite has run")
    print(json.dumps(row("conformance", passed, "tests", passed / (passed + failed), "all")))
    if failed:
        sys.exit(f"error: {failed} of the suite's {passed + failed} tests failed")


def dump(it):
    """A file of measurements as text: a line a row, so that changes can be read."""
    head = {key: it[key] for key in FILE if key != "rows"}
    lines = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in it["rows"])
    start = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
    return f'{start},\n  "rows": [\n{lines}\n  ]\n}}\n'


def bytes_a_token(inspect):
    """Bytes of weights that a token's step reads, and bytes of KV cache a token of context."""
    sizes = {tensor["name"]: tensor["bytes"] for tensor in inspect["tensors"]}
    weights = sum(sizes.values())
    # One row of it is read, unless it is the output matrix too.
    if "output.weight" in sizes:
        weights -= sizes["token_embd.weight"]
    facts = inspect["metadata"]
    kind = facts["general.architecture"]
    heads, layers = facts[f"{kind}.attention.head_count_kv"], facts[f"{kind}.block_count"]
    size = facts.get(f"{kind}.attention.key_length")
    if size is None:
        size = facts[f"{kind}.embedding_length"] // facts[f"{kind}.attention.head_count"]
    return weights, 2 * layers * heads * size


KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}


def model_rows(bench, inspect, copy):
    """Rows of `realm bench`'s generation tests. `copy`: bytes a second, or None."""
    weights, elements = bytes_a_token(inspect)
    for test in bench:
        found = re.fullmatch(r"tg(\d+)(?:@d(\d+))?", test["test"])
        if not found:
            continue
        tokens, depth = int(found[1]), int(found[2] or 0)
        name = f"{MODEL}/d{depth // 1024}k" if depth >= 1024 else f"{MODEL}/d{depth}"
        rate = test["tokens_per_second"]["median"]
        cached = max(depth, 1) + tokens / 2
        moved = weights + cached * elements * KV_BYTES[test["kv_type"]]
        if copy is None:
            yield row(name, rate, "tokens/s")
            continue
        yield row(name, rate, "tokens/s", moved * rate / copy, "copy")
        yield row(f"{name}/outside", max(0.0, 1e3 / rate - 1e3 * moved / copy), "ms")


def prefill(bench, kind):
    """Prints the rows of a model's prompts."""
    for test in json.loads(Path(bench).read_text(encoding="utf-8")):
        found = re.fullmatch(r"pp(\d+)", test["test"])
        if found:
            rate = test["tokens_per_second"]["median"]
            print(json.dumps(row(f"{PREFILL}/{kind}/p{found[1]}", rate, "tokens/s")), flush=True)


def model(bench, inspect, folder):
    """Prints the rows of a model."""
    copy = rows_of(folder).get("copy")
    if copy is None:
        print(f"{folder}: no row \"copy\" yet: no ratios; run the part kernels first",
              file=sys.stderr)
    tests = json.loads(Path(bench).read_text(encoding="utf-8"))
    tensors = json.loads(Path(inspect).read_text(encoding="utf-8"))
    for it in model_rows(tests, tensors, copy and copy["median"] * 1e9):
        print(json.dumps(it, ensure_ascii=False), flush=True)


def show(path):
    """Prints a file's rows, with what they must reach."""
    it = json.loads(Path(path).read_text(encoding="utf-8"))
    print(f"{it['device']}, driver {it['driver']}, commit {it['commit']}")
    width = max(len(entry["bench"]) for entry in it["rows"])
    must = {bench: (key, low, high) for bench, key, low, high in TARGETS}
    for entry in it["rows"]:
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:7.1%} of {entry['ratio_to']}"
        note = ""
        if entry["bench"] in must:
            key, low, high = must[entry["bench"]]
            value = entry[key]
            if value is not None:
                note = verdict(entry, key, low, high)
        line = f"{entry['bench']:<{width}} {entry['median']:12.4g} {entry['unit']:<9} {ratio:<18} {note}"
        print(line.rstrip())


def verdict(entry, key, must, goal):
    """Where a row stands."""
    reached = (lambda limit: entry[key] <= limit) if times(entry["unit"]) and key == "median" else (
        lambda limit: entry[key] >= limit)
    return "goal" if reached(goal) else "must" if reached(must) else "MISSED"


def main(args):
    """The command line."""
    if len(args) >= 2 and args[0] == "merge":
        merge(args[1:])
    elif len(args) == 4 and args[0] == "model":
        model(*args[1:])
    elif len(args) == 3 and args[0] == "prefill":
        prefill(*args[1:])
    elif len(args) == 2 and args[0] == "suite":
        suite(args[1])
    elif len(args) >= 2 and args[0] == "check":
        faults = [fault for path in args[1:] for fault in faults_of_file(Path(path))]
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)
        sys.exit(1 if faults else 0)
    elif len(args) >= 2 and args[0] == "show":
        for path in args[1:]:
            show(path)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
