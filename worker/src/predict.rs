//! `worker predict`: the classes that a network sees in image files. What is done to a file is what evaluation
//! does: the short side resized, the centre cut out; with `--exact-resize` to Pillow's last bit.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use relabel_config::NetworkOptions;
use relabel_core::evaluation::report::aligned;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::data::augment::{Input, Scaler};
use crate::data::decode::{Decoder, RgbImage};
use crate::data::location::Location;
use crate::data::{DataError, ImageError};
use crate::eval::classes::Classes;
use crate::eval::network::{self, Network};
use crate::model::image_batch;
use crate::print::print;

/// Arguments of `worker predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// JPEG or PNG files
    #[arg(required = true, value_name = "IMG")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    network: NetworkOptions,
    /// Threads of libtorch, and threads that load images [default: the machine's cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// A data set whose class folders name the classes, in train/, val/ or the folder itself
    #[arg(long, value_name = "DIR", conflicts_with = "classes")]
    data: Option<PathBuf>,
    /// Classes to print for each image, the most likely first
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A class that was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    class: usize,
    logit: f64,
    /// Softmax over all classes.
    probability: f64,
}

/// Runs the command: the answers go to standard output, a line for each unreadable image to standard error.
/// Fails at the end if there was one.
pub fn run(args: &PredictArgs) -> Result<ExitCode> {
    let mut network = network::open(&args.network, crate::torch::threads(args.threads))?;
    if let Some(data) = &args.data {
        let folder = ["train", "val"].map(|name| data.join(name)).into_iter().find(|folder| folder.is_dir());
        network.classes = Some(Classes::read(folder.as_deref().unwrap_or(data))?);
    }
    let mut loader =
        Loader { decoder: Decoder::new(), image: RgbImage::default(), scaler: Scaler::default() };
    let mut predicted = Vec::new();
    let mut failed = false;
    for chunk in args.images.chunks(network.batch) {
        let mut pixels = Vec::new();
        let mut readable = Vec::new();
        for path in chunk {
            match loader.append(path, &network, &mut pixels) {
                Ok(()) => readable.push(path),
                Err(source) => {
                    let advice = "it has no prediction";
                    let image = Location::File(path.clone());
                    eprintln!("error: {}", DataError::Image { image, source, advice });
                    failed = true;
                }
            }
        }
        if !readable.is_empty() {
            let answers = answers(&network, &pixels, readable.len(), args.top)?;
            predicted.extend(readable.into_iter().zip(answers));
        }
    }
    let names = network.classes.unwrap_or_else(|| Classes::from_folders(Vec::new()));
    match args.json {
        true => print(&as_json(&predicted, &names).to_string())?,
        false if predicted.is_empty() => {}
        false => print(&as_text(&predicted, &names))?,
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Makes inputs of files, one after the other, reusing its buffers.
struct Loader {
    decoder: Decoder,
    image: RgbImage,
    scaler: Scaler,
}

impl Loader {
    /// Appends the normalized pixels of `path` to `out`, which is unchanged after an error.
    fn append(&mut self, path: &Path, network: &Network, out: &mut Vec<f32>) -> Result<(), ImageError> {
        self.decoder.decode_file(&Location::File(path.to_path_buf()), &mut self.image)?;
        let input = network.transform.apply(&self.image, &mut self.scaler, Vec::new())?;
        let start = out.len();
        out.resize(start + Input::floats(network.transform.image_size), 0.0);
        input.write(&mut out[start..]);
        Ok(())
    }
}

/// The `top` likeliest classes of each of `n` images, likeliest first.
fn answers(network: &Network, pixels: &[f32], n: usize, top: u32) -> Result<Vec<Vec<Seen>>> {
    let x = image_batch(pixels, n as i64, i64::from(network.transform.image_size))?;
    let k = i64::from(top).min(network.model.classes());
    let all = tch::no_grad(|| network.model.forward(&x, false))?.to_kind(Kind::Float);
    let (logits, classes, probabilities) = tch::no_grad(|| {
        let (logits, classes) = all.topk(k, -1, true, true);
        let probabilities = all.softmax(-1, Kind::Float).gather(-1, &classes, false);
        (logits, classes, probabilities)
    });
    let floats = |tensor: &Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double).view(-1));
    let (logits, probabilities) = (floats(&logits)?, floats(&probabilities)?);
    let classes = Vec::<i64>::try_from(classes.view(-1))?;
    let seen = classes.iter().zip(logits.iter().zip(&probabilities));
    let seen: Vec<Seen> = seen
        .map(|(&class, (&logit, &probability))| Seen { class: class as usize, logit, probability })
        .collect();
    Ok(seen.chunks(k as usize).map(<[Seen]>::to_vec).collect())
}

fn as_json(predicted: &[(&PathBuf, Vec<Seen>)], names: &Classes) -> Value {
    let image = |(path, seen): &(&PathBuf, Vec<Seen>)| {
        let predictions = seen.iter().map(|seen| {
            json!({
                "class": seen.class,
                "folder": names.key(seen.class),
                "name": names.name(seen.class),
                "probability": seen.probability,
                "logit": seen.logit,
            })
        });
        json!({ "image": path.display().to_string(), "predictions": predictions.collect::<Vec<_>>() })
    };
    predicted.iter().map(image).collect()
}

fn as_text(predicted: &[(&PathBuf, Vec<Seen>)], names: &Classes) -> String {
    let mut rows = vec![["image", "rank", "percent", "class", "name"].map(str::to_owned).to_vec()];
    for (path, seen) in predicted {
        for (rank, seen) in seen.iter().enumerate() {
            let image = if rank == 0 { path.display().to_string() } else { String::new() };
            let percent = format!("{:.2}", 100.0 * seen.probability);
            let rank = (rank + 1).to_string();
            rows.push(vec![image, rank, percent, seen.class.to_string(), names.name(seen.class)]);
        }
    }
    aligned(&rows)
}
