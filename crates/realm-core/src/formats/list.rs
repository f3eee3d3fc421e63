//! The one list of formats, and what follows from it: [`DType`] and [`with_format!`](crate::with_format!).

use super::{BlockFormat, decode_row, encode_row};
use std::fmt;

/// Hands the list of formats to a macro: `formats!(callback! { extra })` expands to
/// `callback! { { extra } Variant: Block, … }`, the block types named in `realm_core::formats`.
///
/// This is the only place that lists all formats.
#[macro_export]
macro_rules! formats {
    ($($callback:tt)::+ ! { $($extra:tt)* }) => {
        $($callback)::+! {
            { $($extra)* }
            F32: F32,
            F16: F16,
            BF16: Bf16,
            Q4_0: Q4_0,
            Q4_1: Q4_1,
            Q5_0: Q5_0,
            Q5_1: Q5_1,
            Q8_0: Q8_0,
            Q2_K: Q2K,
            Q3_K: Q3K,
            Q4_K: Q4K,
            Q5_K: Q5K,
            Q6_K: Q6K,
            Q8_K: Q8K,
            IQ4_NL: Iq4Nl,
            IQ4_XS: Iq4Xs,
        }
    };
}

/// Evaluates an expression with a type alias bound to a [`DType`]'s block type:
/// `with_format!(dtype, F => F::LEN)`.
///
/// Expands to one `match` whose arms differ in the alias alone, so a crate can ask its own traits
/// of the block types inside the expression.
#[macro_export]
macro_rules! with_format {
    ($dtype:expr, $F:ident => $body:expr) => {
        $crate::formats! { $crate::__match_format! { $dtype, $F, $body } }
    };
}

/// The `match` behind [`with_format!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __match_format {
    ({ $dtype:expr, $F:ident, $body:expr } $($variant:ident: $block:ident,)*) => {
        match $dtype {
            $($crate::DType::$variant => {
                type $F = $crate::formats::$block;
                $body
            })*
        }
    };
}

macro_rules! dtype {
    ({} $($variant:ident: $block:ident,)*) => {
        /// How weights are stored: one variant a format.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(non_camel_case_types, reason = "the formats' established names")]
        pub enum DType {
            $(
                #[doc = concat!("See [`", stringify!($block), "`](super::", stringify!($block), ").")]
                $variant,
            )*
        }

        impl DType {
            /// Every format.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }
    };
}
formats! { dtype! {} }

impl DType {
    /// The name GGUF tools use, for example `Q4_K`.
    pub const fn name(self) -> &'static str {
        with_format!(self, F => F::NAME)
    }

    /// The format of that name, in upper or lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }

    /// The tensor type number in GGUF files.
    pub const fn gguf_id(self) -> u32 {
        with_format!(self, F => F::GGUF_ID)
    }

    /// The format of that tensor type number, if this crate knows it.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.gguf_id() == id)
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        with_format!(self, F => F::LEN)
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        with_format!(self, F => F::BYTES)
    }

    /// Bytes of a row of `cols` weights; `None` where rows of that length cannot be stored (not a
    /// multiple of [`block_len`](Self::block_len)) or the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Whether weights are plain floating-point numbers: F32, F16 or BF16.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Decodes whole rows: `bytes` to `out.len()` weights.
    ///
    /// # Panics
    /// Unless `row_bytes(out.len()) == Some(bytes.len())`.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        with_format!(self, F => decode_row::<F>(bytes, out));
    }

    /// Encodes whole rows: `values` to `out.len()` bytes, see [`BlockFormat::encode`].
    ///
    /// # Panics
    /// Unless `row_bytes(values.len()) == Some(out.len())`.
    pub fn encode(self, values: &[f32], out: &mut [u8]) {
        with_format!(self, F => encode_row::<F>(values, out));
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
