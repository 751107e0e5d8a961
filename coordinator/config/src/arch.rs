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
