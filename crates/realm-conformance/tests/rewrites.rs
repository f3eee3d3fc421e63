//! Each fusion rewrite against the graph it came from, on the reference interpreter.

use realm_conformance::{
    Case,
    cases::model::{count, llama},
    random::Random,
    run,
};
use realm_core::{
    DType, Graph, backend::Limits, fuse, plan::BufferPlan, reference::ReferenceBackend,
};

/// The logits of the plain and the rewritten graph, step after step.
fn compare(rewrite: fn(&mut Graph)) -> Graph {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let backend = ReferenceBackend::new(16);
    let mut case: Case = llama(&mut Random::new(seed), DType::F32);
    let plain = run::run(&case, &backend, seed).unwrap();
    rewrite(&mut case.graph);
    case.graph.validate().unwrap();
    let rewritten = run::run(&case, &backend, seed).unwrap();
    for (plain, rewritten) in plain.iter().zip(&rewritten) {
        assert!(plain.logits.iter().all(|logit| logit.is_finite()));
        assert_eq!(plain.logits, rewritten.logits);
    }
    case.graph
}

#[test]
fn products_of_one_input_become_one() {
    let graph = compare(fuse::merge_linears);
    // Of seven products a layer, q, k and v share an input, and so do gate and up.
    assert_eq!(count(&graph, "Linear"), 2 * 4 + 1);
}

#[test]
fn gate_and_up_take_in_their_activation() {
    let graph = compare(|graph| {
        fuse::merge_linears(graph);
        fuse::gate_products(graph);
    });
    assert_eq!((count(&graph, "GatedLinear"), count(&graph, "Glu")), (2, 0));
}

#[test]
fn norms_take_in_the_residual_addition() {
    let graph = compare(fuse::norm_sums);
    // The last addition is followed by a gather, not a norm.
    assert_eq!(count(&graph, "Add"), 1);
}

#[test]
fn all_rewrites_together() {
    let graph = compare(fuse::fuse);
    // Embedding; ten ops a layer; the last addition, gather, norm and product.
    assert_eq!(graph.nodes().len(), 1 + 2 * 10 + 4);
}

#[test]
fn gate_that_is_read_elsewhere_stays() {
    let mut random = Random::new(5);
    let mut case = realm_conformance::case::CaseBuilder::new(&mut random, 9);
    let input = case.input("x", 8);
    let (gate, up) = (case.weight("gate", 8, 8, DType::F32), case.weight("up", 8, 8, DType::F32));
    let (gate, up) = (case.graph.linear(input, gate, None), case.graph.linear(input, up, None));
    let hidden = case.graph.glu(gate, up, realm_core::graph::ops::Activation::Silu);
    let output = case.graph.add(hidden, gate);
    let mut case = case.finish("gate read twice", output);
    let plain = run::run(&case, &ReferenceBackend::new(8), 1).unwrap();
    fuse::fuse(&mut case.graph);
    case.graph.validate().unwrap();
    assert_eq!(plain, run::run(&case, &ReferenceBackend::new(8), 1).unwrap());
}

/// Buffers of values that are alive together never overlap.
#[test]
fn plans_keep_living_values_apart() {
    for fused in [false, true] {
        let mut graph = llama(&mut Random::new(3), DType::Q8_0).graph;
        if fused {
            fuse::fuse(&mut graph);
        }
        let limits = Limits { tokens: 33, outputs: 5, sequences: 3 };
        let plan = BufferPlan::new(&graph, &limits);
        let bytes = |value: realm_core::graph::Value| {
            let info = graph.value(value);
            let rows = match info.rows {
                realm_core::graph::Rows::Tokens => limits.tokens,
                realm_core::graph::Rows::Outputs => limits.outputs,
            };
            rows * info.cols * 4
        };
        // Replays the graph, marking who owns each byte; a reader must find its value unharmed.
        let mut owner = vec![None; plan.bytes];
        for node in graph.nodes() {
            for input in node.op.inputs() {
                let start = plan.offsets[input.index()].unwrap();
                let range = &owner[start..start + bytes(input)];
                assert!(range.iter().all(|&o| o == Some(input)), "{input:?} was overwritten");
            }
            for output in node.op.outputs() {
                let start = plan.offsets[output.index()].unwrap();
                assert_eq!(start % realm_core::plan::ALIGNMENT, 0);
                owner[start..start + bytes(output)].fill(Some(output));
                // An op may not write where it still reads.
                for input in node.op.inputs() {
                    let from = plan.offsets[input.index()].unwrap();
                    assert!(from + bytes(input) <= start || start + bytes(output) <= from);
                }
            }
        }
        let all: usize = graph.nodes().iter().flat_map(|n| n.op.outputs()).map(bytes).sum();
        assert!(plan.bytes < all / 2, "{} of {all} bytes: nothing is shared", plan.bytes);
    }
}
