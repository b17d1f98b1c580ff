//! A model's parameters on their way to and from files, tensor by tensor and in pieces: the host never holds them all.

use std::path::Path;

use epl_runtime::TensorDesc;

use super::{CHUNK, HEAD_MOMENTUM, HEAD_WEIGHT, Model};
use crate::interchange::safetensors::{Sink, StateDict, Value};
use crate::interchange::tensor_file::TensorSource;
use crate::{Error, Result};

/// What follows a parameter's name in the name of its momentum.
const MOMENTUM_SUFFIX: &str = ".momentum";

impl Model {
    /// Sets parameters from a state dict. Backbone tensors must all be there with their shapes; those of the head are
    /// taken where they fit. Returns the names of head tensors that were not taken.
    ///
    /// # Errors
    /// A backbone tensor that is missing or of another shape, named with `place`.
    pub fn load(&self, source: &dyn TensorSource, place: &str) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in self.spec.parameters.entries() {
            let name = &entry.spec.name;
            let of_head = name.starts_with("loss.");
            match source.shape(name) {
                Some(shape) if shape == entry.spec.shape.dims() => {
                    self.spec.parameters.write(&self.store, name, &source.floats_of(name)?)?;
                }
                _ if of_head => left.push(name.clone()),
                Some(shape) => {
                    return Err(Error::data(
                        format!("{place}: tensor {name}"),
                        format!("shape {shape:?}"),
                        format!("shape {}", entry.spec.shape),
                        "use weights of the same architecture, width, depth and input size",
                    ));
                }
                None => {
                    return Err(Error::data(
                        place,
                        format!("no tensor {name}"),
                        format!("the state dict of {}", self.spec.arch),
                        "use weights of the same architecture",
                    ));
                }
            }
        }
        for (name, desc, _) in self.spec.tables() {
            if source.shape(name) == Some(desc.shape.dims()) {
                self.load_table(source, name)?;
            } else {
                left.push(name.into());
            }
        }
        Ok(left)
    }

    fn load_table(&self, source: &dyn TensorSource, name: &str) -> Result<()> {
        source.for_each_part(name, CHUNK, &mut |first, values| {
            Ok(self.store.write_range(name, 4 * first as u64, bytemuck::cast_slice(values))?)
        })
    }

    /// Writes all parameters to `path`, under the names of the PyTorch state dict.
    ///
    /// # Errors
    /// Where the file cannot be written, or the device was lost.
    pub fn save(&self, path: &Path, step: u64) -> Result<()> {
        let tensors = self.tensors(false);
        let shapes = shapes(&tensors);
        self.counters(step).write_with(path, &shapes, |name, sink| self.write_tensor(&tensors, name, sink))
    }

    /// Writes all parameters and their momentum to `path`, together with `more`; returns the file's bytes and SHA-256. The
    /// file is also one of weights.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_training(&self, path: &Path, step: u64, more: StateDict) -> Result<(u64, String)> {
        let tensors = self.tensors(true);
        let mut dict = self.counters(step);
        dict.tensors.extend(more.tensors);
        dict.write_hashed(path, &shapes(&tensors), |name, sink| self.write_tensor(&tensors, name, sink))
    }

    /// Sets all parameters and their momentum from what [`Self::save_training`] wrote.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, named with `place`.
    pub fn restore_training(&self, source: &dyn TensorSource, place: &str) -> Result<()> {
        for tensor in self.tensors(true) {
            let name = &tensor.name;
            if source.shape(name) != Some(&tensor.shape) {
                return Err(Error::data(
                    format!("{place}: tensor {name}"),
                    source.shape(name).map_or("nothing".into(), |shape| format!("shape {shape:?}")),
                    format!("shape {:?}", tensor.shape),
                    "go on with the model that the checkpoint is of, or start a new run in another folder",
                ));
            }
            match tensor.home {
                Home::Table(_) => self.load_table(source, name)?,
                Home::Parameter(of) => {
                    self.spec.parameters.write(&self.store, of, &source.floats_of(name)?)?
                }
                Home::Momentum(of) => {
                    self.spec.parameters.write_momentum(&self.store, of, &source.floats_of(name)?)?;
                }
            }
        }
        Ok(())
    }

    /// Hands the rows of a table (class weights, empirical prototypes) to `each` in order, some thousands at a time, with
    /// the class of the first: `[n, D]`, row-major. The host never holds the whole table.
    ///
    /// # Errors
    /// Where the model has no such table, the device was lost, or `each` fails.
    pub fn for_each_part(
        &self,
        table: &str,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let Some(tensor) = self.tensors(true).into_iter().find(|tensor| tensor.home == Home::Table(table))
        else {
            return Err(Error::usage(format!("the model has no table {table}"), "check its head"));
        };
        let &[classes, dimension] = tensor.shape.as_slice() else { return Ok(()) };
        let rows = (CHUNK / dimension).max(1);
        for first in (0..classes).step_by(rows) {
            let part = TensorDesc::f32([rows.min(classes - first), dimension]);
            let values = self.store.read_range(table, (first * dimension * 4) as u64, &part)?;
            each(first, values.as_f32()?)?;
        }
        Ok(())
    }

    /// All parameters as a state dict, with `num_batches_tracked` as PyTorch has it, after `step` steps. Holds all of them.
    ///
    /// # Errors
    /// Where the device was lost.
    pub fn state_dict(&self, step: u64) -> Result<StateDict> {
        let mut dict = self.counters(step);
        for Tensor { name, shape, home } in self.tensors(false) {
            let values = match home {
                Home::Table(table) => self.store.read(table)?.into_f32()?,
                Home::Parameter(of) => self.spec.parameters.read(&self.store, of)?,
                Home::Momentum(of) => self.spec.parameters.read_momentum(&self.store, of)?,
            };
            dict.insert(name, &shape, values);
        }
        Ok(dict)
    }

    /// The integers of the state dict, and its metadata.
    fn counters(&self, step: u64) -> StateDict {
        let mut dict = StateDict::default();
        let tracked = i64::try_from(step).unwrap_or(i64::MAX);
        for entry in self.spec.parameters.entries() {
            if let Some(layer) = entry.spec.name.strip_suffix("running_mean") {
                dict.tensors
                    .insert(format!("{layer}num_batches_tracked"), (vec![], Value::I64(vec![tracked])));
            }
        }
        dict.metadata.extend(self.spec.metadata(step));
        dict
    }

    /// The float tensors of a file of this model, with the momentum of what is trained where that is asked for.
    fn tensors(&self, momentum: bool) -> Vec<Tensor<'_>> {
        let mut all = Vec::new();
        for entry in self.spec.parameters.entries() {
            let (name, shape) = (entry.spec.name.as_str(), entry.spec.shape.dims().to_vec());
            if momentum && entry.spec.role.is_trained() {
                let (name, home) = (format!("{name}{MOMENTUM_SUFFIX}"), Home::Momentum(name));
                all.push(Tensor { name, shape: shape.clone(), home });
            }
            all.push(Tensor { name: name.into(), shape, home: Home::Parameter(name) });
        }
        for (name, desc, _) in self.spec.tables() {
            let shape = desc.shape.dims().to_vec();
            if momentum && name == HEAD_WEIGHT {
                let home = Home::Table(HEAD_MOMENTUM);
                all.push(Tensor { name: HEAD_MOMENTUM.into(), shape: shape.clone(), home });
            }
            all.push(Tensor { name: name.into(), shape, home: Home::Table(name) });
        }
        all
    }

    fn write_tensor(&self, tensors: &[Tensor<'_>], name: &str, sink: &mut Sink<'_>) -> Result<()> {
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name) else { return Ok(()) };
        let values = match tensor.home {
            Home::Table(table) => {
                return self.for_each_part(table, |_, values| sink.write(bytemuck::cast_slice(values)));
            }
            Home::Parameter(of) => self.spec.parameters.read(&self.store, of)?,
            Home::Momentum(of) => self.spec.parameters.read_momentum(&self.store, of)?,
        };
        sink.write(bytemuck::cast_slice(&values))
    }
}

/// A tensor of a file.
struct Tensor<'a> {
    name: String,
    shape: Vec<usize>,
    home: Home<'a>,
}

/// Where a tensor's values are on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home<'a> {
    /// The persistent tensor of that name, a table of a row a class.
    Table(&'a str),
    /// The parameter of that name, in its arena.
    Parameter(&'a str),
    /// The momentum of the parameter of that name, in the arena of momentum.
    Momentum(&'a str),
}

fn shapes<'a>(tensors: &'a [Tensor<'_>]) -> Vec<(&'a str, Vec<usize>)> {
    tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.clone())).collect()
}
