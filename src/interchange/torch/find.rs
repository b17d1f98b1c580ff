//! The tensors in what a pickle holds: a state dict, a checkpoint around one, or a whole module.

use std::collections::{HashSet, VecDeque};

use super::tensor::tensor;
use crate::pickle::{Id, Node, Pickle};

/// What holds tensors by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The keys that lead to it, joined by dots; empty for the whole.
    pub key: String,
    id: Id,
    form: Form,
}

/// How a candidate holds its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As the values of a dict.
    Dict,
    /// As the parameters and buffers of a module and of the modules in it.
    Module,
    /// It is one itself.
    Tensor,
}

/// The tensors of a candidate.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Names and what they stand for. A later one of the same name takes the place of an earlier one.
    pub tensors: Vec<(String, Id)>,
    /// The names of what is no tensor.
    pub others: Vec<String>,
}

/// Why nothing was found: what was found, what was expected, and what to do.
pub type Fault = (String, &'static str, String);

/// Names of what a checkpoint holds the network under, the likeliest first.
const LIKELY: &[&str] = &[
    "state_dict",
    // arcface_torch's checkpoints.
    "state_dict_backbone",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "backbone",
    "weights",
    "params",
];
/// What a tensor is called that was saved alone.
const ALONE: &str = "weight";
/// The key that stands for the whole.
const WHOLE: &str = ".";
/// How deep a state dict is looked for.
const MAX_DEPTH: usize = 6;
/// How deep modules may be nested.
const MAX_MODULES: usize = 64;
/// The longest key that is a name.
const MAX_KEY: usize = 512;
/// Work allowed, counted in values looked at and in bytes of names: far above any file in use, and low enough that a
/// small file whose parts refer to each other again and again is refused at once.
const BUDGET: usize = 16 << 20;

/// Looks for tensors in a pickle.
pub struct Finder<'p, 'a> {
    pickle: &'p Pickle<'a>,
    budget: usize,
}

impl<'p, 'a> Finder<'p, 'a> {
    /// Looks in `pickle`.
    pub fn new(pickle: &'p Pickle<'a>) -> Self {
        Self { pickle, budget: BUDGET }
    }

    /// Everything that holds tensors by name, the outermost first.
    ///
    /// # Errors
    /// Values that refer to each other beyond reason.
    pub fn candidates(&mut self) -> Result<Vec<Candidate>, Fault> {
        let root = self.pickle.root();
        if tensor(self.pickle, root).is_some() {
            return Ok(vec![Candidate { key: String::new(), id: root, form: Form::Tensor }]);
        }
        let mut found = Vec::new();
        let mut seen = HashSet::from([root]);
        let mut queue = VecDeque::from([(root, String::new(), 0)]);
        while let Some((id, key, depth)) = queue.pop_front() {
            if self.module(id)?.is_some() {
                found.push(Candidate { key, id, form: Form::Module });
                continue;
            }
            let children = self.children(id)?;
            if children.iter().any(|(_, value, in_dict)| *in_dict && tensor(self.pickle, *value).is_some()) {
                found.push(Candidate { key: key.clone(), id, form: Form::Dict });
            }
            if depth == MAX_DEPTH {
                continue;
            }
            for (name, value, _) in children {
                let holds = matches!(
                    self.pickle.node(value),
                    Node::Dict(_) | Node::Object(_) | Node::List(_) | Node::Tuple(_)
                );
                if holds && seen.insert(value) && tensor(self.pickle, value).is_none() {
                    let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                    self.spend(key.len())?;
                    queue.push_back((value, key, depth + 1));
                }
            }
        }
        Ok(found)
    }

    /// The tensors of `candidate` by name.
    ///
    /// # Errors
    /// A module that contains itself, and values that refer to each other beyond reason.
    pub fn tensors(&mut self, candidate: &Candidate) -> Result<Named, Fault> {
        let mut named = Named::default();
        match candidate.form {
            Form::Module => {
                self.tensors_of_module(candidate.id, "", &mut Vec::new(), &mut named)?;
                return Ok(named);
            }
            Form::Tensor => {
                named.tensors.push((ALONE.to_owned(), candidate.id));
                return Ok(named);
            }
            Form::Dict => {}
        }
        for (name, value, in_dict) in self.children(candidate.id)? {
            match tensor(self.pickle, value) {
                Some(_) if in_dict => named.tensors.push((name, value)),
                // Attributes of a dict, such as the versions of modules, are no part of what it holds.
                _ if in_dict => named.others.push(name),
                _ => {}
            }
        }
        Ok(named)
    }

    fn tensors_of_module(
        &mut self,
        id: Id,
        prefix: &str,
        above: &mut Vec<Id>,
        named: &mut Named,
    ) -> Result<(), Fault> {
        let Some(module) = self.module(id)? else { return Ok(()) };
        if above.contains(&id) {
            return Err(beyond("a module that contains itself"));
        }
        if above.len() >= MAX_MODULES {
            return Err(beyond("modules nested too deeply"));
        }
        above.push(id);
        let hidden = self.hidden_buffers(module.hidden)?;
        for (of_buffers, part) in [(false, module.parameters), (true, module.buffers)] {
            for (name, value) in self.named(part)? {
                self.spend(prefix.len() + name.len())?;
                if matches!(self.pickle.node(value), Node::None) || (of_buffers && hidden.contains(&name)) {
                    continue;
                }
                let full = format!("{prefix}{name}");
                match tensor(self.pickle, value) {
                    Some(_) => named.tensors.push((full, value)),
                    None => named.others.push(full),
                }
            }
        }
        for (name, value) in self.named(module.modules)? {
            self.spend(prefix.len() + name.len() + 1)?;
            self.tensors_of_module(value, &format!("{prefix}{name}."), above, named)?;
        }
        above.pop();
        Ok(())
    }

    /// The names of buffers that a state dict leaves out.
    fn hidden_buffers(&mut self, id: Option<Id>) -> Result<HashSet<String>, Fault> {
        let items = id.and_then(|id| match self.pickle.node(id) {
            Node::Set(items) => Some(items.as_slice()),
            // Protocol 2 has no sets: a call of `set` with a list.
            _ => self.pickle.call(id).and_then(|(_, _, args, _)| self.pickle.sequence(*args.first()?)),
        });
        let items = items.unwrap_or_default();
        self.spend(items.len())?;
        Ok(items.iter().filter_map(|&item| self.name(item)).collect())
    }

    /// The parts of a module, for an object that has them in its state.
    fn module(&mut self, id: Id) -> Result<Option<Module>, Fault> {
        let Node::Object(object) = self.pickle.node(id) else { return Ok(None) };
        let Some(Node::Dict(state)) = object.state.map(|state| self.pickle.node(state)) else {
            return Ok(None);
        };
        self.spend(state.len())?;
        let part = |wanted: &str| {
            let is_it = |key: Id| matches!(self.pickle.node(key), Node::Str(text) if text == wanted);
            state.iter().rev().find(|(key, _)| is_it(*key)).map(|(_, value)| *value)
        };
        let (Some(parameters), Some(buffers), Some(modules)) =
            (part("_parameters"), part("_buffers"), part("_modules"))
        else {
            return Ok(None);
        };
        Ok(Some(Module { parameters, buffers, modules, hidden: part("_non_persistent_buffers_set") }))
    }

    /// The entries of a dict of any kind that have names.
    fn named(&mut self, id: Id) -> Result<Vec<(String, Id)>, Fault> {
        let entries = match self.pickle.node(id) {
            Node::Dict(entries) => entries,
            Node::Object(object) => &object.entries,
            _ => return Ok(Vec::new()),
        };
        // Each is looked at several times.
        self.spend(entries.len().saturating_mul(4))?;
        let mut named = Vec::new();
        for &(key, value) in entries {
            if let Some(name) = self.name(key) {
                self.spend(name.len())?;
                named.push((name, value));
            }
        }
        Ok(named)
    }

    /// The values in a dict, in an object's attributes and in a list, by name, and whether they are in a dict.
    fn children(&mut self, id: Id) -> Result<Vec<(String, Id, bool)>, Fault> {
        let mut children: Vec<_> =
            self.named(id)?.into_iter().map(|(name, value)| (name, value, true)).collect();
        match self.pickle.node(id) {
            Node::Object(object) => {
                if let Some(state) = object.state {
                    children.extend(self.named(state)?.into_iter().map(|(name, value)| (name, value, false)));
                }
            }
            Node::List(items) | Node::Tuple(items) => {
                self.spend(items.len())?;
                children.extend(items.iter().enumerate().map(|(at, &item)| (at.to_string(), item, false)));
            }
            _ => {}
        }
        Ok(children)
    }

    fn name(&self, id: Id) -> Option<String> {
        match self.pickle.node(id) {
            Node::Str(text) if text.len() <= MAX_KEY => Some(text.to_string()),
            _ => None,
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Fault> {
        match self.budget.checked_sub(bytes.saturating_add(1)) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(beyond("values that refer to each other too often")),
        }
    }
}

struct Module {
    parameters: Id,
    buffers: Id,
    modules: Id,
    hidden: Option<Id>,
}

fn beyond(found: &str) -> Fault {
    let hint = "no training program writes such a file: do not trust it";
    (found.to_owned(), "a state dict or a module", hint.to_owned())
}

/// The candidate that `key` names, or the one that is meant where there is no key.
///
/// # Errors
/// No candidate at all, none with that key, and several of which none is likelier than the others.
pub fn choose<'c>(candidates: &'c [Candidate], key: Option<&str>) -> Result<&'c Candidate, Fault> {
    let shown = |key: &str| if key.is_empty() { WHOLE.to_owned() } else { key.to_owned() };
    let list = |candidates: &[Candidate]| {
        let mut names: Vec<_> = candidates.iter().take(12).map(|candidate| shown(&candidate.key)).collect();
        if candidates.len() > names.len() {
            names.push("...".to_owned());
        }
        names.join(", ")
    };
    if candidates.is_empty() {
        let hint = "save a state dict in Python: torch.save(model.state_dict(), new)";
        return Err((
            "no tensors by name".to_owned(),
            "a state dict, or a checkpoint or module with one",
            hint.into(),
        ));
    }
    if let Some(key) = key {
        let wanted = if key == WHOLE { "" } else { key };
        return candidates.iter().find(|candidate| candidate.key == wanted).ok_or_else(|| {
            let found = format!("no tensors under the key {key:?}");
            (found, "a key that leads to tensors", format!("keys that do: {}", list(candidates)))
        });
    }
    if let [only] = candidates {
        return Ok(only);
    }
    for likely in LIKELY {
        if let Some(found) = candidates.iter().find(|candidate| candidate.key == *likely) {
            return Ok(found);
        }
    }
    for likely in LIKELY {
        let below = |candidate: &&Candidate| {
            candidate.key.strip_prefix(likely).is_some_and(|rest| rest.starts_with('.'))
        };
        let mut found = candidates.iter().filter(below);
        if let (Some(only), None) = (found.next(), found.next()) {
            return Ok(only);
        }
    }
    if let Some(whole) = candidates.iter().find(|candidate| candidate.key.is_empty()) {
        return Ok(whole);
    }
    let found = format!("tensors under several keys: {}", list(candidates));
    Err((found, "one of them", "name one: epl convert IN OUT --key KEY, then use OUT".to_owned()))
}
