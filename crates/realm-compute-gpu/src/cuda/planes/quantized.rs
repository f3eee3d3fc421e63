//! Quantized formats: their integers as planes of bits.
//!
//! Of a chunk's weights a lane (g = lane / 4, c = lane % 4) has 32: eight *forms* of four bytes, where
//! form 2s + r holds row g + 8r, k 16s + 2c + {0, 8, 1, 9}. Integers of 8 bits lie so, 16 bytes a lane
//! and half chunk. Fewer bits are packed: the form's field of `WIDTH` bits a byte, moved up to bit
//! `PLACE` of each byte, is rotated into the word that it shares with the forms beside it. A rotation
//! back brings it to `PLACE` again, whatever stands in the other bits: the kernels mask those.

use realm_core::BlockFormat;

use super::{CHUNK, CHUNK_K, Planes, TILE_ROWS};

/// A quantized format's integers and scales.
pub(super) trait Quants: BlockFormat {
    /// Bits of an integer in the lower plane: 2, 4 or 8.
    const LOW: usize;
    /// Bits in the upper plane: 0, 1 or 2.
    const HIGH: usize;
    /// Where fields lie in a byte. The field of 7 bits and less ends at bit 6, where a mantissa does.
    const PLACE: usize = if Self::LOW == 8 { 0 } else { 7 - Self::LOW - Self::HIGH };
    /// Weights that share a scale; 64 where more do.
    const GROUP: usize;
    /// Whether groups have a minimum.
    const HAS_MIN: bool;
    /// Bytes of a block's scales; of a second part of them, in an array of its own.
    const HEADER: [usize; 2];

    /// The block's integers, as unsigned numbers of `LOW + HIGH` bits.
    fn integers(&self, out: &mut [u8]);
    /// The block's scales, in as many bits as the format has.
    fn header(&self, first: &mut [u8], second: &mut [u8]);
}

impl<F: Quants> Planes for F {
    const TILE_BYTES: usize = tile_bytes::<F>();
    const STAGE_TILES: usize = 256 / F::TILE_K;
    const TABLE_BYTES: usize = {
        let floats = if F::HAS_MIN { 2 } else { 1 } * 256 / F::GROUP;
        // Four more, so that rows lie in different banks.
        TILE_ROWS * (floats + 4) * size_of::<f32>()
    };
    const GROUP: usize = <F as Quants>::GROUP;

    fn pack_tile(rows: &[&[Self]; TILE_ROWS], tile: &mut [u8]) {
        // As many as the largest tile needs.
        let mut integers = [0; TILE_ROWS * 256];
        let (chunks, headers) = tile.split_at_mut(F::TILE_K * TILE_ROWS * bits::<F>() / 8);
        headers.fill(0);
        let row_headers = F::HEADER.map(|bytes| bytes * F::TILE_K / F::LEN);
        let (firsts, seconds) = headers.split_at_mut(TILE_ROWS * row_headers[0]);
        for (row, blocks) in rows.iter().enumerate() {
            for (at, block) in blocks.iter().enumerate() {
                block.integers(&mut integers[row * F::TILE_K + at * F::LEN..][..F::LEN]);
                block.header(
                    &mut firsts[row * row_headers[0] + at * F::HEADER[0]..][..F::HEADER[0]],
                    &mut seconds[row * row_headers[1] + at * F::HEADER[1]..][..F::HEADER[1]],
                );
            }
        }
        for (at, chunk) in chunks.chunks_exact_mut(CHUNK / 8 * bits::<F>()).enumerate() {
            pack_chunk::<F>(&forms(&integers[at * CHUNK_K..], F::TILE_K), chunk);
        }
    }
}

const fn bits<F: Quants>() -> usize {
    F::LOW + F::HIGH
}

const fn tile_bytes<F: Quants>() -> usize {
    let tile_k = if F::LEN > CHUNK_K { F::LEN } else { CHUNK_K };
    let headers = (F::HEADER[0] + F::HEADER[1]) * tile_k / F::LEN;
    let bytes = TILE_ROWS * (tile_k * bits::<F>() / 8 + headers);
    assert!(bytes.is_multiple_of(16), "the kernels copy 16 bytes at a time");
    bytes
}

/// Eight forms of 32 lanes.
type Forms = [[u32; 32]; 8];

/// The forms of a chunk; `integers` has a row's every `stride` bytes.
fn forms(integers: &[u8], stride: usize) -> Forms {
    let mut forms = [[0; 32]; 8];
    for row in 0..TILE_ROWS {
        let (steps, _) = integers[row * stride..][..CHUNK_K].as_chunks::<16>();
        for (step, step_integers) in steps.iter().enumerate() {
            // Four lanes' bytes {0, 8, 1, 9}, {2, 10, 3, 11}…: the halves of 16 interleaved.
            let (low, high) = step_integers.split_at(8);
            let mut zipped = [0; 16];
            for i in 0..8 {
                zipped[2 * i] = low[i];
                zipped[2 * i + 1] = high[i];
            }
            let (words, _) = zipped.as_chunks::<4>();
            let lanes = &mut forms[2 * step + row / 8][row % 8 * 4..][..4];
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = u32::from_le_bytes(*word);
            }
        }
    }
    forms
}

fn pack_chunk<F: Quants>(forms: &Forms, chunk: &mut [u8]) {
    let (low, high) = chunk.split_at_mut(CHUNK / 8 * F::LOW);
    match F::LOW {
        2 => pack_plane::<2, 2>(forms, 0, F::PLACE, low),
        4 => pack_plane::<4, 4>(forms, 0, F::PLACE, low),
        _ => {
            let (first, second) = low.split_at_mut(CHUNK / 2);
            let (forms, _) = forms.as_chunks::<4>();
            pack_words(&forms[0], first);
            pack_words(&forms[1], second);
        }
    }
    match F::HIGH {
        1 => pack_plane::<1, 1>(forms, F::LOW, F::PLACE + F::LOW, high),
        2 => pack_plane::<2, 2>(forms, F::LOW, F::PLACE + F::LOW, high),
        _ => {}
    }
}

/// Packs fields of `WIDTH` bits, which stand at bit `from` of each byte of a form: as many words a
/// lane (`WORDS`) as a field has bits.
fn pack_plane<const WIDTH: usize, const WORDS: usize>(
    forms: &Forms,
    from: usize,
    place: usize,
    plane: &mut [u8],
) {
    let mask = 0x0101_0101 * ((1 << WIDTH) - 1);
    let mut words = [[0u32; 32]; WORDS];
    for (form, lanes) in forms.iter().enumerate() {
        let (word, turn) = (form * WIDTH / 8, form * WIDTH % 8);
        for (word, lane) in words[word].iter_mut().zip(lanes) {
            *word |= ((lane >> from & mask) << place).rotate_left(turn as u32);
        }
    }
    pack_words(&words, plane);
}

/// Writes the lanes' words, a lane's side by side.
fn pack_words<const WORDS: usize>(words: &[[u32; 32]; WORDS], plane: &mut [u8]) {
    let (to, _) = plane.as_chunks_mut::<4>();
    for (lane, to) in to.chunks_exact_mut(WORDS).enumerate() {
        for (to, word) in to.iter_mut().zip(words) {
            *to = word[lane].to_le_bytes();
        }
    }
}
