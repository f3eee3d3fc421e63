//! The graph as a picture.

use std::fmt::Write;

use super::{Graph, Op, Rows};

impl Graph {
    /// The graph in Mermaid's flowchart language: a box a node, a subgraph a layer, edges named by
    /// the shapes that flow along them. Weights stand in their node's box.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from("flowchart TD\n");
        let mut producer = vec![None; self.values.len()];
        let mut open = None;
        for (at, node) in self.nodes.iter().enumerate() {
            if node.layer != open {
                if open.is_some() {
                    text.push_str("  end\n");
                }
                if let Some(layer) = node.layer {
                    _ = writeln!(text, "  subgraph L{layer}[\"layer {layer}\"]");
                }
                open = node.layer;
            }
            _ = writeln!(text, "    n{at}[\"{}\"]", self.label(&node.op));
            for value in node.op.outputs() {
                producer[value.index()] = Some(at);
            }
        }
        if open.is_some() {
            text.push_str("  end\n");
        }
        self.edges(&producer, &mut text);
        text
    }

    fn label(&self, op: &Op) -> String {
        let mut label = format!("<b>{}</b>", op.name());
        for weight in op.weights() {
            let info = self.weight(weight);
            _ = write!(label, "<br/>{} {} [{}, {}]", info.name, info.dtype, info.rows, info.cols);
        }
        label
    }

    fn edges(&self, producer: &[Option<usize>], text: &mut String) {
        for (at, node) in self.nodes.iter().enumerate() {
            for value in node.op.inputs() {
                let info = self.value(value);
                let rows = match info.rows {
                    Rows::Tokens => "tokens",
                    Rows::Outputs => "outputs",
                };
                if let Some(from) = producer[value.index()] {
                    _ = writeln!(text, "  n{from} -->|\"{rows} × {}\"| n{at}", info.cols);
                }
            }
            // Attention reads what the cache's writer of its layer stored.
            if let Op::Attention(attention) = &node.op {
                let writer = self.nodes.iter().position(
                    |node| matches!(&node.op, Op::KvWrite(write) if write.layer == attention.layer),
                );
                if let Some(writer) = writer {
                    _ = writeln!(text, "  n{writer} -.->|\"KV cache\"| n{at}");
                }
            }
        }
    }
}
