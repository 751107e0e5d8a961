//! What one thread sends to a GPU while another has it compute. A GPU does what is queued on one stream in order, and
//! nothing tells it which of two streams is first but a mark. On the CPU a thread's work is done when it says so, and
//! nothing here does anything.

use std::ffi::{c_char, c_int, c_void};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{TorchError, checked, from_bytes, to_device};

unsafe extern "C" {
    fn relabel_torch_own_stream(gpu: c_int) -> *mut c_char;
    fn relabel_torch_mark(gpu: c_int, out: *mut *mut c_void) -> *mut c_char;
    fn relabel_torch_free_mark(mark: *mut c_void);
    fn relabel_torch_after(
        gpu: c_int,
        mark: *const c_void,
        tensors: *const *mut C_tensor,
        count: usize,
    ) -> *mut c_char;
    fn relabel_torch_send(
        data: *const c_void,
        count: i64,
        gpu: c_int,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// The number of a GPU; None for the CPU.
fn gpu(device: Device) -> Option<c_int> {
    match device {
        Device::Cuda(number) => c_int::try_from(number).ok(),
        _ => None,
    }
}

/// Has whatever this thread queues on `device` go beside what others do, from now on.
///
/// # Errors
/// As libtorch says.
pub fn own_stream(device: Device) -> Result<(), TorchError> {
    let Some(gpu) = gpu(device) else { return Ok(()) };
    // SAFETY: no preconditions; a device that is not there is an error.
    checked("choose a stream", unsafe { relabel_torch_own_stream(gpu) })
}

/// What a thread had queued on a device at some time.
#[derive(Debug)]
pub struct Mark {
    /// None on the CPU.
    event: Option<(c_int, *mut c_void)>,
}

// SAFETY: an event may be waited for and destroyed by any thread.
unsafe impl Send for Mark {}

impl Mark {
    /// All that this thread has queued on `device` so far.
    ///
    /// # Errors
    /// As libtorch says.
    pub fn new(device: Device) -> Result<Self, TorchError> {
        let Some(gpu) = gpu(device) else { return Ok(Self { event: None }) };
        let mut event = std::ptr::null_mut();
        // SAFETY: a place for one pointer, which is kept below.
        checked("mark what is queued", unsafe { relabel_torch_mark(gpu, &raw mut event) })?;
        Ok(Self { event: Some((gpu, event)) })
    }

    /// Has whatever this thread queues from now on come after it, and may be done with `tensors`, which were made
    /// before it.
    ///
    /// # Errors
    /// As libtorch says.
    pub fn before(&self, tensors: &[&Tensor]) -> Result<(), TorchError> {
        let Some((gpu, event)) = self.event else { return Ok(()) };
        let tensors: Vec<*mut C_tensor> = tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
        // SAFETY: the event is live, as are the tensors, of which only the allocator's notes are changed.
        checked("wait for what was sent", unsafe {
            relabel_torch_after(gpu, event, tensors.as_ptr(), tensors.len())
        })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some((_, event)) = self.event {
            // SAFETY: it came from `relabel_torch_mark`, and is freed once.
            unsafe { relabel_torch_free_mark(event) }
        }
    }
}

/// A tensor of `shape` on `device` that holds a copy of `bytes`, elements of `kind` in this machine's order. On a GPU
/// it is there for what this thread queues next; this does not wait.
///
/// # Errors
/// The bytes do not fill the shape exactly, or there is no memory left there.
pub fn send(bytes: &[u8], shape: &[i64], kind: Kind, device: Device) -> Result<Tensor, TorchError> {
    const OPERATION: &str = "copy a batch to the device";
    let Some(gpu) = gpu(device) else { return from_bytes(bytes, shape, kind) };
    if bytes.is_empty() {
        return to_device(&from_bytes(bytes, shape, kind)?, device);
    }
    let mut out = std::ptr::null_mut();
    // SAFETY: so many bytes are there, which the callee has copied when it returns.
    checked(OPERATION, unsafe {
        relabel_torch_send(bytes.as_ptr().cast(), bytes.len() as i64, gpu, &raw mut out)
    })?;
    // SAFETY: without an error the shim has stored a new at::Tensor, owned by no one yet.
    let sent = unsafe { Tensor::from_ptr(out) };
    let shaped = sent.f_view_dtype(kind).and_then(|sent| sent.f_view(shape));
    shaped.map_err(TorchError::during(OPERATION))
}
