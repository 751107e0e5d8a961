//! NCCL: the collective of ranks on GPUs.
//!
//! Rank 0 of a generation makes an id ([`unique_id`]), the coordinator passes it on, and each rank forms a communicator
//! with it ([`Nccl::form`]). Nothing here blocks where it could not be given up: the communicator is made without
//! blocking and asked how it is until it stands; sums are queued on a stream of their own, ordered with libtorch's by
//! events, and an event is asked whether they are done. Meanwhile NCCL is asked for errors that came later, and the
//! [`AbortHandle`] for the end of the generation; either ends in `ncclCommAbort`.
//!
//! Which network it takes is NCCL's to find out and its environment's to say: `NCCL_SOCKET_IFNAME`, `NCCL_IB_HCA`,
//! `NCCL_DEBUG` and the others are left as they are. `NCCL_MULTI_RANK_GPU_ENABLE=1` lets ranks share a GPU.
//! Unlike the ring, what NCCL sends is neither authenticated nor encrypted.

mod ffi;
mod port;
#[cfg(test)]
mod tests;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ffi::Api;
pub use ffi::{ID_BYTES, NcclError, version};
pub use port::DeviceSlice;
use port::{Kind, Part, Port};

use super::{AbortHandle, Collective, CollectiveError, bf16};

/// How often NCCL and the event are asked: at first without a pause, for a sum takes less than the shortest one.
const SPIN: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_micros(100);

/// How long giving up may take. What is not done by then is left to a thread.
const GIVE_UP: Duration = Duration::from_millis(500);
/// The part of it in which what is on its way to other ranks may leave, where all has gone well.
const FLUSH: Duration = Duration::from_millis(250);

/// The version of NCCL that can be used, as NCCL counts.
///
/// # Errors
/// NCCL or the driver is missing, lacks something or is too old.
pub fn find() -> Result<u32, NcclError> {
    Api::load().map(Api::version)
}

/// A new id for the ranks of one generation.
///
/// # Errors
/// As [`find`], and where NCCL finds no network.
pub fn unique_id() -> Result<[u8; ID_BYTES], NcclError> {
    Api::load()?.unique_id()
}

/// A rank's place in a communicator.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// In `0..world`.
    pub rank: u32,
    /// At least 2.
    pub world: u32,
    /// This process's number of its GPU.
    pub gpu: u32,
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For all ranks to have formed.
    pub form: Duration,
    /// For a sum, until another rank is taken to stand still; see [`super::tcp::Timeouts::silence`].
    pub silence: Duration,
}

/// This rank's end of the communicator of one generation.
pub struct Nccl {
    port: Port,
    place: Place,
    patience: Patience,
    abort: AbortHandle,
    failed: Option<String>,
}

impl Nccl {
    /// Takes this rank's place among those that have the same `id`.
    ///
    /// # Errors
    /// NCCL finds no way to the others or they do not come in time; the generation ends meanwhile.
    pub fn form(
        place: Place,
        id: &[u8; ID_BYTES],
        patience: Patience,
        abort: AbortHandle,
    ) -> Result<Self, CollectiveError> {
        abort.check()?;
        let Place { rank, world, gpu } = place;
        let port = Api::load().and_then(|api| Port::begin(api, gpu, rank, world, id)).map_err(broken)?;
        let mut nccl = Self { port, place, patience, abort, failed: None };
        let began = Instant::now();
        let formed = nccl.until(
            |port| port.progress(),
            |waited| {
                (waited > patience.form).then(|| CollectiveError::NotFormed {
                    rank,
                    seconds: began.elapsed().as_secs_f64(),
                    missing: "NCCL still waits for other ranks".into(),
                    blamed: None,
                })
            },
        );
        nccl.ended_by(formed)?;
        Ok(nccl)
    }

    /// Replaces each value of each of `slices` by its sum over all ranks, where it is, one slice after the other. A slice's
    /// sum is queued as soon as the iterator gives it, which may wait: it begins when what libtorch has queued until
    /// then is done, while what libtorch queues later goes on beside it. Returns when all sums are done.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    pub fn all_reduce_in_turn<'a>(
        &mut self,
        slices: impl IntoIterator<Item = DeviceSlice<'a>>,
    ) -> Result<(), CollectiveError> {
        self.call(|nccl| {
            for slice in slices {
                nccl.port.after_default_stream().map_err(broken)?;
                nccl.port.all_reduce(Part::of(&slice)).map_err(broken)?;
                nccl.settle()?;
            }
            nccl.finish()
        })
    }

    /// Brings `bytes` to the GPU, does `exchange` with them there, and brings them back.
    fn staged(
        &mut self,
        bytes: &mut [u8],
        kind: Kind,
        exchange: impl FnOnce(&Port, Part) -> Result<(), NcclError>,
    ) -> Result<(), CollectiveError> {
        self.call(|nccl| {
            let part = nccl.port.stage(bytes, kind).map_err(broken)?;
            exchange(&nccl.port, part).map_err(broken)?;
            nccl.settle()?;
            // Copying back would wait for the sum without end.
            nccl.finish()?;
            nccl.port.fetch(bytes).map_err(broken)?;
            nccl.finish()
        })
    }

    /// Does `work` unless an earlier call has failed; where it fails, the communicator is given up.
    fn call(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.abort.check()?;
        if let Some(first) = &self.failed {
            return Err(CollectiveError::Ended { first: first.clone() });
        }
        let done = self.port.enter().map_err(broken).and_then(|()| work(self));
        self.ended_by(done)
    }

    /// Gives the communicator up if this was an error.
    fn ended_by<T>(&mut self, done: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        done.inspect_err(|error| {
            self.failed = Some(error.to_string());
            give_up(&mut self.port, None);
        })
    }

    /// Waits until NCCL has taken on what it was asked last.
    fn settle(&self) -> Result<(), CollectiveError> {
        self.until(|port| port.progress(), |waited| self.silence(waited))
    }

    /// Waits until all that is queued is done.
    fn finish(&self) -> Result<(), CollectiveError> {
        self.port.mark().map_err(broken)?;
        self.until(
            |port| {
                port.progress()?;
                port.is_done()
            },
            |waited| self.silence(waited),
        )
    }

    fn silence(&self, waited: Duration) -> Option<CollectiveError> {
        (waited > self.patience.silence).then(|| CollectiveError::Nccl {
            what: format!("nothing has moved for {:.1} s", waited.as_secs_f64()),
        })
    }

    /// Asks until it is `done`, for as long as the generation lasts and `over` has nothing to say.
    fn until(
        &self,
        done: impl Fn(&Port) -> Result<bool, NcclError>,
        over: impl Fn(Duration) -> Option<CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let began = Instant::now();
        loop {
            if done(&self.port).map_err(broken)? {
                return Ok(());
            }
            self.abort.check()?;
            let waited = began.elapsed();
            if let Some(error) = over(waited) {
                return Err(error);
            }
            match waited < SPIN {
                true => std::hint::spin_loop(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }
}

fn broken(error: NcclError) -> CollectiveError {
    CollectiveError::Nccl { what: error.to_string() }
}

/// Gives a communicator up, on a thread of its own: NCCL may wait there for what a GPU is doing.
fn give_up(port: &mut Port, flush: Option<Duration>) {
    let Some(abort) = port.abort(flush) else { return };
    let (sent, done) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("nccl abort".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = sent.send(abort());
    });
    let given_up = spawned.map(|_| done.recv_timeout(GIVE_UP));
    match given_up {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::debug!("{error}"),
        Ok(Err(_)) => {
            tracing::warn!("NCCL takes more than {GIVE_UP:?} to give up a communicator; going on without");
            port.leak();
        }
        Err(error) => tracing::warn!("cannot start a thread to give up a communicator of NCCL: {error}"),
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // Each call has waited for what it queued, so that nothing of it is lost.
        let whole = self.failed.is_none() && self.abort.reason().is_none();
        give_up(&mut self.port, whole.then_some(FLUSH));
    }
}

impl Collective for Nccl {
    fn rank(&self) -> u32 {
        self.place.rank
    }

    fn world(&self) -> u32 {
        self.place.world
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        if values.is_empty() {
            return self.call(|_| Ok(()));
        }
        self.staged(bytemuck::cast_slice_mut(values), Kind::Float32, |port, part| port.all_reduce(part))
    }

    fn all_reduce_bf16(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        if values.is_empty() {
            return self.call(|_| Ok(()));
        }
        let mut rounded = vec![0_u16; values.len()];
        bf16::round_all(values, &mut rounded);
        let bytes = bytemuck::cast_slice_mut(&mut rounded);
        self.staged(bytes, Kind::Bfloat16, |port, part| port.all_reduce(part))?;
        bf16::widen_all(&rounded, values);
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut [u8], root: u32) -> Result<(), CollectiveError> {
        let world = self.place.world;
        if root >= world {
            return Err(CollectiveError::Invalid(format!(
                "broadcast from rank {root} in a world of {world}"
            )));
        }
        if bytes.is_empty() {
            return self.call(|_| Ok(()));
        }
        self.staged(bytes, Kind::Byte, |port, part| port.broadcast(part, root))
    }

    fn all_gather(&mut self, slots: &mut [u8]) -> Result<(), CollectiveError> {
        let Place { rank, world, .. } = self.place;
        if !slots.len().is_multiple_of(world as usize) {
            let bytes = slots.len();
            return Err(CollectiveError::Invalid(format!("{bytes} bytes are not {world} equal slots")));
        }
        if slots.is_empty() {
            return self.call(|_| Ok(()));
        }
        self.staged(slots, Kind::Byte, |port, all| port.all_gather(all, rank, world))
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    fn nccl(&mut self) -> Option<&mut Nccl> {
        Some(self)
    }
}
