//! Reverse-mode differentiation of a recorded graph: appends gradient ops, and only those that are needed.

use std::collections::HashMap;

use crate::graph::{Graph, Node};
use crate::op::{Gradient, Operand, Record, TensorId};
use crate::ops::{add, fill};
use crate::{DType, Error, Result};

/// Appends the ops that compute the gradient of `loss` (one element) with respect to each tensor of `wrt`.
/// Gradients of tensors that are used several times are added in a fixed order. Fails where an op on the way has no
/// gradient, or where the loss does not depend on a tensor.
pub fn backward(graph: &mut Graph, loss: TensorId, wrt: &[TensorId]) -> Result<Vec<TensorId>> {
    let loss_desc = graph.desc(loss).clone();
    if loss_desc.shape.elements() != 1 {
        return Err(Error::graph(
            format!("the loss has shape {}", loss_desc.shape),
            "reduce it to one element, for example with sum_all",
        ));
    }
    graph.set_scope("loss");
    let one = fill::fill(graph, loss_desc.shape, 1.0)?;
    backward_from(graph, loss, one, wrt)
}

/// Tensors of the forward pass that are made again for the gradients of the ops that take them, so that nothing but what
/// they are made from is kept in between (the cheapest part of Chen et al. 2016, arXiv 1604.06174: layers that cost next to
/// nothing). Recording an op whose output no gradient takes costs nothing, since a plan leaves it out.
struct Remade<'a> {
    /// By their output 0, the ops that can be asked to make it again.
    makers: HashMap<TensorId, &'a Node>,
    made: HashMap<TensorId, TensorId>,
}

impl<'a> Remade<'a> {
    fn new(graph: &Graph, nodes: &'a [Node]) -> Self {
        let makers = nodes.iter().filter(|node| graph.recomputes() && node.op.again().is_some());
        let makers = makers.filter_map(|node| Some((*node.outputs.first()?, node))).collect();
        Self { makers, made: HashMap::new() }
    }

    fn all(&mut self, graph: &mut Graph, ids: &[TensorId]) -> Result<Vec<TensorId>> {
        ids.iter().map(|&id| self.one(graph, id)).collect()
    }

    /// The tensor to take in the place of `id`.
    fn one(&mut self, graph: &mut Graph, id: TensorId) -> Result<TensorId> {
        if let Some(&made) = self.made.get(&id) {
            return Ok(made);
        }
        // What is kept anyhow need not be made again.
        let maker = self.makers.get(&id).filter(|_| !graph.kept().contains(&id));
        let Some((node, again)) = maker.and_then(|node| Some((*node, node.op.again()?))) else {
            return Ok(id);
        };
        let operand = |operand: &Operand| match *operand {
            Operand::Input(index) => node.inputs.get(index).copied(),
            Operand::Output(index) => node.outputs.get(index).copied(),
            Operand::Workspace(_) => None,
        };
        let Some(operands) = again.operands.iter().map(operand).collect::<Option<Vec<_>>>() else {
            return Err(Error::graph(
                format!("op {} cannot be made again from what it names", node.op.name()),
                "name inputs and outputs that it has",
            ));
        };
        let operands = self.all(graph, &operands)?;
        let made = match graph.push(again.op, &operands)?.as_slice() {
            [made] => *made,
            outputs => {
                return Err(Error::shape(
                    node.op.name(),
                    format!("{} outputs when made again", outputs.len()),
                    "one",
                ));
            }
        };
        self.made.insert(id, made);
        Ok(made)
    }
}

/// Appends the ops that carry `gradient`, that of some loss with respect to `output`, on to each tensor of `wrt`: the
/// part of the loss's gradient that goes through `output`. Otherwise as [`backward`].
pub fn backward_from(
    graph: &mut Graph,
    output: TensorId,
    gradient: TensorId,
    wrt: &[TensorId],
) -> Result<Vec<TensorId>> {
    let (want, got) = (graph.desc(output).clone(), graph.desc(gradient).clone());
    if want != got {
        return Err(Error::graph(
            format!("a gradient {got} of {} {want}", graph.tensor(output).name),
            "give the gradient the shape of what it is of",
        ));
    }
    let nodes = graph.nodes().to_vec();
    let mut depends = vec![false; graph.tensors().count()];
    let mark = |depends: &mut Vec<bool>, id: TensorId| {
        if let Some(flag) = depends.get_mut(id.0 as usize) {
            *flag = true;
        }
    };
    let is_marked = |depends: &[bool], id: TensorId| depends.get(id.0 as usize).copied().unwrap_or(false);
    for &id in wrt {
        mark(&mut depends, id);
    }
    for node in &nodes {
        if node.inputs.iter().any(|&id| is_marked(&depends, id)) {
            for &id in &node.outputs {
                mark(&mut depends, id);
            }
        }
    }

    let mut again = Remade::new(graph, &nodes);
    let mut gradients: HashMap<TensorId, TensorId> = HashMap::new();
    gradients.insert(output, gradient);
    for node in nodes.iter().rev() {
        let upstream: Vec<Option<TensorId>> =
            node.outputs.iter().map(|id| gradients.get(id).copied()).collect();
        let needed: Vec<bool> = node.inputs.iter().map(|&id| is_marked(&depends, id)).collect();
        if upstream.iter().all(Option::is_none) || !needed.contains(&true) {
            continue;
        }
        graph.set_scope(format!("gradient of {}", node.scope));
        let inputs = again.all(graph, &node.inputs)?;
        let mut gradient = Gradient {
            record: graph,
            inputs: &inputs,
            outputs: &node.outputs,
            upstream: &upstream,
            needed: &needed,
            result: vec![None; node.inputs.len()],
        };
        node.op.gradient(&mut gradient)?;
        let result = gradient.result;
        for ((&input, found), needed) in node.inputs.iter().zip(result).zip(needed) {
            let Some(found) = found.filter(|_| needed) else { continue };
            // What is stored in 16 bits, such as a copy of weights, may have a gradient that is not.
            let (want, got) = (graph.desc(input).clone(), graph.desc(found).clone());
            if got != want && got != want.with(DType::F32) {
                return Err(Error::shape(
                    node.op.name(),
                    format!("a gradient {got} for an input {want}"),
                    "the same shape",
                ));
            }
            let total = match gradients.get(&input) {
                Some(&earlier) => add::add(graph, earlier, found)?,
                None => found,
            };
            gradients.insert(input, total);
        }
    }
    graph.set_scope("");
    wrt.iter()
        .map(|id| {
            gradients.get(id).copied().ok_or_else(|| {
                Error::graph(
                    format!("{} does not depend on {}", graph.tensor(output).name, graph.tensor(*id).name),
                    "leave it out of the trained tensors",
                )
            })
        })
        .collect()
}
