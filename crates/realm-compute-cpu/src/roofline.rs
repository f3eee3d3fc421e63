//! What the machine can do at most: how fast all threads read memory together, and how fast they
//! multiply and add in the inner loop of a precision.

use std::{hint::black_box, time::Instant};

use realm_core::backend::Precision;

use crate::{isa::Isa, pool::Pool};

/// The two ceilings of a roofline.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofline {
    /// Bytes that all threads together read from memory in a second.
    pub read_bytes_per_second: f64,
    /// Additions and multiplications of the precision's inner loop in a second, all threads together.
    pub ops_per_second: f64,
    /// The instruction that was measured.
    pub path: String,
}

/// A buffer that no cache holds.
const BUFFER: usize = 512 << 20;
const PASSES: usize = 5;

/// Measures both ceilings: the best of several passes each.
pub(crate) fn measure(pool: &Pool, isa: Isa, precision: Precision) -> Roofline {
    let (path, ops) = arithmetic(pool, isa, precision == Precision::Int8);
    Roofline { read_bytes_per_second: bandwidth(pool, isa), ops_per_second: ops, path: path.into() }
}

/// Seconds of the fastest of several calls.
fn fastest(mut pass: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(time).fold(f64::INFINITY, f64::min)
}

/// Looks at every word.
#[cfg(target_arch = "x86_64")]
fn read(isa: Isa, words: &[u64]) -> u64 {
    match isa {
        // SAFETY: the token proves that the processor has AVX-512.
        Isa::Avx512(_) => unsafe { x86::read512(words) },
        // SAFETY: the token proves that the processor has AVX2.
        Isa::Avx2(_) => unsafe { x86::read256(words) },
        Isa::Scalar => read_plainly(words),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn read(_isa: Isa, words: &[u64]) -> u64 {
    read_plainly(words)
}

fn read_plainly(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum ^ word)
}

fn bandwidth(pool: &Pool, isa: Isa) -> f64 {
    let free = crate::system::available_memory().map_or(BUFFER, |bytes| (bytes / 4) as usize);
    let len = BUFFER.min(free) / size_of::<u64>();
    let mut buffer: Vec<u64> = Vec::new();
    if len == 0 || buffer.try_reserve_exact(len).is_err() {
        return 0.0;
    }
    // Written, so that every page is a page of its own.
    buffer.resize(len, 1);
    let pieces = pool.threads() * 16;
    let seconds = fastest(|| {
        pool.run(pieces, |piece| {
            let words = &buffer[len * piece / pieces..len * (piece + 1) / pieces];
            black_box(read(isa, words));
        });
    });
    (len * size_of::<u64>()) as f64 / seconds
}

/// Calls of the innermost loop in one task.
const LOOPS: usize = 400_000;

/// The instruction and its operations a second.
fn arithmetic(pool: &Pool, isa: Isa, int8: bool) -> (&'static str, f64) {
    let (path, ops, kernel) = peak(isa, int8);
    let seconds = fastest(|| pool.run(pool.threads(), |_| kernel()));
    (path, (ops * LOOPS * pool.threads()) as f64 / seconds)
}

type Peak = (&'static str, usize, Box<dyn Fn() + Sync>);

/// The instruction, the operations of one loop, and a task of [`LOOPS`] loops.
#[cfg(target_arch = "x86_64")]
fn peak(isa: Isa, int8: bool) -> Peak {
    match (isa, int8) {
        (Isa::Avx512(_), true) => {
            // SAFETY: the token proves that the processor has AVX-512 with VNNI.
            ("AVX-512 vpdpbusd", 16 * 128, Box::new(|| unsafe { x86::dpbusd512() }))
        }
        (Isa::Avx512(_), false) => {
            // SAFETY: the token proves that the processor has AVX-512.
            ("AVX-512 f32 FMA", 16 * 32, Box::new(|| unsafe { x86::fma512() }))
        }
        (Isa::Avx2(_), true) => {
            // SAFETY: the token proves that the processor has AVX2.
            ("AVX2 vpmaddubsw + vpmaddwd", 8 * 64, Box::new(|| unsafe { x86::maddubs256() }))
        }
        (Isa::Avx2(_), false) => {
            // SAFETY: the token proves that the processor has AVX2 and FMA.
            ("AVX2 f32 FMA", 12 * 16, Box::new(|| unsafe { x86::fma256() }))
        }
        (Isa::Scalar, _) => scalar(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_isa: Isa, _int8: bool) -> Peak {
    scalar()
}

fn scalar() -> Peak {
    let kernel = || {
        let mut lanes = black_box([1.0f32; 64]);
        let (factor, addend) = (black_box(0.5f32), black_box(1.0f32));
        for _ in 0..LOOPS {
            for lane in &mut lanes {
                *lane = *lane * factor + addend;
            }
        }
        black_box(lanes);
    };
    ("plain f32", 64 * 2, Box::new(kernel))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Loops of independent instructions whose results are looked at only at the end.

    use std::{arch::x86_64::*, hint::black_box};

    use super::LOOPS;

    #[target_feature(enable = "avx512f")]
    pub(super) fn read512(words: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for chunk in words.as_chunks::<32>().0 {
            for (sum, vector) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                // SAFETY: eight words are a vector; the load needs no alignment.
                let vector = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
                *sum = _mm512_xor_si512(*sum, vector);
            }
        }
        let [a, b, c, d] = sums;
        let sum = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
        _mm512_reduce_add_epi64(sum) as u64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn read256(words: &[u64]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 4];
        for chunk in words.as_chunks::<16>().0 {
            for (sum, vector) in sums.iter_mut().zip(chunk.as_chunks::<4>().0) {
                // SAFETY: four words are a vector; the load needs no alignment.
                let vector = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
                *sum = _mm256_xor_si256(*sum, vector);
            }
        }
        let [a, b, c, d] = sums;
        let sum = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
        _mm256_extract_epi64::<0>(sum) as u64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn dpbusd512() {
        let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(1)));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma512() {
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [_mm512_setzero_ps(); 16];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn maddubs256() {
        let ones = _mm256_set1_epi16(black_box(1));
        let (a, b) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi8(black_box(1)));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                // Opaque, so that the product is not hoisted out of the loop.
                let pairs = _mm256_maddubs_epi16(black_box(a), b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma256() {
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..LOOPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::IsaLimit;

    #[test]
    fn ceilings_are_of_this_world() {
        for limit in [IsaLimit::Scalar, IsaLimit::Avx2, IsaLimit::Avx512] {
            let (path, ops) = arithmetic(&Pool::new(1), Isa::detect(limit), true);
            assert!((1e8..1e14).contains(&ops), "{path}: {ops}");
        }
    }
}
