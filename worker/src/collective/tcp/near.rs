//! Neighbours on one host: the next rank reads this one's buffer where it lies, and the connection between them only says
//! how far it may. Each byte is copied once in place of twice, and no packet is made of it.
//!
//! Whether it is so the ranks try out when the ring forms: each tells the next where in its memory a random word lies. A
//! process that is another user's, in a container of its own or on another host cannot be read, or has another word there,
//! and is sent the bytes. What may be read is the kernel's to decide (process_vm_readv, which asks what a debugger is asked).

use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::handshake::{WORD_BYTES, Word, fresh_nonce};
use super::transfer::{closed, would_wait};
use super::{AbortHandle, CollectiveError, Link};

/// A neighbour whose memory can be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    process: Pid,
}

impl Memory {
    /// Fills `into` with what lies at `address` there.
    pub(super) fn read(self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let wanted = into.len();
        let base = usize::try_from(address).map_err(io::Error::other)?;
        let remote = [RemoteIoVec { base, len: wanted }];
        match process_vm_readv(self.process, &mut [IoSliceMut::new(into)], &remote) {
            Ok(read) if read == wanted => Ok(()),
            Ok(_) => Err(io::Error::other("its memory could be read in part only")),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a rank tells the next one.
struct Offer {
    process: Pid,
    address: u64,
    word: Word,
}

const OFFER_BYTES: usize = 12 + WORD_BYTES;

impl Offer {
    fn encode(&self) -> [u8; OFFER_BYTES] {
        let mut bytes = [0; OFFER_BYTES];
        bytes[0..4].copy_from_slice(&self.process.as_raw().to_le_bytes());
        bytes[4..12].copy_from_slice(&self.address.to_le_bytes());
        bytes[12..].copy_from_slice(&self.word);
        bytes
    }

    fn decode(bytes: &[u8; OFFER_BYTES]) -> Self {
        let [p0, p1, p2, p3, a0, a1, a2, a3, a4, a5, a6, a7, word @ ..] = *bytes;
        Self {
            process: Pid::from_raw(i32::from_le_bytes([p0, p1, p2, p3])),
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            word,
        }
    }

    /// The memory, if it is there.
    fn tried(&self) -> Option<Memory> {
        let memory = Memory { process: self.process };
        let mut found = [0; WORD_BYTES];
        // Why not is the kernel's business: the bytes are sent then.
        memory.read(self.address, &mut found).ok().filter(|()| found == self.word).map(|()| memory)
    }
}

/// What neighbours can do for each other.
pub(super) struct Near {
    /// Of the previous rank.
    pub(super) prev: Option<Memory>,
    /// Whether the next rank reads this one's.
    pub(super) next: bool,
}

/// Tries it out with both neighbours, which do the same.
///
/// # Errors
/// A neighbour is gone, or says nothing for `patience`; `Aborted`.
pub(super) fn try_out(
    prev: &Link,
    next: &Link,
    patience: Duration,
    wake: &UnixStream,
    abort: &AbortHandle,
) -> Result<Near, CollectiveError> {
    const DOING: &str = "finding out whether they share a memory";
    let local = |source| CollectiveError::Local { doing: "draw a random word", source };
    let lost = |link: &Link, source| CollectiveError::Lost {
        rank: link.rank,
        address: link.address,
        doing: DOING.to_owned(),
        source,
    };
    let word = Box::new(fresh_nonce().map_err(local)?);
    let offer = Offer { process: Pid::this(), address: word.as_ptr().addr() as u64, word: *word };
    let (mut to_next, mut to_prev) = (offer.encode().to_vec(), Vec::new());
    let (mut from_prev, mut from_next) = (Vec::new(), Vec::new());
    let (mut memory, until) = (None, Instant::now() + patience);
    loop {
        abort.check()?;
        move_bytes(next, &mut to_next, &mut from_next, 1).map_err(|source| lost(next, source))?;
        move_bytes(prev, &mut to_prev, &mut from_prev, OFFER_BYTES).map_err(|source| lost(prev, source))?;
        if memory.is_none()
            && let Ok(bytes) = <&[u8; OFFER_BYTES]>::try_from(from_prev.as_slice())
        {
            let found = Offer::decode(bytes).tried();
            to_prev.push(u8::from(found.is_some()));
            memory = Some(found);
            continue;
        }
        if let (Some(prev), &[answer], true) = (memory, from_next.as_slice(), to_prev.is_empty()) {
            return Ok(Near { prev, next: answer != 0 });
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let link = if memory.is_none() { prev } else { next };
            let (rank, address, seconds) = (link.rank, link.address, patience.as_secs_f64());
            return Err(CollectiveError::Silent { rank, address, doing: DOING.to_owned(), seconds });
        }
        let watched = |link: &'_ Link, unsaid: &[u8], missing: bool| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLOUT, !unsaid.is_empty());
            events.set(PollFlags::POLLIN, missing);
            (link.stream.clone(), events)
        };
        let both = [watched(next, &to_next, from_next.is_empty()), watched(prev, &to_prev, memory.is_none())];
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        // One that is through may leave.
        let waited = both.iter().filter(|(_, events)| !events.is_empty());
        fds.extend(waited.map(|(stream, events)| PollFd::new(stream.as_fd(), *events)));
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => {
                return Err(CollectiveError::Local {
                    doing: "wait for the ring's sockets",
                    source: e.into(),
                });
            }
        }
    }
}

/// Sends what it can of `unsaid`, and takes what there is into `heard`, which never grows beyond `length`.
fn move_bytes(link: &Link, unsaid: &mut Vec<u8>, heard: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let mut stream = &*link.stream;
    while !unsaid.is_empty() {
        match stream.write(unsaid) {
            Ok(sent) => drop(unsaid.drain(..sent)),
            Err(error) if would_wait(&error) => break,
            Err(error) => return Err(error),
        }
    }
    let mut buffer = [0; OFFER_BYTES];
    while heard.len() < length {
        match stream.read(&mut buffer[..length - heard.len()]) {
            Ok(0) => return Err(closed()),
            Ok(read) => heard.extend_from_slice(&buffer[..read]),
            Err(error) if would_wait(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn offer(word: &Word) -> Offer {
        Offer { process: Pid::this(), address: word.as_ptr().addr() as u64, word: *word }
    }

    #[test]
    fn a_memory_is_taken_for_the_neighbours_only_where_the_word_is_in_it() {
        let word = fresh_nonce().unwrap();
        let right = offer(&word);
        let decoded = Offer::decode(&right.encode());
        let memory = decoded.tried().unwrap();
        let mut found = [0; 5];
        memory.read(decoded.address + 3, &mut found).unwrap();
        assert_eq!(found, word[3..8]);

        let other = fresh_nonce().unwrap();
        assert!(Offer { word: other, ..offer(&word) }.tried().is_none(), "another word");
        assert!(Offer { address: 8, ..offer(&word) }.tried().is_none(), "no such address");
        // Process 0 is never there for others; the largest number is none that Linux gives.
        for process in [0, -1, i32::MAX] {
            assert!(Offer { process: Pid::from_raw(process), ..offer(&word) }.tried().is_none());
        }
        assert!(memory.read(8, &mut found).is_err());
    }
}
