//! Where a test's time goes, by kind of op.

use std::fmt::Write;

use realm_core::{
    Graph,
    cost::{self, Cost},
    graph::{Node, Op},
};
use serde_json::{Value, json};

use super::{
    measure::Measured,
    report::{Setting, percent},
};

/// All nodes that do the same in different layers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    /// The op's name and its weights': `Linear attn_q attn_k attn_v`.
    pub(super) name: String,
    /// The weights' types: `Q4_K Q6_K`.
    types: Vec<&'static str>,
    nodes: usize,
    /// Of all repetitions.
    pub(super) seconds: f64,
    /// Of all repetitions.
    pub(super) cost: Cost,
    /// Seconds that the machine's limits account for, in all repetitions; `None` where they are not
    /// known.
    pub(super) limit: Option<f64>,
}

/// A tensor's name without its layer: `attn_q` of `blk.3.attn_q.weight`.
fn plain(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let in_layer = |rest: &'_ str| rest.split_once('.').map(|(_, name)| name.len());
    let length = name.strip_prefix("blk.").and_then(in_layer);
    length.map_or(name, |length| &name[name.len() - length..])
}

/// The weights that a node's name mentions: matrices; norms are alike.
fn matrices(node: &Node) -> Vec<realm_core::graph::Weight> {
    match &node.op {
        Op::Linear(op) => op.projections.iter().map(|projection| projection.weight).collect(),
        Op::GatedLinear(op) => vec![op.gate, op.up],
        Op::MoeGatedLinear(op) => vec![op.gate, op.up],
        Op::MoeLinear(op) => vec![op.weight],
        Op::Embed(op) => vec![op.table],
        _ => vec![],
    }
}

/// The groups, those that take most time first.
pub(super) fn groups(setting: &Setting, graph: &Graph, result: &Measured) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let repetitions = result.seconds.len();
    let measured = result.node_seconds.iter().zip(&result.costs);
    for (node, (&seconds, &cost)) in graph.nodes().iter().zip(measured) {
        let weights: Vec<_> = matrices(node).into_iter().map(|w| graph.weight(w)).collect();
        let mut name = node.op.name().to_owned();
        for weight in &weights {
            name = name + " " + plain(&weight.name);
        }
        let known = groups.iter().position(|group| group.name == name);
        let at = known.unwrap_or_else(|| {
            let (types, cost, limit) = (vec![], Cost::default(), Some(0.0));
            groups.push(Group { name, types, nodes: 0, seconds: 0.0, cost, limit });
            groups.len() - 1
        });
        let group = &mut groups[at];
        for weight in weights {
            if !group.types.contains(&weight.dtype.name()) {
                group.types.push(weight.dtype.name());
            }
        }
        group.nodes += 1;
        group.seconds += seconds;
        let precision = cost::precision(graph, node, setting.precision);
        let limit = setting.ceilings.as_ref().and_then(|c| c.seconds(cost, precision));
        group.limit = group.limit.zip(limit).map(|(sum, one)| sum + one * repetitions as f64);
        group.cost = std::iter::repeat_n(cost, repetitions).fold(group.cost, |sum, c| sum + c);
    }
    groups.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    groups
}

/// The table of a test.
pub(super) fn table(setting: &Setting, graph: &Graph, result: &Measured) -> String {
    let groups = groups(setting, graph, result);
    let width = groups.iter().map(|group| group.name.len()).max().unwrap_or(0).max(2);
    let labels: Vec<String> = groups.iter().map(|group| group.types.join(" ")).collect();
    let types = labels.iter().map(String::len).max().unwrap_or(0).max(5);
    let total: f64 = result.seconds.iter().sum();
    let steps = (result.steps * result.seconds.len()) as f64;
    let mut text = format!(
        "\n{}\n{:<width$} {:<types$} {:>5} {:>8} {:>10} {:>7} {:>8} {:>8}\n",
        result.test, "op", "types", "nodes", "time", "ms a step", "GB/s", "GOP/s", "of limit"
    );
    for (group, label) in groups.iter().zip(&labels) {
        let rate = |amount: u64| match amount as f64 / group.seconds / 1e9 {
            rate if amount > 0 && rate.is_finite() => format!("{rate:.1}"),
            _ => "–".into(),
        };
        let limit = group.limit_part().map_or("–".into(), percent);
        _ = writeln!(
            text,
            "{:<width$} {label:<types$} {:>5} {:>8} {:>10.4} {:>7} {:>8} {limit:>8}",
            group.name,
            group.nodes,
            percent(group.seconds / total),
            group.seconds / steps * 1e3,
            rate(group.cost.bytes()),
            rate(group.cost.ops),
        );
    }
    let rest = total - groups.iter().map(|group| group.seconds).sum::<f64>();
    _ = writeln!(
        text,
        "{:<width$} {:<types$} {:>5} {:>8} {:>10.4}",
        "between ops",
        "",
        "",
        percent(rest / total),
        rest / steps * 1e3
    );
    text
}

impl Group {
    /// The part of the time that the machine's limits account for; `None` for ops that need not
    /// touch memory.
    pub(super) fn limit_part(&self) -> Option<f64> {
        let part = self.limit? / self.seconds;
        (part.is_finite() && part > 0.0).then_some(part)
    }
}

/// The groups of a test as a JSON list.
pub(super) fn json(setting: &Setting, graph: &Graph, result: &Measured) -> Value {
    let total: f64 = result.seconds.iter().sum();
    let steps = (result.steps * result.seconds.len()) as f64;
    let object = |group: Group| {
        json!({
            "op": group.name,
            "types": group.types,
            "nodes": group.nodes,
            "fraction_of_time": group.seconds / total,
            "seconds_per_step": group.seconds / steps,
            "bytes_per_second": group.cost.bytes() as f64 / group.seconds,
            "ops_per_second": group.cost.ops as f64 / group.seconds,
            "fraction_of_limit": group.limit_part(),
        })
    };
    groups(setting, graph, result).into_iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_layer() {
        assert_eq!(plain("blk.12.attn_q.weight"), "attn_q");
        assert_eq!(plain("output.weight"), "output");
        assert_eq!(plain("blk."), "blk.");
    }
}
