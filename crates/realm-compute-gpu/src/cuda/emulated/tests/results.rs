//! What the intrinsics compute.

use super::{random, run};

fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// By the definition of the format.
fn f16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        0 => fraction * 2f64.powi(-24),
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    (if bits >> 15 == 1 { -size } else { size }) as f32
}

/// The nearest value of a 16-bit format, the even one of two: by looking at all of them.
fn nearest(value: f64, of: fn(u16) -> f32, infinity: u16, limit: f64) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    if value.abs() >= limit {
        return sign | infinity;
    }
    // Finite sizes stand in the order of their bits.
    let (mut low, mut high) = (0, infinity - 1);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if f64::from(of(middle)) <= value.abs() { low = middle } else { high = middle - 1 }
    }
    if low + 1 == infinity {
        return sign | low;
    }
    let (below, above) = (value.abs() - f64::from(of(low)), f64::from(of(low + 1)) - value.abs());
    sign | if below < above || (below == above && low % 2 == 0) { low } else { low + 1 }
}

fn nearest_f16(value: f64) -> u16 {
    nearest(value, f16, 0x7c00, 65520.0)
}

fn nearest_bf16(value: f64) -> u16 {
    nearest(value, bf16, 0x7f80, f64::from(bf16(0x7f7f)) + 2f64.powi(119))
}

#[test]
fn numbers_round_as_the_formats_say() {
    let mut state = 0x5eed;
    let mut from: Vec<u32> = (0..=u16::MAX).map(u32::from).collect();
    from.extend((0..=u16::MAX).map(|bits| f16(bits).to_bits()));
    // Halfway between two f16 values, and a bit to both sides.
    from.extend((0..0x7c00).flat_map(|bits| {
        let half = ((f16(bits) + f16(bits + 1)) / 2.0).to_bits();
        [half - 1, half, half + 1]
    }));
    from.extend((0..100_000).map(|_| random(&mut state) as u32));
    let count = from.len();
    let to = run(
        "numbers",
        [count.div_ceil(256) as u32, 256],
        &from,
        &vec![0; 6 * count],
        (count as u32, 0),
    );
    let same = |found: u32, expected: f32| {
        f32::from_bits(found).is_nan() && expected.is_nan() || found == expected.to_bits()
    };
    for (&word, to) in from.iter().zip(to.chunks(6)) {
        let value = f64::from(f32::from_bits(word));
        let (low, high) = (word as u16, (word >> 16) as u16);
        assert_eq!(to[0] as u16, nearest_f16(value), "f16 of {word:#x}");
        assert_eq!((to[0] >> 16) as u16, nearest_bf16(value), "bf16 of {word:#x}");
        assert!(same(to[1], f16(low)), "value of f16 {low:#x}: {:#x}", to[1]);
        assert!(same(to[2], bf16(low)), "value of bf16 {low:#x}: {:#x}", to[2]);
        let difference = f64::from(bf16(low)) - f64::from(bf16(high));
        // f64 rounds, too, where the two are far apart: but never what is a tie in bf16.
        assert_eq!(to[3] as u16, nearest_bf16(difference), "{low:#x} - {high:#x} in bf16");
        let difference = f64::from(f16(low)) - f64::from(f16(high));
        assert_eq!(to[4] as u16, nearest_f16(difference), "{low:#x} - {high:#x} in f16");
        let bytes = (u64::from(!word) << 32 | u64::from(word)).to_le_bytes();
        let expected = [bytes[1], bytes[5], bytes[3], bytes[7]];
        assert_eq!(to[5].to_le_bytes(), expected, "bytes of {word:#x}");
    }
}

/// Products of small integers are exact, whatever the order of the sums.
#[test]
fn products_are_those_of_the_matrices() {
    for (what, one) in [(0u32, nearest_bf16 as fn(f64) -> u16), (1, nearest_f16)] {
        let mut state = 11;
        let mut small = |limit: i64| (random(&mut state) >> 1) as i64 % (2 * limit + 1) - limit;
        let matrices: Vec<i64> = (0..5 * 384).map(|_| small(100)).collect();
        let start: Vec<i64> = (0..5 * 128).map(|_| small(1000)).collect();
        let from: Vec<u32> = matrices
            .chunks(2)
            .map(|pair| u32::from(one(pair[0] as f64)) | u32::from(one(pair[1] as f64)) << 16)
            .collect();
        let to: Vec<u32> = start.iter().map(|&value| (value as f32).to_bits()).collect();
        let found = run("products", [5, 32], &from, &to, (2, what));
        for (block, found) in found.chunks(128).enumerate() {
            let (a, b) = matrices[block * 384..][..384].split_at(256);
            for (at, &found) in found.iter().enumerate() {
                let (row, col) = (at / 8, at % 8);
                let sum: i64 = (0..16).map(|k| a[row * 16 + k] * b[col * 16 + k]).sum();
                let expected = start[block * 128 + at] + 2 * sum;
                assert_eq!(f32::from_bits(found), expected as f32, "{what}: {row}, {col}");
            }
        }
    }
}

#[test]
fn matrices_load_into_fragments() {
    let element = |row: usize, col: usize| (row * 8 + col) as u32 * 259 % 65536;
    let from: Vec<u32> = (0..128)
        .map(|word| {
            let (row, col) = (word / 4, word % 4 * 2);
            element(row, col) | element(row, col + 1) << 16
        })
        .collect();
    let to = run("load_matrices", [1, 32], &from, &[0; 32 * 12], (0, 0));
    for (lane, to) in to.chunks(12).enumerate() {
        let (i, j) = (lane / 4, lane % 4 * 2);
        let straight = |m: usize| element(m * 8 + i, j) | element(m * 8 + i, j + 1) << 16;
        let across = |m: usize| element(m * 8 + j, i) | element(m * 8 + j + 1, i) << 16;
        let mut expected: Vec<u32> = (0..4).map(straight).collect();
        expected.extend((0..4).map(across));
        expected.extend((0..2).map(straight));
        expected.extend((0..2).map(across));
        assert_eq!(to, expected, "lane {lane}");
    }
}

#[test]
fn shuffles_move_values_of_every_type() {
    for n in [0, 1, 5, 16, 31] {
        let to = run("shuffles", [1, 32], &[0], &[0; 32 * 24], (n, 0));
        for (lane, to) in (0u32..).zip(to.chunks(24)) {
            let from = [n, lane ^ n, if lane + n < 32 { lane + n } else { lane }];
            let low = from.map(|lane| lane ^ 5);
            let negative = from.map(|lane| 0u32.wrapping_sub(lane));
            let mut expected = [low, from, from, from, from, negative].concat();
            let multiples = (0..32).filter(|lane| lane % 3 == 0).fold(0, |mask, l| mask | 1 << l);
            expected.extend([multiples, 1, 0, 0, 1, (lane + 1) % 32]);
            assert_eq!(to, expected, "lane {lane}, n {n}");
        }
    }
}

#[test]
fn copies_land_at_their_wait() {
    let from: Vec<u32> = (0..1024).map(|i| i * 3 + 1).collect();
    let to = run("async_copies", [1, 128], &from, &[0; 128 * 16], (0, 0));
    let none = u32::MAX;
    for (t, to) in to.chunks(16).enumerate() {
        let (own, other) = (&from[t * 8..], &from[(t + 33) % 128 * 8..]);
        assert_eq!(to[..4], [none; 4], "before the wait");
        assert_eq!(to[4..8], [own[0], own[3], none, none], "after the first group's wait");
        assert_eq!(to[8..12], [own[0], own[3], own[4], none], "after both groups' wait");
        assert_eq!(to[12..], [other[1], other[5], own[2], t as u32], "a neighbour's, and the last");
    }
}

#[test]
fn copies_of_warps_land_at_their_barrier() {
    let from: Vec<u32> = (0..96).map(|i| i * 7 + 3).collect();
    let to = run("bulk_copies", [1, 32], &from, &[0; 128], (0, 0));
    for (t, to) in to.chunks(4).enumerate() {
        assert_eq!(to, [u32::MAX, from[t], from[64 + 31 - t], from[32 + t]], "lane {t}");
    }
}

#[test]
fn barriers_order_what_threads_share() {
    let found = run("neighbours", [1, 128], &[0], &[0; 128], (0, 0));
    let mut bytes = [0u8; 512];
    for t in 0..128usize {
        (0..4).for_each(|i| bytes[t / 32 * 128 + i * 32 + t % 32] = (t + i) as u8);
    }
    let half =
        |bytes: &[u8], at: usize| u32::from(bytes[2 * at]) | u32::from(bytes[2 * at + 1]) << 8;
    let first = |t: usize| t / 32 * 64;
    let mut sums: Vec<u32> = (0..128)
        .map(|t| half(&bytes, first(t) + ((t % 32) ^ 1)) + half(&bytes, first(t) + 32 + t % 32))
        .collect();
    for t in 0..128 {
        bytes[t / 32 * 128 + t % 32 * 2 + 64] = 1;
        let at = t / 32 * 128 + t % 32 * 2;
        bytes[at..at + 2].copy_from_slice(&(sums[t] as u16).to_le_bytes());
    }
    for (t, sum) in sums.iter_mut().enumerate() {
        let at = first(t) / 2 + ((t % 32) ^ 3);
        *sum = sum.wrapping_add(half(&bytes, 2 * at) | half(&bytes, 2 * at + 1) << 16);
    }
    let total = |t: usize| (t % 4..128).step_by(4).fold(0u32, |sum, t| sum.wrapping_add(sums[t]));
    for (t, &found) in found.iter().enumerate() {
        assert_eq!(found, sums[127 - t].wrapping_add(total(t)), "thread {t}");
    }
}
