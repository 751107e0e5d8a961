//! `worker inspect packed`: what is in a packed store, every record of it verified.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use crate::labels::LabelError;
use crate::labels::packed::{Layout, Packed};
use crate::print::print;
use crate::progress::Progress;

/// Damaged maps that are named.
const SHOWN: usize = 5;

/// Arguments of `worker inspect packed`.
#[derive(Debug, Args)]
pub struct PackedArgs {
    /// The packed store, a file of `worker pack`
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command; the report goes to standard output.
///
/// # Errors
/// The file is no store, or any part of it is damaged: the report then comes first.
pub fn run(args: &PackedArgs) -> Result<()> {
    let failed = |why| LabelError::Packed { path: args.file.clone(), why: Box::new(why) };
    let packed = Packed::open(&args.file).map_err(failed)?;
    let progress = Progress::new(packed.len() as u64, "label maps verified");
    let mut damaged = Vec::new();
    let mut names = packed.names();
    let (mut first, mut last) = (None, None);
    for (position, name) in names.by_ref().enumerate() {
        if packed.map(position).is_err() {
            damaged.push(name.clone());
        }
        first.get_or_insert_with(|| name.clone());
        last = Some(name);
        progress.advance(1);
    }
    progress.finish();
    let Layout { precision, k, height, width } = packed.layout();
    let report = if args.json {
        json!({
            "file": args.file.display().to_string(),
            "maps": packed.len(),
            "shape": [2, k, height, width],
            "logits": precision.name(),
            "classes": packed.classes(),
            "bytes": packed.file_len(),
            "checksum": packed.checksum().to_hex().to_string(),
            "first": first,
            "last": last,
            "damaged": damaged,
        })
        .to_string()
    } else {
        let range = match (&first, &last) {
            (Some(first), Some(last)) => format!(", {first} to {last}"),
            _ => String::new(),
        };
        let verified = match damaged.len() {
            0 => "all maps verified".to_owned(),
            n => format!("{n} maps DAMAGED"),
        };
        format!(
            "{}: packed label maps\n  maps      {}{range}\n  each      [2, {k}, {height}, {width}], logits {}, class ids 0 to {}\n  \
             size      {}\n  checksum  {} (BLAKE3 of head and index; {verified})",
            args.file.display(),
            packed.len(),
            precision.name(),
            packed.classes().saturating_sub(1),
            HumanBytes(packed.file_len()),
            packed.checksum()
        )
    };
    print(&report)?;
    if !damaged.is_empty() {
        let more = if damaged.len() > SHOWN { ", ..." } else { "" };
        let shown = damaged[..damaged.len().min(SHOWN)].join(", ");
        bail!(
            "packed label maps {}: {} of {} maps are damaged ({shown}{more}); copy it or pack it again",
            args.file.display(),
            damaged.len(),
            packed.len()
        );
    }
    Ok(())
}
