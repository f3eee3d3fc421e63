//! Compiles the CUDA kernels: with nvcc for the feature `cuda`, with g++ for `cuda-emulated`.

#[cfg(any(feature = "cuda", feature = "cuda-emulated"))]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "some of it is for nvcc alone"))]
#[path = "build/cache.rs"]
mod cache;
#[cfg(feature = "cuda-emulated")]
#[path = "build/emulated.rs"]
mod emulated;
#[cfg(any(feature = "cuda", feature = "cuda-emulated"))]
#[path = "build/manifest.rs"]
mod manifest;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels/cuda");
    #[cfg(feature = "cuda")]
    check(nvcc::build(&manifest::units()));
    #[cfg(feature = "cuda-emulated")]
    check(emulated::build(&manifest::units()));
}

/// Ends a build that failed.
#[cfg(any(feature = "cuda", feature = "cuda-emulated"))]
fn check(result: Result<(), String>) {
    if let Err(problem) = result {
        println!("cargo::error={problem}");
        std::process::exit(1);
    }
}
