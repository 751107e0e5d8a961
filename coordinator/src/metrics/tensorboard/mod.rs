//! Event files for TensorBoard, in `tensorboard/` of the run directory: `tensorboard --logdir runs` shows all runs.
//!
//! A coordinator's life, and each time that training goes on from an earlier step, has a file of its own. It begins
//! with a mark that tells TensorBoard which steps will be told again, as `metrics.jsonl` has them taken out.

mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use prost::Message as _;
use relabel_config::{PICTURES, Picture};

use super::{MetricsError, Record, failed};
use crate::view::{BOUNDS, Histogram, News, unix_time};

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/tensorboard.rs"));
}

use proto::event::What;
use proto::session_log::Status;
use proto::summary::{Image, Value, value};

/// The folder of the files in the run directory.
const FOLDER: &str = "tensorboard";
/// The largest picture that is copied into a file.
const LARGEST: u64 = 4 << 20;
/// TensorFlow's number of the type of strings.
const STRING: i32 = 7;

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    run_dir: PathBuf,
    path: PathBuf,
    file: File,
    /// Pictures that are in it.
    pictures: BTreeSet<Picture>,
}

impl EventWriter {
    /// Begins a new file in `run_dir`. What other files say of steps from `from` on is void. `config` are the run's
    /// options as YAML.
    ///
    /// # Errors
    /// The disk refused.
    pub fn create(run_dir: &Path, from: u64, config: &str) -> Result<Self, MetricsError> {
        let folder = run_dir.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let path = new_path(&folder);
        let file =
            File::options().append(true).create_new(true).open(&path).map_err(failed("create", &path))?;
        let mut writer = Self { run_dir: run_dir.to_owned(), path, file, pictures: BTreeSet::new() };
        writer.write(0, What::FileVersion("brain.Event:2".into()))?;
        writer.write(from, What::SessionLog(proto::SessionLog { status: Status::Start.into() }))?;
        // Four blanks before each line are code in Markdown.
        let text = config.lines().map(|line| format!("    {line}\n")).collect::<String>();
        writer.summary(from, vec![text_value("options", text)])?;
        Ok(writer)
    }

    /// Writes what news there is.
    ///
    /// # Errors
    /// The disk refused.
    pub fn record(&mut self, news: &News) -> Result<(), MetricsError> {
        let Some(record) = news.record() else { return Ok(()) };
        match (record, news) {
            (Record::Step(point), _) => {
                let mut scalars = vec![
                    ("train/loss", point.loss),
                    ("train/learning_rate", point.lr),
                    ("train/images_per_second", point.images_per_second),
                    ("train/data_wait_seconds", point.data_wait),
                    ("train/images_skipped", point.skipped as f64),
                ];
                scalars.extend(point.loss_scale.map(|scale| ("train/loss_scale", scale)));
                self.scalars(point.global_step, &scalars)
            }
            (Record::Epoch(point), News::Epoch { steps, global_step, .. }) => {
                self.scalars(
                    *global_step,
                    &[
                        ("epoch/train_loss", point.train_loss),
                        ("epoch/seconds", point.seconds),
                        ("validation/loss", point.val_loss),
                        ("validation/top1", point.top1),
                        ("validation/top5", point.top5),
                    ],
                )?;
                if steps.count() > 0 {
                    self.summary(*global_step, vec![histogram_value("time/step_seconds", steps)])?;
                }
                self.pictures(point.epoch, *global_step)
            }
            (Record::Test(point), _) => self.scalars(
                0,
                &[("test/loss", point.val_loss), ("test/top1", point.top1), ("test/top5", point.top5)],
            ),
            (Record::Epoch(_), _) => Ok(()),
        }
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), MetricsError> {
        let value = |(tag, number): &(&str, f64)| Value {
            tag: (*tag).to_owned(),
            metadata: None,
            value: Some(value::Value::SimpleValue(*number as f32)),
        };
        self.summary(step, scalars.iter().map(value).collect())
    }

    /// Copies the pictures that the worker of rank 0 has drawn of an epoch. One that cannot be read is left out.
    fn pictures(&mut self, epoch: u32, step: u64) -> Result<(), MetricsError> {
        let folder = self.run_dir.join(PICTURES);
        let names = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let named = names.filter_map(|entry| Picture::named(entry.file_name().to_str()?));
        let fresh: BTreeSet<_> =
            named.filter(|picture| picture.epoch == epoch && !self.pictures.contains(picture)).collect();
        for picture in fresh {
            match read_png(&folder.join(picture.file_name())) {
                Ok(image) => {
                    let tag = format!("label_map/{:02} {}", picture.number, picture.key);
                    let value = Some(value::Value::Image(image));
                    self.summary(step, vec![Value { tag, metadata: None, value }])?;
                }
                Err(error) => tracing::warn!("{} is not shown: {error}", picture.file_name()),
            }
            self.pictures.insert(picture);
        }
        Ok(())
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<(), MetricsError> {
        self.write(step, What::Summary(proto::Summary { value }))
    }

    /// One record with one call, so that a reader that follows the file sees whole ones.
    fn write(&mut self, step: u64, what: What) -> Result<(), MetricsError> {
        let event = proto::Event { wall_time: unix_time(), step: step as i64, what: Some(what) };
        let record = record::framed(&event.encode_to_vec());
        self.file.write_all(&record).map_err(failed("append to", &self.path))
    }
}

/// A name that no file has, in TensorBoard's form and in the order of time.
fn new_path(folder: &Path) -> PathBuf {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().replace(['/', '.'], "-");
    let (seconds, pid) = (unix_time() as u64, std::process::id());
    let path = |n: u32| folder.join(format!("events.out.tfevents.{seconds:010}.{host}.{pid}.{n:03}"));
    (0..).map(path).find(|path| !path.exists()).unwrap_or_else(|| path(0))
}

fn histogram_value(tag: &str, values: &Histogram) -> Value {
    let limits = BOUNDS.iter().copied().chain([f64::MAX]);
    let buckets: Vec<(f64, f64)> = limits.zip(values.counts.iter().map(|count| *count as f64)).collect();
    // From the first that holds something to the last.
    let first = buckets.iter().position(|(_, count)| *count > 0.0).unwrap_or(0);
    let last = buckets.iter().rposition(|(_, count)| *count > 0.0).unwrap_or(0);
    let (bucket_limit, bucket) = buckets.get(first..=last).unwrap_or_default().iter().copied().unzip();
    let histo = proto::Histogram {
        min: values.min,
        max: values.max,
        num: values.count() as f64,
        sum: values.sum,
        sum_squares: values.sum_of_squares,
        bucket_limit,
        bucket,
    };
    Value { tag: tag.to_owned(), metadata: None, value: Some(value::Value::Histo(histo)) }
}

fn text_value(tag: &str, text: String) -> Value {
    let plugin = proto::summary_metadata::PluginData { plugin_name: "text".into() };
    let dim = vec![proto::tensor_shape::Dim { size: 1 }];
    let tensor = proto::Tensor {
        dtype: STRING,
        tensor_shape: Some(proto::TensorShape { dim }),
        string_val: vec![text.into_bytes()],
    };
    Value {
        tag: tag.to_owned(),
        metadata: Some(proto::SummaryMetadata { plugin_data: Some(plugin) }),
        value: Some(value::Value::Tensor(tensor)),
    }
}

/// A PNG file with its size, which stands behind its signature.
fn read_png(path: &Path) -> io::Result<Image> {
    let wrong = |words: &str| io::Error::new(io::ErrorKind::InvalidData, words.to_owned());
    if std::fs::metadata(path)?.len() > LARGEST {
        return Err(wrong("it is too large"));
    }
    let bytes = std::fs::read(path)?;
    let side = |from: usize| {
        let side = bytes.get(from..from + 4)?;
        side.try_into().ok().map(i32::from_be_bytes)
    };
    let (Some(width), Some(height)) = (side(16), side(20)) else { return Err(wrong("it is no PNG")) };
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") || width <= 0 || height <= 0 {
        return Err(wrong("it is no PNG"));
    }
    Ok(Image { height, width, colorspace: 3, encoded_image_string: bytes })
}
