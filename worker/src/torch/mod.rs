//! What tch does not expose of libtorch, behind a safe face: memory formats, gradients that are views
//! of one buffer, when each of them is there, tensors read and written as slices, the fused SGD kernel, a fused BatchNorm,
//! convolutions to small maps, mixed precision, streams of a GPU, and TorchScript modules with all their tensors.
//!
//! This is the one module of the worker that talks to C++ (`*.cpp`); everything here may be called
//! from safe code with any tensor, and what does not fit is a [`TorchError`].
//!
//! A slice borrowed from a tensor sees its memory, not a copy. As with every libtorch operator, nothing
//! else may write there meanwhile: while the slice lives, run no operator on the tensor, its other
//! handles or its views, on this thread or another.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::collective::Region;

mod about;
pub mod cuda;
mod hooks;
mod normalize;
#[cfg(test)]
mod normalize_tests;
mod precision;
mod script;
mod small_maps;
#[cfg(test)]
mod small_maps_tests;
mod streams;
#[cfg(test)]
mod tests;

pub use about::{About, about};
pub use hooks::{GradientHooks, Listener};
pub use normalize::{BatchNorm, batch_norm};
#[cfg(test)]
pub(crate) use precision::layouts;
pub use precision::{autocast, compute_deterministically, prepare, unscale};
pub use script::{ScriptModule, ScriptTensor};
pub use small_maps::convolve_small_map;
pub use streams::{Mark, own_stream, send};

/// Why libtorch did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// libtorch threw; `operation` is what was asked of it, `message` is in one line.
    #[error("libtorch could not {operation}: {message}")]
    Libtorch { operation: &'static str, message: String },
    /// A slice was asked of a tensor that is not one dense block of such values in that memory.
    #[error(
        "a tensor of {kind:?} on {device:?}, contiguous: {contiguous}, is not a slice of {wanted} in {memory}"
    )]
    NotASlice { wanted: &'static str, memory: &'static str, kind: Kind, device: Device, contiguous: bool },
    /// There is not as much memory as the gradients take.
    #[error("no memory for the gradients: {0}")]
    Region(#[source] std::io::Error),
    /// cuBLAS may add up in another order each time.
    #[error("compute.deterministic on a GPU needs {name}={value} in the worker's environment")]
    Workspace { name: &'static str, value: &'static str },
    /// The values do not fill the shape.
    #[error("{bytes} bytes do not fill a tensor of shape {shape:?} and kind {kind:?}")]
    WrongLength { bytes: usize, shape: Vec<i64>, kind: Kind },
}

impl TorchError {
    /// What tch says where libtorch threw in `operation`, without the stack of its C++.
    pub fn during(operation: &'static str) -> impl Fn(TchError) -> Self + Copy {
        move |error| {
            let message = match error {
                TchError::Torch(message) => message,
                other => other.to_string(),
            };
            let stack = ["\nException raised from ", "\nframe #0: "].map(|begins| message.find(begins));
            let words = &message[..stack.into_iter().flatten().min().unwrap_or(message.len())];
            Self::Libtorch { operation, message: words.trim().replace('\n', " ") }
        }
    }

    /// Whether less memory was left than an operator asked for, on a GPU or in the process.
    pub fn is_out_of_memory(&self) -> bool {
        // The last is how oneDNN says it, to which libtorch has handed right arguments.
        let words =
            ["out of memory", "can't allocate memory", "std::bad_alloc", "could not create a primitive"];
        matches!(self, Self::Libtorch { message, .. } if words.iter().any(|words| message.contains(words)))
    }
}

impl From<TchError> for TorchError {
    fn from(error: TchError) -> Self {
        Self::during("run an operator")(error)
    }
}

unsafe extern "C" {
    fn relabel_torch_free(text: *mut c_char);
    fn relabel_torch_to_channels_last(tensor: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn relabel_torch_is_channels_last(tensor: *const C_tensor, out: *mut c_int) -> *mut c_char;
    fn relabel_torch_set_grad(parameter: *mut C_tensor, grad: *const C_tensor) -> *mut c_char;
    fn relabel_torch_set_data(parameter: *mut C_tensor, data: *const C_tensor) -> *mut c_char;
    fn relabel_torch_over_memory(
        data: *mut f32,
        count: i64,
        owner: *mut c_void,
        drop: unsafe extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn relabel_torch_sgd_step(
        parameters: *const *mut C_tensor,
        momentum_buffers: *const *mut C_tensor,
        count: usize,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: c_int,
    ) -> *mut c_char;
}

/// Turns what a shim function returned into a result, and frees its message.
fn checked(operation: &'static str, message: *mut c_char) -> Result<(), TorchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a pointer that is not null is a string from strdup that the shim hands over.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().replace('\n', " ");
    // SAFETY: the same pointer, freed once and not used again.
    unsafe { relabel_torch_free(message) };
    Err(TorchError::Libtorch { operation, message: text })
}

/// The same values `[N, C, H, W]` with channels lying next to each other in memory: the format that
/// convolutions are fastest in. Shares memory with `tensor` where it has that format already.
///
/// # Errors
/// `tensor` does not have four dimensions.
pub fn to_channels_last(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: `tensor` is a live at::Tensor for the whole call, and `out` a place for one pointer.
    checked("change the memory format to channels_last", unsafe {
        relabel_torch_to_channels_last(tensor.as_ptr(), &raw mut out)
    })?;
    // SAFETY: without an error the shim has stored a new at::Tensor, owned by no one yet.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Whether the memory of `tensor` `[N, C, H, W]` is dense with channels next to each other. False for
/// a tensor that does not have four dimensions.
pub fn is_channels_last(tensor: &Tensor) -> bool {
    let mut out = 0;
    // SAFETY: `tensor` is a live at::Tensor for the whole call, and `out` a place for one int.
    let result = checked("read the memory format", unsafe {
        relabel_torch_is_channels_last(tensor.as_ptr(), &raw mut out)
    });
    result.is_ok() && out != 0
}

/// Makes `grad` the gradient that backward adds to: `parameter.grad` is then this very tensor, so a view
/// into a larger buffer is filled in place.
///
/// # Errors
/// `grad` differs from `parameter` in shape, strides, kind or device, or requires gradients itself.
pub fn set_grad(parameter: &Tensor, grad: &Tensor) -> Result<(), TorchError> {
    // SAFETY: both are live at::Tensors; the shim takes a reference of its own on `grad`. The gradient
    // stands in the autograd metadata behind the handle, which libtorch itself changes through shared handles.
    checked("set a gradient", unsafe { relabel_torch_set_grad(parameter.as_ptr().cast_mut(), grad.as_ptr()) })
}

/// Replaces the memory behind every handle of `parameter` by that of `data`, which may differ in strides,
/// and drops the gradient, whose strides no longer fit.
///
/// # Errors
/// Kind or device differ.
pub fn set_data(parameter: &Tensor, data: &Tensor) -> Result<(), TorchError> {
    // SAFETY: both are live at::Tensors; the handle is shared as in `set_grad`.
    checked("replace the memory of a parameter", unsafe {
        relabel_torch_set_data(parameter.as_ptr().cast_mut(), data.as_ptr())
    })
}

/// The numbers of one SGD step, those of `torch.optim.SGD` with dampening 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdStep {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
}

/// One SGD step on each of `parameters` with its `.grad`, in place, in one pass over the memory.
/// `momentum_buffers` (one a parameter, zeros before the first step) are updated too.
///
/// # Errors
/// A parameter without a gradient, or a gradient or momentum buffer whose shape, strides, kind or device
/// differ from the parameter's.
pub fn sgd_step(
    parameters: &[Tensor],
    momentum_buffers: &mut [Tensor],
    step: SgdStep,
) -> Result<(), TorchError> {
    const OPERATION: &str = "take an SGD step";
    if parameters.len() != momentum_buffers.len() {
        let message = format!("{} parameters, {} momentum buffers", parameters.len(), momentum_buffers.len());
        return Err(TorchError::Libtorch { operation: OPERATION, message });
    }
    let p: Vec<*mut C_tensor> = parameters.iter().map(|t| t.as_ptr().cast_mut()).collect();
    let m: Vec<*mut C_tensor> = momentum_buffers.iter_mut().map(Tensor::as_mut_ptr).collect();
    // SAFETY: both arrays hold `p.len()` live at::Tensors; the kernel checks their layouts before it
    // writes. Parameters change through a shared handle, as in every in-place operator of libtorch.
    checked(OPERATION, unsafe {
        relabel_torch_sgd_step(
            p.as_ptr(),
            m.as_ptr(),
            p.len(),
            step.lr,
            step.momentum,
            step.weight_decay,
            c_int::from(step.nesterov),
        )
    })
}

/// The memory of a contiguous f32 CPU tensor of any shape, in row-major order; no copy is made.
/// See the module's note on aliases.
///
/// # Errors
/// The tensor is of another kind, on another device or not contiguous.
pub fn as_f32(tensor: &Tensor) -> Result<&[f32], TorchError> {
    let (pointer, length) = dense(tensor, Some(Kind::Float), "f32")?;
    // SAFETY: `dense` has checked that `length` f32 values lie there; the borrowed handle keeps them alive.
    Ok(unsafe { std::slice::from_raw_parts(pointer.cast(), length) })
}

/// As [`as_f32`], to write: for filling an input and for reducing gradients in place.
///
/// # Errors
/// As [`as_f32`].
pub fn as_f32_mut(tensor: &mut Tensor) -> Result<&mut [f32], TorchError> {
    let (pointer, length) = dense(tensor, Some(Kind::Float), "f32")?;
    // SAFETY: as above, and the handle is borrowed exclusively while the slice lives.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), length) })
}

/// The memory of a contiguous CPU tensor of any kind, as bytes in this machine's order.
///
/// # Errors
/// The tensor is on another device or not contiguous.
pub fn as_bytes(tensor: &Tensor) -> Result<&[u8], TorchError> {
    let (pointer, length) = dense(tensor, None, "bytes")?;
    let bytes = length * tensor.kind().elt_size_in_bytes();
    // SAFETY: `dense` has checked that `length` initialized elements lie there; any byte is a valid u8.
    Ok(unsafe { std::slice::from_raw_parts(pointer.cast(), bytes) })
}

/// Address and number of elements of a contiguous CPU tensor.
fn dense(tensor: &Tensor, kind: Option<Kind>, wanted: &'static str) -> Result<(*mut u8, usize), TorchError> {
    let (found, device, contiguous) = (tensor.kind(), tensor.device(), tensor.is_contiguous());
    if device != Device::Cpu || !contiguous || kind.is_some_and(|kind| kind != found) {
        return Err(TorchError::NotASlice { wanted, memory: "main memory", kind: found, device, contiguous });
    }
    // An empty tensor has no memory, and a slice may not be null.
    match tensor.numel() {
        0 => Ok((std::ptr::NonNull::<u64>::dangling().as_ptr().cast(), 0)),
        length => Ok((tensor.data_ptr().cast(), length)),
    }
}

/// A CPU tensor of `shape` that holds a copy of `bytes`, elements of `kind` in this machine's order.
///
/// # Errors
/// The bytes do not fill the shape exactly, or libtorch has no memory left.
pub fn from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
    let elements = shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(usize::try_from(side).ok()?));
    let wanted = elements.and_then(|n| n.checked_mul(kind.elt_size_in_bytes()));
    if wanted != Some(bytes.len()) {
        return Err(TorchError::WrongLength { bytes: bytes.len(), shape: shape.to_vec(), kind });
    }
    // The length has been checked: libtorch would read past the end of a shorter slice.
    Tensor::f_from_data_size(bytes, shape, kind).map_err(TorchError::during("make a tensor from bytes"))
}

/// A CPU tensor of `shape` that holds `values` in row-major order; one copy, at memory speed.
///
/// # Errors
/// As [`from_bytes`].
pub fn from_f32(values: &[f32], shape: &[i64]) -> Result<Tensor, TorchError> {
    from_bytes(bytemuck::cast_slice(values), shape, Kind::Float)
}

/// All of `region` as float32 values `[len]`. The region lives as long as any tensor that has its memory.
///
/// # Errors
/// What libtorch throws.
pub fn over_region(region: &Arc<Region>) -> Result<Tensor, TorchError> {
    unsafe extern "C" fn release(owner: *mut c_void) {
        // SAFETY: it is what `into_raw` gave, and comes back once.
        drop(unsafe { Arc::from_raw(owner.cast_const().cast::<Region>()) });
    }
    let (data, count) = (region.as_mut_ptr().cast::<f32>(), region.len() / size_of::<f32>());
    let owner = Arc::into_raw(region.clone()).cast_mut().cast::<c_void>();
    let mut out = std::ptr::null_mut();
    // SAFETY: so many floats, aligned to a page, are there until `release` is called, which libtorch does once; where it
    // throws before that, the region stays.
    checked("use a region's memory", unsafe {
        relabel_torch_over_memory(data, count as i64, owner, release, &raw mut out)
    })?;
    // SAFETY: without an error the shim has stored a new at::Tensor, owned by no one yet.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// `tensor` on `device`: itself where it is there already.
///
/// # Errors
/// No memory left there.
pub fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    let moved = tensor.f_to_device(device);
    moved.map_err(TorchError::during("copy a batch to the device"))
}

/// Threads to use: those that are given, or as many as the machine has cores.
pub fn threads(given: Option<u16>) -> usize {
    given.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

/// How many threads one operator of this process may use at most; at least 1.
pub fn set_num_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}
