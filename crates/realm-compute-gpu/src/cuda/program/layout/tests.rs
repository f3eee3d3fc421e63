use std::ops::Range;

use realm_conformance::{
    cases::model::{llama, mixture},
    random::Random,
};
use realm_core::{DType, fuse};

use super::*;

const LIMITS: Limits = Limits { tokens: 5, outputs: 2, sequences: 2 };

fn fused(dtype: DType) -> Graph {
    fused_graph(llama(&mut Random::new(3), dtype).graph)
}

fn fused_graph(mut graph: Graph) -> Graph {
    fuse::fuse(&mut graph);
    graph
}

/// A value's f32 rows.
fn plain(graph: &Graph, layout: &Layout, value: Value) -> Vec<Range<usize>> {
    let (rows, cols) = (most_rows(graph, value, &LIMITS), graph.value(value).cols);
    let start = layout.values[value.index()].plain;
    start.map(|start| start..start + rows * cols * 4).into_iter().collect()
}

/// Its other forms.
fn forms(graph: &Graph, layout: &Layout, value: Value) -> Vec<Range<usize>> {
    let (rows, cols) = (most_rows(graph, value, &LIMITS), graph.value(value).cols);
    let forms = layout.values[value.index()].forms.iter().flat_map(|it| {
        let (rows, cols) = (rows * it.slots, cols / it.slots);
        let data = it.data..it.data + it.form.data_bytes(rows, cols);
        [data, it.scales..it.scales + it.form.scale_bytes(rows, cols)]
    });
    forms.filter(|range| !range.is_empty()).collect()
}

/// What a node reads: products forms, where there are any, everything else f32 rows.
fn reads(graph: &Graph, layout: &Layout, op: &Op) -> Vec<Range<usize>> {
    let product =
        matches!(op, Op::Linear(_) | Op::GatedLinear(_) | Op::MoeGatedLinear(_) | Op::MoeLinear(_));
    let of = |value| {
        let forms = forms(graph, layout, value);
        if product && !forms.is_empty() { forms } else { plain(graph, layout, value) }
    };
    let ordered = op.inputs().into_iter().flat_map(|value| groups(graph, layout, value));
    op.inputs().into_iter().flat_map(of).chain(ordered).collect()
}

/// The order of slots by chosen experts.
fn groups(graph: &Graph, layout: &Layout, experts: Value) -> Vec<Range<usize>> {
    let count = graph.nodes().iter().find_map(|node| match &node.op {
        Op::MoeRoute(op) if op.experts == experts => Some(graph.value(op.logits).cols),
        _ => None,
    });
    let slots = most_rows(graph, experts, &LIMITS) * graph.value(experts).cols;
    let sizes = [count.unwrap_or(0) + 1, slots];
    let places = layout.mixtures.groups[experts.index()]
        .map(|places| places.into_iter().zip(sizes).map(|(place, words)| place..place + 4 * words));
    places.into_iter().flatten().collect()
}

/// What a product of many rows copies its input to.
fn gathered(graph: &Graph, layout: &Layout, at: usize) -> Vec<Range<usize>> {
    let (experts, weight) = match &graph.nodes()[at].op {
        Op::MoeGatedLinear(op) => (op.experts, op.gate),
        Op::MoeLinear(op) => (op.experts, op.weight),
        _ => return Vec::new(),
    };
    let slots = most_rows(graph, experts, &LIMITS) * graph.value(experts).cols;
    let bytes = Form::BF16.data_bytes(slots, graph.weight(weight).cols);
    layout.mixtures.gathered[at].map(|start| start..start + bytes).into_iter().collect()
}

#[test]
fn no_node_overwrites_what_it_or_a_later_one_reads() {
    for precision in [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8] {
        let experts = mixture(&mut Random::new(3), DType::Q4_K).graph;
        let unfused = llama(&mut Random::new(3), DType::F16).graph;
        for graph in [fused(DType::Q4_K), unfused, experts.clone(), fused_graph(experts)] {
            let layout = Layout::new(&graph, &LIMITS, precision);
            let nodes = graph.nodes();
            for (at, node) in nodes.iter().enumerate() {
                let written: Vec<_> = node
                    .op
                    .outputs()
                    .into_iter()
                    .flat_map(|value| {
                        let found = [plain, forms, groups].map(|find| find(&graph, &layout, value));
                        found.concat()
                    })
                    .chain(gathered(&graph, &layout, at))
                    .collect();
                let made = |op: &Op| {
                    op.inputs()
                        .iter()
                        .all(|v| nodes[..at].iter().any(|node| node.op.outputs().contains(v)))
                };
                let later = nodes[at..].iter().filter(|node| made(&node.op));
                for read in later.flat_map(|node| reads(&graph, &layout, &node.op)) {
                    for written in &written {
                        let apart = written.end <= read.start || read.end <= written.start;
                        assert!(apart, "node {at}: {written:?} and {read:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn producers_write_what_products_read() {
    let graph = fused(DType::Q4_K);
    let layout = Layout::new(&graph, &LIMITS, Precision::BF16);
    for node in graph.nodes() {
        let Op::Linear(op) = &node.op else { continue };
        let forms = &layout.values[op.input.index()].forms;
        assert_eq!(forms.len(), 1);
        assert!(forms[0].form == Form::BF16 && forms[0].direct);
    }
    // Quantized to 8 bits, they need a conversion from f32 rows.
    let layout = Layout::new(&graph, &LIMITS, Precision::Int8);
    for node in graph.nodes() {
        let Op::Linear(op) = &node.op else { continue };
        let stored = &layout.values[op.input.index()];
        assert!(stored.plain.is_some() && !stored.forms[0].direct);
    }
}

#[test]
fn rotations_and_the_cache_write_are_one_launch() {
    let graph = fused(DType::Q4_K);
    let layout = Layout::new(&graph, &LIMITS, Precision::BF16);
    let spans: Vec<Span> =
        layout.spans.iter().copied().filter(|span| span.last > span.first).collect();
    assert_eq!(spans.len(), 2 * 3, "three nodes in each of two layers");
    for span in spans {
        assert!(rotate_and_store(&graph, span.first).is_some());
        assert_eq!(graph.nodes()[span.last].op.name(), "KvWrite");
    }
}
