#!/usr/bin/env bash
# Tests and measures Realm on a host with a GPU: no Rust, no toolkit, only a driver, bash and Python.
#
#     run.sh [OPTION…] [PART…]
#
# Parts, in the order in which `all` (the default) runs them:
#   ids          logits and greedy token ids of the reference models, in the engine and by `realm`
#   conformance  the op suite and the crates' own tests on the device
#   kernels      how fast each kernel is
#   model        tokens a second of a Llama-3.1-8B with random weights
#   prefill      the same of prompts, beside weights in bf16
#   peers        what PyTorch reaches here
#   sanitizer    compute-sanitizer's memcheck and racecheck on some of the suite
#
# Options:
#   --out DIR        results and logs (default: results beside this script)
#   --scratch DIR    where the programs are unpacked (64 MB) and the 8B model (4.9 and 16.1 GB) goes; programs
#                    must be allowed to run there (default: realm-bundle-UID in TMPDIR or /tmp)
#   --budget SECONDS what all parts together may take; each also has its own limit (default: 3600)
#   --quick          fewer repetitions
#   --dry-run        checks that all files are there and every program starts; needs no GPU
#
# A part that fails or runs out of time does not stop the next; its log is DIR/logs/PART.log. Rows go to
# DIR/<gpu>-<date>.json; run again with other parts, it joins theirs. Exit codes: 0 all parts passed,
# 1 some did not, 2 wrong use or a damaged bundle, 3 no CUDA device.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
parts=(ids conformance kernels model peers prefill sanitizer)
out=$here/results
scratch=${TMPDIR:-/tmp}/realm-bundle-$(id -u)
budget=3600
quick=
dry=
wanted=()
results=()

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --out | --scratch | --budget)
            [ $# -ge 2 ] || fail "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --quick) quick=1 ;;
        --dry-run) dry=1 ;;
        -h | --help)
            usage
            exit 0
            ;;
        all) wanted+=("${parts[@]}") ;;
        -*) fail "unknown option $1; see --help" ;;
        *)
            case " ${parts[*]} " in
                *" $1 "*) wanted+=("$1") ;;
                *) fail "no part $1; there are: ${parts[*]} all" ;;
            esac
            ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${parts[@]}")
case $budget in
    '' | *[!0-9]*) fail "--budget takes whole seconds, not $budget" ;;
esac
# Repetitions of tests of whole models.
repetitions=5
[ -z "$quick" ] || repetitions=2
command -v python3 >/dev/null || fail "python3 (3.8 or later) is not there"

# Where the programs and models are: beside this script or, unpacked, outside the bundle, which stays
# as small as it came. The archive's checksum tells one bundle's from another's.
root=$here
if [ -f "$here/payload.tar.xz" ]; then
    (umask 077 && mkdir -p "$scratch") || fail "$scratch cannot be made; choose another --scratch"
    # Whoever else may write there could put programs in their place.
    [ -O "$scratch" ] || fail "$scratch is somebody else's; choose another --scratch"
    scratch=$(cd "$scratch" && pwd)
    root=$scratch/unpacked-$(cksum <"$here/payload.tar.xz" | tr ' ' -)
fi
bin=$root/bin

# The archive's files, once; then every file by its list of names and lengths.
check_files() {
    if [ -f "$here/payload.tar.xz" ] && [ ! -e "$bin" ]; then
        python3 - "$here" "$root" <<'END' || return 1
import os, shutil, sys, tarfile, tempfile
here, root = sys.argv[1:]
part = None
try:
    # Beside their place until they are whole.
    part = tempfile.mkdtemp(dir=os.path.dirname(root))
    with tarfile.open(os.path.join(here, "payload.tar.xz"), "r:xz") as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(part, **safe)
    shutil.rmtree(root, ignore_errors=True)
    os.rename(part, root)
except (OSError, EOFError, tarfile.TarError) as error:
    if part:
        shutil.rmtree(part, ignore_errors=True)
    sys.exit(f"error: payload.tar.xz: {error}")
END
    fi
    python3 - "$here" "$root" <<'END'
import json, os, sys
here, root = sys.argv[1:]
try:
    with open(os.path.join(here, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
bad = 0
for name, length in manifest["files"].items():
    path = os.path.join(root, name)
    found = os.path.getsize(path) if os.path.isfile(path) else None
    if found != length:
        print(f"error: {name} has {found} bytes, not {length}", file=sys.stderr)
        bad += 1
total = sum(manifest["files"].values())
print(f"commit {manifest['commit']}, kernels for {manifest['archs']}: "
      f"{len(manifest['files'])} files, {total / 1e6:.1f} MB")
sys.exit(1 if bad else 0)
END
}

commit() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["commit"])' "$here/manifest.json"
}

# The line of `realm devices` about the first CUDA device, or why there is none.
cuda_line() {
    "$bin/realm" devices 2>/dev/null | awk '
        /^[^ ]/ { inside = /^cuda/ && !found; found = found || inside }
        inside { print }
    '
}

# NVIDIA's driver, as it names itself.
driver() {
    local version
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
    [ -n "$version" ] || version=$(sed -n 's/^NVRM version:.*[^0-9.]\([0-9][0-9.]*[0-9]\) .*/\1/p' \
        /proc/driver/nvidia/version 2>/dev/null)
    echo "${version:-unknown}"
}

# Programs must find their libraries; on a machine without CUDA they must say why there is none.
dry_run() {
    local status=0
    check_files || status=2
    echo "realm: $("$bin/realm" --version 2>&1)" || status=2
    local name
    for name in conformance gpu-tests runtime-tests whole-models; do
        local count
        if count=$("$bin/$name" --list 2>/dev/null | grep -c ': test$'); then
            echo "$name: starts, $count tests"
        else
            echo "error: $name does not start: $("$bin/$name" --list 2>&1 | head -n 1)" >&2
            status=2
        fi
    done
    if count=$("$bin/kernels" --list | wc -l) && [ "$count" -gt 0 ]; then
        echo "kernels: starts, $count rows"
    else
        echo "error: kernels does not start" >&2
        status=2
    fi
    if count=$(python3 "$here/peers.py" --dry-run | wc -l) && [ "$count" -gt 0 ]; then
        echo "peers.py: starts, $count rows"
    else
        status=2
    fi
    if command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer: $(command -v compute-sanitizer)"
    else
        echo "compute-sanitizer: not on PATH; the part sanitizer would be skipped"
    fi
    cuda_line
    echo "driver: $(driver)"
    if [ "$status" = 0 ]; then echo "the bundle is whole"; fi
    exit "$status"
}

[ -z "$dry" ] || dry_run
check_files || exit 2

# A device is one that `realm devices` calls cuda:N and that can be used.
device_line=$(cuda_line)
case $device_line in
    cuda:*"cannot be used"* | "cuda "* | '')
        printf 'error: no CUDA device: %s\n' "${device_line:-realm devices says nothing of CUDA}" >&2
        exit 3
        ;;
esac
device=$(printf '%s\n' "$device_line" | head -n 1 | sed 's/^cuda:[0-9]* *//; s/,.*//')
mkdir -p "$out/logs" || exit 2
out=$(cd "$out" && pwd)
{
    printf '%s\n' "$device_line"
    python3 -c 'import json, sys
print(json.dumps(dict(zip(("commit", "device", "driver", "date"), sys.argv[1:]))))' \
        "$(commit)" "$device" "$(driver)" "$(date -u +%Y-%m-%d)"
} >"$out/logs/device.log"
cat "$out/logs/device.log"

export REALM_REFERENCE=$root/reference
export REALM_REQUIRE=cuda
# A run that hangs must not outlive its limit, whatever signals it ignores.
limited() {
    timeout -k 10 "$@"
}

left() {
    echo $((budget - SECONDS))
}

# Runs one part: its output to its log, its last lines to the terminal, its verdict to `results`.
part() {
    local name=$1 most=$2 status start=$SECONDS
    local log=$out/logs/$name.log
    if [ "$(left)" -lt 5 ]; then
        results+=("$name: not run, no time left")
        return
    fi
    [ "$most" -le "$(left)" ] || most=$(left)
    printf '\n==> %s (at most %d s)\n' "$name" "$most"
    deadline=$((SECONDS + most))
    "part_$name" >"$log" 2>&1
    status=$?
    tail -n 15 "$log"
    case $status in
        0) results+=("$name: passed in $((SECONDS - start)) s") ;;
        77) results+=("$name: skipped: $(tail -n 1 "$log")") ;;
        124 | 137) results+=("$name: stopped after $((SECONDS - start)) s, its limit") ;;
        *) results+=("$name: FAILED ($status) after $((SECONDS - start)) s, see logs/$name.log") ;;
    esac
}

# What is left of the running part's time.
rest() {
    local seconds=$((deadline - SECONDS))
    [ "$seconds" -gt 0 ] || seconds=1
    echo "$seconds"
}

ids_of() {
    limited "$(rest)" "$bin/realm" run --require-gpu --device "$1" -m "$2" --ids "$3" -n "$4" \
        --temperature 0 --ignore-eos --print-ids --precision f32 --kv-type f32
}

# f32 throughout: the recorded ids are those of an f32 model. Where a file has no recorded ids, as the
# quantized ones: the CPU, which the test suite holds to recorded logits, says what is right.
part_ids() {
    local folder file prompt expected found status=0
    if [ ! -d "$root/reference/models" ]; then
        echo "this bundle was built without models"
        return 77
    fi
    limited "$(rest)" "$bin/whole-models" cuda/ || status=$?
    for folder in "$root"/reference/models/*/; do
        prompt=$(cat "$folder/prompt.ids")
        for file in "$folder"model-f32.gguf "$folder"quant/*.gguf; do
            [ -f "$file" ] || continue
            if [[ $file == *model-f32.gguf && -f $folder/greedy.ids ]]; then
                expected=$(cat "$folder/greedy.ids")
            else
                expected=$("$bin/realm" run --device cpu -m "$file" --ids "$prompt" -n 16 \
                    --temperature 0 --ignore-eos --print-ids --precision f32 --kv-type f32 2>/dev/null)
            fi
            # Commas, spaces or lines between ids, the same ids.
            expected=$(tr -s ', \n' ' ' <<<"$expected")
            if ! found=$(ids_of cuda "$file" "$prompt" 16); then
                echo "${file#"$root"/}: failed"
                status=1
            elif [ "$(tr -s ', \n' ' ' <<<"$found")" = "$expected" ]; then
                echo "${file#"$root"/}: the same 16 ids"
            else
                echo "${file#"$root"/}: $found instead of $expected"
                status=1
            fi
        done
    done
    return $status
}

# The count of what passed goes to the rows: with it a file says that its kernels compute rightly.
part_conformance() {
    local status=0 log=$out/logs/conformance.log
    limited "$(rest)" "$bin/conformance" cuda/ || status=$?
    # The programs' own code stays, if there is one.
    python3 "$here/rows.py" suite "$log" || [ "$status" != 0 ] || status=1
    if [ "$status" = 101 ]; then
        # What passes now fails by running beside others, or by kernels that overlap.
        echo "again, one test and one kernel at a time:"
        REALM_CUDA_SERIAL=1 limited "$(rest)" "$bin/conformance" --test-threads 1 cuda/
    fi
    limited "$(rest)" "$bin/gpu-tests" || status=$?
    limited "$(rest)" "$bin/runtime-tests" attention || status=$?
    return $status
}

part_kernels() {
    local status=0 name
    limited "$(rest)" "$bin/kernels" --device cuda ${quick:+--quick} || status=$?
    [ "$status" != 124 ] || return 124
    # What it brings that a kernel may start before its predecessor has ended.
    for name in launch/graph matvec/Q4_K/14336x4096/m1; do
        REALM_CUDA_SERIAL=1 limited "$(rest)" "$bin/kernels" --device cuda --only "$name" \
            ${quick:+--quick} | sed 's/^{"bench": "[^"]*/&\/serial/' || status=$?
    done
    return $status
}

# Makes the 8B model with weights of a type, unless it is there.
synthesise() {
    local kind=$1 file=$2
    mkdir -p "$scratch" || return 1
    # Another name until it is whole: a run that was stopped leaves no half a model to be found.
    if [ ! -f "$file" ]; then
        limited "$(rest)" "$bin/realm" synth llama-3.1-8b --type "$kind" --force "$file.part" \
            && mv "$file.part" "$file" || return $?
    fi
}

part_model() {
    local file=$scratch/llama-3.1-8b.q4_k_m.gguf status=0
    local bench=$scratch/bench.json inspect=$scratch/inspect.json
    synthesise q4_k_m "$file" || return $?
    "$bin/realm" inspect -m "$file" --device cpu --json >"$inspect" || return $?
    # The ratios are to the copy bandwidth of the same day.
    if ! grep -qs '"bench": *"copy"' "$out"/logs/*.log; then
        limited "$(rest)" "$bin/kernels" --device cuda --only copy || status=$?
    fi
    local depth
    for depth in 0 16384; do
        if limited "$(rest)" "$bin/realm" bench -m "$file" --device cuda --require-gpu -p 0 -n 128 \
            -d "$depth" -r "$repetitions" --json >"$bench"; then
            cat "$bench"
            python3 "$here/rows.py" model "$bench" "$inspect" "$out" || status=$?
        else
            status=$?
        fi
    done
    return $status
}

part_prefill() {
    local kind file status=0 bench=$scratch/bench.json
    for kind in q4_k_m bf16; do
        file=$scratch/llama-3.1-8b.$kind.gguf
        synthesise "$kind" "$file" || return $?
        if limited "$(rest)" "$bin/realm" bench -m "$file" --device cuda --require-gpu -p 4096 -n 0 \
            --step 4096 -r "$repetitions" --json >"$bench"; then
            cat "$bench"
            python3 "$here/rows.py" prefill "$bench" "$kind" || status=$?
        else
            status=$?
        fi
    done
    return $status
}

part_peers() {
    limited "$(rest)" python3 "$here/peers.py" ${quick:+--quick} --seconds "$(($(rest) * 9 / 10))"
}

# Small cases that touch each kernel; the whole suite would take hours under the tool.
part_sanitizer() {
    local tool name said one status=0
    if ! command -v compute-sanitizer; then
        echo "compute-sanitizer is not on PATH"
        return 77
    fi
    for tool in memcheck racecheck; do
        for name in model/q4_k/f32/kv-f32/fused model/q4_k/int8 linear/q4_k/bf16 linear/q6_k/f32 \
            linear/q8_0/int8 linear/f16/f16 linear-many/q4_k linear-many/bf16/bf16 moe/2of4/q4_k \
            attention/d128 attention/d64 attention/d96 attention/d256 rms-norm-of-sum/cols257 \
            rope/halves embed/q4_k sample/cols257; do
            echo "$tool: cuda/$name"
            said=$(limited "$(rest)" compute-sanitizer --tool "$tool" --error-exitcode 9 \
                --target-processes all "$bin/conformance" --test-threads 1 "cuda/$name" 2>&1)
            one=$?
            printf '%s\n' "$said"
            [ "$one" != 124 ] || return 124
            if [ "$one" != 0 ] || ! grep -q 'test result: ok\. [1-9]' <<<"$said"; then
                echo "$tool: cuda/$name: exit code $one, or no such test"
                status=1
            fi
        done
    done
    return $status
}

for name in "${parts[@]}"; do
    case " ${wanted[*]} " in
        *" $name "*) ;;
        *) continue ;;
    esac
    case $name in
        ids) part ids 120 ;;
        conformance) part conformance 600 ;;
        kernels) part kernels 300 ;;
        model) part model 420 ;;
        peers) part peers 240 ;;
        prefill) part prefill 420 ;;
        sanitizer) part sanitizer 540 ;;
    esac
done

printf '\n'
python3 "$here/rows.py" merge "$out" && python3 "$here/rows.py" show "$out"/*-[0-9][0-9][0-9][0-9]-*.json
printf '\n'
code=0
for line in "${results[@]}"; do
    printf '%s\n' "$line"
    case $line in
        *": passed"* | *": skipped"*) ;;
        *) code=1 ;;
    esac
done
exit $code
