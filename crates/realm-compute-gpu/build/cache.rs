//! Compiled kernels that outlive Cargo's folders: found by the hash of everything they were made
//! of, so that an unchanged kernel is never compiled twice, and old ones need no invalidating.
//! The folder may be deleted at any time.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// The folder of compiled kernels: `REALM_KERNEL_CACHE`, or `realm/kernels` in the user's cache
/// folder (`XDG_CACHE_HOME`, `~/.cache`; on Windows `LOCALAPPDATA`). It exists on return.
pub(crate) fn folder() -> Result<PathBuf, String> {
    for name in ["REALM_KERNEL_CACHE", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let folder = choose(|name| std::env::var_os(name))
        .ok_or("no home folder for compiled kernels; set REALM_KERNEL_CACHE to a folder")?;
    fs::create_dir_all(&folder).map_err(|error| {
        let folder = folder.display();
        format!("{folder}: {error}; set REALM_KERNEL_CACHE to a folder that can be written")
    })?;
    Ok(folder)
}

/// [`folder`]'s choice, given the environment. Empty variables count as unset, and so does an
/// `XDG_CACHE_HOME` that is not absolute, as the XDG base directory specification asks.
pub(crate) fn choose(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let get = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = get("REALM_KERNEL_CACHE") {
        // Cargo runs build scripts in the package's folder, whatever the user's is: a relative path
        // is taken from there, always the same.
        return Some(folder);
    }
    let caches = get("XDG_CACHE_HOME")
        .filter(|folder| folder.is_absolute())
        .or_else(|| get("HOME").map(|home| home.join(".cache")))
        .or_else(|| get("LOCALAPPDATA"))?;
    Some(caches.join("realm").join("kernels"))
}

/// A name for what is made of `parts`: 32 hexadecimal digits. FNV-1a in 128 bits, with each part's
/// length, so that no two lists of parts run together into the same bytes.
pub(crate) fn hash(parts: &[&[u8]]) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + 0x13b;
    let mut hash = OFFSET;
    let mut feed = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    };
    for part in parts {
        feed(&(part.len() as u64).to_le_bytes());
        feed(part);
    }
    format!("{hash:032x}")
}

/// The contents of a kernel's source file and, recursively, of all that it includes in quotes, as
/// far as the files are there, in a fixed order: with the compiler's version, what an object is made
/// of. `left_out` says of an included name that the compiler will never reach it.
pub(crate) fn sources(
    folder: &Path,
    file: &str,
    left_out: &dyn Fn(&str) -> bool,
) -> Result<Vec<Vec<u8>>, String> {
    let (mut contents, mut seen) = (Vec::new(), vec![folder.join(file)]);
    let mut next = 0;
    while next < seen.len() {
        let path = seen[next].clone();
        next += 1;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // A header of the compiler's own, or a fault that the compiler explains better.
            Err(_) if next > 1 => continue,
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        for name in includes(&String::from_utf8_lossy(&bytes)) {
            if left_out(name) {
                continue;
            }
            let beside = path.with_file_name("").join(name);
            for found in [beside, folder.join(name)] {
                if found.is_file() && !seen.contains(&found) {
                    seen.push(found);
                }
            }
        }
        contents.push(bytes);
    }
    Ok(contents)
}

/// The names after `#include "`.
fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        Some(rest.trim_start().strip_prefix('"')?.split_once('"')?.0)
    })
}

/// A path beside `path` that no other build uses, for a file that is renamed to `path` once whole.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{count}.part", std::process::id()));
    path.with_file_name(name)
}

/// Writes a file whole or not at all: builds that run at the same time see the old or the new one.
pub(crate) fn store(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let part = unfinished(path);
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&part);
        format!("{}: {error}", path.display())
    })
}
