//! What a node of Kubernetes does with a pod's template, on this machine: volumes are mounted where it says, the root
//! file system is read-only where it says, the user is the one that it says, its variables and arguments are filled
//! in, and its command runs as a process. All pods share this machine's network; a name of the cluster is an entry in
//! their hosts file.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relabel_tests::{Scratch, metrics, program};
use serde_json::Value;

use crate::certificates::Authority;
use crate::objects::{pod_templates, submitted};

/// Longest wait for anything that has no limit of its own.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is in the Secret of the tokens.
const TOKENS: [(&str, &str); 2] = [
    ("join", "7d1f0b6b0b9c4c52a0cbb6d3c2f8a1e47d1f0b6b0b9c4c52a0cbb6d3c2f8a1e4"),
    ("admin", "1e9a4f3cc0de4b6f8a53f1b2d4c6e8091e9a4f3cc0de4b6f8a53f1b2d4c6e809"),
];

/// The machine that all pods of one run run on.
pub struct Machine {
    folder: tempfile::TempDir,
    /// Files of the Secret of certificates.
    certificates: Vec<(&'static str, PathBuf)>,
    data: PathBuf,
    objects: Vec<Value>,
    templates: BTreeMap<String, Value>,
    started: std::cell::Cell<u32>,
}

impl Machine {
    /// A machine for the run that `coordinator submit k8s` makes of `flags`, on the data in `scratch`.
    pub fn new(scratch: &Scratch, flags: &[&str]) -> Self {
        // Inside the pods the data is at /data, and the options say so.
        let here = scratch.path("data").display().to_string();
        let mut all = vec!["--device=cpu".to_owned(), "--cpus=1".to_owned()];
        all.extend(scratch.options().into_iter().map(|option| option.replace(&here, "/data")));
        all.extend(flags.iter().map(|flag| flag.to_string()));
        let objects = submitted(&all);
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "ca");
        let own = authority.sign("run-coordinator");
        let machine = Self {
            folder,
            certificates: vec![("tls.crt", own.cert), ("tls.key", own.key), ("ca.crt", authority.pem)],
            data: scratch.path("data"),
            templates: pod_templates(&objects).into_iter().collect(),
            objects,
            started: 0.into(),
        };
        let runs = machine.claim("run-runs");
        std::fs::create_dir(&runs).unwrap();
        // As fsGroup has it.
        std::os::unix::fs::chown(&runs, Some(10001), Some(10001)).unwrap();
        machine
    }

    /// Where the volume of a claim is.
    fn claim(&self, name: &str) -> PathBuf {
        match name {
            "relabel-data" => self.data.clone(),
            name => self.folder.path().join(format!("claim-{name}")),
        }
    }

    /// The run's folder.
    pub fn run_dir(&self) -> PathBuf {
        self.claim("run-runs").join("run")
    }

    pub fn wait_for_steps(&self, steps: usize) {
        let began = Instant::now();
        while metrics(&self.run_dir(), "step").len() < steps {
            assert!(began.elapsed() < PATIENCE, "the run never came to {steps} steps");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the pod of a part of the run, the one of this completion index.
    pub fn start(&self, part: &str, index: u32) -> Pod {
        let number = self.started.replace(self.started.get() + 1);
        let folder = self.folder.path().join(format!("pod-{number}"));
        let spec = self.templates[part]["template"]["spec"].clone();
        let container = &spec["containers"][0];
        let environment = self.resolve(&container["env"], index);
        let filled = |text: &Value| {
            let text = text.as_str().unwrap().to_owned();
            environment.iter().fold(text, |text, (name, value)| text.replace(&format!("$({name})"), value))
        };
        let words = |key: &str| container[key].as_array().unwrap().iter().map(&filled).collect::<Vec<_>>();
        let root = self.root(&folder);
        let mut script = self.mounts(&spec, &folder, &root);
        let user = &spec["securityContext"];
        script.push_str(&format!(
            "exec chroot --userspec={}:{} '{}' \"$@\"\n",
            user["runAsUser"],
            user["runAsGroup"],
            root.display()
        ));
        let log = folder.join("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-euc", &script, "pod"])
            .args(words("command").into_iter().chain(words("args")))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let annotations = self.templates[part]["template"]["metadata"]["annotations"].clone();
        Pod { child, log, spec, annotations, environment }
    }

    /// A container's variables: as they are, out of the Secret, or out of the pod's own description.
    fn resolve(&self, variables: &Value, index: u32) -> Vec<(String, String)> {
        let value = |variable: &Value| {
            if let Some(text) = variable["value"].as_str() {
                return text.to_owned();
            }
            let from = &variable["valueFrom"];
            if let Some(key) = from["secretKeyRef"]["key"].as_str() {
                assert_eq!(from["secretKeyRef"]["name"], "relabel-tokens");
                return TOKENS.iter().find(|(name, _)| *name == key).unwrap().1.to_owned();
            }
            assert_eq!(
                from["fieldRef"]["fieldPath"],
                "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            );
            index.to_string()
        };
        let name = |variable: &Value| variable["name"].as_str().unwrap().to_owned();
        variables.as_array().unwrap().iter().map(|variable| (name(variable), value(variable))).collect()
    }

    /// What the pod's root is laid over: this machine's own, with the programs, and the names of the cluster.
    fn root(&self, folder: &Path) -> PathBuf {
        let own = folder.join("own");
        for name in ["own/etc", "own/usr/local/bin", "work", "root"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let hosts = "127.0.0.1 localhost run-coordinator run-coordinator-0-0.run\n";
        std::fs::write(own.join("etc/hosts"), hosts).unwrap();
        for name in ["coordinator", "worker"] {
            std::os::unix::fs::symlink(program(name), own.join("usr/local/bin").join(name)).unwrap();
        }
        folder.join("root")
    }

    /// Shell lines that mount the root and the volumes.
    fn mounts(&self, spec: &Value, folder: &Path, root: &Path) -> String {
        let shown = |path: &Path| format!("'{}'", path.display());
        let (own, work) = (folder.join("own"), folder.join("work"));
        let container = &spec["containers"][0];
        let mut script = format!(
            "mount -t overlay overlay -o lowerdir=/,upperdir={},workdir={} {}\n",
            own.display(),
            work.display(),
            shown(root)
        );
        for system in ["proc", "dev", "sys"] {
            script.push_str(&format!("mount --rbind /{system} {}\n", shown(&root.join(system))));
        }
        let volumes = spec["volumes"].as_array().unwrap();
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            let at = root.join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
            let here = self.volume(volume, folder);
            script.push_str(&format!("mkdir -p {0}\nmount --bind {1} {0}\n", shown(&at), shown(&here)));
            if mount["readOnly"] == true {
                script.push_str(&format!("mount -o remount,bind,ro {}\n", shown(&at)));
            }
        }
        // The programs and their libraries, where they were built: a volume at /tmp may lie above.
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let at = shown(&root.join(built.strip_prefix("/").unwrap()));
        script.push_str(&format!("mkdir -p {at}\nmount --bind {} {at}\n", shown(built)));
        if container["securityContext"]["readOnlyRootFilesystem"] == true {
            script.push_str(&format!("mount -o remount,ro {}\n", shown(root)));
        }
        script
    }

    /// The folder of a volume, with what is in it.
    fn volume(&self, volume: &Value, folder: &Path) -> PathBuf {
        if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            return self.claim(claim);
        }
        let here = folder.join("volume").join(volume["name"].as_str().unwrap());
        std::fs::create_dir_all(&here).unwrap();
        if let Some(name) = volume["configMap"]["name"].as_str() {
            let is = |object: &&Value| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name;
            let data = self.objects.iter().find(is).unwrap()["data"].as_object().unwrap();
            for (file, text) in data {
                std::fs::write(here.join(file), text.as_str().unwrap()).unwrap();
            }
        } else if volume["secret"].is_object() {
            assert_eq!(volume["secret"]["secretName"], "relabel-tls");
            let chosen = |key: &str| {
                let items = volume["secret"]["items"].as_array();
                items.is_none_or(|items| items.iter().any(|item| item["key"] == key && item["path"] == key))
            };
            for (key, file) in self.certificates.iter().filter(|(key, _)| chosen(key)) {
                let at = here.join(key);
                std::fs::copy(file, &at).unwrap();
                // As fsGroup and defaultMode have it.
                let mode = volume["secret"]["defaultMode"].as_u64().unwrap() as u32;
                std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode)).unwrap();
                std::os::unix::fs::chown(&at, Some(0), Some(10001)).unwrap();
            }
        } else {
            assert!(volume["emptyDir"].is_object(), "{volume}");
            std::os::unix::fs::chown(&here, Some(10001), Some(10001)).unwrap();
        }
        here
    }
}

/// A pod with one container.
pub struct Pod {
    child: Child,
    log: PathBuf,
    spec: Value,
    annotations: Value,
    environment: Vec<(String, String)>,
}

impl Pod {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The container's variables as they are filled in.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Whether a probe of the container succeeds now.
    pub fn probe(&self, name: &str) -> bool {
        let container = &self.spec["containers"][0];
        let probe = &container[name];
        let how = if probe["httpGet"].is_object() { &probe["httpGet"] } else { &probe["tcpSocket"] };
        let ports = container["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == how["port"]).unwrap();
        let port = port["containerPort"].as_u64().unwrap() as u16;
        match how["path"].as_str() {
            Some(path) => self.get(port, path).is_some(),
            None => TcpStream::connect(("127.0.0.1", port)).is_ok(),
        }
    }

    /// What Prometheus reads where the pod's annotations send it.
    pub fn scrape(&self) -> String {
        let notes = &self.annotations;
        let note = |name: &str| notes[format!("prometheus.io/{name}")].as_str().unwrap();
        assert_eq!(note("scrape"), "true");
        self.get(note("port").parse().unwrap(), note("path")).unwrap()
    }

    /// The answer to a GET under the name that another pod would use; None unless it is 200.
    fn get(&self, port: u16, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let host = "run-coordinator";
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// Waits until the startup probe succeeds, with as many tries as it has.
    pub fn wait_until_ready(&mut self) {
        let probe = self.spec["containers"][0]["startupProbe"].clone();
        for _ in 0..probe["failureThreshold"].as_u64().unwrap() {
            if self.probe("startupProbe") {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the pod ended ({ended:?}) before it was ready:\n{}", self.log());
            std::thread::sleep(Duration::from_secs(probe["periodSeconds"].as_u64().unwrap()));
        }
        panic!("the pod is not ready:\n{}", self.log());
    }

    /// The exit code, as a shell has it.
    pub fn wait(&mut self) -> i32 {
        self.wait_for(PATIENCE)
    }

    /// The exit code of a pod that was told to go and has no longer for it than its template gives it.
    pub fn wait_within_grace(&mut self) -> i32 {
        self.wait_for(Duration::from_secs(self.spec["terminationGracePeriodSeconds"].as_u64().unwrap()))
    }

    fn wait_for(&mut self, limit: Duration) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
            }
            assert!(began.elapsed() < limit, "still running after {limit:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
