//! `worker eval`: how good a network is on one or more sets.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::classes::Classes;
use super::corruption::{Baseline, CorruptionErrors, mean_error};
use super::evaluator::{Judges, evaluate};
use super::multi_label::MultiLabel;
use super::network::{Network, NetworkArgs};
use super::real::Real;
use super::report::{CorruptedReport, Report, SetReport, print};
use super::sets::{Corruption, EvalSet, Layout, layout};

/// Arguments of `worker eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Sets: folders of class folders, data sets with val/, or ImageNet-C's; as NAME=DIR to be called so in the table
    #[arg(long = "data", visible_alias = "set", value_name = "[NAME=]DIR", num_args = 1.., required = true)]
    sets: Vec<String>,
    /// ReaL's labels (real.json), for the sets that hold ImageNet's validation images
    #[arg(long, value_name = "FILE")]
    real: Option<PathBuf>,
    /// Multi-label annotations (human_accuracy_v3.0.0.json), for the same sets
    #[arg(long, value_name = "FILE")]
    multi_label: Option<PathBuf>,
    /// Accuracy under the fast gradient sign attack too, with this epsilon in 1/255 (more than one may be given)
    #[arg(long, value_name = "EPS", num_args = 1.., value_parser = epsilon)]
    fgsm: Vec<f64>,
    /// Errors that normalize the mean corruption error: JSON, by corruption [default: AlexNet's, as published]
    #[arg(long, value_name = "FILE")]
    corruption_baseline: Option<PathBuf>,
    /// Let all outputs of the network be answers on a set that has only some of its classes
    #[arg(long)]
    all_outputs: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// In 1/255, as it is usual to say; returned in parts of a pixel's range.
fn epsilon(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(epsilon) if epsilon > 0.0 && epsilon <= 255.0 => Ok(epsilon / 255.0),
        _ => Err("a number of 255ths above 0 and at most 255 is wanted".to_owned()),
    }
}

/// A set as the command line names it, and what stands there.
struct Named {
    name: String,
    dir: PathBuf,
    layout: Layout,
}

impl Named {
    /// Takes `NAME=DIR` apart, unless there is a folder of the whole name.
    fn new(text: &str) -> Result<Self> {
        let (name, dir) = match text.split_once('=').filter(|_| !Path::new(text).is_dir()) {
            Some((name, dir)) if !name.is_empty() => (name.to_owned(), PathBuf::from(dir)),
            _ => {
                let dir = PathBuf::from(text);
                let name = std::path::absolute(&dir).ok();
                let name =
                    name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
                (name.unwrap_or_else(|| text.to_owned()), dir)
            }
        };
        ensure!(dir.is_dir(), "--data {}: there is no such folder", dir.display());
        let layout = layout(&dir)?;
        Ok(Self { name, dir, layout })
    }
}

/// Runs the command; the report goes to standard output.
pub fn run(args: &EvalArgs) -> Result<()> {
    // What is wrong with the folders is found before the weights are read.
    let named = args.sets.iter().map(|text| Named::new(text)).collect::<Result<Vec<_>>>()?;
    let baseline = args.corruption_baseline.as_deref().map(Baseline::read).transpose()?;
    let baseline = baseline.unwrap_or_else(Baseline::alexnet);
    let network = args.network.open()?;
    let outputs = network.model.classes() as usize;
    let known = match &network.classes {
        Some(classes) => Some(classes.clone()),
        None => trained_on(&named, outputs)?,
    };
    let open = |path: &Path| EvalSet::open(path, known.as_ref(), outputs);

    // All sets are indexed before the first is evaluated, for the same reason.
    let mut plain = Vec::new();
    let mut corrupted = Vec::new();
    for Named { name, dir, layout } in named {
        match layout {
            Layout::Plain(path) => plain.push((name, open(&path)?)),
            Layout::Corrupted(corruptions) => corrupted.push((name, dir, indexed(&corruptions, open)?)),
        }
    }
    let judges = judges(args, &plain, known.as_ref())?;

    let mut sets = Vec::new();
    for (name, set) in plain {
        let restricted = set.subset && !args.all_outputs;
        let found = evaluate(&network, &set, restricted, &judges, &name)?;
        let (path, classes) = (set.path.display().to_string(), set.class_ids.len());
        sets.push(SetReport { name, path, classes, outputs: outputs as i64, restricted, found });
    }
    let mut errors = Vec::new();
    for (name, dir, indexed) in corrupted {
        let corruptions = corruption_errors(&network, &indexed, args.all_outputs)?;
        let mean = mean_error(&corruptions, &baseline);
        errors.push(CorruptedReport { name, path: dir.display().to_string(), corruptions, mean });
    }
    let (weights, arch) = (network.origin.clone(), network.model.arch().to_owned());
    let report = Report { weights, arch, sets, corrupted: errors, baseline };
    match args.json {
        true => print(&report.to_json().to_string()),
        false => print(&report.to_text()),
    }
}

/// The training folders beside a set's val/, if they are as many as the outputs: the classes that the network
/// was most likely trained on.
fn trained_on(named: &[Named], outputs: usize) -> Result<Option<Classes>> {
    let train = named.iter().map(|set| set.dir.join("train")).find(|train| train.is_dir());
    let Some(train) = train else { return Ok(None) };
    let classes = Classes::read(&train)?;
    Ok((classes.len() == outputs).then_some(classes))
}

type Severities = Vec<(u32, EvalSet)>;

fn indexed(
    corruptions: &[Corruption],
    open: impl Fn(&Path) -> Result<EvalSet, super::sets::SetError>,
) -> Result<Vec<(String, Severities)>> {
    let severities = |corruption: &Corruption| -> Result<Severities> {
        corruption.severities.iter().map(|(severity, path)| Ok((*severity, open(path)?))).collect()
    };
    corruptions.iter().map(|corruption| Ok((corruption.name.clone(), severities(corruption)?))).collect()
}

fn corruption_errors(
    network: &Network,
    corruptions: &[(String, Severities)],
    all_outputs: bool,
) -> Result<Vec<CorruptionErrors>> {
    let mut all = Vec::new();
    for (name, severities) in corruptions {
        let mut errors = Vec::new();
        for (severity, set) in severities {
            let bar = format!("{name} {severity}");
            let found = evaluate(network, set, set.subset && !all_outputs, &Judges::default(), &bar)?;
            errors.push((*severity, 1.0 - found.counts.top1_share()));
        }
        all.push(CorruptionErrors { name: name.clone(), errors });
    }
    Ok(all)
}

/// Reads the labels that the sets are judged by besides their folders'.
fn judges(args: &EvalArgs, plain: &[(String, EvalSet)], known: Option<&Classes>) -> Result<Judges> {
    let of_imagenet = plain.iter().map(|(_, set)| set).find(|set| set.is_imagenet_val());
    for (flag, file) in [("--real", &args.real), ("--multi-label", &args.multi_label)] {
        if file.is_some() && of_imagenet.is_none() {
            bail!(
                "{flag}: no set holds images of ImageNet's validation set (ILSVRC2012_val_*), which it labels"
            );
        }
    }
    let real = args.real.as_deref().map(Real::read).transpose()?;
    let multi_label = match (&args.multi_label, known, of_imagenet) {
        (Some(file), Some(known), _) => Some(MultiLabel::read(file, known)?),
        // Nothing else is known of the classes than that they are the set's own.
        (Some(file), None, Some(set)) => {
            Some(MultiLabel::read(file, &Classes::from_folders(set.split.classes().to_vec()))?)
        }
        _ => None,
    };
    Ok(Judges { real, multi_label, epsilons: args.fgsm.clone() })
}
