//! NVIDIA's libraries besides the driver ([`crate::torch::cuda`]): CUDA's runtime, cuDNN and NCCL, asked by their C
//! interface for their versions. Each is loaded when it is asked for, so that a machine without them only lacks an answer.
//!
//! The one file of the doctor with unsafe code. Types are those of cuda_runtime_api.h, cudnn.h and nccl.h.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};
use serde::Serialize;

/// A `cudaError_t` or `ncclResult_t` that says all went well.
const SUCCESS: c_int = 0;

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
    #[error("{call} failed with code {code}")]
    Call { call: &'static str, code: c_int },
}

/// A library that has told its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Versioned {
    pub version: String,
    /// The file, where the system tells.
    pub path: Option<PathBuf>,
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

/// A library in this process, and the name that it was found by. It stays until the process ends: it may have
/// begun threads, which would be without their code.
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

    /// What a function `int NAME(int *version)` stores, which returns 0 where all goes well.
    fn version(&self, symbol: &'static str) -> Result<usize, ProbeError> {
        // SAFETY: cudaRuntimeGetVersion and ncclGetVersion, the callers' symbols, are declared so.
        let ask = unsafe { self.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(symbol)? };
        let mut version: c_int = 0;
        // SAFETY: a place for one int.
        match unsafe { ask(&raw mut version) } {
            SUCCESS => Ok(usize::try_from(version).unwrap_or(0)),
            code => Err(ProbeError::Call { call: symbol, code }),
        }
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
