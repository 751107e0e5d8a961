//! Processor and memory, as Linux tells of them in files.

use std::path::Path;

use serde::Serialize;

/// What makes a difference to training, by the kernel's name for it and by its own.
const FEATURES: [(&str, &str); 11] = [
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("f16c", "F16C"),
    ("avx512f", "AVX-512"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512_bf16", "AVX-512 bf16"),
    ("amx_bf16", "AMX bf16"),
    ("asimd", "NEON"),
    ("sve", "SVE"),
    ("bf16", "bf16"),
    ("i8mm", "I8MM"),
];

/// Those that compute in bf16.
const BF16: [&str; 3] = ["AVX-512 bf16", "AMX bf16", "bf16"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Processor {
    /// None where the kernel does not name it.
    pub model: Option<String>,
    pub architecture: &'static str,
    /// Logical ones that are switched on.
    pub cores: usize,
    /// Those that this process may use, by its affinity and its share.
    pub usable_cores: usize,
    pub features: Vec<&'static str>,
}

impl Processor {
    pub fn look() -> Self {
        // Where there is no such file, nothing is known of it.
        Self::read(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// Reads a `/proc/cpuinfo`: a paragraph a core, `key : value` a line.
    fn read(cpuinfo: &str) -> Self {
        let value = |names: [&str; 2]| {
            let mut pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            pairs.find(|(key, _)| names.contains(&key.trim())).map(|(_, value)| value.trim().to_owned())
        };
        let known = value(["flags", "Features"]).unwrap_or_default();
        let has = |name: &str| known.split_whitespace().any(|flag| flag == name);
        let cores = cpuinfo
            .lines()
            .filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor"));
        let usable_cores = crate::torch::threads(None);
        Self {
            model: value(["model name", "Model"]),
            architecture: std::env::consts::ARCH,
            cores: cores.count().max(usable_cores),
            usable_cores,
            features: FEATURES.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name).collect(),
        }
    }

    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(&feature)
    }

    /// Whether it has instructions for bf16.
    pub fn computes_in_bf16(&self) -> bool {
        BF16.iter().any(|name| self.has(name))
    }
}

/// In bytes; none where it cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub total: Option<u64>,
    /// That programs can have without swapping.
    pub available: Option<u64>,
    /// The least that this process's control groups allow all of their processes together.
    pub limit: Option<u64>,
}

impl Memory {
    pub fn look() -> Self {
        // Where there is no such file, nothing is known of it.
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::read(&read("/proc/meminfo"), &read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
    }

    fn read(meminfo: &str, cgroups: &str, root: &Path) -> Self {
        let field = |name: &str| {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(1024 * rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
        };
        let total = field("MemTotal");
        // Without a limit, version 1 has a number that is larger than any memory.
        let limit = limit(cgroups, root).filter(|limit| total.is_none_or(|total| *limit < total));
        Self { total, available: field("MemAvailable"), limit }
    }
}

/// The least limit of the groups that a process is in, which its `/proc/self/cgroup` names as
/// `hierarchy:controllers:path`, and of those around them. Version 2 has one hierarchy, without controllers.
fn limit(cgroups: &str, root: &Path) -> Option<u64> {
    let groups = cgroups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = Path::new(path.trim_start_matches('/'));
        match controllers {
            "" => Some((root.to_owned(), path, "memory.max")),
            _ if controllers.split(',').any(|one| one == "memory") => {
                Some((root.join("memory"), path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    let limits = groups.flat_map(|(root, path, file)| {
        path.ancestors().filter_map(move |group| {
            std::fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse::<u64>().ok()
        })
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_processor_is_read_as_the_kernel_writes_it() {
        let amd = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx2 fma avx512f avx512_bf16\n\n\
                   processor\t: 1\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx2\n";
        let read = Processor::read(amd);
        assert_eq!(read.model.as_deref(), Some("AMD EPYC 9B14"));
        assert!(read.cores >= 2 && read.cores >= read.usable_cores);
        assert_eq!(read.features, ["AVX2", "FMA", "AVX-512", "AVX-512 bf16"]);
        assert!(
            read.computes_in_bf16() && !Processor::read("flags : avx2 bf16x avx512_bf\n").computes_in_bf16()
        );
        let arm =
            "processor\t: 0\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd sve bf16 i8mm\nCPU part\t: 0xd4f\n";
        assert_eq!(Processor::read(arm).features, ["NEON", "SVE", "bf16", "I8MM"]);
        assert_eq!(Processor::read(arm).model, None);
        let nothing = Processor::read("");
        assert!(nothing.features.is_empty() && nothing.cores == nothing.usable_cores);
    }

    #[test]
    fn memory_is_bounded_by_the_groups_around() {
        const MEMINFO: &str =
            "MemTotal:       24684084 kB\nMemFree:        16800148 kB\nMemAvailable:   22484144 kB\n";
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let read = |cgroups: &str| Memory::read(MEMINFO, cgroups, dir.path());
        let free = Memory { total: Some(24684084 << 10), available: Some(22484144 << 10), limit: None };
        assert_eq!(read("0::/\n"), free);
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "4294967296\n");
        assert_eq!(read("0::/a/b\n").limit, Some(4 << 30));
        assert_eq!(read("0::/c\n").limit, None);
        write("memory/job/memory.limit_in_bytes", "1073741824\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(read("5:cpu,memory:/job\n0::/\n").limit, Some(1 << 30));
        assert_eq!(read("5:memory:/\n").limit, None, "more than there is");
        let unknown = Memory { total: None, available: None, limit: None };
        assert_eq!(Memory::read("MemTotal: many\n", "garbage\n::\n", dir.path()), unknown);
    }
}
