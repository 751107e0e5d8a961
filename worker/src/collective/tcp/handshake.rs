//! How two neighbours of the ring make sure of each other before any gradient flows.
//!
//! The dialing rank sends a hello with what it believes itself to be and a fresh nonce;
//! the accepting rank answers with a nonce of its own; the dialer proves that it holds the generation's
//! token by a keyed hash over the hello and both nonces, and the acceptor does the same under another
//! label. So neither a stranger, nor a rank of another generation, nor a recording of an earlier
//! handshake gets through, and a proof cannot be reflected. Nothing here blocks: a connection is
//! advanced as far as its bytes go, so one that says nothing holds up no other. What carries the bytes is left
//! open, so that tests can carry, cut and change them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

const MAGIC: [u8; 8] = *b"RELABEL\n";
const VERSION: u32 = 2;
const HELLO_BYTES: usize = 64;
/// Length of a nonce and of a proof.
pub(super) const WORD_BYTES: usize = 32;

const DIALER: &[u8] = b"relabel ring: the dialing rank's proof";
const ACCEPTOR: &[u8] = b"relabel ring: the accepting rank's proof";

/// A nonce or a proof.
pub(super) type Word = [u8; WORD_BYTES];

/// What this rank is in its generation.
#[derive(Clone, Copy)]
pub struct Member {
    pub rank: u32,
    pub world: u32,
    pub generation: u64,
    pub token: [u8; 32],
}

impl Member {
    pub fn next(&self) -> u32 {
        (self.rank + 1) % self.world
    }

    pub fn prev(&self) -> u32 {
        (self.rank + self.world - 1) % self.world
    }

    /// The first message on the link `from` -> `to`: magic, version, generation, world, both ranks, nonce.
    fn hello(&self, from: u32, to: u32, nonce: &Word) -> [u8; HELLO_BYTES] {
        let mut hello = [0; HELLO_BYTES];
        hello[0..8].copy_from_slice(&MAGIC);
        hello[8..12].copy_from_slice(&VERSION.to_le_bytes());
        hello[12..20].copy_from_slice(&self.generation.to_le_bytes());
        hello[20..24].copy_from_slice(&self.world.to_le_bytes());
        hello[24..28].copy_from_slice(&from.to_le_bytes());
        hello[28..32].copy_from_slice(&to.to_le_bytes());
        hello[32..64].copy_from_slice(nonce);
        hello
    }

    fn proof(&self, label: &[u8], hello: &[u8; HELLO_BYTES], nonce: &Word) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.token);
        hasher.update(label).update(hello).update(nonce);
        hasher.finalize()
    }
}

/// Why a connection was dropped before it became a link.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it does not speak this protocol")]
    Stranger,
    #[error("it speaks version {0} of the ring's protocol, this worker version {VERSION}")]
    Version(u32),
    #[error("it is of generation {0}")]
    Generation(u64),
    #[error("it is rank {from} of {world} and looks for rank {to}")]
    Place { from: u32, to: u32, world: u32 },
    #[error("it does not hold this generation's token")]
    Token,
    #[error("it closed the connection during the handshake")]
    Closed,
    #[error("it did not finish the handshake in time")]
    Slow,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What the next complete message from the other side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Hello,
    AcceptorNonce,
    DialerProof,
    AcceptorProof,
    Nothing,
}

impl Expect {
    fn bytes(self) -> usize {
        match self {
            Expect::Hello => HELLO_BYTES,
            Expect::AcceptorNonce | Expect::DialerProof | Expect::AcceptorProof => WORD_BYTES,
            Expect::Nothing => 0,
        }
    }
}

/// One connection on its way to being a link.
pub struct Handshake<S = TcpStream> {
    stream: S,
    member: Member,
    expect: Expect,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// The dialer's first message, once known.
    hello: [u8; HELLO_BYTES],
    /// The acceptor's nonce, once known.
    nonce: Word,
}

impl<S: Read + Write> Handshake<S> {
    /// Begins as the rank that dialed the next one. `stream` is connected and does not block.
    pub fn dial(stream: S, member: Member) -> io::Result<Self> {
        let hello = member.hello(member.rank, member.next(), &fresh_nonce()?);
        let outbox = hello.to_vec();
        Ok(Self {
            stream,
            member,
            expect: Expect::AcceptorNonce,
            inbox: Vec::new(),
            outbox,
            hello,
            nonce: [0; 32],
        })
    }

    /// Begins as the rank that accepted `stream`, which does not block.
    pub fn accept(stream: S, member: Member) -> io::Result<Self> {
        let (hello, nonce) = ([0; HELLO_BYTES], fresh_nonce()?);
        Ok(Self {
            stream,
            member,
            expect: Expect::Hello,
            inbox: Vec::new(),
            outbox: Vec::new(),
            hello,
            nonce,
        })
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// True once the other side has said a hello that fits this rank. Anybody can say one.
    pub(super) fn has_greeted(&self) -> bool {
        self.expect != Expect::Hello
    }

    /// True while there are bytes that the socket would not take yet.
    pub fn wants_to_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Goes as far as the bytes that are there allow; true when the link is up.
    pub fn advance(&mut self) -> Result<bool, Refusal> {
        loop {
            while !self.outbox.is_empty() {
                match self.stream.write(&self.outbox) {
                    Ok(0) => return Err(Refusal::Closed),
                    Ok(n) => drop(self.outbox.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if self.expect == Expect::Nothing {
                return Ok(self.outbox.is_empty());
            }
            // Never more than the message: what comes after it belongs to the first operation.
            let have = self.inbox.len();
            let mut buffer = [0; HELLO_BYTES];
            match self.stream.read(&mut buffer[have..self.expect.bytes()]) {
                Ok(0) => return Err(Refusal::Closed),
                Ok(n) => self.inbox.extend_from_slice(&buffer[have..have + n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
            if self.expect == Expect::Hello && !self.inbox.iter().zip(&MAGIC).all(|(a, b)| a == b) {
                return Err(Refusal::Stranger);
            }
            if self.inbox.len() == self.expect.bytes() {
                let message = std::mem::take(&mut self.inbox);
                self.expect = self.receive(&message)?;
            }
        }
    }

    /// The stream of a finished handshake.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Takes one complete message, and says what has to come next.
    fn receive(&mut self, message: &[u8]) -> Result<Expect, Refusal> {
        let member = self.member;
        match self.expect {
            Expect::Hello => {
                self.hello.copy_from_slice(message);
                self.check_hello()?;
                self.outbox.extend_from_slice(&self.nonce);
                Ok(Expect::DialerProof)
            }
            Expect::AcceptorNonce => {
                self.nonce.copy_from_slice(message);
                self.outbox.extend_from_slice(member.proof(DIALER, &self.hello, &self.nonce).as_bytes());
                Ok(Expect::AcceptorProof)
            }
            Expect::DialerProof => {
                self.check_proof(DIALER, message)?;
                self.outbox.extend_from_slice(member.proof(ACCEPTOR, &self.hello, &self.nonce).as_bytes());
                Ok(Expect::Nothing)
            }
            Expect::AcceptorProof => {
                self.check_proof(ACCEPTOR, message)?;
                Ok(Expect::Nothing)
            }
            Expect::Nothing => Err(Refusal::Stranger),
        }
    }

    /// Refuses a hello that is not the previous rank's of this generation to this rank.
    fn check_hello(&self) -> Result<(), Refusal> {
        let hello = &self.hello;
        let word = |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]);
        let (version, world, from, to) = (word(8), word(20), word(24), word(28));
        let generation = u64::from(word(12)) | u64::from(word(16)) << 32;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        if generation != self.member.generation {
            return Err(Refusal::Generation(generation));
        }
        if (from, to, world) != (self.member.prev(), self.member.rank, self.member.world) {
            return Err(Refusal::Place { from, to, world });
        }
        Ok(())
    }

    fn check_proof(&self, label: &[u8], message: &[u8]) -> Result<(), Refusal> {
        let mut sent: Word = [0; WORD_BYTES];
        sent.copy_from_slice(message);
        // blake3::Hash compares in constant time.
        if self.member.proof(label, &self.hello, &self.nonce) == blake3::Hash::from_bytes(sent) {
            Ok(())
        } else {
            Err(Refusal::Token)
        }
    }
}

pub(super) fn fresh_nonce() -> io::Result<Word> {
    let mut nonce = [0; WORD_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const MEMBER: Member = Member { rank: 1, world: 3, generation: 5, token: [7; 32] };

    /// Two ends of a connection that do not block.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        for stream in [&dialed, &accepted] {
            stream.set_nonblocking(true).unwrap();
        }
        (dialed, accepted)
    }

    /// Advances until it is up or refused.
    fn finish(mut handshake: Handshake) -> Result<TcpStream, Refusal> {
        while !handshake.advance()? {
            std::thread::yield_now();
        }
        Ok(handshake.into_stream())
    }

    /// What the dialer and the acceptor make of each other.
    fn meet(dialer: Member, acceptor: Member) -> (Result<(), Refusal>, Result<(), Refusal>) {
        let (dialed, accepted) = connection();
        let dialer = Handshake::dial(dialed, dialer).unwrap();
        let acceptor = Handshake::accept(accepted, acceptor).unwrap();
        let dialing = std::thread::spawn(move || finish(dialer).map(drop));
        let accepting = finish(acceptor).map(drop);
        (dialing.join().unwrap(), accepting)
    }

    fn at(rank: u32) -> Member {
        Member { rank, ..MEMBER }
    }

    #[test]
    fn neighbours_meet() {
        let (dialer, acceptor) = meet(at(0), at(1));
        assert!(dialer.is_ok() && acceptor.is_ok(), "{dialer:?} {acceptor:?}");
    }

    #[test]
    fn who_does_not_belong_is_refused_with_the_reason() {
        let (dialer, acceptor) = meet(Member { token: [8; 32], ..at(0) }, at(1));
        assert!(matches!(acceptor, Err(Refusal::Token)), "{acceptor:?}");
        assert!(dialer.is_err(), "an acceptor that refuses proves nothing");

        let (_, acceptor) = meet(Member { generation: 4, ..at(0) }, at(1));
        assert!(matches!(acceptor, Err(Refusal::Generation(4))), "{acceptor:?}");

        let (_, acceptor) = meet(Member { world: 4, ..at(0) }, at(1));
        assert!(matches!(acceptor, Err(Refusal::Place { from: 0, to: 1, world: 4 })), "{acceptor:?}");

        let (_, acceptor) = meet(at(1), at(1));
        assert!(matches!(acceptor, Err(Refusal::Place { from: 1, to: 2, world: 3 })), "{acceptor:?}");
    }

    #[test]
    fn an_acceptor_without_the_token_is_not_taken_for_a_neighbour() {
        let (dialed, accepted) = connection();
        let dialer = Handshake::dial(dialed, at(0)).unwrap();
        // Lets the dialer prove itself to it, and sends its proof back as its own.
        let reflecting = std::thread::spawn(move || {
            accepted.set_nonblocking(false).unwrap();
            let mut stream = &accepted;
            stream.read_exact(&mut [0; HELLO_BYTES]).unwrap();
            stream.write_all(&[9; WORD_BYTES]).unwrap();
            let mut proof = [0; WORD_BYTES];
            stream.read_exact(&mut proof).unwrap();
            stream.write_all(&proof).unwrap();
        });
        assert!(matches!(finish(dialer), Err(Refusal::Token)));
        reflecting.join().unwrap();
    }

    #[test]
    fn what_was_recorded_of_one_handshake_does_not_open_another() {
        let (dialed, middle) = connection();
        let (onward, accepted) = connection();
        let dialer = Handshake::dial(dialed, at(0)).unwrap();
        let acceptor = Handshake::accept(accepted, at(1)).unwrap();
        let dialing = std::thread::spawn(move || finish(dialer).map(drop));
        let accepting = std::thread::spawn(move || finish(acceptor).map(drop));
        let mut recorded = [0; HELLO_BYTES + WORD_BYTES];
        for stream in [&middle, &onward] {
            stream.set_nonblocking(false).unwrap();
        }
        let (mut middle, mut onward, mut word) = (&middle, &onward, [0; WORD_BYTES]);
        middle.read_exact(&mut recorded[..HELLO_BYTES]).unwrap();
        onward.write_all(&recorded[..HELLO_BYTES]).unwrap();
        onward.read_exact(&mut word).unwrap();
        middle.write_all(&word).unwrap();
        middle.read_exact(&mut recorded[HELLO_BYTES..]).unwrap();
        onward.write_all(&recorded[HELLO_BYTES..]).unwrap();
        onward.read_exact(&mut word).unwrap();
        middle.write_all(&word).unwrap();
        dialing.join().unwrap().unwrap();
        accepting.join().unwrap().unwrap();

        let (mut replaying, accepted) = connection();
        replaying.write_all(&recorded).unwrap();
        let replayed = finish(Handshake::accept(accepted, at(1)).unwrap());
        assert!(matches!(replayed, Err(Refusal::Token)), "{replayed:?}");
    }

    #[test]
    fn garbage_is_refused_at_its_first_bytes() {
        let (mut dialed, accepted) = connection();
        dialed.write_all(b"GET /").unwrap();
        let result = finish(Handshake::accept(accepted, at(1)).unwrap());
        assert!(matches!(result, Err(Refusal::Stranger)), "{result:?}");
    }
}
