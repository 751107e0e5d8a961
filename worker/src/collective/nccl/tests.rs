//! Communicators between processes, over libraries in C that stand in for NCCL and the driver (`stub/`): they are loaded,
//! called and asked as NVIDIA's are, but a GPU's memory is main memory and the ranks meet in a file. What NVIDIA's
//! do is for `tests/gpu`, on a machine that has a GPU.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::*;

/// Compiles the libraries into a folder, `libnccl.so.2` only if it is wanted.
fn libraries(nccl: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/collective/nccl/stub");
    let mut wanted = vec![("cuda.c", "libcuda.so.1")];
    wanted.extend(nccl.then_some(("nccl.c", "libnccl.so.2")));
    for (file, library) in wanted {
        let built = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-pthread", &format!("-Wl,-soname,{library}"), "-o"])
            .arg(folder.path().join(library))
            .arg(source.join(file))
            .status()
            .unwrap();
        assert!(built.success(), "{file}");
    }
    folder
}

/// A rank in a process of its own, killed when dropped.
struct Rank {
    process: Child,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Rank {
    fn spawn(libraries: &Path, scenario: &str, rank: u32, world: u32, environment: &[(&str, &str)]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "collective::nccl::tests::child_rank", "--ignored", "--nocapture"])
            .env("LD_LIBRARY_PATH", libraries)
            .env("TMPDIR", libraries)
            .env("SCENARIO", scenario)
            .env("PLACE", format!("{rank} {world}"))
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, stdin, lines }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// What follows `word` on the next line that begins with it; empty where the process ends before.
    fn hear(&mut self, word: &str) -> String {
        let heard = self.lines.by_ref().find_map(|line| line.unwrap().strip_prefix(word).map(str::to_owned));
        heard.unwrap_or_default()
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `started` of `world` ranks, who have been told the id that rank 0 has made, as the coordinator does it.
fn ranks(
    libraries: &Path,
    scenario: &str,
    started: u32,
    world: u32,
    environment: &[(&str, &str)],
) -> Vec<Rank> {
    let mut ranks: Vec<_> =
        (0..started).map(|rank| Rank::spawn(libraries, scenario, rank, world, environment)).collect();
    let id = ranks[0].hear("id ");
    assert_eq!(id.len(), 2 * ID_BYTES, "{id}");
    for rank in &mut ranks {
        rank.tell(&id);
    }
    ranks
}

/// Many pieces of the stub's, and no multiple of anything.
const LONG: usize = (25 << 18) + 12_345;

fn value(rank: u32, index: usize) -> f32 {
    (index % 1013) as f32 * (rank + 1) as f32
}

fn values(rank: u32, length: usize) -> Vec<f32> {
    (0..length).map(|index| value(rank, index)).collect()
}

fn sums_are_right(world: u32, values: &[f32]) -> bool {
    let all = (world * (world + 1) / 2) as f32;
    values.iter().enumerate().all(|(index, &sum)| sum == (index % 1013) as f32 * all)
}

/// A slice of main memory, which is the memory of the stub's GPU.
#[allow(unsafe_code)]
fn on_device(values: &mut [f32]) -> DeviceSlice<'_> {
    // SAFETY: the slice is borrowed exclusively for as long.
    unsafe { DeviceSlice::new(values.as_mut_ptr() as u64, values.len()) }
}

/// The same of bfloat16.
#[allow(unsafe_code)]
fn on_device_in_bf16(values: &mut [u16]) -> DeviceSlice<'_> {
    // SAFETY: as above.
    unsafe { DeviceSlice::of_bf16(values.as_mut_ptr() as u64, values.len()) }
}

/// Within the roundings of what is sent and of the sum, and not all of them exact.
fn sums_are_near(world: u32, values: &[f32]) -> bool {
    let all = (world * (world + 1) / 2) as f32;
    let near = |(index, &sum): (usize, &f32)| {
        let exact = (index % 1013) as f32 * all;
        (sum - exact).abs() <= 2.1 / 256.0 * exact
    };
    values.iter().enumerate().all(near) && (values.len() < 1000 || !sums_are_right(world, values))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Not a test: what [`Rank`] runs.
#[test]
#[ignore = "the child process of other tests"]
fn child_rank() {
    let scenario = std::env::var("SCENARIO").unwrap_or_default();
    let Some((rank, world)) = std::env::var("PLACE")
        .ok()
        .and_then(|place| place.split_once(' ').map(|(r, w)| (r.parse().unwrap(), w.parse().unwrap())))
    else {
        return;
    };
    println!();
    if scenario == "find" {
        return match find() {
            Ok(version) => println!("found {version}"),
            Err(error) => println!("found {error}"),
        };
    }
    if rank == 0 {
        println!("id {}", hex(&unique_id().unwrap()));
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let id: Vec<u8> =
        (0..ID_BYTES).map(|n| u8::from_str_radix(&line[2 * n..2 * n + 2], 16).unwrap()).collect();
    let abort = AbortHandle::new();
    let aborted_at = std::sync::Arc::new(std::sync::OnceLock::new());
    let (handle, at) = (abort.clone(), aborted_at.clone());
    std::thread::spawn(move || {
        if let Some(Ok(reason)) = std::io::stdin().lines().next() {
            at.set(Instant::now()).unwrap();
            handle.abort(reason);
        }
    });
    let gpu = u32::from(scenario == "no such gpu");
    let patience = Patience {
        form: Duration::from_secs(if scenario == "late" { 1 } else { 60 }),
        silence: Duration::from_secs(if scenario == "silent" { 1 } else { 60 }),
    };
    let formed = Nccl::form(Place { rank, world, gpu }, id.as_slice().try_into().unwrap(), patience, abort);
    let mut nccl = match formed {
        Ok(nccl) => nccl,
        Err(error) => {
            let after = aborted_at.get().map_or(0, |at| at.elapsed().as_millis());
            return println!("ended {after} {error:?}");
        }
    };
    if scenario == "sums" {
        return exchange(&mut nccl);
    }
    let mut buffer = values(rank, 100_000);
    println!("formed");
    for round in 0.. {
        if scenario == "silent" && rank == 1 && round == 3 {
            std::thread::sleep(Duration::from_secs(60));
        }
        match nccl.all_reduce_in_turn([on_device(&mut buffer)]) {
            Ok(()) => buffer = values(rank, 100_000),
            Err(error) => {
                let after = aborted_at.get().map_or(0, |at| at.elapsed().as_millis());
                println!("ended {after} {error:?}");
                return println!("again {:?}", nccl.barrier().unwrap_err());
            }
        }
        if round == 5 {
            println!("turning");
        }
    }
}

/// Whether slices are summed that libtorch is still to fill when they are given: what fills each is queued on the default
/// stream just before, and takes its time.
fn sums_in_turn(nccl: &mut Nccl) -> bool {
    const SLICES: usize = 5;
    let (rank, world, length) = (nccl.rank(), nccl.world(), LONG / SLICES);
    let (filled, mut buffer) = (values(rank, length * SLICES), vec![-1.0; length * SLICES]);
    let slices = buffer.chunks_mut(length).zip(filled.chunks(length)).map(|(slice, values)| {
        queue_copy(slice, values);
        on_device(slice)
    });
    nccl.all_reduce_in_turn(slices).unwrap();
    sums_are_right(world, &buffer)
}

/// Queues a copy of `values` into `slice` on the default stream, as an operator of libtorch is.
#[allow(unsafe_code)]
fn queue_copy(slice: &mut [f32], values: &[f32]) {
    let (address, api) = (slice.as_mut_ptr() as u64, Api::load().unwrap());
    // SAFETY: the stub's GPU memory is main memory; both hold so many bytes, and the caller waits for the stream before
    // it lets go of them.
    let code = unsafe {
        (api.to_device)(address, values.as_ptr().cast(), size_of_val(values), std::ptr::null_mut())
    };
    api.cuda("copy to the GPU", code).unwrap();
}

/// One of everything, and whether each came out right.
fn exchange(nccl: &mut Nccl) {
    let (rank, world) = (nccl.rank(), nccl.world());
    let mut wrong = Vec::new();
    let mut check = |what: String, right: bool| {
        if !right {
            wrong.push(what)
        }
    };
    let mut long = values(rank, LONG);
    nccl.all_reduce_in_turn([on_device(&mut long)]).unwrap();
    check("the sum where it is".into(), sums_are_right(world, &long));
    check("the sums in turn".into(), sums_in_turn(nccl));
    for length in [0, 1, 3, 70_001] {
        let mut short = values(rank, length);
        nccl.all_reduce(&mut short).unwrap();
        check(format!("the sum of {length} values"), sums_are_right(world, &short));
    }
    for length in [0, 1, 70_001] {
        let mut short = values(rank, length);
        nccl.all_reduce_bf16(&mut short).unwrap();
        check(format!("the sum of {length} values in bfloat16"), sums_are_near(world, &short));
    }
    let mut rounded = vec![0_u16; 1_234_567];
    bf16::round_all(&values(rank, 1_234_567), &mut rounded);
    nccl.all_reduce_in_turn([on_device_in_bf16(&mut rounded)]).unwrap();
    let mut sums = vec![0.0; rounded.len()];
    bf16::widen_all(&rounded, &mut sums);
    check("the sum in bfloat16 where it is".into(), sums_are_near(world, &sums));
    for (root, length) in [(0, 0), (1, 1), (world - 1, 3_000_001)] {
        let of = |rank: u32| -> Vec<u8> { (0..length).map(|n| (n % 251) as u8 ^ rank as u8).collect() };
        let mut bytes = of(rank);
        nccl.broadcast(&mut bytes, root).unwrap();
        check(format!("{length} bytes of rank {root}"), bytes == of(root));
    }
    let mut slots = vec![0; 5 * world as usize];
    slots[5 * rank as usize..][..5].fill(rank as u8 + 1);
    nccl.all_gather(&mut slots).unwrap();
    check("the slots".into(), slots.iter().enumerate().all(|(n, &slot)| slot as usize == n / 5 + 1));
    nccl.barrier().unwrap();
    check("no such root".into(), matches!(nccl.broadcast(&mut [0], world), Err(CollectiveError::Invalid(_))));
    check("unequal slots".into(), matches!(nccl.all_gather(&mut [0; 7]), Err(CollectiveError::Invalid(_))));
    println!("found {wrong:?}");
}

/// Milliseconds from the abort to the error, and the error.
fn ended(rank: &mut Rank) -> (u64, String) {
    let line = rank.hear("ended ");
    let (after, error) = line.split_once(' ').unwrap_or_default();
    (after.parse().unwrap_or(u64::MAX), error.to_owned())
}

#[test]
fn three_ranks_sum_and_exchange_what_is_theirs() {
    let libraries = libraries(true);
    for rank in &mut ranks(libraries.path(), "sums", 3, 3, &[]) {
        assert_eq!(rank.hear("found "), "[]");
        assert!(rank.process.wait().unwrap().success());
    }
}

#[test]
fn a_rank_that_does_not_come_is_waited_for_no_longer_than_is_said() {
    let libraries = libraries(true);
    for rank in &mut ranks(libraries.path(), "late", 2, 3, &[]) {
        let (_, error) = ended(rank);
        assert!(error.starts_with("NotFormed { rank: "), "{error}");
    }
    // And not as long where the generation ends before.
    for rank in &mut ranks(libraries.path(), "forming", 2, 3, &[]) {
        std::thread::sleep(Duration::from_millis(100));
        rank.tell("rank 2 was lost");
        let (after, error) = ended(rank);
        assert_eq!(error, "Aborted { reason: \"rank 2 was lost\" }");
        assert!(after < 1000, "{after} ms");
    }
}

#[test]
fn the_others_give_up_within_a_second_when_the_generation_ends_though_giving_up_takes_longer() {
    let libraries = libraries(true);
    for environment in [&[][..], &[("STUB_NCCL_SLOW_ABORT", "1")]] {
        let mut ranks = ranks(libraries.path(), "reduce", 3, 3, environment);
        for rank in &mut ranks {
            rank.hear("turning");
        }
        // Killed, as the kernel does it: NCCL on one host does not notice.
        ranks[1].process.kill().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        for rank in [0, 2] {
            ranks[rank].tell("rank 1 was lost");
            let (after, error) = ended(&mut ranks[rank]);
            assert_eq!(error, "Aborted { reason: \"rank 1 was lost\" }");
            assert!(after < 1000, "rank {rank}: {after} ms");
            assert!(ranks[rank].hear("again ").starts_with("Aborted"));
        }
    }
}

#[test]
fn an_error_that_nccl_finds_later_ends_the_call_and_every_later_one() {
    let libraries = libraries(true);
    for rank in &mut ranks(libraries.path(), "reduce", 2, 2, &[("STUB_NCCL_FAIL_AFTER", "9")]) {
        let (_, error) = ended(rank);
        assert_eq!(
            error,
            "Nccl { what: \"NCCL could not reach the other ranks: remote process exited (of a communicator)\" }"
        );
        assert!(rank.hear("again ").starts_with("Ended { first: \"NCCL could not reach the other ranks"));
    }
}

#[test]
fn a_rank_that_stands_still_is_not_waited_for_for_ever() {
    let libraries = libraries(true);
    let mut ranks = ranks(libraries.path(), "silent", 2, 2, &[]);
    let (_, error) = ended(&mut ranks[0]);
    assert!(error.starts_with("Nccl { what: \"nothing has moved for 1.0 s"), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let (both, cuda) = (libraries(true), libraries(false));
    let found = |libraries: &Path, environment: &[(&str, &str)]| {
        Rank::spawn(libraries, "find", 0, 1, environment).hear("found ")
    };
    assert_eq!(found(both.path(), &[]), "23003");
    let old = found(both.path(), &[("STUB_NCCL_VERSION", "21003")]);
    assert_eq!(old, "NCCL 2.10.3 is too old: 2.14 or later is needed");
    let none = found(cuda.path(), &[]);
    assert!(none.starts_with("libnccl.so.2 cannot be loaded (libnccl.so.2: "), "{none}");
    let (_, error) = ended(&mut ranks(both.path(), "no such gpu", 1, 2, &[])[0]);
    assert_eq!(error, "Nccl { what: \"CUDA could not use the GPU: invalid device ordinal\" }");
}
