//! What the build script does before nvcc starts: the search for it, the cache's names, what is made
//! of its output.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the build script's modules, of which parts run here"
)]

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

#[path = "../build/cache.rs"]
mod cache;
#[path = "../build/manifest.rs"]
mod manifest;
#[path = "../build/nvcc.rs"]
mod nvcc;

use nvcc::{
    ptxas::{self, Usage},
    search::{Surroundings, find},
};

/// Held while a program is written and started: a process that another thread forks meanwhile would
/// have the file open for writing, and such a file does not start.
static STARTING: Mutex<()> = Mutex::new(());

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("realm-build-{process}-{count}"));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// An empty file where nvcc would be.
    fn nvcc(&self, folder: &str) -> PathBuf {
        self.write(&format!("{folder}/nvcc{}", std::env::consts::EXE_SUFFIX), "")
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn search(variables: &[(&str, String)], sites: &[PathBuf]) -> Result<PathBuf, String> {
    find(&Surroundings {
        variable: &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        },
        site_folders: &|_| sites.to_vec(),
    })
}

#[test]
fn nvcc_is_searched_from_the_most_specific_place() {
    let folder = Folder::new();
    let places = ["named", "home/bin", "path/bin", "in/path"].map(|place| folder.nvcc(place));
    let wheel = folder.nvcc("site/nvidia/cu13/bin");
    let sites = [folder.0.join("none"), folder.0.join("site")];
    let joined = std::env::join_paths([folder.path("none"), folder.path("in/path")]).unwrap();
    let all = [
        ("REALM_NVCC", places[0].to_str().unwrap().to_owned()),
        ("CUDA_HOME", folder.path("home")),
        ("CUDA_PATH", folder.path("path")),
        ("PATH", joined.into_string().unwrap()),
    ];
    for (skip, place) in places.iter().enumerate() {
        assert_eq!(search(&all[skip..], &sites).as_ref(), Ok(place));
    }
    assert_eq!(search(&[], &sites), Ok(wheel));
    // A place without nvcc, or an empty variable, leads to the next.
    let odd = [
        ("REALM_NVCC", String::new()),
        ("CUDA_HOME", folder.path("none")),
        ("CUDA_PATH", folder.path("path")),
    ];
    assert_eq!(search(&odd, &sites).as_ref(), Ok(&places[2]));
}

#[test]
fn of_wheels_the_newest_is_taken() {
    let folder = Folder::new();
    let sites = [folder.0.clone()];
    let old = folder.nvcc("nvidia/cuda_nvcc/bin");
    assert_eq!(search(&[], &sites), Ok(old));
    let cu9 = folder.nvcc("nvidia/cu9/bin");
    folder.write("nvidia/cu14/include/cuda.h", "");
    assert_eq!(search(&[], &sites), Ok(cu9));
    let cu13 = folder.nvcc("nvidia/cu13/bin");
    assert_eq!(search(&[], &sites), Ok(cu13));
}

#[test]
fn python_is_the_virtual_environments() {
    let _alone = STARTING.lock();
    let asked = Cell::new(PathBuf::new());
    let ask = |environment: Option<&str>| {
        let _ = find(&Surroundings {
            variable: &|name| environment.filter(|_| name == "VIRTUAL_ENV").map(Into::into),
            site_folders: &|python| {
                asked.set(python.to_owned());
                vec![]
            },
        });
        asked.take()
    };
    assert!(ask(Some("/venv")).starts_with("/venv"));
    assert_eq!(ask(None).components().count(), 1);
    // An interpreter that does not exist looks nowhere.
    assert!(nvcc::search::site_folders(Path::new("/no/such/python3")).is_empty());
}

#[test]
fn without_nvcc_one_line_says_how_to_get_it() {
    let wheels = "nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
                  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85`";
    let line = search(&[], &[]).unwrap_err();
    assert!(line.contains(&format!("`python3 -m pip install --user {wheels}")), "{line}");
    assert!(line.contains("REALM_NVCC") && !line.contains('\n'), "{line}");
    let line = search(&[("VIRTUAL_ENV", "/venv".to_owned())], &[]).unwrap_err();
    assert!(line.contains(&format!("`python3 -m pip install {wheels}")), "{line}");
    // What is named must be there: another nvcc would be a surprise.
    let folder = Folder::new();
    let named = [("REALM_NVCC", folder.path("none")), ("CUDA_HOME", folder.path("home"))];
    folder.nvcc("home/bin");
    let line = search(&named, &[]).unwrap_err();
    assert!(line.starts_with("REALM_NVCC is ") && line.contains("none"), "{line}");
}

#[test]
fn architectures() {
    let archs = |list| nvcc::archs_of(list);
    assert_eq!(archs("80,90a,ptx").unwrap(), ["80", "90a", "ptx"]);
    assert_eq!(archs(" 90a , 100f,90a").unwrap(), ["90a", "100f"]);
    for bad in ["", "75", "90a,", "sm_90a", "90aa", "+90", "1000", "a", "99999999999", "all"] {
        let line = archs(bad).unwrap_err();
        assert!(line.starts_with("REALM_CUDA_ARCHS: ") && line.contains("80,90a,ptx"), "{line}");
    }
}

#[test]
fn versions_of_nvcc() {
    let said =
        "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n";
    assert_eq!(nvcc::release(said), Some((13, 0)));
    assert_eq!(nvcc::release("release 12.x"), None);
    assert_eq!(nvcc::release("gcc 12"), None);
}

fn usage(kernel: &str, arch: &str) -> Usage {
    Usage { kernel: kernel.into(), arch: arch.into(), ..Usage::default() }
}

#[test]
fn the_assemblers_log_is_read() {
    let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 512 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 4.270 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    48 bytes stack frame, 40 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
ptxas info    : Function properties for helper
    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
";
    let expected = [
        Usage { registers: 12, shared: 512, ..usage("one", "sm_80") },
        Usage { registers: 255, spills: 76, stack: 48, ..usage("two", "sm_90a") },
    ];
    assert_eq!(ptxas::parse(log), expected);
    assert!(expected[1].to_string().contains("255 registers    76 B spilled"), "{}", expected[1]);
    assert_eq!(ptxas::parse("gibberish\n: Used 3 registers"), []);
}

#[test]
fn spills_are_told_or_denied() {
    let usages = [usage("one", "sm_80"), Usage { spills: 76, ..usage("two", "sm_90a") }];
    let all = || usages.iter().map(|usage| ("unit", usage));
    let none = || std::iter::empty::<(&str, &str)>();
    assert_eq!(nvcc::spills(all(), none(), false), Ok(()));
    assert_eq!(nvcc::spills(all().take(1), none(), true), Ok(()));
    let problem = nvcc::spills(all(), none(), true).unwrap_err();
    assert!(
        problem.contains("unit: kernel two spills 76 bytes of registers on sm_90a"),
        "{problem}"
    );
    let slow = || std::iter::once(("unit", "'setmaxnreg' ignored"));
    assert_eq!(nvcc::spills(all().take(1), slow(), false), Ok(()));
    let problem = nvcc::spills(all().take(1), slow(), true).unwrap_err();
    assert!(problem.ends_with("denies this: unit: 'setmaxnreg' ignored"), "{problem}");
}

#[test]
fn losses_of_speed_are_found_in_the_assemblers_log() {
    let log = "\
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : 0 bytes gmem
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the function 'two'
ptxas info    : (C7519) warpgroup.arrive is injected in around line 59 by compiler in function 'two'
ptxas info    : (C7517) warpgroup.wait is injected in around line 64 by compiler in function 'two'
";
    let [first, second, third] = ptxas::losses(log).try_into().unwrap();
    assert!(first.starts_with("'setmaxnreg' ignored; unable"), "{first}");
    assert!(second.starts_with("wgmma.mma_async instructions are serialized"), "{second}");
    assert!(second.ends_with("in the function 'two'"), "{second}");
    assert!(third.starts_with("(C7517) warpgroup.wait is injected in"), "{third}");
}

#[test]
fn failures_show_their_first_error() {
    let said =
        "x.cuh(3): warning #177-D: unused\n\nx.cu(1): error: expected an expression\n  int;\n";
    assert_eq!(nvcc::error_lines(said), ["x.cu(1): error: expected an expression"]);
    assert_eq!(nvcc::error_lines("one\n\ntwo\n"), ["one", "two"]);
    let said = "gcc: No such file or directory\n\
                nvcc fatal   : Failed to preprocess host compiler properties.\n";
    assert_eq!(nvcc::error_lines(said).len(), 2);
    assert!(nvcc::no_host_compiler(said) && !nvcc::no_host_compiler("x.cu(1): error: no"));
}

/// A stand-in for nvcc: answers `--version`, writes its `-o` and notes that it ran.
#[cfg(unix)]
fn fake_nvcc(folder: &Folder, release: &str, compile: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let script = format!(
        "#!/bin/sh\n\
         [ \"$1\" = --version ] && echo 'release {release}, V0' && exit\n\
         echo \"$@\" >> '{}'\n\
         while [ \"$1\" != -o ]; do shift; done\n\
         {compile}\n",
        folder.path("runs")
    );
    let path = folder.write("nvcc", &script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
fn unit(define: &str) -> manifest::Unit {
    manifest::Unit { name: "unit".into(), source: "step.cuh", defines: vec![define.into()] }
}

#[cfg(unix)]
#[test]
fn nothing_is_compiled_twice() {
    let _alone = STARTING.lock();
    let (folder, cache) = (Folder::new(), Folder::new());
    let compile = "echo \"ptxas info : Compiling entry function 'k' for 'sm_80'\" >&2\n\
                   printf image > \"$2\"";
    let path = fake_nvcc(&folder, "13.0", compile);
    let image = |archs: &str, define: &str| {
        let archs = nvcc::archs_of(archs).unwrap();
        let compiler = nvcc::Compiler::new(path.clone(), &archs, cache.0.clone()).unwrap();
        let image = compiler.image(&unit(define)).unwrap();
        assert_eq!((&*image.fatbin, &*image.usage[0].kernel), (&b"image"[..], "k"));
    };
    let runs = || fs::read_to_string(folder.path("runs")).unwrap();
    for (count, archs, define) in
        [(1, "80,ptx", "A=1"), (1, "80,ptx", "A=1"), (2, "80,ptx", "A=2"), (3, "90a", "A=1")]
    {
        image(archs, define);
        assert_eq!(runs().lines().count(), count, "{}", runs());
    }
    assert!(runs().contains(
        "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=compute_90 -DA=1"
    ));
    // Three images, three logs, no unfinished file.
    assert_eq!(fs::read_dir(&cache.0).unwrap().count(), 6);
}

#[cfg(unix)]
#[test]
fn an_nvcc_that_cannot_do_it_says_why() {
    let _alone = STARTING.lock();
    let (folder, cache) = (Folder::new(), Folder::new());
    let archs = nvcc::archs_of("90a").unwrap();
    let new = |path: PathBuf| nvcc::Compiler::new(path, &archs, cache.0.clone());
    let line = |path| new(path).err().unwrap();
    assert!(
        line(fake_nvcc(&folder, "12.6", "")).contains("is of CUDA 12.6; the kernels need 12.8")
    );
    assert!(line(fake_nvcc(&folder, "?", "")).contains("is no nvcc"));
    assert!(line(folder.0.join("none")).contains("does not start"));

    let compile = |script: &str| {
        new(fake_nvcc(&folder, "13.0", script)).unwrap().image(&unit("A=1")).err().unwrap()
    };
    let line = compile("echo 'x.cu(1): error: bad' >&2; printf part > \"$2\"; exit 1");
    assert!(line.ends_with("failed on step.cuh (unit): x.cu(1): error: bad"), "{line}");
    let line =
        compile("echo 'nvcc fatal : Failed to preprocess host compiler properties.'; exit 1");
    assert!(line.contains("install g++"), "{line}");
    // Success without a file is a failure, too.
    assert!(compile("").contains("says nothing of why"));
    assert_eq!(fs::read_dir(&cache.0).unwrap().count(), 0);
}

/// The page of benchmarks names kernels that no device has run: none may be missing there.
#[test]
fn the_benchmarks_know_every_unit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/units.json");
    let text = fs::read_to_string(path).unwrap();
    // An object of strings, one a line.
    let mut listed: Vec<&str> = text.lines().filter_map(|line| line.split('"').nth(1)).collect();
    let units = manifest::units();
    let mut names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
}

#[test]
fn every_unit_has_a_name_of_its_own() {
    let mut names: Vec<String> = manifest::units().into_iter().map(|unit| unit.name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn the_caches_folder_follows_the_environment() {
    let from = |variables: &[(&str, &str)]| {
        cache::choose(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        })
    };
    let all = [("REALM_KERNEL_CACHE", "/k"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(from(&all), Some("/k".into()));
    assert_eq!(from(&all[2..]), Some("/h/.cache/realm/kernels".into()));
    if cfg!(unix) {
        assert_eq!(from(&all[1..]), Some("/x/realm/kernels".into()));
    }
    let odd = [("REALM_KERNEL_CACHE", ""), ("XDG_CACHE_HOME", "relative"), ("HOME", "/h")];
    assert_eq!(from(&odd), Some("/h/.cache/realm/kernels".into()));
    assert_eq!(from(&[]), None);
}

#[test]
fn hashes_differ_by_content_and_by_where_parts_end() {
    // FNV-1a's published offset is the hash of nothing.
    assert_eq!(cache::hash(&[]), "6c62272e07bb014262b821756295c58d");
    let lists: [&[&[u8]]; 5] = [&[b""], &[b"", b""], &[b"ab", b"c"], &[b"a", b"bc"], &[b"abc"]];
    let hashes = lists.map(cache::hash);
    for (i, one) in hashes.iter().enumerate() {
        assert_eq!(one.len(), 32);
        assert!(hashes[..i].iter().all(|other| other != one), "{hashes:?}");
    }
}

#[test]
fn sources_follow_includes() {
    let folder = Folder::new();
    folder.write("a.cu", "#include \"b.cuh\"\n # include  \"in/c.cuh\"\n#include <x>\nint a;");
    folder.write("b.cuh", "#include \"a.cu\"\n#include \"none.h\"\n#include \"simt/d.h\"");
    folder.write("in/c.cuh", "#include \"e.cuh\"\n#include \"b.cuh\"");
    folder.write("in/e.cuh", "int e;");
    folder.write("simt/d.h", "int d;");
    let get = |name: &str| cache::sources(&folder.0, name, &|name| name.starts_with("simt/"));
    let found = get("a.cu").unwrap();
    assert_eq!(found.len(), 4);
    assert!(found[0].ends_with(b"int a;") && found[3] == b"int e;");
    assert_eq!(cache::sources(&folder.0, "a.cu", &|_| false).unwrap().len(), 5);
    assert!(get("none.cu").unwrap_err().contains("none.cu"));
}

#[test]
fn a_stored_file_replaces_the_old_one_and_leaves_no_other() {
    let folder = Folder::new();
    for text in ["one", "two"] {
        cache::store(&folder.0.join("x"), text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(folder.0.join("x")).unwrap(), text);
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    assert!(cache::store(&folder.0.join("none/x"), b"").unwrap_err().contains("none"));
}
