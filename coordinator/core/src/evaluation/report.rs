//! What `worker eval` and `coordinator eval` print: a table for people, JSON for programs. Accuracies and errors are in
//! percent, losses in nats an image.

use serde_json::{Value, json};

use super::corruption::{Baseline, CorruptionErrors, MeanError};
use super::counts::{Counts, Found};

/// One evaluated set.
#[derive(Debug, Clone, PartialEq)]
pub struct SetReport {
    pub name: String,
    pub path: String,
    /// The set's classes and the network's outputs.
    pub classes: u64,
    pub outputs: u64,
    /// Whether only the set's classes were answers.
    pub restricted: bool,
    pub found: Found,
}

/// One evaluated set in ImageNet-C's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct CorruptedReport {
    pub name: String,
    pub path: String,
    pub corruptions: Vec<CorruptionErrors>,
    pub mean: MeanError,
}

/// Everything that was evaluated in one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub weights: String,
    pub arch: String,
    pub sets: Vec<SetReport>,
    pub corrupted: Vec<CorruptedReport>,
    pub baseline: Baseline,
}

/// Epsilon as it is given on the command line, in 1/255.
fn units(epsilon: f64) -> f64 {
    (epsilon * 255.0 * 1e6).round() / 1e6
}

fn percent(share: f64) -> f64 {
    100.0 * share
}

impl Report {
    /// One object for everything.
    pub fn to_json(&self) -> Value {
        let sets: Vec<Value> = self.sets.iter().map(SetReport::to_json).collect();
        let corrupted: Vec<Value> = self.corrupted.iter().map(|c| c.to_json(&self.baseline)).collect();
        json!({ "weights": self.weights, "arch": self.arch, "sets": sets, "corrupted": corrupted })
    }

    /// A table of the sets, and one for each in ImageNet-C's layout; without a line break at the end.
    pub fn to_text(&self) -> String {
        let mut blocks = Vec::new();
        if !self.sets.is_empty() {
            blocks.push(self.table());
        }
        blocks.extend(self.corrupted.iter().map(|corrupted| corrupted.to_text(&self.baseline)));
        blocks.join("\n\n")
    }

    fn table(&self) -> String {
        let real = self.sets.iter().any(|set| set.found.real.is_some());
        let multi_label = self.sets.iter().any(|set| set.found.multi_label.is_some());
        let epsilons: Vec<f64> = self
            .sets
            .first()
            .map_or(Vec::new(), |set| set.found.attacked.iter().map(|(epsilon, _)| *epsilon).collect());
        let mut head: Vec<String> =
            ["set", "images", "classes", "loss", "top-1", "top-5"].map(Into::into).into();
        head.extend(real.then(|| "ReaL".into()));
        head.extend(multi_label.then(|| ["multi-label", "correct"].map(Into::into)).into_iter().flatten());
        head.extend(epsilons.iter().map(|&epsilon| format!("FGSM {}", units(epsilon))));
        let mut rows = vec![head];
        rows.extend(self.sets.iter().map(|set| set.row(real, multi_label)));
        let mut text = aligned(&rows);
        for set in self.sets.iter().filter(|set| set.restricted) {
            text += &format!(
                "\n{}: answers restricted to the set's {} of {} classes",
                set.name, set.classes, set.outputs
            );
        }
        if multi_label {
            text += "\nmulti-label: correct or unclear, mean over classes; correct: correct only, mean over images";
        }
        if !epsilons.is_empty() {
            text += "\nFGSM: top-1 under the fast gradient sign attack, epsilon in 1/255";
        }
        text
    }
}

impl SetReport {
    fn row(&self, real: bool, multi_label: bool) -> Vec<String> {
        let Found { counts, attacked, .. } = &self.found;
        let share =
            |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:.2}", percent(share)));
        let mut row = vec![
            self.name.clone(),
            counts.samples.to_string(),
            self.classes.to_string(),
            format!("{:.4}", counts.loss()),
            share(Some(counts.top1_share())),
            share(Some(counts.top5_share())),
        ];
        if real {
            row.push(share(self.found.real.map(|real| real.accuracy())));
        }
        if multi_label {
            row.push(share(self.found.multi_label.as_ref().map(|labels| labels.class_mean())));
            row.push(share(self.found.multi_label.as_ref().map(|labels| labels.correct())));
        }
        row.extend(attacked.iter().map(|(_, counts)| share(Some(counts.top1_share()))));
        row
    }

    fn to_json(&self) -> Value {
        let shares = |counts: &Counts| {
            json!({
                "loss": counts.loss(),
                "top1": percent(counts.top1_share()),
                "top5": percent(counts.top5_share()),
            })
        };
        let mut value = json!({
            "name": self.name,
            "path": self.path,
            "images": self.found.counts.samples,
            "classes": self.classes,
            "outputs": self.outputs,
            "restricted": self.restricted,
        });
        merge(&mut value, shares(&self.found.counts));
        if let Some(real) = &self.found.real {
            value["real"] = json!({ "images": real.images, "accuracy": percent(real.accuracy()) });
        }
        if let Some(labels) = &self.found.multi_label {
            value["multi_label"] = json!({
                "images": labels.images,
                "class_mean": percent(labels.class_mean()),
                "correct": percent(labels.correct()),
            });
        }
        if !self.found.attacked.is_empty() {
            let attacked = self.found.attacked.iter().map(|(epsilon, counts)| {
                let mut attacked = json!({ "epsilon": units(*epsilon) });
                merge(&mut attacked, shares(counts));
                attacked
            });
            value["fgsm"] = attacked.collect();
        }
        value
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

impl CorruptedReport {
    fn to_json(&self, baseline: &Baseline) -> Value {
        let corruptions = self.corruptions.iter().map(|corruption| {
            let severities: Vec<Value> = corruption
                .errors
                .iter()
                .map(|(severity, error)| json!({ "severity": severity, "error": percent(*error) }))
                .collect();
            json!({
                "name": corruption.name,
                "error": percent(corruption.mean()),
                "normalized": corruption.normalized(baseline).map(percent),
                "severities": severities,
            })
        });
        json!({
            "name": self.name,
            "path": self.path,
            "corruptions": corruptions.collect::<Vec<_>>(),
            "mean_error": percent(self.mean.mean),
            "mce": self.mean.normalized.map(percent),
            "baseline": baseline.origin,
        })
    }

    fn to_text(&self, baseline: &Baseline) -> String {
        let share =
            |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:.2}", percent(share)));
        let mut rows = vec![["corruption", "error", "normalized", "by severity"].map(Into::into).to_vec()];
        rows.extend(self.corruptions.iter().map(|corruption| {
            let by_severity: Vec<String> = corruption
                .errors
                .iter()
                .map(|(severity, error)| format!("{severity}: {:.2}", percent(*error)))
                .collect();
            vec![
                corruption.name.clone(),
                share(Some(corruption.mean())),
                share(corruption.normalized(baseline)),
                by_severity.join("  "),
            ]
        }));
        let origin = &baseline.origin;
        let normalized = match self.mean.normalized {
            Some(mce) => format!("mean corruption error {:.2} (100 is as bad as {origin})", percent(mce)),
            None => format!(
                "no mean corruption error normalized by {origin}: it needs severities 1 to 5 of {} too",
                self.mean.missing.join(", ")
            ),
        };
        format!(
            "{}: errors in percent\n{}\nunnormalized mean error {:.2}\n{normalized}",
            self.name,
            aligned(&rows),
            percent(self.mean.mean)
        )
    }
}

/// Rows as a table: the first and the last column to the left if it is text, numbers to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let numeric = |column: usize| {
        let starts =
            |row: &Vec<String>| row.get(column).is_none_or(|cell| cell.parse::<f64>().is_ok() || cell == "-");
        rows.iter().skip(1).all(starts)
    };
    let right: Vec<bool> = (0..columns).map(|column| column > 0 && numeric(column)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(widths.iter().zip(&right)).map(|(cell, (&width, right))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
