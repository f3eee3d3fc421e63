//! The graph as a picture.

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use super::{Graph, Op, Rows};

/// Consecutive layers of the same ops and shapes: the first is drawn for all.
struct Group {
    /// Nodes of the layer that is drawn.
    nodes: Range<usize>,
    /// The layer; `None` for nodes outside of the layers.
    layer: Option<usize>,
    /// How many layers it stands for.
    count: usize,
}

impl Group {
    /// The drawn node that stands for a node of one of the group's layers.
    fn drawn(&self, node: usize) -> Option<usize> {
        let len = self.nodes.len();
        let within = node.checked_sub(self.nodes.start)?;
        (within < len * self.count).then(|| self.nodes.start + within % len)
    }
}

impl Graph {
    /// The graph in Mermaid's flowchart language: a box a node, a subgraph a layer, edges named by the
    /// shapes that flow along them. Weights stand in their node's box. Layers that are alike are drawn
    /// once, with the types that their weights have, so that large models stay within the sizes that
    /// Mermaid renders.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from("flowchart TD\n");
        let groups = self.groups();
        for group in &groups {
            if let Some(layer) = group.layer {
                let title = match group.count {
                    1 => format!("layer {layer}"),
                    count => format!("layers {layer} to {}, all alike", layer + count - 1),
                };
                _ = writeln!(text, "  subgraph L{layer}[\"{title}\"]");
            }
            for at in group.nodes.clone() {
                _ = writeln!(text, "    n{at}[\"{}\"]", self.label(group, at));
            }
            if group.layer.is_some() {
                text.push_str("  end\n");
            }
        }
        for edge in self.edges(&groups) {
            _ = writeln!(text, "  {edge}");
        }
        text
    }

    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut start = 0;
        while start < self.nodes.len() {
            let layer = self.nodes[start].layer;
            let end = (start..self.nodes.len())
                .find(|&at| self.nodes[at].layer != layer)
                .unwrap_or(self.nodes.len());
            match groups.last_mut() {
                Some(last)
                    if layer.is_some()
                        && last.layer.is_some()
                        && self.alike(last.nodes.clone(), start..end) =>
                {
                    last.count += 1;
                }
                _ => groups.push(Group { nodes: start..end, layer, count: 1 }),
            }
            start = end;
        }
        groups
    }

    /// Whether two layers have the same ops on weights and values of the same shapes.
    fn alike(&self, left: Range<usize>, right: Range<usize>) -> bool {
        let shape = |at: usize| {
            let op = &self.nodes[at].op;
            let weights = op.weights().into_iter().map(|weight| {
                let info = self.weight(weight);
                (info.rows, info.cols)
            });
            let values = op.outputs().into_iter().map(|value| self.value(value).cols);
            (op.name(), weights.collect::<Vec<_>>(), values.collect::<Vec<_>>())
        };
        left.len() == right.len() && left.zip(right).all(|(l, r)| shape(l) == shape(r))
    }

    fn label(&self, group: &Group, at: usize) -> String {
        let mut label = format!("<b>{}</b>", self.nodes[at].op.name());
        for (place, weight) in self.nodes[at].op.weights().into_iter().enumerate() {
            let info = self.weight(weight);
            let layers = (0..group.count).map(|layer| at + layer * group.nodes.len());
            let types: BTreeSet<_> = layers
                .filter_map(|node| self.nodes[node].op.weights().get(place).copied())
                .map(|weight| self.weight(weight).dtype.name())
                .collect();
            let types = types.into_iter().collect::<Vec<_>>().join(", ");
            let name = match (group.count, group.layer) {
                (2.., Some(layer)) => info.name.replace(&format!(".{layer}."), ".*."),
                _ => info.name.clone(),
            };
            _ = write!(label, "<br/>{name} {types} [{}, {}]", info.rows, info.cols);
        }
        if let Op::MoeRoute(op) = &self.nodes[at].op {
            let (used, count) = (self.value(op.experts).cols, self.value(op.logits).cols);
            _ = write!(label, "<br/>{used} of {count} experts");
        }
        label
    }

    /// The edges between drawn nodes, each once.
    fn edges(&self, groups: &[Group]) -> Vec<String> {
        let drawn = |node: usize| groups.iter().find_map(|group| group.drawn(node)).unwrap_or(node);
        let mut producer = vec![None; self.values.len()];
        let mut edges = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let to = drawn(at);
            for value in node.op.inputs() {
                let info = self.value(value);
                let rows = match info.rows {
                    Rows::Tokens => "tokens",
                    Rows::Outputs => "outputs",
                };
                let Some(from) = producer[value.index()].map(drawn) else { continue };
                // From one layer to the next of its kind the arrow leads back up.
                let next = if from >= to { ", to the next layer" } else { "" };
                edges.push(format!("n{from} -->|\"{rows} × {}{next}\"| n{to}", info.cols));
            }
            // Attention reads what the cache's writer of its layer stored.
            if let Op::Attention(attention) = &node.op {
                let writer = self.nodes.iter().position(
                    |node| matches!(&node.op, Op::KvWrite(write) if write.layer == attention.layer),
                );
                if let Some(writer) = writer.map(drawn) {
                    edges.push(format!("n{writer} -.->|\"KV cache\"| n{to}"));
                }
            }
            for value in node.op.outputs() {
                producer[value.index()] = Some(at);
            }
        }
        let mut seen = BTreeSet::new();
        edges.retain(|edge| seen.insert(edge.clone()));
        edges
    }
}
