//! Shape checks: after them no backend needs to doubt a graph.

use super::{Element, Graph, Op, Rows, Value, Weight, ops};

/// What is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("graph: {op} at node {node} ({name}): {problem}")]
pub struct GraphError {
    node: usize,
    op: &'static str,
    name: String,
    problem: String,
}

type Check = Result<(), String>;

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(problem()) }
}

impl Graph {
    /// Checks shapes, single assignment and order. [`super::GraphBuilder::finish`] and every
    /// rewrite end with it.
    ///
    /// # Errors
    /// The first node that does not fit.
    pub fn validate(&self) -> Result<(), GraphError> {
        let mut written = vec![false; self.values.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            let check = || -> Check {
                for value in node.op.inputs() {
                    let known = written.get(value.index()).copied();
                    ensure(known == Some(true), || {
                        format!("reads {value:?} before it is written")
                    })?;
                }
                for weight in node.op.weights() {
                    ensure(weight.index() < self.weights.len(), || format!("no {weight:?}"))?;
                }
                for value in node.op.outputs() {
                    let known = written.get(value.index()).copied();
                    ensure(known == Some(false), || format!("writes {value:?} twice"))?;
                }
                self.check_op(&node.op)
            };
            check().map_err(|problem| self.error(at, problem))?;
            for value in node.op.outputs() {
                written[value.index()] = true;
            }
        }
        let last = self.nodes.len().saturating_sub(1);
        let ends = written.get(self.logits.index()) == Some(&true)
            && self.value(self.logits).rows == Rows::Outputs;
        ensure(ends, || "the logits are not a written [outputs, n] value".into())
            .map_err(|problem| self.error(last, problem))
    }

    fn error(&self, at: usize, problem: String) -> GraphError {
        let node = self.nodes.get(at);
        let value = node.and_then(|node| node.op.outputs().first().copied());
        GraphError {
            node: at,
            op: node.map_or("empty", |node| node.op.name()),
            name: value
                .and_then(|value| self.values.get(value.index()))
                .map_or(String::new(), |info| info.name.clone()),
            problem,
        }
    }

    fn same_shape(&self, left: Value, right: Value) -> Check {
        let (l, r) = (self.value(left), self.value(right));
        ensure(l.rows == r.rows && l.cols == r.cols && l.element == r.element, || {
            format!(
                "{} [{:?}, {}] differs from {} [{:?}, {}]",
                l.name, l.rows, l.cols, r.name, r.rows, r.cols
            )
        })
    }

    fn vector(&self, weight: Weight, len: usize) -> Check {
        let info = self.weight(weight);
        ensure(info.rows == 1 && info.cols == len, || {
            format!("{} is [{}, {}], [1, {len}] is needed", info.name, info.rows, info.cols)
        })
    }

    /// A product's weight, bias and result.
    fn projection(
        &self,
        input: Value,
        weight: Weight,
        bias: Option<Weight>,
        output: Value,
    ) -> Check {
        let (input, info, output) = (self.value(input), self.weight(weight), self.value(output));
        ensure(info.cols == input.cols && info.rows == output.cols, || {
            format!(
                "{} is [{}, {}], [{}, {}] is needed",
                info.name, info.rows, info.cols, output.cols, input.cols
            )
        })?;
        ensure(info.bytes().is_some(), || {
            format!("{}: rows of {} are no whole {} blocks", info.name, info.cols, info.dtype)
        })?;
        ensure(input.rows == output.rows, || format!("{} has other rows", output.name))?;
        bias.map_or(Ok(()), |bias| self.vector(bias, info.rows))
    }

    fn heads(&self, value: Value, heads: usize, head_dim: usize) -> Check {
        let info = self.value(value);
        ensure(info.rows == Rows::Tokens && heads.checked_mul(head_dim) == Some(info.cols), || {
            format!(
                "{} has {} columns, {heads} heads of {head_dim} are needed",
                info.name, info.cols
            )
        })
    }

    // One arm an op: longer than other functions, and read an arm at a time.
    fn check_op(&self, op: &Op) -> Check {
        match op {
            Op::Embed(op) => {
                let (table, output) = (self.weight(op.table), self.value(op.output));
                ensure(table.cols == output.cols && output.rows == Rows::Tokens, || {
                    format!("{} has {} columns, {} are needed", table.name, table.cols, output.cols)
                })
            }
            Op::Given(op) => {
                let output = self.value(op.output);
                let fits = output.rows == Rows::Tokens && output.element == Element::F32;
                ensure(fits, || format!("{} is no [tokens, n] of numbers", output.name))?;
                ensure(self.given() == Some(op.output), || "a graph has at most one".into())
            }
            Op::Linear(op) => {
                ensure(!op.projections.is_empty(), || "no weights".into())?;
                op.projections.iter().try_for_each(|projection| {
                    let ops::Projection { weight, bias, output } = *projection;
                    self.projection(op.input, weight, bias, output)
                })
            }
            Op::Glu(op) => {
                self.same_shape(op.gate, op.up)?;
                self.same_shape(op.gate, op.output)
            }
            Op::GatedLinear(op) => {
                self.projection(op.input, op.gate, op.gate_bias, op.output)?;
                self.projection(op.input, op.up, op.up_bias, op.output)
            }
            Op::RmsNorm(op) => self.check_rms_norm(op),
            Op::LayerNorm(op) => {
                let cols = self.value(op.input).cols;
                self.same_shape(op.input, op.output)?;
                self.vector(op.weight, cols)?;
                op.bias.map_or(Ok(()), |bias| self.vector(bias, cols))
            }
            Op::Rope(op) => {
                let Some(rope) = self.ropes.get(op.rope.index()) else {
                    return Err("no such rope table".into());
                };
                ensure(rope.inverse.len() * 2 <= op.head_dim, || {
                    format!(
                        "{} rotated elements exceed heads of {}",
                        rope.inverse.len() * 2,
                        op.head_dim
                    )
                })?;
                self.heads(op.input, op.heads, op.head_dim)?;
                self.same_shape(op.input, op.output)
            }
            Op::KvWrite(op) => {
                let Some(kv) = self.kv.get(op.layer) else { return Err("no such KV layer".into()) };
                self.heads(op.key, kv.heads, kv.head_dim)?;
                self.heads(op.value, kv.heads, kv.head_dim)
            }
            Op::Attention(op) => self.check_attention(op),
            Op::Add(op) => {
                self.same_shape(op.left, op.right)?;
                self.same_shape(op.left, op.output)
            }
            Op::Scale(op) => self.same_shape(op.input, op.output),
            Op::SoftCap(op) => self.same_shape(op.input, op.output),
            Op::MoeRoute(op) => self.check_route(op),
            Op::MoeGatedLinear(op) => [op.gate, op.up].into_iter().try_for_each(|weight| {
                let cols = self.value(op.input).cols;
                self.check_experts((op.input, cols), op.experts, weight, op.output)
            }),
            Op::MoeLinear(op) => {
                let (cols, used) = (self.value(op.input).cols, self.value(op.experts).cols);
                ensure(used > 0 && cols.is_multiple_of(used), || {
                    format!("{cols} columns are no {used} slots of one size")
                })?;
                self.check_experts((op.input, cols / used), op.experts, op.weight, op.output)
            }
            Op::MoeSum(op) => self.check_sum(op),
            Op::GatherRows(op) => {
                let (input, output) = (self.value(op.input), self.value(op.output));
                ensure(
                    input.rows == Rows::Tokens
                        && output.rows == Rows::Outputs
                        && input.cols == output.cols,
                    || format!("{} cannot be gathered to {}", input.name, output.name),
                )
            }
            Op::Sample(op) => {
                let (logits, output) = (self.value(op.logits), self.value(op.output));
                let fits = logits.rows == Rows::Outputs && output.rows == Rows::Outputs;
                ensure(fits && output.cols == 1 && output.element == Element::U32, || {
                    "sampled tokens are [outputs, 1] ids of [outputs, vocabulary] logits".into()
                })
            }
        }
    }

    fn check_rms_norm(&self, op: &ops::RmsNorm) -> Check {
        let cols = self.value(op.input).cols;
        ensure(op.group > 0 && cols.is_multiple_of(op.group), || {
            format!("{cols} columns are no whole groups of {}", op.group)
        })?;
        self.same_shape(op.input, op.output)?;
        if let Some(residual) = op.residual {
            self.same_shape(op.input, residual.addend)?;
            self.same_shape(op.input, residual.sum)?;
        }
        self.vector(op.weight, op.group)
    }

    fn check_route(&self, op: &ops::MoeRoute) -> Check {
        let (logits, experts) = (self.value(op.logits), self.value(op.experts));
        let (used, count) = (experts.cols, logits.cols);
        ensure(used > 0 && used <= count, || {
            format!("{used} of {count} experts cannot be chosen; 1 to {count} can")
        })?;
        ensure(u32::try_from(count).is_ok(), || format!("{count} experts cannot be numbered"))?;
        let weights = self.value(op.weights);
        ensure(
            experts.element == Element::U32
                && (logits.element, weights.element) == (Element::F32, Element::F32)
                && weights.cols == used
                && [experts.rows, weights.rows] == [logits.rows; 2],
            || format!("the choice is [{:?}, {used}] numbers and as many weights", logits.rows),
        )
    }

    /// A product of rows or slots of `k` elements with the matrices of chosen experts.
    fn check_experts(
        &self,
        (input, k): (Value, usize),
        experts: Value,
        weight: Weight,
        output: Value,
    ) -> Check {
        let route = self.nodes.iter().find_map(|node| match &node.op {
            Op::MoeRoute(op) if op.experts == experts => Some(op),
            _ => None,
        });
        let Some(route) = route else {
            return Err(format!("{} are no chosen experts", self.value(experts).name));
        };
        let (count, used) = (self.value(route.logits).cols, self.value(experts).cols);
        let (info, result) = (self.weight(weight), self.value(output));
        ensure(used > 0 && result.cols.is_multiple_of(used), || {
            format!("{} columns are no {used} slots of one size", result.cols)
        })?;
        let n = result.cols / used;
        ensure(info.cols == k && Some(info.rows) == count.checked_mul(n) && n > 0, || {
            format!(
                "{} is [{}, {}], [{count} experts · {n}, {k}] is needed",
                info.name, info.rows, info.cols
            )
        })?;
        ensure(info.bytes().is_some(), || {
            format!("{}: rows of {} are no whole {} blocks", info.name, info.cols, info.dtype)
        })?;
        let rows = self.value(experts).rows;
        ensure([self.value(input).rows, result.rows] == [rows; 2], || {
            format!("{} has other rows", result.name)
        })
    }

    fn check_sum(&self, op: &ops::MoeSum) -> Check {
        let (input, weights) = (self.value(op.input), self.value(op.weights));
        let output = self.value(op.output);
        let fits = output.cols.checked_mul(weights.cols) == Some(input.cols)
            && weights.cols > 0
            && output.cols > 0
            && [input.rows, output.rows] == [weights.rows; 2];
        ensure(fits, || {
            format!(
                "{} has {} columns, {} slots of {} are needed",
                input.name, input.cols, weights.cols, output.cols
            )
        })
    }

    fn check_attention(&self, op: &ops::Attention) -> Check {
        let Some(kv) = self.kv.get(op.layer) else { return Err("no such KV layer".into()) };
        let ops::AttentionSpec { heads, head_dim, sinks, .. } = op.spec;
        ensure(kv.heads > 0 && heads.is_multiple_of(kv.heads) && kv.head_dim == head_dim, || {
            format!(
                "{heads} heads of {head_dim} cannot share {} KV heads of {}",
                kv.heads, kv.head_dim
            )
        })?;
        self.heads(op.query, heads, head_dim)?;
        self.same_shape(op.query, op.output)?;
        sinks.map_or(Ok(()), |sinks| self.vector(sinks, heads))
    }
}
