//! What one case holds: a graph, its weights and the steps to run.

use realm_core::{
    Bytes, DType, Graph,
    backend::{KvType, Precision, Role},
    graph::{GraphBuilder, Value, Weight, WeightInfo},
    sampling::Sampling,
};

use crate::random::Random;

/// Rows that a step adds to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// Which sequence, from 0.
    pub sequence: usize,
    /// How many tokens.
    pub rows: usize,
    /// Why they are computed.
    pub role: Role,
}

impl Chunk {
    /// A piece of a prompt.
    pub fn prefill(sequence: usize, rows: usize) -> Self {
        Self { sequence, rows, role: Role::Prefill }
    }

    /// A generated token.
    pub fn decode(sequence: usize) -> Self {
        Self { sequence, rows: 1, role: Role::Decode }
    }
}

/// A graph, weights and steps.
pub struct Case {
    /// `linear/q4_k/int8/m7/n33/k256`.
    pub name: String,
    /// What is computed.
    pub graph: Graph,
    /// The graph's weights, in its order.
    pub weights: Vec<Bytes>,
    /// The steps, run one after the other on one cache.
    pub steps: Vec<Vec<Chunk>>,
    /// Type of the cache.
    pub kv_type: KvType,
    /// Compute type.
    pub precision: Precision,
    /// Whether a row's bits may not depend on the rows beside it
    /// ([`invariant`](realm_core::backend::CompileOptions::invariant)).
    pub invariant: bool,
    /// How each output row's token is sampled, where the graph samples.
    pub sampling: Option<Sampling>,
    /// Bound on ‖out − ref‖ / ‖ref‖; 0 asks for the same bits.
    pub tolerance: f64,
    /// Root mean square that the outputs have by construction. Where few outputs happen to cancel to
    /// less, errors are still measured against this.
    pub typical: f64,
    /// Token ids are drawn below this.
    pub vocabulary: usize,
}

/// Builds a case's graph, drawing each weight as it is declared.
pub struct CaseBuilder<'a> {
    /// The graph so far.
    pub graph: GraphBuilder,
    weights: Vec<Bytes>,
    random: &'a mut Random,
    vocabulary: usize,
}

impl<'a> CaseBuilder<'a> {
    /// An empty case whose token ids are drawn below `vocabulary`.
    pub fn new(random: &'a mut Random, vocabulary: usize) -> Self {
        Self { graph: GraphBuilder::new(), weights: Vec::new(), random, vocabulary }
    }

    /// The stream that the weights are drawn from.
    pub fn random(&mut self) -> &mut Random {
        self.random
    }

    /// A random weight.
    pub fn weight(&mut self, name: &str, rows: usize, cols: usize, dtype: DType) -> Weight {
        let deviation = 1.0 / (cols as f32).sqrt();
        self.scaled_weight(name, [rows, cols], dtype, deviation)
    }

    /// A random weight of a given deviation.
    pub fn scaled_weight(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        dtype: DType,
        deviation: f32,
    ) -> Weight {
        self.weights.push(self.random.matrix(rows, cols, dtype, deviation).into());
        self.graph.weight(WeightInfo { name: name.into(), rows, cols, dtype })
    }

    /// A weight of one random row over and over: for measurements, where drawing all rows would take
    /// long.
    pub fn repeated_weight(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        dtype: DType,
    ) -> Weight {
        let row = self.random.matrix(1, cols, dtype, 1.0 / (cols as f32).sqrt());
        self.weights.push(row.repeat(rows).into());
        self.graph.weight(WeightInfo { name: name.into(), rows, cols, dtype })
    }

    /// A weight of given values.
    pub fn values(&mut self, name: &str, [rows, cols]: [usize; 2], values: &[f32]) -> Weight {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.weights.push(bytes.into());
        self.graph.weight(WeightInfo { name: name.into(), rows, cols, dtype: DType::F32 })
    }

    /// A random vector around 1, as norms have.
    pub fn vector(&mut self, name: &str, cols: usize) -> Weight {
        let values = (0..cols).flat_map(|_| (1.0 + 0.3 * self.random.normal()).to_le_bytes());
        self.weights.push(values.collect::<Vec<u8>>().into());
        self.graph.weight(WeightInfo { name: name.into(), rows: 1, cols, dtype: DType::F32 })
    }

    /// A random activation `[tokens, cols]`: an embedding of the step's tokens.
    pub fn input(&mut self, name: &str, cols: usize) -> Value {
        let table = self.scaled_weight(name, [self.vocabulary, cols], DType::F32, 1.0);
        self.graph.embed(table)
    }

    /// Closes the case: all rows of `result` are its output.
    ///
    /// # Panics
    /// Where the graph is malformed: the suite's own mistake.
    pub fn finish(mut self, name: impl Into<String>, result: Value) -> Case {
        let output = self.graph.gather_rows(result);
        self.finish_outputs(name, output)
    }

    /// Closes the case with a result that already is `[outputs, n]`.
    ///
    /// # Panics
    /// Where the graph is malformed: the suite's own mistake.
    pub fn finish_outputs(self, name: impl Into<String>, output: Value) -> Case {
        let name = name.into();
        let graph = self.graph.finish(output).unwrap_or_else(|error| panic!("{name}: {error}"));
        Case {
            name,
            graph,
            weights: self.weights,
            steps: vec![vec![Chunk::prefill(0, 3), Chunk::prefill(1, 4)]],
            kv_type: KvType::F32,
            precision: Precision::F32,
            invariant: true,
            sampling: None,
            tolerance: 1e-5,
            typical: 0.0,
            vocabulary: self.vocabulary,
        }
    }
}

impl Case {
    /// The same case with other steps.
    pub fn steps(mut self, steps: Vec<Vec<Chunk>>) -> Self {
        self.steps = steps;
        self
    }

    /// The same case with one step of `rows` tokens of one prompt.
    pub fn rows(self, rows: usize) -> Self {
        self.steps(vec![vec![Chunk::prefill(0, rows)]])
    }

    /// The same case in another compute type, with that type's tolerance.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self.tolerance = match precision {
            Precision::F32 => 1e-5,
            Precision::F16 => 2e-3,
            Precision::BF16 | Precision::Int8 | Precision::Auto => 1e-2,
        };
        self
    }

    /// The same case where the batch may choose a row's kernels.
    pub fn by_batch(mut self) -> Self {
        self.invariant = false;
        self
    }

    /// The same case with outputs of a known size.
    pub fn typical(mut self, typical: f64) -> Self {
        self.typical = typical;
        self
    }

    /// The same case with another bound.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// The same case with another cache type.
    pub fn kv_type(mut self, kv_type: KvType) -> Self {
        self.kv_type = kv_type;
        self
    }
}
