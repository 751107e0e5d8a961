//! Paints a scene: a landscape of gradients and noise, and the objects on it with shade and shadow.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::scene::{Object, Scene};
use super::shape::Shape;

/// Red, green, blue; 0 to 1 is what a screen shows.
type Color = [f32; 3];

/// Hue, saturation and value ranges of what landscapes are made of.
const GROUNDS: [[(f32, f32); 3]; 7] = [
    [(0.54, 0.62), (0.15, 0.55), (0.60, 0.95)], // sky
    [(0.24, 0.36), (0.25, 0.60), (0.25, 0.60)], // grass
    [(0.09, 0.13), (0.20, 0.45), (0.55, 0.85)], // sand
    [(0.05, 0.09), (0.30, 0.60), (0.20, 0.45)], // earth
    [(0.00, 1.00), (0.00, 0.10), (0.35, 0.80)], // stone
    [(0.50, 0.56), (0.35, 0.70), (0.25, 0.60)], // water
    [(0.93, 1.03), (0.15, 0.45), (0.55, 0.90)], // dusk
];

/// Paints `scene` into rows of RGB bytes. Colours, light and texture come from `rng`.
pub(super) fn paint(scene: &Scene, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut canvas = background(scene.width, scene.height, rng);
    for object in &scene.objects {
        draw(&mut canvas, scene, object, rng);
    }
    let grain = rng.random_range(0.004..0.02);
    let bytes = canvas.iter().flat_map(|color| {
        let noise = grain * rng.random_range(-1.0..1.0);
        color.map(|v| ((v + noise).clamp(0.0, 1.0) * 255.0 + 0.5) as u8)
    });
    bytes.collect()
}

fn background(width: u32, height: u32, rng: &mut ChaCha8Rng) -> Vec<Color> {
    let mut ground = || {
        let range = GROUNDS[rng.random_range(0..GROUNDS.len())];
        let [h, s, v] = range.map(|(from, to)| rng.random_range(from..=to));
        hsv(h, s, v)
    };
    let (above, below, patches) = (ground(), ground(), ground());
    // A soft edge between two grounds, from a hard horizon to a gradient over the whole picture.
    let tilt: f32 = rng.random_range(-0.35..0.35);
    let horizon = rng.random_range(0.2..0.8);
    let softness =
        if rng.random_bool(0.5) { rng.random_range(0.01..0.06) } else { rng.random_range(0.3..1.0) };
    let side = width.max(height) as f32;
    let coarse = Noise::new(rng, (1.5, 4.0), side);
    let fine = Noise::new(rng, (8.0, 20.0), side);
    let patchy = rng.random_range(0.1..0.6);
    let rough = rng.random_range(0.05..0.22);
    let mut canvas = Vec::with_capacity((width * height) as usize);
    for row in 0..height {
        for column in 0..width {
            let (x, y) = (column as f32, row as f32);
            let large = coarse.octaves(x, y);
            let level = y / height as f32 + tilt * (x / width as f32 - 0.5) + 0.12 * large - horizon;
            let base = mix(above, below, smooth(0.5 + level / softness));
            let base = mix(base, patches, patchy * smooth(0.5 + 2.5 * large));
            let light = 1.0 + rough * (fine.octaves(x, y) + large);
            canvas.push(base.map(|v| v * light));
        }
    }
    canvas
}

/// Draws one object over what is there: a soft shadow, then the shape with a darker rim, lit from one side.
fn draw(canvas: &mut [Color], scene: &Scene, object: &Object, rng: &mut ChaCha8Rng) {
    let Some(&shape) = Shape::ALL.get(object.class as usize) else { return };
    let Object { x, y, radius, angle, .. } = *object;
    let behind = average(canvas, scene, object);
    let fill = contrasting(rng, object.class, behind);
    let second = if luma(fill) > 0.45 { fill.map(|v| v * 0.22) } else { mix(fill, [1.0; 3], 0.8) };
    let rim = fill.map(|v| v * 0.35);
    let rim_width = rng.random_range(0.04..0.1);
    let light: f32 = rng.random_range(-std::f32::consts::PI..0.0);
    let (lit_x, lit_y) = (light.cos(), light.sin());
    let shadow = rng.random_range(0.15..0.45);
    let (sin, cos) = angle.sin_cos();
    let local = |dx: f32, dy: f32| [(cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius];
    let pixel = 1.0 / radius;

    let reach = radius * 1.25 + 2.0;
    let rows = (y - reach).max(0.0) as u32..((y + reach) as u32 + 1).min(scene.height);
    for row in rows {
        let columns = (x - reach).max(0.0) as u32..((x + reach) as u32 + 1).min(scene.width);
        for column in columns {
            let (dx, dy) = (column as f32 + 0.5 - x, row as f32 + 0.5 - y);
            let under = &mut canvas[(row * scene.width + column) as usize];
            let fall = 0.1 * radius;
            let cast = shape.distance(local(dx + lit_x * fall, dy + lit_y * fall));
            let dark = shadow * smooth(0.5 - cast / 0.22);
            *under = under.map(|v| v * (1.0 - dark));

            let p = local(dx, dy);
            let distance = shape.distance(p);
            let cover = (0.5 - distance / pixel).clamp(0.0, 1.0);
            if cover > 0.0 {
                let color = mix(fill, second, shape.pattern(p, pixel));
                let color = mix(color, rim, smooth(0.5 + (distance + rim_width) / pixel.max(0.03)));
                let shade = 1.0 + 0.22 * (lit_x * dx + lit_y * dy) / radius;
                *under = mix(*under, color.map(|v| v * shade), cover);
            }
        }
    }
}

/// Mean colour of what the object will lie on.
fn average(canvas: &[Color], scene: &Scene, object: &Object) -> Color {
    let mut sum = [0.0; 3];
    let mut count = 0.0;
    for i in 0..49 {
        let at = |center: f32, step: i32, side: u32| {
            (center + (step - 3) as f32 * object.radius / 4.0).clamp(0.0, side as f32 - 1.0) as u32
        };
        let (column, row) = (at(object.x, i % 7, scene.width), at(object.y, i / 7, scene.height));
        let color = canvas[(row * scene.width + column) as usize];
        sum = [sum[0] + color[0], sum[1] + color[1], sum[2] + color[2]];
        count += 1.0;
    }
    sum.map(|v| v / count)
}

/// A random strong colour that stands out from `behind`; of several the one that does so best. Colours
/// lean to one hue a class, as those of real things do, widely enough for classes to overlap: it lets a
/// small network get somewhere in minutes, and leaves the outline to be learned.
fn contrasting(rng: &mut ChaCha8Rng, class: u32, behind: Color) -> Color {
    // Multiples of the golden ratio lie apart on the circle of hues, however many there are.
    let own_hue = class as f32 * 0.618_034;
    let any_hue = rng.random_bool(0.15);
    let mut best = (f32::MIN, [0.0; 3]);
    for _ in 0..8 {
        let spread: f32 = rng.random_range(-0.09..0.09) + rng.random_range(-0.09..0.09);
        let h = if any_hue { rng.random_range(0.0..1.0) } else { own_hue + spread };
        let (s, v) = (rng.random_range(0.45..0.95), rng.random_range(0.4..1.0));
        let color = hsv(h, s, v);
        let apart: f32 = color.iter().zip(behind).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        let apart = apart + (luma(color) - luma(behind)).abs();
        if apart > 0.75 {
            return color;
        }
        if apart > best.0 {
            best = (apart, color);
        }
    }
    best.1
}

fn hsv(hue: f32, saturation: f32, value: f32) -> Color {
    let channel = |shift: f32| {
        let at = (hue + shift).rem_euclid(1.0) * 6.0;
        value * (1.0 - saturation * (1.0 - ((at - 3.0).abs() - 1.0).clamp(0.0, 1.0)))
    };
    [channel(0.0), channel(2.0 / 3.0), channel(1.0 / 3.0)]
}

fn luma([r, g, b]: Color) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

fn mix(a: Color, b: Color, part: f32) -> Color {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * part)
}

fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Smooth random values over the plane.
struct Noise {
    lattice: [f32; 256],
    order: [u8; 256],
    /// Lattice points a pixel in the first octave.
    scale: f32,
}

impl Noise {
    /// Noise whose first octave has between `from` and `to` lattice points along `side` pixels.
    fn new(rng: &mut ChaCha8Rng, (from, to): (f32, f32), side: f32) -> Self {
        let scale = rng.random_range(from..to) / side;
        let lattice = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
        let order = std::array::from_fn(|_| rng.random());
        Self { lattice, order, scale }
    }

    /// Four octaves, each half as strong and twice as fine as the one before; about -1 to 1.
    fn octaves(&self, x: f32, y: f32) -> f32 {
        let (mut sum, mut strength, mut scale) = (0.0, 0.5, self.scale);
        for _ in 0..4 {
            sum += strength * self.at(x * scale, y * scale);
            (strength, scale) = (strength * 0.5, scale * 2.03);
        }
        sum
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (x0, y0) = (x as usize, y as usize);
        let (fx, fy) = (smooth(x - x0 as f32), smooth(y - y0 as f32));
        let corner = |i: usize, j: usize| {
            let row = self.order[(y0 + j) & 255] as usize;
            self.lattice[(row + x0 + i) & 255]
        };
        let top = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * fx;
        let bottom = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * fx;
        top + (bottom - top) * fy
    }
}
