//! The objects of `deploy/k8s` and of `coordinator submit k8s`: held to Kubernetes's own types, and run. There is no
//! cluster: [`kubelet`] does with a pod's template what a node would, on this machine. `make k8s-test` runs it all.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../tests/security/certificates.rs"]
mod certificates;
mod kubelet;
mod objects;

use kubelet::{Machine, Pod};
use nix::sys::signal::Signal;
use objects::{base, job, pod_templates, round_trip, submitted};
use relabel_tests::{Scratch, assert_same_curve, losses, metrics, run};

/// What `coordinator submit k8s` makes, in every form.
const FORMS: [&str; 3] = ["jobs", "jobset", "trainjob"];

#[test]
fn every_object_is_of_its_type_to_the_last_field() {
    let mut jobs = 0;
    for document in base().into_iter().chain(FORMS.iter().flat_map(|form| submitted(&["--as", form]))) {
        jobs += usize::from(document["kind"] == "Job");
        if let Some(typed) = round_trip(&document) {
            assert_eq!(typed, document);
        }
    }
    assert_eq!(jobs, 4, "the base's two and those of --as jobs");
    // What the other forms hold are the same Jobs.
    for form in ["jobset", "trainjob"] {
        let templates = pod_templates(&submitted(&["--as", form]));
        assert_eq!(templates.len(), 2, "{form}");
        for (_, spec) in templates {
            let job = job(&spec);
            assert_eq!(round_trip(&job).unwrap(), job);
        }
    }
}

#[test]
fn a_wrong_field_is_seen() {
    let workers = || {
        submitted::<&str>(&[])
            .into_iter()
            .find(|document| document["kind"] == "Job" && document["metadata"]["name"] == "run-worker")
            .unwrap()
    };
    let mut misspelt = workers();
    misspelt["spec"]["template"]["spec"]["terminationGracePeriod"] = 30.into();
    assert_ne!(round_trip(&misspelt).unwrap(), misspelt);
    let mut mistyped = workers();
    mistyped["spec"]["completions"] = "two".into();
    assert!(std::panic::catch_unwind(|| round_trip(&mistyped)).is_err());
}

#[test]
#[ignore = "wants root and a network namespace: make k8s-test"]
fn pods_train_through_evictions_and_the_loss_of_the_coordinator() {
    let scratch = Scratch::with_data(320, 8);
    let mut undisturbed = scratch.local("undisturbed", 2);
    undisturbed.args(["--optim.bn.frozen=true", "--optim.lr.init=0.0005"]);
    let ended = run(undisturbed);
    assert!(ended.status.success(), "{}", ended.stderr);

    let curve =
        ["--workers=2", "--optim.bn.frozen=true", "--optim.lr.init=0.0005", "--cluster.admit_after=0"];
    let machine = Machine::new(&scratch, &curve);
    let mut coordinator = machine.start("coordinator", 0);
    let mut workers = [0, 1].map(|index| machine.start("worker", index));
    coordinator.wait_until_ready();
    machine.wait_for_steps(2);
    assert!(coordinator.probe("readinessProbe") && coordinator.probe("livenessProbe"));
    let scraped = coordinator.scrape();
    assert!(scraped.contains("\nrelabel_workers_training 2\n"), "{scraped}");

    // A node is drained: its pod has the time that its template says to leave, and another takes its place.
    workers[1].signal(Signal::SIGTERM);
    assert_eq!(workers[1].wait_within_grace(), 143, "{}", workers[1].log());
    workers[1] = machine.start("worker", 1);
    machine.wait_for_steps(6);

    // The coordinator's node is drained, then that of its successor lost: its Job starts another pod each time, and the
    // workers train on.
    coordinator.signal(Signal::SIGTERM);
    assert_eq!(coordinator.wait_within_grace(), 75, "{}", coordinator.log());
    let mut coordinator = machine.start("coordinator", 0);
    let done = metrics(&machine.run_dir(), "step").len();
    machine.wait_for_steps(done + 2);
    coordinator.signal(Signal::SIGKILL);
    coordinator.wait();
    let mut coordinator = machine.start("coordinator", 0);
    for (who, pod) in
        [("coordinator", &mut coordinator)].into_iter().chain(workers.iter_mut().map(|pod| ("worker", pod)))
    {
        assert_eq!(pod.wait(), 0, "{who}: {}", pod.log());
    }
    assert_same_curve(&losses(&scratch.path("undisturbed")), &losses(&machine.run_dir()), 1e-4);
}

#[test]
#[ignore = "wants root and a network namespace: make k8s-test"]
fn the_parts_of_a_jobset_and_of_a_trainjob_find_each_other() {
    let scratch = Scratch::with_data(32, 8);
    for form in ["jobset", "trainjob"] {
        let machine = Machine::new(&scratch, &["--workers=2", "--optim.epochs=1", "--as", form]);
        let mut pods = vec![machine.start("coordinator", 0)];
        pods.extend([0, 1].map(|index| machine.start("worker", index)));
        for pod in &mut pods {
            assert_eq!(pod.wait(), 0, "{form}: {}", pod.log());
        }
        assert_eq!(losses(&machine.run_dir()).len(), 2, "{form}");
    }
}

#[test]
#[ignore = "wants root and a network namespace: make k8s-test"]
fn pods_speak_tls_with_the_certificates_of_a_secret() {
    let scratch = Scratch::with_data(32, 8);
    let machine = Machine::new(&scratch, &["--workers=2", "--optim.epochs=1", "--tls-secret=relabel-tls"]);
    let mut coordinator = machine.start("coordinator", 0);
    let mut workers = [0, 1].map(|index| machine.start("worker", index));
    for pod in workers.iter_mut().chain([&mut coordinator]) {
        assert_eq!(pod.wait(), 0, "{}", pod.log());
    }
    assert!(workers[0].environment().iter().any(|(_, value)| value.starts_with("https://run-coordinator:")));
    assert_eq!(losses(&machine.run_dir()).len(), 2);
}

#[test]
#[ignore = "wants root and a network namespace: make k8s-test"]
fn a_pod_is_told_no_more_than_its_part() {
    let scratch = Scratch::with_data(8, 4);
    let machine = Machine::new(&scratch, &[]);
    let worker: Pod = machine.start("worker", 0);
    assert!(worker.environment().iter().any(|(name, _)| name == "RELABEL_JOIN_TOKEN"));
    assert!(!worker.environment().iter().any(|(name, _)| name == "RELABEL_ADMIN_TOKEN"));
    worker.signal(Signal::SIGKILL);
}
