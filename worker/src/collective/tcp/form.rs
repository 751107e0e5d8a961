//! Finds the two neighbours: dials the next rank until it is there, and picks the previous one out of
//! whoever knocks at the listener. One loop over sockets that do not block, so that nobody who connects
//! and says nothing can hold up the rank that is waited for, and an abort ends it at once.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use tracing::debug;

use super::handshake::{Handshake, Member, Refusal};
use super::{Link, Timeouts};
use crate::collective::{AbortHandle, CollectiveError};

/// Between two attempts to dial the next rank.
const REDIAL_PAUSE: Duration = Duration::from_millis(50);

/// Accepted connections in their handshake at one time. Beyond that one gives way: the oldest of those that have not
/// said a whole hello, so that a crowd that only connects does not push out who belongs here.
const MAX_GUESTS: usize = 64;

/// Connections accepted before those that are in are heard again, and the clock and the abort looked at: a crowd may
/// come as fast as it is let in.
const ADMITTED_AT_ONCE: usize = 16;

/// Returns the links to the previous and to the next rank.
pub(super) fn find_neighbours(
    listener: &TcpListener,
    member: Member,
    (previous, next): (SocketAddr, SocketAddr),
    timeouts: Timeouts,
    wake: &UnixStream,
    abort: &AbortHandle,
) -> Result<(Link, Link), CollectiveError> {
    listener.set_nonblocking(true).map_err(|source| CollectiveError::Local {
        doing: "set the ring's listener to non-blocking",
        source,
    })?;
    let started = Instant::now();
    let mut dialing = Dialing { member, address: next, state: Dial::Paused(started), last: None };
    let mut door = Door { listener, member, patience: timeouts.handshake, guests: Vec::new(), last: None };
    let mut prev = None;
    loop {
        abort.check()?;
        let now = Instant::now();
        if prev.is_none() {
            prev = door.advance(now)?;
        }
        dialing.advance(now);
        match (prev.take(), &dialing.state) {
            (Some(stream), Dial::Up(up)) => {
                let link = |stream, rank, address| Link { stream, rank, address };
                let from_prev = link(Arc::new(stream), member.prev(), previous);
                let to_next = link(Arc::clone(up), member.next(), next);
                return Ok((from_prev, to_next));
            }
            (found, _) => prev = found,
        }
        let left = timeouts.form.saturating_sub(started.elapsed());
        if left.is_zero() {
            let seconds = timeouts.form.as_secs_f64();
            let up = matches!(dialing.state, Dial::Up(_));
            let blamed = match (prev.is_some(), up) {
                (true, false) => Some(member.next()),
                (false, true) => Some(member.prev()),
                // Where nobody is there, it may be this rank that is cut off.
                _ => Some(member.next()).filter(|next| *next == member.prev()),
            };
            let missing = missing(member, prev.is_none(), &door, &dialing);
            return Err(CollectiveError::NotFormed { rank: member.rank, seconds, missing, blamed });
        }

        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        let mut until = started + timeouts.form;
        if prev.is_none() {
            until = door.watch(&mut fds).map_or(until, |at| until.min(at));
        }
        until = dialing.watch(&mut fds).map_or(until, |at| until.min(at));
        // One more millisecond: the timeout is cut to whole ones, and waking early would spin.
        let timeout = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        match poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => {
                return Err(CollectiveError::Local {
                    doing: "wait for the ring's neighbours",
                    source: e.into(),
                });
            }
        }
    }
}

/// Sets what both ends of a link want. The buffers' sizes are left to the kernel, which grows them to what
/// the link can use. TCP_USER_TIMEOUT is left alone: it would also cut off a rank that is up and merely
/// late, for its closed window counts as silence. Of the two ends of a link, the one that receives has nothing on its
/// way, so its kernel asks the other for signs of life, and gives it up after about `peer` without any; a
/// kernel answers for a process that stands still, so those are not cut off.
pub(super) fn tune(stream: &TcpStream, peer: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    #[cfg(target_os = "linux")]
    {
        const PROBES: u32 = 3;
        let pause = (peer.as_secs_f64() / f64::from(PROBES + 1)).round().clamp(1.0, 3600.0) as u32;
        setsockopt(stream, sockopt::TcpKeepIdle, &pause)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &pause)?;
        setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    }
    Ok(())
}

/// Who has not been found, and what was last seen of them.
fn missing(member: Member, without_prev: bool, door: &Door<'_>, dialing: &Dialing) -> String {
    let mut parts = Vec::new();
    if !matches!(dialing.state, Dial::Up(_)) {
        let last = dialing.last.as_deref().unwrap_or("no answer");
        parts.push(format!("rank {} at {} was not reached ({last})", member.next(), dialing.address));
    }
    if without_prev {
        let last = door.last.as_ref().map(|last| format!(" (last refused: {last})")).unwrap_or_default();
        parts.push(format!("rank {} did not connect{last}", member.prev()));
    }
    parts.join("; ")
}

/// The way to the next rank.
struct Dialing {
    member: Member,
    address: SocketAddr,
    state: Dial,
    /// Why the last attempt failed.
    last: Option<String>,
}

enum Dial {
    /// Until then.
    Paused(Instant),
    Connecting(TcpStream),
    Greeting(Handshake),
    Up(Arc<TcpStream>),
}

impl Dialing {
    /// Goes as far as it can without waiting. A connection has no deadline of its own: a rank that has
    /// not come to its ring yet leaves it in its listener's queue, where it is as good as a new one.
    fn advance(&mut self, now: Instant) {
        loop {
            let state = std::mem::replace(&mut self.state, Dial::Paused(now + REDIAL_PAUSE));
            let result = match state {
                Dial::Paused(until) if until <= now => start_connect(self.address).map(Dial::Connecting),
                Dial::Connecting(stream) => match is_connected(&stream) {
                    Ok(true) => Handshake::dial(stream, self.member).map(Dial::Greeting),
                    Ok(false) => return self.state = Dial::Connecting(stream),
                    Err(e) => Err(e),
                },
                Dial::Greeting(mut handshake) => match handshake.advance() {
                    Ok(true) => return self.state = Dial::Up(Arc::new(handshake.into_stream())),
                    Ok(false) => return self.state = Dial::Greeting(handshake),
                    Err(refusal) => return self.last = Some(refusal.to_string()),
                },
                waiting @ (Dial::Paused(_) | Dial::Up(_)) => return self.state = waiting,
            };
            match result {
                Ok(state) => self.state = state,
                Err(e) => return self.last = Some(e.to_string()),
            }
        }
    }

    /// Adds what it waits for, and returns when it wants to be advanced anyway.
    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) -> Option<Instant> {
        match &self.state {
            Dial::Paused(until) => return Some(*until),
            Dial::Connecting(stream) => fds.push(PollFd::new(stream.as_fd(), PollFlags::POLLOUT)),
            Dial::Greeting(handshake) => fds.push(watched(handshake)),
            Dial::Up(_) => {}
        }
        None
    }
}

/// The listener, and those who have come in but not proved themselves yet.
struct Door<'a> {
    listener: &'a TcpListener,
    member: Member,
    patience: Duration,
    guests: Vec<Guest>,
    /// Who was refused last, and why.
    last: Option<String>,
}

struct Guest {
    handshake: Handshake,
    address: SocketAddr,
    /// When patience ends.
    until: Instant,
}

impl Door<'_> {
    /// Lets in who is waiting and hears who is in; returns the first that proves to be the previous rank.
    fn advance(&mut self, now: Instant) -> Result<Option<TcpStream>, CollectiveError> {
        for _ in 0..ADMITTED_AT_ONCE {
            match self.listener.accept() {
                Ok((stream, address)) => self.admit(stream, address, now),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // The peer was gone before it was accepted, or a signal came.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(source) => {
                    return Err(CollectiveError::Local { doing: "accept at the ring's listener", source });
                }
            }
        }
        let mut index = 0;
        while index < self.guests.len() {
            let guest = &mut self.guests[index];
            let refusal = match guest.handshake.advance() {
                Ok(true) => {
                    return Ok(Some(self.guests.swap_remove(index).handshake.into_stream()));
                }
                Ok(false) if now < guest.until => {
                    index += 1;
                    continue;
                }
                Ok(false) => Refusal::Slow,
                Err(refusal) => refusal,
            };
            self.refuse(index, &refusal);
        }
        Ok(None)
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) {
        if self.guests.len() == MAX_GUESTS {
            let silent = self.guests.iter().position(|guest| !guest.handshake.has_greeted());
            self.refuse(silent.unwrap_or(0), &Refusal::Slow);
        }
        let handshake = stream.set_nonblocking(true).and_then(|()| Handshake::accept(stream, self.member));
        match handshake {
            Ok(handshake) => self.guests.push(Guest { handshake, address, until: now + self.patience }),
            Err(e) => self.last = Some(format!("{address}: {e}")),
        }
    }

    fn refuse(&mut self, index: usize, refusal: &Refusal) {
        let guest = self.guests.remove(index);
        let Member { rank, generation, .. } = self.member;
        debug!(rank, generation, address = %guest.address, "refused a connection to the ring: {refusal}");
        self.last = Some(format!("{}: {refusal}", guest.address));
    }

    /// Adds what it waits for, and returns when the first guest's time is up.
    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) -> Option<Instant> {
        fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        fds.extend(self.guests.iter().map(|guest| watched(&guest.handshake)));
        self.guests.iter().map(|guest| guest.until).min()
    }
}

fn watched(handshake: &Handshake) -> PollFd<'_> {
    let events = match handshake.wants_to_write() {
        true => PollFlags::POLLIN | PollFlags::POLLOUT,
        false => PollFlags::POLLIN,
    };
    PollFd::new(handshake.stream().as_fd(), events)
}

/// A socket that is on its way to `address` and does not block.
fn start_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(fd)),
        Err(e) => Err(e.into()),
    }
}

/// True once the connection stands; the error if it came to nothing.
fn is_connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(e) = stream.take_error()? {
        return Err(e);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotConnected => Ok(false),
        Err(e) => Err(e),
    }
}
