//! What one rank has of a communicator, and the memory that goes through it, behind a safe face.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::time::Duration;

use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUevent, CUstream};
use cudarc::nccl::sys::{ncclConfig_t, ncclUniqueId};

use super::ffi::{Api, Comm, ID_BYTES, IN_PROGRESS, NcclError, OLDEST};

/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;
/// What NCCL's initializer of a configuration sets.
const MAGIC: c_uint = 0xcafe_beef;
const UNDEFINED: c_int = c_int::MIN;
const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;
/// `ncclSum`.
const SUM: c_int = 0;

/// What the elements of a buffer are, by NCCL's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Byte = 1,
    Float32 = 7,
    Bfloat16 = 9,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Bfloat16 => 2,
            Self::Float32 => 4,
        }
    }
}

/// Values in a GPU's memory, borrowed.
pub struct DeviceSlice<'a> {
    address: CUdeviceptr,
    length: usize,
    kind: Kind,
    owner: PhantomData<&'a mut [f32]>,
}

impl DeviceSlice<'_> {
    /// # Safety
    /// `length` f32 values lie at `address` in the memory of the GPU that the communicator is for, and nothing
    /// else uses them while this lives, but for what is queued on the default stream already.
    pub unsafe fn new(address: u64, length: usize) -> Self {
        Self { address, length, kind: Kind::Float32, owner: PhantomData }
    }

    /// # Safety
    /// As [`Self::new`], of bfloat16 values.
    pub unsafe fn of_bf16(address: u64, length: usize) -> Self {
        Self { address, length, kind: Kind::Bfloat16, owner: PhantomData }
    }
}

/// A part of a GPU's memory, `count` elements of `kind`.
#[derive(Clone, Copy)]
pub(super) struct Part {
    address: CUdeviceptr,
    count: usize,
    kind: Kind,
}

impl Part {
    /// All of `slice`.
    pub(super) fn of(slice: &DeviceSlice<'_>) -> Self {
        Self { address: slice.address, count: slice.length, kind: slice.kind }
    }
}

/// What one rank has of one communicator: its GPU's context, a stream of its own, two events, and memory of the
/// GPU for what comes from main memory.
pub(super) struct Port {
    api: Api,
    /// None once it has been given up.
    comm: Option<Comm>,
    context: CUcontext,
    stream: CUstream,
    ready: CUevent,
    done: CUevent,
    staging: CUdeviceptr,
    capacity: usize,
}

// SAFETY: what it points to is NCCL's and the driver's, which do not tie it to a thread beyond the current context,
// and `Port::enter` sets that.
unsafe impl Send for Port {}

impl Port {
    /// Begins to make a communicator, without waiting for the other ranks: [`Port::progress`] says when it is there.
    pub(super) fn begin(
        api: Api,
        gpu: u32,
        rank: u32,
        world: u32,
        id: &[u8; ID_BYTES],
    ) -> Result<Self, NcclError> {
        let mut port = Self {
            api,
            comm: None,
            context: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            ready: std::ptr::null_mut(),
            done: std::ptr::null_mut(),
            staging: 0,
            capacity: 0,
        };
        // SAFETY: places for one handle each, here and below; the handles are dropped with the port.
        api.cuda("use the GPU", unsafe { (api.retain_context)(&raw mut port.context, gpu as c_int) })?;
        port.enter()?;
        // SAFETY: as above.
        api.cuda("make a stream", unsafe { (api.stream_create)(&raw mut port.stream, STREAM_NON_BLOCKING) })?;
        for event in [&raw mut port.ready, &raw mut port.done] {
            // SAFETY: as above.
            api.cuda("make an event", unsafe { (api.event_create)(event, EVENT_DISABLE_TIMING) })?;
        }
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let (mut comm, mut config) = (std::ptr::null_mut(), config());
        // SAFETY: a place for one communicator, and a configuration that NCCL copies.
        let begun = unsafe { (api.init)(&raw mut comm, world as c_int, id, rank as c_int, &raw mut config) };
        port.comm = (!comm.is_null()).then_some(comm);
        api.nccl("begin a communicator", comm, begun)?;
        Ok(port)
    }

    /// Makes the GPU this thread's.
    pub(super) fn enter(&self) -> Result<(), NcclError> {
        // SAFETY: the primary context of the GPU, which is kept: libtorch uses it too.
        self.api.cuda("use the GPU", unsafe { (self.api.set_context)(self.context) })
    }

    /// Whether what was asked of NCCL last is under way for good, or else is still being prepared.
    pub(super) fn progress(&self) -> Result<bool, NcclError> {
        let Some(comm) = self.comm else {
            return Err(NcclError::Nccl { doing: "go on", words: "it has been given up".into() });
        };
        let mut state = 0;
        // SAFETY: a live communicator, and a place for one int.
        let asked = unsafe { (self.api.async_error)(comm, &raw mut state) };
        self.api.nccl("tell how it is", comm, asked)?;
        self.api.nccl("reach the other ranks", comm, state)?;
        Ok(state != IN_PROGRESS)
    }

    /// Has the own stream wait for what is queued on the default stream.
    pub(super) fn after_default_stream(&self) -> Result<(), NcclError> {
        // SAFETY: a live event and stream; null is the default stream.
        let recorded = unsafe { (self.api.event_record)(self.ready, std::ptr::null_mut()) };
        self.api.cuda("record an event", recorded)?;
        // SAFETY: as above.
        self.api.cuda("order its streams", unsafe { (self.api.stream_wait)(self.stream, self.ready, 0) })
    }

    /// Marks the end of what is queued on the own stream, and has the default stream wait for it.
    pub(super) fn mark(&self) -> Result<(), NcclError> {
        // SAFETY: a live event and stream.
        self.api.cuda("record an event", unsafe { (self.api.event_record)(self.done, self.stream) })?;
        // SAFETY: as above.
        let ordered = unsafe { (self.api.stream_wait)(std::ptr::null_mut(), self.done, 0) };
        self.api.cuda("order its streams", ordered)
    }

    /// Whether what was marked is done.
    pub(super) fn is_done(&self) -> Result<bool, NcclError> {
        // SAFETY: a live event.
        match unsafe { (self.api.event_query)(self.done) } {
            NOT_READY => Ok(false),
            code => self.api.cuda("finish what was queued", code).map(|()| true),
        }
    }

    /// Queues the sum of `part` over the ranks, in place.
    pub(super) fn all_reduce(&self, part: Part) -> Result<(), NcclError> {
        let (at, comm) = (part.address as *mut c_void, self.live("sum")?);
        // SAFETY: the part lies in this GPU's memory; whoever made it sees to its life until the mark is done or the
        // communicator is given up.
        let code =
            unsafe { (self.api.all_reduce)(at, at, part.count, part.kind as c_int, SUM, comm, self.stream) };
        self.api.nccl("sum", comm, code)
    }

    /// Queues the copy of `part` from rank `root` to all.
    pub(super) fn broadcast(&self, part: Part, root: u32) -> Result<(), NcclError> {
        let (at, comm) = (part.address as *mut c_void, self.live("send its state round")?);
        // SAFETY: as in `all_reduce`.
        let code = unsafe {
            (self.api.broadcast)(at, at, part.count, part.kind as c_int, root as c_int, comm, self.stream)
        };
        self.api.nccl("send its state round", comm, code)
    }

    /// Queues the exchange of the `world` equal parts of `all`, of which the one of `rank` is this rank's.
    pub(super) fn all_gather(&self, all: Part, rank: u32, world: u32) -> Result<(), NcclError> {
        let each = all.count / world as usize;
        let own = all.address + (rank as usize * each * all.kind.bytes()) as CUdeviceptr;
        let (at, comm) = (all.address as *mut c_void, self.live("gather")?);
        // SAFETY: as in `all_reduce`; the own part lies within.
        let code = unsafe {
            (self.api.all_gather)(own as *const c_void, at, each, all.kind as c_int, comm, self.stream)
        };
        self.api.nccl("gather", comm, code)
    }

    /// Queues the copy of `bytes` into the GPU's memory, and says where they are then.
    pub(super) fn stage(&mut self, bytes: &[u8], kind: Kind) -> Result<Part, NcclError> {
        if self.capacity < bytes.len() {
            self.free();
            // SAFETY: a place for one address.
            let code = unsafe { (self.api.mem_alloc)(&raw mut self.staging, bytes.len()) };
            self.api.cuda("allocate memory of the GPU", code)?;
            self.capacity = bytes.len();
        }
        // SAFETY: the memory holds as many bytes. From memory that is not pinned the driver has copied them when this
        // returns.
        let code =
            unsafe { (self.api.to_device)(self.staging, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        self.api.cuda("copy to the GPU", code)?;
        Ok(Part { address: self.staging, count: bytes.len() / kind.bytes(), kind })
    }

    /// Copies what [`Port::stage`] brought back. What was queued before has to be done: this waits for it without end.
    pub(super) fn fetch(&self, bytes: &mut [u8]) -> Result<(), NcclError> {
        let length = bytes.len().min(self.capacity);
        // SAFETY: both hold so many bytes.
        let code =
            unsafe { (self.api.to_host)(bytes.as_mut_ptr().cast(), self.staging, length, self.stream) };
        self.api.cuda("copy from the GPU", code)
    }

    /// What gives the communicator up: whatever is queued ends, here and on the other ranks. May take its time. Where
    /// nothing has failed, what is still on its way to them is sent first, for up to `flush`.
    pub(super) fn abort(
        &mut self,
        flush: Option<Duration>,
    ) -> Option<impl FnOnce() -> Result<(), NcclError> + Send + use<>> {
        struct Sent(Comm);
        // SAFETY: it is handed over, and used by one thread.
        unsafe impl Send for Sent {}
        let (comm, api) = (Sent(self.comm.take()?), self.api);
        Some(move || {
            let Sent(comm) = { comm };
            let flushed = flush.map_or(Ok(()), |flush| api.flushed(comm, flush));
            // SAFETY: a live communicator, which nobody has any more.
            let aborted = unsafe { (api.abort)(comm) };
            flushed.and(api.nccl("give up the communicator", std::ptr::null_mut(), aborted))
        })
    }

    /// Forgets the memory: something that was queued may still use it.
    pub(super) fn leak(&mut self) {
        self.capacity = 0;
    }

    fn live(&self, doing: &'static str) -> Result<Comm, NcclError> {
        self.comm.ok_or(NcclError::Nccl { doing, words: "it has been given up".into() })
    }

    fn free(&mut self) {
        if self.capacity > 0 {
            // SAFETY: allocated here, and nothing queued uses it: each call waits for what it queued.
            unsafe { (self.api.mem_free)(self.staging) };
            self.capacity = 0;
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.free();
        // SAFETY: live handles, or null where they were not made.
        unsafe {
            for event in [self.ready, self.done] {
                if !event.is_null() {
                    (self.api.event_destroy)(event);
                }
            }
            if !self.stream.is_null() {
                (self.api.stream_destroy)(self.stream);
            }
        }
    }
}

/// As NCCL's own initializer, and without blocking. NCCL reads as many bytes as `size` says; with this version the fields
/// that 2.14 had.
fn config() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: MAGIC,
        version: OLDEST,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}
