//! Kubernetes objects as data.

use std::path::Path;
use std::process::Command;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use relabel_tests::program;
use serde::Deserialize as _;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The documents of a YAML text.
pub fn documents(yaml: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// The objects of `deploy/k8s/base`.
pub fn base() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/k8s/base");
    let kustomization = std::fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    let files = documents(&kustomization)[0]["resources"].as_array().unwrap().clone();
    assert!(files.len() >= 7, "{files:?}");
    let text = |file: &Value| std::fs::read_to_string(folder.join(file.as_str().unwrap())).unwrap();
    files.iter().flat_map(|file| documents(&text(file))).collect()
}

/// What `coordinator submit k8s --dry-run` prints for a run called `run`.
pub fn submitted<S: AsRef<str>>(flags: &[S]) -> Vec<Value> {
    let output = Command::new(program("coordinator"))
        .args(["submit", "k8s", "--dry-run", "--name=run"])
        .args(flags.iter().map(AsRef::as_ref))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    documents(std::str::from_utf8(&output.stdout).unwrap())
}

/// An object read into its type and written again: what the type does not know is gone. None for objects that
/// Kubernetes itself does not have.
pub fn round_trip(object: &Value) -> Option<Value> {
    fn through<T: Serialize + DeserializeOwned>(object: &Value) -> Value {
        let typed: T =
            serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
        serde_json::to_value(typed).unwrap()
    }
    Some(match object["kind"].as_str().unwrap() {
        "Job" => through::<Job>(object),
        "ConfigMap" => through::<ConfigMap>(object),
        "PersistentVolumeClaim" => through::<PersistentVolumeClaim>(object),
        "Service" => through::<Service>(object),
        "ServiceAccount" => through::<ServiceAccount>(object),
        "NetworkPolicy" => through::<NetworkPolicy>(object),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(object),
        "JobSet" | "TrainJob" | "TrainingRuntime" => return None,
        other => panic!("{other} is not looked at"),
    })
}

/// A Job with this spec.
pub fn job(spec: &Value) -> Value {
    json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "job" }, "spec": spec })
}

/// The specs of all Jobs among the objects and in them, with what part of the run they are: coordinator or worker.
pub fn pod_templates(objects: &[Value]) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for object in objects {
        let set = match object["kind"].as_str().unwrap() {
            "Job" => {
                found.push(object["spec"].clone());
                continue;
            }
            "JobSet" => &object["spec"],
            "TrainingRuntime" => &object["spec"]["template"]["spec"],
            _ => continue,
        };
        for part in set["replicatedJobs"].as_array().unwrap() {
            found.push(part["template"]["spec"].clone());
        }
    }
    let part = |spec: &Value| {
        let labels = &spec["template"]["metadata"]["labels"];
        labels["app.kubernetes.io/component"].as_str().unwrap().to_owned()
    };
    found.into_iter().map(|spec| (part(&spec), spec)).collect()
}
