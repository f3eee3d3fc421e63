//! Random numbers: fast enough to fill files, the same for the same seed everywhere.

/// SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The numbers that belong to a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Independent numbers for a part of the work.
    pub(crate) fn part(&self, index: u64) -> Self {
        let mut key = Self(self.0 ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(key.bits())
    }

    /// 64 random bits.
    #[inline]
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    #[inline]
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in 0..`end`, which is at least 1 and far below 2⁶⁴.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// Mean 0 and deviation 1, nearly normal: a sum of twelve uniform numbers.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    /// Fills `out` with random bits.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.bits().to_le_bytes();
        }
        let last = self.bits().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_moments_they_should() {
        let mut rng = Rng::new(7);
        let values: Vec<f32> = (0..100_000).map(|_| rng.normal()).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.03, "{mean} {square}");
        assert!((0..1000).map(|_| rng.below(7)).all(|v| v < 7));
    }

    #[test]
    fn parts_differ_and_repeat() {
        let rng = Rng::new(1);
        let (mut a, mut b, mut again) = (rng.part(0), rng.part(1), rng.part(0));
        let first = a.bits();
        assert_ne!(first, b.bits());
        assert_eq!(first, again.bits());
        let mut odd = [0u8; 13];
        a.fill(&mut odd);
        assert!(odd.iter().any(|&byte| byte != 0));
    }
}
