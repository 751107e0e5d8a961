//! What the programs are compiled to need of a processor.

/// Instruction sets that are used without asking where the compiler was told so (`.cargo/config.toml`), by their names in
/// Linux's `/proc/cpuinfo`.
const USED: [(&str, bool); 4] = [
    ("avx2", cfg!(target_feature = "avx2")),
    ("bmi2", cfg!(target_feature = "bmi2")),
    ("f16c", cfg!(target_feature = "f16c")),
    ("fma", cfg!(target_feature = "fma")),
];

/// One line if this program cannot run on the processor that `cpuinfo`, the content of `/proc/cpuinfo`, describes.
pub fn unfit_processor(cpuinfo: &str) -> Option<String> {
    let flags =
        cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'))?;
    let there: Vec<&str> = flags.split_whitespace().collect();
    let missing: Vec<&str> =
        USED.iter().filter(|(name, used)| *used && !there.contains(name)).map(|(name, _)| *name).collect();
    let names = missing.join(", ");
    (!missing.is_empty()).then(|| {
        format!(
            "this program is built for processors since 2013 and this one lacks {names}: build it again with \
             RUSTFLAGS=\"\" in the environment"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_what_is_used_is_told_so() {
        let all = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 bmi1 bmi2 f16c fma\n";
        assert_eq!(unfit_processor(all), None);
        assert_eq!(unfit_processor(""), None);
        let old = unfit_processor("flags\t\t: fpu sse2 avx bmi1 f16c\n");
        assert_eq!(old.is_some(), cfg!(target_feature = "avx2"));
        assert!(old.is_none_or(|line| line.contains("lacks avx2, bmi2, fma:")));
    }
}
