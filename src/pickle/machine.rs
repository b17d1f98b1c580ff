//! The stack machine that a pickle is a program for.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Fault, Id, Making, Node, Object, Policy, Refusal, text};

/// The most values that one pickle may build: far above any list of images or state dict, and low enough that
/// one-byte instructions cannot fill the memory.
pub const MAX_VALUES: usize = 1 << 22;

/// Where it was refused is added by the loop over the instructions.
type Step<T> = Result<T, Refusal>;

/// The state of a run.
pub struct Machine<'a, 'f> {
    input: &'a [u8],
    position: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// The stack's heights at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    policy: &'f dyn Policy,
}

impl<'a, 'f> Machine<'a, 'f> {
    /// A machine at the start of `input`.
    pub fn new(input: &'a [u8], policy: &'f dyn Policy) -> Self {
        let (nodes, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { input, position: 0, nodes, stack, marks, memo: HashMap::new(), policy }
    }

    /// Runs to the pickle's end and returns its result.
    pub fn run(&mut self) -> Result<Id, Fault> {
        loop {
            let offset = self.position;
            match self.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(root),
                Err((found, expected)) => return Err(Fault { offset, found, expected: expected.to_owned() }),
            }
        }
    }

    /// The number of bytes read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The values that were built.
    pub fn into_nodes(self) -> Vec<Node<'a>> {
        self.nodes
    }

    /// Carries out an instruction; the result if it was the last. The letters are those of Python's `pickle.py`.
    fn step(&mut self) -> Step<Option<Id>> {
        match self.byte()? {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            0x95 => self.frame()?,

            b'(' => self.mark()?,
            b'0' => self.pop_or_unmark()?,
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.put(top)?;
            }

            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'I' => self.text_integer()?,
            b'L' => self.text_long()?,
            b'J' => self.integer::<4>(true)?,
            b'K' => self.integer::<1>(false)?,
            b'M' => self.integer::<2>(false)?,
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'F' => self.text_float()?,
            b'G' => {
                let bytes = *self.array::<8>()?;
                self.push(Node::Float(f64::from_be_bytes(bytes)))?;
            }

            b'S' => self.text_bytes()?,
            b'U' | b'C' => self.bytes::<1>()?,
            b'T' | b'B' => self.bytes::<4>()?,
            0x8e => self.bytes::<8>()?,
            b'V' => self.text_string()?,
            0x8c => self.string::<1>()?,
            b'X' => self.string::<4>()?,
            0x8d => self.string::<8>()?,

            b')' => self.push(Node::Tuple(Vec::new()))?,
            b't' => self.tuple_to_mark()?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b']' => self.push(Node::List(Vec::new()))?,
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend(items)?;
            }
            0x8f => self.push(Node::Set(Vec::new()))?,
            0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::Set(items))?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'd' => {
                let entries = pairs(&self.pop_to_mark()?)?;
                self.push(Node::Dict(entries))?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.assign(vec![(key, value)])?;
            }
            b'u' => {
                let entries = pairs(&self.pop_to_mark()?)?;
                self.assign(entries)?;
            }

            b'p' => {
                let key = self.memo_line()?;
                self.remember(key)?;
            }
            b'q' => {
                let key = self.number::<1>()?;
                self.remember(key)?;
            }
            b'r' => {
                let key = self.number::<4>()?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'g' => {
                let key = self.memo_line()?;
                self.recall(key)?;
            }
            b'h' => {
                let key = self.number::<1>()?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number::<4>()?;
                self.recall(key)?;
            }

            b'c' => {
                let (module, name) = (self.name_line()?, self.name_line()?);
                self.global(module, name)?;
            }
            0x93 => self.stack_global()?,
            b'R' => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.object(Making::Call, callable, args)?;
            }
            0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.object(Making::New, callable, args)?;
            }
            0x92 => {
                let (keywords, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                if !matches!(self.get(keywords), Node::Dict(entries) if entries.is_empty()) {
                    return Err(("a call with keyword arguments".to_owned(), "positional arguments"));
                }
                self.object(Making::New, callable, args)?;
            }
            b'i' => {
                let (module, name) = (self.name_line()?, self.name_line()?);
                let args = self.pop_to_mark()?;
                self.global(module, name)?;
                self.push(Node::Tuple(args))?;
                let (args, callable) = (self.pop()?, self.pop()?);
                self.object(Making::Call, callable, args)?;
            }
            b'o' => {
                let items = self.pop_to_mark()?;
                let Some((&callable, args)) = items.split_first() else {
                    return Err(("an object of no class".to_owned(), "a class and its arguments"));
                };
                self.push(Node::Tuple(args.to_vec()))?;
                let args = self.pop()?;
                self.object(Making::Call, callable, args)?;
            }
            b'b' => self.build()?,
            b'P' => {
                let id = Node::Bytes(Cow::Borrowed(self.line()?));
                self.push(id)?;
                self.persistent()?;
            }
            b'Q' => self.persistent()?,

            0x82..=0x84 => {
                return Err(("a reference to Python's extension registry".to_owned(), "plain values"));
            }
            0x96..=0x98 => return Err(("an instruction of protocol 5".to_owned(), "protocol 0 to 4")),
            other => {
                return Err((format!("the unknown instruction {other:#04x}"), "a pickle of protocol 0 to 4"));
            }
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let rest = self.input.get(self.position..).unwrap_or_default();
        let Some(bytes) = rest.get(..length) else {
            return Err((format!("the end of the input after {} bytes", rest.len()), "more of the pickle"));
        };
        self.position += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Step<&'a [u8; N]> {
        let bytes = self.take(N)?;
        bytes.first_chunk().ok_or_else(|| ("the end of the input".to_owned(), "more of the pickle"))
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// An unsigned number of N bytes.
    fn number<const N: usize>(&mut self) -> Step<u64> {
        Ok(self.array::<N>()?.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte)))
    }

    /// What a number of N bytes says is the length of.
    fn counted<const N: usize>(&mut self) -> Step<&'a [u8]> {
        let length = self.number::<N>()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// What stands before the next line feed.
    fn line(&mut self) -> Step<&'a [u8]> {
        let rest = self.input.get(self.position..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(("a line without an end".to_owned(), "a line feed"));
        };
        let line = self.take(length)?;
        self.position += 1;
        Ok(line)
    }

    fn name_line(&mut self) -> Step<&'a str> {
        let line = self.line()?;
        std::str::from_utf8(line)
            .map_err(|_| ("a name that is not UTF-8".to_owned(), "a module's or a class's name"))
    }

    fn memo_line(&mut self) -> Step<u64> {
        let line = self.line()?;
        text::decimal(line)
            .and_then(|key| u64::try_from(key).ok())
            .ok_or_else(|| (text::show(line), "a memo's number"))
    }

    /// One-byte instructions grow the stack, the marks and the memo as well: they are bounded as the values are.
    fn room(length: usize) -> Step<()> {
        match length < MAX_VALUES {
            true => Ok(()),
            false => {
                Err((format!("more than {MAX_VALUES} entries at once"), "a pickle of a reasonable size"))
            }
        }
    }

    fn put(&mut self, id: Id) -> Step<()> {
        Self::room(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Step<()> {
        Self::room(self.marks.len())?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) -> Step<()> {
        if self.nodes.len() >= MAX_VALUES {
            return Err((format!("more than {MAX_VALUES} values"), "fewer"));
        }
        self.stack.push(Id(self.nodes.len() as u32));
        self.nodes.push(node);
        Ok(())
    }

    fn get(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id.0 as usize).unwrap_or(&Node::None)
    }

    fn top(&self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err(("an empty stack".to_owned(), "a value on it")),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_or_unmark(&mut self) -> Step<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let Some(mark) = self.marks.pop() else {
            return Err(("no mark on the stack".to_owned(), "a mark"));
        };
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn protocol(&mut self) -> Step<()> {
        match self.byte()? {
            0..=4 => Ok(()),
            other => {
                Err((format!("pickle protocol {other}"), "protocol 0 to 4 (pickle.dump(..., protocol=4))"))
            }
        }
    }

    /// A frame only says how much may be read at once; its instructions follow like any others.
    fn frame(&mut self) -> Step<()> {
        let length = self.number::<8>()?;
        let left = self.input.len().saturating_sub(self.position) as u64;
        if length > left {
            return Err((format!("a frame of {length} bytes with {left} left"), "the whole frame"));
        }
        Ok(())
    }

    fn integer<const N: usize>(&mut self, signed: bool) -> Step<()> {
        let value = self.number::<N>()?;
        self.push(Node::Int(if signed { i64::from(value as u32 as i32) } else { value as i64 }))
    }

    /// A two's-complement integer of as many bytes as a number of N bytes says.
    fn long<const N: usize>(&mut self) -> Step<()> {
        let bytes = self.counted::<N>()?;
        let mut extended = match bytes.last() {
            Some(last) if last & 0x80 != 0 => [0xff; 8],
            _ => [0; 8],
        };
        let Some(low) = extended.get_mut(..bytes.len()) else {
            return Err((format!("an integer of {} bytes", bytes.len()), "at most 8 bytes"));
        };
        low.copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(extended)))
    }

    fn bytes<const N: usize>(&mut self) -> Step<()> {
        let bytes = self.counted::<N>()?;
        self.push(Node::Bytes(Cow::Borrowed(bytes)))
    }

    fn string<const N: usize>(&mut self) -> Step<()> {
        let bytes = self.counted::<N>()?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| ("a string that is not UTF-8".to_owned(), "UTF-8"))?;
        self.push(Node::Str(Cow::Borrowed(text)))
    }

    fn text_integer(&mut self) -> Step<()> {
        let node = match self.line()? {
            b"00" => Node::Bool(false),
            b"01" => Node::Bool(true),
            line => {
                Node::Int(text::decimal(line).ok_or_else(|| (text::show(line), "an integer of 64 bits"))?)
            }
        };
        self.push(node)
    }

    fn text_long(&mut self) -> Step<()> {
        let line = self.line()?;
        let digits = line.strip_suffix(b"L").unwrap_or(line);
        let value = text::decimal(digits).ok_or_else(|| (text::show(line), "an integer of 64 bits"))?;
        self.push(Node::Int(value))
    }

    fn text_float(&mut self) -> Step<()> {
        let line = self.line()?;
        let value = std::str::from_utf8(line).ok().and_then(|line| line.trim().parse().ok());
        self.push(Node::Float(value.ok_or_else(|| (text::show(line), "a number"))?))
    }

    fn text_bytes(&mut self) -> Step<()> {
        let line = self.line()?;
        let bytes = text::byte_literal(line).ok_or_else(|| (text::show(line), "a quoted string"))?;
        self.push(Node::Bytes(Cow::Owned(bytes)))
    }

    fn text_string(&mut self) -> Step<()> {
        let line = self.line()?;
        let string =
            text::raw_unicode(line).ok_or_else(|| (text::show(line), "a raw-unicode-escape string"))?;
        self.push(Node::Str(Cow::Owned(string)))
    }

    fn tuple_to_mark(&mut self) -> Step<()> {
        let items = self.pop_to_mark()?;
        self.push(Node::Tuple(items))
    }

    fn tuple(&mut self, length: usize) -> Step<()> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Node::Tuple(items))
    }

    fn top_node(&mut self) -> Step<&mut Node<'a>> {
        let top = self.top()?;
        self.nodes.get_mut(top.0 as usize).ok_or_else(|| ("an empty stack".to_owned(), "a value on it"))
    }

    fn extend(&mut self, mut items: Vec<Id>) -> Step<()> {
        match self.top_node()? {
            Node::List(list) | Node::Set(list) => list.append(&mut items),
            Node::Object(object) => object.items.append(&mut items),
            _ => {
                return Err((
                    "items for something that is not a list or a set".to_owned(),
                    "a list or a set",
                ));
            }
        }
        Ok(())
    }

    fn assign(&mut self, mut new: Vec<(Id, Id)>) -> Step<()> {
        match self.top_node()? {
            Node::Dict(entries) => entries.append(&mut new),
            Node::Object(object) => object.entries.append(&mut new),
            _ => return Err(("entries for something that is not a dict".to_owned(), "a dict")),
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Step<()> {
        let top = self.top()?;
        if !self.memo.contains_key(&key) {
            Self::room(self.memo.len())?;
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Step<()> {
        let Some(&id) = self.memo.get(&key) else {
            return Err((format!("memo {key}, which was never set"), "a memo that was set"));
        };
        self.put(id)
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Step<()> {
        self.policy.import(module, name)?;
        self.push(Node::Global(module, name))
    }

    fn stack_global(&mut self) -> Step<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.get(module), self.get(name)) {
            (&Node::Str(Cow::Borrowed(module)), &Node::Str(Cow::Borrowed(name))) => self.global(module, name),
            _ => Err(("an import of something that is not a name".to_owned(), "two strings")),
        }
    }

    fn object(&mut self, making: Making, callable: Id, args: Id) -> Step<()> {
        let &Node::Global(module, name) = self.get(callable) else {
            return Err(("a call of something that was not imported".to_owned(), "an imported name"));
        };
        self.policy.make(making, module, name)?;
        if !matches!(self.get(args), Node::Tuple(_)) {
            return Err(("arguments that are not a tuple".to_owned(), "a tuple"));
        }
        let object = Object { making, callable, args, state: None, items: Vec::new(), entries: Vec::new() };
        self.push(Node::Object(Box::new(object)))
    }

    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        match self.top_node()? {
            Node::Object(object) if object.state.is_none() => object.state = Some(state),
            Node::Object(_) => return Err(("a second state for an object".to_owned(), "one")),
            _ => return Err(("a state for something that is not an object".to_owned(), "an object")),
        }
        Ok(())
    }

    fn persistent(&mut self) -> Step<()> {
        let id = self.pop()?;
        self.push(Node::Persistent(id))
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err(("a key without a value".to_owned(), "keys and values"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
