//! Reproducible random numbers.

use realm_core::{DType, sampling::philox};

/// A stream of random numbers from a seed.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    count: u32,
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    /// A seed from `REALM_SEED`, or from the clock.
    pub fn fresh_seed() -> u64 {
        let given = std::env::var("REALM_SEED").ok().and_then(|seed| seed.parse().ok());
        given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |now| now.as_micros() as u64)
        })
    }

    /// Another stream, which depends on this one's seed and the name.
    pub fn named(&self, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self::new(self.seed ^ hash)
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        self.count += 1;
        philox([self.count, 0, 0, 0], [self.seed as u32, (self.seed >> 32) as u32])[0]
    }

    /// A number in `0..end`; `end` is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.word() as usize % end
    }

    /// A number close to normal with deviation 1: the sum of four uniform ones.
    pub fn normal(&mut self) -> f32 {
        let uniform = |word: u32| (word >> 8) as f32 / (1 << 24) as f32 - 0.5;
        (0..4).map(|_| uniform(self.word())).sum::<f32>() * 3f32.sqrt()
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// The numbers below `end` in random order.
    pub fn permutation(&mut self, end: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..end as u32).collect();
        for at in (1..end).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }

    /// A matrix of normal numbers times `deviation`, encoded as `dtype`.
    pub fn matrix(&mut self, rows: usize, cols: usize, dtype: DType, deviation: f32) -> Vec<u8> {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.normal() * deviation).collect();
        let mut bytes = vec![0; rows * dtype.row_bytes(cols).unwrap_or(0)];
        dtype.encode(&values, &mut bytes);
        bytes
    }
}
