//! A step's description: what [`StepView`] points to, laid out in one block that one copy brings to
//! the device.

use std::{ops::Range, sync::Arc};

use realm_core::{
    backend::{BackendError, Inputs, Limits, Role, Token},
    graph::Graph,
};
use zerocopy::IntoBytes;

use crate::cuda::{
    gpu::{Buffer, Gpu, HostBuffer, Mark},
    step::{Counts, PREVIOUS, Row, Sampling, Sequence, StepView},
};

/// Steps whose descriptions may be on their way at once.
const STAGES: usize = 3;

/// Host memory for one description, and when its copy was done.
struct Stage {
    host: HostBuffer,
    copied: Option<Mark>,
}

/// Offsets of the parts, in bytes.
#[derive(Debug, Clone, Copy)]
struct Places {
    rows: usize,
    sequences: usize,
    outputs: usize,
    sampling: usize,
    tables: usize,
    given: usize,
    /// Size of it all.
    bytes: usize,
    /// Block ids that fit.
    table_blocks: usize,
}

impl Places {
    fn new(limits: &Limits, given_cols: usize, table_blocks: usize) -> Self {
        let mut end = size_of::<Counts>();
        let mut take = |bytes: usize| {
            let start = end;
            end = (end + bytes).next_multiple_of(16);
            start
        };
        Self {
            rows: take(limits.tokens * size_of::<Row>()),
            sequences: take(limits.sequences * size_of::<Sequence>()),
            outputs: take(limits.outputs * 4),
            sampling: take(limits.outputs * size_of::<Sampling>()),
            tables: take(table_blocks * 4),
            // Last: it is long, and only graphs that were cut have it.
            given: take(limits.tokens * given_cols * 4),
            bytes: take(0),
            table_blocks,
        }
    }
}

/// Brings descriptions to the device.
pub(super) struct Description {
    gpu: Arc<dyn Gpu>,
    limits: Limits,
    given_cols: usize,
    places: Places,
    device: Buffer,
    stages: Vec<Stage>,
    next: usize,
    lists: Lists,
}

/// What is gathered for a step.
#[derive(Default)]
struct Lists {
    /// Block ids.
    blocks: Vec<u32>,
    /// Where each row goes.
    order: Vec<u32>,
}

/// Block ids that a description has room for at first: each block of the cache once. Sequences that
/// share blocks may need more, and get it.
fn first_room(kv_blocks: usize) -> usize {
    kv_blocks.max(1)
}

impl Description {
    /// Bytes on the device.
    pub(super) fn bytes(graph: &Graph, limits: &Limits, kv_blocks: usize) -> usize {
        Places::new(limits, given_cols(graph), first_room(kv_blocks)).bytes
    }

    pub(super) fn new(
        gpu: &Arc<dyn Gpu>,
        graph: &Graph,
        limits: &Limits,
        kv_blocks: usize,
    ) -> Result<Self, BackendError> {
        let places = Places::new(limits, given_cols(graph), first_room(kv_blocks));
        let (device, stages) = allocate(gpu, &places)?;
        let (gpu, limits, given_cols) = (gpu.clone(), *limits, given_cols(graph));
        let lists = Lists::default();
        Ok(Self { gpu, limits, given_cols, places, device, stages, next: 0, lists })
    }

    /// The addresses for kernels; they change where [`Description::make_room`] answers `true`. `previous` is
    /// where the step before left its tokens.
    pub(super) fn view(&self, previous: u64) -> StepView {
        let at = |offset: usize| self.device.address() + offset as u64;
        StepView {
            counts: at(0),
            rows: at(self.places.rows),
            sequences: at(self.places.sequences),
            tables: at(self.places.tables),
            outputs: at(self.places.outputs),
            sampling: at(self.places.sampling),
            previous,
        }
    }

    /// Where [`Inputs::given`] lies.
    pub(super) fn given(&self) -> u64 {
        self.device.address() + self.places.given as u64
    }

    /// Makes room for the step's block tables. `true` where addresses changed.
    ///
    /// # Errors
    /// Too little memory.
    pub(super) fn make_room(&mut self, inputs: &Inputs<'_>) -> Result<bool, BackendError> {
        let needed = inputs.sequences.iter().map(|sequence| sequence.blocks.len()).sum::<usize>();
        if needed <= self.places.table_blocks {
            return Ok(false);
        }
        let places = Places::new(&self.limits, self.given_cols, needed.next_power_of_two());
        for mark in self.stages.iter_mut().filter_map(|stage| stage.copied.take()) {
            mark.wait()?;
        }
        let (device, stages) = allocate(&self.gpu, &places)?;
        (self.places, self.device, self.stages) = (places, device, stages);
        Ok(true)
    }

    /// Puts the description on its way, on the stream. `inputs` were checked and have room.
    ///
    /// # Errors
    /// The device's failure.
    pub(super) fn send(&mut self, inputs: &Inputs<'_>) -> Result<(), BackendError> {
        let stage = &mut self.stages[self.next];
        self.next = (self.next + 1) % STAGES;
        if let Some(mark) = stage.copied.take() {
            mark.wait()?;
        }
        let places = &self.places;
        let end = write(stage.host.bytes_mut(), places, inputs, &mut self.lists);
        stage.host.upload(0..end, &self.device, 0)?;
        if !inputs.given.is_empty() {
            let given = places.given..places.given + size_of_val(inputs.given);
            stage.host.upload(given, &self.device, places.given)?;
        }
        stage.copied = Some(Mark::new(&self.gpu)?);
        Ok(())
    }
}

fn given_cols(graph: &Graph) -> usize {
    graph.given().map_or(0, |value| graph.value(value).cols)
}

fn allocate(gpu: &Arc<dyn Gpu>, places: &Places) -> Result<(Buffer, Vec<Stage>), BackendError> {
    let device = Buffer::new(gpu, places.bytes, "the step's description")?;
    let stage = |_| Ok(Stage { host: HostBuffer::new(gpu, places.bytes)?, copied: None });
    Ok((device, (0..STAGES).map(stage).collect::<Result<_, BackendError>>()?))
}

/// Where each row of a step goes: those that are no prompt's first. Gives their number.
fn places_of_rows(inputs: &Inputs<'_>, to: &mut Vec<u32>) -> u32 {
    to.clear();
    to.resize(inputs.tokens.len(), 0);
    let mut next = 0;
    let mut take = |role| {
        for sequence in inputs.sequences.iter().filter(|sequence| sequence.role == role) {
            for place in &mut to[sequence.rows.clone()] {
                *place = next;
                next += 1;
            }
        }
        next
    };
    let decoded = take(Role::Decode);
    take(Role::Prefill);
    decoded
}

/// Writes a description and gives the length of all but `given`.
fn write(bytes: &mut [u8], places: &Places, inputs: &Inputs<'_>, lists: &mut Lists) -> usize {
    let mut put = |at: usize, part: &[u8]| -> Range<usize> {
        bytes[at..at + part.len()].copy_from_slice(part);
        at..at + part.len()
    };
    let Lists { blocks, order } = lists;
    let decode_rows = places_of_rows(inputs, order);
    let counts = Counts {
        rows: inputs.tokens.len() as u32,
        outputs: inputs.outputs.len() as u32,
        sequences: inputs.sequences.len() as u32,
        decode_rows,
    };
    put(0, counts.as_bytes());
    blocks.clear();
    for (index, sequence) in inputs.sequences.iter().enumerate() {
        let prefill = if sequence.role == Role::Prefill { sequence.rows.len() } else { 0 };
        let it = Sequence {
            length: sequence.length() as u32,
            table: blocks.len() as u32,
            first: order.get(sequence.rows.start).copied().unwrap_or(0),
            prefill: prefill as u32,
        };
        put(places.sequences + index * size_of::<Sequence>(), it.as_bytes());
        blocks.extend(sequence.blocks.iter().map(|block| block.0));
        for (position, row) in (sequence.cached as u32..).zip(sequence.rows.clone()) {
            let token = match inputs.tokens[row] {
                Token::Id(id) => id,
                Token::Previous(row) => PREVIOUS | row,
            };
            let it = Row { token, position, sequence: index as u32, unused: 0 };
            put(places.rows + order[row] as usize * size_of::<Row>(), it.as_bytes());
        }
    }
    for (index, &row) in inputs.outputs.iter().enumerate() {
        put(places.outputs + 4 * index, order[row as usize].as_bytes());
    }
    for (index, how) in inputs.sampling.iter().enumerate() {
        let it = Sampling::from(how);
        put(places.sampling + index * size_of::<Sampling>(), it.as_bytes());
    }
    let cols = inputs.given.len() / inputs.tokens.len().max(1);
    for (row, given) in inputs.given.chunks_exact(cols.max(1)).enumerate() {
        put(places.given + 4 * cols * order[row] as usize, given.as_bytes());
    }
    put(places.tables, blocks.as_bytes()).end
}
