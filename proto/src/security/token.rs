//! Tokens: the shared secrets by which a coordinator tells workers and operators from strangers.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use super::SecurityError;

/// Characters of a token: few enough for a header, too many to be guessed.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=256;

/// Where one role's token is given.
#[derive(Debug)]
pub struct TokenSource {
    /// The flag that names a file with it.
    pub flag: &'static str,
    /// The environment variable that holds it.
    pub variable: &'static str,
}

/// The token that workers show.
pub const JOIN_TOKEN: TokenSource = TokenSource { flag: "--join-token-file", variable: "RELABEL_JOIN_TOKEN" };

/// The token that the operator's commands show.
pub const ADMIN_TOKEN: TokenSource =
    TokenSource { flag: "--admin-token-file", variable: "RELABEL_ADMIN_TOKEN" };

/// A shared secret: 16 to 256 visible ASCII characters. It can be shown to a coordinator and handed to a child, and
/// appears in nothing else that is written.
#[derive(Clone)]
pub struct AccessToken {
    text: String,
    header: MetadataValue<Ascii>,
}

impl AccessToken {
    /// The token in `file`, else the one in the source's variable, else none.
    ///
    /// # Errors
    /// A file that cannot be read, and a text that is no token.
    pub fn find(source: &TokenSource, file: Option<&Path>) -> Result<Option<Self>, SecurityError> {
        let TokenSource { flag, variable } = source;
        if let Some(path) = file {
            let mut text = String::new();
            // More than a token and a line's end can have, and less than a device may give.
            let limit = 2 * *LENGTH.end() as u64;
            let read = std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
            return match read {
                Ok(_) => Self::new(&text, || format!("{flag} {}", path.display())).map(Some),
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    Self::new("", || format!("{flag} {}", path.display())).map(Some)
                }
                Err(source) => Err(SecurityError::Read { flag, path: path.into(), source }),
            };
        }
        match std::env::var_os(variable).filter(|value| !value.is_empty()) {
            Some(value) => Self::new(&value.to_string_lossy(), || (*variable).to_owned()).map(Some),
            None => Ok(None),
        }
    }

    /// A token of 256 random bits.
    ///
    /// # Errors
    /// The system has none.
    pub fn random() -> Result<Self, SecurityError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(SecurityError::Random)?;
        Self::new(&blake3::Hash::from(bytes).to_hex(), || "a random token".into())
    }

    /// The token in `text`, space around it left off. `origin` is where the text was found.
    ///
    /// # Errors
    /// A text that is too short, too long, or cannot stand in a header.
    pub fn new(text: &str, origin: impl FnOnce() -> String) -> Result<Self, SecurityError> {
        let text = text.trim();
        let fault = match text {
            "" => Some("it is empty or no text"),
            _ if !text.chars().all(|c| c.is_ascii_graphic()) => {
                Some("it has to be one word of visible ASCII characters")
            }
            _ if text.len() < *LENGTH.start() => Some("it is shorter than 16 characters"),
            _ if text.len() > *LENGTH.end() => Some("it is longer than 256 characters"),
            _ => None,
        };
        let header = MetadataValue::try_from(format!("Bearer {text}"));
        match (fault, header) {
            (None, Ok(mut header)) => {
                // So that it is neither printed nor kept by the compression of headers.
                header.set_sensitive(true);
                Ok(Self { text: text.into(), header })
            }
            (fault, _) => Err(SecurityError::Token {
                origin: origin(),
                reason: fault.unwrap_or("it cannot stand in a header"),
            }),
        }
    }

    /// For the environment of a child; not to be written anywhere.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The header `authorization`.
    pub fn bearer(&self) -> MetadataValue<Ascii> {
        self.header.clone()
    }

    /// Whether `shown` is this token, in a time that does not depend on how much of it is right.
    pub fn is(&self, shown: &str) -> bool {
        // blake3::Hash compares in constant time, and what is hashed is not this secret alone to choose.
        blake3::hash(self.text.as_bytes()) == blake3::hash(shown.as_bytes())
    }

    /// What the caller has shown in the header `authorization`, if it has shown anything.
    pub fn shown(metadata: &MetadataMap) -> Option<&str> {
        let (scheme, token) = metadata.get("authorization")?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(..)")
    }
}
