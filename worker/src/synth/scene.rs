//! What a picture shows, before it is painted: its size and its objects at their places.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Size;

/// One object. Lengths are in pixels of the picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    /// Class index, which is also the index of its shape.
    pub(super) class: u32,
    pub(super) x: f32,
    pub(super) y: f32,
    /// The object lies inside the circle of this radius around (x, y).
    pub(super) radius: f32,
    /// Rotation in radians.
    pub(super) angle: f32,
}

/// A picture's size, and its objects from the rearmost to the foremost. No two are of the same class.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) objects: Vec<Object>,
}

/// How many objects a picture has, and how large they are in parts of the picture's short side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Composition {
    pub(super) objects: (u32, u32),
    pub(super) radius: (f32, f32),
}

impl Scene {
    /// Draws a scene that shows `class`, and other classes of `0..classes` beside it.
    pub(super) fn draw(rng: &mut ChaCha8Rng, class: u32, classes: u32, size: Size, how: Composition) -> Self {
        let (width, height) = match size {
            Size::Fixed(width, height) => (width, height),
            Size::Sides(from, to) => (rng.random_range(from..=to), rng.random_range(from..=to)),
        };
        let mut others: Vec<u32> = (0..classes).filter(|&other| other != class).collect();
        others.shuffle(rng);
        let count = rng.random_range(how.objects.0..=how.objects.1).min(classes) as usize;
        let mut scene = Self { width, height, objects: Vec::with_capacity(count) };
        for class in std::iter::once(class).chain(others).take(count) {
            scene.place(rng, class, how.radius);
        }
        // The named object is placed first, and so always has room; it need not lie at the back.
        scene.objects.shuffle(rng);
        scene
    }

    /// Puts an object where it hides little of the others, smaller if it must be; leaves it out where there
    /// is no room.
    fn place(&mut self, rng: &mut ChaCha8Rng, class: u32, (smallest, largest): (f32, f32)) {
        let (width, height) = (self.width as f32, self.height as f32);
        let short = width.min(height);
        let mut radius = rng.random_range(smallest..=largest) * short;
        let angle = rng.random_range(-0.8..0.8);
        while radius >= smallest * short * 0.8 {
            for _ in 0..24 {
                let margin = 0.8 * radius;
                let x = rng.random_range(margin..=width - margin);
                let y = rng.random_range(margin..=height - margin);
                let apart = |o: &Object| (o.x - x).hypot(o.y - y) >= 0.88 * (o.radius + radius);
                if self.objects.iter().all(apart) {
                    self.objects.push(Object { class, x, y, radius, angle });
                    return;
                }
            }
            radius *= 0.88;
        }
    }

    /// Classes of the objects, in ascending order.
    pub(super) fn classes(&self) -> Vec<u32> {
        let mut classes: Vec<u32> = self.objects.iter().map(|object| object.class).collect();
        classes.sort_unstable();
        classes
    }
}
