//! What is fuzzed: whatever reads bytes that a file, a peer or a user can have made. Each [`Target`] is a function
//! of an input's bytes that panics where something is wrong; a refusal is never wrong.
//!
//! libFuzzer calls them from `tests/fuzz/fuzz_targets` (`make fuzz`); `tests/replay.rs` runs them over the committed
//! corpus and some thousand seeded mutations of it, with no special flags. Both by way of [`Target::check`], which
//! also holds an input to the memory that its length allows.

pub mod config;
pub mod frames;
pub mod journal;
pub mod jpeg;
pub mod label_map;
pub mod memory;
pub mod mutate;
pub mod packed;
pub mod pickle;
pub mod wire;

use std::path::{Path, PathBuf};

/// One way in.
pub struct Target {
    /// Name of the target, and of its folder in `tests/fuzz/corpus`.
    pub name: &'static str,
    /// Takes an input; panics where something is wrong.
    pub run: fn(&[u8]),
    /// Folders of this repository whose files are inputs as they are.
    pub seeds: &'static [&'static str],
    /// Bytes that may be allocated at one time for each byte of an input, beyond [`memory::FREE`].
    pub amplification: usize,
}

/// All of them; `tests/fuzz/run.sh` has the same names.
pub const TARGETS: [&Target; 8] = [
    &label_map::TARGET,
    &pickle::TARGET,
    &jpeg::TARGET,
    &packed::TARGET,
    &journal::TARGET,
    &config::TARGET,
    &frames::TARGET,
    &wire::TARGET,
];

impl Target {
    /// Runs the target on `input`.
    ///
    /// # Panics
    /// Something is wrong, or it took more memory than the length of the input allows.
    pub fn check(&self, input: &[u8]) {
        let allowed = memory::FREE.saturating_add(self.amplification.saturating_mul(input.len()));
        let peak = memory::peak(|| (self.run)(input));
        assert!(
            peak <= allowed,
            "{}: an input of {} bytes had {peak} bytes allocated, more than the {allowed} it is allowed",
            self.name,
            input.len()
        );
    }

    /// The files that fuzzing begins with: the committed corpus and [`Self::seeds`], in order.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn corpus(&self) -> std::io::Result<Vec<PathBuf>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let own = format!("tests/fuzz/corpus/{}", self.name);
        let mut files = Vec::new();
        for folder in std::iter::once(own.as_str()).chain(self.seeds.iter().copied()) {
            for entry in std::fs::read_dir(root.join(folder))? {
                files.push(entry?.path());
            }
        }
        files.retain(|path| path.is_file());
        files.sort();
        Ok(files)
    }
}

/// The first `N` bytes of an input, zeros where it is shorter, and the rest.
fn split<const N: usize>(input: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = input.split_at(N.min(input.len()));
    let mut fixed = [0; N];
    fixed[..head.len()].copy_from_slice(head);
    (fixed, rest)
}

/// A folder in memory, where the machine has such, so that an input costs no write to a disk.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
        false => tempfile::tempdir(),
    }
}
