//! `worker doctor`: what this machine has, and what of it a worker can use. Only looks: it computes nothing, and takes
//! no memory on a GPU.

mod host;
mod nvidia_libraries;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Findings, Verdict};
use crate::data::jpeg;
use crate::torch::cuda::{self, Gpu, GpuError};
use crate::torch::{About, about};
use host::{Memory, Processor};
use nvidia_libraries::{Part, Versioned};

/// What was found, or why it was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Found<T> {
    Found(T),
    Missing(String),
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Found<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(found) => Self::Found(found),
            Err(error) => Self::Missing(error.to_string()),
        }
    }
}

/// The driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Driver {
    /// The newest CUDA that it supports.
    cuda: String,
    path: Option<PathBuf>,
    gpus: Vec<Gpu>,
}

fn driver() -> Result<Driver, GpuError> {
    let driver = cuda::Driver::open()?;
    Ok(Driver {
        cuda: driver.version()?.to_string(),
        path: nvidia_libraries::mapped("libcuda"),
        gpus: driver.gpus()?,
    })
}

/// libjpeg-turbo, as it was built in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Jpeg {
    version: Option<&'static str>,
    simd: Option<bool>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Machine {
    worker: &'static str,
    processor: Processor,
    memory: Memory,
    libtorch: Found<About>,
    jpeg: Jpeg,
    driver: Found<Driver>,
    cuda_runtime: Found<Versioned>,
    cudnn: Found<Versioned>,
    nccl: Found<Versioned>,
}

impl Machine {
    /// Looks at this one.
    pub(super) fn look() -> Self {
        let (version, simd) = jpeg::build();
        // First libtorch, by which its folder is found.
        let libtorch = about().into();
        let folders = folders(nvidia_libraries::mapped("libtorch_cpu").as_deref());
        Self {
            worker: relabel_proto::VERSION,
            processor: Processor::look(),
            memory: Memory::look(),
            libtorch,
            jpeg: Jpeg { version, simd },
            driver: driver().into(),
            cuda_runtime: Part::CudaRuntime.version(&folders).into(),
            cudnn: Part::Cudnn.version(&folders).into(),
            nccl: Part::Nccl.version(&folders).into(),
        }
    }

    /// The same in words.
    pub(super) fn findings(&self) -> Findings {
        let mut findings = Findings::default();
        findings.good("worker", self.worker.to_owned());
        self.host(&mut findings);
        match &self.libtorch {
            Found::Found(about) => self.about(&mut findings, about),
            Found::Missing(why) => findings.bad("libtorch", why.clone()),
        }
        let jpeg = format!("libjpeg-turbo {}", self.jpeg.version.unwrap_or("of a version that is not known"));
        match self.jpeg.simd {
            Some(true) => findings.good("JPEG", format!("{jpeg}, with SIMD")),
            Some(false) => findings.odd(
                "JPEG",
                format!(
                    "{jpeg}, without SIMD, and so about three times slower: it was built where no nasm was"
                ),
            ),
            None => findings.good("JPEG", jpeg),
        }
        self.gpus(&mut findings);
        for (what, found) in
            [("CUDA runtime", &self.cuda_runtime), ("cuDNN", &self.cudnn), ("NCCL", &self.nccl)]
        {
            match found {
                Found::Found(library) => {
                    let path = library.path.as_ref().map(|path| format!(", {}", path.display()));
                    findings.good(what, format!("{}{}", library.version, path.unwrap_or_default()));
                }
                Found::Missing(why) => findings.absent(what, why.clone()),
            }
        }
        findings
    }

    fn host(&self, findings: &mut Findings) {
        let processor = &self.processor;
        let cores = match processor.cores == processor.usable_cores {
            true => format!("{} cores", processor.cores),
            false => format!("{} of {} cores", processor.usable_cores, processor.cores),
        };
        let features = match processor.features.is_empty() {
            true => "none of the instructions that make training fast".to_owned(),
            false => processor.features.join(", "),
        };
        let model = processor.model.as_deref().unwrap_or(processor.architecture);
        let words = format!("{model}, {cores}; {features}");
        // On others, libtorch has no such step between slow and fast.
        match processor.architecture == "x86_64" && !(processor.has("AVX2") && processor.has("FMA")) {
            true => findings.odd("processor", format!("{words}: without AVX2 and FMA training is slow")),
            false => findings.good("processor", words),
        }
        let memory = &self.memory;
        let part =
            |bytes: Option<u64>, words: &str| bytes.map(|bytes| format!("{}{words}", gigabytes(bytes)));
        let parts = [
            part(memory.total, ""),
            part(memory.available, " of it free for programs"),
            part(memory.limit, " allowed to this control group"),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => findings.absent("memory", "the system does not tell".to_owned()),
            false => findings.good("memory", parts.join(", ")),
        }
    }

    fn about(&self, findings: &mut Findings, about: &About) {
        let version = about.version.as_deref().unwrap_or("of a version that it does not tell");
        let cuda = match &about.built_for_cuda {
            Some(cuda) => format!("built for CUDA {cuda}"),
            None => "built without CUDA".to_owned(),
        };
        findings.good("libtorch", format!("{version}, its kernels for {}, {cuda}", about.kernels));
        let bf16 = match (about.onednn_bf16, self.processor.computes_in_bf16()) {
            (true, true) => "bf16 by the processor's instructions",
            (true, false) => "bf16, without instructions for it",
            (false, _) => "no bf16 on this processor",
        };
        match &about.onednn {
            Some(onednn) => findings.good("oneDNN", format!("{onednn}, {bf16}")),
            None => findings.odd("oneDNN", "this libtorch has none: convolutions are slow".to_owned()),
        }
    }

    fn gpus(&self, findings: &mut Findings) {
        let driver = match &self.driver {
            Found::Found(driver) => driver,
            Found::Missing(why) => return findings.absent("GPU", format!("none: {why}")),
        };
        let words = format!("NVIDIA's, for CUDA up to {}", driver.cuda);
        let wanted = match &self.libtorch {
            Found::Found(about) => about.built_for_cuda.as_deref(),
            Found::Missing(_) => None,
        };
        match wanted.filter(|wanted| major(wanted) > major(&driver.cuda)) {
            Some(wanted) => {
                findings.odd("driver", format!("{words}: too old for this libtorch, which wants {wanted}"))
            }
            None => findings.good("driver", words),
        }
        if driver.gpus.is_empty() {
            findings.absent("GPU", "none that the driver shows to this process".to_owned());
        }
        for (index, gpu) in driver.gpus.iter().enumerate() {
            let (memory, capability) = (gigabytes(gpu.memory_bytes), &gpu.compute_capability);
            let words = format!("{index}: {}, {memory}, compute capability {capability}", gpu.name);
            findings.good("GPU", words);
        }
    }
}

/// What follows from it, in a sentence.
pub(super) fn conclusion(findings: &Findings) -> &'static str {
    let gpu = findings.0.iter().any(|finding| finding.what == "GPU" && finding.verdict == Verdict::Good);
    match (findings.worst(), gpu) {
        (Verdict::Bad, _) => "Mend what is BAD: nothing can be trained here.\n",
        (_, true) => "A worker trains on the processor, and with --gpu and its number on a GPU.\n",
        (_, false) => "A worker trains on the processor here.\n",
    }
}

/// Where libraries lie that the loader does not find by itself: beside libtorch, and where NVIDIA's packages for Python
/// put them, beside libtorch's.
fn folders(libtorch: Option<&Path>) -> Vec<PathBuf> {
    let Some(lib) = libtorch.and_then(Path::parent) else { return Vec::new() };
    let mut folders = vec![lib.to_owned()];
    let packages = lib.ancestors().nth(2).map(|site| site.join("nvidia"));
    // Mostly there is no such folder.
    let entries =
        packages.and_then(|packages| std::fs::read_dir(packages).ok()).into_iter().flatten().flatten();
    let mut beside: Vec<_> =
        entries.map(|entry| entry.path().join("lib")).filter(|path| path.is_dir()).collect();
    beside.sort();
    folders.append(&mut beside);
    folders
}

/// `13` of `13.0`; 0 where there is no number.
fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
