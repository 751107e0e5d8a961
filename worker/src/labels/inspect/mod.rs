//! `worker inspect label-map`: what is in a label map, what crops of it would teach, and both as a picture.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use relabel_config::Axes;
use serde_json::json;

use super::packed::{Packed, PackedError};
use super::pool::{UnitBox, pool};
use super::{LabelError, LabelMap};
use crate::data::location::Location;
use crate::print::print;

mod canvas;
mod names;
mod packed;
mod picture;
#[cfg(test)]
mod tests;

use names::Classes;
pub use packed::{PackedArgs, run as run_packed};

/// Classes that are shown of a target.
const TOP: usize = 5;

/// Arguments of `worker inspect label-map`.
#[derive(Debug, Args)]
pub struct LabelMapArgs {
    /// The label map: a .pt file, or with --key a packed store
    file: PathBuf,
    /// The map to take out of a packed store
    #[arg(long, value_name = "CLASS/STEM")]
    key: Option<String>,
    /// A crop as x1,y1,x2,y2 in parts of the image's width and height; the whole image if none is given
    #[arg(long, value_name = "X1,Y1,X2,Y2", value_parser = parse_crop, conflicts_with = "crops")]
    crop: Option<UnitBox>,
    /// A file with many crops: a JSON list of [x1, y1, x2, y2]
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    crops: Option<PathBuf>,
    /// How a crop is read into the map; both ways if none is given
    #[arg(long, value_enum)]
    axes: Option<AxesArg>,
    /// Number of classes, or a file that names them: a class index (JSON), or a name a line
    #[arg(long, default_value = "1000", value_name = "N|FILE")]
    classes: String,
    /// Print JSON, with the whole target of each crop
    #[arg(long)]
    json: bool,
    /// The image that the map is of, to draw the map over
    #[arg(long, value_name = "IMG", requires = "out")]
    image: Option<PathBuf>,
    /// Write a picture of the map: each cell in the colour of its best class, the crop, and what it teaches
    #[arg(long, value_name = "PNG")]
    out: Option<PathBuf>,
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

fn axes_name(axes: Axes) -> &'static str {
    match axes {
        Axes::Hw => "hw",
        Axes::Reference => "reference",
    }
}

/// A map and how it is kept, in words.
struct Source {
    map: LabelMap,
    dtype: String,
    format: String,
}

/// What a crop teaches.
struct Target {
    crop: UnitBox,
    axes: Axes,
    /// `[classes]`, sum 1.
    masses: Vec<f32>,
}

impl Target {
    /// The `n` classes with the most mass, most first.
    fn top(&self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.masses.len()).collect();
        order.sort_by(|&a, &b| self.masses[b].total_cmp(&self.masses[a]));
        order.truncate(n);
        order
    }
}

/// Runs the command; the report goes to standard output.
pub fn run(args: &LabelMapArgs) -> Result<()> {
    let crops = match (&args.crop, &args.crops) {
        (Some(crop), _) => vec![*crop],
        (None, Some(file)) => read_crops(file)?,
        (None, None) => vec![UnitBox::FULL],
    };
    let classes = Classes::parse(&args.classes)?;
    let source = read(&args.file, args.key.as_deref(), classes.len())?;
    let axes = match args.axes {
        Some(axes) => vec![axes.into()],
        None => vec![Axes::Hw, Axes::Reference],
    };
    let mut targets = Vec::with_capacity(crops.len() * axes.len());
    for &crop in &crops {
        for &axes in &axes {
            let mut masses = vec![0.0; classes.len() as usize];
            pool(&source.map, crop, axes, &mut masses);
            targets.push(Target { crop, axes, masses });
        }
    }
    if let Some(out) = &args.out {
        let title = args.key.clone().unwrap_or_else(|| args.file.display().to_string());
        let image = args.image.clone().map(Location::File);
        let drawn = picture::draw(&title, &source, &targets, &classes, image.as_ref())?;
        drawn.save(out)?;
    }
    let text = if args.json {
        as_json(&args.file, &source, &targets, &classes)
    } else {
        as_text(&args.file, &source, &targets, &classes, axes.len())
    };
    print(&text)
}

/// What a crop of an image teaches, to be drawn.
pub struct Lesson<'a> {
    pub title: String,
    pub map: LabelMap,
    pub image: &'a Location,
    pub crop: UnitBox,
    /// How the crop is read into the map.
    pub axes: Axes,
    /// `[classes]`, sum 1.
    pub target: Vec<f32>,
    /// Names of the classes, as far as they have names.
    pub classes: &'a [String],
}

/// Draws a lesson as `worker inspect label-map --image --out` does, as a PNG file that has its name only once it is
/// whole.
///
/// # Errors
/// An image that cannot be read, or a file that cannot be written.
pub fn draw_lesson(lesson: &Lesson<'_>, out: &Path) -> Result<()> {
    let classes = Classes::named(lesson.classes, lesson.target.len() as u32);
    let source = Source { map: lesson.map.clone(), dtype: String::new(), format: String::new() };
    let target = Target { crop: lesson.crop, axes: lesson.axes, masses: lesson.target.clone() };
    picture::draw(&lesson.title, &source, &[target], &classes, Some(lesson.image))?.save(out)
}

fn read(file: &Path, key: Option<&str>, classes: u32) -> Result<Source> {
    if let Some(key) = key {
        let failed = |why| LabelError::Packed { path: file.into(), why: Box::new(why) };
        let packed = Packed::open(file).map_err(failed)?;
        if packed.classes() > classes {
            return Err(failed(PackedError::Classes { found: packed.classes(), classes }).into());
        }
        let map = packed.get(key).map_err(failed)?;
        let dtype = packed.layout().precision.name().to_owned();
        return Ok(Source { map, dtype, format: "packed".to_owned() });
    }
    let bytes = std::fs::read(file).map_err(|why| LabelError::Read { path: file.into(), why })?;
    let stored = LabelMap::parse_stored(bytes, Some(classes))
        .map_err(|why| LabelError::Map { path: file.into(), why: Box::new(why) })?;
    let format = format!("{:?}", stored.format).to_lowercase();
    Ok(Source { map: stored.map, dtype: stored.dtype.to_string(), format })
}

fn as_json(file: &Path, source: &Source, targets: &[Target], classes: &Classes) -> String {
    let map = &source.map;
    let crops = targets.iter().map(|target| {
        let UnitBox { x1, y1, x2, y2 } = target.crop;
        let top = target.top(TOP).into_iter().map(
            |class| json!({ "class": class, "name": classes.name(class), "mass": target.masses[class] }),
        );
        json!({
            "crop": [x1, y1, x2, y2],
            "axes": target.axes,
            "top": top.collect::<Vec<_>>(),
            "target": target.masses,
        })
    });
    json!({
        "file": file.display().to_string(),
        "shape": [2, map.k, map.height, map.width],
        "dtype": source.dtype,
        "format": source.format,
        "crops": crops.collect::<Vec<_>>(),
    })
    .to_string()
}

/// The targets of one crop stand side by side, `beside` of them.
fn as_text(file: &Path, source: &Source, targets: &[Target], classes: &Classes, beside: usize) -> String {
    let LabelMap { k, height, width, ref logits, .. } = source.map;
    let (low, high) =
        logits.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let mut lines = vec![
        format!(
            "{}: [2, {k}, {height}, {width}] {} ({}), logits {low:.2} to {high:.2}",
            file.display(),
            source.dtype,
            source.format
        ),
        "Best class of each cell, rows from the top of the image:".to_owned(),
    ];
    for row in 0..height {
        let line = (0..width).map(|column| format!("{:>5}", source.map.best(row, column).0));
        lines.push(line.collect());
    }
    for targets in targets.chunks(beside) {
        let UnitBox { x1, y1, x2, y2 } = targets[0].crop;
        lines.push(format!("crop {x1},{y1},{x2},{y2}"));
        let tops: Vec<_> = targets.iter().map(|target| target.top(TOP)).collect();
        let mut head = String::new();
        for target in targets {
            let _ = write!(head, "  {:<36}", format!("axes {}", axes_name(target.axes)));
        }
        lines.push(head.trim_end().to_owned());
        for place in 0..TOP.min(classes.len() as usize) {
            let mut line = String::new();
            for (target, top) in targets.iter().zip(&tops) {
                let (class, mass) = (top[place], 100.0 * target.masses[top[place]]);
                let _ = write!(line, "  {:<36}", format!("{mass:>5.1}%  {}", classes.label(class, 26)));
            }
            lines.push(line.trim_end().to_owned());
        }
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
