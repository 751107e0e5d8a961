//! Writes a data set's files: pictures and label maps on many threads, then the truths.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::Recipe;
use super::paint::paint;
use super::scene::{Composition, Scene};
use super::shape::Shape;
use super::teach::label_map;
use crate::progress::Progress;
use crate::pt::pickle::Dtype;

/// JPEG quality, 1 to 100.
const QUALITY: u8 = 90;

/// The three sets of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    Train,
    Val,
    ValMulti,
}

impl Split {
    const ALL: [Split; 3] = [Split::Train, Split::Val, Split::ValMulti];

    fn folder(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::ValMulti => "val-multi",
        }
    }

    fn len(self, recipe: &Recipe) -> u32 {
        if self == Split::Train { recipe.train } else { recipe.val }
    }

    fn composition(self, recipe: &Recipe) -> Composition {
        match self {
            Split::Val => Composition { objects: (1, 1), radius: (0.24, 0.42) },
            _ => {
                Composition { objects: (recipe.objects_max.min(2), recipe.objects_max), radius: (0.18, 0.36) }
            }
        }
    }
}

/// The WordNet-like id of a class: sorted ids give the class index, as in ImageNet.
pub(super) fn wnid(class: u32) -> String {
    format!("n{:08}", class + 1)
}

/// One picture of the data set: a pure function of the recipe, the split and the number.
pub(super) struct Picture {
    split: Split,
    /// From 0.
    number: u32,
    /// The class that its folder names.
    pub(super) class: u32,
    pub(super) scene: Scene,
    rng: ChaCha8Rng,
}

impl Picture {
    pub(super) fn plan(recipe: &Recipe, split: Split, number: u32) -> Self {
        let mut rng = stream(recipe.seed, split, number);
        let classes = recipe.classes;
        let class = match split {
            Split::Train => number % classes,
            // Each run of as many pictures as there are classes holds every class once, in random order.
            _ => {
                let mut order: Vec<u32> = (0..classes).collect();
                order.shuffle(&mut stream(recipe.seed ^ u64::MAX, split, number / classes));
                order[(number % classes) as usize]
            }
        };
        let scene = Scene::draw(&mut rng, class, classes, recipe.size, split.composition(recipe));
        Self { split, number, class, scene, rng }
    }

    /// Name of the file without its extension.
    pub(super) fn stem(&self, classes: u32) -> String {
        match self.split {
            Split::Train => format!("{}_{}", wnid(self.class), self.number / classes + 1),
            _ => format!("ILSVRC2012_val_{:08}", self.number + 1),
        }
    }

    fn write(mut self, recipe: &Recipe, out: &Path) -> Result<()> {
        let (folder, stem) = (wnid(self.class), self.stem(recipe.classes));
        let pixels = paint(&self.scene, &mut self.rng);
        let path = out.join(self.split.folder()).join(&folder).join(format!("{stem}.JPEG"));
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
            .encode(&pixels, self.scene.width, self.scene.height, ExtendedColorType::Rgb8)
            .with_context(|| path.display().to_string())?;
        write(&path, &jpeg)?;
        if self.split == Split::Train {
            let path = out.join("labels").join(folder).join(format!("{stem}.pt"));
            let map = label_map(&self.scene, recipe.classes, &mut self.rng);
            write(&path, &map.to_pt(Dtype::F32).with_context(|| path.display().to_string())?)?;
        }
        Ok(())
    }
}

fn stream(seed: u64, split: Split, number: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((split as u64) << 32 | u64::from(number));
    rng
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("{} cannot be written", path.display()))
}

/// Writes all files of the data set into `out`; those that are there are written over.
pub(super) fn data_set(recipe: &Recipe, out: &Path, threads: usize) -> Result<()> {
    for folder in Split::ALL.map(Split::folder).into_iter().chain(["labels"]) {
        for class in 0..recipe.classes {
            let path = out.join(folder).join(wnid(class));
            std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        }
    }
    let total: u32 = Split::ALL.iter().map(|split| split.len(recipe)).sum();
    let next = AtomicU32::new(0);
    let failed = AtomicBool::new(false);
    let progress = Progress::new(total.into(), "pictures made");
    let work = || -> Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let mut number = next.fetch_add(1, Ordering::Relaxed);
            let split = Split::ALL.into_iter().find(|split| {
                let here = number < split.len(recipe);
                number -= if here { 0 } else { split.len(recipe) };
                here
            });
            let Some(split) = split else { break };
            let written = Picture::plan(recipe, split, number).write(recipe, out);
            if written.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            written?;
            progress.advance(1);
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads.min(total as usize)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    progress.finish();
    truths(recipe, out)
}

/// The evaluation sets' files, in the forms of ReaL and of the multi-label annotation of ImageNet.
fn truths(recipe: &Recipe, out: &Path) -> Result<()> {
    let plan = |split: Split| (0..recipe.val).map(move |number| Picture::plan(recipe, split, number));
    let classes: BTreeMap<u32, [String; 2]> = (0..recipe.classes)
        .map(|class| (class, [wnid(class), Shape::ALL[class as usize].name().to_owned()]))
        .collect();
    let real: Vec<_> = plan(Split::Val).map(|picture| picture.scene.classes()).collect();
    let real_multi: Vec<_> = plan(Split::ValMulti).map(|picture| picture.scene.classes()).collect();
    let annotations: serde_json::Map<String, Value> = plan(Split::ValMulti)
        .map(|picture| {
            let correct = picture.scene.classes();
            let wrong = (0..recipe.classes).filter(|class| !correct.contains(class)).map(wnid);
            let wrong: Vec<String> = wrong.collect();
            let correct: Vec<String> = correct.iter().copied().map(wnid).collect();
            let name = format!("{}.JPEG", picture.stem(recipe.classes));
            (name, json!({ "correct": correct, "wrong": wrong, "unclear": [] }))
        })
        .collect();
    let human = json!({ "initial_annots": annotations, "problematic_images": {} });
    for (name, value) in [
        ("classes.json", json!(classes)),
        ("real.json", json!(real)),
        ("real-multi.json", json!(real_multi)),
        ("human_accuracy_multi.json", human),
    ] {
        write(&out.join(name), (value.to_string() + "\n").as_bytes())?;
    }
    Ok(())
}
