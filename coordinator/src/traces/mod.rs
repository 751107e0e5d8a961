//! Traces for OpenTelemetry, sent by OTLP where `--otlp` names a collector: one trace an epoch, because a run may take
//! weeks and a span is sent when it ends.
//!
//! ```text
//! epoch ─┬─ train      one for each generation that trained in it
//!        └─ validate
//! ```
//!
//! Decisions and checkpoints are events of the epoch that they fell into. Every span has `run.id` and `epoch`.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::metrics::EpochPoint;
use crate::view::{Board, News};

/// How long a collector may take to answer when it is first tried, and to take the last spans.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a collector is, as `--otlp` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    url: String,
    /// `host:port`.
    address: String,
}

impl std::str::FromStr for Collector {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let wrong = "it takes the address of a collector, such as http://localhost:4317";
        let uri: axum::http::Uri = url.parse().map_err(|error| format!("{wrong} ({error})"))?;
        let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(format!("{wrong} (only http is supported)"));
        };
        // The address stands in the log, which the dashboard shows.
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!("{wrong}, without a name or a password"));
        }
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(4317));
        Ok(Self { url: url.to_owned(), address })
    }
}

/// Why nothing can be traced. One line.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent to {url}: {reason}")]
pub struct TraceError {
    url: String,
    reason: String,
}

/// Sends traces until the run is over.
pub struct Traces {
    provider: SdkTracerProvider,
    task: JoinHandle<()>,
}

impl Traces {
    /// Follows the news on `board` and sends what they amount to to `collector`. To be called inside a tokio runtime. A
    /// collector that does not answer is said, and tried again for every batch of spans.
    ///
    /// # Errors
    /// An address that OpenTelemetry does not take.
    pub async fn start(collector: &Collector, run_id: &str, board: &Board) -> Result<Self, TraceError> {
        let Collector { url, address } = collector;
        let reached = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address)).await;
        if !matches!(reached, Ok(Ok(_))) {
            tracing::warn!("no collector answers at {url}: traces are lost until one does");
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(url).with_timeout(PATIENCE).build();
        let exporter =
            exporter.map_err(|error| TraceError { url: url.clone(), reason: error.to_string() })?;
        let resource = Resource::builder().with_service_name("relabel-coordinator").with_attributes([
            KeyValue::new("service.version", relabel_proto::VERSION),
            KeyValue::new("run.id", run_id.to_owned()),
            KeyValue::new("run.arch", board.config().model.arch.clone()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        let mut spans = Spans::new(provider.tracer("relabel"), run_id);
        let mut news = board.news();
        let task = tokio::spawn(async move {
            loop {
                match news.recv().await {
                    Ok(News::Ended(words)) => return spans.end(&words, SystemTime::now()),
                    Ok(news) => spans.take(&news, SystemTime::now()),
                    // Some were missed: the next ones tell where training is.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(Self { provider, task })
    }

    /// Sends what is left, once the run is over.
    pub async fn stop(self) {
        let _ = tokio::time::timeout(PATIENCE, self.task).await;
        let provider = self.provider;
        // It waits for the collector, so not on a thread that others need.
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(PATIENCE)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

/// The spans that are open.
struct Spans {
    tracer: SdkTracer,
    run_id: String,
    epoch: Option<(u32, Span)>,
    /// What is being done in it.
    part: Option<(&'static str, Span)>,
}

impl Spans {
    fn new(tracer: SdkTracer, run_id: &str) -> Self {
        Self { tracer, run_id: run_id.to_owned(), epoch: None, part: None }
    }

    /// Takes news that came at `now`.
    fn take(&mut self, news: &News, now: SystemTime) {
        match news {
            News::Started { at, .. } => {
                self.close_part(now);
                self.open(at.epoch, now);
                self.begin("train", now);
            }
            News::Step { done, .. } => {
                if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != done.epoch) {
                    // The next epoch has no news of its beginning but its first step.
                    self.open(done.epoch, now);
                    self.begin("train", now);
                }
                if done.done == done.steps {
                    self.close_part(now);
                    self.begin("validate", now);
                }
            }
            News::Epoch { point, .. } => {
                self.close_part(now);
                self.close(point, now);
            }
            News::Decided(decision) => {
                let level = if decision.warning { "warning" } else { "info" };
                let attributes = vec![KeyValue::new("level", level)];
                self.event(decision.words.clone(), attributes, now);
            }
            News::Saved(written) => {
                let attributes = vec![
                    KeyValue::new("file", written.file.clone()),
                    KeyValue::new("bytes", i64::try_from(written.bytes).unwrap_or(i64::MAX)),
                ];
                self.event("checkpoint".to_owned(), attributes, now);
            }
            News::Test(_) | News::Ended(_) => {}
        }
    }

    /// Opens the span of an epoch, ending another that is open.
    fn open(&mut self, epoch: u32, now: SystemTime) {
        if self.epoch.as_ref().is_some_and(|(open, _)| *open == epoch) {
            return;
        }
        self.close_part(now);
        if let Some((_, mut span)) = self.epoch.take() {
            span.end_with_timestamp(now);
        }
        let builder = self.builder("epoch", epoch, now);
        self.epoch = Some((epoch, self.tracer.build_with_context(builder, &Context::new())));
    }

    fn begin(&mut self, name: &'static str, now: SystemTime) {
        let Some((epoch, span)) = &self.epoch else { return };
        let builder = self.builder(name, *epoch, now);
        let within = within(span.span_context());
        self.part = Some((name, self.tracer.build_with_context(builder, &within)));
    }

    fn builder(&self, name: &'static str, epoch: u32, now: SystemTime) -> SpanBuilder {
        let attributes = [
            KeyValue::new("run.id", self.run_id.clone()),
            // From 1, as people count.
            KeyValue::new("epoch", i64::from(epoch) + 1),
        ];
        self.tracer.span_builder(name).with_start_time(now).with_attributes(attributes)
    }

    fn close_part(&mut self, now: SystemTime) {
        if let Some((_, mut span)) = self.part.take() {
            span.end_with_timestamp(now);
        }
    }

    fn close(&mut self, point: &EpochPoint, now: SystemTime) {
        let Some((_, mut span)) = self.epoch.take() else { return };
        span.set_attributes([
            KeyValue::new("train_loss", point.train_loss),
            KeyValue::new("val_loss", point.val_loss),
            KeyValue::new("top1", point.top1),
            KeyValue::new("top5", point.top5),
        ]);
        span.end_with_timestamp(now);
    }

    fn event(&mut self, words: String, attributes: Vec<KeyValue>, now: SystemTime) {
        if let Some((_, span)) = &mut self.epoch {
            span.add_event_with_timestamp(words, now, attributes);
        }
    }

    /// The run is over.
    fn end(&mut self, words: &str, now: SystemTime) {
        self.event(words.to_owned(), Vec::new(), now);
        self.close_part(now);
        if let Some((_, mut span)) = self.epoch.take() {
            span.end_with_timestamp(now);
        }
    }
}

/// The context of the children of a span.
fn within(span: &SpanContext) -> Context {
    Context::new().with_remote_span_context(span.clone())
}

#[cfg(test)]
mod tests;
