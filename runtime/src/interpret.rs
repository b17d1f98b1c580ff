//! Runs a graph through the CPU references of its ops, in f64. Slow and simple: the yardstick for everything else.

use std::collections::HashMap;

use crate::graph::{Graph, Storage};
use crate::op::TensorId;
use crate::{Array, Error, Result};

/// Values of tensors while a graph is interpreted.
#[derive(Clone, Debug, Default)]
pub struct Values {
    roots: HashMap<TensorId, Array>,
}

impl Values {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a tensor; a view writes into its base, which is zero until written.
    pub fn set(&mut self, graph: &Graph, id: TensorId, value: Array) -> Result<()> {
        let tensor = graph.tensor(id);
        if value.shape != tensor.desc.shape {
            return Err(Error::graph(
                format!(
                    "the reference of {} gives shape {}; declared {}",
                    tensor.name, value.shape, tensor.desc
                ),
                "correct the op's infer or reference",
            ));
        }
        let Storage::View { base, offset } = tensor.storage else {
            self.roots.insert(id, value);
            return Ok(());
        };
        let shape = graph.tensor(base).desc.shape.clone();
        let whole = self.roots.entry(base).or_insert_with(|| Array::zeros(shape));
        let first = offset as usize / 4;
        if let Some(part) = whole.data.get_mut(first..first + value.data.len()) {
            part.copy_from_slice(&value.data);
        }
        Ok(())
    }

    /// A tensor's value. Persistent tensors that were never set are zero.
    pub fn get(&self, graph: &Graph, id: TensorId) -> Result<Array> {
        let tensor = graph.tensor(id);
        let (root, offset) = graph.root(id);
        let Some(whole) = self.roots.get(&root) else {
            return match graph.tensor(root).storage {
                Storage::Persistent(_) => Ok(Array::zeros(tensor.desc.shape.clone())),
                _ => Err(Error::graph(
                    format!("{} has no value", tensor.name),
                    "set every input before interpreting",
                )),
            };
        };
        let first = offset as usize / 4;
        let data = whole.data.get(first..first + tensor.desc.shape.elements()).unwrap_or(&[]).to_vec();
        Ok(Array::new(tensor.desc.shape.clone(), data))
    }
}

/// Runs all nodes of `graph` in order, reading and writing `values`.
pub fn interpret(graph: &Graph, values: &mut Values) -> Result<()> {
    for node in graph.nodes() {
        let inputs: Vec<Array> =
            node.inputs.iter().map(|&id| values.get(graph, id)).collect::<Result<_>>()?;
        let results = node.op.reference(&inputs);
        let updated = node.op.updates().iter().filter_map(|&index| node.inputs.get(index));
        let targets: Vec<TensorId> = node.outputs.iter().chain(updated).copied().collect();
        if results.len() != targets.len() {
            return Err(Error::graph(
                format!(
                    "the reference of {} gives {} tensors; it has {} outputs and updates",
                    node.op.name(),
                    results.len(),
                    targets.len()
                ),
                "return the outputs, then the updated inputs",
            ));
        }
        for (id, value) in targets.into_iter().zip(results) {
            values.set(graph, id, value)?;
        }
    }
    Ok(())
}
