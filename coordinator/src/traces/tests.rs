#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue as Pair};
use opentelemetry_proto::tonic::trace::v1::Span as Told;
use relabel_config::Config;
use relabel_core::{Dataset, EpochSummary, Observation, Outcome, Position, StepReport};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::progress::Tail;

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collecting(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collecting {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (Collecting, Collector) {
    let collector = Collecting::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let service = TraceServiceServer::new(collector.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (collector, at)
}

fn step(epoch: u32, step: u64) -> Observation {
    Observation::Step(StepReport {
        position: Position { epoch, step },
        loss: 1.0,
        learning_rate: 0.1,
        samples: 8,
        skipped: 0,
        duration: Duration::from_millis(1),
        data_wait: Duration::ZERO,
        epoch_loss_sum: 8.0,
        epoch_samples: 8,
        loss_scale: None,
    })
}

fn board() -> Board {
    Board::new("/tmp/run".into(), Config::default(), Tail::default())
}

fn attribute<'a>(pairs: &'a [Pair], key: &str) -> Option<&'a Value> {
    pairs.iter().find(|pair| pair.key == key)?.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_sent_a_trace_of_each_epoch() {
    let (collector, at) = collector().await;
    let board = board();
    let traces = Traces::start(&at, "run-1", &board).await.unwrap();
    let dataset = Dataset {
        train_samples: 16,
        train_fingerprint: String::new(),
        val_samples: 4,
        val_fingerprint: String::new(),
        classes: 2,
    };
    let summary = EpochSummary {
        epoch: 0,
        train_loss: 1.0,
        skipped: 0,
        val_loss: 2.0,
        top1: 0.5,
        top5: 1.0,
        best_top1: 0.5,
        best_epoch: 0,
        duration: Duration::from_secs(1),
    };
    for observation in [
        Observation::Planned { steps_per_epoch: 2, dataset },
        Observation::Started { position: Position::default() },
        step(0, 0),
        // A worker is lost, and a new generation goes on.
        Observation::Warning("going on without worker 1".into()),
        Observation::Started { position: Position { epoch: 0, step: 1 } },
        step(0, 1),
        Observation::Epoch(summary),
        step(1, 0),
    ] {
        board.observe(&observation);
    }
    board.end(&Outcome::Done);
    traces.stop().await;

    let requests = collector.0.lock().unwrap().clone();
    let resource = requests[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(attribute(&resource.attributes, "run.id"), Some(&Value::StringValue("run-1".into())));
    let spans: Vec<Told> = requests
        .iter()
        .flat_map(|request| &request.resource_spans)
        .flat_map(|spans| &spans.scope_spans)
        .flat_map(|spans| spans.spans.clone())
        .collect();
    let of = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let epochs = of("epoch");
    let numbers: Vec<_> = epochs.iter().map(|span| attribute(&span.attributes, "epoch")).collect();
    assert_eq!(numbers, [Some(&Value::IntValue(1)), Some(&Value::IntValue(2))]);
    let first = epochs[0];
    assert!(first.parent_span_id.is_empty() && first.trace_id != epochs[1].trace_id);
    assert_eq!(attribute(&first.attributes, "top1"), Some(&Value::DoubleValue(50.0)));
    assert_eq!(first.events[0].name, "going on without worker 1");
    assert_eq!(attribute(&first.events[0].attributes, "level"), Some(&Value::StringValue("warning".into())));
    let within = |name: &str, epoch: &Told| {
        let inner = of(name).into_iter().filter(|span| span.parent_span_id == epoch.span_id);
        inner.inspect(|span| assert_eq!(span.trace_id, epoch.trace_id)).count()
    };
    // Two generations trained in the first; the second was still being trained.
    assert_eq!((within("train", first), within("validate", first)), (2, 1));
    assert_eq!((within("train", epochs[1]), within("validate", epochs[1])), (1, 0));
    assert!(spans.iter().all(|span| span.end_time_unix_nano >= span.start_time_unix_nano));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_holds_nothing_up() {
    let board = board();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let traces = Traces::start(&at, "run-1", &board).await.unwrap();
    board.observe(&Observation::Started { position: Position::default() });
    board.end(&Outcome::Done);
    let began = std::time::Instant::now();
    traces.stop().await;
    assert!(began.elapsed() < 3 * PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn the_address_of_a_collector_is_http_and_shows_no_password() {
    let taken = |url: &str| url.parse::<Collector>();
    assert_eq!(taken("http://host").unwrap().address, "host:4317");
    assert_eq!(taken("http://10.0.0.1:55").unwrap().address, "10.0.0.1:55");
    for (url, why) in [
        ("https://localhost:4317", "only http"),
        ("localhost:4317", "only http"),
        ("http://", "such as http://localhost:4317"),
        ("no address", "such as http://localhost:4317"),
        ("http://me:secret@localhost:4317", "without a name or a password"),
    ] {
        let error = taken(url).unwrap_err();
        assert!(error.contains(why) && !error.contains("secret"), "{url}: {error}");
    }
}
