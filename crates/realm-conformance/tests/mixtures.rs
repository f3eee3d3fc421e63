//! Mixtures of experts in the graph: what the reference interpreter makes of numbers small enough to
//! check by hand, what is refused, what pictures, costs, plans, cuts and rewrites make of the ops.

use realm_conformance::{
    Case,
    case::CaseBuilder,
    cases::model::{count, mixture},
    random::Random,
    run,
};
use realm_core::{
    DType, Graph,
    backend::{KvType, Limits},
    cost::{self, SequenceShape, StepShape},
    cut::cut,
    fuse,
    graph::{GraphBuilder, Mixture, Op, Value, WeightInfo, ops::Activation},
    plan::BufferPlan,
    reference::ReferenceBackend,
};

/// The first row of the results of a case whose rows are all alike.
fn row(case: Case) -> Vec<f32> {
    let logits = run::run(&case.rows(2), &ReferenceBackend::new(8), 1).unwrap()[0].logits.clone();
    let (first, second) = logits.split_at(logits.len() / 2);
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(first), bits(second));
    first.to_vec()
}

/// What a row with these logits makes of the choice: its weights and who was chosen.
fn choice(logits: &[f32], used: usize, normalized: bool) -> (Vec<f32>, Vec<f32>) {
    let result = |numbers: bool| {
        let mut random = Random::new(1);
        let mut case = CaseBuilder::new(&mut random, 1);
        let table = case.values("logits", [1, logits.len()], logits);
        let logits_value = case.graph.embed(table);
        let [experts, weights] = case.graph.moe_route(logits_value, used, normalized);
        let own: Vec<f32> = (0..logits.len()).map(|at| at as f32).collect();
        let own = case.values("own", [logits.len(), 1], &own);
        let ones = case.values("ones", [1, used], &vec![1.0; used]);
        let ones = case.graph.embed(ones);
        let chosen = case.graph.moe_linear(ones, (experts, logits.len()), own);
        row(case.finish("choice", if numbers { chosen } else { weights }))
    };
    (result(false), result(true))
}

#[test]
fn the_largest_are_chosen_and_of_equals_the_first() {
    let two = 2f32.ln();
    // Softmax of all: 1, 2, 4, 1 of 8.
    let logits = [0.0, two, 2.0 * two, 0.0];
    let near = |found: Vec<f32>, expected: &[f32]| {
        let pairs = found.iter().zip(expected);
        assert!(pairs.clone().all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}, not {expected:?}");
        assert_eq!(found.len(), expected.len());
    };
    let (weights, experts) = choice(&logits, 3, false);
    near(weights, &[0.5, 0.25, 0.125]);
    assert_eq!(experts, [2.0, 1.0, 0.0]);
    near(choice(&logits, 3, true).0, &[4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0]);
    near(choice(&logits, 1, true).0, &[1.0]);
    assert_eq!(choice(&[-1.0; 5], 5, true).1, [0.0, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!(choice(&[0.0, -0.0, f32::NEG_INFINITY], 3, true).1, [0.0, 1.0, 2.0]);
    let (weights, experts) = choice(&[f32::NAN, 1.0, f32::NAN, 2.0], 3, true);
    assert_eq!(experts, [3.0, 1.0, 0.0]);
    assert!(weights.iter().all(|weight| weight.is_nan()));
    near(choice(&[f32::NAN, 1.0, f32::NAN, 1.0], 2, true).0, &[0.5, 0.5]);
    near(choice(&[1000.0, -1000.0], 2, false).0, &[1.0, 0.0]);
}

#[test]
fn experts_answer_for_their_slots() {
    let mut random = Random::new(1);
    let mut case = CaseBuilder::new(&mut random, 1);
    let logits = case.values("logits", [1, 3], &[0.0, 5.0, 5.0]);
    let logits = case.graph.embed(logits);
    let [experts, weights] = case.graph.moe_route(logits, 2, true);
    let x = case.values("x", [1, 2], &[1.0, 10.0]);
    let x = case.graph.embed(x);
    // Each expert has two rows: [e, 0] and [0, e]; the gates are 0, which GELU leaves 0, or 100,
    // which it leaves 100.
    let up = case.values("up", [6, 2], &[0., 0., 0., 0., 1., 0., 0., 1., 2., 0., 0., 2.]);
    let gate = case.values("gate", [6, 2], &[0., 0., 0., 0., 100., 0., 0., 10., 100., 0., 0., 0.]);
    let gated = case.graph.moe_gated_linear(x, (experts, 3), [gate, up], Activation::Gelu);
    let down = [9., 9., 1., 1., 1., -1.];
    let down = case.values("down", [3, 2], &down);
    let fed = case.graph.moe_linear(gated, (experts, 3), down);
    let output = case.graph.moe_sum(fed, weights);
    // Experts 1 and 2: (100, 1000) and (200, 0); 1100 and 200; half of each.
    assert_eq!(row(case.finish("slots", output)), [650.0]);
}

/// The graph of a mixture over given shapes, or why there is none.
fn built(
    [count, used]: [usize; 2],
    gate: [usize; 2],
    down: [usize; 2],
    dtype: DType,
) -> Result<Graph, String> {
    let mut graph = GraphBuilder::new();
    let weight = |graph: &mut GraphBuilder, name: &str, [rows, cols]: [usize; 2], dtype| {
        graph.weight(WeightInfo { name: name.into(), rows, cols, dtype })
    };
    let table = weight(&mut graph, "table", [5, 64], DType::F32);
    let router = weight(&mut graph, "router", [count, 64], DType::F32);
    let gate_weight = weight(&mut graph, "gate", gate, dtype);
    let up = weight(&mut graph, "up", gate, dtype);
    let down = weight(&mut graph, "down", down, dtype);
    let x = graph.embed(table);
    let logits = graph.linear(x, router, None);
    let [experts, weights] = graph.moe_route(logits, used, true);
    let chosen = (experts, count);
    let gated = graph.moe_gated_linear(x, chosen, [gate_weight, up], Activation::Silu);
    let fed = graph.moe_linear(gated, chosen, down);
    let output = graph.moe_sum(fed, weights);
    let rows = graph.gather_rows(output);
    graph.finish(rows).map_err(|error| error.to_string())
}

#[test]
fn what_does_not_fit_is_said() {
    let fits = [[4, 2], [4 * 32, 64], [4 * 7, 32]];
    assert!(built(fits[0], fits[1], fits[2], DType::Q8_0).is_ok());
    for (route, gate, down, problem) in [
        ([4, 0], fits[1], fits[2], "0 of 4 experts cannot be chosen; 1 to 4 can"),
        ([4, 5], fits[1], fits[2], "5 of 4 experts cannot be chosen; 1 to 4 can"),
        ([0, 1], fits[1], fits[2], "1 of 0 experts"),
        (fits[0], [4 * 32 + 1, 64], fits[2], "gate is [129, 64], [4 experts · 32, 64] is needed"),
        (fits[0], [3, 64], fits[2], "gate is [3, 64], [4 experts · 0, 64] is needed"),
        (fits[0], [4 * 32, 32], fits[2], "gate is [128, 32], [4 experts · 32, 64] is needed"),
        (fits[0], fits[1], [4 * 7, 64], "down is [28, 64], [4 experts · 7, 32] is needed"),
        (fits[0], [4 * 33, 64], [4 * 7, 33], "down: rows of 33 are no whole Q8_0 blocks"),
    ] {
        let error = built(route, gate, down, DType::Q8_0).unwrap_err();
        assert!(error.contains(problem) && error.contains("Moe"), "{error}, not {problem}");
    }
    // Any numbers are no choice, and slots must fit the weights.
    let mut graph = GraphBuilder::new();
    let info = WeightInfo { name: "table".into(), rows: 6, cols: 6, dtype: DType::F32 };
    let table = graph.weight(info);
    let x = graph.embed(table);
    let product = graph.moe_linear(x, (x, 1), table);
    let rows = graph.gather_rows(product);
    let error = graph.finish(rows).unwrap_err().to_string();
    assert!(error.contains("table are no chosen experts"), "{error}");
}

fn mixture_of(dtype: DType) -> Graph {
    mixture(&mut Random::new(7), dtype).graph
}

#[test]
fn pictures_say_how_many_experts_are_used() {
    let picture = mixture_of(DType::Q4_K).to_mermaid();
    assert!(picture.contains("<b>MoeRoute</b><br/>2 of 6 experts"), "{picture}");
    assert!(picture.contains("blk.*.ffn_gate_exps Q4_K [3072, 256]"), "{picture}");
    assert!(picture.contains("layers 0 to 1, all alike"), "{picture}");
}

#[test]
fn costs_count_the_experts_of_a_row() {
    let graph = mixture_of(DType::Q8_0);
    let cost = |rows| {
        let sequences = [SequenceShape { cached: 0, rows }];
        let step = StepShape { sequences: &sequences, outputs: 1, kv_type: KvType::F16 };
        let moe = graph.nodes().iter().filter(|node| node.op.name().starts_with("Moe"));
        moe.map(|node| cost::node(&graph, node, &step)).sum::<cost::Cost>()
    };
    // Two layers, two experts a row, three matrices of 256 × 512.
    let elements = 2 * 2 * 3 * 256 * 512u64;
    assert_eq!(cost(1).weight_bytes, elements / 32 * 34);
    assert_eq!(cost(1).ops, 2 * elements);
    assert_eq!((cost(5).weight_bytes, cost(5).ops), (cost(1).weight_bytes, 5 * cost(1).ops));
    assert_eq!(cost(0), cost::Cost::default());
    let precisions = |graph: &Graph| -> Vec<_> {
        let asked = realm_core::backend::Precision::Int8;
        let moe = graph.nodes().iter().filter(|node| node.op.name().contains("Moe"));
        moe.map(|node| cost::precision(graph, node, asked) == asked).take(4).collect()
    };
    assert_eq!(precisions(&graph), [false, true, true, false]);
    assert_eq!(precisions(&mixture_of(DType::F16)), [false; 4]);
}

#[test]
fn sizes_follow_from_the_shapes() {
    let graph = mixture_of(DType::Q8_0);
    let mixtures = graph.nodes().iter().filter_map(|node| match &node.op {
        Op::MoeGatedLinear(op) => Some(graph.mixture(op.experts, op.output, op.up)),
        Op::MoeLinear(op) => Some(graph.mixture(op.experts, op.output, op.weight)),
        _ => None,
    });
    let of = |n| Mixture { count: 6, used: 2, n };
    assert_eq!(mixtures.collect::<Vec<_>>(), [of(512), of(256), of(512), of(256)]);
}

#[test]
fn buffers_of_slots_are_planned() {
    let graph = mixture_of(DType::Q8_0);
    let limits = Limits { tokens: 33, outputs: 5, sequences: 3 };
    let plan = BufferPlan::new(&graph, &limits);
    let range = |value: Value| {
        let start = plan.offsets[value.index()].unwrap();
        start..start + 33 * graph.value(value).cols * 4
    };
    for node in graph.nodes().iter().filter(|node| node.op.name().starts_with("Moe")) {
        for output in node.op.outputs().into_iter().map(range) {
            for input in node.op.inputs().into_iter().map(range) {
                assert!(input.end <= output.start || output.end <= input.start);
            }
        }
    }
}

#[test]
fn rewrites_leave_mixtures_as_they_are() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let backend = ReferenceBackend::new(16);
    let mut case = mixture(&mut Random::new(seed), DType::F32);
    let plain = run::run(&case, &backend, seed).unwrap();
    fuse::fuse(&mut case.graph);
    case.graph.validate().unwrap();
    assert_eq!(plain, run::run(&case, &backend, seed).unwrap());
    // q, k, v in one; the router reads the same rows as gate and up, and stays apart.
    let names = ["Linear", "MoeRoute", "MoeGatedLinear", "MoeLinear", "MoeSum", "Add"];
    assert_eq!(names.map(|name| count(&case.graph, name)), [2 * 3 + 1, 2, 2, 2, 2, 1]);
}

#[test]
fn a_mixture_is_cut_between_its_layers() {
    let mut graph = mixture_of(DType::Q8_0);
    fuse::fuse(&mut graph);
    let cut = cut(&graph, 1).unwrap();
    for (part, layer) in [(&cut.first.graph, 0), (&cut.second.graph, 1)] {
        assert_eq!(count(part, "MoeGatedLinear"), 1);
        for node in part.nodes().iter().filter(|node| node.op.name().starts_with("Moe")) {
            for weight in node.op.weights() {
                assert!(part.weight(weight).name.starts_with(&format!("blk.{layer}.ffn_")));
            }
        }
    }
}
