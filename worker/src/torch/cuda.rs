//! NVIDIA GPUs, found and opened at run time: the same binary runs where there is no driver. libtorch is linked for
//! the CPU alone; its library for CUDA is loaded when a GPU is asked for, and registers itself.

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::TorchError;
use crate::collective::nccl::DeviceSlice;

/// The driver's library, and libtorch's for CUDA, which lies beside the one that is linked.
const DRIVER: &str = "libcuda.so.1";
const TORCH_CUDA: &str = "libtorch_cuda.so";
/// CUDA's runtime as the linked version of libtorch has it.
const RUNTIME: &str = "libcudart.so.13";

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];
/// Bytes that are kept for a GPU's name.
const NAME: usize = 256;

/// Why a GPU cannot be used: one line that says what was found.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no NVIDIA driver was found: {DRIVER} cannot be loaded ({reason})")]
    NoDriver { reason: String },
    #[error("the NVIDIA driver does not start: {operation} says {code} ({meaning})")]
    Driver { operation: &'static str, code: c_int, meaning: String },
    #[error("{DRIVER} lacks {symbol}: it is not NVIDIA's driver, or a very old one")]
    Symbol { symbol: &'static str },
    #[error("{}", no_such(*wanted, *count))]
    NoSuchGpu { wanted: u32, count: u32 },
    #[error(
        "the NVIDIA driver is for CUDA up to {driver} and this libtorch wants CUDA {wanted}: update the driver, to 580 \
         or later for CUDA 13"
    )]
    OldDriver { driver: Version, wanted: Version },
    #[error(
        "the driver (CUDA {driver}) is there, but libtorch's part for it is not: {library} cannot be loaded ({reason})"
    )]
    NoLibrary { driver: Version, library: &'static str, reason: String },
    #[error(
        "the driver (CUDA {driver}) has {count} GPUs, but libtorch can use only {usable} of them: is CUDA_VISIBLE_DEVICES right?"
    )]
    Unusable { driver: Version, count: u32, usable: i64 },
}

fn no_such(wanted: u32, count: u32) -> String {
    match count {
        0 => "the NVIDIA driver is there, but no GPU: is CUDA_VISIBLE_DEVICES empty?".to_owned(),
        1 => format!("there is no GPU {wanted}: this host has one, number 0"),
        _ => format!("there is no GPU {wanted}: this host has {count}, numbered from 0"),
    }
}

/// A version of CUDA, as its libraries count: 13000 is 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub c_int);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

impl Version {
    fn major(self) -> c_int {
        self.0 / 1000
    }
}

/// The driver's library, which is never closed: CUDA keeps threads in it.
pub struct Driver {
    library: &'static Library,
}

impl Driver {
    /// Loads and starts the driver.
    ///
    /// # Errors
    /// There is none, or it finds nothing to drive.
    pub fn open() -> Result<Self, GpuError> {
        let driver = Self { library: load(DRIVER).map_err(|reason| GpuError::NoDriver { reason })? };
        let init = driver.function::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")?;
        // SAFETY: the driver's documented signature; 0 is the only flag.
        driver.check("cuInit", unsafe { init(0) })?;
        Ok(driver)
    }

    /// The newest CUDA that the driver is for.
    ///
    /// # Errors
    /// As the driver says.
    pub fn version(&self) -> Result<Version, GpuError> {
        self.number("cuDriverGetVersion").map(Version)
    }

    /// Number of GPUs that this process may see.
    ///
    /// # Errors
    /// As the driver says.
    pub fn count(&self) -> Result<u32, GpuError> {
        self.number("cuDeviceGetCount").map(|count| count.max(0) as u32)
    }

    /// The GPUs that this process may see. Makes no context on any of them.
    ///
    /// # Errors
    /// As the driver says.
    pub fn gpus(&self) -> Result<Vec<Gpu>, GpuError> {
        (0..self.count()?).map(|ordinal| self.gpu(ordinal as c_int)).collect()
    }

    fn gpu(&self, ordinal: c_int) -> Result<Gpu, GpuError> {
        type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        let get = self.function::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>("cuDeviceGet")?;
        let get_name = self.function::<GetName>("cuDeviceGetName")?;
        let total =
            self.function::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>("cuDeviceTotalMem_v2")?;
        let attribute = self.function::<Attribute>("cuDeviceGetAttribute")?;

        let mut device = 0;
        // SAFETY: the documented signature: a place for one CUdevice, which is an int, and an ordinal.
        self.check("cuDeviceGet", unsafe { get(&raw mut device, ordinal) })?;
        let mut name: [c_char; NAME] = [0; NAME];
        // SAFETY: a place for one char less than there are, so that the last stays 0 whatever is written.
        self.check("cuDeviceGetName", unsafe { get_name(name.as_mut_ptr(), NAME as c_int - 1, device) })?;
        let mut memory = 0;
        // SAFETY: a place for one size_t.
        self.check("cuDeviceTotalMem_v2", unsafe { total(&raw mut memory, device) })?;
        let mut capability = [0; 2];
        for (which, value) in CAPABILITY.into_iter().zip(&mut capability) {
            // SAFETY: a place for one int.
            self.check("cuDeviceGetAttribute", unsafe { attribute(value, which, device) })?;
        }
        // SAFETY: the array ends with a 0 and lives on.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().trim().to_owned();
        let [major, minor] = capability;
        Ok(Gpu { name, memory_bytes: memory as u64, compute_capability: format!("{major}.{minor}") })
    }

    /// What the driver's function of one out parameter gives.
    fn number(&self, name: &'static str) -> Result<c_int, GpuError> {
        let function = self.function::<unsafe extern "C" fn(*mut c_int) -> c_int>(name)?;
        let mut number = 0;
        // SAFETY: both functions with which this is called take a place for one int.
        self.check(name, unsafe { function(&raw mut number) })?;
        Ok(number)
    }

    fn function<F: Copy>(&self, symbol: &'static str) -> Result<F, GpuError> {
        // SAFETY: the callers name the types that the driver's documentation gives for these functions.
        let found = unsafe { self.library.get::<F>(symbol.as_bytes()) };
        found.map(|function| *function).map_err(|_| GpuError::Symbol { symbol })
    }

    fn check(&self, operation: &'static str, code: c_int) -> Result<(), GpuError> {
        if code == 0 {
            return Ok(());
        }
        let mut text: *const c_char = std::ptr::null();
        let say =
            self.function::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>("cuGetErrorString")?;
        // SAFETY: a place for one pointer, to a text that the driver keeps for ever.
        let known = unsafe { say(code, &raw mut text) } == 0 && !text.is_null();
        // SAFETY: checked above.
        let meaning = known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        let meaning = meaning.unwrap_or_else(|| "a code that it does not explain".to_owned());
        Err(GpuError::Driver { operation, code, meaning })
    }
}

/// A GPU as the driver tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: u64,
    /// Such as 9.0.
    pub compute_capability: String,
}

/// Opens GPU `wanted` of this process, from 0, for libtorch.
///
/// # Errors
/// Whatever of driver, GPU and libraries is missing or does not fit, with the versions that were found.
pub fn open(wanted: u32) -> Result<Device, GpuError> {
    let driver = Driver::open()?;
    let (version, count) = (driver.version()?, driver.count()?);
    if wanted >= count {
        return Err(GpuError::NoSuchGpu { wanted, count });
    }
    let missing = |library| move |reason| GpuError::NoLibrary { driver: version, library, reason };
    // First, as it knows where CUDA's own libraries lie: they are then found by their names alone.
    load(TORCH_CUDA).map_err(missing(TORCH_CUDA))?;
    let runtime = load(RUNTIME).map_err(missing(RUNTIME))?;
    // SAFETY: the documented signature of this function.
    let of_runtime =
        unsafe { runtime.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cudaRuntimeGetVersion") };
    if let Ok(of_runtime) = of_runtime {
        let mut number = 0;
        // SAFETY: a place for one int.
        let code = unsafe { of_runtime(&raw mut number) };
        if code == 0 && version.major() < Version(number).major() {
            return Err(GpuError::OldDriver { driver: version, wanted: Version(number) });
        }
    }
    let usable = tch::Cuda::device_count();
    if i64::from(wanted) >= usable {
        return Err(GpuError::Unusable { driver: version, count, usable });
    }
    Ok(Device::Cuda(wanted as usize))
}

/// The values of a dense tensor of f32 or bfloat16 in a GPU's memory, to sum where they are.
///
/// # Errors
/// A tensor of another kind, one that is not dense, or one in main memory.
pub fn slice(tensor: &mut Tensor) -> Result<DeviceSlice<'_>, TorchError> {
    let (kind, device, contiguous) = (tensor.kind(), tensor.device(), tensor.is_contiguous());
    let slice = match kind {
        Kind::Float if device.is_cuda() && contiguous => DeviceSlice::new,
        Kind::BFloat16 if device.is_cuda() && contiguous => DeviceSlice::of_bf16,
        _ => {
            let (wanted, memory) = ("f32 or bfloat16", "the memory of a GPU");
            return Err(TorchError::NotASlice { wanted, memory, kind, device, contiguous });
        }
    };
    // SAFETY: so many values of that kind lie there, and the handle is borrowed exclusively while the slice lives;
    // libtorch queues what it does with them on the default stream, for only the thread that sends batches has another.
    Ok(unsafe { slice(tensor.data_ptr() as u64, tensor.numel()) })
}

/// Loads a library for good, its symbols visible to those that are loaded after it. An error says why in one line.
fn load(name: &'static str) -> Result<&'static Library, String> {
    // SAFETY: the libraries named here are made to be loaded; what they run at that is NVIDIA's and PyTorch's own.
    match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        // The error itself only says which function failed.
        Err(error) => {
            let reason =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Err(reason.replace('\n', " "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_one_line_with_what_was_found() {
        assert_eq!(Version(13020).to_string(), "13.2");
        let lines = [
            (
                GpuError::NoSuchGpu { wanted: 3, count: 1 }.to_string(),
                "there is no GPU 3: this host has one, number 0",
            ),
            (
                GpuError::NoSuchGpu { wanted: 8, count: 8 }.to_string(),
                "there is no GPU 8: this host has 8, numbered from 0",
            ),
            (
                GpuError::OldDriver { driver: Version(12040), wanted: Version(13000) }.to_string(),
                "the NVIDIA driver is for CUDA up to 12.4 and this libtorch wants CUDA 13.0: update the driver, to 580 or \
                 later for CUDA 13",
            ),
        ];
        for (line, wanted) in lines {
            assert_eq!(line, wanted);
        }
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = load("librelabel-nowhere.so.1").map(drop).expect_err("there is none");
        assert!(error.contains("librelabel-nowhere.so.1") && !error.contains('\n'), "{error}");
    }
}
