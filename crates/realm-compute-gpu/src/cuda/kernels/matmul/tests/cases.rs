//! Several weights, gates, experts, splits of k, ranges of rows.

use realm_core::{Bytes, graph::WeightInfo};

use super::*;

/// Several weights of one input, each as it is alone.
#[test]
fn weights_together() {
    for mut rig in rigs("together") {
        for (dtype, form) in
            [(DType::Q4_K, Form::BF16), (DType::Q8_0, Form::F16), (DType::BF16, Form::F16)]
        {
            let k = if dtype.is_float() { 77 } else { dtype.block_len() };
            let [first, end, bucket] = [5, 43, 50];
            let input = rig.input(form, end, bucket, k);
            let memory = Memory::new(&rig, first, end);
            let case = Case::new(&input, bucket, first, &memory);
            let sizes = [17, 130, 16, 1];
            let weights = sizes.map(|n| rig.weight(dtype, n, k));
            let biases = sizes.map(|n| rig.bias(n));
            let targets: [_; 4] =
                std::array::from_fn(|i| target(&rig, TARGETS[i], [first, end, bucket], sizes[i]));
            let bias = |i: usize| (i != 2).then_some(&biases[i].1);
            let segments: Vec<_> =
                (0..SEGMENTS).map(|i| segment(&weights[i], bias(i), &targets[i])).collect();
            case.run(&rig, &segments, None);
            for i in 0..SEGMENTS {
                let alone = target(&rig, Form::F32, [first, end, bucket], sizes[i]);
                case.run(&rig, &[segment(&weights[i], bias(i), &alone)], None);
                targets[i].check(&alone.plain());
            }
        }
    }
}

/// Gated products, with and without biases, in each form.
#[test]
fn gated() {
    for mut rig in rigs("gated") {
        for (dtype, form, n) in [
            (DType::Q4_K, Form::BF16, 77),
            (DType::Q6_K, Form::F16, 64),
            (DType::F16, Form::F16, 5),
        ] {
            let k = if dtype.is_float() { 130 } else { dtype.block_len() };
            let [first, end, bucket] = [1, 70, 71];
            let (gate, up) = (rig.weight(dtype, n, k), rig.weight(dtype, n, k));
            let input = rig.input(form, end, bucket, k);
            let ((bias, bias_memory), memory) = (rig.bias(n), Memory::new(&rig, first, end));
            let rows = &input.values[first * k..];
            let gates = Expected::with(rows, k, &gate, Some(form), &bias);
            let ups = Expected::with(rows, k, &up, Some(form), &vec![0.0; n]);
            for (at, activation) in
                [Activation::Silu, Activation::GeluTanh, Activation::Gelu].into_iter().enumerate()
            {
                let case = Case {
                    activation: Some(activation),
                    ..Case::new(&input, bucket, first, &memory)
                };
                let run = |form: Form, size: Option<usize>| {
                    let to = target(&rig, form, [first, end, bucket], n);
                    let segments =
                        [segment(&gate, Some(&bias_memory), &to), segment(&up, None, &to)];
                    case.run(&rig, &segments, size);
                    to
                };
                let plain = run(Form::F32, None).plain();
                let expected = Expected::gated(&gates, &ups, activation);
                expected.check_to(4.0 * tolerance(dtype), &plain, &format!("{dtype}, {case:?}"));
                for &size in sizes(&rig) {
                    run(TARGETS[1 + at], Some(size)).check(&plain);
                }
            }
        }
    }
}

/// A range of no rows writes nothing, and ends.
#[test]
fn no_rows() {
    for mut rig in rigs("no rows") {
        for dtype in [DType::Q4_K, DType::Q4_0, DType::F32] {
            for (first, end) in [(0, 0), (7, 7), (9, 3)] {
                let weight = rig.weight(dtype, 40, 256);
                let (input, memory) =
                    (rig.input(Form::BF16, 9, 80, 256), Memory::new(&rig, first, end));
                let to = rig.target(Form::BF16, 0, 80, 40);
                for invariant in [false, true] {
                    let case = Case { invariant, ..Case::new(&input, 80, first, &memory) };
                    case.run(&rig, &[segment(&weight, None, &to)], None);
                    assert!(to.bytes().is_empty());
                }
            }
        }
    }
}

/// A row has the same bits wherever it stands, and among however many others.
#[test]
fn rows_keep_their_bits() {
    for mut rig in rigs("rows keep their bits") {
        for (dtype, form) in [(DType::Q4_K, Form::F16), (DType::F32, Form::BF16)] {
            let (n, k) = (33, 512);
            let weight = rig.weight(dtype, n, k);
            let counts = [1, 40, 130, 300];
            let row = rig.input(form, 1, 1, k);
            let bytes = row.bytes();
            let mut before = None;
            for count in counts {
                let at = rig.random.below(count);
                let input = rig.input(form, count, count, k);
                input.put(at, &bytes);
                let memory = Memory::new(&rig, 0, count);
                let to = rig.target(Form::F32, count, count, n);
                Case::new(&input, count, 0, &memory).run(
                    &rig,
                    &[segment(&weight, None, &to)],
                    None,
                );
                let found = bits(&to.plain()[at * n..][..n]);
                assert_eq!(*before.get_or_insert_with(|| found.clone()), found, "{count} rows");
            }
        }
    }
}

/// Where k is split, the sums are right, and the counters are ready for the next launch.
#[test]
fn splits_of_k() {
    for mut rig in rigs("splits") {
        for (dtype, form, n, activation) in [
            (DType::Q4_K, Form::BF16, 130, None),
            (DType::Q8_0, Form::F16, 17, Some(Activation::Silu)),
            (DType::BF16, Form::BF16, 40, None),
        ] {
            let k = if dtype.is_float() { 700 } else { 2560 };
            let [first, end, bucket] = [2, 41, 45];
            let weights = [0; 2].map(|_| rig.weight(dtype, n, k));
            let biases = [0; 2].map(|_| rig.bias(n));
            let input = rig.input(form, end, bucket, k);
            let memory = Memory::new(&rig, first, end);
            let invariant = false;
            let case = Case { activation, invariant, ..Case::new(&input, bucket, first, &memory) };
            let rows = &input.values[first * k..];
            let [one, two] = [0, 1]
                .map(|i: usize| Expected::with(rows, k, &weights[i], Some(form), &biases[i].0));
            let expected = activation.map_or(one.clone(), |a| Expected::gated(&one, &two, a));
            for bytes in [SCRATCH_BYTES, 200_000] {
                for _ in 0..2 {
                    let to = target(&rig, Form::F32, [first, end, bucket], n);
                    let segments =
                        [0, 1].map(|i: usize| segment(&weights[i], Some(&biases[i].1), &to));
                    let segments = &segments[..if activation.is_some() { 2 } else { 1 }];
                    let mut product = case.product(segments);
                    product.scratch.bytes = bytes;
                    let launch = launch(&product).unwrap();
                    assert!(launch.grid[2] > 1, "{:?}", launch.grid);
                    rig.gpu.launch(&launch).unwrap();
                    expected.check_to(
                        4.0 * tolerance(dtype),
                        &to.plain(),
                        &format!("{dtype}, {bytes} bytes, {:?}", launch.grid),
                    );
                }
            }
        }
    }
}

/// Each row has the weights of its expert; experts without rows are skipped.
#[test]
fn experts() {
    for mut rig in rigs("experts") {
        for (dtype, form, activation, n) in [
            (DType::Q4_K, Form::BF16, None, 16),
            (DType::Q8_0, Form::F16, Some(Activation::Silu), 37),
        ] {
            let (count, k) = (40, 256);
            let mut starts = vec![0u32; count + 1];
            for expert in 0..count {
                let rows = [0, 3, 0, 1, 33][expert % 5] + if expert == 37 { 100 } else { 0 };
                starts[expert + 1] = starts[expert] + rows;
            }
            let end = starts[count] as usize;
            let weights = [0; 2].map(|_| rig.weight(dtype, count * n, k));
            let biases = [0; 2].map(|_| rig.bias(count * n));
            let (input, memory) = (rig.input(form, end, end, k), Memory::new(&rig, 0, end));
            let starts_memory = rig.upload(starts.as_bytes());
            let case = Case { activation, ..Case::new(&input, end, 0, &memory) };
            let to = rig.target(Form::F32, end, end, n);
            let segments = [0, 1].map(|i: usize| segment(&weights[i], Some(&biases[i].1), &to));
            let product = case.product(&segments[..if activation.is_some() { 2 } else { 1 }]);
            // The last row of the input is the first of the target.
            let order: Vec<u32> = (0..end as u32).rev().collect();
            let order_memory = rig.upload(order.as_bytes());
            let (starts_at, order) = (starts_memory.address(), order_memory.address());
            let table = Experts { count, starts: starts_at, order };
            rig.gpu.launch(&grouped(&product, table).unwrap()).unwrap();
            let backwards = to.plain();
            to.data.fill(0xFF).unwrap();
            let table = Experts { count, starts: starts_at, order: 0 };
            rig.gpu.launch(&grouped(&product, table).unwrap()).unwrap();
            let found = to.plain();
            let rows = backwards.chunks_exact(n).rev().flatten().map(|value| value.to_bits());
            assert_eq!(rows.collect::<Vec<_>>(), bits(&found));
            for expert in 0..count {
                let rows = starts[expert] as usize..starts[expert + 1] as usize;
                let [one, two] = [0, 1].map(|i: usize| {
                    let values = weights[i].values[expert * n * k..][..n * k].to_vec();
                    let weight = Loaded { weight: weights[i].weight.clone(), values };
                    let x = &input.values[rows.start * k..rows.end * k];
                    Expected::with(x, k, &weight, Some(form), &biases[i].0[expert * n..][..n])
                });
                let expected = activation.map_or(one.clone(), |a| Expected::gated(&one, &two, a));
                let found = &found[rows.start * n..rows.end * n];
                expected.check_to(4.0 * tolerance(dtype), found, &format!("{dtype}, {expert}"));
            }
        }
    }
}

/// What a weight of infinities and NaN gives is no number, in the rows that it concerns.
#[test]
fn weights_that_are_no_numbers() {
    for mut rig in rigs("no numbers") {
        let (n, k) = (20, 512);
        for dtype in [DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::F16, DType::F32] {
            let mut data = rig.random.matrix(n, k, dtype, 0.5);
            let row = dtype.row_bytes(k).unwrap();
            data[3 * row..3 * row + row / 2].fill(0xff);
            data[17 * row..18 * row].fill(0xff);
            let mut values = vec![0.0; n * k];
            dtype.decode(&data, &mut values);
            let info = WeightInfo { name: "bad".into(), rows: n, cols: k, dtype };
            let weight = rig.loader.load(&info, Bytes::from(data)).unwrap();
            let weight = Loaded { weight, values };
            for form in FORMS {
                let (input, memory) = (rig.input(form, 1, 1, k), Memory::new(&rig, 0, 1));
                let to = rig.target(Form::F32, 1, 1, n);
                Case::new(&input, 1, 0, &memory).run(&rig, &[segment(&weight, None, &to)], None);
                for (row, value) in to.plain().iter().enumerate() {
                    let bad = weight.values[row * k..][..k].iter().any(|value| !value.is_finite());
                    assert_eq!(value.is_finite(), !bad, "{dtype} in {form:?}, row {row}");
                }
            }
        }
    }
}

/// A plan's blocks cover all rows and all of k, in the memory that there is.
#[test]
fn plans_cover_what_they_are_for() {
    for rig in rigs("plans") {
        for &dtype in DType::ALL {
            for (k, rows, blocks) in [(1, 1, 1), (4096, 9, 32), (11008, 33, 300), (77, 512, 5)] {
                for (may_split, scratch, experts) in
                    [(true, SCRATCH_BYTES, None), (true, 1 << 20, None), (false, 0, Some(7))]
                {
                    let facts = rig.gpu.facts();
                    let problem =
                        Problem { dtype, k, rows, experts, blocks, may_split, scratch, facts };
                    let plan = plan::choose(&problem);
                    let stages = k.div_ceil(crate::cuda::planes::Stage::of(dtype).k);
                    assert!(plan.splits * plan.split_stages >= stages, "{plan:?}");
                    assert!((plan.splits - 1) * plan.split_stages < stages, "{plan:?}");
                    assert!(plan.groups(rows, None) * plan.n >= rows, "{plan:?}");
                    let info = WeightInfo { name: String::new(), rows: 16, cols: k, dtype };
                    assert!(plan.shared(&info) <= 227 * 1024, "{plan:?}");
                    let partials = blocks * plan.groups(rows, None) * plan.splits * 512 * plan.n;
                    assert!(plan.splits == 1 || partials <= scratch, "{plan:?}");
                }
            }
        }
    }
}
