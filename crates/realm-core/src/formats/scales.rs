//! The 12-byte packing of eight 6-bit scales and eight 6-bit minima in Q4_K and Q5_K.

/// The scales and minima (0..64) of the eight groups of a Q4_K or Q5_K block.
///
/// Groups 0..4: scale in the lower six bits of byte g, minimum in those of byte 4 + g. Groups
/// 4..8: lower four bits in the low (scale) and high (minimum) nibble of byte 4 + g, upper two in
/// the top bits of bytes g − 4 (scale) and g (minimum).
#[inline]
pub fn unpack_scales_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for g in 0..4 {
        scales[g] = packed[g] & 63;
        mins[g] = packed[g + 4] & 63;
        scales[g + 4] = packed[g + 8] & 15 | (packed[g] >> 6) << 4;
        mins[g + 4] = packed[g + 8] >> 4 | (packed[g + 4] >> 6) << 4;
    }
    (scales, mins)
}

/// Inverse of [`unpack_scales_mins`]; every input is below 64.
pub fn pack_scales_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for g in 0..4 {
        packed[g] = scales[g] | (scales[g + 4] >> 4) << 6;
        packed[g + 4] = mins[g] | (mins[g + 4] >> 4) << 6;
        packed[g + 8] = scales[g + 4] & 15 | mins[g + 4] << 4;
    }
    packed
}
