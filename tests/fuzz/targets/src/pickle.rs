//! Pickles, the files of `torch.save` around them, and weights in such files and in safetensors.

use std::path::Path;

use worker::pt::PtFile;
use worker::pt::pickle::{self, Value};
use worker::weights;

use crate::Target;

pub const TARGET: Target = Target {
    name: "pickle",
    run,
    seeds: &["worker/src/labels/testdata", "tests/testdata"],
    // One byte can push a value of 48 bytes into an arena that doubles, and that becomes a tree.
    amplification: 1024,
};

fn run(input: &[u8]) {
    if let Ok(read) = pickle::read(input) {
        assert!(read.len <= input.len());
        // What the writer has words for says the same when it is read again.
        if let Ok(written) = pickle::write(&read.value) {
            let again = pickle::read(&written).expect("what was written is read");
            assert_eq!(again.len, written.len());
            assert_eq!(pickle::write(&again.value).as_ref(), Ok(&written));
        }
    }
    if let Ok(file) = PtFile::parse(input.to_vec()) {
        let mut left = 64;
        copy_out(&file, file.root(), &mut left);
    }
    // Its tensors are libtorch's, whose memory is not counted: limits there are the reader's own.
    let _ = weights::parse(Path::new("input"), input.to_vec());
}

/// Copies out the first `left` tensors below `value`.
fn copy_out(file: &PtFile, value: &Value, left: &mut usize) {
    match value {
        Value::List(items) | Value::Tuple(items) => {
            items.iter().for_each(|item| copy_out(file, item, left));
        }
        Value::Dict(items) => items.iter().for_each(|(key, value)| {
            copy_out(file, key, left);
            copy_out(file, value, left);
        }),
        Value::Tensor(tensor) if *left > 0 => {
            *left -= 1;
            let Ok(bytes) = file.contiguous(tensor) else { return };
            let elements: u64 = tensor.shape.iter().product();
            assert_eq!(bytes.len() as u64, elements * tensor.storage.dtype.size() as u64);
            if let Ok(floats) = file.floats(tensor) {
                assert_eq!(floats.len() as u64, elements);
            }
        }
        _ => {}
    }
}
