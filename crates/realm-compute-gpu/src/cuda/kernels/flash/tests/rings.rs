//! Sequences of so many steps that the rings in shared memory come round several times.

use realm_core::graph::{KvLayer, ops::Mask};

use super::{
    KINDS,
    definition::{Setup, check, spec},
    devices,
};

fn outrun(head_dim: usize, lengths: [usize; 2]) {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for (kv_type, precision) in KINDS {
            let layer = KvLayer { heads: 1, head_dim };
            let [low, high] = lengths;
            let length = low + random.below(high - low);
            let count = 1 + random.below(9);
            let rows = [(length - count..length, length), (0..3, 3)];
            let setup = Setup::new(&gpu, &mut random, layer, kv_type, &rows);
            let window = random.pick(&[None, None, Some(length - 70)]);
            let mut spec = spec(random.pick(&[2, 5]), head_dim, Mask { causal: true, window });
            spec.soft_cap = random.pick(&[None, Some(4.0)]);
            let off = check(&setup, &mut random, &spec, precision, false);
            println!("{kv_type} {precision:?}, {count} of {length} rows: {off:.2} of the room");
        }
    }
}

#[test]
fn rings_come_round_with_heads_of_64() {
    outrun(64, [1100, 1500]);
}

#[test]
fn rings_come_round_with_heads_of_128() {
    outrun(128, [800, 1100]);
}

#[test]
fn rings_come_round_with_heads_of_256() {
    outrun(256, [400, 600]);
}
