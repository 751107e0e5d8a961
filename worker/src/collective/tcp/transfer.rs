//! Moves the bytes of one operation: sends to the next rank, receives from the previous one, adds.
//!
//! One thread does all three, over sockets that do not block: what the next rank will take is handed over,
//! what the previous one has sent is taken and added, and only where neither moves does it wait, on both
//! sockets at once. The kernel's socket buffers are the queue between sending and adding. Nothing is allocated unless
//! it fails.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::frame::{HEADER_BYTES, Header};
use super::schedule::Schedule;
use super::{Link, Ring};
use crate::collective::{CollectiveError, bf16};

/// Most bytes that are received before the next look at the sender: small enough that what was just
/// added is still in the cache when it is sent on, large enough that system calls do not count.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Runs this rank's part of `schedule` over `bytes`, which are floats where the schedule adds; or else `values` are, in
/// which sums are kept, and `bytes` what they are rounded to.
pub(super) fn run(
    ring: &mut Ring,
    schedule: Schedule,
    bytes: &mut [u8],
    mut values: Option<&mut [f32]>,
) -> Result<(), CollectiveError> {
    let mut sending = Progress::new(ring, schedule, schedule.sends(), Schedule::sent);
    let mut receiving = Receiving {
        progress: Progress::new(ring, schedule, schedule.receives(), Schedule::received),
        header: [0; HEADER_BYTES],
        torn: 0,
    };
    while !(sending.finished() && receiving.progress.finished()) {
        ring.abort.check()?;
        let sent = sending.send(&ring.next, &receiving.progress, bytes)?;
        let received = receiving.receive(&ring.prev, &mut ring.scratch, bytes, values.as_deref_mut())?;
        if !sent && !received {
            wait(ring, &sending, &receiving.progress)?;
        }
    }
    Ok(())
}

/// How far one direction has come.
struct Progress {
    schedule: Schedule,
    /// The part of the buffer that a step of this direction moves.
    part_of: fn(&Schedule, u32) -> Range<usize>,
    /// The current step to the last.
    steps: Range<u32>,
    /// The current step's header and part.
    header: Header,
    part: Range<usize>,
    /// Bytes of the current step's header that are through.
    headed: usize,
    /// Bytes of the current step's part that have been sent; or received, and added or kept.
    done: usize,
}

impl Progress {
    fn new(
        ring: &Ring,
        schedule: Schedule,
        steps: Range<u32>,
        part_of: fn(&Schedule, u32) -> Range<usize>,
    ) -> Self {
        let header = Header {
            op: schedule.op,
            step: steps.start as u16,
            generation: ring.member.generation,
            sequence: ring.sequence,
            total: schedule.total as u64,
        };
        let part = part_of(&schedule, steps.start);
        Self { schedule, part_of, steps, header, part, headed: 0, done: 0 }
    }

    fn finished(&self) -> bool {
        self.steps.is_empty()
    }

    /// Goes on to the next step if the current one is through.
    fn settle(&mut self) {
        if self.headed == HEADER_BYTES && self.done == self.part.len() {
            self.steps.start += 1;
            self.header.step = self.steps.start as u16;
            self.part = (self.part_of)(&self.schedule, self.steps.start);
            (self.headed, self.done) = (0, 0);
        }
    }

    /// Bytes of the current step's part that may be sent: they are those that were received in the step
    /// before, so they are ready as far as that has come.
    fn ready(&self, receiving: &Progress) -> usize {
        let Some(needed) = self.steps.start.checked_sub(1) else { return self.part.len() };
        if !self.schedule.receives().contains(&needed) || receiving.steps.start > needed {
            self.part.len()
        } else if receiving.steps.start < needed {
            0
        } else {
            receiving.done
        }
    }

    /// True where there is something to send now. A header goes with its first bytes, not before them;
    /// that of an empty part goes once the step before is through.
    fn can_send(&self, receiving: &Progress) -> bool {
        !self.finished() && (self.ready(receiving) > self.done || self.part.is_empty())
    }

    /// Hands the next rank what it will take; true where something moved.
    fn send(&mut self, next: &Link, receiving: &Progress, bytes: &[u8]) -> Result<bool, CollectiveError> {
        if !self.can_send(receiving) {
            return Ok(false);
        }
        let header = self.header.encode();
        let ready = self.ready(receiving);
        let body = &bytes[self.part.start + self.done..self.part.start + ready];
        match (&*next.stream).write_vectored(&[IoSlice::new(&header[self.headed..]), IoSlice::new(body)]) {
            Ok(n) => {
                let head = n.min(HEADER_BYTES - self.headed);
                self.headed += head;
                self.done += n - head;
                self.settle();
                Ok(true)
            }
            Err(e) if would_wait(&e) => Ok(false),
            Err(e) => Err(self.lost(next, "sending", e)),
        }
    }

    fn lost(&self, link: &Link, verb: &str, source: io::Error) -> CollectiveError {
        CollectiveError::Lost { rank: link.rank, address: link.address, doing: self.doing(verb), source }
    }

    fn doing(&self, verb: &str) -> String {
        format!("{verb} {} ({} of its {} bytes done)", self.header, self.done, self.part.len())
    }
}

/// The receiving direction.
struct Receiving {
    progress: Progress,
    /// As much of the current step's header as has come.
    header: [u8; HEADER_BYTES],
    /// Bytes of a number whose rest has not come; they lie at the front of the scratch.
    torn: usize,
}

impl Receiving {
    /// Takes what the previous rank has sent, at most a chunk; true where something moved.
    fn receive(
        &mut self,
        prev: &Link,
        scratch: &mut [f32],
        bytes: &mut [u8],
        values: Option<&mut [f32]>,
    ) -> Result<bool, CollectiveError> {
        if self.progress.finished() {
            return Ok(false);
        }
        if self.progress.headed < HEADER_BYTES {
            let received = read(prev, &mut self.header[self.progress.headed..]);
            let Some(received) = received.map_err(|e| self.progress.lost(prev, "receiving", e))? else {
                return Ok(false);
            };
            self.progress.headed += received;
            if self.progress.headed == HEADER_BYTES {
                check_header(&self.header, self.progress.header, prev)?;
            }
            self.progress.settle();
            return Ok(true);
        }
        let at = self.progress.part.start + self.progress.done;
        let end = self.progress.part.end.min(at + CHUNK_BYTES);
        let adds = self.progress.schedule.adds(self.progress.steps.start);
        let arrived: &mut [u8] = bytemuck::cast_slice_mut(scratch);
        let into = if adds { &mut arrived[self.torn..end - at] } else { &mut bytes[at..end] };
        let received = read(prev, into).map_err(|e| self.progress.lost(prev, "receiving", e))?;
        let Some(received) = received else { return Ok(false) };
        if adds {
            let unit = self.progress.schedule.op.unit();
            let whole = (self.torn + received) / unit * unit;
            self.torn = self.torn + received - whole;
            let (sums, added) = (&mut bytes[at..at + whole], &arrived[..whole]);
            match values {
                None => add(bytemuck::cast_slice_mut(sums), bytemuck::cast_slice(added)),
                Some(values) => {
                    let values = &mut values[at / unit..(at + whole) / unit];
                    add_rounded(values, bytemuck::cast_slice_mut(sums), bytemuck::cast_slice(added));
                }
            }
            arrived.copy_within(whole..whole + self.torn, 0);
            self.progress.done += whole;
        } else {
            self.progress.done += received;
        }
        self.progress.settle();
        Ok(true)
    }
}

/// How many bytes the previous rank has sent, into `target`; none where there are none yet.
fn read(prev: &Link, target: &mut [u8]) -> io::Result<Option<usize>> {
    match (&*prev.stream).read(target) {
        Ok(0) => Err(closed()),
        Ok(n) => Ok(Some(n)),
        Err(e) if would_wait(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Adds `values` to `sums`, which are as long.
pub(super) fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Adds `added` to `sums`, and rounds them into `rounded`; all are as long.
fn add_rounded(sums: &mut [f32], rounded: &mut [u16], added: &[u16]) {
    for ((sum, rounded), &value) in sums.iter_mut().zip(rounded).zip(added) {
        *sum += bf16::widen(value);
        *rounded = bf16::round(*sum);
    }
}

/// Refuses the header of anything but the step that is due.
fn check_header(bytes: &[u8; HEADER_BYTES], due: Header, prev: &Link) -> Result<(), CollectiveError> {
    let found = match Header::decode(bytes) {
        Some(header) if header == due => return Ok(()),
        Some(header) => header.to_string(),
        None => "bytes that are not a header".to_owned(),
    };
    Err(out_of_step(prev, &due.to_string(), &found))
}

pub(super) fn out_of_step(link: &Link, expected: &str, found: &str) -> CollectiveError {
    let (rank, address) = (link.rank, link.address);
    CollectiveError::OutOfStep { rank, address, expected: expected.to_owned(), found: found.to_owned() }
}

/// Waits until one of the directions can move. Sees the next rank leave even while there is nothing to
/// send to it.
fn wait(ring: &Ring, sending: &Progress, receiving: &Progress) -> Result<(), CollectiveError> {
    // A neighbour to which nothing is left to be done may leave, so a direction that is through is not
    // looked at: its place is taken by the abort's socket once more.
    let wake = PollFd::new(ring.wake.as_fd(), PollFlags::POLLIN);
    let from_prev = match receiving.finished() {
        true => wake.clone(),
        false => PollFd::new(ring.prev.stream.as_fd(), PollFlags::POLLIN),
    };
    let to_next = match (sending.finished(), sending.can_send(receiving)) {
        (true, _) => wake.clone(),
        (false, true) => PollFd::new(ring.next.stream.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT),
        _ => PollFd::new(ring.next.stream.as_fd(), PollFlags::POLLIN),
    };
    let timeout =
        ring.silence.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX));
    let mut fds = [wake, from_prev, to_next];
    match poll(&mut fds, timeout) {
        Ok(0) => return Err(silent(ring, sending, receiving)),
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => {
            return Err(CollectiveError::Local { doing: "wait for the ring's sockets", source: e.into() });
        }
    }
    let from_next = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    if !sending.finished() && fds[2].revents().is_some_and(|seen| seen.intersects(from_next)) {
        ring.abort.check()?;
        check_next(&ring.next, sending)?;
    }
    Ok(())
}

/// The next rank sends nothing on this link before it has all: what can be read from it is its end.
fn check_next(next: &Link, sending: &Progress) -> Result<(), CollectiveError> {
    match (&*next.stream).read(&mut [0]) {
        Ok(0) => Err(sending.lost(next, "sending", closed())),
        Ok(_) => Err(out_of_step(next, "nothing on the link that leads to it", "bytes")),
        Err(e) if would_wait(&e) => Ok(()),
        Err(e) => Err(sending.lost(next, "sending", e)),
    }
}

/// Nothing moved for the time allowed. The previous rank is named where something is still to come
/// from it: a rank that does not take what it is sent does not send either.
fn silent(ring: &Ring, sending: &Progress, receiving: &Progress) -> CollectiveError {
    let (link, doing) = match receiving.finished() {
        true => (&ring.next, sending.doing("sending")),
        false => (&ring.prev, receiving.doing("receiving")),
    };
    let seconds = ring.silence.unwrap_or_default().as_secs_f64();
    CollectiveError::Silent { rank: link.rank, address: link.address, doing, seconds }
}

pub(super) fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

pub(super) fn closed() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")
}
