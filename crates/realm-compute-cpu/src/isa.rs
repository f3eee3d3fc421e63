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

/// Defines a function of plain Rust that takes an [`Isa`] first and is compiled once for each of them:
/// the compiler vectorises its loops for those instructions.
///
/// A closure handed to a function with other target features would not do: where the compiler does not
/// inline it, it stays compiled for the least processor.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "the instruction set comes on top")]
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $type),*) {
            #[inline(always)]
            fn plain($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) {
                plain($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512($($arg: $type),*) {
                plain($($arg),*);
            }
            match isa {
                // SAFETY: the token proves that the processor has AVX2, FMA and F16C.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2(_) => unsafe { avx2($($arg),*) },
                // SAFETY: the token proves that the processor has these AVX-512 parts.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512(_) => unsafe { avx512($($arg),*) },
                _ => plain($($arg),*),
            }
        }
    )*};
}
pub(crate) use vectorized;

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2(_) => "AVX2+FMA",
            Self::Avx512(_) => "AVX-512 VNNI",
        })
    }
}
