//! One image's label map: the best classes of each cell of a grid over the whole image.

use half::f16;

use crate::pt::pickle::{Dtype, Value};
use crate::pt::{Format, PtError, PtFile, write_tensor};

/// Most cells along a side, and most classes a cell, that are read.
const MAX_SIDE: u64 = 1024;

/// Why the content of a file is no label map for this run. The messages follow a file name.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(transparent)]
    Pt(#[from] PtError),
    #[error("it holds {found}; wanted a tensor of shape [2, k, height, width]")]
    NotTensor { found: &'static str },
    #[error("its shape is {found:?}; wanted [2, k, height, width], as [2, 5, 15, 15]")]
    Shape { found: Vec<u64> },
    #[error("{dtype} cannot hold class ids up to {}; write it as float32", classes - 1)]
    Imprecise { dtype: Dtype, classes: u32 },
    #[error(
        "class id {value} in row {row}, column {column}; wanted a whole number from 0 to {}, \
         so the map is of another class list, or the number of classes is wrong", classes - 1
    )]
    ClassId { value: f32, row: usize, column: usize, classes: u32 },
    #[error("logit {value} in row {row}, column {column} is not finite; generate the map again")]
    NotFinite { value: f32, row: usize, column: usize },
}

/// Class scores before softmax of the `k` best classes of each cell. Cells lie over the whole image, rows
/// from its top, columns from its left.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelMap {
    /// Classes kept a cell.
    pub k: usize,
    /// Rows of cells.
    pub height: usize,
    /// Columns of cells.
    pub width: usize,
    /// `[k, height, width]`, finite.
    pub logits: Vec<f32>,
    /// `[k, height, width]`, each under the number of classes. Where a cell names a class twice the
    /// last one counts, as the reference's `scatter_` has it.
    pub classes: Vec<u32>,
}

/// A label map and how it was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub map: LabelMap,
    pub dtype: Dtype,
    pub format: Format,
}

impl LabelMap {
    /// Reads a `.pt` file's bytes: a tensor `[2, k, height, width]` of logits and class ids, the ids whole
    /// numbers in `0..classes`.
    pub fn parse(bytes: Vec<u8>, classes: u32) -> Result<Self, MapError> {
        Self::parse_stored(bytes, Some(classes)).map(|stored| stored.map)
    }

    /// As [`LabelMap::parse`], with the element type and the form of the file. Without `classes` every id is
    /// taken that the element type can name.
    pub fn parse_stored(bytes: Vec<u8>, classes: Option<u32>) -> Result<Stored, MapError> {
        let file = PtFile::parse(bytes)?;
        let Value::Tensor(tensor) = file.root() else {
            return Err(MapError::NotTensor { found: file.root().type_name() });
        };
        let (k, height, width) = match *tensor.shape.as_slice() {
            [2, k, h, w] if [k, h, w].iter().all(|side| (1..=MAX_SIDE).contains(side)) => {
                (k as usize, h as usize, w as usize)
            }
            _ => return Err(MapError::Shape { found: tensor.shape.clone() }),
        };
        let dtype = tensor.storage.dtype;
        // The largest number up to which all whole numbers are exact.
        let exact = match dtype {
            Dtype::F16 => 2048,
            Dtype::BF16 => 256,
            _ => 1 << 24,
        };
        let classes = classes.unwrap_or(exact + 1);
        if classes > exact + 1 {
            return Err(MapError::Imprecise { dtype, classes });
        }
        let mut logits = file.floats(tensor)?;
        let ids = logits.split_off(k * height * width);
        let cell = |i: usize| (i / width % height, i % width);
        if let Some(i) = logits.iter().position(|v| !v.is_finite()) {
            let (row, column) = cell(i);
            return Err(MapError::NotFinite { value: logits[i], row, column });
        }
        let valid = |v: f32| v >= 0.0 && v < classes as f32 && v.fract() == 0.0;
        if let Some(i) = ids.iter().position(|&v| !valid(v)) {
            let (row, column) = cell(i);
            return Err(MapError::ClassId { value: ids[i], row, column, classes });
        }
        let ids = ids.into_iter().map(|v| v as u32).collect();
        Ok(Stored { map: Self { k, height, width, logits, classes: ids }, dtype, format: file.format() })
    }

    /// The best class of a cell, and its share, 0 to 1, of a softmax over the cell's `k` classes.
    pub fn best(&self, row: usize, column: usize) -> (u32, f32) {
        let plane = self.height * self.width;
        let cell = row * self.width + column;
        let logit = |j: usize| self.logits[j * plane + cell];
        let best = (0..self.k).max_by(|&a, &b| logit(a).total_cmp(&logit(b))).unwrap_or(0);
        let sum: f32 = (0..self.k).map(|j| (logit(j) - logit(best)).exp()).sum();
        (self.classes[best * plane + cell], 1.0 / sum)
    }

    /// The bytes of a `.pt` file, zip form, a tensor `[2, k, height, width]` of `dtype`: float32, or float16,
    /// which rounds the logits and holds ids up to 2048.
    pub fn to_pt(&self, dtype: Dtype) -> Result<Vec<u8>, MapError> {
        let largest = self.classes.iter().copied().max().unwrap_or(0);
        if dtype == Dtype::F16 && largest > 2048 {
            return Err(MapError::Imprecise { dtype, classes: largest + 1 });
        }
        let values = self.logits.iter().copied().chain(self.classes.iter().map(|&id| id as f32));
        let data: Vec<u8> = match dtype {
            Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            other => return Err(PtError::NotFloat(other).into()),
        };
        let shape = [2, self.k as u64, self.height as u64, self.width as u64];
        Ok(write_tensor(&shape, dtype, &data)?)
    }
}
