//! The classes of the sample data: sixteen shapes, told apart by their outline or by the pattern on them.

use std::f32::consts::{FRAC_1_SQRT_2, PI, TAU};

/// A point, or a vector, in a shape's own frame: the shape lies inside the unit circle, y points down.
pub(super) type Point = [f32; 2];

/// What a class looks like; the order is that of the class indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Disc,
    Square,
    Triangle,
    Star,
    Ring,
    Cross,
    Heart,
    Crescent,
    Stripes,
    Checker,
    Frame,
    Wedge,
    Arrow,
    Dots,
    Bolt,
    Drop,
}

impl Shape {
    /// All shapes: as many classes as a data set can have.
    pub(super) const ALL: [Shape; 16] = [
        Shape::Disc,
        Shape::Square,
        Shape::Triangle,
        Shape::Star,
        Shape::Ring,
        Shape::Cross,
        Shape::Heart,
        Shape::Crescent,
        Shape::Stripes,
        Shape::Checker,
        Shape::Frame,
        Shape::Wedge,
        Shape::Arrow,
        Shape::Dots,
        Shape::Bolt,
        Shape::Drop,
    ];

    /// Name of the class for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Disc => "disc",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Star => "star",
            Shape::Ring => "ring",
            Shape::Cross => "cross",
            Shape::Heart => "heart",
            Shape::Crescent => "crescent",
            Shape::Stripes => "striped patch",
            Shape::Checker => "chequered patch",
            Shape::Frame => "frame",
            Shape::Wedge => "wedge",
            Shape::Arrow => "arrow",
            Shape::Dots => "dotted disc",
            Shape::Bolt => "bolt",
            Shape::Drop => "drop",
        }
    }

    /// Distance from `p` to the outline, negative inside; exact near the outline, which is where it matters.
    pub(super) fn distance(self, p: Point) -> f32 {
        let [x, y] = p;
        match self {
            Shape::Disc => disc(p, 0.86),
            Shape::Square => rectangle(p, 0.72, 0.72) - 0.03,
            Shape::Triangle => polygon(p, &regular::<3>(1.0)) - 0.03,
            Shape::Star => polygon(p, &star()) - 0.03,
            Shape::Ring => disc(p, 0.68).abs() - 0.2,
            Shape::Cross => rectangle(p, 0.92, 0.28).min(rectangle(p, 0.28, 0.92)) - 0.03,
            Shape::Heart => {
                // A square on its corner, and a half disc on each of its two upper sides.
                let [u, v] = [(x + y - 0.1) * FRAC_1_SQRT_2, (y - x - 0.1) * FRAC_1_SQRT_2];
                let half = 0.5;
                let lobes = disc([u, v + half], half).min(disc([u + half, v], half));
                rectangle([u, v], half, half).min(lobes)
            }
            Shape::Crescent => disc(p, 0.92).max(-disc([x - 0.42, y], 0.74)),
            Shape::Stripes | Shape::Checker => rectangle(p, 0.74, 0.74) - 0.03,
            Shape::Frame => (rectangle(p, 0.66, 0.66)).abs() - 0.15,
            Shape::Wedge => {
                // A disc with an open mouth of 70 degrees to the right.
                let along_lip = 0.82 * x + 0.573 * y.abs();
                let mouth = if along_lip > 0.0 { 0.573 * x - 0.82 * y.abs() } else { -length(p) };
                disc(p, 0.9).max(mouth)
            }
            Shape::Arrow => polygon(p, &ARROW) - 0.02,
            Shape::Dots => disc(p, 0.88),
            Shape::Bolt => polygon(p, &BOLT) - 0.02,
            Shape::Drop => disc([x, y - 0.32], 0.58).min(polygon(p, &DROP)),
        }
    }

    /// Share of the second colour at `p`, 0 to 1, `soft` being the width of a pixel: the pattern on it.
    pub(super) fn pattern(self, p: Point, soft: f32) -> f32 {
        // A square wave along one direction, its edges `soft` wide.
        let wave = |at: f32, cycles: f32| {
            (0.5 + (at * cycles * PI).sin() / (cycles * PI * soft).max(1e-3)).clamp(0.0, 1.0)
        };
        match self {
            Shape::Stripes => wave(p[1], 2.6),
            Shape::Checker => {
                let (a, b) = (wave(p[0], 1.9), wave(p[1], 1.9));
                a * b + (1.0 - a) * (1.0 - b)
            }
            Shape::Dots => {
                let cell = |v: f32| (v / 0.46 - (v / 0.46).round()) * 0.46;
                (0.5 - disc([cell(p[0]), cell(p[1])], 0.14) / soft).clamp(0.0, 1.0)
            }
            _ => 0.0,
        }
    }
}

const ARROW: [Point; 7] =
    [[0.0, -0.95], [0.75, -0.15], [0.28, -0.15], [0.28, 0.9], [-0.28, 0.9], [-0.28, -0.15], [-0.75, -0.15]];
const BOLT: [Point; 6] =
    [[0.25, -0.95], [-0.6, 0.12], [-0.08, 0.12], [-0.25, 0.95], [0.6, -0.2], [0.08, -0.2]];
const DROP: [Point; 3] = [[0.0, -0.97], [0.52, 0.08], [-0.52, 0.08]];

fn length([x, y]: Point) -> f32 {
    (x * x + y * y).sqrt() // hypot guards against overflow, at several times the cost
}

fn disc(p: Point, radius: f32) -> f32 {
    length(p) - radius
}

fn rectangle([x, y]: Point, half_width: f32, half_height: f32) -> f32 {
    let (dx, dy) = (x.abs() - half_width, y.abs() - half_height);
    length([dx.max(0.0), dy.max(0.0)]) + dx.max(dy).min(0.0)
}

/// The corners of a regular polygon, the first at the top.
fn regular<const N: usize>(radius: f32) -> [Point; N] {
    std::array::from_fn(|i| {
        let angle = TAU * i as f32 / N as f32 - PI / 2.0;
        [radius * angle.cos(), radius * angle.sin()]
    })
}

fn star() -> [Point; 10] {
    let mut corners = regular::<10>(0.98);
    for inner in corners.iter_mut().skip(1).step_by(2) {
        *inner = [inner[0] * 0.42, inner[1] * 0.42];
    }
    corners
}

/// Distance to a simple polygon: to the nearest edge, its sign by how often a ray crosses the edges.
fn polygon(p: Point, corners: &[Point]) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    for (i, a) in corners.iter().enumerate() {
        let b = corners[(i + 1) % corners.len()];
        let edge = [b[0] - a[0], b[1] - a[1]];
        let to = [p[0] - a[0], p[1] - a[1]];
        let along = (to[0] * edge[0] + to[1] * edge[1]) / (edge[0] * edge[0] + edge[1] * edge[1]);
        let along = along.clamp(0.0, 1.0);
        let (dx, dy) = (to[0] - along * edge[0], to[1] - along * edge[1]);
        nearest = nearest.min(dx * dx + dy * dy);
        if (a[1] > p[1]) != (b[1] > p[1]) && to[0] < edge[0] * to[1] / edge[1] {
            inside = !inside;
        }
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}
