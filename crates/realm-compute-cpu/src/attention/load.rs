//! Tiles of the cache, decoded to `f32` for the products.

use super::simd::Simd;
use crate::kv::KV_BLOCK_TOKENS;
use realm_core::backend::KvType;
use std::ops::Range;

/// Elements of a head that share a scale in Q8_0 tiles.
const SCALED: usize = 32;

/// Bytes fetched together.
const LINE: usize = 64;

/// Bytes that are to be asked for while something else is computed: blocks lie scattered, so the
/// processor cannot guess where the next tiles are. Asked for all at once they would fill the queue
/// of outstanding loads and hold up the computation.
pub(super) struct Prefetch<'a> {
    bytes: [&'a [u8]; 2],
    /// Bytes to ask for at a time.
    portion: usize,
}

impl<'a> Prefetch<'a> {
    /// Both tiles, in `portions` about equal parts.
    pub(super) fn new(tiles: [&'a [u8]; 2], portions: usize) -> Self {
        let portion = tiles[0].len() / LINE * 2 / portions.max(1) + 1;
        Self { bytes: tiles, portion: portion * LINE }
    }

    /// Asks for the next portion.
    #[inline(always)]
    pub(super) fn next<S: Simd>(&mut self, simd: S) {
        if self.bytes[0].is_empty() {
            self.bytes.swap(0, 1);
        }
        let (now, later) = self.bytes[0].split_at(self.portion.min(self.bytes[0].len()));
        self.bytes[0] = later;
        for line in now.chunks(LINE) {
            simd.prefetch(line);
        }
    }
}

/// Decodes columns `tokens` of a tile of keys into `out`, `[head_dim][KV_BLOCK_TOKENS]`; columns
/// beside them may be decoded too.
#[inline(always)]
pub(super) fn keys<S: Simd>(
    simd: S,
    kv_type: KvType,
    tile: &[u8],
    tokens: Range<usize>,
    out: &mut [f32],
) {
    let vectors = tokens.start / S::LANES..tokens.end.div_ceil(S::LANES);
    match kv_type {
        KvType::F32 => transposed::<S, F32>(simd, tile, vectors, out),
        KvType::F16 => transposed::<S, F16>(simd, tile, vectors, out),
        KvType::BF16 => transposed::<S, BF16>(simd, tile, vectors, out),
        KvType::Q8_0 => {
            let (quants, scales) = tile.split_at(out.len());
            let chunks = quants.chunks_exact(SCALED * KV_BLOCK_TOKENS);
            let scales = scales.chunks_exact(2 * KV_BLOCK_TOKENS);
            let out = out.chunks_exact_mut(SCALED * KV_BLOCK_TOKENS);
            for ((chunk, scales), out) in chunks.zip(scales).zip(out) {
                for vector in vectors.clone() {
                    let at = vector * S::LANES;
                    let scale = simd.load_f16(&scales[2 * at..]);
                    for i in 0..SCALED {
                        let quants = simd.load_i8(&chunk[i * KV_BLOCK_TOKENS + at..]);
                        let values = simd.mul(quants, scale);
                        simd.store(values, &mut out[i * KV_BLOCK_TOKENS + at..]);
                    }
                }
            }
        }
    }
}

/// Decodes rows `tokens` of a tile of values into `out`, `[KV_BLOCK_TOKENS][stride]`, and zeros
/// beyond the head's size up to the stride, a multiple of 16.
#[inline(always)]
pub(super) fn values<S: Simd>(
    simd: S,
    kv_type: KvType,
    tile: &[u8],
    (tokens, head_dim, stride): (Range<usize>, usize, usize),
    out: &mut [f32],
) {
    match kv_type {
        KvType::F32 => rows::<S, F32>(simd, tile, (tokens, head_dim, stride), out),
        KvType::F16 => rows::<S, F16>(simd, tile, (tokens, head_dim, stride), out),
        KvType::BF16 => rows::<S, BF16>(simd, tile, (tokens, head_dim, stride), out),
        KvType::Q8_0 => {
            // Head sizes are multiples of 32, hence of the vector length, and the stride the same.
            let (quants, scales) = tile.split_at(KV_BLOCK_TOKENS * head_dim);
            for token in tokens {
                for at in (0..head_dim).step_by(SCALED) {
                    let scale = 2 * (token * head_dim + at) / SCALED;
                    let scale = half::f16::from_le_bytes([scales[scale], scales[scale + 1]]);
                    let scale = simd.splat(scale.to_f32());
                    for at in (at..at + SCALED).step_by(S::LANES) {
                        let quants = simd.load_i8(&quants[token * head_dim + at..]);
                        simd.store(simd.mul(quants, scale), &mut out[token * stride + at..]);
                    }
                }
            }
        }
    }
}

/// A type whose elements stand alone.
trait Plain {
    /// Bytes of an element.
    const BYTES: usize;
    /// The first elements.
    fn load<S: Simd>(simd: S, from: &[u8]) -> S::F;
}

struct F32;
struct F16;
struct BF16;

impl Plain for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u8]) -> S::F {
        let from = &from[..4 * S::LANES];
        // SAFETY: cut to the bytes read; `load_at` asks for no alignment.
        unsafe { simd.load_at(from.as_ptr().cast()) }
    }
}

impl Plain for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u8]) -> S::F {
        simd.load_f16(from)
    }
}

impl Plain for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[u8]) -> S::F {
        simd.load_bf16(from)
    }
}

#[inline(always)]
fn transposed<S: Simd, P: Plain>(simd: S, tile: &[u8], vectors: Range<usize>, out: &mut [f32]) {
    let rows = tile.chunks_exact(KV_BLOCK_TOKENS * P::BYTES);
    for (row, out) in rows.zip(out.chunks_exact_mut(KV_BLOCK_TOKENS)) {
        for vector in vectors.clone() {
            let at = vector * S::LANES;
            simd.store(P::load(simd, &row[at * P::BYTES..]), &mut out[at..]);
        }
    }
}

#[inline(always)]
fn rows<S: Simd, P: Plain>(
    simd: S,
    tile: &[u8],
    (tokens, head_dim, stride): (Range<usize>, usize, usize),
    out: &mut [f32],
) {
    let whole = head_dim / S::LANES * S::LANES;
    for token in tokens {
        let row = &tile[token * head_dim * P::BYTES..][..head_dim * P::BYTES];
        let out = &mut out[token * stride..][..stride];
        for at in (0..whole).step_by(S::LANES) {
            simd.store(P::load(simd, &row[at * P::BYTES..]), &mut out[at..]);
        }
        for at in (whole..stride).step_by(S::LANES) {
            // Zero bytes are the number 0 in all these types.
            let mut rest = [0; 4 * 16];
            let left = &row[(at * P::BYTES).min(row.len())..];
            rest[..left.len()].copy_from_slice(left);
            simd.store(P::load(simd, &rest), &mut out[at..]);
        }
    }
}
