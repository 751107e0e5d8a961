#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::process::Command;

use super::super::ShardError;
use super::packing::{Tar, header, seal};
use super::tar::{Member, walk};

fn members(bytes: &[u8]) -> Result<Vec<Member>, ShardError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    fs::write(&path, bytes).unwrap();
    let mut members = Vec::new();
    let mut keep = |member: Member, content: &[u8]| {
        assert_eq!(content, &bytes[member.start as usize..][..content.len()]);
        assert_eq!(content.len() as u64, member.length);
        members.push(member);
    };
    walk(&File::open(&path).unwrap(), bytes.len() as u64, |member, content| {
        let mut read = Vec::new();
        content.read_to_end(&mut read).unwrap();
        keep(member, &read);
        Ok(())
    })?;
    Ok(members)
}

/// Paths and contents.
fn files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let content = |member: &Member| bytes[member.start as usize..][..member.length as usize].to_vec();
    members(bytes).unwrap().into_iter().map(|member| (member.path.clone(), content(&member))).collect()
}

/// The real program's archives, of names that a header has room for, that fit with a prefix, and that fit nowhere.
#[test]
fn what_tar_packs_in_any_format_is_found_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let middle = format!("{}/{}", "m".repeat(90), "n".repeat(90));
    let long = format!("{0}/{0}/ü", "l".repeat(200));
    for (format, names) in [
        ("v7", vec!["a/1.jpg"]),
        ("ustar", vec!["a/1.jpg", middle.as_str()]),
        ("gnu", vec!["a/1.jpg", middle.as_str(), long.as_str()]),
        ("pax", vec!["a/1.jpg", middle.as_str(), long.as_str()]),
    ] {
        for (number, name) in names.iter().enumerate() {
            let path = folder.path().join("in").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![number as u8 + 1; 511 + number]).unwrap();
        }
        let out = folder.path().join("out.tar");
        let mut tar = Command::new("tar");
        tar.arg("--create").arg(format!("--format={format}")).arg("--file").arg(&out);
        let status = tar.arg("--directory").arg(folder.path().join("in")).args(&names).status().unwrap();
        assert!(status.success(), "{format}");
        let file = |(number, name): (usize, &&str)| (name.to_string(), vec![number as u8 + 1; 511 + number]);
        let expected: Vec<_> = names.iter().enumerate().map(file).collect();
        assert_eq!(files(&fs::read(&out).unwrap()), expected, "{format}");
    }
}

#[test]
fn records_before_a_member_are_about_that_member_alone() {
    let long = "x".repeat(300);
    let bytes = Tar::new()
        .pax(&[("path", &long), ("mtime", "1.5"), ("comment", "a=b c")])
        .file("short", b"1")
        .file("next", b"22")
        .member(b'L', "././@LongLink", format!("{long}\0").as_bytes())
        .file("short", b"")
        .member(b'g', "global", b"12 path=all\n")
        .member(b'5', "folder", b"")
        .file("folder/", b"")
        .file("last", &[7; 1025])
        .end();
    let expected = [(&*long, vec![b'1']), ("next", vec![b'2'; 2]), (&*long, vec![]), ("last", vec![7; 1025])];
    assert_eq!(files(&bytes), expected.map(|(path, content)| (path.to_owned(), content)));
    // Records whose folder they were about say nothing of what follows.
    let bytes = Tar::new().pax(&[("path", "folder")]).member(b'5', "short", b"").file("a", b"").end();
    assert_eq!(files(&bytes)[0].0, "a");
}

#[test]
fn sizes_are_read_in_all_their_forms() {
    // GNU's bytes.
    let mut large = header(b'0', b"a", 0);
    large[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    seal(&mut large);
    let content = [3; 513];
    let expected = [("a".to_owned(), content.to_vec())];
    assert_eq!(files(&Tar::new().blocks(&large).blocks(&content).end()), expected);
    // A pax record, which goes before the header.
    let zero = header(b'0', b"a", 0);
    let bytes = Tar::new().pax(&[("size", "513")]).blocks(&zero).blocks(&content).end();
    assert_eq!(files(&bytes), expected);
    // Spaces in place of zeros, and of the NUL.
    let mut spaces = header(b'0', b"a", 0);
    spaces[124..136].copy_from_slice(b"       1001 ");
    seal(&mut spaces);
    assert_eq!(files(&Tar::new().blocks(&spaces).blocks(&content).end()), expected);
    for wrong in [b"00000000008\0", b"-0000000001\0", &[0xFF; 12]] {
        let mut header = header(b'0', b"a", 0);
        header[124..136].copy_from_slice(wrong);
        seal(&mut header);
        let error = members(&Tar::new().blocks(&header).end()).unwrap_err();
        assert!(matches!(error, ShardError::Damaged { at: 0, .. }), "{error}");
    }
}

#[test]
fn an_archive_that_ends_too_early_is_refused_wherever_it_ends() {
    let whole = Tar::new().pax(&[("path", "b")]).file("a", &[1; 700]).file("c", b"").end();
    assert_eq!(files(&whole).len(), 2);
    for length in 0..whole.len() - 512 {
        let error = members(&whole[..length]).unwrap_err();
        // A header that is cut, or records without what they are about, the crate refuses.
        let expected = matches!(
            error,
            ShardError::NoEnd { .. } | ShardError::BeyondEnd { .. } | ShardError::Damaged { .. }
        );
        assert!(expected, "{length}: {error}");
    }
    let second = [&whole[..], &whole[..]].concat();
    let at = whole.len() as u64;
    assert!(matches!(members(&second), Err(ShardError::AfterEnd { at: found }) if found == at));
}

#[test]
fn a_damaged_header_is_noticed_whatever_byte_it_is() {
    let whole = Tar::new().file("a", b"content").file("b", b"").end();
    for at in [0, 1024] {
        // What is wrong with the sum itself may leave its value as it was.
        for byte in (0..148).chain(156..512) {
            let mut damaged = whole.clone();
            damaged[at + byte] ^= 0x10;
            let error = members(&damaged).unwrap_err();
            assert!(matches!(error, ShardError::Damaged { at: found, .. } if found == at as u64), "{error}");
        }
    }
}

#[test]
fn what_cannot_be_walked_is_told_apart() {
    let error = |bytes: Vec<u8>| members(&bytes).unwrap_err().to_string();
    let magics: [&[u8]; 4] = [b"\x1F\x8B\x08", b"\x28\xB5\x2F\xFD", b"\xFD7zXZ\0", b"BZh9"];
    for (magic, name) in magics.into_iter().zip(["gzip", "zstd", "xz", "bzip2"]) {
        assert!(error([magic, &[1; 600]].concat()).contains(name), "{name}");
        assert!(error(magic.to_vec()).contains(name), "{name}");
    }
    assert!(error(vec![b'x'; 2000]).contains("not a tar file, from byte 0 on"));
    assert!(error(Vec::new()).contains("truncated"));
    let sparse = Tar::new().pax(&[("GNU.sparse.major", "1")]).file("a.jpg", b"");
    assert!(error(sparse.end()).contains("member a.jpg is sparse"));
    for records in ["3 a=b\n", "x a=b\n", "8 a=b\n", "7 a=bcc", "6 abc\n", "-6 a=b\n"] {
        let bytes = Tar::new().member(b'x', "p", records.as_bytes()).file("a", b"").end();
        assert!(error(bytes).contains("malformed"), "{records:?}");
    }
    let bytes = Tar::new().pax(&[("size", "1099511627776")]).file("a.jpg", b"").end();
    assert!(error(bytes).contains("member a.jpg of 1099511627776 bytes reaches beyond"));
    let latin = header(b'0', b"caf\xE9.jpg", 0);
    assert!(error(Tar::new().blocks(&latin).end()).contains("not a UTF-8 name"));
    let link = members(&Tar::new().member(b'2', "a.jpg", b"").end()).unwrap();
    assert!(!link[0].is_file);
}
