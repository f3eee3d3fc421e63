//! Where nvcc is: what the user names, then CUDA's own variables, PATH, and the PyPI wheels of the
//! Python environment.

use std::{
    env::consts::EXE_SUFFIX,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The wheels that hold a compiler. They are pinned together: nvcc calls the others by paths and
/// options of its own version.
const WHEELS: &str = "nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
                      nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85";

/// What the search depends on.
pub(crate) struct Surroundings<'a> {
    /// An environment variable's value.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The folders in which a Python interpreter looks for packages; none where it does not run.
    pub(crate) site_folders: &'a dyn Fn(&Path) -> Vec<PathBuf>,
}

/// The path of nvcc, or one line that says how to get it.
pub(crate) fn find(surroundings: &Surroundings) -> Result<PathBuf, String> {
    let get = |name| (surroundings.variable)(name).filter(|value| !value.is_empty());
    let nvcc = format!("nvcc{EXE_SUFFIX}");
    if let Some(path) = get("REALM_NVCC").map(PathBuf::from) {
        if path.is_file() {
            return Ok(path);
        }
        return Err(format!("REALM_NVCC is {}: no such file; name nvcc itself", path.display()));
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"];
    let mut folders: Vec<PathBuf> =
        toolkits.into_iter().filter_map(get).map(|root| PathBuf::from(root).join("bin")).collect();
    if let Some(path) = get("PATH") {
        folders.extend(std::env::split_paths(&path));
    }
    let environment = get("VIRTUAL_ENV").map(PathBuf::from);
    folders
        .into_iter()
        .map(|folder| folder.join(&nvcc))
        .find(|path| path.is_file())
        .or_else(|| in_wheels(surroundings, environment.as_deref(), &nvcc))
        .ok_or_else(|| {
            // Inside a virtual environment pip refuses `--user`.
            let user = if environment.is_some() { "" } else { "--user " };
            format!(
                "the feature cuda needs NVIDIA's compiler nvcc, which was not found; install it \
                 with `python3 -m pip install {user}{WHEELS}`, or set REALM_NVCC to its path"
            )
        })
}

fn in_wheels(
    surroundings: &Surroundings,
    environment: Option<&Path>,
    nvcc: &str,
) -> Option<PathBuf> {
    let inside = if cfg!(windows) { "Scripts" } else { "bin" };
    let name = if cfg!(windows) { "python" } else { "python3" };
    let python = match environment {
        Some(folder) => folder.join(inside).join(format!("{name}{EXE_SUFFIX}")),
        None => PathBuf::from(name),
    };
    let sites = (surroundings.site_folders)(&python);
    sites.iter().find_map(|site| in_site(&site.join("nvidia"), nvcc))
}

/// CUDA 13 and later wheels share one folder a major version (`cu13`), older ones had a folder each.
fn in_site(nvidia: &Path, nvcc: &str) -> Option<PathBuf> {
    let mut versions: Vec<u32> = std::fs::read_dir(nvidia)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("cu")?.parse().ok())
        .collect();
    versions.sort_unstable();
    let newest_first = versions.into_iter().rev().map(|version| format!("cu{version}"));
    newest_first
        .chain(["cuda_nvcc".to_owned()])
        .map(|folder| nvidia.join(folder).join("bin").join(nvcc))
        .find(|path| path.is_file())
}

/// The folders in which `python` looks for packages, and those to which pip would install them.
pub(crate) fn site_folders(python: &Path) -> Vec<PathBuf> {
    const QUESTION: &str = "import site, sys, sysconfig
folders = [sysconfig.get_path('purelib'), site.getusersitepackages(), *sys.path]
print('\\n'.join(folder for folder in folders if folder))";
    let Ok(answer) = Command::new(python).args(["-c", QUESTION]).output() else { return vec![] };
    String::from_utf8_lossy(&answer.stdout).lines().map(PathBuf::from).collect()
}
