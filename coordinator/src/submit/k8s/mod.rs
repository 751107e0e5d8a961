//! The objects of a run on Kubernetes: those of `deploy/k8s/base`, with names, numbers, images and options of the one
//! run put in, as they are or as a JobSet or a TrainJob ([`forms`]). Pure: nothing is read or run here.

mod forms;
mod tls;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use relabel_config::{Setting, Value as Chosen};
use serde_yaml_ng::{Mapping, Value};

use super::SubmitError;
use crate::config::ConfigFile;

/// What `kubectl apply --kustomize deploy/k8s/base` makes, less the configuration.
const BASE: [&str; 7] = [
    include_str!("../../../../deploy/k8s/base/serviceaccount.yaml"),
    include_str!("../../../../deploy/k8s/base/volume.yaml"),
    include_str!("../../../../deploy/k8s/base/service.yaml"),
    include_str!("../../../../deploy/k8s/base/disruption.yaml"),
    include_str!("../../../../deploy/k8s/base/network.yaml"),
    include_str!("../../../../deploy/k8s/base/coordinator.yaml"),
    include_str!("../../../../deploy/k8s/base/workers.yaml"),
];

/// Leave to go to an object store.
const TO_A_STORE: &str = include_str!("../../../../deploy/k8s/components/store/network.yaml");

/// A Kubernetes job: a coordinator, and an indexed pod for each worker.
///
/// Every option of the run is a flag here too: `--optim.lr.init 0.1`. Paths are those inside the pods: the data is at
/// /data, the run at /runs. What the run is given is what the configuration file, the environment and the flags say
/// when it is handed in.
#[derive(Args)]
pub(crate) struct K8sArgs {
    /// Name of the run [default: the configuration file's, or the network's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Namespace [default: kubectl's]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// What the run is to Kubernetes
    #[arg(long = "as", value_name = "FORM", default_value = "jobs")]
    pub(crate) form: Form,
    /// Workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: u32,
    /// Workers with which training goes on when others are lost [default: all but one]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) min_workers: Option<u32>,
    /// What workers train on
    #[arg(long, value_name = "DEVICE", default_value = "gpu")]
    pub(crate) device: Device,
    /// CPU cores of each worker, which decode its images
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus: u32,
    /// Memory that each worker is sure of; it may take four times as much
    #[arg(long, value_name = "SIZE", default_value = "8Gi")]
    pub(crate) memory: String,
    /// Where the images are, such as registry.example.com/vision [default: as the nodes know them]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) registry: Option<String>,
    /// Tag of the images [default: this program's version, with -cuda for workers on GPUs]
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// Claim of the volume with the data
    #[arg(long, value_name = "NAME", default_value = "relabel-data")]
    pub(crate) data_claim: String,
    /// Claim of a volume for the run's folder, which several nodes can write [default: one is made]
    #[arg(long, value_name = "NAME")]
    pub(crate) runs_claim: Option<String>,
    /// Secret with the tokens `join` and `admin` [default: relabel-tokens, made where it is missing]
    #[arg(long, value_name = "NAME")]
    pub(crate) tokens: Option<String>,
    /// Secret with tls.crt and tls.key for the coordinator's name, and ca.crt that signed it: they speak TLS
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_secret: Option<String>,
    /// Secret with the variables by which the store of checkpoint.upload is reached, as AWS_ACCESS_KEY_ID
    #[arg(long, value_name = "NAME")]
    pub(crate) store_secret: Option<String>,
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Print the objects and hand nothing in
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Two Jobs, for any cluster
    Jobs,
    /// A JobSet (jobset.x-k8s.io), which ends as one
    Jobset,
    /// A TrainJob of Kubeflow Trainer (trainer.kubeflow.org), with the runtime that it refers to
    Trainjob,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A GPU each
    Gpu,
    Cpu,
}

/// A run that can be handed in.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) name: String,
    pub(crate) tokens: String,
    documents: Vec<Value>,
}

impl Objects {
    /// The objects of `args`, of which `options` are the run's options that somebody has set, for a run that trains
    /// `arch`.
    ///
    /// # Errors
    /// A flag whose value Kubernetes would not take.
    pub(crate) fn new(
        args: &K8sArgs,
        options: &[(&Setting, Chosen)],
        arch: &str,
    ) -> Result<Self, SubmitError> {
        let name = match &args.name {
            Some(name) => label("--name", name)?,
            None => {
                let file = args.config.config.as_deref().and_then(std::path::Path::file_stem);
                let stem = file
                    .map_or_else(|| relabel_config::file_stem(arch), |stem| stem.to_string_lossy().into());
                label("--name", &stem.to_ascii_lowercase().replace(['_', '.', ' '], "-"))?
            }
        };
        let min_workers = args.min_workers.unwrap_or(args.workers.saturating_sub(1).max(1));
        if min_workers > args.workers {
            let reason = "there are fewer --workers than that";
            return Err(SubmitError::flag("--min-workers", &min_workers.to_string(), reason));
        }
        let memory = bytes(&args.memory)
            .ok_or_else(|| SubmitError::flag("--memory", &args.memory, "it should look like 8Gi or 500Mi"))?;
        let tokens = label("--tokens", args.tokens.as_deref().unwrap_or("relabel-tokens"))?;
        let claim = |flag, claim: &str| label(flag, claim);
        let data = claim("--data-claim", &args.data_claim)?;
        let runs = args.runs_claim.as_deref().map(|runs| claim("--runs-claim", runs)).transpose()?;
        let secret = args.tls_secret.as_deref().map(|name| label("--tls-secret", name)).transpose()?;
        let store = args.store_secret.as_deref().map(|name| label("--store-secret", name)).transpose()?;
        let namespace = args.namespace.as_deref().map(|name| label("--namespace", name)).transpose()?;

        let mut documents = documents(&BASE);
        if store.is_some() {
            documents.extend(self::documents(&[TO_A_STORE]));
        }
        if runs.is_some() {
            documents.retain(|document| document["kind"] != "PersistentVolumeClaim");
        }
        documents.insert(0, configuration(options));
        let names = [
            ("relabel", name.clone()),
            ("relabel-coordinator", format!("{name}-coordinator")),
            ("relabel-worker", format!("{name}-worker")),
            ("relabel-config", format!("{name}-config")),
            ("relabel-tokens", tokens.clone()),
            ("relabel-data", data),
            ("relabel-store", format!("{name}-store")),
            ("relabel-runs", runs.unwrap_or_else(|| format!("{name}-runs"))),
        ];
        for document in &mut documents {
            // What has it is of the run, and can be deleted with it.
            document["metadata"]["labels"]["app.kubernetes.io/name"] = "relabel".into();
            rename(document, &names, &name);
            if let Some(namespace) = &namespace {
                document["metadata"]["namespace"] = namespace.as_str().into();
            }
        }

        let version = env!("CARGO_PKG_VERSION");
        let image = |program: &str, suffix: &str| {
            let tag = args.tag.clone().unwrap_or_else(|| format!("{version}{suffix}"));
            let prefix = args.registry.as_deref().map(|prefix| format!("{}/", prefix.trim_end_matches('/')));
            format!("{}relabel-{program}:{tag}", prefix.unwrap_or_default())
        };
        let coordinator = find(&mut documents, "Job", &format!("{name}-coordinator"));
        let container = &mut coordinator["spec"]["template"]["spec"]["containers"][0];
        container["image"] = image("coordinator", "").into();
        put_flag(container, "--workers", &args.workers.to_string());
        put_flag(container, "--min-workers", &min_workers.to_string());
        put_flag(container, "--run-dir", &format!("/runs/{name}"));

        let workers = find(&mut documents, "Job", &format!("{name}-worker"));
        workers["spec"]["completions"] = args.workers.into();
        workers["spec"]["parallelism"] = args.workers.into();
        let pod = &mut workers["spec"]["template"]["spec"];
        let container = &mut pod["containers"][0];
        container["resources"]["requests"]["cpu"] = args.cpus.to_string().into();
        container["resources"]["requests"]["memory"] = args.memory.as_str().into();
        container["resources"]["limits"]["memory"] = memory.saturating_mul(4).to_string().into();
        put_flag(container, "--threads", &args.cpus.to_string());
        match args.device {
            Device::Cpu => {
                container["image"] = image("worker", "").into();
                push(container, "args", "--cpu".into());
            }
            Device::Gpu => {
                container["image"] = image("worker", "-cuda").into();
                put_flag(container, "--gpu", "0");
                container["resources"]["limits"]["nvidia.com/gpu"] = "1".into();
                let toleration =
                    [("key", "nvidia.com/gpu"), ("operator", "Exists"), ("effect", "NoSchedule")];
                push(
                    pod,
                    "tolerations",
                    toleration
                        .map(|(key, value)| (key.into(), value.into()))
                        .into_iter()
                        .collect::<Mapping>()
                        .into(),
                );
            }
        }
        if let Some(secret) = &secret {
            tls::coordinator(find(&mut documents, "Job", &format!("{name}-coordinator")), secret);
            tls::workers(find(&mut documents, "Job", &format!("{name}-worker")), secret);
            tls::service(find(&mut documents, "Service", &format!("{name}-coordinator")));
        }
        for part in ["coordinator", "worker"] {
            let Some(secret) = &store else { break };
            let job = find(&mut documents, "Job", &format!("{name}-{part}"));
            let mut source = Value::Mapping(Mapping::new());
            source["secretRef"]["name"] = secret.as_str().into();
            push(&mut job["spec"]["template"]["spec"]["containers"][0], "envFrom", source);
        }
        let budget = find(&mut documents, "PodDisruptionBudget", &format!("{name}-worker"));
        budget["spec"]["minAvailable"] = min_workers.into();

        let documents = match args.form {
            Form::Jobs => documents,
            Form::Jobset => forms::job_set(documents, &name),
            Form::Trainjob => forms::train_job(documents, &name),
        };
        Ok(Self { name, tokens, documents })
    }

    /// All objects as YAML documents that `kubectl apply --filename` takes.
    ///
    /// # Errors
    /// When they cannot be written as YAML, which no objects cause.
    pub(crate) fn yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        let texts: Result<Vec<_>, _> = self.documents.iter().map(serde_yaml_ng::to_string).collect();
        Ok(texts?.join("---\n"))
    }
}

/// A Secret with new tokens.
///
/// # Errors
/// The system has no random numbers.
pub(crate) fn secret(name: &str) -> anyhow::Result<String> {
    let mut random = [0; 64];
    getrandom::fill(&mut random).context("cannot get random numbers from the system")?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let (join, admin) = hex.split_at(64);
    let head = format!("apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\nstringData:\n");
    // Quoted: digits alone would be a number.
    Ok(format!("{head}  join: \"{join}\"\n  admin: \"{admin}\"\n"))
}

/// The documents of texts of this workspace. A test reads each of them.
fn documents(texts: &[&str]) -> Vec<Value> {
    let documents = texts.iter().flat_map(|text| serde_yaml_ng::Deserializer::from_str(text));
    documents.filter_map(|document| serde::Deserialize::deserialize(document).ok()).collect()
}

/// The options as the ConfigMap that the coordinator reads.
fn configuration(options: &[(&Setting, Chosen)]) -> Value {
    let mut root = Value::Mapping(Mapping::new());
    for (setting, value) in options {
        let mut at = &mut root;
        for part in setting.key.split('.') {
            if !at.is_mapping() {
                *at = Value::Mapping(Mapping::new());
            }
            at = &mut at[part];
        }
        *at = match value {
            Chosen::None => Value::Null,
            Chosen::Flag(flag) => (*flag).into(),
            Chosen::Whole(number) => (*number).into(),
            Chosen::Real(number) => (*number).into(),
            Chosen::Text(text) => text.as_str().into(),
        };
    }
    // A mapping of words and numbers can be written.
    let text = serde_yaml_ng::to_string(&root).unwrap_or_default();
    let mut object = Value::Mapping(Mapping::new());
    object["apiVersion"] = "v1".into();
    object["kind"] = "ConfigMap".into();
    object["metadata"]["name"] = "relabel-config".into();
    object["data"]["config.yaml"] = text.into();
    object
}

/// Gives the names of the base's objects their place in this run, wherever they are spoken of, and lets labels and
/// selectors tell its pods from those of another run.
fn rename(value: &mut Value, names: &[(&str, String)], instance: &str) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping.iter_mut() {
                // `relabel` itself is the name of the program too.
                if key != "app.kubernetes.io/name" {
                    rename(value, names, instance);
                }
            }
            if mapping.contains_key("app.kubernetes.io/name") {
                mapping.insert("app.kubernetes.io/instance".into(), instance.into());
            }
        }
        Value::Sequence(values) => values.iter_mut().for_each(|value| rename(value, names, instance)),
        Value::String(text) => {
            let address = text.strip_prefix("http://").and_then(|rest| rest.split_once(':'));
            if let Some((_, new)) = names.iter().find(|(old, _)| old == text) {
                *text = new.clone();
            } else if let Some((host, port)) = address
                && let Some((_, new)) = names.iter().find(|(old, _)| *old == host)
            {
                *text = format!("http://{new}:{port}");
            }
        }
        _ => {}
    }
}

/// The object of a kind and name. A test holds all that are asked for to be there; another would be put in.
fn find<'a>(documents: &'a mut Vec<Value>, kind: &str, name: &str) -> &'a mut Value {
    let is = |document: &Value| document["kind"] == kind && document["metadata"]["name"] == name;
    let at = documents.iter().position(is).unwrap_or(documents.len());
    if at == documents.len() {
        documents.push(Value::Mapping(Mapping::new()));
    }
    &mut documents[at]
}

/// Sets `--flag=value` among a container's arguments, in its place or at the end.
fn put_flag(container: &mut Value, flag: &str, value: &str) {
    let text = Value::from(format!("{flag}={value}"));
    let is =
        |arg: &Value| arg.as_str().and_then(|arg| arg.split_once('=')).is_some_and(|(name, _)| name == flag);
    match container["args"].as_sequence_mut().and_then(|args| args.iter_mut().find(|arg| is(arg))) {
        Some(arg) => *arg = text,
        None => push(container, "args", text),
    }
}

/// Adds to the list `key`, which may be missing.
fn push(value: &mut Value, key: &str, item: Value) {
    match value[key].as_sequence_mut() {
        Some(items) => items.push(item),
        None => value[key] = Value::Sequence(vec![item]),
    }
}

/// A name that Kubernetes takes for anything: a label of RFC 1123, short enough for what is hung on to it.
fn label(flag: &'static str, name: &str) -> Result<String, SubmitError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() > 40 || !name.chars().all(fits) || !edge(name.chars().next()) || !edge(name.chars().last())
    {
        let reason = "Kubernetes takes at most 40 small letters, digits and dashes, no dash first or last";
        return Err(SubmitError::flag(flag, name, reason));
    }
    Ok(name.to_owned())
}

/// The bytes of a quantity with a binary or decimal suffix.
fn bytes(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let unit: u64 = match suffix {
        "" => 1,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0)
}
