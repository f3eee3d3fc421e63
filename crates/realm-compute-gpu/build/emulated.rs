//! The kernels through g++: every unit to an object for the CPU, linked with the shim in
//! `kernels/cuda/simt` to one static library.

use std::{
    env, fs,
    io::Write as _,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{cache, manifest::Unit};

const SOURCES: &str = "kernels/cuda";

/// The shim's own sources.
const SHIM: [&str; 9] = [
    "simt/barriers.cc",
    "simt/checks.cc",
    "simt/fault.cc",
    "simt/launch.cc",
    "simt/memory.cc",
    "simt/order.cc",
    "simt/warp.cc",
    "simt/wgmma.cc",
    "simt/worker.cc",
];

/// What the shim's `checks.cc` answers to, for kernels. Only GCC knows all of it.
const CHECKS: [&str; 4] = [
    "-fsanitize=thread",
    "--param",
    "tsan-instrument-func-entry-exit=0",
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero,unreachable,return",
];

/// `-ffp-contract=off`: a product and a sum are fused where the source says so and nowhere else, as
/// on the device. The hidden symbols keep the library's names out of the program's.
const FLAGS: [&str; 12] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-pthread",
    "-fno-exceptions",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DREALM_EMULATED=1",
];

/// What one run of the compiler makes.
struct Job {
    name: String,
    source: &'static str,
    /// A unit of kernels, not a part of the shim.
    kernels: bool,
    flags: Vec<String>,
}

/// Compiles what is not in the cache, and links `librealm_simt.a` in `OUT_DIR`.
pub(crate) fn build(units: &[Unit]) -> Result<(), String> {
    let compiler = Compiler::new()?;
    let mut jobs: Vec<Job> = SHIM
        .iter()
        .map(|source| Job {
            name: Path::new(source).file_stem().unwrap_or_default().to_string_lossy().into(),
            source,
            kernels: false,
            flags: vec![],
        })
        .collect();
    let selftests =
        [("selftest", "simt/selftest.cu"), ("selftest_hopper", "simt/selftest_hopper.cu")]
            .map(|(name, source)| Unit { name: name.into(), source, defines: Vec::new() });
    let checked = !String::from_utf8_lossy(&compiler.version).contains("clang");
    if !checked {
        println!(
            "cargo::warning={} is clang: the emulated device finds neither races in a block's shared \
             memory nor accesses out of bounds; set CXX to a g++",
            compiler.program
        );
    }
    for unit in units.iter().chain(&selftests) {
        let mut flags = vec![format!("-DREALM_UNIT=\"{}\"", unit.name)];
        if checked {
            flags.extend(CHECKS.map(String::from));
        }
        flags.extend(unit.defines.iter().map(|define| format!("-D{define}")));
        jobs.push(Job { name: unit.name.clone(), source: unit.source, kernels: true, flags });
    }
    let objects = compile_all(&compiler, &jobs)?;
    link(&compiler, &objects)
}

/// A g++, or a compiler that takes its flags.
struct Compiler {
    program: String,
    version: Vec<u8>,
    cache: PathBuf,
}

impl Compiler {
    fn new() -> Result<Self, String> {
        println!("cargo::rerun-if-env-changed=CXX");
        let chosen = env::var("CXX").ok().filter(|program| !program.is_empty());
        let (target, host) = (env::var("TARGET"), env::var("HOST"));
        if chosen.is_none() && target != host {
            let target = target.unwrap_or_default();
            return Err(format!("set CXX to the g++ for {target}: cuda-emulated needs it"));
        }
        let program = chosen.unwrap_or_else(|| "g++".into());
        let missing = |cause: &dyn std::fmt::Display| {
            format!(
                "{program} does not start ({cause}): the feature cuda-emulated, which the tests \
                 need, compiles its kernels with g++; install g++ or set CXX"
            )
        };
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|error| missing(&error))?;
        if !output.status.success() {
            return Err(missing(&output.status));
        }
        Ok(Self { version: output.stdout, cache: cache::folder()?, program })
    }

    /// The object of a job, in the cache.
    fn object(&self, job: &Job) -> Result<PathBuf, String> {
        let sources = cache::sources(Path::new(SOURCES), job.source, &|_| false)?;
        let mut parts: Vec<&[u8]> = vec![self.program.as_bytes(), &self.version];
        parts.extend(FLAGS.iter().map(|flag| flag.as_bytes()));
        parts.extend(job.flags.iter().map(String::as_bytes));
        parts.extend(sources.iter().map(Vec::as_slice));
        let object = self.cache.join(format!("{}-{}.o", job.name, cache::hash(&parts)));
        if object.is_file() {
            return Ok(object);
        }
        let part = cache::unfinished(&object);
        let mut command = Command::new(&self.program);
        command.args(FLAGS).arg("-I").arg(SOURCES).args(&job.flags);
        // The namespace keeps what two units define under one name apart.
        let text = if job.kernels {
            command.args(["-include", "intrinsics.cuh"]);
            format!("namespace {{\n#include \"{}\"\n}}\n", job.source)
        } else {
            format!("#include \"{}\"\n", job.source)
        };
        command.args(["-x", "c++", "-c", "-o"]).arg(&part).arg("-");
        let said = run(&mut command, &text).map_err(|problem| {
            let _ = fs::remove_file(&part);
            let first = problem.lines().find(|line| line.contains("error"));
            format!("{}: {}\n{problem}", job.name, first.unwrap_or_default())
        })?;
        for line in said.lines().filter(|line| line.contains("warning:")) {
            println!("cargo::warning={}: {line}", job.name);
        }
        fs::rename(&part, &object).map_err(|error| format!("{}: {error}", object.display()))?;
        Ok(object)
    }
}

/// Runs a program to its success, and returns what it wrote to standard error.
fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read all says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(format!("{program} failed ({}):\n{program} {}\n{said}", output.status, arguments.join(" ")))
}

/// Every job's object, in order.
fn compile_all(compiler: &Compiler, jobs: &[Job]) -> Result<Vec<PathBuf>, String> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let result = compiler.object(job);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Makes one object of all: whoever needs the shim's entry then has every kernel, whose only
/// reference is its own constructor.
fn link(compiler: &Compiler, objects: &[PathBuf]) -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("Cargo sets no OUT_DIR")?);
    let object = out.join("realm_simt.o");
    let library = out.join("librealm_simt.a");
    run(
        Command::new(&compiler.program).args(["-r", "-nostdlib", "-o"]).arg(&object).args(objects),
        "",
    )?;
    if library.exists() {
        fs::remove_file(&library).map_err(|error| format!("{}: {error}", library.display()))?;
    }
    run(Command::new("ar").arg("crs").arg(&library).arg(&object), "")?;
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=realm_simt");
    println!("cargo::rustc-link-lib={}", if cfg!(target_os = "macos") { "c++" } else { "stdc++" });
    Ok(())
}
