//! Archives for tests, made byte by byte so that they can be wrong in every way.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

const BLOCK: usize = 512;

/// An archive that grows.
#[derive(Clone, Default)]
pub(in crate::data) struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.member(b'0', path, content)
    }

    /// A member of any kind, whose header tells the length of its content.
    pub fn member(self, kind: u8, path: &str, content: &[u8]) -> Self {
        let header = header(kind, path.as_bytes(), content.len() as u64);
        self.blocks(&header).blocks(content)
    }

    /// The pax records that go before the member that they are about.
    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        let record = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            // The length counts its own digits.
            let digits = (1..9).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
            format!("{}{rest}", rest.len() + digits)
        };
        let content: String = records.iter().map(record).collect();
        self.member(b'x', "PaxHeaders/next", content.as_bytes())
    }

    /// Bytes as they are, filled up to whole blocks.
    pub fn blocks(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive with its end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 2 * BLOCK]);
        self.0
    }
}

/// A ustar header. A path of more than 100 bytes is cut off.
pub(in crate::data) fn header(kind: u8, path: &[u8], size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let length = path.len().min(100);
    header[..length].copy_from_slice(&path[..length]);
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    header
}

/// Writes a header's checksum.
pub(in crate::data) fn seal(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Packs the images of the class folders in `from` into three shards in `to`, the images dealt out in turn so that no
/// shard holds a class; their classes said by `.cls` members or by folders.
pub(in crate::data) fn pack(from: &Path, to: &Path, by_files: bool) {
    let sorted = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    let images = sorted(from).into_iter().flat_map(|class| {
        let names = sorted(&from.join(&class));
        names.into_iter().map(move |name| (class.clone(), name))
    });
    let mut shards = [Tar::new(), Tar::new(), Tar::new()];
    for (number, (class, name)) in images.enumerate() {
        let content = fs::read(from.join(&class).join(&name)).unwrap();
        let shard = &mut shards[number % 3];
        let before = std::mem::take(shard);
        *shard = match by_files {
            true => {
                let key = name.rsplit_once('.').unwrap().0;
                let class = format!("{class}\n");
                before.file(&name, &content).file(&format!("{key}.cls"), class.as_bytes())
            }
            false => before.file(&format!("./{class}/{name}"), &content),
        };
    }
    fs::create_dir_all(to).unwrap();
    for (number, shard) in shards.into_iter().enumerate() {
        fs::write(to.join(format!("{number:03}.tar")), shard.end()).unwrap();
    }
}
