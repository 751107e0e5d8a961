//! The picture of a run: training loss and learning rate by step, validation accuracy and loss by epoch.

use std::ops::Range;

use plotters::prelude::*;

use super::{EpochPoint, StepPoint};

const SIZE: (u32, u32) = (1180, 460);
/// Blue and vermilion of Okabe and Ito's palette: told apart by colour-blind readers and in print.
const MAIN: RGBColor = RGBColor(0, 114, 178);
const OTHER: RGBColor = RGBColor(213, 94, 0);
const INK: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(228, 228, 228);
/// Points of a line at most: more cannot be seen, and a long run's picture would grow to megabytes.
const POINTS: usize = 1000;

/// Points of one curve.
type Line = Vec<(f64, f64)>;

/// A curve with the name of its axis.
struct Curve {
    name: &'static str,
    points: Line,
    /// A value that the axis shows in any case.
    from: Option<f64>,
}

/// Draws the SVG of a run. Values that are not finite are left out.
///
/// # Errors
/// What the drawing library says, in words.
pub(super) fn draw(steps: &[StepPoint], epochs: &[EpochPoint]) -> Result<String, String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(words)?;
        let (left, right) = root.split_horizontally(SIZE.0 as i32 / 2);
        let by_step = |value: fn(&StepPoint) -> f64| {
            line(steps.iter().map(|point| (point.global_step as f64 + 1.0, value(point))))
        };
        // An epoch is complete at its end: the first at 1.
        let by_epoch = |value: fn(&EpochPoint) -> f64| {
            line(epochs.iter().map(|point| (f64::from(point.epoch) + 1.0, value(point))))
        };
        panel(
            &left,
            ("Training", "step", 0.0),
            &Curve { name: "loss", points: by_step(|p| p.loss), from: None },
            &Curve { name: "learning rate", points: by_step(|p| p.lr), from: Some(0.0) },
        )?;
        panel(
            &right,
            ("Validation", "epoch", 1.0),
            &Curve { name: "top-1 accuracy (%)", points: by_epoch(|p| p.top1), from: Some(0.0) },
            &Curve { name: "loss", points: by_epoch(|p| p.val_loss), from: None },
        )?;
        root.present().map_err(words)?;
    }
    Ok(svg)
}

/// One panel: `main` on the left axis, `other` on the right. `labels` are the title, the name of the horizontal
/// axis, and where that begins.
fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    labels: (&str, &str, f64),
    main: &Curve,
    other: &Curve,
) -> Result<(), String> {
    let (title, horizontal, begin) = labels;
    let end = main.points.iter().chain(&other.points).map(|point| point.0).fold(begin, f64::max);
    let across = begin..if end > begin { end } else { begin + 1.0 };
    let font = |size: u32, color: &RGBColor| ("sans-serif", size).into_font().color(color);

    let mut chart = ChartBuilder::on(area)
        .caption(title, font(20, &INK))
        .margin(12)
        .margin_top(8)
        .x_label_area_size(44)
        .y_label_area_size(62)
        .right_y_label_area_size(66)
        .build_cartesian_2d(across.clone(), range(main))
        .map_err(words)?
        .set_secondary_coord(across.clone(), range(other));
    chart
        .configure_mesh()
        .disable_y_axis()
        .x_desc(horizontal)
        .x_labels(7)
        .y_labels(10)
        .x_label_formatter(&|value| short(*value))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(font(13, &INK))
        .axis_desc_style(font(15, &INK))
        .draw()
        .map_err(words)?;
    // The names of the vertical axes have their curves' colours, in place of a key that could hide a curve.
    chart
        .configure_mesh()
        .disable_mesh()
        .disable_x_axis()
        .y_desc(main.name)
        .y_labels(10)
        .y_label_formatter(&|value| short(*value))
        .axis_style(INK)
        .label_style(font(13, &INK))
        .axis_desc_style(font(15, &MAIN))
        .draw()
        .map_err(words)?;
    chart
        .configure_secondary_axes()
        .y_desc(other.name)
        .y_labels(10)
        .y_label_formatter(&|value| short(*value))
        .axis_style(INK)
        .label_style(font(13, &INK))
        .axis_desc_style(font(15, &OTHER))
        .draw()
        .map_err(words)?;
    let dots = main.points.len() <= 40;
    let mark = |color: RGBColor| move |at: &(f64, f64)| Circle::new(*at, 2, color.filled());
    chart
        .draw_secondary_series(LineSeries::new(other.points.iter().copied(), OTHER.stroke_width(1)))
        .map_err(words)?;
    chart.draw_series(LineSeries::new(main.points.iter().copied(), MAIN.stroke_width(2))).map_err(words)?;
    if dots {
        chart.draw_secondary_series(other.points.iter().map(mark(OTHER))).map_err(words)?;
        chart.draw_series(main.points.iter().map(mark(MAIN))).map_err(words)?;
    }
    Ok(())
}

/// The finite points, averaged in groups where there are more than can be seen.
fn line(points: impl Iterator<Item = (f64, f64)>) -> Line {
    let points: Line = points.filter(|point| point.1.is_finite()).collect();
    let group = points.len().div_ceil(POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let sum = group.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / group.len() as f64, sum.1 / group.len() as f64)
    };
    points.chunks(group).map(mean).collect()
}

/// The range of an axis: that of the points with a little air, and never empty.
fn range(curve: &Curve) -> Range<f64> {
    let values = || curve.points.iter().map(|point| point.1);
    let low = values().chain(curve.from).fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return 0.0..1.0;
    }
    let air = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(0.1) };
    (if curve.from == Some(low) { low } else { low - air })..high + air
}

/// A number of an axis, without the tail that binary fractions leave: 0.3, not 0.30000000000000004.
fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn words<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> String {
    error.to_string()
}
