use realm_conformance::{cases::model::llama, random::Random};
use realm_core::{DType, fuse};

use super::*;

const LIMITS: Limits = Limits { tokens: 5, outputs: 2, sequences: 2 };

fn fused(dtype: DType) -> Graph {
    let mut graph = llama(&mut Random::new(3), dtype).graph;
    fuse::fuse(&mut graph);
    graph
}

/// Byte ranges of everything that a node writes or reads, through the layout.
fn ranges(graph: &Graph, layout: &Layout, value: Value) -> Vec<std::ops::Range<usize>> {
    let (rows, cols) = (most_rows(graph, value, &LIMITS), graph.value(value).cols);
    let stored = &layout.values[value.index()];
    let plain = stored.plain.map(|start| start..start + rows * cols * 4);
    let forms = stored.forms.iter().flat_map(|it| {
        let data = it.data..it.data + it.form.data_bytes(rows, cols);
        let scales = it.scales..it.scales + it.form.scale_bytes(rows, cols);
        [data, scales]
    });
    plain.into_iter().chain(forms).filter(|range| !range.is_empty()).collect()
}

#[test]
fn no_node_overwrites_what_it_or_a_later_one_reads() {
    for precision in [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8] {
        for graph in [fused(DType::Q4_K), llama(&mut Random::new(3), DType::F16).graph] {
            let layout = Layout::new(&graph, &LIMITS, precision);
            for (at, node) in graph.nodes().iter().enumerate() {
                let live = graph.nodes()[at..].iter().flat_map(|node| node.op.inputs());
                let live: Vec<Value> = live
                    .filter(|&value| {
                        graph.nodes()[..at].iter().any(|n| n.op.outputs().contains(&value))
                    })
                    .collect();
                for written in node.op.outputs() {
                    for &read in live.iter().filter(|&&value| value != written) {
                        for a in ranges(&graph, &layout, written) {
                            for b in ranges(&graph, &layout, read) {
                                assert!(
                                    a.end <= b.start || b.end <= a.start,
                                    "node {at}: {a:?} and {b:?}"
                                );
                            }
                        }
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
