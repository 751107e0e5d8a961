//! The ring: headers, and handshakes whose bytes are cut and changed on their way.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use worker::collective::tcp::frame::{HEADER_BYTES, Header};
use worker::collective::tcp::handshake::{Handshake, Member};

use crate::{Target, split};

pub const TARGET: Target = Target { name: "frames", run, seeds: &[], amplification: 64 };

/// The first byte of an input.
pub const HEADER: u8 = 0;
/// The rest is what a stranger says to a rank that accepts, or (the next) that has dialed.
pub const TO_ACCEPTOR: u8 = 1;
pub const TO_DIALER: u8 = 2;
/// The rest says how the bytes between two ranks that belong together are cut and changed.
pub const BETWEEN: u8 = 3;

fn run(input: &[u8]) {
    let ([kind], rest) = split::<1>(input);
    match kind % 4 {
        HEADER => header(rest),
        TO_ACCEPTOR => stranger(rest, true),
        TO_DIALER => stranger(rest, false),
        _ => between(rest),
    }
}

/// Whatever is taken for a header is one, to the last bit.
fn header(bytes: &[u8]) {
    let (bytes, _) = split::<HEADER_BYTES>(bytes);
    if let Some(header) = Header::decode(&bytes) {
        assert_eq!(header.encode(), bytes);
        assert!(!header.to_string().contains('\n'));
    }
}

fn member(rank: u32) -> Member {
    Member { rank, world: 3, generation: 5, token: [7; 32] }
}

/// Nobody gets in without the token, whatever they say.
fn stranger(bytes: &[u8], accepts: bool) {
    let wire = Wire::default();
    wire.inbound.borrow_mut().extend(bytes);
    let handshake = match accepts {
        true => Handshake::accept(wire, member(1)),
        false => Handshake::dial(wire, member(0)),
    };
    let mut handshake = handshake.expect("the system has random numbers");
    let ended = handshake.advance();
    assert!(ended.is_err(), "a stranger was let in, or is waited for though it has closed the connection");
}

/// Two ranks that belong together: both links come up if and only if nothing was changed on the way.
fn between(mut moves: &[u8]) {
    let ends = [(); 2].map(|()| Wire { open: true, ..Wire::default() });
    let dialer = Handshake::dial(ends[0].clone(), member(0));
    let acceptor = Handshake::accept(ends[1].clone(), member(1));
    let (mut dialer, mut acceptor) =
        (dialer.expect("the system has random numbers"), acceptor.expect("the system has random numbers"));
    let (mut up, mut changed) = ([false; 2], false);
    // A handshake is two messages each way of at most 64 bytes, so that as many rounds bring over all of it.
    for _ in 0..512 {
        for (index, side) in [&mut dialer, &mut acceptor].into_iter().enumerate() {
            match side.advance() {
                Ok(done) => up[index] = done,
                Err(refusal) => {
                    assert!(changed, "nothing was changed, and yet: {refusal}");
                    return;
                }
            }
        }
        if up == [true; 2] {
            assert!(!changed, "both ends took what was changed on the way");
            return;
        }
        for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            let ([length, flip], rest) = split::<2>(moves);
            moves = rest;
            let mut sent = from.outbound.borrow_mut();
            let length = sent.len().min(1 + usize::from(length));
            let mut sent: Vec<u8> = sent.drain(..length).collect();
            if let Some(first) = sent.first_mut() {
                *first ^= flip;
                changed |= flip != 0;
            }
            to.inbound.borrow_mut().extend(sent);
        }
    }
    panic!("the handshake does not come to an end");
}

/// One end of a connection that does not block.
#[derive(Clone, Default)]
struct Wire {
    inbound: Rc<RefCell<Vec<u8>>>,
    outbound: Rc<RefCell<Vec<u8>>>,
    /// Whether more can come.
    open: bool,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inbound = self.inbound.borrow_mut();
        if inbound.is_empty() && self.open {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(inbound.len());
        buffer[..length].copy_from_slice(&inbound[..length]);
        inbound.drain(..length);
        Ok(length)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbound.borrow_mut().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
