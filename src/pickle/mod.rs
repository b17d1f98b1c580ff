//! A pickle reader that never runs anything.
//!
//! A pickle is a program for a small stack machine whose instructions may import and call anything. This
//! machine carries out the instructions that build plain values; an import becomes a name, checked against the
//! caller's list, and a call becomes a node that records what would have been called with what. What such a node
//! means is for the caller to decide.
//!
//! All values live in one array and refer to each other by index, so that shared and cyclic values need
//! nothing special, nothing recurses, and memory is bounded by the input's size and a limit on values. Byte
//! strings are borrowed from the input. Protocols 0 to 4.

mod machine;
mod text;

use std::borrow::Cow;

/// A value's place in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// `bytes` of Python 3, `str` of Python 2.
    Bytes(Cow<'a, [u8]>),
    /// `str` of Python 3, `unicode` of Python 2.
    Str(Cow<'a, str>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A set or frozen set.
    Set(Vec<Id>),
    /// A dict, in the order of its building, with any repeated keys.
    Dict(Vec<(Id, Id)>),
    /// Something imported: a module's name and a name in it. Never looked up.
    Global(&'a str, &'a str),
    /// The result of a call, which is recorded and not made.
    Object(Box<Object>),
    /// Something stored outside the pickle, by its identifier.
    Persistent(Id),
}

/// How a pickle says that an object is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making {
    /// By a call, which runs whatever is named: `REDUCE`, `INST`, `OBJ`.
    Call,
    /// By a class's `__new__`, without its initialiser: `NEWOBJ`, `NEWOBJ_EX`.
    New,
}

/// A call, and what was done with its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// How it is made.
    pub making: Making,
    /// What is called: a [`Node::Global`].
    pub callable: Id,
    /// Its arguments: a [`Node::Tuple`].
    pub args: Id,
    /// What the object's state is set to.
    pub state: Option<Id>,
    /// What is appended or added, if it is a kind of list or set.
    pub items: Vec<Id>,
    /// What is assigned by key, if it is a kind of dict.
    pub entries: Vec<(Id, Id)>,
}

/// What was found, and what was expected.
pub type Refusal = (String, &'static str);

/// What a pickle may name and make. Nothing is ever imported or called: a policy says what is data, and what only a
/// file would hold that wants to run something.
pub trait Policy {
    /// Whether `name` of `module` may be named.
    ///
    /// # Errors
    /// Where it may not.
    fn import(&self, module: &str, name: &str) -> Result<(), Refusal>;

    /// Whether an object may be made from `name` of `module`, which may be named.
    ///
    /// # Errors
    /// Where it may not.
    fn make(&self, _making: Making, _module: &str, _name: &str) -> Result<(), Refusal> {
        Ok(())
    }
}

/// The policy of a list: what may be named may be called.
struct Listed<F>(F);

impl<F: Fn(&str, &str) -> bool> Policy for Listed<F> {
    fn import(&self, module: &str, name: &str) -> Result<(), Refusal> {
        if (self.0)(module, name) {
            return Ok(());
        }
        Err((
            format!("a reference to {}", qualified(module, name)),
            "nothing but the plain data of such a file",
        ))
    }
}

/// A name with its module, safe to print.
pub fn qualified(module: &str, name: &str) -> String {
    format!("{}.{}", text::show(module.as_bytes()), text::show(name.as_bytes()))
}

/// Why a pickle was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The byte at which the refused instruction starts.
    pub offset: usize,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// The values of a pickle.
#[derive(Debug)]
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `input` starts with. `allow(module, name)` says which imports are accepted.
    ///
    /// # Errors
    /// An import that is not allowed, an instruction that is unknown, out of place or of protocol 5, an integer of
    /// more than 64 bits, more than 2^22 values, or the end of the input.
    pub fn parse(input: &'a [u8], allow: impl Fn(&str, &str) -> bool) -> Result<Self, Fault> {
        Self::parse_by(input, &Listed(allow))
    }

    /// The same with a policy.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_by(input: &'a [u8], policy: &dyn Policy) -> Result<Self, Fault> {
        let mut machine = machine::Machine::new(input, policy);
        let root = machine.run()?;
        let length = machine.position();
        Ok(Self { nodes: machine.into_nodes(), root, length })
    }

    /// The value that the pickle stands for.
    pub fn root(&self) -> Id {
        self.root
    }

    /// All values that the pickle built, whatever became of them.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        (0..self.nodes.len() as u32).map(Id)
    }

    /// The number of input bytes that the pickle took.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The value at `id`, which must be of this pickle.
    pub fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id.0 as usize).unwrap_or(&Node::None)
    }

    /// The elements of a tuple or a list.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// A recorded call: the module and name of what is called, its arguments, and the rest.
    pub fn call(&self, id: Id) -> Option<(&'a str, &'a str, &[Id], &Object)> {
        let Node::Object(object) = self.node(id) else { return None };
        let (Node::Global(module, name), Node::Tuple(args)) =
            (self.node(object.callable), self.node(object.args))
        else {
            return None;
        };
        Some((module, name, args, object))
    }

    /// What kind of value is at `id`, for messages.
    pub fn describe(&self, id: Id) -> String {
        match self.node(id) {
            Node::None => "None".to_owned(),
            Node::Bool(value) => if *value { "True" } else { "False" }.to_owned(),
            Node::Int(value) => format!("the integer {value}"),
            Node::Float(value) => format!("the number {value}"),
            Node::Bytes(bytes) => format!("a byte string of {} bytes", bytes.len()),
            Node::Str(text) => format!("a string of {} bytes", text.len()),
            Node::Tuple(items) => format!("a tuple of {}", items.len()),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Set(items) => format!("a set of {}", items.len()),
            Node::Dict(entries) => format!("a dict of {}", entries.len()),
            Node::Global(module, name) => qualified(module, name),
            Node::Object(object) => match self.node(object.callable) {
                Node::Global(module, name) => format!("an object made by {}", qualified(module, name)),
                _ => "an object".to_owned(),
            },
            Node::Persistent(_) => "a reference to something outside the pickle".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
