//! TorchScript modules: tch shows their parameters, but neither their buffers nor their order.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{TorchError, checked};

/// A `torch::jit::Module`, on the other side.
#[repr(C)]
struct CModule {
    _private: [u8; 0],
}

type VisitTensor = extern "C" fn(*mut c_void, *const c_char, *mut C_tensor, c_int);

unsafe extern "C" {
    fn relabel_torch_script_load(
        path: *const c_char,
        like: *const C_tensor,
        out: *mut *mut CModule,
    ) -> *mut c_char;
    fn relabel_torch_script_free(module: *mut CModule);
    fn relabel_torch_script_tensors(
        module: *const CModule,
        context: *mut c_void,
        visit: VisitTensor,
    ) -> *mut c_char;
    fn relabel_torch_script_forward(
        module: *mut CModule,
        input: *const C_tensor,
        train: c_int,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// A module that `torch.jit.save` wrote. It may move to another thread but not be shared by two.
pub struct ScriptModule(*mut CModule);

// SAFETY: a module is a counted reference to data of which this is the only owner, apart from handles of
// tensors, which are Send themselves; libtorch ties none of it to a thread.
unsafe impl Send for ScriptModule {}

impl Drop for ScriptModule {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `load` and is freed once.
        unsafe { relabel_torch_script_free(self.0) };
    }
}

/// A tensor of a module.
pub struct ScriptTensor {
    /// As in the module's state_dict.
    pub name: String,
    /// A handle to the very tensor.
    pub tensor: Tensor,
    /// Whether it was an `nn.Parameter`, and not a buffer.
    pub is_parameter: bool,
}

impl ScriptModule {
    /// Loads the file onto `device`. The code in it is interpreted by libtorch and can compute, but not
    /// reach files or the network.
    ///
    /// # Errors
    /// The file cannot be read, or is not TorchScript.
    pub fn load(path: &Path, device: Device) -> Result<Self, TorchError> {
        const OPERATION: &str = "load a TorchScript module";
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|e| TorchError::Libtorch { operation: OPERATION, message: e.to_string() })?;
        let like =
            Tensor::f_empty([0], (Kind::Float, device)).map_err(TorchError::during("use the device"))?;
        let mut out = std::ptr::null_mut();
        // SAFETY: `path` and `like` live for the call, and `out` is a place for one pointer.
        checked(OPERATION, unsafe { relabel_torch_script_load(path.as_ptr(), like.as_ptr(), &raw mut out) })?;
        Ok(Self(out))
    }

    /// All parameters and buffers in the order of the module's state_dict. One that is shared by two layers
    /// is there once, by its first name.
    ///
    /// # Errors
    /// What libtorch throws.
    pub fn tensors(&self) -> Result<Vec<ScriptTensor>, TorchError> {
        extern "C" fn push(
            context: *mut c_void,
            name: *const c_char,
            tensor: *mut C_tensor,
            parameter: c_int,
        ) {
            // SAFETY: `context` is the vector below, which nothing else touches during the call.
            let tensors = unsafe { &mut *context.cast::<Vec<ScriptTensor>>() };
            // SAFETY: the shim hands over a string that lives for this call.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            // SAFETY: the shim hands over a new at::Tensor, owned by no one yet.
            let tensor = unsafe { Tensor::from_ptr(tensor) };
            tensors.push(ScriptTensor { name, tensor, is_parameter: parameter != 0 });
        }
        let mut tensors: Vec<ScriptTensor> = Vec::new();
        // SAFETY: the module is live, and `push` has the type of the vector behind the context.
        checked("list the tensors of a TorchScript module", unsafe {
            relabel_torch_script_tensors(self.0, (&raw mut tensors).cast(), push)
        })?;
        Ok(tensors)
    }

    /// What the module's `forward` returns for one tensor, in training or evaluation mode.
    ///
    /// # Errors
    /// What the module throws, or a result that is not one tensor.
    pub fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the module and `input` are live, and `out` is a place for one pointer. The module is not
        // Sync, so that no other thread runs it or reads its mode.
        checked("run the TorchScript module", unsafe {
            relabel_torch_script_forward(self.0, input.as_ptr(), c_int::from(train), &raw mut out)
        })?;
        // SAFETY: without an error the shim has stored a new at::Tensor, owned by no one yet.
        Ok(unsafe { Tensor::from_ptr(out) })
    }
}
