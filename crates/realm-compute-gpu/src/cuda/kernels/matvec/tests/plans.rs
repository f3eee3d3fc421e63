//! How launches are shaped: slices from a weight's shape alone, teams and rings by the device.

use super::*;
use crate::cuda::bench::FORMATS;

#[test]
fn shapes_alone_choose_the_slices() {
    assert_eq!(slices(256, 16, 1), 16);
    assert_eq!(slices(896, 16, 1), 8);
    assert_eq!(slices(896, 16, 2), 4);
    assert_eq!(slices(8016, 16, 1), 4);
    assert_eq!(slices(1, 3, 1), 3);
    assert_eq!(slices(1, 0, 1), 0);
    // Equally long, if that takes little from their number; otherwise nearly.
    assert_eq!(slices(256, 56, 1), 14);
    assert_eq!(slices(320, 20, 1), 10);
    assert_eq!(slices(256, 43, 1), 15);
    assert_eq!(slices(256, 17, 1), 10);
}

/// Devices by the bytes of shared memory of a block and of a multiprocessor, and multiprocessors.
fn device(shared_memory: u32, multiprocessor_shared_memory: u32, multiprocessors: u32) -> Facts {
    Facts {
        name: "cuda:0".into(),
        description: "a test".into(),
        memory: None,
        shared_memory: shared_memory << 10,
        multiprocessors,
        multiprocessor_shared_memory: multiprocessor_shared_memory << 10,
        wgmma: true,
    }
}

fn room<'a>(
    dtype: DType,
    precision: Precision,
    rows: usize,
    slices: usize,
    slice_stages: usize,
    facts: &'a Facts,
) -> Room<'a> {
    let (stage, form) = (Stage::of(dtype), input_form(dtype, precision));
    let variant = Variant::of(form, rows, stage.group);
    let columns = rows.min(variant.group_rows(form)) * form.columns();
    Room {
        slot: BARRIER_BYTES + stage.bytes + columns * variant.column_bytes(form, stage.k),
        head: variant.head_bytes(&stage),
        columns,
        slices,
        matrices: 1,
        slice_stages,
        most_warps: variant.most_warps(stage.group),
        registers: variant.registers(stage.group),
        blocks: 256,
        facts,
    }
}

/// Shared memory for all formats: within bounds for the most columns, and enough that copies overlap.
#[test]
fn rings_fit() {
    for &dtype in DType::ALL {
        for precision in PRECISIONS {
            for facts in [device(99, 100, 142), device(163, 164, 108), device(227, 228, 132)] {
                for (rows, slice_stages) in [(1, 1), (1, 2), (1, 7), (8, 1), (8, 2), (8, 7)] {
                    let room = room(dtype, precision, rows, 16, slice_stages, &facts);
                    let plan = room.plan();
                    let what = format!("{dtype} at {precision}, {rows} rows: {plan:?}");
                    assert!(plan.bytes <= facts.shared_memory as usize, "{what}");
                    assert!(plan.ring >= 2 || slice_stages == 1 && plan.team == 16, "{what}");
                }
            }
        }
    }
}

/// The formats and shapes that decoding at full speed is about, at one row. A multiprocessor's share of
/// 4.8 TB/s for the 1.2 µs that a copy takes is some 43 KiB: that many bytes of planes have to be on
/// their way, and 12 warps to have a product each in progress, on every multiprocessor; or else all of
/// the weight's slices, where it has fewer, are.
#[test]
fn one_row_keeps_a_multiprocessor_busy() {
    let shapes =
        [(14336, 4096, 1), (14336, 4096, 2), (4096, 14336, 1), (4096, 4096, 1), (1024, 4096, 1)];
    let shapes = shapes.into_iter().chain([(6144, 4096, 1), (128_256, 4096, 1)]);
    let facts = device(227, 228, 132);
    for (n, k, matrices) in shapes {
        for dtype in FORMATS {
            let stage = Stage::of(dtype);
            let (tiles, stages) = (n / TILE_ROWS, k / stage.k);
            let slices = slices(tiles, stages, matrices);
            let room = Room {
                blocks: tiles,
                matrices,
                ..room(dtype, Precision::BF16, 1, slices, stages.div_ceil(slices), &facts)
            };
            let plan = room.plan();
            let (warps, waves) = (room.warps_at_work(&plan), room.waves(&plan));
            let flying = warps * plan.ring * stage.bytes;
            let resident = room.resident_blocks(&plan) * plan.team * matrices;
            let what = format!(
                "{dtype} {n}x{k}x{matrices}: {slices} slices, team {}, ring {}, {} bytes, {resident} resident, \
                 {waves} waves, {warps} at work, {flying} bytes in flight",
                plan.team, plan.ring, plan.bytes
            );
            println!("{what}");
            let all = waves == 1 && plan.team == slices;
            assert!(all || warps >= 12 && flying >= 43 << 10, "{what}");
        }
    }
}
