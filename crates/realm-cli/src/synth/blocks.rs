//! Random weights, written as the blocks of a format without going through floats.
//!
//! A block of random bits is a block of random quants; what is left to do is to give it scales of a
//! sensible size. That runs faster than disks do.

use realm_core::{
    BlockFormat, DType,
    formats::{
        Bf16, F16, F16Le, F32, IQ4_LEVELS, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1,
        Q5K, Q6K, Q8_0, Q8K, pack_scales_mins, unpack_scales_mins,
    },
    with_format,
};
use zerocopy::{FromBytes, IntoBytes};

use super::random::Rng;

/// A format that random weights can be written in.
trait RandomBlock: BlockFormat {
    /// Fills `blocks` with weights of mean 0 and standard deviation `deviation`, both nearly.
    fn fill(blocks: &mut [Self], deviation: f32, rng: &mut Rng);
}

/// Fills `out`, whole blocks of `dtype`, with random weights of mean 0 and the given standard
/// deviation, both nearly. Every block is one that an encoder could have made.
///
/// # Panics
/// If `out` is no whole number of blocks.
pub(crate) fn fill(dtype: DType, deviation: f32, rng: &mut Rng, out: &mut [u8]) {
    with_format!(dtype, F => {
        let bytes = out.len();
        let Ok(blocks) = <[F]>::mut_from_bytes(out) else {
            panic!("{bytes} bytes are no whole blocks of {dtype}")
        };
        <F as RandomBlock>::fill(blocks, deviation, rng);
    });
}

/// Floats come from a table of normal numbers in their own format.
macro_rules! floats {
    ($($format:ty),*) => {$(
        impl RandomBlock for $format {
            fn fill(blocks: &mut [Self], deviation: f32, rng: &mut Rng) {
                let table: [Self; 4096] =
                    std::array::from_fn(|_| Self::encode(&[rng.normal() * deviation]));
                for five in blocks.chunks_mut(5) {
                    let mut bits = rng.bits();
                    for block in five {
                        *block = table[(bits & 4095) as usize];
                        bits >>= 12;
                    }
                }
            }
        }
    )*};
}
floats!(F32, F16, Bf16);

/// Quantized blocks get random bits first. `$unit` is the deviation of what then stands in them where
/// `d` is 1, and `$settle` gives a block its scale `d`, of random sign and a size that varies by a
/// quarter, and mends what an encoder would not write.
macro_rules! quantized {
    ($($format:ty, $unit:expr, |$block:ident, $d:ident| $settle:expr;)*) => {$(
        impl RandomBlock for $format {
            fn fill(blocks: &mut [Self], deviation: f32, rng: &mut Rng) {
                rng.fill(blocks.as_mut_bytes());
                let unit = deviation / $unit;
                for $block in blocks {
                    let vary = rng.unit() - 0.5;
                    let $d = unit * (0.75 + vary.abs()).copysign(vary);
                    $settle;
                }
            }
        }
    )*};
}

/// The root mean square of uniform numbers 0..n − `zero`.
fn uniform(n: f32, zero: f32) -> f32 {
    let mean = (n - 1.0) / 2.0 - zero;
    ((n * n - 1.0) / 12.0 + mean * mean).sqrt()
}

/// The root mean square of IQ4's levels.
fn levels() -> f32 {
    let squares = IQ4_LEVELS.iter().map(|&level| f32::from(level).powi(2));
    (squares.sum::<f32>() / IQ4_LEVELS.len() as f32).sqrt()
}

fn half(value: f32) -> F16Le {
    F16Le::from_f32_finite(value)
}

/// Encoders of 8 bits use −127..=127, and products that negate a quant rely on it.
fn symmetric(quants: &mut [i8]) {
    for quant in quants {
        *quant = (*quant).max(-127);
    }
}

/// Minima close to the scales, so that a group's weights lie around zero.
fn near_scales(packed: &[u8; 12]) -> [u8; 12] {
    let (scales, random) = unpack_scales_mins(packed);
    let mins = std::array::from_fn(|g| (scales[g] + random[g] % 5).saturating_sub(2).min(63));
    pack_scales_mins(&scales, &mins)
}

quantized! {
    Q4_0, uniform(16.0, 8.0), |block, d| block.d = half(d);
    Q4_1, uniform(16.0, 7.5), |block, d| (block.d, block.m) = (half(d.abs()), half(-7.5 * d.abs()));
    Q5_0, uniform(32.0, 16.0), |block, d| block.d = half(d);
    Q5_1, uniform(32.0, 15.5), |block, d| (block.d, block.m) = (half(d.abs()), half(-15.5 * d.abs()));
    Q8_0, uniform(256.0, 127.5), |block, d| {
        block.d = half(d.abs());
        symmetric(&mut block.qs);
    };
    Q2K, uniform(16.0, 0.0) * uniform(4.0, 1.5), |block, d| {
        for scale in &mut block.scales {
            *scale = (*scale & 15) * 0x11;
        }
        (block.d, block.dmin) = (half(d.abs()), half(1.5 * d.abs()));
    };
    Q3K, uniform(64.0, 32.0) * uniform(8.0, 4.0), |block, d| block.d = half(d);
    Q4K, uniform(64.0, 0.0) * uniform(16.0, 7.5), |block, d| {
        block.scales = near_scales(&block.scales);
        (block.d, block.dmin) = (half(d.abs()), half(7.5 * d.abs()));
    };
    Q5K, uniform(64.0, 0.0) * uniform(32.0, 15.5), |block, d| {
        block.scales = near_scales(&block.scales);
        (block.d, block.dmin) = (half(d.abs()), half(15.5 * d.abs()));
    };
    Q6K, uniform(256.0, 127.5) * uniform(64.0, 32.0), |block, d| {
        symmetric(&mut block.scales);
        block.d = half(d);
    };
    Q8K, uniform(256.0, 127.5), |block, d| {
        symmetric(&mut block.qs);
        block.d = d.into();
        for (sum, group) in block.bsums.iter_mut().zip(block.qs.as_chunks::<16>().0) {
            *sum = group.iter().map(|&quant| i16::from(quant)).sum::<i16>().into();
        }
    };
    Iq4Nl, levels(), |block, d| block.d = half(d);
    Iq4Xs, uniform(64.0, 32.0) * levels(), |block, d| block.d = half(d);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_deviation_that_was_asked_for() {
        let seed = std::process::id().into();
        println!("seed {seed}");
        for &dtype in DType::ALL {
            for deviation in [0.3f32, 1.0 / 64.0, 0.005] {
                // Weights of a block share scales: it takes thousands of blocks for the deviation to
                // settle within a per cent.
                let count = 1 << 20;
                let mut bytes = vec![0; dtype.row_bytes(count).unwrap()];
                fill(dtype, deviation, &mut Rng::new(seed), &mut bytes);
                let mut weights = vec![0.0; count];
                dtype.decode(&bytes, &mut weights);
                let mean = weights.iter().sum::<f32>() / count as f32;
                let square = weights.iter().map(|w| w * w).sum::<f32>() / count as f32;
                let (mean, ratio) = (mean / deviation, square.sqrt() / deviation);
                assert!((0.95..1.06).contains(&ratio), "{dtype} {deviation}: {ratio}");
                assert!(mean.abs() < 0.05, "{dtype} {deviation}: mean {mean}");
                let most = weights.iter().fold(0.0f32, |most, w| most.max(w.abs())) / deviation;
                assert!(most < 8.0, "{dtype} {deviation}: {most}");
            }
        }
    }

    #[test]
    fn what_encoders_never_write_is_not_written() {
        let mut rng = Rng::new(3);
        let mut blocks = [<Q8K as zerocopy::FromZeros>::new_zeroed(); 64];
        <Q8K as RandomBlock>::fill(&mut blocks, 1.0, &mut rng);
        for block in &blocks {
            assert!(block.qs.iter().all(|&q| q >= -127));
            for (sum, group) in block.bsums.iter().zip(block.qs.as_chunks::<16>().0) {
                assert_eq!(sum.get(), group.iter().map(|&q| i16::from(q)).sum::<i16>());
            }
        }
        let mut blocks = [<Q8_0 as zerocopy::FromZeros>::new_zeroed(); 512];
        <Q8_0 as RandomBlock>::fill(&mut blocks, 1.0, &mut rng);
        assert!(blocks.iter().flat_map(|block| block.qs).all(|q| q >= -127));
    }
}
