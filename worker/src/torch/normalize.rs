//! BatchNorm of images on the CPU while training, together with what follows it.

use std::ffi::{c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{TorchError, checked};

unsafe extern "C" {
    fn relabel_torch_normalize(
        x: *const C_tensor,
        shortcut: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        momentum: f64,
        eps: f64,
        relu: c_int,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// What a BatchNorm layer of `C` channels normalizes by; each tensor `[C]` in f32.
pub struct BatchNorm<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    /// Are moved towards the batch's.
    pub running_mean: &'a Tensor,
    pub running_var: &'a Tensor,
    /// Weight of this batch in them, in [0, 1].
    pub momentum: f64,
    /// Added to the variance before the square root.
    pub eps: f64,
}

/// relu(batch_norm(x) + shortcut), with batch statistics, in one operator with its own backward pass; without
/// `shortcut` nothing is added, without `relu` all of it is kept. None, and nothing done, where it would not be
/// faster than libtorch's operators one after the other, or cannot be done by it: `x` and `shortcut` have to lie in
/// channels_last memory on the CPU, both in f32 or both in bf16, and a channel needs more than one value.
///
/// The result does not depend on the number of threads.
///
/// # Errors
/// What libtorch throws.
pub fn batch_norm(
    x: &Tensor,
    norm: &BatchNorm<'_>,
    shortcut: Option<&Tensor>,
    relu: bool,
) -> Result<Option<Tensor>, TorchError> {
    let mut out = std::ptr::null_mut();
    // SAFETY: all are live at::Tensors for the whole call, or null where the shim allows it, and `out` is a place for
    // one pointer. The running statistics change through a shared handle, as in libtorch's own batch_norm.
    checked("normalize a batch", unsafe {
        relabel_torch_normalize(
            x.as_ptr(),
            shortcut.map_or(std::ptr::null(), Tensor::as_ptr),
            norm.weight.as_ptr(),
            norm.bias.as_ptr(),
            norm.running_mean.as_ptr(),
            norm.running_var.as_ptr(),
            norm.momentum,
            norm.eps,
            c_int::from(relu),
            &raw mut out,
        )
    })?;
    // SAFETY: without an error the shim has stored null, or a new at::Tensor that is owned by no one yet.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}
