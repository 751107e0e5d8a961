//! TLS between the pods of a run, as `deploy/k8s/components/tls` has it.

use serde_yaml_ng::{Mapping, Value};

use super::push;

/// Where the files of the Secret are, inside the pods.
const FOLDER: &str = "/etc/relabel-tls";

/// Has the coordinator's pod show the certificate of `secret`, and the workers' trust who signed it. Each is the
/// object of its Job.
pub(super) fn coordinator(job: &mut Value, secret: &str) {
    let pod = mount(job, secret, None);
    push(&mut pod["containers"][0], "args", format!("--tls-cert={FOLDER}/tls.crt").into());
    push(&mut pod["containers"][0], "args", format!("--tls-key={FOLDER}/tls.key").into());
}

/// See [`coordinator`].
pub(super) fn workers(job: &mut Value, secret: &str) {
    // The authority alone: the key is the coordinator's.
    let pod = mount(job, secret, Some("ca.crt"));
    let container = &mut pod["containers"][0];
    push(container, "args", format!("--tls-ca={FOLDER}/ca.crt").into());
    for variable in container["env"].as_sequence_mut().into_iter().flatten() {
        if let Some(rest) = variable["value"].as_str().and_then(|value| value.strip_prefix("http://")) {
            variable["value"] = format!("https://{rest}").into();
        }
    }
}

/// What is said of the Service's first port, which is the coordinator's own.
pub(super) fn service(service: &mut Value) {
    service["spec"]["ports"][0]["appProtocol"] = "https".into();
}

/// Mounts the Secret, or one file of it, into the only container; returns the pod.
fn mount<'a>(job: &'a mut Value, secret: &str, file: Option<&str>) -> &'a mut Value {
    let pod = &mut job["spec"]["template"]["spec"];
    let mut volume = Value::Mapping(Mapping::new());
    volume["name"] = "tls".into();
    volume["secret"]["secretName"] = secret.into();
    volume["secret"]["defaultMode"] = 0o440.into();
    if let Some(file) = file {
        let mut item = Value::Mapping(Mapping::new());
        item["key"] = file.into();
        item["path"] = file.into();
        push(&mut volume["secret"], "items", item);
    }
    push(pod, "volumes", volume);
    let mut mount = Value::Mapping(Mapping::new());
    mount["name"] = "tls".into();
    mount["mountPath"] = FOLDER.into();
    mount["readOnly"] = true.into();
    push(&mut pod["containers"][0], "volumeMounts", mount);
    pod
}
