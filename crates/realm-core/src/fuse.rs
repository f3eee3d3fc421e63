//! Fusion: rewrites graph → graph that leave the result as it is and spare launches and memory traffic.

use crate::{
    Graph,
    graph::{
        Op, Value,
        ops::{GatedLinear, Residual},
    },
};

/// All rewrites, in an order that lets each see what the earlier ones made.
pub fn fuse(graph: &mut Graph) {
    merge_linears(graph);
    gate_products(graph);
    norm_sums(graph);
}

/// Products of the same input become one op: q, k and v; gate and up.
pub fn merge_linears(graph: &mut Graph) {
    let mut at = 0;
    while at < graph.nodes.len() {
        if let Op::Linear(later) = &graph.nodes[at].op {
            let input = later.input;
            let first = graph.nodes[..at]
                .iter()
                .position(|node| matches!(&node.op, Op::Linear(op) if op.input == input));
            if let Some(first) = first {
                let Op::Linear(later) = graph.nodes.remove(at).op else { unreachable!() };
                if let Op::Linear(op) = &mut graph.nodes[first].op {
                    op.projections.extend(later.projections);
                }
                continue;
            }
        }
        at += 1;
    }
}

/// A product with gate and up, and the gated activation that alone reads them, become one op.
pub fn gate_products(graph: &mut Graph) {
    for at in (0..graph.nodes.len()).rev() {
        let Op::Glu(glu) = graph.nodes[at].op.clone() else { continue };
        let producer = graph.nodes[..at].iter().position(|node| {
            matches!(&node.op, Op::Linear(op) if op.projections.len() == 2
                && op.projections.iter().any(|p| p.output == glu.gate)
                && op.projections.iter().any(|p| p.output == glu.up))
        });
        let Some(producer) = producer else { continue };
        let alone = [glu.gate, glu.up].iter().all(|&value| readers(graph, value) == 1);
        if glu.gate == glu.up || !alone {
            continue;
        }
        let Op::Linear(linear) = graph.nodes[producer].op.clone() else { continue };
        let [first, second] = &linear.projections[..] else { continue };
        let (gate, up) = if first.output == glu.gate { (first, second) } else { (second, first) };
        graph.nodes[producer].op = Op::GatedLinear(GatedLinear {
            input: linear.input,
            gate: gate.weight,
            gate_bias: gate.bias,
            up: up.weight,
            up_bias: up.bias,
            activation: glu.activation,
            output: glu.output,
        });
        graph.nodes.remove(at);
    }
}

/// A residual addition and the norm that reads its sum first become one op.
pub fn norm_sums(graph: &mut Graph) {
    let mut at = 0;
    while at < graph.nodes.len() {
        let Op::Add(add) = graph.nodes[at].op.clone() else {
            at += 1;
            continue;
        };
        let reader =
            graph.nodes[at + 1..].iter().position(|node| node.op.inputs().contains(&add.output));
        let norm = reader.map(|offset| at + 1 + offset).filter(|&norm| {
            matches!(&graph.nodes[norm].op, Op::RmsNorm(op) if op.residual.is_none() && op.input == add.output)
        });
        if let Some(norm) = norm
            && let Op::RmsNorm(op) = &mut graph.nodes[norm].op
        {
            op.input = add.left;
            op.residual = Some(Residual { addend: add.right, sum: add.output });
            graph.nodes.remove(at);
        } else {
            at += 1;
        }
    }
}

fn readers(graph: &Graph, value: Value) -> usize {
    let reads =
        graph.nodes.iter().flat_map(|node| node.op.inputs()).filter(|&v| v == value).count();
    reads + usize::from(graph.logits == value)
}
