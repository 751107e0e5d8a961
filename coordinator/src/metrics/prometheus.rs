//! The run as Prometheus scrapes it: text format 0.0.4, base units, every name beginning with `relabel_`. What is not
//! known has no sample, rather than a zero that would look like one.

use std::fmt::Write as _;

use crate::view::{BOUNDS, Histogram, View, WorkerView};

/// Of the answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The words that [`View::phase`] can be.
const PHASES: [&str; 7] = ["reuniting", "gathering", "forming", "training", "validating", "saving", "ended"];

/// All metrics of the run.
pub fn text(view: &View) -> String {
    let mut page = Page::default();
    run(&mut page, view);
    training(&mut page, view);
    cluster(&mut page, view);
    totals(&mut page, view);
    process(&mut page);
    page.0
}

fn run(page: &mut Page, view: &View) {
    let labels =
        [("run_id", view.run_id.as_str()), ("arch", view.arch.as_str()), ("version", view.version.as_str())];
    page.family("relabel_run_info", "gauge", "What is trained; always 1.").sample(&labels, 1.0);
    let mut phases =
        page.family("relabel_run_phase", "gauge", "1 for the phase that the run is in, 0 for the others.");
    for phase in PHASES {
        phases.sample(&[("phase", phase)], f64::from(u8::from(view.phase == phase)));
    }
    page.gauge("relabel_run_epochs", "Epochs of the whole run.", Some(view.epochs.into()));
    let position = view.position;
    page.gauge("relabel_epoch", "Epoch of the next step, from 0.", position.map(|at| at.epoch.into()));
    page.gauge("relabel_step", "The next step within the epoch, from 0.", position.map(|at| at.step as f64));
    let steps = view.steps_per_epoch.map(|steps| steps as f64);
    page.gauge("relabel_steps_per_epoch", "Steps of an epoch.", steps);
    let done = view.position.zip(view.steps_per_epoch).map(|(at, steps)| {
        let all = f64::from(view.epochs) * steps as f64;
        ((f64::from(at.epoch) * steps as f64 + at.step as f64) / all.max(1.0)).min(1.0)
    });
    page.gauge("relabel_run_progress_ratio", "Part of the run's steps that is done, 0 to 1.", done);
    page.gauge(
        "relabel_eta_seconds",
        "Until the last epoch is validated, at the present speed.",
        view.eta_seconds,
    );
}

fn training(page: &mut Page, view: &View) {
    page.gauge("relabel_train_loss", "Mean loss of the last global batch, nats.", view.loss);
    page.gauge("relabel_learning_rate", "Learning rate of the last step.", view.learning_rate);
    page.gauge("relabel_loss_scale", "What the loss is scaled by in fp16.", view.loss_scale);
    page.gauge(
        "relabel_images_per_second",
        "Images trained on a second, all workers together, over the newest steps.",
        view.images_per_second,
    );
    let epoch = view.last_epoch.as_ref();
    let of = |value: fn(&crate::view::EpochView) -> f64| epoch.map(value);
    page.gauge(
        "relabel_epoch_train_loss",
        "Mean training loss of the last epoch that was validated, nats.",
        of(|epoch| epoch.train_loss),
    );
    page.gauge(
        "relabel_validation_loss",
        "Mean cross entropy of the last validation, nats.",
        of(|e| e.val_loss),
    );
    page.gauge(
        "relabel_validation_top1_ratio",
        "Share of right answers in the last validation.",
        of(|e| e.top1),
    );
    page.gauge(
        "relabel_validation_top5_ratio",
        "Share of images whose class was among the first five in the last validation.",
        of(|epoch| epoch.top5),
    );
    page.gauge("relabel_epoch_seconds", "What the last epoch took, validation included.", of(|e| e.seconds));
    page.gauge(
        "relabel_best_top1_ratio",
        "Best share of right answers of any validation so far.",
        view.best_top1,
    );
    let validated = view.validating.map(|(done, images)| done as f64 / images.max(1) as f64);
    page.gauge("relabel_validation_progress_ratio", "Part of the validation under way, 0 to 1.", validated);
}

fn cluster(page: &mut Page, view: &View) {
    page.gauge(
        "relabel_generation",
        "Number of the current generation of workers.",
        Some(view.generation as f64),
    );
    page.gauge("relabel_workers", "Workers that are seated.", Some(view.seated.into()));
    page.gauge("relabel_workers_wanted", "Seats.", Some(view.world.into()));
    page.gauge("relabel_workers_training", "Ranks of the current generation.", view.training.map(f64::from));
    page.gauge("relabel_workers_min", "Fewest workers that train together.", view.min_workers.map(f64::from));
    page.gauge("relabel_coordinator_lives", "Coordinators the run has had.", view.lives.map(f64::from));

    let seconds = |value: fn(&WorkerView) -> Option<f64>| value;
    let families = [
        (
            "relabel_worker_silent_seconds",
            "Since the worker last said anything.",
            seconds(|w| Some(w.silent_seconds)),
        ),
        (
            "relabel_worker_step_seconds",
            "Mean length of the worker's newest steps.",
            seconds(|w| w.step_seconds),
        ),
        ("relabel_worker_compute_seconds", "Of it, computing.", seconds(|w| w.compute_seconds)),
        ("relabel_worker_data_wait_seconds", "Of it, waiting for images.", seconds(|w| w.data_wait_seconds)),
        ("relabel_worker_peer_wait_seconds", "Of it, waiting for peers.", seconds(|w| w.peer_wait_seconds)),
        (
            "relabel_worker_lost_ratio",
            "Part of all workers' time lost to waiting for this one.",
            seconds(|w| w.lost_share),
        ),
        (
            "relabel_worker_slow",
            "1 for a worker that counts as a straggler.",
            seconds(|w| w.slow.map(|slow| f64::from(u8::from(slow)))),
        ),
        (
            "relabel_worker_memory_bytes",
            "Memory that the worker takes on its device.",
            seconds(|w| w.memory_bytes.map(|bytes| bytes as f64)),
        ),
    ];
    for (name, help, value) in families {
        let known: Vec<_> = view.workers.iter().filter_map(|worker| Some((worker, value(worker)?))).collect();
        if known.is_empty() {
            continue;
        }
        let mut family = page.family(name, "gauge", help);
        for (worker, value) in known {
            let rank = worker.rank.to_string();
            let labels = [("rank", rank.as_str()), ("host", &worker.host), ("device", &worker.device)];
            family.sample(&labels, value);
        }
    }

    let newest = view.checkpoints.last();
    page.gauge(
        "relabel_checkpoints",
        "Checkpoints that can be resumed from.",
        Some(view.checkpoints.len() as f64),
    );
    page.gauge("relabel_checkpoint_bytes", "Size of the newest checkpoint.", newest.map(|c| c.bytes as f64));
    page.gauge(
        "relabel_checkpoint_timestamp_seconds",
        "Unix time at which the newest checkpoint was committed.",
        newest.and_then(|checkpoint| checkpoint.time),
    );
}

/// Counters begin with the coordinator, as Prometheus expects of a process that is started anew.
fn totals(page: &mut Page, view: &View) {
    let totals = &view.totals;
    let counters = [
        ("relabel_steps_total", "Steps done.", totals.steps as f64),
        ("relabel_images_total", "Images that counted in a step.", totals.images as f64),
        ("relabel_images_skipped_total", "Images left out as unreadable.", totals.skipped as f64),
        ("relabel_epochs_total", "Epochs validated.", totals.epochs as f64),
        ("relabel_checkpoints_total", "Checkpoints committed.", totals.checkpoints as f64),
        ("relabel_warnings_total", "Things that went wrong and were dealt with.", totals.warnings as f64),
        (
            "relabel_data_wait_seconds_total",
            "Time that the reporting rank waited for images.",
            totals.data_wait_seconds,
        ),
    ];
    for (name, help, value) in counters {
        page.family(name, "counter", help).sample(&[], value);
    }
    page.histogram(
        "relabel_step_seconds",
        "Lengths of the steps on the reporting rank.",
        &totals.step_seconds,
    );
}

/// What client libraries tell of their process, under the names that they have agreed on.
fn process(page: &mut Page) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| {
        let kilobytes: f64 = line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(1024.0 * kilobytes)
    });
    page.gauge("process_resident_memory_bytes", "Memory of the coordinator.", resident);
    let descriptors = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    page.gauge("process_open_fds", "File descriptors that the coordinator has open.", descriptors);
    // After the name in brackets: user and system time are the 12th and 13th, in ticks of a hundredth on Linux.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    if let Some((user, system)) = ticks(11).zip(ticks(12)) {
        let help = "Processor time of the coordinator.";
        page.family("process_cpu_seconds_total", "counter", help).sample(&[], (user + system) / 100.0);
    }
}

/// The text so far.
#[derive(Default)]
struct Page(String);

/// Samples of one name.
struct Family<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Page {
    fn family<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Family<'a> {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }

    /// A gauge without labels, if it has a value.
    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.family(name, "gauge", help).sample(&[], value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, values: &Histogram) {
        self.family(name, "histogram", help);
        let mut below = 0;
        for (index, bound) in BOUNDS.iter().enumerate() {
            below += values.counts.get(index).copied().unwrap_or_default();
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let count = values.count();
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.0, "{name}_sum {}\n{name}_count {count}", values.sum);
    }
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let out = &mut self.page.0;
        out.push_str(self.name);
        for (index, (label, words)) in labels.iter().enumerate() {
            let _ = write!(out, "{}{label}=\"{}\"", if index == 0 { "{" } else { "," }, escaped(words));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        // Rust writes infinities as the format does not.
        let value = match value {
            v if v.is_nan() => "NaN".to_owned(),
            v if v.is_infinite() => if v > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
            v => v.to_string(),
        };
        let _ = writeln!(out, "{close} {value}");
    }
}

/// `words` as they stand between the quotes of a label.
fn escaped(words: &str) -> String {
    words.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::EpochView;

    fn samples(text: &str, name: &str) -> Vec<String> {
        let begins = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        text.lines().filter(begins).map(|line| line[name.len()..].to_owned()).collect()
    }

    fn view() -> View {
        let mut view = View {
            run_id: "a \"run\"\\\n".into(),
            arch: "resnet18".into(),
            version: "1".into(),
            phase: "training".into(),
            epochs: 4,
            steps_per_epoch: Some(10),
            position: Some(relabel_core::Position { epoch: 1, step: 5 }),
            loss: Some(f64::NAN),
            last_epoch: Some(EpochView { top1: 0.25, ..EpochView::default() }),
            ..View::default()
        };
        for rank in 0..2 {
            let step_seconds = (rank == 0).then_some(0.5);
            let host = format!("node{rank}");
            view.workers.push(WorkerView { rank, host, step_seconds, ..WorkerView::default() });
        }
        [0.0005, 0.2, 0.2, 300.0].into_iter().for_each(|seconds| view.totals.step_seconds.add(seconds));
        view
    }

    #[test]
    fn the_numbers_are_the_view_s_and_what_is_not_known_is_left_out() {
        let text = text(&view());
        assert_eq!(samples(&text, "relabel_validation_top1_ratio"), [" 0.25"]);
        assert_eq!(samples(&text, "relabel_run_progress_ratio"), [" 0.375"]);
        assert_eq!(samples(&text, "relabel_train_loss"), [" NaN"]);
        assert_eq!(samples(&text, "relabel_run_phase").iter().filter(|line| line.ends_with(" 1")).count(), 1);
        let steps = samples(&text, "relabel_worker_step_seconds");
        assert_eq!(steps, [r#"{rank="0",host="node0",device=""} 0.5"#]);
        assert_eq!(samples(&text, "relabel_worker_silent_seconds").len(), 2);
        for unknown in ["relabel_best_top1_ratio", "relabel_eta_seconds", "relabel_worker_slow"] {
            assert!(!text.contains(unknown), "{unknown}");
        }
        let info = samples(&text, "relabel_run_info");
        assert_eq!(info, [r#"{run_id="a \"run\"\\\n",arch="resnet18",version="1"} 1"#]);
        assert!(samples(&text, "process_resident_memory_bytes").len() == 1);
    }

    #[test]
    fn buckets_add_up() {
        let text = text(&view());
        let buckets = samples(&text, "relabel_step_seconds_bucket");
        assert_eq!(buckets.len(), BOUNDS.len() + 1);
        assert_eq!(buckets[0], r#"{le="0.001"} 1"#);
        assert!(
            buckets.contains(&r#"{le="0.15"} 1"#.to_owned())
                && buckets.contains(&r#"{le="0.2"} 3"#.to_owned())
        );
        assert_eq!(buckets[BOUNDS.len()], r#"{le="+Inf"} 4"#);
        assert_eq!(samples(&text, "relabel_step_seconds_count"), [" 4"]);
        // Before the first step too.
        let empty = super::text(&View::default());
        assert_eq!(samples(&empty, "relabel_step_seconds_count"), [" 0"]);
    }

    #[test]
    fn every_family_is_described_once() {
        let text = text(&view());
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            let (name, help) = line.split_once(' ').unwrap();
            assert!(seen.insert(name.to_owned()), "{name}");
            assert!(help.ends_with('.'), "{line}");
        }
    }
}
