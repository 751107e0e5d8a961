//! The networks by name.

/// What `model.arch` can name, apart from a TorchScript module. The worker builds these, and a test of its
/// compares the two lists.
pub const ARCHS: &[&str] = &[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "rexnet_100",
    "rexnet_130",
    "rexnet_150",
    "rexnet_200",
    "rexnet_300",
];

/// Parameters of each of [`ARCHS`] with 1000 classes, as published (torchvision's metadata, timm's counts), and the
/// inputs of its classifier.
const SIZES: [(u64, u64); 23] = [
    (11_689_512, 512),
    (21_797_672, 512),
    (25_557_032, 2048),
    (44_549_160, 2048),
    (60_192_808, 2048),
    (68_883_240, 2048),
    (126_886_696, 2048),
    (25_028_904, 2048),
    (88_791_336, 2048),
    (83_455_272, 2048),
    (5_288_548, 1280),
    (7_794_184, 1280),
    (9_109_994, 1408),
    (12_233_232, 1536),
    (19_341_616, 1792),
    (30_389_784, 2048),
    (43_040_704, 2304),
    (66_347_960, 2560),
    (4_796_873, 1280),
    (7_557_091, 1664),
    (9_728_593, 1920),
    (16_366_620, 2560),
    (34_708_792, 3840),
];

/// Number of parameters of a network with `classes` outputs; none of a TorchScript module. A test of the worker's
/// compares them with what it builds.
pub fn parameters(arch: &str, classes: u32) -> Option<u64> {
    let place = ARCHS.iter().position(|known| *known == arch)?;
    let (with_1000, inputs) = SIZES[place];
    // A weight for each input and a bias, for each class.
    Some(with_1000 - 1000 * (inputs + 1) + u64::from(classes) * (inputs + 1))
}

/// What stands before the file of a TorchScript module in `model.arch`.
pub const SCRIPT: &str = "script:";

/// `arch` as a part of a file's name: itself, or `script-` and the module's name without folder and ending.
pub fn file_stem(arch: &str) -> String {
    let Some(file) = arch.strip_prefix(SCRIPT) else { return arch.to_owned() };
    let stem = std::path::Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    format!("script-{stem}")
}

/// `arch` with a module's file by a path that means the same in whatever folder a program runs.
///
/// # Errors
/// The current folder cannot be told.
pub(crate) fn absolute(arch: &str) -> std::io::Result<String> {
    let Some(file) = arch.strip_prefix(SCRIPT).filter(|file| !file.is_empty()) else {
        return Ok(arch.to_owned());
    };
    // It was Unicode, and the current folder's name may not be: then it stays as it is.
    let file = std::path::absolute(file)?;
    Ok(file.to_str().map_or_else(|| arch.to_owned(), |file| format!("{SCRIPT}{file}")))
}

impl crate::Model {
    /// Whether the network is a TorchScript module.
    pub fn is_script(&self) -> bool {
        self.arch.starts_with(SCRIPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_gives_its_files_a_name_without_folders() {
        assert_eq!(file_stem("resnet50"), "resnet50");
        assert_eq!(file_stem("script:/nets/my.net.pt"), "script-my.net");
        assert_eq!(file_stem("script:net"), "script-net");
    }
}
