//! Text that a peer has sent: names that are checked, words that are made fit for a log.
//!
//! What names something (a host, a file, an address) is refused where it cannot be right. What a person is to read (a
//! reason) is cut and cleaned instead: it may come from a library, and losing it would lose what went wrong.

use std::path::{Component, Path};

use crate::Invalid;

/// Longest that a sentence gets, in characters.
const SENTENCE: usize = 2000;
/// Longest file name, in bytes: what is written beside a file adds to its name, and systems take 255.
const FILE_NAME: usize = 200;
/// Longest path, in bytes, as systems have it.
const PATH: usize = 4096;
/// Longest host name, in bytes, as DNS has it.
const HOST: usize = 255;
/// Longest name for people, in bytes: a run's is a folder's name and more.
const NAME: usize = 300;

/// A peer's words in one line of bounded length, without anything that a terminal or a reader of logs would take for
/// more than words.
pub fn sentence(words: &str) -> String {
    let mut line = String::new();
    let mut shown = words.chars().map(|c| if is_plain(c) { c } else { ' ' }).skip_while(|c| *c == ' ');
    for c in shown.by_ref().take(SENTENCE) {
        // A line's end with its indentation counts as one space.
        if c != ' ' || !line.ends_with(' ') {
            line.push(c);
        }
    }
    line.truncate(line.trim_end().len());
    if shown.next().is_some() {
        line.push('…');
    }
    line
}

/// Neither a control character nor one that reorders or hides others.
fn is_plain(c: char) -> bool {
    let unseen = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !unseen
}

/// A value that cannot be, shown so that it does no harm where it is printed.
pub(crate) fn out_of_range(field: &'static str, value: &str) -> Invalid {
    const SHOWN: usize = 80;
    let mut shown: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    Invalid::Range { field, value: format!("`{shown}`") }
}

fn checked(value: String, field: &'static str, right: impl FnOnce(&str) -> bool) -> Result<String, Invalid> {
    if right(&value) { Ok(value) } else { Err(out_of_range(field, &value)) }
}

/// The name of a host, a device or a run, for people: 1 to 300 bytes, all of them to be seen.
pub(crate) fn name(value: String, field: &'static str) -> Result<String, Invalid> {
    checked(value, field, |name| (1..=NAME).contains(&name.len()) && name.chars().all(is_plain))
}

/// A hash or a version: at most 128 visible ASCII characters, perhaps none.
pub(crate) fn word(value: String, field: &'static str) -> Result<String, Invalid> {
    checked(value, field, |word| word.len() <= 128 && word.bytes().all(|b| b.is_ascii_graphic()))
}

/// A name within a folder: what a peer sends must not reach outside of it, nor name what is hidden there.
pub(crate) fn file_name(value: String) -> Result<String, Invalid> {
    checked(value, "file", |name| {
        let mut components = Path::new(name).components();
        let single =
            components.next() == Some(Component::Normal(name.as_ref())) && components.next().is_none();
        single && !name.starts_with('.') && name.len() <= FILE_NAME && name.chars().all(is_plain)
    })
}

/// A folder on the worker's host, which is in another folder than the coordinator: absolute. Which one it is, is the
/// coordinator's to say.
pub(crate) fn folder(value: String, field: &'static str) -> Result<String, Invalid> {
    checked(value, field, |folder| {
        Path::new(folder).is_absolute() && folder.len() <= PATH && folder.chars().all(is_plain)
    })
}

/// A network's name, which may be `script:` and a path: 1 to 4096 bytes, all of them to be seen.
pub(crate) fn arch(value: String, field: &'static str) -> Result<String, Invalid> {
    checked(value, field, |arch| (1..=PATH).contains(&arch.len()) && arch.chars().all(is_plain))
}

/// Where something is in a folder: a path that does not lead out of it, empty for the folder itself.
pub(crate) fn below(value: String, field: &'static str) -> Result<String, Invalid> {
    checked(value, field, |path| {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        inside && path.len() <= PATH && path.chars().all(is_plain)
    })
}

/// `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn address(value: String, field: &'static str) -> Result<String, Invalid> {
    checked(value, field, |address| {
        let Some((host, port)) = address.rsplit_once(':') else { return false };
        let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            // A link-local address has a zone.
            Some(v6) => {
                let (v6, zone) = v6.split_once('%').unwrap_or((v6, ""));
                v6.parse::<std::net::Ipv6Addr>().is_ok() && zone.bytes().all(|b| b.is_ascii_alphanumeric())
            }
            None => host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
        };
        let is_port =
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        (1..=HOST).contains(&host.len()) && address.is_ascii() && is_host && is_port
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_peers_words_stay_in_their_line() {
        assert_eq!(sentence("all is well"), "all is well");
        assert_eq!(sentence("one\n    two\r\n\tthree\n"), "one two three");
        assert_eq!(sentence("\u{1b}[2J\u{1b}[31mred\u{7}\u{9b}1m"), "[2J [31mred 1m");
        assert_eq!(sentence("a\u{202e}b\u{2066}c\u{200b}d"), "a b c d");
        assert_eq!(sentence("größer 图"), "größer 图", "other scripts are words too");
        let long = sentence(&"wort ".repeat(1000));
        assert!(long.chars().count() <= SENTENCE + 1 && long.ends_with('…'), "{}", long.len());
        assert_eq!(sentence(&"\n".repeat(1_000_000)), "");
    }

    #[test]
    fn a_file_name_stays_in_its_folder() {
        for good in
            ["resnet18-e0003-s000000.safetensors", "script-mein netz-e0001.safetensors", "a..b", "..."]
        {
            let plain = !good.starts_with('.');
            assert_eq!(file_name(good.into()).is_ok(), plain, "{good}");
        }
        let long = "a".repeat(FILE_NAME + 1);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "x/../y",
            "/etc/passwd",
            "a/b",
            "a/",
            "./a",
            ".hidden",
            "nul\0byte",
            "new\nline",
            "\u{1b}[0m",
            "up\u{202e}side",
            &long,
        ] {
            let error = file_name(bad.into()).unwrap_err().to_string();
            assert!(error.starts_with("file is ") && !error.contains(char::is_control), "{bad:?}: {error:?}");
        }
        assert!(file_name("a".repeat(FILE_NAME)).is_ok());
    }

    #[test]
    fn a_folder_is_absolute() {
        for good in ["/", "/shared/run", "/home/me/../läufe/0001-resnet50"] {
            assert!(folder(good.into(), "run_dir").is_ok(), "{good}");
        }
        for bad in ["", "run", "./run", "../run", "/run\0", "/run\nline", &format!("/{}", "a".repeat(PATH))] {
            assert!(folder(bad.into(), "run_dir").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_below_a_folder_does_not_lead_out_of_it() {
        for good in ["", "val", "fog/1", "größer/..."] {
            assert!(below(good.into(), "below").is_ok(), "{good}");
        }
        for bad in ["/val", "..", "../val", "val/../../etc", "./val", "val\0", "a\nb", &"a".repeat(PATH + 1)]
        {
            assert!(below(bad.into(), "below").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in
            ["h:1", "node-1.cluster.local:65535", "10.0.0.1:4747", "[::1]:80", "[fe80::1%eth0]:80", "a_b:2"]
        {
            assert!(address(good.into(), "ring_address").is_ok(), "{good}");
        }
        let long = format!("{}:1", "h".repeat(HOST + 1));
        for bad in [
            "",
            "h",
            "h:",
            ":1",
            "h:0",
            "h:65536",
            "h:+1",
            "h:-1",
            "h:1x",
            "::1:80",
            "[::1]",
            "[x]:1",
            "a b:1",
            "h\n:1",
            "a/b:1",
            "user@h:1",
            "[fe80::1%\u{1b}]:80",
            &long,
        ] {
            assert!(address(bad.into(), "ring_address").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_and_words_are_bounded() {
        assert!(name("host-7".into(), "host").is_ok() && name("ein Rechner".into(), "host").is_ok());
        for bad in [String::new(), "a\nb".into(), "\u{1b}c".into(), "h".repeat(NAME + 1)] {
            assert!(name(bad.clone(), "host").is_err(), "{bad:?}");
        }
        assert!(arch("script:/netze/ein netz.pt".into(), "arch").is_ok());
        for bad in [String::new(), "a\u{202e}b".into(), "a".repeat(PATH + 1)] {
            assert!(arch(bad.clone(), "arch").is_err(), "{bad:?}");
        }
        assert!(word("0123abcdef".into(), "blake3").is_ok() && word(String::new(), "blake3").is_ok());
        for bad in ["a b".into(), "é".into(), "\n".into(), "f".repeat(129)] {
            assert!(word(bad.clone(), "blake3").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_is_shown_without_harm() {
        let error = out_of_range("file", &format!("\u{1b}[2J\n{}", "x".repeat(500))).to_string();
        assert!(error.starts_with("file is `\\u{1b}[2J\\nxxx"), "{error}");
        assert!(error.ends_with("x…`, which is out of range") && error.len() < 200, "{error}");
    }
}
