#!/usr/bin/env python3
"""Tests of run.sh, rows.py, peers.py and render.py, with made-up programs in the place of Realm's: no
build, no GPU, a few seconds.

    bench/gpu/test.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

sys.path.insert(0, str(HERE.parent))

import bundle as builder  # noqa: E402: found by the lines above
import kernels  # noqa: E402
import render  # noqa: E402
import rows  # noqa: E402

DEVICE = "cuda:0  NVIDIA H200, 139.8 GiB, compute capability 9.0, driver with CUDA 13.0"

# What `realm` prints, by its first word; a test may change a line.
REALM = {
    "--version": "echo realm 0.1.0",
    "devices": f"printf '%s\\n' '{DEVICE}' '        precision f32' 'cpu     a CPU'",
    "run": "echo 5,6,7",
    "synth": 'for last; do :; done; echo model >"$last"',
    "inspect": "cat <<'END'\n" + json.dumps({
        "tensors": [{"name": "token_embd.weight", "bytes": 300_000_000},
                    {"name": "output.weight", "bytes": 400_000_000},
                    {"name": "blk.0.ffn_up.weight", "bytes": 4_200_000_000}],
        "metadata": {"general.architecture": "llama", "llama.block_count": 32,
                     "llama.attention.head_count_kv": 8, "llama.attention.key_length": 128},
    }) + "\nEND",
    "bench": 'name=tg128; case "$*" in *16384*) name=tg128@d16384;; esac; cat <<END\n'
             '[\n{"test": "$name", "tokens_per_second": {"median": 500.0}, "kv_type": "f16"}\n]\nEND',
}

TEST = 'case "$1" in --list) echo "a: test";; *) echo "test result: ok. 12 passed; 0 failed; 0";; esac'
COPY = '{"bench": "copy", "median": 4000.0, "unit": "GB/s", "ratio": null, "ratio_to": null}'
MATVEC = ('{"bench": "matvec/Q4_K/14336x4096/m1", "median": 3600.0, "unit": "GB/s", "ratio": 0.9, '
          '"ratio_to": "copy"}')
SERIAL = ["copy", "matvec/Q4_K/14336x4096/m1", "copy/serial", "matvec/Q4_K/14336x4096/m1/serial"]
KERNELS = f"case \"$1\" in --list) echo copy;; *) echo '{COPY}'; echo '{MATVEC}';; esac"


class Bundle:
    """A bundle of made-up programs."""

    def __init__(self, folder, realm=None, **programs):
        self.folder = Path(folder)
        (self.folder / "bin").mkdir()
        cases = "".join(f"{word})\n{line}\n;;\n" for word, line in {**REALM, **(realm or {})}.items())
        scripts = {"realm": f'case "$1" in\n{cases}esac', "conformance": TEST, "gpu-tests": TEST,
                   "runtime-tests": TEST, "whole-models": TEST, "kernels": KERNELS, **programs}
        for name, script in scripts.items():
            self.write(f"bin/{name.replace('_', '-')}", f"#!/bin/sh\n{script}\n").chmod(0o755)
        for source in (HERE / "run.sh", HERE / "rows.py", HERE.parent / "peers.py"):
            shutil.copy(source, self.folder)
        model = "reference/models/llama"
        self.write(f"{model}/model-f32.gguf", "GGUF")
        self.write(f"{model}/prompt.ids", "1,2,3\n")
        self.write(f"{model}/greedy.ids", "5,6,7\n")
        files = [path for path in self.folder.glob("*/**/*") if path.is_file()]
        manifest = {"commit": "abc", "archs": "90a", "files": {
            str(path.relative_to(self.folder)): path.stat().st_size for path in files}}
        self.write("manifest.json", json.dumps(manifest))

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, *words):
        command = [str(self.folder / "run.sh"), "--out", str(self.folder / "results"),
                   "--scratch", str(self.folder / "scratch"), *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=120, check=False)
        return done.returncode, done.stdout

    def measured(self):
        paths = list((self.folder / "results").glob("h200-*.json"))
        assert len(paths) == 1, paths
        assert not list(rows.faults_of_file(paths[0]))
        return json.loads(paths[0].read_text(encoding="utf-8"))


class Run(unittest.TestCase):
    """run.sh from end to end."""

    def bundle(self, **changes):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return Bundle(folder.name, **changes)

    def test_all_parts(self):
        bundle = self.bundle()
        code, text = bundle.run("ids", "conformance", "kernels", "model")
        self.assertEqual(code, 0, text)
        found = bundle.measured()
        self.assertEqual((found["commit"], found["device"]), ("abc", "NVIDIA H200"))
        by_name = {row["bench"]: row for row in found["rows"]}
        self.assertEqual(by_name["conformance"]["median"], 12)
        self.assertEqual(by_name["matvec/Q4_K/14336x4096/m1"]["ratio"], 0.9)
        # 4.6 GB of weights (the embedding table is not read) at 4 TB/s are 1.15 of 2 ms; a cache of
        # 16384 + 64 tokens has 2.156 GB.
        base = "decode/llama-3.1-8b/q4_k_m"
        self.assertAlmostEqual(by_name[f"{base}/d0"]["ratio"], 0.576, places=3)
        self.assertAlmostEqual(by_name[f"{base}/d0/outside"]["median"], 0.848, places=3)
        self.assertAlmostEqual(by_name[f"{base}/d16k"]["ratio"], 0.8445, places=3)

    def test_later_parts_join_the_rows(self):
        bundle = self.bundle()
        self.assertEqual(bundle.run("kernels")[0], 0)
        self.assertEqual([row["bench"] for row in bundle.measured()["rows"]], SERIAL)
        self.assertEqual(bundle.run("conformance")[0], 0)
        self.assertEqual(len(bundle.measured()["rows"]), len(SERIAL) + 1)

    def test_the_model_finds_its_own_ceiling(self):
        bundle = self.bundle()
        self.assertEqual(bundle.run("model")[0], 0)
        self.assertIn("copy", [row["bench"] for row in bundle.measured()["rows"]])

    def test_a_failure_stops_nothing(self):
        failing = 'case "$1" in --list) echo "a: test";; *) echo "test result: F. 3 passed; 1 failed"; exit 101;; esac'
        bundle = self.bundle(conformance=failing, realm={"run": "echo 5,6,8"})
        code, text = bundle.run("ids", "conformance", "kernels")
        self.assertEqual(code, 1, text)
        self.assertIn("ids: FAILED", text)
        self.assertIn("conformance: FAILED (101)", text)
        self.assertIn("one kernel at a time", text)
        self.assertIn("kernels: passed", text)
        by_name = {row["bench"]: row for row in bundle.measured()["rows"]}
        self.assertEqual(by_name["conformance"]["ratio"], 0.75)
        log = (bundle.folder / "results/logs/ids.log").read_text(encoding="utf-8")
        self.assertIn("5,6,8 instead of", log)

    def test_prompts_beside_weights_in_bf16(self):
        bench = ('case "$*" in *bf16*) rate=400;; *) rate=300;; esac; cat <<END\n[{"test": "pp4096", '
                 '"tokens_per_second": {"median": $rate}, "kv_type": "f16"}]\nEND')
        bundle = self.bundle(realm={"bench": bench})
        code, text = bundle.run("--quick", "prefill")
        self.assertEqual(code, 0, text)
        by_name = {row["bench"]: row for row in bundle.measured()["rows"]}
        self.assertEqual(by_name["prefill/llama-3.1-8b/q4_k_m/p4096"]["ratio"], 0.75)

    def test_a_suite_that_ran_nothing_has_not_passed(self):
        bundle = self.bundle(conformance='echo "test result: ok. 0 passed; 0 failed; 0"')
        code, text = bundle.run("conformance")
        self.assertEqual(code, 1, text)

    def test_rows_before_a_time_limit_are_kept(self):
        bundle = self.bundle(kernels=f"echo '{COPY}'; echo '{MATVEC[:30]}'; sleep 100")
        code, text = bundle.run("--budget", "6", "kernels", "peers")
        self.assertEqual(code, 1, text)
        self.assertIn("kernels: stopped", text)
        self.assertIn("peers: not run, no time left", text)
        self.assertEqual([row["bench"] for row in bundle.measured()["rows"]], ["copy"])

    def test_no_device(self):
        line = "echo 'cuda    cannot be used: no driver: libcuda.so.1 not found'"
        code, text = self.bundle(realm={"devices": line}).run("kernels")
        self.assertEqual(code, 3, text)
        self.assertIn("no driver", text)

    def test_dry_run(self):
        line = "echo 'cuda    cannot be used: no driver: libcuda.so.1 not found'"
        bundle = self.bundle(realm={"devices": line})
        code, text = bundle.run("--dry-run")
        self.assertEqual(code, 0, text)
        for part in ("realm 0.1.0", "conformance: starts, 1 tests", "no driver", "is whole"):
            self.assertIn(part, text)
        self.assertFalse((bundle.folder / "results").exists())

    def test_damaged_bundles(self):
        bundle = self.bundle(conformance="exit 127")
        code, text = bundle.run("--dry-run")
        self.assertEqual(code, 2, text)
        self.assertIn("conformance does not start", text)
        bundle = self.bundle()
        os.remove(bundle.folder / "bin/kernels")
        for words in (["--dry-run"], ["kernels"]):
            code, text = bundle.run(*words)
            self.assertEqual(code, 2, text)
            self.assertIn("bin/kernels has None bytes", text)

    def test_the_archive_is_unpacked(self):
        bundle = self.bundle()
        archive, packed = bundle.folder / "payload.tar.xz", bundle.folder / "packed"
        packed.mkdir()
        for name in ("bin", "reference"):
            (bundle.folder / name).rename(packed / name)
        builder.pack(packed, archive)
        shutil.rmtree(packed)
        whole = archive.read_bytes()
        archive.write_bytes(whole[: len(whole) // 2])
        code, text = bundle.run("--dry-run")
        self.assertEqual(code, 2, text)
        self.assertIn("payload.tar.xz", text)
        before = sorted(bundle.folder.iterdir())
        archive.write_bytes(whole)
        for _ in range(2):
            code, text = bundle.run("--dry-run")
            self.assertEqual(code, 0, text)
        # Once, outside: the bundle stays as it came.
        self.assertEqual(sorted(bundle.folder.iterdir()), before)
        unpacked = list((bundle.folder / "scratch").iterdir())
        self.assertEqual(len(unpacked), 1)
        self.assertTrue((unpacked[0] / "bin" / "realm").is_file())
        self.assertEqual(bundle.run("ids", "conformance")[0], 0)

    def test_equal_files_are_packed_once(self):
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder, "inside")
            inside.mkdir()
            kernels = os.urandom(3_000_000)
            for name in ("one", "two", "three"):
                (inside / name).write_bytes(os.urandom(1000) + kernels + os.urandom(1000))
            builder.pack(inside, Path(folder, "packed"))
            self.assertLess(Path(folder, "packed").stat().st_size, 3_200_000)

    def test_wrong_use(self):
        for words in (["nonsense"], ["--nonsense"], ["--budget", "soon"], ["--budget"]):
            self.assertEqual(self.bundle().run(*words)[0], 2, words)
        self.assertIn("conformance", self.bundle().run("--help")[1])

    def test_no_sanitizer_is_a_skip(self):
        if shutil.which("compute-sanitizer"):
            self.skipTest("it is here")
        code, text = self.bundle().run("sanitizer", "kernels")
        self.assertEqual(code, 0, text)
        self.assertIn("sanitizer: skipped", text)


class Rows(unittest.TestCase):
    """What rows.py takes and refuses."""

    def faults(self, **changes):
        it = {**rows.row("matvec/Q4_K/14336x4096/m1", 3600, "GB/s", 0.9, "copy"), **changes}
        return list(rows.faults_of_row(it))

    def test_rows(self):
        self.assertEqual(self.faults(), [])
        self.assertEqual(self.faults(ratio=None, ratio_to=None), [])
        for wrong in ({"bench": "a b"}, {"median": -1}, {"median": float("nan")}, {"median": True},
                      {"unit": ""}, {"ratio": None}, {"ratio": "most"}, {"extra": 1}):
            self.assertEqual(len(self.faults(**wrong)), 1, wrong)

    def test_files_read_back(self):
        it = {"commit": "abc", "device": "NVIDIA H200", "driver": "580",
              "rows": [rows.row("copy", 4300.5, "GB/s"), rows.row("launch/graph", 1.2, "µs")]}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "h200-2026-11-24.json")
            path.write_text(rows.dump(it), encoding="utf-8")
            self.assertEqual(json.loads(path.read_text(encoding="utf-8")), it)
            self.assertEqual(list(rows.faults_of_file(path)), [])
            path.write_text(rows.dump({**it, "rows": it["rows"][:1] * 2}), encoding="utf-8")
            self.assertEqual(len(list(rows.faults_of_file(path))), 1)
            other = path.rename(Path(folder, "H200.json"))
            self.assertIn("the name", "".join(rows.faults_of_file(other)))

    def test_names_for_files(self):
        self.assertEqual(rows.slug("NVIDIA H200"), "h200")
        self.assertEqual(rows.slug("NVIDIA H100 80GB HBM3"), "h100-80gb-hbm3")

    def test_rows_are_held_against_peers_of_their_run(self):
        gemm, prompt = "gemm/Q4_K/bf16/14336x4096/m512", "attention/prefill/causal/16k/d64"
        model = "prefill/llama-3.1-8b"
        measured = [rows.row(gemm, 400, "TFLOP/s"), rows.row(prompt, 300, "TFLOP/s"),
                    rows.row(gemm.replace("m512", "m16"), 2000, "GB/s", 0.5, "copy"),
                    rows.row(f"{model}/q4_k_m/p4096", 90, "tokens/s"),
                    rows.row(f"{model}/bf16/p4096", 100, "tokens/s"),
                    rows.row("peer/cublas/bf16/14336x4096/m512", 800, "TFLOP/s"),
                    rows.row("peer/cublas/bf16/14336x4096/m16", 2500, "GB/s"),
                    rows.row("peer/sdpa-flash/prefill/causal/16k/d64", 200, "TFLOP/s")]
        found = {it["bench"]: it for it in measured}
        rows.hold(found)
        self.assertEqual([it["ratio"] for it in measured], [0.5, 1.5, 0.5, 0.9, None, None, None, None])
        self.assertEqual(measured[0]["ratio_to"], "peer/cublas/bf16/14336x4096/m512")
        self.assertEqual(measured[2]["ratio_to"], "copy")

    def test_verdicts(self):
        ratio, time = rows.row("a", 1, "GB/s", 0.8, "copy"), rows.row("b", 0.5, "ms")
        self.assertEqual(rows.verdict(ratio, "ratio", 0.7, 0.9), "must")
        self.assertEqual(rows.verdict(time, "median", 1.0, 0.3), "must")
        self.assertEqual(rows.verdict(time, "median", 0.4, 0.3), "MISSED")


class Scripts(unittest.TestCase):
    """The scripts that stand for themselves."""

    def test_peers(self):
        command = [sys.executable, str(HERE.parent / "peers.py")]
        done = subprocess.run([*command, "--dry-run"], stdout=subprocess.PIPE, text=True, check=True)
        names = done.stdout.split()
        self.assertEqual(len(names), len(set(names)))
        self.assertIn("peer/cublas/bf16/14336x4096/m1", names)
        # What other rows are held against is measured.
        for bench, *_ in rows.TARGETS:
            for pattern, other in rows.AGAINST:
                found = re.fullmatch(pattern, bench)
                if found and found.expand(other).startswith("peer/"):
                    self.assertIn(found.expand(other), names)

    def test_only_a_whole_suite_says_that_kernels_have_run(self):
        def said(*entries):
            it = {"commit": "abc", "device": "NVIDIA H200", "driver": "580", "rows": list(entries)}
            return render.never_run([(Path("h200-2026-11-24.json"), it)])

        suite = rows.row("conformance", 500, "tests", 1, "all")
        self.assertIn("passed on NVIDIA H200 at commit `abc` (500 tests)", said(suite))
        for part in (rows.row("conformance", 1, "tests", 1 / 500, "all"), rows.row("copy", 1, "GB/s")):
            self.assertIn("Never run on a real device, only on the emulated one: `matvec_f32`", said(part))
        measured = rows.row("matvec/F32/256x256/m1", 1, "GB/s")
        self.assertNotIn("matvec_f32`", said(measured))
        units = json.loads(render.UNITS.read_text(encoding="utf-8"))
        every = [rows.row(prefix + "x", 1, "GB/s") for prefix in units.values()]
        self.assertIn("has passed on none", said(*every))

    def test_failures_of_the_suite_fail(self):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            for line, code, ratio in (("ok. 4 passed; 0 failed", 0, 1.0), ("F. 3 passed; 1 failed", 1, 0.75),
                                      ("F. 0 passed; 4 failed", 1, 0.0), ("ok. 0 passed; 0 failed", 1, None)):
                log.write_text(f"test result: {line}; 0 ignored\n", encoding="ascii")
                command = [sys.executable, str(HERE / "rows.py"), "suite", str(log)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, code, done.stderr)
                printed = json.loads(done.stdout)["ratio"] if done.stdout else None
                self.assertEqual(printed, ratio)

    def test_the_kernels_table(self):
        line = "matvec_{} {:<20} {} {:>4} registers {:>5} B spilled     0 B stack {:>6} B shared\n"
        text = (line.format("a", "one", "sm_80", 40, 0, 16) + line.format("a", "two", "sm_80", 60, 8, 0)
                + line.format("a", "one", "sm_90a", 50, 0, 0) + line.format("b", "one", "sm_80", 9, 0, 0))
        table = list(kernels.table(kernels.read(text)))
        self.assertEqual(len(table), 4)
        self.assertEqual(table[2], "| `matvec_a` | 2 | 60 | **8** (1) | 16 | 1 | 50 | 0 | 0 |")
        self.assertEqual(table[3], "| `matvec_b` | 1 | 9 | 0 | 0 | | | | |")

    def test_the_page_is_what_the_files_say(self):
        subprocess.run([sys.executable, str(HERE.parent / "render.py"), "--check"], check=True)


if __name__ == "__main__":
    unittest.main()
