//! Mixed precision: in what a network computes, and the gradients of a scaled loss.

use std::ffi::{c_char, c_int};

use relabel_config::Precision;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{TorchError, checked};

unsafe extern "C" {
    fn relabel_torch_autocast_enter(cuda: c_int, half: c_int, was_enabled: *mut c_int, was_dtype: *mut c_int);
    fn relabel_torch_autocast_leave(cuda: c_int, was_enabled: c_int, was_dtype: c_int);
    fn relabel_torch_keep_memory();
    fn relabel_torch_allow_tf32(allow: c_int) -> *mut c_char;
    fn relabel_torch_deterministic(on: c_int) -> *mut c_char;
    fn relabel_torch_unscale(gradients: *mut C_tensor, inverse_scale: f32, finite: *mut c_int)
    -> *mut c_char;
}

/// Runs `forward` as `torch.autocast` does: convolutions and matrix products cast their inputs, the weights among
/// them, to `precision`, and what needs more range or digits stays in f32. Nothing changes in fp32 and tf32. The
/// backward pass is to be run outside: each operator's has the kind of its forward.
pub fn autocast<T>(device: Device, precision: Precision, forward: impl FnOnce() -> T) -> T {
    /// Leaves the region, after a panic too.
    struct Region {
        cuda: c_int,
        was_enabled: c_int,
        was_dtype: c_int,
    }
    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: plain values, those that `enter` gave on this thread: a Region does not leave this function.
            unsafe { relabel_torch_autocast_leave(self.cuda, self.was_enabled, self.was_dtype) };
        }
    }
    let half = match precision {
        Precision::Fp32 | Precision::Tf32 => return forward(),
        Precision::Bf16 => 0,
        Precision::Fp16 => 1,
    };
    let mut region = Region { cuda: c_int::from(device.is_cuda()), was_enabled: 0, was_dtype: 0 };
    // SAFETY: two places for one int each.
    unsafe {
        relabel_torch_autocast_enter(
            region.cuda,
            half,
            &raw mut region.was_enabled,
            &raw mut region.was_dtype,
        );
    }
    forward()
}

/// Prepares libtorch for a network on `device` in `precision`: on a GPU, whether f32 convolutions and matrix products
/// may round their factors to TF32, which libtorch lets convolutions do unless it is told; and cuDNN tries its
/// algorithms for each new shape and keeps the fastest. On the CPU, memory that is freed is kept for the next step.
///
/// # Errors
/// What libtorch throws.
pub fn prepare(device: Device, precision: Precision) -> Result<(), TorchError> {
    if device.is_cuda() {
        // SAFETY: a plain value.
        checked("choose the precision of f32 on the GPU", unsafe {
            relabel_torch_allow_tf32(c_int::from(precision != Precision::Fp32))
        })?;
        tch::Cuda::cudnn_set_benchmark(true);
    } else {
        // SAFETY: no arguments; malloc takes its options at any time.
        unsafe { relabel_torch_keep_memory() };
    }
    Ok(())
}

/// Has libtorch compute the same bits each time in this process: algorithms that add up in one order, and of cuDNN's
/// none that were the fastest when tried. An operator that has no such algorithm is an error from then on.
///
/// # Errors
/// On a GPU, where the environment does not let cuBLAS do so; what libtorch throws.
pub fn compute_deterministically(device: Device) -> Result<(), TorchError> {
    if device.is_cuda() {
        let (name, values) = CUBLAS_WORKSPACE;
        if !std::env::var(name).is_ok_and(|value| values.contains(&value.as_str())) {
            return Err(TorchError::Workspace { name, value: values[0] });
        }
        tch::Cuda::cudnn_set_benchmark(false);
    }
    // SAFETY: a plain value.
    checked("compute deterministically", unsafe { relabel_torch_deterministic(1) })
}

/// What has cuBLAS add up in one order, as its manual says; it looks there when it is first used.
const CUBLAS_WORKSPACE: (&str, [&str; 2]) = ("CUBLAS_WORKSPACE_CONFIG", [":4096:8", ":16:8"]);

/// Multiplies f32 `gradients` of any shape by `inverse_scale`, in one pass, and says whether all of them were finite.
///
/// # Errors
/// Gradients of another kind.
pub fn unscale(gradients: &mut Tensor, inverse_scale: f32) -> Result<bool, TorchError> {
    let mut finite = 0;
    // SAFETY: `gradients` is a live at::Tensor, borrowed exclusively, and `finite` a place for one int.
    checked("unscale the gradients", unsafe {
        relabel_torch_unscale(gradients.as_mut_ptr(), inverse_scale, &raw mut finite)
    })?;
    Ok(finite != 0)
}

#[cfg(test)]
pub(crate) mod layouts {
    //! Which operators fall out of channels_last memory.

    use std::ffi::{CStr, c_void};

    use super::{c_char, checked};

    unsafe extern "C" {
        fn relabel_torch_free(text: *mut c_char);
        fn relabel_torch_watch_layouts(
            body: extern "C" fn(*mut c_void),
            context: *mut c_void,
            out: *mut *mut c_char,
            four_dimensional: *mut u64,
        ) -> *mut c_char;
    }

    fn allocates(line: &str) -> bool {
        let names =
            ["aten::empty", "aten::empty_like", "aten::empty_strided", "aten::resize_", "aten::as_strided_"];
        line.split(' ').next().is_some_and(|name| names.contains(&name))
    }

    /// A line for each output of four dimensions of an operator in `body`, backward passes included, that is dense but
    /// not in channels_last memory, and how many such outputs there were in all. Operators that only allocate are left
    /// out: what another one writes there is that one's output.
    pub(crate) fn watch(body: impl FnOnce()) -> (Vec<String>, u64) {
        extern "C" fn run<F: FnOnce()>(context: *mut c_void) {
            // SAFETY: `context` is the option below, which nothing else touches during the call.
            let body = unsafe { &mut *context.cast::<Option<F>>() };
            if let Some(body) = body.take() {
                body();
            }
        }
        fn watcher<F: FnOnce()>(_: &Option<F>) -> extern "C" fn(*mut c_void) {
            run::<F>
        }
        let mut body = Some(body);
        let run = watcher(&body);
        let (mut out, mut four_dimensional) = (std::ptr::null_mut(), 0);
        // SAFETY: `run` has the type of what stands behind the context; the others are places for one value each.
        let watched = unsafe {
            relabel_torch_watch_layouts(run, (&raw mut body).cast(), &raw mut out, &raw mut four_dimensional)
        };
        checked("watch the layouts", watched).expect("the operators run");
        // SAFETY: without an error the shim has stored a string from strdup.
        let lines = unsafe { CStr::from_ptr(out) }.to_string_lossy().into_owned();
        let lines = lines.lines().filter(|line| !allocates(line)).map(str::to_owned).collect();
        // SAFETY: the same string, freed once.
        unsafe { relabel_torch_free(out) };
        (lines, four_dimensional)
    }
}
