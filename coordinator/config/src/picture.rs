//! Names of the pictures that `util.log_images` has drawn: the worker of rank 0 writes them, the coordinator finds
//! them.

/// The folder of the pictures in a run's folder.
pub const PICTURES: &str = "images";

/// A picture of what an image teaches in an epoch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Picture {
    /// From 0.
    pub epoch: u32,
    /// Which of the images that are drawn, from 0; the same ones in every epoch.
    pub number: u32,
    /// The image: `<class>/<stem>`.
    pub key: String,
}

impl Picture {
    /// `e0003-00-CLASS+STEM.png`.
    pub fn file_name(&self) -> String {
        format!("e{:04}-{:02}-{}.png", self.epoch, self.number, self.key.replace('/', "+"))
    }

    /// The picture whose file has this name, if it is the name of one.
    pub fn named(file: &str) -> Option<Self> {
        let mut parts = file.strip_prefix('e')?.strip_suffix(".png")?.splitn(3, '-');
        let (epoch, number, key) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            epoch: epoch.parse().ok()?,
            number: number.parse().ok()?,
            key: key.replacen('+', "/", 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_found_by_its_name() {
        let picture = Picture { epoch: 12, number: 3, key: "n01440764/n01440764_18-b".into() };
        assert_eq!(picture.file_name(), "e0012-03-n01440764+n01440764_18-b.png");
        assert_eq!(Picture::named(&picture.file_name()), Some(picture));
        for other in ["curves.svg", "e1-2.png", "eleven-1-a.png", "e1-x-a.png", "e0012-03-a+b.png.part"] {
            assert_eq!(Picture::named(other), None, "{other}");
        }
    }
}
