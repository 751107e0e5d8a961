//! The functions of NCCL and of the CUDA driver that are used here, found at run time, behind a safe face.
//!
//! The layouts are cudarc's. Its loader is not used: it looks for `libnccl.so` where NVIDIA's packages have only
//! `libnccl.so.2`, and panics where there is none; and its functions return enums, which a code that a newer NCCL has
//! come up with must not become.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUevent, CUstream};
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

const CUDA: &str = "libcuda.so.1";
const NCCL: &str = "libnccl.so.2";

/// The oldest NCCL whose communicators can be made without blocking, as NCCL counts: 2.14.
pub(super) const OLDEST: u32 = 21_400;

/// `ncclInProgress`: not done yet, and nothing is wrong.
pub(super) const IN_PROGRESS: c_int = 7;

/// Bytes of an id.
pub const ID_BYTES: usize = 128;

/// Why NCCL or the driver did not do as they were asked: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    #[error("{library} cannot be loaded ({reason})")]
    Library { library: &'static str, reason: String },
    #[error("{library} lacks {symbol}")]
    Symbol { library: &'static str, symbol: &'static str },
    #[error("NCCL {} is too old: 2.14 or later is needed", version(*.0))]
    TooOld(u32),
    #[error("NCCL could not {doing}: {words}")]
    Nccl { doing: &'static str, words: String },
    #[error("CUDA could not {doing}: {words}")]
    Cuda { doing: &'static str, words: String },
}

/// As people write it: 23003 is 2.30.3.
pub fn version(code: u32) -> String {
    format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100)
}

pub(super) type Comm = ncclComm_t;

/// The functions of both libraries, by the types that their headers give.
#[derive(Clone, Copy)]
pub(super) struct Api {
    version: u32,
    pub(super) unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    pub(super) init: unsafe extern "C" fn(*mut Comm, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int,
    pub(super) async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    pub(super) finalize: unsafe extern "C" fn(Comm) -> c_int,
    pub(super) abort: unsafe extern "C" fn(Comm) -> c_int,
    pub(super) all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CUstream) -> c_int,
    pub(super) broadcast:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CUstream) -> c_int,
    pub(super) all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, CUstream) -> c_int,
    pub(super) error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(super) last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    pub(super) retain_context: unsafe extern "C" fn(*mut CUcontext, c_int) -> c_int,
    pub(super) set_context: unsafe extern "C" fn(CUcontext) -> c_int,
    pub(super) stream_create: unsafe extern "C" fn(*mut CUstream, c_uint) -> c_int,
    pub(super) stream_destroy: unsafe extern "C" fn(CUstream) -> c_int,
    pub(super) stream_wait: unsafe extern "C" fn(CUstream, CUevent, c_uint) -> c_int,
    pub(super) event_create: unsafe extern "C" fn(*mut CUevent, c_uint) -> c_int,
    pub(super) event_destroy: unsafe extern "C" fn(CUevent) -> c_int,
    pub(super) event_record: unsafe extern "C" fn(CUevent, CUstream) -> c_int,
    pub(super) event_query: unsafe extern "C" fn(CUevent) -> c_int,
    pub(super) mem_alloc: unsafe extern "C" fn(*mut CUdeviceptr, usize) -> c_int,
    pub(super) mem_free: unsafe extern "C" fn(CUdeviceptr) -> c_int,
    pub(super) to_device: unsafe extern "C" fn(CUdeviceptr, *const c_void, usize, CUstream) -> c_int,
    pub(super) to_host: unsafe extern "C" fn(*mut c_void, CUdeviceptr, usize, CUstream) -> c_int,
    pub(super) cuda_error_string: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
}

impl Api {
    /// Loads both libraries, once. `libcuda.so.1` has to have been started by whoever chose the GPU.
    ///
    /// # Errors
    /// One is missing, lacks something or is too old.
    pub(super) fn load() -> Result<Self, NcclError> {
        static LOADED: OnceLock<Result<Api, NcclError>> = OnceLock::new();
        LOADED.get_or_init(Self::open).clone()
    }

    fn open() -> Result<Self, NcclError> {
        let (cuda, nccl) = (open(CUDA)?, open(NCCL)?);
        let api = Self {
            version: 0,
            unique_id: symbol(nccl, NCCL, "ncclGetUniqueId")?,
            init: symbol(nccl, NCCL, "ncclCommInitRankConfig")?,
            async_error: symbol(nccl, NCCL, "ncclCommGetAsyncError")?,
            finalize: symbol(nccl, NCCL, "ncclCommFinalize")?,
            abort: symbol(nccl, NCCL, "ncclCommAbort")?,
            all_reduce: symbol(nccl, NCCL, "ncclAllReduce")?,
            broadcast: symbol(nccl, NCCL, "ncclBroadcast")?,
            all_gather: symbol(nccl, NCCL, "ncclAllGather")?,
            error_string: symbol(nccl, NCCL, "ncclGetErrorString")?,
            last_error: symbol(nccl, NCCL, "ncclGetLastError")?,
            retain_context: symbol(cuda, CUDA, "cuDevicePrimaryCtxRetain")?,
            set_context: symbol(cuda, CUDA, "cuCtxSetCurrent")?,
            stream_create: symbol(cuda, CUDA, "cuStreamCreate")?,
            stream_destroy: symbol(cuda, CUDA, "cuStreamDestroy_v2")?,
            stream_wait: symbol(cuda, CUDA, "cuStreamWaitEvent")?,
            event_create: symbol(cuda, CUDA, "cuEventCreate")?,
            event_destroy: symbol(cuda, CUDA, "cuEventDestroy_v2")?,
            event_record: symbol(cuda, CUDA, "cuEventRecord")?,
            event_query: symbol(cuda, CUDA, "cuEventQuery")?,
            mem_alloc: symbol(cuda, CUDA, "cuMemAlloc_v2")?,
            mem_free: symbol(cuda, CUDA, "cuMemFree_v2")?,
            to_device: symbol(cuda, CUDA, "cuMemcpyHtoDAsync_v2")?,
            to_host: symbol(cuda, CUDA, "cuMemcpyDtoHAsync_v2")?,
            cuda_error_string: symbol(cuda, CUDA, "cuGetErrorString")?,
        };
        let version = symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>(nccl, NCCL, "ncclGetVersion")?;
        let mut code = 0;
        // SAFETY: the header's signature; a place for one int.
        api.nccl("tell its version", std::ptr::null_mut(), unsafe { version(&raw mut code) })?;
        let version = u32::try_from(code).unwrap_or(0);
        if version < OLDEST { Err(NcclError::TooOld(version)) } else { Ok(Self { version, ..api }) }
    }

    /// As NCCL counts.
    pub(super) fn version(self) -> u32 {
        self.version
    }

    /// A new id, for one communicator. Opens a port on this host, by `NCCL_SOCKET_IFNAME` if that is set.
    pub(super) fn unique_id(self) -> Result<[u8; ID_BYTES], NcclError> {
        let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
        // SAFETY: a place for one id.
        self.nccl("make an id", std::ptr::null_mut(), unsafe { (self.unique_id)(&raw mut id) })?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    /// Whether a code of NCCL's is an error; `comm` may be null.
    pub(super) fn nccl(self, doing: &'static str, comm: Comm, code: c_int) -> Result<(), NcclError> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: takes any code, and gives a text that NCCL keeps for ever.
        let mut words = text(unsafe { (self.error_string)(code) });
        // SAFETY: takes null for the last error of any communicator.
        let last = text(unsafe { (self.last_error)(comm) });
        if !last.is_empty() {
            words = format!("{words} ({last})");
        }
        Err(NcclError::Nccl { doing, words })
    }

    /// Waits until what was sent has left, or for `patience`.
    pub(super) fn flushed(self, comm: Comm, patience: Duration) -> Result<(), NcclError> {
        let began = Instant::now();
        // SAFETY: a live communicator, here and below.
        let mut state = unsafe { (self.finalize)(comm) };
        while state == IN_PROGRESS && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(1));
            // SAFETY: a place for one int.
            let asked = unsafe { (self.async_error)(comm, &raw mut state) };
            self.nccl("tell how it is", comm, asked)?;
        }
        Ok(())
    }

    pub(super) fn cuda(self, doing: &'static str, code: c_int) -> Result<(), NcclError> {
        if code == 0 {
            return Ok(());
        }
        let mut words = std::ptr::null();
        // SAFETY: a place for a pointer to a text that the driver keeps for ever.
        let known = unsafe { (self.cuda_error_string)(code, &raw mut words) } == 0;
        let words = if known { text(words) } else { format!("error {code}") };
        Err(NcclError::Cuda { doing, words })
    }
}

/// One line of a C string, empty for none.
fn text(words: *const c_char) -> String {
    if words.is_null() {
        return String::new();
    }
    // SAFETY: not null, and both libraries end their texts.
    let words = unsafe { CStr::from_ptr(words) }.to_string_lossy();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn open(name: &'static str) -> Result<&'static Library, NcclError> {
    // SAFETY: NVIDIA's libraries are made to be loaded; they are never closed, as they keep threads.
    match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        Err(error) => {
            let reason =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Err(NcclError::Library { library: name, reason: reason.replace('\n', " ") })
        }
    }
}

fn symbol<F: Copy>(library: &Library, name: &'static str, symbol: &'static str) -> Result<F, NcclError> {
    // SAFETY: the fields of `Api` have the types of the headers.
    let found = unsafe { library.get::<F>(symbol.as_bytes()) };
    found.map(|function| *function).map_err(|_| NcclError::Symbol { library: name, symbol })
}
