//! Cutting a graph in two between layers, so that each part can run on a device of its own.
//!
//! One value may pass from the first part to the second: the residual stream. The first part's result
//! is that value for all rows of a step, the second part takes it as its `Given` op.

use crate::graph::{
    Graph, Node, Op, Rows, Value, ValueInfo,
    ops::{Add, GatherRows, Given},
};

/// One half of a graph.
#[derive(Debug, Clone)]
pub struct Part {
    /// A graph of its own.
    pub graph: Graph,
    /// Positions of its weights in the whole graph's list.
    pub weights: Vec<usize>,
    /// Positions of its KV layers in the whole graph's list.
    pub kv: Vec<usize>,
}

/// A graph in two parts.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The layers before the cut and all that stands before them. Its result is `[outputs, cols]`, to
    /// be asked for with every row of the step an output.
    pub first: Part,
    /// The other layers, the logits and the sampling. Its first node is the `Given` op.
    pub second: Part,
    /// Nodes of the whole graph that the first part holds, in its first places; the second part holds
    /// the rest, in its last places.
    pub at: usize,
}

/// Why a graph cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model cannot be split between devices before layer {layer}: {problem}")]
pub struct CutError {
    layer: usize,
    problem: String,
}

/// Cuts a graph before layer `layer`. A residual addition that was fused into the norm after the cut
/// moves to the first part's end.
///
/// # Errors
/// No such boundary, or more than the residual stream would pass it.
pub fn cut(graph: &Graph, layer: usize) -> Result<Cut, CutError> {
    let error = |problem: String| CutError { layer, problem };
    let at = boundary(graph, layer).map_err(error)?;
    let (mut before, mut after) = (graph.nodes[..at].to_vec(), graph.nodes[at..].to_vec());
    let value = crossing(graph, &mut before, &mut after).map_err(error)?;

    let mut values = graph.values.clone();
    let ValueInfo { name, cols, element, .. } = values[value.index()].clone();
    let output = Value(values.len() as u32);
    values.push(ValueInfo { name: format!("{name}.rows"), rows: Rows::Outputs, cols, element });
    before.push(Node { op: GatherRows { input: value, output }.into(), layer: None });
    after.insert(0, Node { op: Given { output: value }.into(), layer: None });

    let first = part(&Graph { values, logits: output, ..graph.clone() }, before);
    let second = part(graph, after);
    if let Some(both) = first.kv.iter().find(|&layer| second.kv.contains(layer)) {
        return Err(error(format!("KV layer {both} is used on both sides")));
    }
    for part in [&first, &second] {
        part.graph.validate().map_err(|problem| error(problem.to_string()))?;
    }
    Ok(Cut { first, second, at })
}

/// The first node of `layer`.
fn boundary(graph: &Graph, layer: usize) -> Result<usize, String> {
    let reached = |node: &Node| node.layer.is_some_and(|of| of >= layer);
    let at = graph.nodes.iter().position(reached).filter(|&at| at > 0 && layer > 0);
    let at =
        at.ok_or_else(|| format!("it has layers 0 to {}", graph.layers().saturating_sub(1)))?;
    let late = graph.nodes[at..].iter().any(|node| node.layer.is_some_and(|of| of < layer));
    if late { Err("earlier layers have ops after it".into()) } else { Ok(at) }
}

/// The one value that `after` takes from `before`. Where it takes a fused addition's two inputs, the
/// addition moves to `before`.
fn crossing(graph: &Graph, before: &mut Vec<Node>, after: &mut [Node]) -> Result<Value, String> {
    let written: Vec<Value> = before.iter().flat_map(|node| node.op.outputs()).collect();
    let reads = after.iter().flat_map(|node| node.op.inputs());
    let mut read: Vec<Value> = reads.filter(|value| written.contains(value)).collect();
    let pair = match (&read[..], after.first_mut().map(|node| (node.layer, &mut node.op))) {
        (&[left, right], Some((layer, Op::RmsNorm(norm)))) => norm
            .residual
            .filter(|residual| (norm.input, residual.addend) == (left, right) && left != right)
            .map(|residual| (layer, norm, residual)),
        _ => None,
    };
    if let Some((layer, norm, residual)) = pair {
        let (left, right, output) = (norm.input, residual.addend, residual.sum);
        let layer = layer.and_then(|layer| layer.checked_sub(1));
        before.push(Node { op: Add { left, right, output }.into(), layer });
        norm.input = output;
        norm.residual = None;
        return Ok(output);
    }
    read.sort_unstable();
    read.dedup();
    match read[..] {
        [value] if graph.value(value).rows == Rows::Tokens => Ok(value),
        _ => {
            let names: Vec<&str> = read.iter().map(|&v| graph.value(v).name.as_str()).collect();
            Err(format!("{} values pass from one part to the other ({})", read.len(), {
                names.join(", ")
            }))
        }
    }
}

/// A graph of some of a graph's nodes, with the weights and KV layers that they use.
fn part(graph: &Graph, mut nodes: Vec<Node>) -> Part {
    let (mut weights, mut kv) = (Vec::new(), Vec::new());
    for node in &nodes {
        weights.extend(node.op.weights().iter().map(|weight| weight.index()));
        kv.extend(match &node.op {
            Op::KvWrite(op) => Some(op.layer),
            Op::Attention(op) => Some(op.layer),
            _ => None,
        });
    }
    for list in [&mut weights, &mut kv] {
        list.sort_unstable();
        list.dedup();
    }
    for node in &mut nodes {
        // Every weight and layer of the part is in its list.
        node.op.map_weights(|weight| weights.partition_point(|&at| at < weight));
        match &mut node.op {
            Op::KvWrite(op) => op.layer = kv.partition_point(|&at| at < op.layer),
            Op::Attention(op) => op.layer = kv.partition_point(|&at| at < op.layer),
            _ => {}
        }
    }
    let graph = Graph {
        nodes,
        weights: weights.iter().map(|&at| graph.weights[at].clone()).collect(),
        kv: kv.iter().map(|&at| graph.kv[at]).collect(),
        ..graph.clone()
    };
    Part { graph, weights, kv }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        fuse::fuse,
        graph::{
            GraphBuilder, KvLayer, Weight, WeightInfo,
            ops::{AttentionSpec, Mask},
        },
    };

    /// Three layers of norm, one projection for all, attention and a residual addition, tied output.
    /// `leak` lets the last layer see the first one's normed input again.
    fn graph(leak: bool) -> Graph {
        let mut graph = GraphBuilder::new();
        let weight = |graph: &mut GraphBuilder, name: String, rows| -> Weight {
            graph.weight(WeightInfo { name, rows, cols: 32, dtype: DType::F32 })
        };
        let table = weight(&mut graph, "table".into(), 10);
        let mut x = graph.embed(table);
        let mut leaked = None;
        for layer in 0..3 {
            graph.layer(Some(layer));
            let norm = weight(&mut graph, format!("norm.{layer}"), 1);
            let q = weight(&mut graph, format!("q.{layer}"), 32);
            let normed = graph.rms_norm(x, norm, 1e-5);
            let q = graph.linear(normed, q, None);
            let kv = graph.kv_layer(KvLayer { heads: 1, head_dim: 32 });
            graph.kv_write(kv, q, q);
            let (mask, soft_cap, sinks) = (Mask::CAUSAL, None, None);
            let spec = AttentionSpec { heads: 1, head_dim: 32, scale: 1.0, mask, soft_cap, sinks };
            let mut attended = graph.attention(kv, q, spec);
            if let Some(leaked) = leaked.filter(|_| layer == 2 && leak) {
                attended = graph.add(attended, leaked);
            }
            leaked.get_or_insert(normed);
            x = graph.add(x, attended);
        }
        graph.layer(None);
        let rows = graph.gather_rows(x);
        let logits = graph.linear(rows, table, None);
        graph.finish(logits).unwrap()
    }

    fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().iter().map(|node| node.op.name()).collect()
    }

    #[test]
    fn a_fused_addition_moves_before_the_cut() {
        let mut graph = graph(false);
        fuse(&mut graph);
        let cut = cut(&graph, 2).unwrap();
        let layer = ["RmsNorm", "Linear", "KvWrite", "Attention"];
        let first = [&["Embed"][..], &layer, &layer, &["Add", "GatherRows"]].concat();
        let second = [&["Given"][..], &layer, &["Add", "GatherRows", "Linear"]].concat();
        assert_eq!((names(&cut.first.graph), names(&cut.second.graph)), (first, second));
        assert_eq!((cut.at, graph.nodes().len()), (9, 9 + 4 + 3));
        assert_eq!(cut.first.weights, [0, 1, 2, 3, 4]);
        assert_eq!(cut.second.weights, [0, 5, 6]);
        assert_eq!((&cut.first.kv[..], &cut.second.kv[..]), (&[0, 1][..], &[2][..]));
        let Op::RmsNorm(norm) = &cut.second.graph.nodes()[1].op else { panic!() };
        assert_eq!((norm.residual, Some(norm.input)), (None, cut.second.graph.given()));
        let weights = cut.second.graph.weights().iter().map(|info| info.name.as_str());
        assert_eq!(weights.collect::<Vec<_>>(), ["table", "norm.2", "q.2"]);
    }

    #[test]
    fn plain_graphs_are_cut_too() {
        let graph = graph(false);
        let cut = cut(&graph, 1).unwrap();
        assert_eq!(cut.at, 6);
        assert_eq!(names(&cut.first.graph).last(), Some(&"GatherRows"));
        assert_eq!(cut.first.graph.nodes().len() + cut.second.graph.nodes().len(), 2 + 18);
    }

    #[test]
    fn what_cannot_be_cut_is_said() {
        let problem = |graph: &Graph, layer| cut(graph, layer).unwrap_err().to_string();
        for layer in [0, 3, usize::MAX] {
            assert!(problem(&graph(false), layer).contains("layers 0 to 2"));
        }
        let mut leaking = graph(true);
        for _ in 0..2 {
            let problem = problem(&leaking, 2);
            assert!(problem.contains("values pass") && problem.contains("table.norm"), "{problem}");
            fuse(&mut leaking);
        }
    }
}
