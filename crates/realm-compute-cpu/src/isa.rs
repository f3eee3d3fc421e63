//! Which instructions the processor has. Holding a token proves that they may be executed.

use std::{fmt, str::FromStr};

/// Proof that AVX2, FMA and F16C may be executed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, where the processor and system allow it.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Self(()));
        }
        None
    }
}

/// Proof that AVX-512 F, BW, VL, DQ and VNNI may be executed, and all that [`Avx2`] proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, where the processor and system allow it.
    pub(crate) fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Some(Self(()));
        }
        None
    }
}

/// The kernels in use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2(Avx2),
    /// AVX-512 with VNNI.
    Avx512(Avx512),
}

/// The most that the CPU backend may use, by name. What the processor lacks is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum IsaLimit {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 with VNNI.
    #[default]
    Avx512,
}

impl FromStr for IsaLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            _ => Err(format!("{text:?} is no instruction set; choose scalar, avx2 or avx512")),
        }
    }
}

impl From<Isa> for IsaLimit {
    fn from(isa: Isa) -> Self {
        match isa {
            Isa::Scalar => Self::Scalar,
            Isa::Avx2(_) => Self::Avx2,
            Isa::Avx512(_) => Self::Avx512,
        }
    }
}

impl Isa {
    /// The best that processor and limit allow.
    pub(crate) fn detect(limit: IsaLimit) -> Self {
        if let (IsaLimit::Avx512, Some(proof)) = (limit, Avx512::new()) {
            return Self::Avx512(proof);
        }
        if let (true, Some(proof)) = (limit >= IsaLimit::Avx2, Avx2::new()) {
            return Self::Avx2(proof);
        }
        Self::Scalar
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

impl Isa {
    /// Runs plain Rust compiled for these instructions: what `work` does is inlined here, and the
    /// compiler vectorises it.
    #[inline]
    pub(crate) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            // SAFETY: the token proves that the processor has AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { with_avx2(work) },
            // SAFETY: the token proves that the processor has these AVX-512 parts.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => unsafe { with_avx512(work) },
            _ => work(),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2(_) => "AVX2+FMA",
            Self::Avx512(_) => "AVX-512 VNNI",
        })
    }
}
