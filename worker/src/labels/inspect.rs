//! `worker inspect label-map`: what is in a label map, and what crops of it would teach.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use relabel_config::Axes;
use serde_json::json;

use super::pool::{UnitBox, pool};
use super::{LabelError, LabelMap, Stored};

/// Arguments of `worker inspect label-map`.
#[derive(Debug, Args)]
pub struct LabelMapArgs {
    /// The label map, a .pt file
    file: PathBuf,
    /// A crop as x1,y1,x2,y2 in parts of the image's width and height; the whole image if none is given
    #[arg(long, value_name = "X1,Y1,X2,Y2", value_parser = parse_crop, conflicts_with = "crops")]
    crop: Option<UnitBox>,
    /// A file with many crops: a JSON list of [x1, y1, x2, y2]
    #[arg(long, value_name = "FILE")]
    crops: Option<PathBuf>,
    /// How a crop is read into the map; both ways if none is given
    #[arg(long, value_enum)]
    axes: Option<AxesArg>,
    /// Number of classes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    classes: u32,
    /// Print JSON, with the whole target of each crop
    #[arg(long)]
    json: bool,
}

/// As `data.relabel.axes`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum AxesArg {
    Hw,
    Reference,
}

impl From<AxesArg> for Axes {
    fn from(axes: AxesArg) -> Self {
        match axes {
            AxesArg::Hw => Axes::Hw,
            AxesArg::Reference => Axes::Reference,
        }
    }
}

/// Runs the command; the report goes to standard output.
pub fn run(args: &LabelMapArgs) -> Result<()> {
    let crops = match (&args.crop, &args.crops) {
        (Some(crop), _) => vec![*crop],
        (None, Some(file)) => read_crops(file)?,
        (None, None) => vec![UnitBox::FULL],
    };
    let bytes = std::fs::read(&args.file).map_err(|why| LabelError::Read { path: args.file.clone(), why })?;
    let stored = LabelMap::parse_stored(bytes, Some(args.classes))
        .map_err(|why| LabelError::Map { path: args.file.clone(), why: Box::new(why) })?;
    let axes = match args.axes {
        Some(axes) => vec![axes.into()],
        None => vec![Axes::Hw, Axes::Reference],
    };
    let mut targets = Vec::with_capacity(crops.len() * axes.len());
    for &crop in &crops {
        for &axes in &axes {
            let mut target = vec![0.0; args.classes as usize];
            pool(&stored.map, crop, axes, &mut target);
            targets.push((crop, axes, target));
        }
    }
    let text =
        if args.json { as_json(&args.file, &stored, &targets) } else { as_text(args, &stored, &targets) };
    // A reader that has seen enough, such as `head`, is no failure.
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

type Target = (UnitBox, Axes, Vec<f32>);

fn as_json(file: &Path, stored: &Stored, targets: &[Target]) -> String {
    let map = &stored.map;
    let crops = targets.iter().map(|(crop, axes, target)| {
        json!({ "crop": [crop.x1, crop.y1, crop.x2, crop.y2], "axes": axes, "target": target })
    });
    json!({
        "file": file.display().to_string(),
        "shape": [2, map.k, map.height, map.width],
        "dtype": stored.dtype.to_string(),
        "format": format!("{:?}", stored.format).to_lowercase(),
        "crops": crops.collect::<Vec<_>>(),
    })
    .to_string()
}

fn as_text(args: &LabelMapArgs, stored: &Stored, targets: &[Target]) -> String {
    let map = &stored.map;
    let (low, high) =
        map.logits.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let mut lines = vec![
        format!(
            "{}: [2, {}, {}, {}] {} ({:?}), logits {low:.2} to {high:.2}",
            args.file.display(),
            map.k,
            map.height,
            map.width,
            stored.dtype,
            stored.format
        ),
        "Best class of each cell, rows from the top of the image:".to_owned(),
    ];
    let plane = map.height * map.width;
    for row in 0..map.height {
        let line = (0..map.width).map(|column| {
            let cell = row * map.width + column;
            let best = (0..map.k)
                .max_by(|&a, &b| map.logits[a * plane + cell].total_cmp(&map.logits[b * plane + cell]));
            format!("{:>5}", map.classes[best.unwrap_or(0) * plane + cell])
        });
        lines.push(line.collect());
    }
    for (crop, axes, target) in targets {
        let UnitBox { x1, y1, x2, y2 } = crop;
        let mut order: Vec<usize> = (0..target.len()).collect();
        order.sort_by(|&a, &b| target[b].total_cmp(&target[a]));
        let best = order.iter().take(5).map(|&class| format!("{class}: {:.1}%", 100.0 * target[class]));
        let best = best.collect::<Vec<_>>().join("  ");
        let axes = if *axes == Axes::Hw { "hw" } else { "reference" };
        lines.push(format!("crop {x1},{y1},{x2},{y2}, axes {axes}:  {best}"));
    }
    lines.join("\n")
}

fn parse_crop(text: &str) -> Result<UnitBox> {
    let sides: Vec<f32> = text
        .split(',')
        .map(|side| side.trim().parse().with_context(|| format!("{side:?}")))
        .collect::<Result<_>>()?;
    unit_box(&sides)
}

fn read_crops(file: &Path) -> Result<Vec<UnitBox>> {
    let name = || file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(name)?;
    let crops: Vec<Vec<f32>> = serde_json::from_str(&text).with_context(name)?;
    crops.iter().map(|sides| unit_box(sides).with_context(name)).collect()
}

fn unit_box(sides: &[f32]) -> Result<UnitBox> {
    let &[x1, y1, x2, y2] = sides else {
        anyhow::bail!("a crop has {} numbers; wanted x1,y1,x2,y2", sides.len());
    };
    let inside = (0.0..=1.0).contains(&x1) && (0.0..=1.0).contains(&y1) && x2 <= 1.0 && y2 <= 1.0;
    ensure!(inside && x1 < x2 && y1 < y2, "crop {x1},{y1},{x2},{y2}; wanted 0 <= x1 < x2 <= 1, y likewise");
    Ok(UnitBox { x1, y1, x2, y2 })
}
