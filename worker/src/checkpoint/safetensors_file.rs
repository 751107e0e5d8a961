//! The safetensors format: eight bytes of length, a JSON header, the tensors' memory one after the other.
//! Written here by hand so that it can be streamed, in a fixed order; read with the crate, which checks it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use tch::{Kind, Tensor};

use crate::model::StateDict;
use crate::torch;

/// How each kind is called in a header.
const KINDS: [(Kind, Dtype, &str); 10] = [
    (Kind::Float, Dtype::F32, "F32"),
    (Kind::Double, Dtype::F64, "F64"),
    (Kind::Half, Dtype::F16, "F16"),
    (Kind::BFloat16, Dtype::BF16, "BF16"),
    (Kind::Int64, Dtype::I64, "I64"),
    (Kind::Int, Dtype::I32, "I32"),
    (Kind::Int16, Dtype::I16, "I16"),
    (Kind::Int8, Dtype::I8, "I8"),
    (Kind::Uint8, Dtype::U8, "U8"),
    (Kind::Bool, Dtype::BOOL, "BOOL"),
];

/// What goes into a file: tensors under their names, and text by key.
pub struct Contents<'a> {
    tensors: Vec<(Cow<'a, str>, &'a Tensor)>,
    pub metadata: BTreeMap<String, String>,
}

impl<'a> Contents<'a> {
    pub fn new(
        tensors: impl IntoIterator<Item = (Cow<'a, str>, &'a Tensor)>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        // Wide elements first: readers that map the file need every tensor aligned to its element.
        tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
        Self { tensors, metadata }
    }

    /// Bytes of all tensors.
    fn data_len(&self) -> u64 {
        self.tensors.iter().map(|(_, tensor)| byte_len(tensor)).sum()
    }

    /// Length and header, the file's first bytes. Equal contents give equal bytes.
    pub fn head(&self) -> io::Result<Vec<u8>> {
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), serde_json::to_value(&self.metadata)?);
        }
        let mut offset = 0;
        for (name, tensor) in &self.tensors {
            let kind = tensor.kind();
            let Some((_, _, dtype)) = KINDS.iter().find(|(k, _, _)| *k == kind) else {
                return Err(io::Error::other(format!(
                    "{name} is of kind {kind:?}, which has no place in safetensors"
                )));
            };
            let end = offset + byte_len(tensor);
            let entry =
                serde_json::json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [offset, end]});
            header.insert(name.to_string(), entry);
            offset = end;
        }
        let mut json = serde_json::to_vec(&header)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut head = (json.len() as u64).to_le_bytes().to_vec();
        head.append(&mut json);
        Ok(head)
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> io::Result<u64> {
        Ok(self.head()?.len() as u64 + self.data_len())
    }

    /// Streams the tensors' memory; at most one of them is copied at a time.
    pub fn write_data(&self, writer: &mut impl Write) -> io::Result<()> {
        for (_, tensor) in &self.tensors {
            let dense = tensor.f_contiguous().map_err(io::Error::other)?;
            writer.write_all(torch::as_bytes(&dense).map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    /// The whole file.
    pub fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        writer.write_all(&self.head()?)?;
        self.write_data(writer)
    }
}

fn byte_len(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// The header of `file`, checked by the crate against the file's length, and where the data starts.
pub fn parse(file: &[u8]) -> Result<(Metadata, usize), String> {
    let (header_len, metadata) = SafeTensors::read_metadata(file).map_err(|error| error.to_string())?;
    Ok((metadata, header_len + size_of::<u64>()))
}

/// Copies every tensor out of `file`, in the order in which they lie there.
pub fn tensors(file: &[u8], metadata: &Metadata, data_start: usize) -> Result<StateDict, String> {
    let mut entries: Vec<_> = metadata.tensors().into_iter().collect();
    entries.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, info) in entries {
        let Some((kind, _, _)) = KINDS.iter().find(|(_, dtype, _)| *dtype == info.dtype) else {
            return Err(format!("{name} holds {:?}, which is not supported", info.dtype));
        };
        let shape = info.shape.iter().map(|&side| i64::try_from(side)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| format!("the shape of {name} is out of range"))?;
        let (start, end) = info.data_offsets;
        let bytes =
            file.get(data_start + start..data_start + end).ok_or(format!("{name} lies outside the file"))?;
        let tensor = torch::from_bytes(bytes, &shape, *kind).map_err(|error| format!("{name}: {error}"))?;
        tensors.push((name, tensor));
    }
    Ok(tensors)
}
