//! A label map drawn for people: the image, and the map over it in both readings of its axes, so that the eye
//! tells which one fits.
//!
//! The reference hands (y1, x1, y2, x2) of the crop to a pooling that reads (x1, y1, x2, y2). That is the same as
//! pooling the true crop out of the transposed map, so the transposed map is what its panel shows.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use image::imageops::{FilterType, resize};
use relabel_config::Axes;

use super::canvas::{Area, Canvas, Face, Rgb, mix};
use super::names::{Classes, shorten};
use super::{Source, Target};
use crate::data::decode::{Decoder, RgbImage};
use crate::data::location::Location;
use crate::labels::LabelMap;
use crate::labels::pool::UnitBox;

/// Longest side of a panel in pixels, margins, and the height of a line of the legend.
const PANEL: u32 = 480;
const MARGIN: u32 = 24;
const LINE: u32 = 22;
/// Where panels begin, under the title.
const TOP: u32 = 112;
/// Lines of a legend.
const ROWS: usize = 7;

const WHITE: Rgb = [255; 3];
const INK: Rgb = [28, 30, 34];
const FAINT: Rgb = [110, 114, 122];
const TRACK: Rgb = [228, 230, 234];
const OTHER: Rgb = [128; 3];
/// Colours that stay apart over photographs; the classes with the most cells get the first ones.
const COLOURS: [Rgb; 10] = [
    [230, 25, 75],
    [0, 130, 200],
    [255, 200, 20],
    [60, 180, 75],
    [240, 50, 230],
    [245, 130, 49],
    [70, 220, 240],
    [145, 30, 180],
    [150, 90, 40],
    [0, 128, 128],
];

/// Draws the map of `source`: first the image, if there is one, with the crop, then a panel for each target.
///
/// # Errors
/// An image that cannot be read.
pub(super) fn draw(
    title: &str,
    source: &Source,
    targets: &[Target],
    classes: &Classes,
    image: Option<&Location>,
) -> Result<Canvas> {
    let photo = image.map(read).transpose()?;
    let (width, height) = photo.as_ref().map_or((PANEL, PANEL), |photo| photo.dimensions());
    let crop = targets[0].crop;
    let panels = targets.len() as u32 + 1;
    let canvas_width = MARGIN + panels * (PANEL.max(width) + MARGIN);
    let canvas_height = TOP + height + MARGIN + (ROWS as u32 + 1) * LINE + MARGIN;
    let mut canvas = Canvas::new(canvas_width, canvas_height, WHITE);
    let map = &source.map;
    let cells = Cells::of(map);
    let colours = cells.colours();

    let fits = ((canvas_width - 2 * MARGIN) / Face::Title.advance()) as usize;
    canvas.text(MARGIN, MARGIN, Face::Title, INK, &shorten(title, fits));
    let UnitBox { x1, y1, x2, y2 } = crop;
    let stored = match source.dtype.as_str() {
        "" => String::new(),
        dtype => format!(" {dtype} ({})", source.format),
    };
    let shape = format!("[2, {}, {}, {}]{stored}", map.k, map.height, map.width);
    // Given by a person it is short as it is.
    let short = |side: f32| (1e3 * side).round() / 1e3;
    let line = format!("{shape}    crop {},{},{},{}", short(x1), short(y1), short(x2), short(y2));
    canvas.text(MARGIN, MARGIN + 26, Face::Text, FAINT, &line);

    let mut area = Area { x: MARGIN, y: TOP, width, height };
    let heading = if photo.is_some() { "the image and the crop" } else { "no --image was given" };
    canvas.text(area.x, TOP - 24, Face::Bold, INK, heading);
    paste(&mut canvas, area, |x, y| photo.as_ref().map_or(TRACK, |photo| photo.get_pixel(x, y).0));
    draw_crop(&mut canvas, area, crop);
    legend_of_cells(&mut canvas, area, &cells, &colours, classes);
    for target in targets {
        area.x += PANEL.max(width) + MARGIN;
        let (heading, cells) = match target.axes {
            Axes::Hw => ("axes hw: rows are height", Cells::of(map)),
            Axes::Reference => ("axes reference: transposed", Cells::of(map).transposed()),
        };
        canvas.text(area.x, TOP - 24, Face::Bold, INK, heading);
        // In grey, so that every colour is a class.
        let grey = |x, y| match &photo {
            Some(photo) => {
                let [r, g, b] = photo.get_pixel(x, y).0.map(f32::from);
                mix([(0.3 * r + 0.59 * g + 0.11 * b) as u8; 3], WHITE, 0.25)
            }
            None => WHITE,
        };
        paste(&mut canvas, area, grey);
        draw_cells(&mut canvas, area, &cells, &colours);
        dim_outside(&mut canvas, area, crop);
        draw_crop(&mut canvas, area, crop);
        name_regions(&mut canvas, area, &cells, classes);
        legend_of_target(&mut canvas, area, target, &colours, classes);
    }
    Ok(canvas)
}

/// The image, its longer side `PANEL` pixels.
fn read(location: &Location) -> Result<image::RgbImage> {
    let shown = || location.to_string();
    let mut image = RgbImage::default();
    Decoder::new().decode_file(location, &mut image).with_context(shown)?;
    let (width, height) = (image.size.width, image.size.height);
    let image = image::RgbImage::from_raw(width, height, image.pixels).with_context(shown)?;
    let scale = f64::from(PANEL) / f64::from(width.max(height));
    let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    Ok(resize(&image, scaled(width), scaled(height), FilterType::CatmullRom))
}

/// Best class of each cell of a grid, and how sure it is.
struct Cells {
    height: usize,
    width: usize,
    /// Row by row: class, and its share of a softmax over the cell's `k` classes, 0 to 1.
    best: Vec<(u32, f32)>,
}

impl Cells {
    fn of(map: &LabelMap) -> Self {
        let best = (0..map.height * map.width).map(|cell| map.best(cell / map.width, cell % map.width));
        Self { height: map.height, width: map.width, best: best.collect() }
    }

    fn transposed(&self) -> Self {
        let best = (0..self.best.len()).map(|i| self.best[i % self.height * self.width + i / self.height]);
        Self { height: self.width, width: self.height, best: best.collect() }
    }

    /// Classes by their number of cells, most first.
    fn counts(&self) -> Vec<(u32, usize)> {
        let mut counts = BTreeMap::new();
        for (class, _) in &self.best {
            *counts.entry(*class).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(class, cells)| (std::cmp::Reverse(cells), class));
        counts
    }

    fn colours(&self) -> BTreeMap<u32, Rgb> {
        self.counts().into_iter().zip(COLOURS).map(|((class, _), colour)| (class, colour)).collect()
    }

    /// The pixels of a cell within `area`.
    fn area(&self, area: Area, row: usize, column: usize) -> Area {
        let span = |from: u32, length: u32, i: usize, n: usize| {
            let edge = |i: usize| (u64::from(length) * i as u64 / n as u64) as u32;
            (from + edge(i), edge(i + 1) - edge(i))
        };
        let (x, width) = span(area.x, area.width, column, self.width);
        let (y, height) = span(area.y, area.height, row, self.height);
        Area { x, y, width, height }
    }

    /// Cells of one class that hang together, of at least `least` cells: the class and one of them in the middle.
    fn regions(&self, least: usize) -> Vec<(u32, usize, usize)> {
        let mut seen = vec![false; self.best.len()];
        let mut regions = Vec::new();
        for start in 0..self.best.len() {
            let class = self.best[start].0;
            let (mut region, mut next) = (Vec::new(), vec![start]);
            while let Some(cell) = next.pop() {
                if seen[cell] || self.best[cell].0 != class {
                    continue;
                }
                seen[cell] = true;
                let (row, column) = (cell / self.width, cell % self.width);
                region.push((row as f32, column as f32));
                next.extend((row > 0).then(|| cell - self.width));
                next.extend((row + 1 < self.height).then_some(cell + self.width));
                next.extend((column > 0).then(|| cell - 1));
                next.extend((column + 1 < self.width).then_some(cell + 1));
            }
            if region.len() < least.max(1) {
                continue;
            }
            let n = region.len() as f32;
            let (row, column) =
                region.iter().fold((0.0, 0.0), |(r, c), cell| (r + cell.0 / n, c + cell.1 / n));
            let distance = |cell: &(f32, f32)| (cell.0 - row).powi(2) + (cell.1 - column).powi(2);
            let middle = region.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
            regions.extend(middle.map(|&(row, column)| (class, row as usize, column as usize)));
        }
        regions
    }
}

fn paste(canvas: &mut Canvas, area: Area, pixel: impl Fn(u32, u32) -> Rgb) {
    for y in 0..area.height {
        for x in 0..area.width {
            canvas.set(area.x + x, area.y + y, pixel(x, y));
        }
    }
}

/// The surer a cell, the fuller its colour; a line where the class changes.
fn draw_cells(canvas: &mut Canvas, area: Area, cells: &Cells, colours: &BTreeMap<u32, Rgb>) {
    let class = |row: usize, column: usize| cells.best[row * cells.width + column].0;
    for row in 0..cells.height {
        for column in 0..cells.width {
            let cell = cells.area(area, row, column);
            let (best, sure) = cells.best[row * cells.width + column];
            canvas.fill(cell, colours.get(&best).copied().unwrap_or(OTHER), 0.12 + 0.5 * sure);
            if column > 0 && class(row, column - 1) != best {
                canvas.fill(Area { width: 1, ..cell }, INK, 0.8);
            }
            if row > 0 && class(row - 1, column) != best {
                canvas.fill(Area { height: 1, ..cell }, INK, 0.8);
            }
        }
    }
}

fn crop_area(area: Area, crop: UnitBox) -> Area {
    let at = |part: f32, length: u32| (part * length as f32).round() as u32;
    let (x1, x2) = (at(crop.x1, area.width), at(crop.x2, area.width));
    let (y1, y2) = (at(crop.y1, area.height), at(crop.y2, area.height));
    Area { x: area.x + x1, y: area.y + y1, width: (x2 - x1).max(1), height: (y2 - y1).max(1) }
}

fn draw_crop(canvas: &mut Canvas, area: Area, crop: UnitBox) {
    let frame = crop_area(area, crop);
    canvas.outline(frame, 4, INK);
    let Area { x, y, width, height } = frame;
    if width > 4 && height > 4 {
        canvas.outline(Area { x: x + 1, y: y + 1, width: width - 2, height: height - 2 }, 2, WHITE);
    }
}

fn dim_outside(canvas: &mut Canvas, area: Area, crop: UnitBox) {
    let inside = crop_area(area, crop);
    let (right, bottom) = (inside.x + inside.width, inside.y + inside.height);
    for part in [
        Area { height: inside.y - area.y, ..area },
        Area { y: bottom, height: (area.y + area.height).saturating_sub(bottom), ..area },
        Area { y: inside.y, height: inside.height, width: inside.x - area.x, ..area },
        Area {
            x: right,
            y: inside.y,
            width: (area.x + area.width).saturating_sub(right),
            height: inside.height,
        },
    ] {
        canvas.fill(part, WHITE, 0.5);
    }
}

/// The name of each large region in its middle.
fn name_regions(canvas: &mut Canvas, area: Area, cells: &Cells, classes: &Classes) {
    let least = (cells.best.len() / 40).max(3);
    for (class, row, column) in cells.regions(least) {
        let name = classes.name(class as usize).unwrap_or_else(|| class.to_string());
        let name = shorten(&name, 14);
        let cell = cells.area(area, row, column);
        let width = name.chars().count() as u32 * Face::Bold.advance();
        let right = area.x + area.width;
        let x = (cell.x + cell.width / 2)
            .saturating_sub(width / 2)
            .clamp(area.x + 4, right.max(area.x + width + 8) - width - 4);
        let y = (cell.y + cell.height / 2).saturating_sub(8).max(area.y);
        canvas.fill(Area { x: x - 4, y, width: width + 8, height: 18 }, INK, 0.75);
        canvas.text(x, y + 1, Face::Bold, WHITE, &name);
    }
}

/// Under a map: what the crop teaches.
fn legend_of_target(
    canvas: &mut Canvas,
    area: Area,
    target: &Target,
    colours: &BTreeMap<u32, Rgb>,
    classes: &Classes,
) {
    let mut y = area.y + area.height + MARGIN / 2;
    canvas.text(area.x, y, Face::Bold, INK, "what the crop teaches");
    y += LINE;
    let top = target.top(ROWS - 1);
    let bar = Area { x: area.x + 330, y: 0, width: 140, height: 10 };
    let mut row = |colour: Rgb, label: &str, mass: f32| {
        canvas.fill(Area { x: area.x, y, width: 14, height: 14 }, colour, 1.0);
        canvas.text(area.x + 22, y, Face::Text, INK, label);
        canvas.text(area.x + 268, y, Face::Text, INK, &format!("{:>5.1}%", 100.0 * mass));
        canvas.fill(Area { y: y + 2, ..bar }, TRACK, 1.0);
        let width = (bar.width as f32 * mass).round() as u32;
        canvas.fill(Area { y: y + 2, width, ..bar }, colour, 1.0);
        y += LINE;
    };
    for &class in &top {
        let colour = colours.get(&(class as u32)).copied().unwrap_or(OTHER);
        row(colour, &classes.label(class, 29), target.masses[class]);
    }
    let others = target.masses.len() - top.len();
    if others > 0 {
        let mass = 1.0 - top.iter().map(|&class| target.masses[class]).sum::<f32>();
        row(TRACK, &format!("{others} other classes together"), mass.max(0.0));
    }
}

/// Under the image: which classes the cells are of.
fn legend_of_cells(
    canvas: &mut Canvas,
    area: Area,
    cells: &Cells,
    colours: &BTreeMap<u32, Rgb>,
    classes: &Classes,
) {
    let mut y = area.y + area.height + MARGIN / 2;
    canvas.text(area.x, y, Face::Bold, INK, "best class of a cell, over the whole image");
    y += LINE;
    let counts = cells.counts();
    for &(class, n) in counts.iter().take(ROWS - 1) {
        let colour = colours.get(&class).copied().unwrap_or(OTHER);
        canvas.fill(Area { x: area.x, y, width: 14, height: 14 }, colour, 1.0);
        canvas.text(area.x + 22, y, Face::Text, INK, &classes.label(class as usize, 29));
        canvas.text(area.x + 268, y, Face::Text, INK, &format!("{n:>4} of {} cells", cells.best.len()));
        y += LINE;
    }
    if counts.len() > ROWS - 1 {
        let rest: usize = counts.iter().skip(ROWS - 1).map(|(_, n)| n).sum();
        let label = format!("{} other classes", counts.len() - (ROWS - 1));
        canvas.text(area.x + 22, y, Face::Text, FAINT, &label);
        canvas.text(area.x + 268, y, Face::Text, FAINT, &format!("{rest:>4} of {} cells", cells.best.len()));
    }
}
