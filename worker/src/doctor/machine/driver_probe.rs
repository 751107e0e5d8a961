//! NVIDIA's libraries, asked by their C interface what they are: the driver for its GPUs, and CUDA's runtime, cuDNN and
//! NCCL for their versions. Each is loaded when it is asked for, so that a machine without them only lacks an answer.
//!
//! The one file of the doctor with unsafe code. Types and numbers are those of cuda.h, cuda_runtime_api.h, cudnn.h and
//! nccl.h, all of which promise not to change them.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};
use serde::Serialize;

/// A `CUresult`, `cudaError_t` or `ncclResult_t` that says all went well.
const SUCCESS: c_int = 0;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// Bytes that are kept for a GPU's name.
const NAME: usize = 256;

/// Why a library has told nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("not found ({})", names.join(", "))]
    Missing { names: &'static [&'static str] },
    /// The loader's words name the file.
    #[error("cannot be loaded: {words}")]
    Unloadable { words: String },
    #[error("{library} has no {symbol}")]
    NoSymbol { library: String, symbol: &'static str },
    #[error("{call} failed: {words}")]
    Call { call: &'static str, words: String },
}

/// A library that has told its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Versioned {
    pub version: String,
    /// The file, where the system tells.
    pub path: Option<PathBuf>,
}

/// The driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// The newest CUDA that it supports.
    pub cuda: String,
    pub path: Option<PathBuf>,
    pub gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: u64,
    /// Such as 9.0.
    pub compute_capability: String,
}

/// A library whose one function without arguments of its own tells its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    CudaRuntime,
    Cudnn,
    Nccl,
}

impl Part {
    /// Names that the loader looks for, the newest first.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::CudaRuntime => &["libcudart.so.13", "libcudart.so.12"],
            Self::Cudnn => &["libcudnn.so.9", "libcudnn.so.8"],
            Self::Nccl => &["libnccl.so.2"],
        }
    }

    /// Loads it and asks for its version.
    ///
    /// # Errors
    /// It is not there, or does not answer.
    pub fn version(self, folders: &[PathBuf]) -> Result<Versioned, ProbeError> {
        let loaded = Loaded::find(self.names(), folders)?;
        let version = match self {
            Self::CudaRuntime => cuda_version(loaded.version("cudaRuntimeGetVersion")?),
            Self::Nccl => nccl_version(loaded.version("ncclGetVersion")?),
            Self::Cudnn => {
                // SAFETY: cudnn.h declares `size_t cudnnGetVersion(void)`, which cannot fail.
                let ask = unsafe { loaded.get::<unsafe extern "C" fn() -> usize>("cudnnGetVersion")? };
                // SAFETY: as above; the library stays loaded.
                cudnn_version(unsafe { ask() })
            }
        };
        Ok(Versioned { version, path: loaded.path() })
    }
}

/// Loads the driver and asks it for its GPUs. It makes no context on any of them.
///
/// # Errors
/// There is no driver, or it does not work; [`ProbeError::Call`] of cuInit where it finds no GPU.
pub fn driver(folders: &[PathBuf]) -> Result<Driver, ProbeError> {
    let loaded = Loaded::find(&["libcuda.so.1"], folders)?;
    // SAFETY: cuda.h declares `CUresult cuInit(unsigned int flags)`, CUresult an enum the size of an int.
    let init = unsafe { loaded.get::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")? };
    // SAFETY: as above; the flags have to be 0.
    loaded.well("cuInit", unsafe { init(0) })?;
    let cuda = cuda_version(loaded.version("cuDriverGetVersion")?);

    // SAFETY: cuda.h declares `CUresult cuDeviceGetCount(int *count)`.
    let get_count = unsafe { loaded.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDeviceGetCount")? };
    let mut count = 0;
    // SAFETY: a place for one int.
    loaded.well("cuDeviceGetCount", unsafe { get_count(&raw mut count) })?;
    let gpus = (0..count).map(|ordinal| gpu(&loaded, ordinal)).collect::<Result<_, _>>()?;
    Ok(Driver { cuda, path: loaded.path(), gpus })
}

fn gpu(loaded: &Loaded, ordinal: c_int) -> Result<Gpu, ProbeError> {
    type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: cuda.h declares `CUresult cuDeviceGet(CUdevice *device, int ordinal)`, CUdevice an int.
    let get = unsafe { loaded.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>("cuDeviceGet")? };
    // SAFETY: cuda.h declares `CUresult cuDeviceGetName(char *name, int len, CUdevice dev)`.
    let get_name = unsafe { loaded.get::<GetName>("cuDeviceGetName")? };
    // SAFETY: cuda.h declares `CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)`.
    let total =
        unsafe { loaded.get::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>("cuDeviceTotalMem_v2")? };
    // SAFETY: cuda.h declares `CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev)`.
    let attribute = unsafe {
        loaded.get::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>("cuDeviceGetAttribute")?
    };

    let mut device = 0;
    // SAFETY: a place for one CUdevice, and an ordinal below the count.
    loaded.well("cuDeviceGet", unsafe { get(&raw mut device, ordinal) })?;
    let mut name: [c_char; NAME] = [0; NAME];
    // SAFETY: a place for one char less than there are, so that the last stays 0 whatever is written.
    loaded.well("cuDeviceGetName", unsafe { get_name(name.as_mut_ptr(), NAME as c_int - 1, device) })?;
    let mut memory = 0;
    // SAFETY: a place for one size_t.
    loaded.well("cuDeviceTotalMem_v2", unsafe { total(&raw mut memory, device) })?;
    let mut capability = [0; 2];
    for (which, value) in CAPABILITY.into_iter().zip(&mut capability) {
        // SAFETY: a place for one int.
        loaded.well("cuDeviceGetAttribute", unsafe { attribute(value, which, device) })?;
    }
    // SAFETY: the array ends with a 0 and lives on.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().trim().to_owned();
    let [major, minor] = capability;
    Ok(Gpu { name, memory_bytes: memory as u64, compute_capability: format!("{major}.{minor}") })
}

/// A library in this process, and the name that it was found by. It stays until the process ends: a driver that has
/// begun to work may have threads, which would be without their code.
struct Loaded {
    library: ManuallyDrop<Library>,
    name: &'static str,
}

impl Loaded {
    /// The first of `names` that the loader finds by itself, or in `folders`.
    fn find(names: &'static [&'static str], folders: &[PathBuf]) -> Result<Self, ProbeError> {
        let mut broken = None;
        for name in names {
            let places = folders.iter().map(|folder| folder.join(name)).filter(|path| path.is_file());
            for place in std::iter::once(PathBuf::from(name)).chain(places) {
                // SAFETY: it runs the library's initializers. These are NVIDIA's own names, which nothing else bears
                // that is not as harmless to load; whoever can place files there can run code as this user anyway.
                match unsafe { Library::new(&place) } {
                    Ok(library) => return Ok(Self { library: ManuallyDrop::new(library), name }),
                    Err(error) => broken = broken.or_else(|| told(&error, name)),
                }
            }
        }
        Err(broken.map_or(ProbeError::Missing { names }, |words| ProbeError::Unloadable { words }))
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` has to be the type of the function that the library has by this name.
    unsafe fn get<F>(&self, symbol: &'static str) -> Result<Symbol<'_, F>, ProbeError> {
        // SAFETY: as the caller promises.
        unsafe { self.library.get(symbol) }
            .map_err(|_| ProbeError::NoSymbol { library: self.name.to_owned(), symbol })
    }

    /// What a function `int NAME(int *version)` stores, which returns 0 where all goes well: all of the versions but
    /// cuDNN's are told by such a one.
    fn version(&self, symbol: &'static str) -> Result<usize, ProbeError> {
        // SAFETY: cudaRuntimeGetVersion, cuDriverGetVersion and ncclGetVersion, the callers' symbols, are declared so.
        let ask = unsafe { self.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(symbol)? };
        let mut version: c_int = 0;
        // SAFETY: a place for one int.
        self.well(symbol, unsafe { ask(&raw mut version) })?;
        Ok(usize::try_from(version).unwrap_or(0))
    }

    /// An error with the library's own words for it, where it has any.
    fn well(&self, call: &'static str, code: c_int) -> Result<(), ProbeError> {
        if code == SUCCESS {
            return Ok(());
        }
        type GetErrorString = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        let mut words = std::ptr::null();
        // SAFETY: cuda.h declares `CUresult cuGetErrorString(CUresult error, const char **pStr)`.
        if let Ok(explain) = unsafe { self.get::<GetErrorString>("cuGetErrorString") } {
            // SAFETY: a place for one pointer, which stays null for a code that is not known.
            unsafe { explain(code, &raw mut words) };
        }
        let words = match words.is_null() {
            true => format!("error {code}"),
            // SAFETY: a string that the library keeps, with a 0 at its end.
            false => format!("{} (error {code})", unsafe { CStr::from_ptr(words) }.to_string_lossy()),
        };
        Err(ProbeError::Call { call, words })
    }

    /// The file behind the library, as this process has it in memory.
    fn path(&self) -> Option<PathBuf> {
        mapped(self.name.split(".so").next().unwrap_or(self.name))
    }
}

/// The file in this process's memory whose name begins with `stem` and `.so`.
pub fn mapped(stem: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let wanted = format!("{stem}.so");
    let mut named = paths.filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(wanted.as_str()))
    });
    named.next().map(Path::to_owned)
}

/// What the loader says of a library that is there and cannot be loaded; none where there is none.
fn told(error: &libloading::Error, name: &str) -> Option<String> {
    let words = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let missing = words.starts_with(&format!("{name}: cannot open shared object file: No such file"));
    (!missing).then_some(words)
}

/// `13010` is 13.1.
fn cuda_version(number: usize) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// `91002` is 9.10.2, and before 9 `8902` was 8.9.2.
fn cudnn_version(number: usize) -> String {
    match number >= 90_000 {
        true => dotted(number, 10_000),
        false => dotted(number, 1000),
    }
}

/// `22703` is 2.27.3, and before 2.9 `2804` was 2.8.4.
fn nccl_version(number: usize) -> String {
    match number >= 10_000 {
        true => dotted(number, 10_000),
        false => dotted(number, 1000),
    }
}

/// Two digits for the patch, two or one for the minor number.
fn dotted(number: usize, major: usize) -> String {
    format!("{}.{}.{}", number / major, number % major / 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_versions() {
        assert_eq!([12_040, 13_000, 11_080].map(cuda_version), ["12.4", "13.0", "11.8"]);
        assert_eq!([91_002, 90_100, 8902].map(cudnn_version), ["9.10.2", "9.1.0", "8.9.2"]);
        assert_eq!([22_703, 20_903, 2804].map(nccl_version), ["2.27.3", "2.9.3", "2.8.4"]);
    }
}
