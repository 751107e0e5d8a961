//! Why a job was not handed in.

/// Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmitError {
    #[error("{flag} {value}: {reason}")]
    Flag { flag: &'static str, value: String, reason: &'static str },
    #[error(
        "cannot run {program} ({source}): hand the job in where it is installed, or take what --dry-run prints there"
    )]
    NoProgram { program: &'static str, source: std::io::Error },
    #[error("{program} refused the job: {said}")]
    Refused { program: &'static str, said: String },
}

impl SubmitError {
    pub(super) fn flag(flag: &'static str, value: &str, reason: &'static str) -> Self {
        Self::Flag { flag, value: value.to_owned(), reason }
    }

    /// What a program has said on its standard error, each line of which may begin with `prefix`.
    pub(super) fn refused(program: &'static str, prefix: &str, stderr: &[u8]) -> Self {
        let said = String::from_utf8_lossy(stderr);
        let lines: Vec<_> = said.lines().map(|line| line.trim_start_matches(prefix)).collect();
        Self::Refused { program, said: lines.join("; ") }
    }

    /// Whether the command line is at fault.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Flag { .. })
    }
}
