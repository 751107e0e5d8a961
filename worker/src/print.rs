//! Reports go to standard output.

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
