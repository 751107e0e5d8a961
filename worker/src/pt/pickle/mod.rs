//! Reads the pickles that `torch.save` writes, without running anything, and writes such.
//!
//! A pickle is a program for a stack machine that may name any function and have it called. This reader
//! builds a closed set of values instead, and knows by name the few functions that torch's own files
//! call; every other name is an error. So a hostile file can at worst be refused: the work and the
//! memory are linear in its length and limited, and so are nesting and size of the result.

use std::fmt;
use std::sync::Arc;

mod calls;
mod machine;
mod write;

pub use write::write;

/// Deepest nesting of containers that is read. Optimizer states are five or six levels deep.
pub const MAX_DEPTH: usize = 64;
/// Most values that one pickle may hold, counting those that it mentions twice once for each mention.
pub const MAX_VALUES: usize = 1 << 20;
/// Most opcodes that one pickle may have, and numbers in the shapes of its tensors: each can hold memory, of which
/// this makes 150 MB at most. The checkpoint of a ResNet-152 with its optimizer has under 100,000.
pub const MAX_WORK: usize = 1 << 21;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 64;

/// What a pickle of `torch.save` can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    /// Python's integers have no limit; those of more than 128 bits are refused.
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// A dict or OrderedDict, in the order of its keys. A key that is set twice stands twice.
    Dict(Vec<(Value, Value)>),
    /// A tensor or parameter, whose elements stand elsewhere in the file.
    Tensor(Arc<TensorRef>),
}

impl Value {
    /// The value of the string key `key`, where this is a dict that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Dict(items) = self else { return None };
        items.iter().rev().find(|(k, _)| matches!(k, Value::Str(s) if &**s == key)).map(|(_, v)| v)
    }

    /// What this is, in Python's words, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Str(_) => "a str",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// Element types of torch's typed storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    pub const ALL: [Dtype; 10] = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::Bool,
    ];

    /// The class of a storage of such elements, in torch's module `torch`.
    fn storage(self) -> &'static str {
        match self {
            Dtype::F64 => "DoubleStorage",
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            Dtype::I64 => "LongStorage",
            Dtype::I32 => "IntStorage",
            Dtype::I16 => "ShortStorage",
            Dtype::I8 => "CharStorage",
            Dtype::U8 => "ByteStorage",
            Dtype::Bool => "BoolStorage",
        }
    }

    fn of_storage(class: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.storage() == class)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F64 => "float64",
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::I64 => "int64",
            Dtype::I32 => "int32",
            Dtype::I16 => "int16",
            Dtype::I8 => "int8",
            Dtype::U8 => "uint8",
            Dtype::Bool => "bool",
        })
    }
}

/// A run of elements in the file that tensors look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageRef {
    /// Names the storage inside its file.
    pub key: Arc<str>,
    pub dtype: Dtype,
    /// Elements of the whole storage, as the pickle claims.
    pub numel: u64,
    /// First element of the part that this reference sees; only legacy files have views of storages.
    pub start: u64,
}

/// A strided view of a storage, as `torch._utils._rebuild_tensor_v2` takes it. Nothing in it has been
/// checked against the storage yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    pub storage: Arc<StorageRef>,
    /// Elements from the storage's `start` to the first element of the tensor.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Elements between neighbours along each dimension; as many as `shape` has.
    pub strides: Vec<u64>,
}

impl TensorRef {
    /// The whole of the storage named `key` in row-major order, which is how [`crate::pt::write()`] names
    /// storages.
    pub fn dense(key: usize, dtype: Dtype, shape: Vec<u64>) -> Self {
        let storage =
            StorageRef { key: key.to_string().into(), dtype, numel: shape.iter().product(), start: 0 };
        let strides = (1..=shape.len()).map(|next| shape[next..].iter().product()).collect();
        Self { storage: Arc::new(storage), offset: 0, shape, strides }
    }
}

/// Why a pickle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    #[error("its pickle ends in the middle, at byte {at}")]
    Truncated { at: usize },
    #[error(
        "its pickle asks for `{name}`, which plain tensors never need; refused, and nothing of it was run"
    )]
    Global { name: String },
    #[error("its pickle has opcode 0x{opcode:02x} at byte {at}, which torch.save does not write")]
    Opcode { opcode: u8, at: usize },
    #[error("its pickle is malformed at byte {at}: {what}")]
    Malformed { at: usize, what: &'static str },
    #[error("its pickle nests deeper than {MAX_DEPTH} levels or contains itself")]
    Depth,
    #[error(
        "its pickle holds more than {MAX_VALUES} values, or takes more than {MAX_WORK} steps to make them"
    )]
    TooLarge,
}

/// One pickle read from the start of some bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Pickle {
    pub value: Value,
    /// Every storage that the pickle mentions, one for each mention.
    pub storages: Vec<Arc<StorageRef>>,
    /// Bytes that the pickle took.
    pub len: usize,
}

/// Reads the pickle that `bytes` starts with, protocols 2 to 5; what follows it is left alone.
pub fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    machine::run(bytes)
}

#[cfg(test)]
mod tests;
