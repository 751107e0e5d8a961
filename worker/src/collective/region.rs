//! Memory that the ranks of one host share: each has its gradients in a block of its own, which the others map.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;

/// A block begins with a word, by which it is known; what is in it begins at the next page.
const WORD_BYTES: usize = 32;
const HEADER_BYTES: usize = 4096;

/// A random word that no other block has.
type Word = [u8; WORD_BYTES];

/// A block of this process that others of the same user on the same host can map, where the system allows it. Zeroed when
/// it is new.
#[derive(Debug)]
pub struct Region {
    map: MmapRaw,
    /// By which others find it, and the word in it.
    shared: Option<(File, Word)>,
}

impl Region {
    /// A block for `bytes` bytes. It has memory where it has been written to.
    ///
    /// # Errors
    /// There is not so much.
    pub fn new(bytes: usize) -> io::Result<Arc<Self>> {
        let length = HEADER_BYTES + bytes;
        let region = Self::shared(length).or_else(|error| {
            // Such as a limit on the size of files, which this counts as.
            tracing::warn!(
                "no memory can be shared with other workers of this host ({error}): gradients are sent"
            );
            Ok::<_, io::Error>(Self { map: MmapMut::map_anon(length)?.into(), shared: None })
        })?;
        Ok(Arc::new(region))
    }

    fn shared(length: usize) -> io::Result<Self> {
        let file = File::from(memfd_create("relabel", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        file.set_len(length as u64)?;
        // Whoever maps it may rely on its length.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
        let map = MmapOptions::new().map_raw(&file)?;
        let mut word = [0; WORD_BYTES];
        getrandom::fill(&mut word).map_err(io::Error::other)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &word, 0)?;
        Ok(Self { map, shared: Some((file, word)) })
    }

    /// Where its bytes begin.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(HEADER_BYTES)
    }

    /// Bytes that it is for.
    pub fn len(&self) -> usize {
        self.map.len() - HEADER_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of its bytes come before `bytes`, where those lie in it.
    pub fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes.as_ptr().addr().checked_sub(self.as_mut_ptr().addr())?;
        (offset + bytes.len() <= self.len()).then_some(offset)
    }

    /// How others find it; zeros where they cannot.
    pub fn offer(&self) -> [u8; OFFER_BYTES] {
        let mut bytes = [0; OFFER_BYTES];
        if let Some((file, word)) = &self.shared {
            bytes[0..4].copy_from_slice(&Pid::this().as_raw().to_le_bytes());
            bytes[4..8].copy_from_slice(&file.as_raw_fd().to_le_bytes());
            bytes[8..].copy_from_slice(word);
        }
        bytes
    }
}

/// Length of what [`Region::offer`] gives.
pub const OFFER_BYTES: usize = 8 + WORD_BYTES;

/// Another process's block, to be read.
#[derive(Debug)]
pub struct Peer {
    map: MmapRaw,
}

impl Peer {
    /// The block that is offered.
    ///
    /// # Errors
    /// It is not there for this process: the other is on another host, in a container of its own or another user's.
    pub fn open(offer: &[u8; OFFER_BYTES]) -> io::Result<Self> {
        let [p0, p1, p2, p3, f0, f1, f2, f3, word @ ..] = *offer;
        let (process, descriptor) =
            (i32::from_le_bytes([p0, p1, p2, p3]), i32::from_le_bytes([f0, f1, f2, f3]));
        let path = format!("/proc/{process}/fd/{descriptor}");
        // What another host's process has under this number may be anything.
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        if !file.metadata()?.is_file() || file.metadata()?.len() < HEADER_BYTES as u64 {
            return Err(io::Error::other("it is not a block of memory"));
        }
        let mut found = [0; WORD_BYTES];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0)?;
        if found != word {
            return Err(io::Error::other("it is another block of memory"));
        }
        Ok(Self { map: MmapOptions::new().map_raw_read_only(&file)? })
    }

    /// Whether it has `length` bytes that begin at `offset`, which is that of a float.
    pub fn has(&self, offset: u64, length: u64) -> bool {
        let end = offset.checked_add(length);
        offset.is_multiple_of(align_of::<f32>() as u64)
            && end.is_some_and(|end| end <= (self.map.len() - HEADER_BYTES) as u64)
    }

    /// The `count` floats that begin `offset` bytes into it, as its process has left them.
    ///
    /// # Safety
    /// It [has](Self::has) them, and its process does not write to them while they are borrowed.
    #[allow(unsafe_code)]
    pub unsafe fn floats(&self, offset: usize, count: usize) -> &[f32] {
        let first = self.map.as_ptr().wrapping_add(HEADER_BYTES + offset);
        // SAFETY: the map is as long as the caller says and lives as long as `self`; its length is sealed. A page and a
        // multiple of 4 bytes after its beginning a float is aligned. Nobody writes, says the caller.
        unsafe { std::slice::from_raw_parts(first.cast(), count) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, unsafe_code)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_by_its_word_and_by_nothing_else() {
        let region = Region::new(10_000).unwrap();
        // SAFETY: it has room for a float there, and nobody else looks.
        unsafe { region.as_mut_ptr().add(8).cast::<f32>().write(2.5) };
        let offer = region.offer();
        let peer = Peer::open(&offer).unwrap();
        // SAFETY: it has them, and nobody writes.
        assert_eq!(unsafe { peer.floats(4, 3) }, [0.0, 2.5, 0.0]);

        assert!(peer.has(0, 10_000) && peer.has(10_000, 0));
        for (offset, length) in [(0, 10_001), (4, 9_997), (2, 4), (u64::MAX - 3, 8), (20_000, 4)] {
            assert!(!peer.has(offset, length), "{offset}, {length}");
        }
        assert!(Peer::open(&[0; OFFER_BYTES]).is_err(), "what nobody can find");
        // Another word, another process, other things under a descriptor.
        for (at, byte) in [(8, offer[8] ^ 1), (0, offer[0] ^ 1), (4, 0), (7, 0x7f), (3, 0xff)] {
            let mut other = offer;
            other[at] = byte;
            assert!(Peer::open(&other).is_err(), "byte {at} is {byte}");
        }
    }

    #[test]
    fn what_lies_in_a_block_is_told_from_what_does_not() {
        let region = Region::new(16).unwrap();
        // SAFETY: 16 bytes are there, and they are zero.
        let bytes = unsafe { std::slice::from_raw_parts(region.as_mut_ptr(), 16) };
        assert_eq!(region.offset_of(bytes), Some(0));
        assert_eq!(region.offset_of(&bytes[4..8]), Some(4));
        assert_eq!(region.offset_of(&[0; 4]), None);
        assert_eq!(Region::new(16).unwrap().offset_of(bytes), None);
        // Nobody can take it away from those who have mapped it.
        assert!(region.shared.as_ref().unwrap().0.set_len(0).is_err());
    }
}
