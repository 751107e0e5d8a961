//! Writes the zip form of `torch.save`: an uncompressed archive of a pickle and its storages.

use std::io::{self, Cursor, Seek, Write};
use std::sync::Arc;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::PtError;
use super::pickle::{self, Dtype, TensorRef, Value};

/// torch aligns entries so, and can then map them into memory.
const ALIGNMENT: u16 = 64;

/// Writes `root` to `out`; its tensors look into `storages`, little-endian elements, by their position
/// there as the storage's key. `torch.load(weights_only=True)` takes it. Equal arguments give equal bytes.
///
/// # Errors
/// Those of `out`, and [`io::ErrorKind::Unsupported`] for a value that [`pickle::write()`] refuses.
pub fn write(out: impl Write + Seek, root: &Value, storages: &[&[u8]]) -> io::Result<()> {
    let program = pickle::write(root).map_err(|what| {
        io::Error::new(io::ErrorKind::Unsupported, format!("{what} has no place in a file of torch.save"))
    })?;
    let mut writer = ZipWriter::new(out);
    let mut entry = |name: &str, content: &[u8]| -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(content.len() >= u32::MAX as usize);
        writer.start_file(format!("archive/{name}"), options)?;
        writer.write_all(content)
    };
    entry("data.pkl", &program)?;
    entry("byteorder", b"little")?;
    for (key, content) in storages.iter().enumerate() {
        entry(&format!("data/{key}"), content)?;
    }
    entry("version", b"3\n")?;
    writer.finish()?.flush()
}

/// The bytes of a file that holds one contiguous tensor: `data` is its elements, little-endian, of `dtype`.
///
/// # Errors
/// [`PtError::Bounds`] if the elements do not fill the shape.
pub fn write_tensor(shape: &[u64], dtype: Dtype, data: &[u8]) -> Result<Vec<u8>, PtError> {
    let tensor = TensorRef::dense(0, dtype, shape.to_vec());
    if tensor.storage.numel.checked_mul(dtype.size() as u64) != Some(data.len() as u64) {
        return Err(PtError::Bounds { shape: tensor.shape, numel: (data.len() / dtype.size()) as u64 });
    }
    let root = Value::Tensor(Arc::new(tensor));
    let mut out = Cursor::new(Vec::with_capacity(data.len() + 1024));
    write(&mut out, &root, &[data]).map_err(super::damaged)?;
    Ok(out.into_inner())
}
