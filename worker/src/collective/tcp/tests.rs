//! Rings over real sockets, a thread a rank: how they form, and what they add up.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::collective::{Region, Solo};
use crate::torch;

const TOKEN: [u8; 32] = [42; 32];

/// Nothing may depend on these running out: they only bound how long a broken ring hangs the tests.
pub(super) const PATIENT: Timeouts = Timeouts {
    form: Duration::from_secs(60),
    handshake: Duration::from_secs(60),
    silence: None,
    peer: Duration::from_secs(60),
};

pub(super) fn listeners(world: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
    let listeners: Vec<_> = (0..world).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    (listeners, peers)
}

pub(super) fn membership(rank: usize, peers: &[SocketAddr], generation: u64) -> Membership {
    let world = peers.len();
    let neighbour = |rank: usize| peers[rank % world];
    let (previous, next) = (neighbour(rank + world - 1), neighbour(rank + 1));
    Membership {
        rank: rank as u32,
        world: world as u32,
        previous,
        next,
        generation,
        token: TOKEN,
        region: None,
    }
}

/// Runs `rank_main` as each rank of a world, each on a thread, and returns what they return by rank.
pub(crate) fn in_world<T: Send>(world: usize, rank_main: impl Fn(&mut dyn Collective) -> T + Sync) -> Vec<T> {
    in_a_world(world, true, rank_main)
}

/// The same; where ranks are `near`, what they add up lies in memory that they share.
pub(crate) fn in_a_world<T: Send>(
    world: usize,
    near: bool,
    rank_main: impl Fn(&mut dyn Collective) -> T + Sync,
) -> Vec<T> {
    if world == 1 {
        return vec![rank_main(&mut Solo::default())];
    }
    let (listeners, peers) = listeners(world);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(rank, listener)| {
                let (region, tensor) = shared(8 << 20);
                let membership = Membership { region: near.then_some(region), ..membership(rank, &peers, 1) };
                let rank_main = &rank_main;
                scope.spawn(move || {
                    let abort = AbortHandle::new();
                    let mut ring = Ring::connect(listener, &membership, PATIENT, abort).unwrap();
                    assert_eq!(ring.host.is_some(), near);
                    match near {
                        true => rank_main(&mut InRegion(ring, tensor)),
                        false => rank_main(&mut ring),
                    }
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Memory for `length` values that other ranks can map, and the values.
pub(super) fn shared(length: usize) -> (Arc<Region>, tch::Tensor) {
    let region = Region::new(length * size_of::<f32>()).unwrap();
    let tensor = torch::over_region(&region).unwrap();
    (region, tensor)
}

/// Copies what is to be added up into shared memory, and the sums back.
struct InRegion(Ring, tch::Tensor);

impl InRegion {
    fn there(
        &mut self,
        values: &mut [f32],
        sum: impl FnOnce(&mut Ring, &mut [f32]) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let there = &mut torch::as_f32_mut(&mut self.1).unwrap()[..values.len()];
        there.copy_from_slice(values);
        sum(&mut self.0, there)?;
        values.copy_from_slice(there);
        Ok(())
    }
}

impl Collective for InRegion {
    fn rank(&self) -> u32 {
        self.0.rank()
    }

    fn world(&self) -> u32 {
        self.0.world()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.there(values, |ring, there| ring.all_reduce(there))
    }

    fn all_reduce_bf16(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.there(values, |ring, there| ring.all_reduce_bf16(there))
    }

    fn broadcast(&mut self, bytes: &mut [u8], root: u32) -> Result<(), CollectiveError> {
        self.0.broadcast(bytes, root)
    }

    fn all_gather(&mut self, slots: &mut [u8]) -> Result<(), CollectiveError> {
        self.0.all_gather(slots)
    }

    fn abort_handle(&self) -> AbortHandle {
        self.0.abort_handle()
    }
}

/// A value in (-1, 1) with all its mantissa bits in use, a function of rank and position.
pub(super) fn value(rank: u32, index: usize) -> f32 {
    let mixed = (index as u64 * 8 + u64::from(rank) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    mixed as f32 / (1 << 23) as f32 - 1.0
}

pub(super) fn values(rank: u32, length: usize) -> Vec<f32> {
    (0..length).map(|index| value(rank, index)).collect()
}

fn assert_sums(world: usize, sums: &[f32]) {
    for (index, &sum) in sums.iter().enumerate() {
        let exact: f64 = (0..world).map(|rank| f64::from(value(rank as u32, index))).sum();
        let bound = world as f64 * world as f64 * f64::from(f32::EPSILON);
        assert!((f64::from(sum) - exact).abs() <= bound, "world {world}, element {index}: {sum} for {exact}");
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn sums_are_right_and_the_same_bits_on_every_rank() {
    let lengths = [0, 1, 2, 3, 7, 1000, 1_000_003];
    for (world, near) in (1..=5).flat_map(|world| [(world, true), (world, false)]) {
        let results = in_a_world(world, near, |collective| {
            lengths.map(|length| {
                let mut buffer = values(collective.rank(), length);
                collective.all_reduce(&mut buffer).unwrap();
                buffer
            })
        });
        for (i, length) in lengths.into_iter().enumerate() {
            assert_eq!(results[0][i].len(), length);
            assert_sums(world, &results[0][i]);
            for rank in 1..world {
                assert!(bits(&results[rank][i]) == bits(&results[0][i]), "world {world}, length {length}");
            }
        }
    }
}

/// Both in float32 and in bfloat16, in segments of more than one block.
#[test]
fn ranks_that_share_memory_have_what_would_have_come_round() {
    for world in [2, 3, 4] {
        let results = |near| {
            in_a_world(world, near, |collective| {
                let mut sums = values(collective.rank(), 300_001);
                collective.all_reduce(&mut sums).unwrap();
                let mut rounded = values(collective.rank(), 300_001);
                collective.all_reduce_bf16(&mut rounded).unwrap();
                [bits(&sums), bits(&rounded)]
            })
        };
        let (near, far) = (results(true), results(false));
        assert!(near == far, "{world} ranks");
        assert!(near.iter().all(|rank| *rank == near[0]), "{world} ranks");
    }
}

/// Stands before `target` and hands everything on in pieces of 1 to 7 bytes. Returns its own address.
fn in_small_pieces(target: SocketAddr) -> SocketAddr {
    fn relay(mut from: TcpStream, mut to: TcpStream) {
        to.set_nodelay(true).unwrap();
        let mut buffer = [0; 7];
        for size in (1..=buffer.len()).cycle() {
            let read = from.read(&mut buffer[..size]).unwrap_or(0);
            // Rather one piece at a time at the other end than several at once.
            std::thread::yield_now();
            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                return drop(to.shutdown(Shutdown::Write));
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(target).unwrap();
        let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || relay(far_too, near_too));
        relay(near, far);
    });
    address
}

#[test]
fn sums_do_not_depend_on_how_the_bytes_arrive() {
    let (listeners, peers) = listeners(2);
    let pieces: Vec<_> = peers.iter().copied().map(in_small_pieces).collect();
    std::thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let membership = membership(rank, &pieces, 1);
            scope.spawn(move || {
                let mut ring = Ring::connect(listener, &membership, PATIENT, AbortHandle::new()).unwrap();
                let mut sums = values(ring.rank(), 5001);
                ring.all_reduce(&mut sums).unwrap();
                assert_sums(2, &sums);
                // Made of bfloat16, whose sums are bfloat16.
                let mut sums: Vec<f32> = (0..5001).map(|index| (index % 128) as f32).collect();
                ring.all_reduce_bf16(&mut sums).unwrap();
                assert!(sums.iter().enumerate().all(|(index, &sum)| sum == (index % 128 * 2) as f32));
                // So that neither leaves while the other's bytes are still on their way.
                ring.barrier().unwrap();
            });
        }
    });
}

#[test]
fn broadcast_gather_and_barrier_mix_with_sums() {
    for (world, near) in (2..=4_usize).flat_map(|world| [(world, true), (world, false)]) {
        in_a_world(world, near, |collective| {
            let rank = collective.rank();
            for root in 0..world as u32 {
                for length in [0, 1, 1_000_001] {
                    let expected: Vec<u8> = (0..length).map(|i| (i * 7 + root as usize) as u8).collect();
                    let mut bytes = if rank == root { expected.clone() } else { vec![0xff; length] };
                    collective.broadcast(&mut bytes, root).unwrap();
                    assert!(bytes == expected, "rank {rank} of {world} from {root}, {length} bytes");
                }
                let mut slots = vec![0xff; 3 * world];
                slots[3 * rank as usize..][..3].fill(rank as u8);
                collective.all_gather(&mut slots).unwrap();
                assert!(slots.iter().enumerate().all(|(i, &slot)| usize::from(slot) == i / 3));

                let mut one = [1.0];
                collective.all_reduce(&mut one).unwrap();
                assert_eq!(one, [world as f32]);
                collective.barrier().unwrap();
            }
        });
    }
}

#[test]
fn arguments_that_cannot_be_right_are_refused_before_anything_is_sent() {
    in_world(2, |collective| {
        assert!(matches!(collective.broadcast(&mut [0], 2), Err(CollectiveError::Invalid(_))));
        assert!(matches!(collective.all_gather(&mut [0; 3]), Err(CollectiveError::Invalid(_))));
        collective.barrier().unwrap();
    });
    let (listeners, peers) = listeners(2);
    for membership in [membership(2, &peers, 1), membership(0, &peers[..1], 1)] {
        let ring = Ring::connect(&listeners[0], &membership, PATIENT, AbortHandle::new());
        assert!(matches!(ring.err(), Some(CollectiveError::Invalid(_))));
    }
}

#[test]
fn ranks_that_do_different_things_get_errors_instead_of_sums() {
    let out_of_step = |results: Vec<Result<(), CollectiveError>>| {
        assert!(results.iter().all(Result::is_err), "{results:?}");
        assert!(results.iter().any(|r| matches!(r, Err(CollectiveError::OutOfStep { .. }))), "{results:?}");
    };
    for (length, longer) in [(7, 8), (300_000, 300_001), (7, 300_000)] {
        out_of_step(in_world(3, |c| {
            c.all_reduce(&mut vec![1.0; if c.rank() == 1 { longer } else { length }])
        }));
    }
    out_of_step(in_world(3, |c| match c.rank() {
        1 => c.all_reduce_bf16(&mut [1.0; 100_000]),
        _ => c.all_reduce(&mut [1.0; 100_000]),
    }));
    out_of_step(in_world(3, |c| if c.rank() == 2 { c.barrier() } else { c.all_reduce(&mut [1.0; 100]) }));
}

#[test]
fn strangers_do_not_keep_the_ring_from_forming() {
    let (listeners, peers) = listeners(3);
    // All of them are in the queue before the previous rank, and stay: garbage, silence, half a hello, a
    // rank of an older generation, one with another token, and a crowd beyond what is heard at a time.
    let mut strangers = Vec::new();
    for opening in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], b"", b"RELABEL\n\x01\0"] {
        let mut stream = TcpStream::connect(peers[1]).unwrap();
        stream.write_all(opening).unwrap();
        strangers.push(stream);
    }
    strangers.extend((0..80).map(|_| TcpStream::connect(peers[1]).unwrap()));
    let abort_impostors = AbortHandle::new();
    std::thread::scope(|scope| {
        for (generation, token) in [(6, TOKEN), (7, [0; 32])] {
            let impostor = Membership { token, ..membership(0, &peers, generation) };
            let abort = abort_impostors.clone();
            scope.spawn(move || {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let result = Ring::connect(&listener, &impostor, PATIENT, abort);
                assert!(matches!(result.err(), Some(CollectiveError::Aborted { .. })));
            });
        }
        let ranks: Vec<_> = (0..3)
            .map(|rank| {
                let (listener, membership) = (&listeners[rank], membership(rank, &peers, 7));
                scope.spawn(move || {
                    let mut ring = Ring::connect(listener, &membership, PATIENT, AbortHandle::new()).unwrap();
                    let mut one = [1.0];
                    ring.all_reduce(&mut one).unwrap();
                    one[0]
                })
            })
            .collect();
        for rank in ranks {
            assert_eq!(rank.join().unwrap(), 3.0);
        }
        abort_impostors.abort("the ring stands");
    });
    for mut stream in strangers {
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.is_empty(), "a stranger is not told anything");
    }
}

#[test]
fn a_missing_rank_is_named_with_what_was_last_seen_of_it() {
    let (listeners, peers) = listeners(2);
    let mut stranger = TcpStream::connect(peers[0]).unwrap();
    stranger.write_all(b"hello?").unwrap();
    // Port 1 of loopback answers with a refusal, and rank 1 never comes.
    let membership = Membership { next: "127.0.0.1:1".parse().unwrap(), ..membership(0, &peers, 1) };
    let timeouts = Timeouts { form: Duration::from_millis(200), ..PATIENT };
    let error = Ring::connect(&listeners[0], &membership, timeouts, AbortHandle::new()).err().unwrap();
    let message = error.to_string();
    assert!(matches!(error, CollectiveError::NotFormed { rank: 0, .. }), "{message}");
    assert!(message.contains("rank 1 at 127.0.0.1:1 was not reached (Connection refused"), "{message}");
    assert!(message.contains("does not speak this protocol"), "{message}");
}

#[test]
fn one_listener_serves_one_generation_after_another() {
    let (listeners, peers) = listeners(2);
    for generation in 1..=20 {
        std::thread::scope(|scope| {
            for (rank, listener) in listeners.iter().enumerate() {
                let membership = membership(rank, &peers, generation);
                scope.spawn(move || {
                    let mut ring = Ring::connect(listener, &membership, PATIENT, AbortHandle::new()).unwrap();
                    let mut one = [1.0];
                    ring.all_reduce(&mut one).unwrap();
                    assert_eq!(one, [2.0]);
                });
            }
        });
    }
}
