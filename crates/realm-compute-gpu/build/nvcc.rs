//! The kernels through nvcc: one fatbin a unit, compiled in parallel, kept in the cache, and all of
//! them in one file that the library embeds.

use std::{
    env,
    fmt::Write as _,
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{cache, manifest::Unit};

#[path = "nvcc/ptxas.rs"]
pub(crate) mod ptxas;
#[path = "nvcc/search.rs"]
pub(crate) mod search;

/// Where the sources are, from the package's folder, in which Cargo runs build scripts.
const SOURCES: &str = "kernels/cuda";

/// What is compiled for unless `REALM_CUDA_ARCHS` says otherwise: Ampere's machine code, which Ada
/// runs too; Hopper's; and PTX, from which the driver makes machine code for later GPUs.
const DEFAULT_ARCHS: &str = "80,90a,ptx";

/// The first CUDA whose nvcc knows all of [`FLAGS`]; sm_90a and C++17 are older.
const NEEDED: (u32, u32) = (12, 8);

/// `--fmad=false`: a product and a sum are fused where the source says so and nowhere else, so that
/// the emulated device rounds alike. `size` makes images a quarter as large as the default does.
const FLAGS: [&str; 8] = [
    "-fatbin",
    "--compress-mode=size",
    "-std=c++17",
    "-O3",
    "--fmad=false",
    "-Xptxas",
    "-v",
    "-Ikernels/cuda",
];

/// Where an image starts in the embedded file: fatbins are read in words of 8 bytes.
const ALIGNMENT: usize = 64;

/// Compiles every unit that is not in the cache, and writes to `OUT_DIR`: `kernels.bin` (the images
/// behind one another), `kernels.rs` (where each is, and what they were compiled for), `kernels.txt`
/// (registers, spills and shared memory of each kernel). Registers that spill, and what else the
/// assembler calls a loss of speed, are a warning, or, where `REALM_KERNEL_SPILLS` is `deny`, an error.
pub(crate) fn build(units: &[Unit]) -> Result<(), String> {
    // Not PATH: it differs from shell to shell, and the crate would be compiled anew each time.
    for name in [
        "REALM_NVCC",
        "REALM_CUDA_ARCHS",
        "REALM_KERNEL_SPILLS",
        "CUDA_HOME",
        "CUDA_PATH",
        "VIRTUAL_ENV",
        "NVCC_CCBIN",
        "NVCC_PREPEND_FLAGS",
        "NVCC_APPEND_FLAGS",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let archs = env::var("REALM_CUDA_ARCHS").unwrap_or_default();
    let archs = archs_of(if archs.trim().is_empty() { DEFAULT_ARCHS } else { &archs })?;
    let path = search::find(&search::Surroundings {
        variable: &|name| env::var_os(name),
        site_folders: &search::site_folders,
    })?;
    let compiler = Compiler::new(path, &archs, cache::folder()?)?;
    let images = compile_all(&compiler, units)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("Cargo sets no OUT_DIR")?);
    write_out(&out, units, &images, &archs)?;
    let usage = units
        .iter()
        .zip(&images)
        .flat_map(|(unit, image)| image.usage.iter().map(|usage| (unit.name.as_str(), usage)));
    let losses = units
        .iter()
        .zip(&images)
        .flat_map(|(unit, image)| image.losses.iter().map(|loss| (unit.name.as_str(), &**loss)));
    spills(usage, losses, env::var("REALM_KERNEL_SPILLS").is_ok_and(|value| value == "deny"))
}

/// Says which kernels spill registers, and what `losses` of speed the units have besides: in warnings,
/// or in an error where that is `denied`.
pub(crate) fn spills<'a>(
    usage: impl Iterator<Item = (&'a str, &'a ptxas::Usage)>,
    losses: impl Iterator<Item = (&'a str, &'a str)>,
    denied: bool,
) -> Result<(), String> {
    let spilling = usage.filter(|(_, usage)| usage.spills > 0);
    let mut lines: Vec<String> = spilling
        .map(|(unit, ptxas::Usage { kernel, spills, arch, .. })| {
            format!("{unit}: kernel {kernel} spills {spills} bytes of registers on {arch}")
        })
        .collect();
    lines.extend(losses.map(|(unit, loss)| format!("{unit}: {loss}")));
    if denied && !lines.is_empty() {
        return Err(format!("REALM_KERNEL_SPILLS denies this: {}", lines.join("; ")));
    }
    lines.iter().for_each(|line| println!("cargo::warning={line}"));
    Ok(())
}

/// The architectures of a comma list: `80`, `90a` … or `ptx`.
pub(crate) fn archs_of(list: &str) -> Result<Vec<String>, String> {
    let mut archs = Vec::new();
    for arch in list.split(',').map(str::trim) {
        let number = arch.strip_suffix(['a', 'f']).unwrap_or(arch);
        let known = number.bytes().all(|byte| byte.is_ascii_digit())
            && number.parse().is_ok_and(|number: u32| (80..1000).contains(&number));
        if !known && arch != "ptx" {
            return Err(format!(
                "REALM_CUDA_ARCHS: {arch:?} is no architecture; write compute capabilities from 80 \
                 on, and ptx for later GPUs, with commas between: {DEFAULT_ARCHS}"
            ));
        }
        if !archs.iter().any(|other| other == arch) {
            archs.push(arch.to_owned());
        }
    }
    Ok(archs)
}

/// nvcc's words for an architecture.
fn target(arch: &str) -> [String; 2] {
    let target = match arch {
        // Not of 8.0: on devices from 9.0 on, launches overlap, and only code made for them waits.
        "ptx" => "arch=compute_90,code=compute_90".to_owned(),
        arch => format!("arch=compute_{arch},code=sm_{arch}"),
    };
    ["-gencode".to_owned(), target]
}

/// An nvcc that was found to start.
pub(crate) struct Compiler {
    path: PathBuf,
    /// All that it prints of its version.
    version: String,
    targets: Vec<String>,
    cache: PathBuf,
}

/// A compiled unit.
pub(crate) struct Image {
    pub(crate) fatbin: Vec<u8>,
    pub(crate) usage: Vec<ptxas::Usage>,
    /// As [`ptxas::losses`] has them.
    pub(crate) losses: Vec<String>,
}

impl Compiler {
    /// The nvcc at `path`, for what [`archs_of`] yields, with its images in the folder `cache`.
    pub(crate) fn new(path: PathBuf, archs: &[String], cache: PathBuf) -> Result<Self, String> {
        let shown = path.display();
        let output = Command::new(&path).arg("--version").output();
        let output = output.map_err(|error| format!("{shown} does not start: {error}"))?;
        let version = text(&output);
        let found = release(&version).ok_or_else(|| {
            format!("{shown} is no nvcc: --version prints no release but {:?}", version.trim())
        })?;
        if found < NEEDED {
            let (needed, found) = (show(NEEDED), show(found));
            return Err(format!("{shown} is of CUDA {found}; the kernels need {needed} or newer"));
        }
        let targets = archs.iter().flat_map(|arch| target(arch)).collect();
        Ok(Self { path, version, targets, cache })
    }

    /// A unit's image, from the cache or from nvcc.
    pub(crate) fn image(&self, unit: &Unit) -> Result<Image, String> {
        let fatbin = self.cache.join(format!("{}-{}.fatbin", unit.name, self.key(unit)?));
        let log = fatbin.with_extension("log");
        let cached = || Some((fs::read(&fatbin).ok()?, fs::read_to_string(&log).ok()?));
        let (fatbin, log) = match cached() {
            Some(found) => found,
            None => self.compile(unit, &fatbin, &log)?,
        };
        Ok(Image { fatbin, usage: ptxas::parse(&log), losses: ptxas::losses(&log) })
    }

    /// A hash of all that the image is made of.
    fn key(&self, unit: &Unit) -> Result<String, String> {
        // The emulation's own headers, which nvcc never reaches.
        let emulation = |name: &str| name.starts_with("simt/");
        let sources = cache::sources(Path::new(SOURCES), unit.source, &emulation)?;
        let flags: String = FLAGS.map(|flag| format!("{flag}\n")).concat();
        let set = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"]
            .map(|name| env::var(name).unwrap_or_default());
        let texts = [self.version.as_str(), &flags, &set.join("\n")];
        let lists = [self.targets.join("\n"), unit.defines.join("\n")];
        let parts = texts.into_iter().chain(lists.iter().map(String::as_str)).map(str::as_bytes);
        let parts: Vec<&[u8]> = parts.chain(sources.iter().map(Vec::as_slice)).collect();
        Ok(cache::hash(&parts))
    }

    /// Runs nvcc, and puts the image and what the assembler said of it in the cache, the image last.
    fn compile(&self, unit: &Unit, to: &Path, log: &Path) -> Result<(Vec<u8>, String), String> {
        let part = cache::unfinished(to);
        let defines = unit.defines.iter().map(|define| format!("-D{define}"));
        let output = Command::new(&self.path)
            .args(FLAGS)
            .args(&self.targets)
            .args(defines)
            .arg("-o")
            .arg(&part)
            .arg(format!("{SOURCES}/{}", unit.source))
            .output()
            .map_err(|error| format!("{} does not start: {error}", self.path.display()))?;
        let said = text(&output);
        let read = fs::read(&part);
        let _ = fs::remove_file(&part);
        let image = match read {
            Ok(image) if output.status.success() => image,
            _ => return Err(self.failure(unit, &said)),
        };
        for line in said.lines().filter(|line| line.contains("warning")) {
            println!("cargo::warning={}: {line}", unit.name);
        }
        cache::store(log, said.as_bytes())?;
        cache::store(to, &image)?;
        Ok((image, said))
    }

    fn failure(&self, unit: &Unit, said: &str) -> String {
        let lines = error_lines(said);
        for line in lines.iter().skip(1) {
            println!("cargo::error={line}");
        }
        let cause = lines.first().copied().unwrap_or("it says nothing of why");
        let hint = if no_host_compiler(said) {
            "; nvcc needs a host compiler: install g++ (Windows: Visual Studio's C++ tools), or \
             name one by NVCC_CCBIN"
        } else {
            ""
        };
        format!("{} failed on {} ({}): {cause}{hint}", self.path.display(), unit.source, unit.name)
    }
}

/// Everything that a program printed: nvcc's parts do not agree on where errors go.
fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    parts.concat()
}

/// (major, minor) after the word `release`.
pub(crate) fn release(version: &str) -> Option<(u32, u32)> {
    let (_, rest) = version.split_once("release ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn show((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

/// The first lines that tell of errors; where there are none, the first lines.
pub(crate) fn error_lines(said: &str) -> Vec<&str> {
    const SHOWN: usize = 8;
    let lines = || said.lines().map(str::trim_end).filter(|line| !line.is_empty());
    // Not the assembler's `info` lines, in which an "error" is some kernel's name.
    let tells = |line: &&str| {
        ["error", "fatal", "No such file", "not found", "Cannot find"]
            .iter()
            .any(|word| line.contains(word))
            && !line.starts_with("ptxas info")
    };
    let errors: Vec<&str> = lines().filter(tells).take(SHOWN).collect();
    if errors.is_empty() { lines().take(SHOWN).collect() } else { errors }
}

/// Whether nvcc failed for want of a C++ compiler for the host side, or found one that it refuses.
pub(crate) fn no_host_compiler(said: &str) -> bool {
    ["host compiler", "Cannot find compiler", "unsupported GNU version", "unsupported clang"]
        .iter()
        .any(|words| said.contains(words))
}

/// The units' images, in the order of `units`. After a failure no further one is started.
fn compile_all(compiler: &Compiler, units: &[Unit]) -> Result<Vec<Image>, String> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let jobs = jobs.or_else(|| thread::available_parallelism().ok().map(NonZero::get));
    let jobs = jobs.unwrap_or(1).clamp(1, units.len().max(1));
    let next = AtomicUsize::new(0);
    let images = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(unit) = units.get(index) else { break };
            match compiler.image(unit) {
                Ok(image) => images.lock().expect("no thread panics").push((index, image)),
                Err(problem) => {
                    next.store(units.len(), Ordering::Relaxed);
                    failure.lock().expect("no thread panics").get_or_insert(problem);
                    break;
                }
            }
        }
    };
    thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    if let Some(problem) = failure.into_inner().expect("no thread panics") {
        return Err(problem);
    }
    let mut images = images.into_inner().expect("no thread panics");
    images.sort_by_key(|(index, _)| *index);
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

fn write_out(out: &Path, units: &[Unit], images: &[Image], archs: &[String]) -> Result<(), String> {
    let (mut bin, mut index, mut summary) = (Vec::new(), String::new(), String::new());
    for (unit, image) in units.iter().zip(images) {
        bin.resize(usize::next_multiple_of(bin.len(), ALIGNMENT), 0);
        let (name, start, length) = (&unit.name, bin.len(), image.fatbin.len());
        bin.extend_from_slice(&image.fatbin);
        let _ = writeln!(index, "    ({name:?}, {start}, {length}),");
        for usage in &image.usage {
            let _ = writeln!(summary, "{name:<20} {usage}");
        }
    }
    let index = format!(
        "pub(super) const ARCHS: &[&str] = &{archs:?};\n\
         pub(super) const INDEX: &[(&str, usize, usize)] = &[\n{index}];\n"
    );
    cache::store(&out.join("kernels.bin"), &bin)?;
    cache::store(&out.join("kernels.rs"), index.as_bytes())?;
    cache::store(&out.join("kernels.txt"), summary.as_bytes())
}
