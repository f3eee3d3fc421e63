//! The picture of a graph.

use realm_conformance::{cases::model::llama, random::Random};
use realm_core::{DType, fuse};

#[test]
fn layers_that_are_alike_are_drawn_once() {
    let graph = llama(&mut Random::new(1), DType::Q4_K).graph;
    let picture = graph.to_mermaid();
    assert!(picture.starts_with("flowchart TD\n"));
    assert!(picture.contains("subgraph L0[\"layers 0 to 1, all alike\"]"), "{picture}");
    assert!(
        picture.contains("<b>Attention</b>") && picture.contains("blk.*.attn_q Q4_K [256, 256]")
    );
    assert_eq!(picture.matches("<b>Attention</b>").count(), 1);
    assert_eq!(picture.matches("KV cache").count(), 1);
    assert!(picture.contains("to the next layer"), "{picture}");
    assert_eq!(picture.matches("subgraph").count(), picture.matches("  end\n").count());
}

#[test]
fn every_edge_joins_drawn_nodes() {
    for fused in [false, true] {
        let mut graph = llama(&mut Random::new(1), DType::Q8_0).graph;
        if fused {
            fuse::fuse(&mut graph);
        }
        let picture = graph.to_mermaid();
        let is_drawn = |node: &str| picture.contains(&format!("    {node}[\""));
        let mut edges = 0;
        for line in picture.lines().filter(|line| line.contains("->")) {
            let mut words = line.split_whitespace();
            let (from, to) = (words.next().unwrap(), words.next_back().unwrap());
            assert!(is_drawn(from) && is_drawn(to), "{line}");
            edges += 1;
        }
        assert!(edges > 15, "{picture}");
    }
}
