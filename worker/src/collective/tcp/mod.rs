//! The ring over TCP: rank r sends to rank r+1 and receives from rank r-1, and everything goes round.
//!
//! **The ring is authenticated, not encrypted.** Both ends of a link prove that they hold the token which
//! the coordinator gave to this generation, so strangers and stale ranks stay out; but the gradients and
//! weights themselves go in the clear, without a checksum beyond TCP's, and whoever sits on the path can
//! read and alter them. It is made for private networks.
//!
//! From a call to the wire: [`Ring`] checks the arguments, `schedule` says which bytes move in which
//! step, `transfer` moves them over two sockets that do not block, `frame` is the header of a step. Where all ranks
//! are on one host, `host` adds up what they have in each other's memory instead.
//! Before that `form` finds the two neighbours, and `handshake` makes sure of them.
//!
//! A failure spreads: a rank whose call fails closes both its connections, so its neighbours' calls fail
//! at once too, and theirs. A peer that is there but stands still is for [`AbortHandle`] to end, or for
//! [`Timeouts::silence`].

#[cfg(test)]
mod bf16_tests;
#[cfg(test)]
mod ending_tests;
mod form;
pub mod frame;
pub mod handshake;
mod host;
#[cfg(test)]
mod hostile_tests;
mod schedule;
#[cfg(test)]
pub(crate) mod tests;
mod transfer;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use self::frame::Op;
use self::handshake::Member;
use self::host::Host;
use self::schedule::Schedule;
use super::{AbortHandle, Collective, CollectiveError, Region, bf16};

/// Most ranks of one ring: the steps of an all-reduce are counted in 16 bits.
pub const MAX_WORLD: usize = 1 << 15;

/// What the coordinator tells a worker about the ring of one generation.
#[derive(Clone)]
pub struct Membership {
    /// This worker's rank, in `0..world`.
    pub rank: u32,
    /// Number of ranks, at least 2.
    pub world: u32,
    /// Where the listeners of the previous and the next rank can be reached.
    pub previous: SocketAddr,
    pub next: SocketAddr,
    pub generation: u64,
    /// Drawn at random for this generation, and known to its ranks and the coordinator alone.
    pub token: [u8; 32],
    /// Where this rank's values mostly lie: ranks that are all on one host read each other's. All ranks have one, or none.
    pub region: Option<Arc<Region>>,
}

/// How long the ring waits for what.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For all ranks to find their neighbours.
    pub form: Duration,
    /// For one accepted connection to prove itself.
    pub handshake: Duration,
    /// About how long a host may leave its peers' signs of life unanswered before it is lost, at least 4 s.
    pub peer: Duration,
    /// Longest time in which a call may see nothing move before it fails. A rank that is merely late
    /// (slow data, a checkpoint) is silent too, so this has to be generous; it is a last resort where the
    /// abort handle is used by someone who knows better. None leaves silent peers to that alone.
    pub silence: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            form: Duration::from_secs(30),
            handshake: Duration::from_secs(2),
            peer: Duration::from_secs(4),
            silence: Some(Duration::from_secs(300)),
        }
    }
}

/// One of the two connections of a rank.
struct Link {
    stream: Arc<TcpStream>,
    /// The rank at the other end.
    rank: u32,
    /// Where that rank listens, whichever side dialed.
    address: SocketAddr,
}

/// This rank's place in the ring of one generation.
pub struct Ring {
    member: Member,
    prev: Link,
    next: Link,
    /// Where all ranks are on one.
    host: Option<Host>,
    /// Readable for ever once the ring is aborted, so that a wait on the sockets ends.
    wake: UnixStream,
    abort: AbortHandle,
    silence: Option<Duration>,
    /// Operations begun.
    sequence: u64,
    /// What has arrived and is about to be added.
    scratch: Vec<f32>,
    /// The buffer of an all-reduce in bfloat16, as it goes over the wire.
    rounded: Vec<u16>,
    /// The first error, after which the links are down.
    ended: Option<String>,
}

impl Ring {
    /// Joins the ring of a generation: connects to the next rank, again and again until it is there, and
    /// accepts the previous one from `listener`, which is set to non-blocking and can serve the next
    /// generation afterwards. Connections that are not the previous rank's of this generation are dropped.
    ///
    /// Errors: [`CollectiveError::NotFormed`] after `timeouts.form`, saying who is missing and what was
    /// last seen of them; `Aborted`; `Invalid` for a membership of fewer than two ranks.
    pub fn connect(
        listener: &TcpListener,
        membership: &Membership,
        timeouts: Timeouts,
        abort: AbortHandle,
    ) -> Result<Self, CollectiveError> {
        let member = member_of(membership)?;
        let local = |doing| move |source| CollectiveError::Local { doing, source };
        let (wake, alarm) = UnixStream::pair().map_err(local("make the socket that an abort wakes"))?;
        abort.on_abort(move || drop(alarm));

        let (prev, next) = form::find_neighbours(
            listener,
            member,
            (membership.previous, membership.next),
            timeouts,
            &wake,
            &abort,
        )?;
        for link in [&prev, &next] {
            form::tune(&link.stream, timeouts.peer).map_err(local("set the options of a ring socket"))?;
            // So that an abort between two calls reaches the neighbours too. Weak: the handle may outlive
            // the ring, whose end has to close the connections.
            let stream = Arc::downgrade(&link.stream);
            abort.on_abort(move || shut(&stream));
        }
        let scratch = vec![0.0; transfer::CHUNK_BYTES / size_of::<f32>()];
        let mut ring = Self {
            member,
            prev,
            next,
            host: None,
            wake,
            abort,
            silence: Some(timeouts.form),
            sequence: 0,
            scratch,
            rounded: Vec::new(),
            ended: None,
        };
        if let Some(region) = &membership.region {
            ring.run(|ring| {
                ring.host = host::try_out(ring, region.clone())?;
                Ok(())
            })?;
        }
        ring.silence = timeouts.silence;
        Ok(ring)
    }

    /// Runs one operation, and on failure takes the links down so that the neighbours notice.
    fn run(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.abort.check()?;
        if let Some(first) = &self.ended {
            return Err(CollectiveError::Ended { first: first.clone() });
        }
        operation(self).map_err(|error| {
            // An abort takes the links down under the running call, whose own error is then beside the point.
            let error = self.abort.check().err().unwrap_or(error);
            self.ended = Some(error.to_string());
            shut(&Arc::downgrade(&self.prev.stream));
            shut(&Arc::downgrade(&self.next.stream));
            error
        })
    }

    /// Moves `bytes` round the ring. `values` are what is rounded in them, in an all-reduce in bfloat16.
    fn transfer(
        &mut self,
        schedule: Schedule,
        bytes: &mut [u8],
        values: Option<&mut [f32]>,
    ) -> Result<(), CollectiveError> {
        let result = transfer::run(self, schedule, bytes, values);
        self.sequence += 1;
        result
    }

    /// Adds up `values` where they lie in the ranks' memories; false where they do not lie there.
    fn all_reduce_here(&mut self, op: Op, values: &mut [f32]) -> Result<bool, CollectiveError> {
        let Some(mut host) = self.host.take_if(|host| host.has(values)) else { return Ok(false) };
        let done = self.run(|ring| host.all_reduce(ring, op, values));
        self.host = Some(host);
        done.map(|()| true)
    }

    fn schedule(&self, op: Op, root: u32, total: usize) -> Schedule {
        let Member { rank, world, .. } = self.member;
        Schedule { op, rank, world, root, total }
    }
}

impl Collective for Ring {
    fn rank(&self) -> u32 {
        self.member.rank
    }

    fn world(&self) -> u32 {
        self.member.world
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        if self.all_reduce_here(Op::AllReduce, values)? {
            return Ok(());
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        let schedule = self.schedule(Op::AllReduce, 0, bytes.len());
        self.run(|ring| ring.transfer(schedule, bytes, None))
    }

    fn all_reduce_bf16(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        if self.all_reduce_here(Op::AllReduceBf16, values)? {
            return Ok(());
        }
        let mut rounded = std::mem::take(&mut self.rounded);
        rounded.resize(values.len(), 0);
        // What is sent before anything has been added to it. The rest is rounded as it is added to, or comes from others.
        let unit = Op::AllReduceBf16.unit();
        let schedule = self.schedule(Op::AllReduceBf16, 0, unit * values.len());
        let first = schedule.sent(0);
        let first = first.start / unit..first.end / unit;
        bf16::round_all(&values[first.clone()], &mut rounded[first]);
        let bytes = bytemuck::cast_slice_mut(&mut rounded);
        let done = self.run(|ring| ring.transfer(schedule, bytes, Some(values)));
        // Its own sums too, so that it has the same as the others.
        bf16::widen_all(&rounded, values);
        self.rounded = rounded;
        done
    }

    fn broadcast(&mut self, bytes: &mut [u8], root: u32) -> Result<(), CollectiveError> {
        let world = self.member.world;
        if root >= world {
            return Err(CollectiveError::Invalid(format!(
                "broadcast from rank {root} in a world of {world}"
            )));
        }
        let schedule = self.schedule(Op::Broadcast, root, bytes.len());
        self.run(|ring| ring.transfer(schedule, bytes, None))
    }

    fn all_gather(&mut self, slots: &mut [u8]) -> Result<(), CollectiveError> {
        let (bytes, world) = (slots.len(), self.member.world);
        if bytes % world as usize != 0 {
            return Err(CollectiveError::Invalid(format!(
                "all-gather of {bytes} bytes, which is not a multiple of the {world} ranks"
            )));
        }
        let schedule = self.schedule(Op::AllGather, 0, bytes);
        self.run(|ring| ring.transfer(schedule, slots, None))
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

fn member_of(membership: &Membership) -> Result<Member, CollectiveError> {
    let &Membership { rank, world, generation, token, .. } = membership;
    if !(2..=MAX_WORLD).contains(&(world as usize)) || rank >= world {
        return Err(CollectiveError::Invalid(format!(
            "a ring cannot be formed by rank {rank} of {} (2 to {MAX_WORLD} ranks)",
            world
        )));
    }
    Ok(Member { rank, world, generation, token })
}

/// Closes both directions if the connection still exists.
fn shut(stream: &Weak<TcpStream>) {
    if let Some(stream) = stream.upgrade() {
        // Fails only where the peer was faster.
        let _: io::Result<()> = stream.shutdown(Shutdown::Both);
    }
}
