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
    /// Whether the command line is at fault.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Flag { .. })
    }
}
