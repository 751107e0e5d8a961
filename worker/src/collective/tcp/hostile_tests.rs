//! What comes to a ring that does not belong to it: changed, recorded, slow, random and very much of it.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::handshake::{Handshake, Member, Refusal};
use super::*;

const TOKEN: [u8; 32] = [42; 32];
const DIALER: Member = Member { rank: 0, world: 3, generation: 5, token: TOKEN };
const ACCEPTOR: Member = Member { rank: 1, ..DIALER };

/// A hello of 64 bytes and a proof of 32; a nonce of 32 and a proof of 32.
const FROM_DIALER: usize = 96;
const FROM_ACCEPTOR: usize = 64;

/// Only bounds how long a broken ring hangs the tests.
const PATIENT: Timeouts = Timeouts {
    form: Duration::from_secs(60),
    handshake: Duration::from_secs(60),
    silence: None,
    peer: Duration::from_secs(60),
};

/// Two ends of a connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn accept(stream: TcpStream, member: Member) -> Handshake {
    stream.set_nonblocking(true).unwrap();
    Handshake::accept(stream, member).unwrap()
}

fn dial(stream: TcpStream, member: Member) -> Handshake {
    stream.set_nonblocking(true).unwrap();
    Handshake::dial(stream, member).unwrap()
}

/// Advances until it is up or refused.
fn finish(mut handshake: Handshake) -> Result<(), Refusal> {
    while !handshake.advance()? {
        std::thread::yield_now();
    }
    Ok(())
}

/// What crossed a wire, each way.
#[derive(Clone)]
struct Recorded {
    from_dialer: Vec<u8>,
    from_acceptor: Vec<u8>,
}

/// Lets a dialer and an acceptor meet over a wire on which `alter` may change a byte: it is given the number of bytes
/// that came before it, from the dialer or not, and the byte. Returns what each makes of the other.
fn meet(alter: impl Fn(bool, usize, u8) -> u8) -> (Result<(), Refusal>, Result<(), Refusal>, Recorded) {
    let (dialed, mut left) = connection();
    let (mut right, accepted) = connection();
    let dialing = std::thread::spawn(move || finish(dial(dialed, DIALER)));
    let accepting = std::thread::spawn(move || finish(accept(accepted, ACCEPTOR)));
    let mut recorded = Recorded { from_dialer: Vec::new(), from_acceptor: Vec::new() };
    for stream in [&left, &right] {
        stream.set_nonblocking(true).unwrap();
    }
    while !(dialing.is_finished() && accepting.is_finished()) {
        for from_dialer in [true, false] {
            let (from, to, log) = match from_dialer {
                true => (&mut left, &mut right, &mut recorded.from_dialer),
                false => (&mut right, &mut left, &mut recorded.from_acceptor),
            };
            let mut buffer = [0; 128];
            match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Who refuses hangs up, and so does the wire.
                Ok(0) | Err(_) => drop(to.shutdown(std::net::Shutdown::Both)),
                Ok(n) => {
                    let altered: Vec<u8> =
                        (0..n).map(|i| alter(from_dialer, log.len() + i, buffer[i])).collect();
                    log.extend_from_slice(&altered);
                    let _ = to.write_all(&altered);
                }
            }
        }
        std::thread::yield_now();
    }
    (dialing.join().unwrap(), accepting.join().unwrap(), recorded)
}

#[test]
fn every_byte_of_a_handshake_counts() {
    let (dialer, acceptor, recorded) = meet(|_, _, byte| byte);
    assert!(dialer.is_ok() && acceptor.is_ok(), "{dialer:?} {acceptor:?}");
    assert_eq!((recorded.from_dialer.len(), recorded.from_acceptor.len()), (FROM_DIALER, FROM_ACCEPTOR));

    for (by_dialer, length) in [(true, FROM_DIALER), (false, FROM_ACCEPTOR)] {
        for at in 0..length {
            let (dialer, acceptor, _) =
                meet(
                    |from_dialer, i, byte| if (from_dialer, i) == (by_dialer, at) { byte ^ 1 } else { byte },
                );
            assert!(
                dialer.is_err(),
                "byte {at} of {by_dialer}: the dialer takes the acceptor for its neighbour"
            );
            // The acceptor's proof is the last that is said.
            let unheard = !by_dialer && at >= 32;
            assert_eq!(acceptor.is_ok(), unheard, "byte {at} of {by_dialer}: {acceptor:?}");
        }
    }
}

#[test]
fn what_was_recorded_opens_nothing() {
    let (.., recorded) = meet(|_, _, byte| byte);

    // The acceptor's part, to the dialer's next attempt.
    let (dialed, mut replaying) = connection();
    replaying.write_all(&recorded.from_acceptor).unwrap();
    let result = finish(dial(dialed, DIALER));
    assert!(matches!(result, Err(Refusal::Token)), "{result:?}");

    // The dialer's part: to the same rank, in the next generation, and to the rank after it.
    let replayed = |member: Member| {
        let (mut replaying, accepted) = connection();
        replaying.write_all(&recorded.from_dialer).unwrap();
        finish(accept(accepted, member))
    };
    assert!(matches!(replayed(ACCEPTOR), Err(Refusal::Token)));
    assert!(matches!(replayed(Member { generation: 6, ..ACCEPTOR }), Err(Refusal::Generation(5))));
    assert!(matches!(replayed(Member { rank: 2, ..ACCEPTOR }), Err(Refusal::Place { from: 0, to: 1, .. })));

    // A rank of the generation before knows the numbers of this one, but not its token.
    let (dialed, accepted) = connection();
    let stale = std::thread::spawn(move || finish(dial(dialed, Member { token: [41; 32], ..DIALER })));
    assert!(matches!(finish(accept(accepted, ACCEPTOR)), Err(Refusal::Token)));
    assert!(stale.join().unwrap().is_err());
}

#[test]
fn random_bytes_are_refused_and_learn_nothing() {
    const SEED: u64 = 7;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let (.., recorded) = meet(|_, _, byte| byte);
    for round in 0..500 {
        // Nothing but garbage, or some of a good hello and then garbage.
        let good = random.random_range(0..=64) * usize::from(round % 2 == 0);
        let mut bytes = vec![0; random.random_range(FROM_DIALER..300)];
        random.fill_bytes(&mut bytes);
        bytes[..good].copy_from_slice(&recorded.from_dialer[..good]);
        let (mut stranger, accepted) = connection();
        stranger.write_all(&bytes).unwrap();
        let result = finish(accept(accepted, ACCEPTOR));
        assert!(result.is_err(), "seed {SEED}, round {round}: {bytes:?} opened the ring");
        let mut heard = Vec::new();
        // A connection that is dropped with bytes unread is reset.
        let _ = stranger.read_to_end(&mut heard);
        // The acceptor's nonce answers a hello whose first half is right, whoever sends it.
        assert!(heard.len() == 32 && good >= 32 || heard.is_empty(), "seed {SEED}, round {round}: {heard:?}");
    }
}

fn listeners(world: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let listeners: Vec<_> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    (listeners, peers)
}

/// One of two ranks.
fn membership(rank: u32, peers: &[SocketAddr]) -> Membership {
    let other = peers[1 - rank as usize];
    Membership { rank, world: 2, previous: other, next: other, generation: 7, token: TOKEN, region: None }
}

/// Forms a ring of two on threads, sums over it, and returns how long rank 0 took.
fn form(listeners: &[TcpListener], peers: &[SocketAddr], timeouts: Timeouts) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank: u32| {
                let listener = &listeners[rank as usize];
                let membership = membership(rank, peers);
                scope.spawn(move || {
                    let mut ring =
                        Ring::connect(listener, &membership, timeouts, AbortHandle::new()).unwrap();
                    let mut one = [1.0];
                    ring.all_reduce(&mut one).unwrap();
                    assert_eq!(one, [2.0]);
                    began.elapsed()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).max().unwrap()
    })
}

#[test]
fn one_who_speaks_slowly_is_shown_out_in_time() {
    let (listeners, peers) = listeners(2);
    let handshake = Duration::from_millis(300);
    // As the previous rank would speak, if it were in no hurry: a byte a tenth of the patience.
    let mut slow = TcpStream::connect(peers[0]).unwrap();
    slow.set_nodelay(true).unwrap();
    let speaking = std::thread::spawn(move || {
        let began = Instant::now();
        for byte in b"RELABEL\n\x02\0\0\0".iter().cycle() {
            if slow.write_all(&[*byte]).is_err() || began.elapsed() > Duration::from_secs(20) {
                break;
            }
            std::thread::sleep(handshake / 10);
        }
        began.elapsed()
    });
    // Rank 1 never comes, so that rank 0 is at its door all the time.
    let membership = membership(0, &peers);
    let timeouts = Timeouts { form: Duration::from_secs(3), handshake, ..PATIENT };
    let error = Ring::connect(&listeners[0], &membership, timeouts, AbortHandle::new()).err().unwrap();
    assert!(error.to_string().contains("it did not finish the handshake in time"), "{error}");
    let lasted = speaking.join().unwrap();
    assert!(lasted < Duration::from_millis(1500), "it was heard for {lasted:?}");
}

#[test]
fn a_flood_of_connections_does_not_keep_the_ring_from_forming() {
    let (listeners, peers) = listeners(2);
    let (over, connected) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Some stay for a while, saying nothing or garbage, so that there is always a crowd inside.
                let mut crowd = std::collections::VecDeque::new();
                while !over.load(Ordering::Relaxed) {
                    for peer in &peers {
                        if let Ok(mut stream) = TcpStream::connect_timeout(peer, Duration::from_millis(100)) {
                            connected.fetch_add(1, Ordering::Relaxed);
                            let _ = stream.write_all(&b"RELABEL\n"[..crowd.len() % 9]);
                            crowd.push_back(stream);
                        }
                    }
                    crowd.drain(..crowd.len().saturating_sub(100));
                }
            });
        }
        while connected.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        let took: Vec<_> = (0..5).map(|_| form(&listeners, &peers, PATIENT)).collect();
        over.store(true, Ordering::Relaxed);
        eprintln!("formed in {took:?} beside {} connections", connected.load(Ordering::Relaxed));
        assert!(took.iter().all(|took| *took < Duration::from_secs(20)), "{took:?}");
    });
}

#[test]
fn a_silent_crowd_does_not_push_out_who_has_said_its_hello() {
    let (listeners, peers) = listeners(2);
    std::thread::scope(|scope| {
        let membership = membership(0, &peers);
        let listener = &listeners[0];
        let ring = scope.spawn(move || Ring::connect(listener, &membership, PATIENT, AbortHandle::new()));

        // Rank 1 by hand: it says its hello and then takes its time.
        let member = Member { rank: 1, world: 2, generation: 7, token: TOKEN };
        let mut dialer = dial(TcpStream::connect(peers[0]).unwrap(), member);
        assert!(!dialer.advance().unwrap());
        std::thread::sleep(Duration::from_millis(200));
        let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(peers[0]).unwrap()).collect();
        std::thread::sleep(Duration::from_millis(200));

        let acceptor = accept(listeners[1].accept().unwrap().0, member);
        let accepting = std::thread::spawn(move || finish(acceptor));
        finish(dialer).unwrap();
        accepting.join().unwrap().unwrap();
        assert!(ring.join().unwrap().is_ok());
        drop(crowd);
    });
}
