//! How rings end: by an abort, and because a rank is dropped, killed or stands still, in a process of its own.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tests::{PATIENT, in_world, listeners, membership, shared};
use super::*;
use crate::torch;

#[test]
fn an_abort_ends_the_forming_of_a_ring() {
    let (listeners, peers) = listeners(2);
    let abort = AbortHandle::new();
    std::thread::scope(|scope| {
        let forming =
            scope.spawn(|| Ring::connect(&listeners[0], &membership(0, &peers, 1), PATIENT, abort.clone()));
        abort.abort("generation 1 is over");
        let error = forming.join().unwrap().err().unwrap();
        assert!(matches!(error, CollectiveError::Aborted { reason } if reason == "generation 1 is over"));
    });
}

#[test]
fn an_abort_ends_a_blocked_call_and_reaches_the_neighbours() {
    let (to_main, handles) = mpsc::channel();
    let results = std::thread::scope(|scope| {
        scope.spawn(move || {
            handles.recv().map(|handle: AbortHandle| handle.abort("rank 1 was lost")).unwrap()
        });
        in_world(3, |collective| {
            match collective.rank() {
                // Never comes to the all-reduce, so that the others block in it.
                1 => {
                    to_main.send(collective.abort_handle()).unwrap();
                    while collective.abort_handle().reason().is_none() {
                        std::thread::yield_now();
                    }
                    (collective.all_reduce(&mut [0.0; 9]), collective.barrier())
                }
                _ => (collective.all_reduce(&mut [0.0; 9]), collective.barrier()),
            }
        })
    });
    assert!(matches!(&results[1].0, Err(CollectiveError::Aborted { reason }) if reason == "rank 1 was lost"));
    assert!(matches!(&results[1].1, Err(CollectiveError::Aborted { .. })));
    for rank in [0, 2] {
        assert!(matches!(results[rank].0, Err(CollectiveError::Lost { .. })), "{:?}", results[rank].0);
        assert!(matches!(results[rank].1, Err(CollectiveError::Ended { .. })), "{:?}", results[rank].1);
    }
}

#[test]
fn a_ring_that_is_dropped_is_gone_for_its_neighbours_though_its_abort_handle_lives() {
    let handles = std::sync::Mutex::new(Vec::new());
    let (listeners, peers) = listeners(2);
    std::thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let (membership, handles) = (membership(rank, &peers, 1), &handles);
            scope.spawn(move || {
                let mut ring = Ring::connect(listener, &membership, PATIENT, AbortHandle::new()).unwrap();
                handles.lock().unwrap().push(ring.abort_handle());
                if rank == 1 {
                    return drop(ring);
                }
                let error = ring.all_reduce(&mut [0.0; 9]).unwrap_err();
                assert!(matches!(error, CollectiveError::Lost { rank: 1, .. }), "{error:?}");
            });
        }
    });
}

/// A rank in a process of its own, killed when dropped.
struct ChildRank {
    process: Child,
    stdin: ChildStdin,
    address: SocketAddr,
}

impl ChildRank {
    fn spawn() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "collective::tcp::ending_tests::child_rank", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let address = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .find_map(|line| line.unwrap().split_once("listening at ").map(|(_, address)| address.to_owned()))
            .unwrap();
        Self { process, stdin, address: address.parse().unwrap() }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }
}

impl Drop for ChildRank {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const ROUND: usize = 1 << 20;

/// Not a test: what [`ChildRank`] runs, rank 1 that reduces until it fails.
#[test]
#[ignore = "the child process of other tests"]
fn child_rank() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("\nlistening at {}", listener.local_addr().unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let Ok(peers) = line.split_whitespace().map(str::parse).collect::<Result<Vec<SocketAddr>, _>>() else {
        return;
    };
    let (region, mut tensor) = shared(ROUND);
    let membership = Membership { region: Some(region), ..membership(1, &peers, 1) };
    let Ok(mut ring) = Ring::connect(&listener, &membership, PATIENT, AbortHandle::new()) else { return };
    let buffer = torch::as_f32_mut(&mut tensor).unwrap();
    while ring.all_reduce(buffer).is_ok() {}
}

/// Ranks 0, 2 and 3 on threads, rank 1 a child process; all reduce for ever. After a few rounds `disturb`
/// is called with the child and the abort handles of the three. Returns how they ended. Rank 3 is no
/// neighbour of the child, so what happens there reaches it only through the others.
fn disturbed(
    silence: Option<Duration>,
    disturb: impl FnOnce(&ChildRank, &[AbortHandle]),
) -> Vec<CollectiveError> {
    let mut child = ChildRank::spawn();
    let (listeners, mut peers) = listeners(4);
    peers[1] = child.address;
    let line: Vec<_> = peers.iter().map(ToString::to_string).collect();
    child.stdin.write_all(format!("{}\n", line.join(" ")).as_bytes()).unwrap();

    let handles = [(); 3].map(|()| AbortHandle::new());
    let (rounds, round_done) = mpsc::channel();
    let (ends, ended) = mpsc::channel();
    for (rank, abort) in [0, 2, 3].into_iter().zip(handles.clone()) {
        let (membership, listener) = (membership(rank, &peers, 1), listeners[rank].try_clone().unwrap());
        let (rounds, ends) = (rounds.clone(), ends.clone());
        std::thread::spawn(move || {
            let timeouts = Timeouts { silence, ..PATIENT };
            let (region, mut tensor) = shared(ROUND);
            let membership = Membership { region: Some(region), ..membership };
            let mut ring = Ring::connect(&listener, &membership, timeouts, abort).unwrap();
            assert!(ring.host.is_some());
            let buffer = torch::as_f32_mut(&mut tensor).unwrap();
            loop {
                if let Err(error) = ring.all_reduce(buffer) {
                    // The ring goes along: the failure has to spread before anyone drops it.
                    return drop(ends.send((error, ring)));
                }
                let _ = rounds.send(());
            }
        });
    }
    for _ in 0..9 {
        round_done.recv_timeout(Duration::from_secs(60)).unwrap();
    }
    disturb(&child, &handles);
    let started = std::time::Instant::now();
    // Far more than it takes: without `silence`, a failure that goes unnoticed would hang for ever.
    let ends: Vec<_> = (0..3).map(|_| ended.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
    eprintln!("all ended {:?} after the disturbance", started.elapsed());
    ends.into_iter().map(|(error, _)| error).collect()
}

#[test]
fn a_killed_rank_is_an_error_on_the_others_at_once() {
    let errors = disturbed(None, |child, _| child.signal(Signal::SIGKILL));
    assert!(errors.iter().all(|e| matches!(e, CollectiveError::Lost { .. })), "{errors:?}");
    assert!(errors.iter().any(|e| matches!(e, CollectiveError::Lost { rank: 1, .. })), "{errors:?}");
}

#[test]
fn an_abort_frees_the_others_from_a_rank_that_stands_still() {
    let errors = disturbed(None, |child, handles| {
        child.signal(Signal::SIGSTOP);
        handles.iter().for_each(|handle| handle.abort("rank 1 stands still"));
    });
    // The handles are used one after the other: the last may learn it from its neighbours first.
    let expected = |e: &_| matches!(e, CollectiveError::Aborted { .. } | CollectiveError::Lost { .. });
    assert!(errors.iter().all(expected), "{errors:?}");
    assert!(errors.iter().any(|e| matches!(e, CollectiveError::Aborted { .. })), "{errors:?}");
}

#[test]
fn a_rank_that_stands_still_is_an_error_after_the_silence_allowed() {
    let errors = disturbed(Some(Duration::from_secs(2)), |child, _| child.signal(Signal::SIGSTOP));
    assert!(errors.iter().any(|e| matches!(e, CollectiveError::Silent { .. })), "{errors:?}");
}
