//! Reports for standard output, and errors in a line.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context, Result};

/// Prints `text` and a line break. A reader that has seen enough, such as `head`, is no failure.
///
/// # Errors
/// Standard output cannot be written to.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// An error in one line: the causes after the words that they explain, but for those that these words tell already.
pub fn one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        told if told.contains(&cause) => line,
        told => format!("{told}: {cause}"),
    })
}
