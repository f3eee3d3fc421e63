//! Compiles the CUDA kernels: with nvcc for the feature `cuda`, with g++ for `cuda-emulated`.

#[path = "build/cache.rs"]
mod cache;
#[path = "build/emulated.rs"]
mod emulated;
#[path = "build/manifest.rs"]
mod manifest;
#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels/cuda");
    let wanted = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    let mut result = Ok(());
    if wanted("CUDA") {
        result = nvcc::build(&manifest::units());
    }
    if wanted("CUDA_EMULATED") && result.is_ok() {
        result = emulated::build(&manifest::units());
    }
    if let Err(problem) = result {
        println!("cargo::error={problem}");
        std::process::exit(1);
    }
}
