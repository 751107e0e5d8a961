//! Writes the pickles that `torch.load` reads, with `weights_only=True` too: protocol 2, and of functions
//! only those that rebuild a tensor.

use super::{TensorRef, Value};

/// Longest run of bytes that an opcode of protocol 2 can announce.
const MAX_LEN: usize = u32::MAX as usize;

/// The pickle of `value`. A dict becomes a plain dict, in its order; equal values give equal bytes.
///
/// # Errors
/// The name of the type of what protocol 2 has no opcode for: bytes, and strings of 4 GB.
pub fn write(value: &Value) -> Result<Vec<u8>, &'static str> {
    let mut out = b"\x80\x02".to_vec();
    append(&mut out, value)?;
    out.push(b'.');
    Ok(out)
}

fn append(out: &mut Vec<u8>, value: &Value) -> Result<(), &'static str> {
    match value {
        Value::None => out.push(b'N'),
        Value::Bool(true) => out.push(0x88),
        Value::Bool(false) => out.push(0x89),
        Value::Int(v) => int(out, *v),
        Value::Float(v) => {
            out.push(b'G');
            out.extend(v.to_be_bytes());
        }
        Value::Str(s) if s.len() <= MAX_LEN => text(out, s),
        Value::Str(_) | Value::Bytes(_) => return Err(value.type_name()),
        Value::List(items) => {
            out.extend(b"](");
            items.iter().try_for_each(|item| append(out, item))?;
            out.push(b'e');
        }
        Value::Tuple(items) => {
            out.push(b'(');
            items.iter().try_for_each(|item| append(out, item))?;
            out.push(b't');
        }
        Value::Dict(items) => {
            out.extend(b"}(");
            for (key, value) in items {
                append(out, key)?;
                append(out, value)?;
            }
            out.push(b'u');
        }
        Value::Tensor(tensor) => rebuild(out, tensor),
    }
    Ok(())
}

/// The call that makes a tensor of a storage on the CPU, without gradient and hooks.
fn rebuild(out: &mut Vec<u8>, tensor: &TensorRef) {
    let sizes = |out: &mut Vec<u8>, sizes: &[u64]| {
        out.push(b'(');
        sizes.iter().for_each(|&size| int(out, size.into()));
        out.push(b't');
    };
    let storage = &tensor.storage;
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(format!("ctorch\n{}\n", storage.dtype.storage()).as_bytes());
    text(out, &storage.key);
    text(out, "cpu");
    int(out, storage.numel.into());
    out.extend(b"tQ");
    int(out, (storage.start + tensor.offset).into());
    sizes(out, &tensor.shape);
    sizes(out, &tensor.strides);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.push(b'X');
    out.extend((s.len() as u32).to_le_bytes());
    out.extend(s.as_bytes());
}

fn int(out: &mut Vec<u8>, v: i128) {
    if let Ok(v) = u8::try_from(v) {
        out.extend([b'K', v]);
    } else if let Ok(v) = i32::try_from(v) {
        out.push(b'J');
        out.extend(v.to_le_bytes());
    } else {
        let bytes = v.to_le_bytes();
        out.extend([0x8a, bytes.len() as u8]);
        out.extend(bytes);
    }
}
