//! The two Jobs of a run as the parts of one JobSet, and that as the runtime of a TrainJob.

use serde_yaml_ng::{Mapping, Value};

use super::push;

/// Versions of the objects that are made here.
const JOB_SET: &str = "jobset.x-k8s.io/v1alpha2";
const TRAINER: &str = "trainer.kubeflow.org/v1alpha1";

/// The run as one JobSet: done when the coordinator is, failed when the coordinator has failed for good, and with it
/// the workers are gone.
pub(super) fn job_set(documents: Vec<Value>, name: &str) -> Vec<Value> {
    let (mut documents, spec) = join(documents, name, "worker");
    let mut set = object(JOB_SET, "JobSet", name, &documents);
    set["spec"] = spec;
    documents.push(set);
    documents
}

/// The run as a TrainJob and a TrainingRuntime of its own. Trainer finds the workers by the name `node`.
pub(super) fn train_job(documents: Vec<Value>, name: &str) -> Vec<Value> {
    let (mut documents, mut spec) = join(documents, name, "node");
    let node = &mut spec["replicatedJobs"][1];
    let workers = node["template"]["spec"]["completions"].clone();
    node["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] = "trainer".into();
    let container = &mut node["template"]["spec"]["template"]["spec"]["containers"][0];
    container["name"] = "node".into();
    let image = container["image"].clone();
    // The rules of failure speak of the container.
    if let Some(rules) = node["template"]["spec"]["podFailurePolicy"]["rules"].as_sequence_mut() {
        for rule in rules.iter_mut().filter(|rule| rule.get("onExitCodes").is_some()) {
            rule["onExitCodes"]["containerName"] = "node".into();
        }
    }

    let mut runtime = object(TRAINER, "TrainingRuntime", name, &documents);
    runtime["spec"]["mlPolicy"]["numNodes"] = workers.clone();
    runtime["spec"]["template"]["spec"] = spec;
    let mut job = object(TRAINER, "TrainJob", name, &documents);
    job["spec"]["runtimeRef"]["apiGroup"] = "trainer.kubeflow.org".into();
    job["spec"]["runtimeRef"]["kind"] = "TrainingRuntime".into();
    job["spec"]["runtimeRef"]["name"] = name.into();
    job["spec"]["trainer"]["numNodes"] = workers;
    job["spec"]["trainer"]["image"] = image;
    documents.extend([runtime, job]);
    documents
}

/// Takes the two Jobs out of the documents and makes the spec of a JobSet of them, in which the workers are called
/// `workers`. Its pods have names of their own, so the coordinator's Service goes too.
fn join(documents: Vec<Value>, name: &str, workers: &str) -> (Vec<Value>, Value) {
    let (jobs, rest): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| document["kind"] == "Job");
    let rest: Vec<_> = rest.into_iter().filter(|document| document["kind"] != "Service").collect();
    let mut spec = Value::Mapping(Mapping::new());
    spec["network"]["enableDNSHostnames"] = true.into();
    spec["network"]["subdomain"] = name.into();
    spec["network"]["publishNotReadyAddresses"] = true.into();
    spec["coordinator"]["replicatedJob"] = "coordinator".into();
    spec["successPolicy"]["operator"] = "All".into();
    spec["successPolicy"]["targetReplicatedJobs"] = vec![Value::from("coordinator")].into();
    // Another failure than the run's own starts all of it again, and the run carries on.
    spec["failurePolicy"]["maxRestarts"] = 3.into();
    let mut rule = Value::Mapping(Mapping::new());
    rule["name"] = "run-failed".into();
    rule["action"] = "FailJobSet".into();
    rule["targetReplicatedJobs"] = vec![Value::from("coordinator")].into();
    rule["onJobFailureReasons"] = vec![Value::from("PodFailurePolicy")].into();
    push(&mut spec["failurePolicy"], "rules", rule);

    // Of JobSet's making: set, part, index of the Job and of the pod.
    let address = format!("://{name}-coordinator-0-0.{name}:4747");
    for mut job in jobs {
        let is_coordinator = job["metadata"]["name"] == format!("{name}-coordinator");
        let part = if is_coordinator { "coordinator" } else { workers };
        let job_spec = &mut job["spec"];
        if is_coordinator {
            // Only the pods of an indexed Job have host names.
            job_spec["completionMode"] = "Indexed".into();
            job_spec["completions"] = 1.into();
            job_spec["parallelism"] = 1.into();
        } else if let Some(env) = job_spec["template"]["spec"]["containers"][0]["env"].as_sequence_mut() {
            for variable in env.iter_mut().filter(|variable| variable["name"] == "COORDINATOR") {
                let scheme = variable["value"].as_str().and_then(|value| value.split("://").next());
                variable["value"] = format!("{}{address}", scheme.unwrap_or("http")).into();
            }
        }
        let mut replicated = Value::Mapping(Mapping::new());
        replicated["name"] = part.into();
        replicated["replicas"] = 1.into();
        replicated["template"]["metadata"]["labels"] = job["metadata"]["labels"].clone();
        replicated["template"]["spec"] = job["spec"].clone();
        push(&mut spec, "replicatedJobs", replicated);
    }
    (rest, spec)
}

/// An object with the labels, and in the namespace, of those beside it.
fn object(version: &str, kind: &str, name: &str, beside: &[Value]) -> Value {
    let mut object = Value::Mapping(Mapping::new());
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    object["metadata"]["name"] = name.into();
    object["metadata"]["labels"]["app.kubernetes.io/name"] = "relabel".into();
    object["metadata"]["labels"]["app.kubernetes.io/instance"] = name.into();
    if let Some(namespace) = beside.first().and_then(|first| first["metadata"].get("namespace")) {
        object["metadata"]["namespace"] = namespace.clone();
    }
    object
}
