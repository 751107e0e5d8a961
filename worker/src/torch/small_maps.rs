//! Convolutions to maps of a few pixels on the CPU.

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{TorchError, checked};

unsafe extern "C" {
    fn relabel_torch_convolve_small_map(
        x: *const C_tensor,
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// The convolution of `x`, `[B, in, H, W]`, with `weight`, `[out, in, kernel, kernel]`, and its backward pass, as
/// matrix products. None, and nothing done, where libtorch's own would be as fast, or this cannot do it: both have to
/// lie in channels_last memory on the CPU, in f32 unless autocast makes them bf16, and the output to have four pixels
/// an image at most. Of up to sixteen in bf16 the weight's gradient alone is a product, and the rest is libtorch's.
///
/// # Errors
/// What libtorch throws.
pub fn convolve_small_map(
    x: &Tensor,
    weight: &Tensor,
    stride: i64,
    padding: i64,
) -> Result<Option<Tensor>, TorchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: both are live at::Tensors for the whole call, and `out` is a place for one pointer.
    checked("convolve a small map", unsafe {
        relabel_torch_convolve_small_map(x.as_ptr(), weight.as_ptr(), stride, padding, &raw mut out)
    })?;
    // SAFETY: without an error the shim has stored null, or a new at::Tensor that is owned by no one yet.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}
