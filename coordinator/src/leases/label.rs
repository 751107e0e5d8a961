//! `coordinator label`: label maps of a data set, made by workers that come and go.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use relabel_core::labelling::Labelling;

use super::{Ended, Job, Outcome, check_names};
use crate::cli::LabelArgs;
use crate::progress::Screen;

/// Where local workers' logs go, in the folder of the maps. Hidden, so that it is taken for no class.
const LOCAL: &str = ".label";

/// Runs until every image has its map, or could not be read.
pub(crate) async fn run(args: LabelArgs, screen: Screen) -> Result<ExitCode> {
    let options = args.options.absolute().context("cannot tell the current folder")?;
    check_names(options.paths())?;
    let out = options.out.clone();
    let job = Job {
        work: Labelling::default(),
        batch: options.batch.into(),
        intro: format!("labelling {} into {}", options.data.display(), out.display()),
        options,
    };
    let Outcome { ended, work, took, .. } = super::run(job, &args.lease, &out.join(LOCAL), &screen).await?;
    let mut unreadable = 0;
    for line in work.unreadable() {
        tracing::warn!("{line}");
        unreadable += 1;
    }
    let shown = out.display();
    let ended = ended?;
    match ended {
        Ended::Stopped(_) => screen.line(&format!("stopped; go on in {shown} with the same command")),
        Ended::Done => {
            let total = work.there() + work.made();
            ensure!(
                total > 0,
                "{shown}: no label map was made, as none of {unreadable} images could be read"
            );
            let bad = match unreadable {
                0 => String::new(),
                n => format!("; {n} images could not be read and have none"),
            };
            let made = work.made();
            screen.line(&format!("{shown}: {total} label maps, {made} of them made now in {took:.0?}{bad}"));
        }
    }
    Ok(ended.exit_code())
}
