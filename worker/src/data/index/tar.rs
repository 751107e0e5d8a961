//! Walks from header to header of a tar archive and reads nothing between them: ustar, the GNU format with its long
//! names, and pax with paths and sizes in records. What it cannot be sure of it refuses, so that no image is left out
//! unseen: another format, damage, an archive that ends early or goes on after its end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::ShardError;

const BLOCK: u64 = 512;
/// Bytes that are read at once: a header and, of a small member, content and next header too. A page costs a disk no
/// more than a block.
const WINDOW: usize = 4096;
/// Longest record of a long name or of pax that is believed, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// How files begin that are often taken for tar files.
const COMPRESSED: [(&[u8], &str); 4] = [
    (&[0x1F, 0x8B], "gzip"),
    (&[0x28, 0xB5, 0x2F, 0xFD], "zstd"),
    (&[0xFD, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"BZh", "bzip2"),
];

/// One entry of an archive that is no folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// As the archive has it.
    pub path: String,
    /// Of its content, in bytes from the beginning of the archive.
    pub start: u64,
    /// In bytes; `start + length` is within the archive.
    pub length: u64,
    /// False of links, devices and whatever else has no content of its own.
    pub is_file: bool,
}

/// What the records before a header say of the member that follows.
#[derive(Default)]
struct Extended {
    pax_path: Option<Vec<u8>>,
    long_name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

/// An archive that is being walked.
pub(super) struct Archive<'a> {
    file: &'a File,
    size: u64,
    /// Where the next header is.
    next: u64,
    /// What was read last, and where it is in the archive.
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Archive<'a> {
    /// An archive of `size` bytes.
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, next: 0, window: Vec::new(), window_at: 0 }
    }

    /// The next member; none after the last. Not to be called again after an error.
    ///
    /// # Errors
    /// See [`ShardError`]: what makes the archive one that cannot be walked.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, ShardError> {
        let mut extended = Extended::default();
        loop {
            let at = self.next;
            let Some(header) = self.header(at)? else { return Ok(None) };
            let damaged = |reason| ShardError::Damaged { at, reason };
            let kind = header[156];
            let describes_next = matches!(kind, b'g' | b'x' | b'K' | b'L');
            let path = match describes_next {
                true => name(&header),
                false => {
                    let long = extended.pax_path.take().or(extended.long_name.take());
                    long.unwrap_or_else(|| name(&header))
                }
            };
            let shown = || String::from_utf8_lossy(&path).into_owned();
            let mut length = number(&header[124..136]).ok_or(damaged("a size is no number"))?;
            if !describes_next {
                length = extended.size.take().unwrap_or(length);
            }
            // Links, devices and folders have no content, whatever their size says.
            if matches!(kind, b'1'..=b'6') {
                length = 0;
            }
            let start = at + BLOCK;
            let size = self.size;
            let end = start.checked_add(length).filter(|end| *end <= size);
            let end = end.ok_or_else(|| ShardError::BeyondEnd { member: shown(), length, size })?;
            self.next = end.next_multiple_of(BLOCK);
            match kind {
                b'K' => {}
                b'L' => {
                    let content = self.record(at, start, length)?;
                    extended.long_name = Some(until_nul(content).to_vec());
                }
                b'g' | b'x' => {
                    let content = self.record(at, start, length)?;
                    let records = pax_records(content).ok_or(damaged("a pax record is malformed"))?;
                    for (key, value) in records {
                        extended.sparse |= key.starts_with(b"GNU.sparse.");
                        // Of all members at once neither would make sense.
                        match key {
                            b"path" if kind == b'x' => extended.pax_path = Some(value.to_vec()),
                            b"size" if kind == b'x' => {
                                let size = decimal(value).ok_or(damaged("a pax size is no number"))?;
                                extended.size = Some(size);
                            }
                            _ => {}
                        }
                    }
                }
                b'S' => return Err(ShardError::Sparse { member: shown() }),
                b'M' => return Err(damaged("it is one volume of an archive of several")),
                b'5' => extended = Extended::default(),
                _ if path.ends_with(b"/") => extended = Extended::default(),
                _ if extended.sparse => return Err(ShardError::Sparse { member: shown() }),
                _ => {
                    let is_file = matches!(kind, b'0' | b'7' | 0);
                    let path = String::from_utf8(path).map_err(|error| ShardError::NotUtf8 {
                        member: String::from_utf8_lossy(error.as_bytes()).into_owned(),
                    })?;
                    return Ok(Some(Member { path, start, length, is_file }));
                }
            }
        }
    }

    /// The content of a member, or its first `most` bytes.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn content(&mut self, member: &Member, most: usize) -> Result<&[u8], ShardError> {
        self.bytes(member.start, member.length.min(most as u64) as usize)
    }

    /// The checked header at `at`; none if the archive ends there.
    fn header(&mut self, at: u64) -> Result<Option<[u8; BLOCK as usize]>, ShardError> {
        if at == 0 {
            let beginning = self.bytes(0, self.size.min(6) as usize)?;
            if let Some((_, format)) = COMPRESSED.iter().find(|(magic, _)| beginning.starts_with(magic)) {
                return Err(ShardError::Compressed(*format));
            }
        }
        if at + BLOCK > self.size {
            return Err(ShardError::NoEnd { size: self.size });
        }
        let mut header = [0; BLOCK as usize];
        header.copy_from_slice(self.bytes(at, BLOCK as usize)?);
        if header == [0; BLOCK as usize] {
            self.check_end(at + BLOCK)?;
            return Ok(None);
        }
        // The sum of all bytes, those of the sum itself taken as spaces.
        let sum = header.iter().enumerate().map(|(place, byte)| match place {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        });
        if number(&header[148..156]) != Some(sum.sum::<u64>()) {
            return Err(match at {
                0 => ShardError::NotTar,
                _ => ShardError::Damaged { at, reason: "no header where the next member should begin" },
            });
        }
        Ok(Some(header))
    }

    /// Refuses an archive with anything but zeros from `at` on: members there would be left out.
    fn check_end(&mut self, mut at: u64) -> Result<(), ShardError> {
        while at < self.size {
            let length = (self.size - at).min(WINDOW as u64);
            let rest = self.bytes(at, length as usize)?;
            if let Some(place) = rest.iter().position(|byte| *byte != 0) {
                return Err(ShardError::AfterEnd { at: at + place as u64 });
            }
            at += length;
        }
        Ok(())
    }

    /// The content of the long name or the pax records whose header is at `at`.
    fn record(&mut self, at: u64, start: u64, length: u64) -> Result<&[u8], ShardError> {
        if length > MAX_RECORD {
            return Err(ShardError::Damaged { at, reason: "a long name or pax record is larger than 1 MiB" });
        }
        self.bytes(start, length as usize)
    }

    /// `length` bytes from `at` on, all within the archive.
    fn bytes(&mut self, at: u64, length: usize) -> Result<&[u8], ShardError> {
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + length as u64 > window_end {
            let wanted = (WINDOW as u64).min(self.size - at) as usize;
            self.window.resize(wanted.max(length), 0);
            self.window_at = at;
            self.file.read_exact_at(&mut self.window, at).map_err(ShardError::Read)?;
        }
        let place = (at - self.window_at) as usize;
        Ok(&self.window[place..place + length])
    }
}

/// A member's path as its header has it.
fn name(header: &[u8; BLOCK as usize]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // The GNU format has times where ustar has the beginning of the path.
    match &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number of a header: octal digits with spaces before and spaces or NULs after, none for 0; or, with the highest
/// bit set, GNU's big-endian bytes. None for what is neither, or does not fit, or is negative.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let append = |value: u64, byte: &u8| value.checked_mul(256)?.checked_add(u64::from(*byte));
        return rest.iter().try_fold(u64::from(first & 0x7F), append);
    }
    let field = field.trim_ascii_start();
    let digits = field.iter().take_while(|byte| (b'0'..=b'7').contains(*byte)).count();
    let (digits, rest) = field.split_at(digits);
    let append = |value: u64, digit: &u8| value.checked_mul(8)?.checked_add(u64::from(digit - b'0'));
    rest.iter().all(|byte| matches!(byte, 0 | b' ')).then(|| digits.iter().try_fold(0, append)).flatten()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Keys and values of pax records, each `LENGTH KEY=VALUE\n` with the length of all of it.
fn pax_records(mut rest: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&rest[..space])?).ok()?;
        let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        rest = &rest[length..];
    }
    Some(records)
}
