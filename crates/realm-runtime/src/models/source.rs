//! A model file as an architecture's function sees it: typed settings and weights of expected shapes.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    ops::Range,
};

use realm_core::{
    DType,
    graph::{GraphBuilder, Weight, WeightInfo},
};
use realm_gguf::{GgufFile, TensorInfo, Value};

use crate::RuntimeError;

/// Metadata and tensors of one file.
pub struct Source<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
    parts: RefCell<Parts>,
    /// Tensors that were asked for.
    used: RefCell<HashSet<String>>,
}

/// What tensors of a picture encoder begin with, which some files hold beside the language model.
const ENCODERS: [&str; 2] = ["v.", "mm."];

/// Rows of a tensor that are a weight of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The tensor's name.
    pub tensor: String,
    /// Its rows.
    pub rows: Range<usize>,
}

/// The weights that are parts of tensors, by their names in the graph.
pub type Parts = HashMap<String, Part>;

impl<'a> Source<'a> {
    /// The file, whose settings stand under `architecture.`.
    pub fn new(file: &'a GgufFile, architecture: &'a str) -> Self {
        Self { file, architecture, parts: RefCell::default(), used: RefCell::default() }
    }

    /// The parts of tensors that were declared.
    pub fn into_parts(self) -> Parts {
        self.parts.into_inner()
    }

    /// Checks that the graph has all of the file's tensors: what is left over would be missing in the
    /// results.
    ///
    /// # Errors
    /// A tensor that was not asked for.
    pub fn check_all_used(&self) -> Result<(), RuntimeError> {
        let used = self.used.borrow();
        let mut names = self.file.tensors().iter().map(TensorInfo::name);
        let left = names.find(|name| {
            !used.contains(*name) && !ENCODERS.iter().any(|encoder| name.starts_with(encoder))
        });
        match left {
            Some(name) => Err(self.error(format!(
                "tensor {name} is not part of a {} model as Realm knows it; {} may be wrong, or \
                 this variant is not supported",
                self.architecture,
                self.key("block_count")
            ))),
            None => Ok(()),
        }
    }

    /// Leaves a tensor out of the graph on purpose.
    pub fn leave_out(&self, name: &str) {
        self.used.borrow_mut().insert(name.into());
    }

    /// An error at this file.
    pub fn error(&self, problem: impl Into<String>) -> RuntimeError {
        RuntimeError::Model {
            path: self.file.path().display().to_string(),
            problem: problem.into(),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A positive integer setting.
    ///
    /// # Errors
    /// Where it is missing, no integer or zero.
    pub fn size(&self, name: &str) -> Result<usize, RuntimeError> {
        let key = self.key(name);
        let value: u32 = self.file.metadata().get(&key)?;
        if value == 0 { Err(self.error(format!("{key} is 0"))) } else { Ok(value as usize) }
    }

    /// A positive integer setting, or what holds where the file has none.
    ///
    /// # Errors
    /// Where it is no integer or zero.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize, RuntimeError> {
        if self.file.metadata().value(&self.key(name)).is_none() {
            Ok(default)
        } else {
            self.size(name)
        }
    }

    /// An integer setting, or what holds where the file has none; 0 stands for none at all.
    ///
    /// # Errors
    /// Where it is no integer, or a negative one.
    pub fn count_or(&self, name: &str, default: usize) -> Result<Option<usize>, RuntimeError> {
        let value: Option<u32> = self.file.metadata().find(&self.key(name))?;
        Ok(Some(value.map_or(default, |value| value as usize)).filter(|&value| value > 0))
    }

    /// A setting whatever its type; `None` where the file has none.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.file.metadata().value(&self.key(name))
    }

    /// A positive number, or what holds where the file has none; 0 stands for none at all.
    ///
    /// # Errors
    /// Where it is no finite number, or a negative one.
    pub fn bound_or(&self, name: &str, default: f32) -> Result<Option<f32>, RuntimeError> {
        match self.number(name)?.map_or(default, |value| value as f32) {
            value if value < 0.0 => Err(self.error(format!("{} is {value}", self.key(name)))),
            value => Ok(Some(value).filter(|&value| value > 0.0)),
        }
    }

    /// A number setting; `None` where the file has none.
    ///
    /// # Errors
    /// Where it is no finite number.
    pub fn number(&self, name: &str) -> Result<Option<f64>, RuntimeError> {
        let key = self.key(name);
        let value: Option<f32> = self.file.metadata().find(&key)?;
        match value {
            Some(value) if !value.is_finite() => Err(self.error(format!("{key} is {value}"))),
            value => Ok(value.map(f64::from)),
        }
    }

    /// An integer or a number; `None` where the file has none.
    ///
    /// # Errors
    /// Where it is neither, or not finite.
    pub fn any_number(&self, name: &str) -> Result<Option<f64>, RuntimeError> {
        match self.file.metadata().find::<u32>(&self.key(name)) {
            Ok(value) => Ok(value.map(f64::from)),
            Err(_) => self.number(name),
        }
    }

    /// A boolean setting, or what holds where the file has none.
    ///
    /// # Errors
    /// Where it is no boolean.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, RuntimeError> {
        Ok(self.file.metadata().find(&self.key(name))?.unwrap_or(default))
    }

    /// A text setting; `None` where the file has none.
    ///
    /// # Errors
    /// Where it is no text.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, RuntimeError> {
        Ok(self.file.metadata().find(&self.key(name))?)
    }

    /// The type of a tensor that must have the given shape.
    fn checked(
        &self,
        tensor: &TensorInfo,
        [rows, cols]: [usize; 2],
    ) -> Result<DType, RuntimeError> {
        let name = tensor.name();
        self.used.borrow_mut().insert(name.into());
        if tensor.rows() != rows || tensor.cols() != cols {
            return Err(self.error(format!(
                "tensor {name} is [{}, {}], [{rows}, {cols}] is expected",
                tensor.rows(),
                tensor.cols()
            )));
        }
        tensor.dtype().ok_or_else(|| {
            let known = DType::ALL.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ");
            self.error(format!(
                "tensor {name} has type {} ({}), which cannot be computed with; requantize it to one of {known}",
                tensor.type_name(),
                tensor.type_id()
            ))
        })
    }

    fn declare(
        &self,
        graph: &mut GraphBuilder,
        tensor: &TensorInfo,
        [rows, cols]: [usize; 2],
    ) -> Result<Weight, RuntimeError> {
        let dtype = self.checked(tensor, [rows, cols])?;
        Ok(graph.weight(WeightInfo { name: tensor.name().into(), rows, cols, dtype }))
    }

    /// A weight of the given shape `[rows, cols]`.
    ///
    /// # Errors
    /// Where it is missing, of another shape or of a type that is not known.
    pub fn weight(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Weight, RuntimeError> {
        self.declare(graph, self.file.require(name)?, shape)
    }

    /// Some rows of a tensor of the given shape as a weight of their own, `blk.0.attn_qkv[0..96].weight`,
    /// whose bytes stay where they are. `rows` lies within the shape.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn rows_of(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        rows: Range<usize>,
        shape: [usize; 2],
    ) -> Result<Weight, RuntimeError> {
        let dtype = self.checked(self.file.require(name)?, shape)?;
        let (Range { start, end }, plain) = (rows.clone(), name.trim_end_matches(".weight"));
        let part = format!("{plain}[{start}..{end}].weight");
        let info = WeightInfo { name: part.clone(), rows: rows.len(), cols: shape[1], dtype };
        self.parts.borrow_mut().insert(part, Part { tensor: name.into(), rows });
        Ok(graph.weight(info))
    }

    /// A weight that a file may lack.
    ///
    /// # Errors
    /// Where it is of another shape or of a type that is not known.
    pub fn optional(
        &self,
        graph: &mut GraphBuilder,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<Weight>, RuntimeError> {
        self.file.tensor(name).map(|tensor| self.declare(graph, tensor, shape)).transpose()
    }

    /// Rows of a tensor: the vocabulary, of an embedding table.
    ///
    /// # Errors
    /// Where it is missing.
    pub fn rows(&self, name: &str) -> Result<usize, RuntimeError> {
        Ok(self.file.require(name)?.rows())
    }

    /// The values of a small tensor that a file may lack, such as rope divisors.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>, RuntimeError> {
        let Some(tensor) = self.file.tensor(name) else { return Ok(None) };
        self.used.borrow_mut().insert(name.into());
        let data = tensor.data()?;
        let mut values = vec![0.0; tensor.elements()];
        let dtype = tensor
            .dtype()
            .ok_or_else(|| self.error(format!("tensor {name} has an unknown type")))?;
        dtype.decode(&data, &mut values);
        Ok(Some(values))
    }
}
