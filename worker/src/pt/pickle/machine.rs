//! The stack machine of the pickle language, in the part of it that torch's files are written in.

use std::collections::HashMap;
use std::sync::Arc;

use super::calls::Global;
use super::{MAX_DEPTH, MAX_VALUES, MAX_WORK, Pickle, PickleError, StorageRef, TensorRef, Value};

/// Runs the program at the start of `bytes` to its end.
pub(super) fn run(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        storages: Vec::new(),
        work: MAX_WORK,
    };
    let root = machine.run()?;
    let mut budget = MAX_VALUES;
    let value = machine.tree(root, 0, &mut budget)?;
    Ok(Pickle { value, len: machine.at, storages: machine.storages })
}

/// Index of a node. Pickles fill containers after they have handed them out, so values are kept in an
/// arena while the program runs and become a tree at its end.
pub(super) type Id = usize;

#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Tensor(Arc<TensorRef>),
    Storage(Arc<StorageRef>),
    Global(Global),
}

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) nodes: Vec<Node>,
    pub(super) stack: Vec<Id>,
    /// Heights of the stack where the open marks stand.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    pub(super) storages: Vec<Arc<StorageRef>>,
    /// What is left of [`MAX_WORK`].
    work: usize,
}

impl Machine<'_> {
    /// Runs to the STOP opcode and returns what it leaves.
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let at = self.at;
            self.spend(1)?;
            match self.take(1)?[0] {
                b'.' => return self.pop(),
                0x80 => match self.take(1)?[0] {
                    2..=5 => {}
                    _ => return Err(self.malformed("a protocol that is not 2 to 5")),
                },
                0x95 => drop(self.take(8)?.len()), // FRAME: a hint for reading ahead
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => self.stack.push(self.top()?),
                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'J' => {
                    let v = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(v.into()));
                }
                b'K' => {
                    let v = self.take(1)?[0];
                    self.push(Node::Int(v.into()));
                }
                b'M' => {
                    let v = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(v.into()));
                }
                0x8a => {
                    let n = self.take(1)?[0] as usize;
                    self.long(n)?;
                }
                0x8b => {
                    let n = self.len4()?;
                    self.long(n)?;
                }
                b'G' => {
                    let v = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(v));
                }
                b'X' | b'T' => {
                    let n = self.len4()?;
                    self.string(n)?;
                }
                0x8c | b'U' => {
                    let n = self.take(1)?[0] as usize;
                    self.string(n)?;
                }
                0x8d => {
                    let n = self.len8()?;
                    self.string(n)?;
                }
                b'B' => {
                    let n = self.len4()?;
                    self.raw(n)?;
                }
                b'C' => {
                    let n = self.take(1)?[0] as usize;
                    self.raw(n)?;
                }
                0x8e => {
                    let n = self.len8()?;
                    self.raw(n)?;
                }
                b']' => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                b')' => self.push(Node::Tuple(Vec::new())),
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.extend(items)?;
                }
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items));
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(Vec::new()));
                    self.set_items(items)?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items));
                }
                n @ 0x85..=0x87 => {
                    let from = self.floor_for((n - 0x84) as usize)?;
                    let items = self.stack.split_off(from);
                    self.push(Node::Tuple(items));
                }
                b'h' => {
                    let key = self.take(1)?[0].into();
                    self.recall(key)?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                b'q' => {
                    let key = self.take(1)?[0].into();
                    self.remember(key)?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&self.nodes[module], &self.nodes[name]) {
                        (Node::Str(module), Node::Str(name)) => {
                            let (module, name) = (module.clone(), name.clone());
                            self.global(&module, &name)?;
                        }
                        _ => return Err(self.malformed("a global's name is not a string")),
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.persistent(id)?;
                }
                b'R' => {
                    let (args, function) = (self.pop()?, self.pop()?);
                    self.reduce(function, args)?;
                }
                // BUILD: a state_dict carries its modules' versions as an attribute, `_metadata`;
                // no attribute of a dict or tensor is kept here.
                b'b' => {
                    self.pop()?;
                    match self.nodes[self.top()?] {
                        Node::Dict(_) | Node::Tensor(_) => {}
                        _ => return Err(self.malformed("attributes of something that has none")),
                    }
                }
                opcode => return Err(PickleError::Opcode { opcode, at }),
            }
        }
    }

    /// Takes `work` from what is left: an opcode is 1, and so is each number of a tensor's shape.
    pub(super) fn spend(&mut self, work: usize) -> Result<(), PickleError> {
        self.work = self.work.checked_sub(work).ok_or(PickleError::TooLarge)?;
        Ok(())
    }

    pub(super) fn malformed(&self, what: &'static str) -> PickleError {
        PickleError::Malformed { at: self.at, what }
    }

    fn take(&mut self, n: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(PickleError::Truncated { at: self.bytes.len() })?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn len4(&mut self) -> Result<usize, PickleError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn len8(&mut self) -> Result<usize, PickleError> {
        let n = u64::from_le_bytes(self.array()?);
        usize::try_from(n).map_err(|_| PickleError::Truncated { at: self.bytes.len() })
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n');
        let end = end.ok_or(PickleError::Truncated { at: self.bytes.len() })?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| self.malformed("a name is not UTF-8"))?;
        let line = line.to_owned();
        self.at += end + 1;
        Ok(line)
    }

    pub(super) fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// The lowest height that the stack may be popped to, `n` below its top.
    fn floor_for(&self, n: usize) -> Result<usize, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(n)
            .filter(|&from| from >= floor)
            .ok_or_else(|| self.malformed("its stack is empty"))
    }

    fn top(&self) -> Result<Id, PickleError> {
        Ok(self.stack[self.floor_for(1)?])
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleError> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleError> {
        let id = self.memo.get(&key).copied();
        self.stack.push(id.ok_or_else(|| self.malformed("it recalls what it never kept"))?);
        Ok(())
    }

    fn string(&mut self, n: usize) -> Result<(), PickleError> {
        let text = std::str::from_utf8(self.take(n)?).ok().map(Arc::from);
        let text = text.ok_or_else(|| self.malformed("a string is not UTF-8"))?;
        self.push(Node::Str(text));
        Ok(())
    }

    fn raw(&mut self, n: usize) -> Result<(), PickleError> {
        let bytes = Arc::from(self.take(n)?);
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    /// A little-endian two's complement integer of `n` bytes.
    fn long(&mut self, n: usize) -> Result<(), PickleError> {
        let bytes = self.take(n)?;
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        let fits = n <= wide.len();
        if fits {
            wide[..n].copy_from_slice(bytes);
            self.push(Node::Int(i128::from_le_bytes(wide)));
            return Ok(());
        }
        Err(self.malformed("an integer of more than 128 bits"))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::List(list) => list.extend(items),
            _ => return Err(self.malformed("it appends to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let top = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(self.malformed("a key without a value"));
        }
        match &mut self.nodes[top] {
            Node::Dict(dict) => dict.extend(items.chunks_exact(2).map(|kv| (kv[0], kv[1]))),
            _ => return Err(self.malformed("it sets an item of something that is no dict")),
        }
        Ok(())
    }

    /// The tree below `id`. A container that stands in two places is copied, which `budget` limits.
    fn tree(&self, id: Id, depth: usize, budget: &mut usize) -> Result<Value, PickleError> {
        *budget = budget.checked_sub(1).ok_or(PickleError::TooLarge)?;
        if depth > MAX_DEPTH {
            return Err(PickleError::Depth);
        }
        let mut below = |id: Id| self.tree(id, depth + 1, budget);
        Ok(match &self.nodes[id] {
            Node::None => Value::None,
            Node::Bool(v) => Value::Bool(*v),
            Node::Int(v) => Value::Int(*v),
            Node::Float(v) => Value::Float(*v),
            Node::Str(v) => Value::Str(v.clone()),
            Node::Bytes(v) => Value::Bytes(v.clone()),
            Node::Tensor(v) => Value::Tensor(v.clone()),
            Node::List(ids) => Value::List(ids.iter().map(|&id| below(id)).collect::<Result<_, _>>()?),
            Node::Tuple(ids) => Value::Tuple(ids.iter().map(|&id| below(id)).collect::<Result<_, _>>()?),
            Node::Dict(items) => {
                let pairs = items.iter().map(|&(key, value)| Ok((below(key)?, below(value)?)));
                Value::Dict(pairs.collect::<Result<_, _>>()?)
            }
            Node::Storage(_) | Node::Global(_) => {
                return Err(self.malformed("a class or a storage stands where a value should"));
            }
        })
    }
}
