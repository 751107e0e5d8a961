//! What `tests/bench` times of this program that no command of its own shows by itself. Each prints one line of JSON:
//! how many images it did, and in how many seconds, or how far apart they are.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use relabel_config::{Axes, Config, Data, OnError, Precision, Resize};
use relabel_core::Position;
use tch::Device;
use worker::collective::{AbortHandle, Solo};
use worker::data::augment::{Augment, FinishOn, Input, STD, Scaler};
use worker::data::crop::random_resized_crop;
use worker::data::cutmix::CutMix;
use worker::data::decode::{Decoder, Part};
use worker::data::index::Split;
use worker::data::loader::{Batch, TrainLoader, TrainPlan};
use worker::data::rng::KeyedRng;
use worker::data::{CropBox, ImageSize};
use worker::labels::{LabelMaps, SingleLabel, Targets};
use worker::train::learner::Learner;
use worker::train::step::Ask;

#[derive(Debug, Parser)]
enum Command {
    /// JPEG files to batches of augmented training tensors, by the loader that trains
    Images(Images),
    /// What the row before is bound by: random crops of JPEG files, decoded in one thread and no more
    Crops(Crops),
    /// How far the default resize of random crops is from Pillow's, in 255ths
    Difference(Crops),
    /// Label maps to the targets of random crops, one after the other
    Labels(Labels),
    /// The names of a data set to its index, in all the time that takes
    Index(Index),
    /// Training steps of one rank on images that lie in memory
    Steps(Steps),
}

#[derive(Debug, Args)]
struct Images {
    /// A folder of `<class>/<image>`, or of tar files.
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Stop after so many; the folder is read as often as that takes.
    #[arg(long, default_value_t = 2000)]
    images: usize,
    /// As `data.resize exact` has it.
    #[arg(long)]
    exact: bool,
    /// Leave out colour jitter and lighting.
    #[arg(long)]
    plain: bool,
    /// As `data.finish device` has it: the loader's part of the work alone.
    #[arg(long)]
    unfinished: bool,
    /// As `data.shuffle_buffer` has it, for tar files.
    #[arg(long, default_value_t = 0)]
    shuffle_buffer: u32,
}

#[derive(Debug, Args)]
struct Crops {
    /// A folder of `<class>/<image>`.
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value_t = 2000)]
    images: u32,
    /// Leave it all to libjpeg-turbo, the Huffman codes too.
    #[arg(long)]
    libjpeg: bool,
}

impl Crops {
    fn decoder(&self) -> Decoder {
        if self.libjpeg { Decoder::of_libjpeg_alone() } else { Decoder::new() }
    }
}

#[derive(Debug, Args)]
struct Labels {
    /// A folder of `<class>/<image>`, whose names the maps go by.
    #[arg(long)]
    data: PathBuf,
    /// A folder of `.pt` files, or what `worker pack` made of it.
    #[arg(long)]
    maps: PathBuf,
    #[arg(long, default_value_t = 1000)]
    classes: u32,
    #[arg(long, default_value_t = 20000)]
    images: usize,
}

#[derive(Debug, Args)]
struct Index {
    /// A folder of `<class>/<image>`.
    #[arg(long)]
    data: PathBuf,
    /// Where indices are kept, to be used again.
    #[arg(long)]
    cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Steps {
    #[arg(long)]
    arch: String,
    #[arg(long, default_value_t = 1000)]
    classes: u32,
    #[arg(long)]
    batch: u32,
    /// Height and width of the images.
    #[arg(long)]
    size: u32,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long, value_enum)]
    precision: Precision,
    /// Counted after a first one, for which memory is found.
    #[arg(long, default_value_t = 6)]
    steps: usize,
}

/// Images of one batch.
const BATCH: u32 = 32;
/// Size of the images that the crops of label maps are drawn in.
const SIZE: ImageSize = ImageSize { width: 500, height: 375 };

fn main() -> Result<()> {
    let (images, seconds) = match Command::parse() {
        Command::Images(args) => load_images(&args)?,
        Command::Crops(args) => decode_crops(&args)?,
        Command::Difference(args) => return compare_crops(&args),
        Command::Labels(args) => pool_labels(&args)?,
        Command::Index(args) => {
            let began = Instant::now();
            let split = Split::open(&args.data, args.cache.as_deref())?;
            (split.len(), began.elapsed().as_secs_f64())
        }
        Command::Steps(args) => step(&args)?,
    };
    println!("{{\"images\": {images}, \"seconds\": {seconds}}}");
    Ok(())
}

/// Counts and times what comes after the first batch, which waits for the threads to start.
fn load_images(args: &Images) -> Result<(usize, f64)> {
    let split = Arc::new(Split::open(&args.data, None)?);
    let of_sample = split.clone();
    let targets: Arc<dyn Targets> = Arc::new(SingleLabel::new(1000, Arc::new(move |id| of_sample.class(id))));
    let mut augment = Augment::from_config(&Data::default());
    augment.resize = if args.exact { Resize::Exact } else { Resize::Fast };
    augment.finish = if args.unfinished { FinishOn::Device } else { FinishOn::Host };
    if args.plain {
        (augment.color_jitter, augment.lighting) = (0.0, 0.0);
    }
    let (mut images, mut began) = (0, None);
    for epoch in 0.. {
        let plan = TrainPlan {
            split: split.clone(),
            targets: targets.clone(),
            augment: augment.clone(),
            cutmix: CutMix::OFF,
            seed: 1,
            shuffle_buffer: args.shuffle_buffer,
            epoch,
            global_batch: BATCH,
            first_step: 0,
            slice: 0..BATCH,
            on_error: OnError::Fail,
            threads: args.threads,
            prefetch: 2,
        };
        let mut loader = TrainLoader::start(plan)?;
        while let Some(batch) = loader.next() {
            let batch = batch?;
            match began {
                None => began = Some(Instant::now()),
                Some(_) => images += batch.sample_ids.len(),
            }
            loader.recycle(batch);
            if images >= args.images {
                return Ok((images, began.context("no images")?.elapsed().as_secs_f64()));
            }
        }
    }
    unreachable!("epochs do not end")
}

/// From memory, after one round in which the buffers find their size.
fn decode_crops(args: &Crops) -> Result<(usize, f64)> {
    let split = Split::open(&args.data, None)?;
    let samples = split.len() as u32;
    let mut files = vec![Vec::new(); split.len()];
    files.iter_mut().zip(0..).try_for_each(|(file, id)| split.location(id).read(file))?;
    let augment = Augment::from_config(&Data::default());
    let (mut decoder, mut part) = (args.decoder(), Part::default());
    let mut decode = |number: u32| {
        let mut rng = KeyedRng::of_sample(1, number / samples, number % samples);
        let file = &files[(number % samples) as usize];
        decoder.decode_part(file, |size| augment.draw_crop(size, &mut rng), &mut part)
    };
    (0..samples).try_for_each(|number| decode(number).map(drop))?;
    let began = Instant::now();
    (0..args.images).try_for_each(|number| decode(number).map(drop))?;
    Ok((args.images as usize, began.elapsed().as_secs_f64()))
}

/// Of crops with no jitter and no lighting.
fn compare_crops(args: &Crops) -> Result<()> {
    let split = Split::open(&args.data, None)?;
    let samples = split.len() as u32;
    let defaults = Augment::from_config(&Data::default());
    let floats = Input::floats(defaults.image_size);
    let (mut decoder, mut part) = (args.decoder(), Part::default());
    let mut scaler = Scaler::default();
    let (mut sum, mut worst) = (0.0, 0.0_f64);
    for number in 0..args.images {
        let [fast, exact] = [Resize::Fast, Resize::Exact].map(|resize| -> Result<Vec<f32>> {
            let augment = Augment { color_jitter: 0.0, lighting: 0.0, resize, ..defaults.clone() };
            let mut rng = KeyedRng::of_sample(1, number / samples, number % samples);
            let location = split.location(number % samples);
            let cut =
                decoder.decode_file_part(&location, |size| augment.draw_crop(size, &mut rng), &mut part)?;
            let mut pixels = vec![0.0; floats];
            augment.apply(&part, &cut, &mut rng, &mut scaler, Vec::new())?.write(&mut pixels);
            Ok(pixels)
        });
        for (at, (fast, exact)) in fast?.into_iter().zip(exact?).enumerate() {
            let difference = f64::from((fast - exact).abs() * STD[at % 3] * 255.0);
            sum += difference;
            worst = worst.max(difference);
        }
    }
    let mean = sum / (f64::from(args.images) * floats as f64);
    println!("{{\"images\": {}, \"mean\": {mean:.4}, \"worst\": {worst:.1}}}", args.images);
    Ok(())
}

fn pool_labels(args: &Labels) -> Result<(usize, f64)> {
    let split = Arc::new(Split::open(&args.data, None)?);
    let (samples, names) = (split.len() as u32, split.clone());
    let keys = Arc::new(move |id| names.key(id));
    let maps = LabelMaps::new(args.maps.clone(), args.classes, Axes::Hw, keys)?;
    let mut target = vec![0.0; maps.classes()];
    let crop = |id| -> CropBox { random_resized_crop(SIZE, 0.08, &mut KeyedRng::of_sample(1, 0, id)) };
    // What is timed is the work, not the disk: all files have been read once.
    (0..samples).try_for_each(|id| maps.write(id, SIZE, crop(id), &mut target))?;
    let began = Instant::now();
    for number in 0..args.images as u32 {
        maps.write(number % samples, SIZE, crop(number), &mut target)?;
    }
    Ok((args.images, began.elapsed().as_secs_f64()))
}

/// The images of one batch, and the median of the steps' times.
fn step(args: &Steps) -> Result<(usize, f64)> {
    worker::torch::set_num_threads(args.threads);
    let mut config = Config::default();
    config.model.arch = args.arch.clone();
    config.data.image_size = args.size;
    config.compute.seed = 1;
    config.compute.precision = args.precision.into();
    let mut learner = Learner::new(&config, args.classes, 1000, Device::Cpu)?;
    let mut ring = Solo::new(AbortHandle::new());
    let (n, classes) = (args.batch as usize, args.classes as usize);
    let pixels = n * 3 * (args.size * args.size) as usize;
    let batch = Batch {
        step: 0,
        sample_ids: (0..args.batch).collect(),
        images: (0..pixels).map(|i| (i as f32 * 0.37).sin() * 1.5).collect(),
        targets: (0..n * classes)
            .map(|i| ((i / classes * 37) % classes == i % classes).into())
            .map(|hot: u8| hot.into())
            .collect(),
        ..Batch::default()
    };
    let ask = Ask { position: Position::default(), planned: n as u64, leave: false, may_skip: false };
    let mut seconds = Vec::new();
    for number in 0..=args.steps {
        let began = Instant::now();
        learner.step(&batch, ask, &mut ring)?;
        if number > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok((n, *seconds.get(seconds.len() / 2).context("no steps")?))
}
