//! A compiled graph: its nodes run one after the other, each spread over the threads.

use std::{any::Any, ops::Range, sync::Arc, time::Instant};

use realm_core::{
    Graph,
    backend::{
        BackendError, CompileOptions, Inputs, KvPool, Limits, Precision, Program, ProgramInfo,
        Step, StepOutput,
    },
    graph::{
        Op, Rows, Value, Weight,
        ops::{Attention, Embed, GatedLinear, Linear, MoeGatedLinear, MoeLinear, RmsNorm},
    },
    plan::BufferPlan,
    sampling::Sampler,
};

use crate::{
    arena::Arena,
    attention::Attend,
    backend::{CpuWeight, NAME},
    elementwise::{Angles, Cpu},
    isa::Isa,
    kv::CpuKvPool,
    matmul::{self, Groups, Half, Projection, Scratch},
    moe::Route,
    pool::Pool,
};

/// A graph made ready for the CPU.
pub(crate) struct CpuProgram {
    graph: Graph,
    state: State,
    info: ProgramInfo,
    poison: bool,
    sampler: Sampler,
}

/// What the ops work on.
struct State {
    pool: Arc<Pool>,
    isa: Isa,
    weights: Vec<Arc<CpuWeight>>,
    kv: Arc<CpuKvPool>,
    plan: BufferPlan,
    arena: Arena,
    angles: Vec<Angles>,
    scratch: Scratch,
    groups: Groups,
    precision: Precision,
}

/// A step that has run.
struct CpuStep(StepOutput);

impl Step for CpuStep {
    fn read(self: Box<Self>) -> Result<StepOutput, BackendError> {
        Ok(self.0)
    }
}

impl CpuProgram {
    /// Bytes of values and prepared inputs. `options.precision` is not `Auto`.
    pub(crate) fn workspace_bytes(graph: &Graph, options: &CompileOptions) -> usize {
        let CompileOptions { limits, precision, .. } = options;
        let [slots, experts] = most_slots(graph, limits);
        BufferPlan::new(graph, limits).bytes
            + Scratch::bytes(most_input(graph, limits), *precision)
            + Groups::bytes(slots, experts)
    }

    pub(crate) fn new(
        (pool, isa): (Arc<Pool>, Isa),
        graph: &Graph,
        weights: Vec<Arc<CpuWeight>>,
        kv: Arc<CpuKvPool>,
        options: CompileOptions,
    ) -> Result<Self, BackendError> {
        let CompileOptions { limits, precision, poison, .. } = options;
        let plan = BufferPlan::new(graph, &limits);
        let workspace_bytes = Self::workspace_bytes(graph, &options);
        let scratch = Scratch::new(most_input(graph, &limits), precision);
        let [slots, experts] = most_slots(graph, &limits);
        let (Some(arena), Some(scratch), Ok(groups)) =
            (Arena::new(plan.bytes), scratch, Groups::new(slots, experts))
        else {
            return Err(BackendError::OutOfMemory {
                device: NAME.into(),
                what: "the work memory".into(),
                needed: workspace_bytes as u64,
                available: crate::system::available_memory(),
            });
        };
        let info = ProgramInfo { limits, precision, workspace_bytes };
        let angles = graph.ropes().iter().map(|_| Angles::default()).collect();
        let state =
            State { pool, isa, weights, kv, plan, arena, angles, scratch, groups, precision };
        Ok(Self { graph: graph.clone(), state, info, poison, sampler: Sampler::default() })
    }
}

/// Elements of the largest input of a product.
fn most_input(graph: &Graph, limits: &Limits) -> usize {
    let inputs = graph.nodes().iter().filter_map(|node| match &node.op {
        Op::Linear(op) => Some(op.input),
        Op::GatedLinear(op) => Some(op.input),
        Op::MoeGatedLinear(op) => Some(op.input),
        Op::MoeLinear(op) => Some(op.input),
        _ => None,
    });
    inputs.map(|input| most_elements(graph, input, limits)).max().unwrap_or(0)
}

/// The most slots that an op's rows have for experts, and the most experts to group them by.
fn most_slots(graph: &Graph, limits: &Limits) -> [usize; 2] {
    let routes = graph.nodes().iter().filter_map(|node| match &node.op {
        Op::MoeRoute(op) => {
            Some([most_elements(graph, op.experts, limits), graph.value(op.logits).cols])
        }
        _ => None,
    });
    routes.fold([0; 2], |most, one| [0, 1].map(|at| most[at].max(one[at])))
}

fn most_elements(graph: &Graph, value: Value, limits: &Limits) -> usize {
    let info = graph.value(value);
    match info.rows {
        Rows::Tokens => limits.tokens * info.cols,
        Rows::Outputs => limits.outputs * info.cols,
    }
}

impl Program for CpuProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn enqueue(&mut self, inputs: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError> {
        inputs.check(&self.info.limits, self.state.kv.spec())?;
        inputs.check_given(&self.graph)?;
        let previous =
            inputs.previous.and_then(|step| (step as &dyn Any).downcast_ref::<CpuStep>());
        let ids = inputs.token_ids(previous.map_or(&[], |step| &step.0.sampled))?;
        if self.poison {
            self.state.arena.poison();
        }
        for (angles, rope) in self.state.angles.iter_mut().zip(self.graph.ropes()) {
            angles.set(rope, inputs.positions());
        }
        let mut run = Run { graph: &self.graph, state: &mut self.state, inputs, ids: &ids };
        let mut output = StepOutput::default();
        for node in self.graph.nodes() {
            let start = inputs.want_times.then(Instant::now);
            match &node.op {
                Op::Sample(op) => {
                    output.sampled = run.sample(&mut self.sampler, op.logits);
                }
                op => run.node(op)?,
            }
            output.node_seconds.extend(start.map(|start| start.elapsed().as_secs_f64()));
        }
        if inputs.want_logits {
            let logits = run.range(self.graph.logits());
            let ([logits], _) = run.state.arena.lend([logits], &[]);
            output.logits = logits.to_vec();
        }
        Ok(Box::new(CpuStep(output)))
    }
}

/// One step under way.
struct Run<'a> {
    graph: &'a Graph,
    state: &'a mut State,
    inputs: &'a Inputs<'a>,
    ids: &'a [u32],
}

impl Run<'_> {
    fn rows(&self, value: Value) -> usize {
        match self.graph.value(value).rows {
            Rows::Tokens => self.inputs.tokens.len(),
            Rows::Outputs => self.inputs.outputs.len(),
        }
    }

    /// Where a value's rows of this step lie in the arena, in floats.
    fn range(&self, value: Value) -> Range<usize> {
        let start = self.state.plan.offsets[value.index()].unwrap_or(0) / size_of::<f32>();
        start..start + self.rows(value) * self.graph.value(value).cols
    }

    /// Runs an op that reads `N` values and writes one.
    fn map<const N: usize>(
        &mut self,
        inputs: [Value; N],
        output: Value,
        op: impl FnOnce(Cpu<'_>, &[Arc<CpuWeight>], [&[f32]; N], &mut [f32]),
    ) {
        let (reads, write) = (inputs.map(|value| self.range(value)), self.range(output));
        let State { pool, isa, weights, arena, .. } = &mut *self.state;
        let (reads, mut writes) = arena.lend(reads, &[write]);
        op(Cpu { pool, isa: *isa }, weights, reads, writes[0]);
    }

    fn node(&mut self, op: &Op) -> Result<(), BackendError> {
        match op {
            Op::Embed(op) => return self.embed(op),
            Op::Given(op) => {
                let given = self.inputs.given;
                self.map([], op.output, |_, _, [], out| out.copy_from_slice(given));
            }
            Op::Linear(op) => self.linear(op),
            Op::GatedLinear(op) => self.gated_linear(op),
            Op::Glu(op) => self.map([op.gate, op.up], op.output, |cpu, _, [gate, up], out| {
                cpu.glu(op.activation, gate, up, out);
            }),
            Op::RmsNorm(op) => self.rms_norm(op),
            Op::LayerNorm(op) => self.map([op.input], op.output, |cpu, weights, [input], out| {
                let weight = |weight: Weight| weights[weight.index()].vector();
                cpu.layer_norm(input, weight(op.weight), op.bias.map(weight), op.epsilon, out);
            }),
            Op::Rope(op) => {
                let angles = std::mem::take(&mut self.state.angles[op.rope.index()]);
                self.map([op.input], op.output, |cpu, _, [input], out| {
                    cpu.rope(input, &angles, [op.heads, op.head_dim], op.pairs, out);
                });
                self.state.angles[op.rope.index()] = angles;
            }
            Op::KvWrite(op) => {
                let reads = [op.key, op.value].map(|value| self.range(value));
                let State { pool, isa, kv, arena, .. } = &mut *self.state;
                let ([key, value], _) = arena.lend(reads, &[]);
                kv.write_rows((pool, *isa), op.layer, self.inputs.sequences, key, value);
            }
            Op::Attention(op) => self.attention(op),
            Op::Add(op) => {
                self.map([op.left, op.right], op.output, |cpu, _, [left, right], out| {
                    cpu.add(left, right, out);
                });
            }
            Op::Scale(op) => self.map([op.input], op.output, |cpu, _, [input], out| {
                cpu.scale(input, op.factor, out);
            }),
            Op::SoftCap(op) => self.map([op.input], op.output, |cpu, _, [input], out| {
                cpu.soft_cap(input, op.cap, out);
            }),
            Op::GatherRows(op) => {
                let (cols, rows) = (self.graph.value(op.input).cols, self.inputs.outputs);
                self.map([op.input], op.output, |_, _, [input], out| {
                    for (out, &row) in out.chunks_exact_mut(cols).zip(rows) {
                        out.copy_from_slice(&input[row as usize * cols..][..cols]);
                    }
                });
            }
            Op::MoeRoute(op) => {
                let writes = [op.experts, op.weights].map(|value| self.range(value));
                let (read, count) = (self.range(op.logits), self.graph.value(op.logits).cols);
                let used = self.graph.value(op.experts).cols;
                let State { pool, isa, arena, .. } = &mut *self.state;
                let ([logits], mut writes) = arena.lend([read], &writes);
                let [experts, weights] = &mut writes[..] else { return Ok(()) };
                let route = Route { count, used, normalized: op.normalized };
                Cpu { pool, isa: *isa }.route(route, logits, experts, weights);
            }
            Op::MoeGatedLinear(op) => self.moe_gated_linear(op),
            Op::MoeLinear(op) => self.moe_linear(op),
            Op::MoeSum(op) => {
                let (used, cols) =
                    (self.graph.value(op.weights).cols, self.graph.value(op.output).cols);
                self.map([op.input, op.weights], op.output, |cpu, _, [slots, weights], out| {
                    cpu.sum_slots(slots, (weights, used), cols, out);
                });
            }
            Op::Sample(_) => {}
        }
        Ok(())
    }

    fn embed(&mut self, op: &Embed) -> Result<(), BackendError> {
        let info = self.graph.weight(op.table);
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= info.rows) {
            let problem = format!("token {id} of a vocabulary of {}", info.rows);
            return Err(BackendError::Inputs { problem });
        }
        let ids = self.ids;
        self.map([], op.output, |cpu, weights, [], out| {
            cpu.embed((info.dtype, weights[op.table.index()].data()), ids, info.cols, out);
        });
        Ok(())
    }

    fn rms_norm(&mut self, op: &RmsNorm) {
        let weight = self.state.weights[op.weight.index()].clone();
        let Some(residual) = op.residual else {
            return self.map([op.input], op.output, |cpu, _, [input], out| {
                cpu.rms_norm(input, weight.vector(), op.epsilon, out);
            });
        };
        let reads = [op.input, residual.addend].map(|value| self.range(value));
        let writes = [residual.sum, op.output].map(|value| self.range(value));
        let State { pool, isa, arena, .. } = &mut *self.state;
        let ([input, addend], mut writes) = arena.lend(reads, &writes);
        let [sum, out] = &mut writes[..] else { return };
        let cpu = Cpu { pool, isa: *isa };
        cpu.add(input, addend, sum);
        cpu.rms_norm(sum, weight.vector(), op.epsilon, out);
    }

    fn attention(&mut self, op: &Attention) {
        let (read, write) = (self.range(op.query), self.range(op.output));
        let State { pool, isa, kv, weights, arena, .. } = &mut *self.state;
        let ([query], mut writes) = arena.lend([read], &[write]);
        let sinks = op.spec.sinks.map(|sinks| weights[sinks.index()].vector());
        let sequences = self.inputs.sequences;
        let attend = Attend { kv, layer: op.layer, spec: &op.spec, sinks, sequences };
        attend.run(pool, *isa, query, writes[0]);
    }

    fn sample(&mut self, sampler: &mut Sampler, logits: Value) -> Vec<u32> {
        let (range, cols) = (self.range(logits), self.graph.value(logits).cols);
        let ([logits], _) = self.state.arena.lend([range], &[]);
        let rows = logits.chunks_exact(cols.max(1)).zip(self.inputs.sampling);
        rows.map(|(row, how)| sampler.sample(row, how)).collect()
    }

    /// Products of one input with one or several weights. One kernel serves rows of either role, with
    /// the same bits, so a mixed batch reads the weights once.
    fn linear(&mut self, op: &Linear) {
        let (read, cols) = (self.range(op.input), self.graph.value(op.input).cols);
        let writes: Vec<_> = op.projections.iter().map(|p| self.range(p.output)).collect();
        let State { pool, isa, weights, arena, scratch, precision, .. } = &mut *self.state;
        let ([input], outputs) = arena.lend([read], &writes);
        let cpu = Cpu { pool, isa: *isa };
        let input = scratch.prepare(cpu, input, cols, *precision);
        let projections = op.projections.iter().zip(outputs).map(|(projection, output)| {
            let Half { weight, bias } = half(weights, projection.weight, projection.bias);
            Projection { weight, bias, output }
        });
        matmul::linear(cpu, &input, &mut projections.collect::<Vec<_>>());
    }

    fn gated_linear(&mut self, op: &GatedLinear) {
        let (read, cols) = (self.range(op.input), self.graph.value(op.input).cols);
        let write = self.range(op.output);
        let State { pool, isa, weights, arena, scratch, precision, .. } = &mut *self.state;
        let ([input], mut outputs) = arena.lend([read], &[write]);
        let cpu = Cpu { pool, isa: *isa };
        let input = scratch.prepare(cpu, input, cols, *precision);
        let (gate, up) = (half(weights, op.gate, op.gate_bias), half(weights, op.up, op.up_bias));
        matmul::gated(cpu, &input, gate, up, op.activation, outputs[0]);
    }

    fn moe_gated_linear(&mut self, op: &MoeGatedLinear) {
        let mixture = self.graph.mixture(op.experts, op.output, op.gate);
        let cols = self.graph.value(op.input).cols;
        let (reads, write) =
            ([op.input, op.experts].map(|it| self.range(it)), self.range(op.output));
        let State { pool, isa, weights, arena, scratch, groups, precision, .. } = &mut *self.state;
        let ([input, experts], mut outputs) = arena.lend(reads, &[write]);
        let cpu = Cpu { pool, isa: *isa };
        groups.set(experts, mixture.count);
        let input = scratch.prepare(cpu, input, cols, *precision);
        let matrices = [op.gate, op.up].map(|weight| weights[weight.index()].matrix());
        let slots = (&*groups, mixture.used);
        matmul::gated_experts(cpu, slots, &input, matrices, op.activation, outputs[0]);
    }

    fn moe_linear(&mut self, op: &MoeLinear) {
        let mixture = self.graph.mixture(op.experts, op.output, op.weight);
        let (reads, write) =
            ([op.input, op.experts].map(|it| self.range(it)), self.range(op.output));
        let State { pool, isa, weights, arena, scratch, groups, precision, .. } = &mut *self.state;
        let ([input, experts], mut outputs) = arena.lend(reads, &[write]);
        let cpu = Cpu { pool, isa: *isa };
        groups.set(experts, mixture.count);
        // A row a slot.
        let input = scratch.prepare(cpu, input, self.graph.weight(op.weight).cols, *precision);
        let weight = weights[op.weight.index()].matrix();
        matmul::experts(cpu, (groups, 1), &input, weight, outputs[0]);
    }
}

/// A weight and its bias as products take them. The weights' lengths were checked when they were
/// loaded.
fn half(weights: &[Arc<CpuWeight>], weight: Weight, bias: Option<Weight>) -> Half<'_> {
    let bias = bias.map(|bias| weights[bias.index()].vector());
    Half { weight: weights[weight.index()].matrix(), bias }
}
