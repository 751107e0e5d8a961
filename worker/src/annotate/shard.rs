//! One of several equal parts of a data set, so that several processes label it together.

use std::str::FromStr;

/// Part `index` of `count`: every `count`th sample from `index` on, so that each part has some of every class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// Ids of this part's samples among `samples`.
    pub fn of(self, samples: usize) -> impl Iterator<Item = u32> {
        (self.index..samples as u32).step_by(self.count as usize)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err("wanted I/N with I from 0 to N-1, as 0/4 to 3/4".into()),
        }
    }
}
