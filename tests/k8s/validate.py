"""Holds every object of deploy/k8s, as kustomize puts it together, and of `coordinator submit k8s` to the schemas of
Kubernetes, JobSet and Kubeflow Trainer, and to what the schemas leave open: policies, references, matching numbers.
Then breaks each object on purpose, field by field, and holds the schemas to saying so.

    validate.py COORDINATOR      with kubernetes-validate and kubeflow-trainer-api installed, and kubectl
"""

import copy
import pathlib
import subprocess
import sys

import kubernetes_validate
import yaml
from kubeflow_trainer_api import models

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "k8s"
# The oldest version whose fields are all used, and the newest that is known.
VERSIONS = ["1.33", kubernetes_validate.latest_version()]
TYPES = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}
# The user's own, and where the words of a field are few, which the schemas do not say.
GIVEN = {"relabel-tokens", "relabel-data", "relabel-tls", "relabel-store"}
WORDS = {
    "restartPolicy": {"Never", "OnFailure", "Always"},
    "completionMode": {"Indexed", "NonIndexed"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "action": {"FailJob", "FailIndex", "Ignore", "Count", "FailJobSet", "RestartJobSet"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "medium": {"Memory", ""},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "protocol": {"TCP", "UDP", "SCTP"},
}


class Wrong(Exception):
    pass


def check(condition, *words):
    if not condition:
        raise Wrong(" ".join(str(word) for word in words))


def schema(thing):
    """Raises an error where a field is unknown, missing or of another type."""
    if thing["kind"] not in TYPES:
        for version in VERSIONS:
            kubernetes_validate.validate(thing, version, strict=True)
        return
    # The models drop what they do not know.
    known = TYPES[thing["kind"]].from_dict(copy.deepcopy(thing)).to_dict()
    lost(thing, known, thing["kind"])
    for job in jobs_in(thing):
        schema({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "part"}, "spec": job})


def lost(before, after, at):
    if isinstance(before, dict):
        check(isinstance(after, dict), at, "is no object")
        for key, value in before.items():
            check(key in after, f"{at}.{key} is not known")
            lost(value, after[key], f"{at}.{key}")
    elif isinstance(before, list):
        check(isinstance(after, list) and len(before) == len(after), at, "is no such list")
        for index, (one, other) in enumerate(zip(before, after)):
            lost(one, other, f"{at}[{index}]")
    else:
        check(before == after, at, "was", before, "and is", after)


def parts(thing):
    """The replicated jobs of a JobSet, a JobSet's part of a runtime, or nothing."""
    spec = {"JobSet": lambda: thing["spec"], "TrainingRuntime": lambda: thing["spec"]["template"]["spec"]}
    return spec.get(thing["kind"], lambda: {})().get("replicatedJobs", [])


def jobs_in(thing):
    return [part["template"]["spec"] for part in parts(thing)]


def component(job):
    return job["template"]["metadata"]["labels"]["app.kubernetes.io/component"]


def words(value, at=""):
    """Every field whose words are few holds one of them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and key in WORDS:
                check(inner in WORDS[key], f"{at}.{key}: {inner}")
            words(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for inner in value:
            words(inner, at)


def pod(job, names, config):
    """What is asked of every pod."""
    spec, policy = job["template"]["spec"], job["podFailurePolicy"]
    check(spec["restartPolicy"] == "Never", "a podFailurePolicy wants restartPolicy Never")
    check(spec["automountServiceAccountToken"] is False, "the pod has a token of the API server")
    security = spec["securityContext"]
    check(security["runAsNonRoot"] and security["runAsUser"] > 0, "the pod may run as root")
    check(security["seccompProfile"] == {"type": "RuntimeDefault"}, "no seccomp profile")
    check(len(spec["containers"]) == 1, "more than one container")
    container = spec["containers"][0]
    own = container["securityContext"]
    check(own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"], "the container may change itself")
    check(own["capabilities"] == {"drop": ["ALL"]}, "the container has capabilities")
    check("memory" in container["resources"]["limits"], "no limit of memory")
    check(":" in container["image"] and not container["image"].endswith(":latest"), "the image has no version")
    for rule in policy["rules"]:
        if "onExitCodes" in rule:
            check(rule["onExitCodes"]["containerName"] == container["name"], "a rule speaks of another container")
    check(policy["rules"][0]["onPodConditions"][0]["type"] == "DisruptionTarget", "an eviction counts as a failure")
    volumes = {volume["name"] for volume in spec["volumes"]}
    check(volumes == {mount["name"] for mount in container["volumeMounts"]}, "volumes and mounts differ")
    for kind, name in references(spec):
        check(name in names[kind] | GIVEN, f"there is no {kind} {name}")
    deadline = {"coordinator": "stop_deadline", "worker": "drain_deadline"}[component(job)]
    grace = spec["terminationGracePeriodSeconds"]
    check(config["cluster"][deadline] < grace <= config["cluster"][deadline] + 60, f"{grace} s do not go with {deadline}")


def references(spec):
    yield "ServiceAccount", spec["serviceAccountName"]
    for volume in spec["volumes"]:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for source in spec["containers"][0].get("envFrom", []):
        yield "Secret", source["secretRef"]["name"]
    for variable in spec["containers"][0]["env"]:
        if "secretKeyRef" in variable.get("valueFrom", {}):
            yield "Secret", variable["valueFrom"]["secretKeyRef"]["name"]


def flag(container, name):
    values = [arg.split("=", 1)[1] for arg in container["args"] if arg.startswith(f"{name}=")]
    check(len(values) == 1, name, "is given", len(values), "times")
    return values[0]


def selects(selector, job):
    return selector.items() <= job["template"]["metadata"]["labels"].items()


def whole(things, config):
    """What holds between the objects of one run."""
    names = {kind: set() for kind in ["ConfigMap", "PersistentVolumeClaim", "Secret", "ServiceAccount"]}
    for thing in things:
        names.setdefault(thing["kind"], set()).add(thing["metadata"]["name"])
        words(thing)
    jobs = [thing["spec"] for thing in things if thing["kind"] == "Job"]
    jobs += [job for thing in things for job in jobs_in(thing)]
    by = {component(job): job for job in jobs}
    check(set(by) == {"coordinator", "worker"} and len(jobs) == 2, "not one coordinator and one set of workers")
    for job in jobs:
        pod(job, names, config)

    coordinator, workers = (by[name]["template"]["spec"]["containers"][0] for name in ["coordinator", "worker"])
    count = by["worker"]["completions"]
    check(by["worker"]["completionMode"] == "Indexed", "workers have no index")
    check(count == by["worker"]["parallelism"] == int(flag(coordinator, "--workers")), "workers differ in number")
    rank = next(variable for variable in workers["env"] if variable["name"] == "RANK")
    field = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    check(rank["valueFrom"]["fieldRef"]["fieldPath"] == field, "the rank is not the index")
    check(flag(workers, "--rank") == "$(RANK)" and flag(workers, "--coordinator") == "$(COORDINATOR)", "arguments")
    address = next(variable["value"] for variable in workers["env"] if variable["name"] == "COORDINATOR")
    host = address.split("://")[1].rsplit(":", 1)[0]
    tls = any(arg.startswith("--tls-cert=") for arg in coordinator["args"])
    check(address.startswith("https" if tls else "http:"), "one end speaks TLS")

    services = [thing for thing in things if thing["kind"] == "Service"]
    if services:
        check([host] == [service["metadata"]["name"] for service in services], "workers look for another name")
        check(selects(services[0]["spec"]["selector"], by["coordinator"]), "the Service selects something else")
        check(not selects(services[0]["spec"]["selector"], by["worker"]), "the Service selects workers")
    else:
        (set_,) = [thing for thing in things if parts(thing)]
        spec = set_["spec"] if set_["kind"] == "JobSet" else set_["spec"]["template"]["spec"]
        check(host == f"{set_['metadata']['name']}-coordinator-0-0.{spec['network']['subdomain']}", "another name")
        check(spec["network"]["enableDNSHostnames"], "pods have no names")
        check([part["replicas"] for part in parts(set_)] == [1, 1], "replicas")

    (budget,) = [thing["spec"] for thing in things if thing["kind"] == "PodDisruptionBudget"]
    check(selects(budget["selector"]["matchLabels"], by["worker"]), "the budget is of something else")
    check(not selects(budget["selector"]["matchLabels"], by["coordinator"]), "the budget holds the coordinator")
    check(budget["minAvailable"] == int(flag(coordinator, "--min-workers")) <= count, "the budget is another")
    policies = {thing["metadata"]["name"]: thing["spec"] for thing in things if thing["kind"] == "NetworkPolicy"}
    to_a_store = ["envFrom" in container for container in [coordinator, workers]]
    check(to_a_store in ([True, True], [False, False]), "one part alone is told how to reach the object store")
    check(len(policies) == 3 + to_a_store[0], "network policies")
    for job in jobs:
        reached = [name for name, spec in policies.items() if selects(spec["podSelector"]["matchLabels"], job)]
        check(len(reached) == 2 + to_a_store[0], component(job), "is under", reached)
    if to_a_store[0]:
        (leave,) = [spec["egress"] for name, spec in policies.items() if name.endswith("-store")]
        check(leave == [{"ports": [{"port": 443}]}], f"leave to go to the object store is {leave}")
    let_in = [rule for spec in policies.values() if selects(spec["podSelector"]["matchLabels"], by["coordinator"])
              for rule in spec.get("ingress", [])]
    ports(coordinator, by["coordinator"]["template"]["metadata"], services, let_in)
    reached = {port["port"] for spec in policies.values() if selects(spec["podSelector"]["matchLabels"], by["worker"])
               for rule in spec.get("egress", []) if rule.get("to") for port in rule.get("ports", [])}
    check(reached == {int(address.rsplit(":", 1)[1])}, f"workers may reach {reached} and call {address}")


def ports(container, metadata, services, let_in):
    """What the program listens on, its ports and probes, the Service, those who are let in and Prometheus's annotations
    speak of the same ports."""
    listening = {name: int(flag(container, f"--{option}").rsplit(":", 1)[1])
                 for name, option in [("grpc", "listen"), ("http", "http")]}
    for option in ["listen", "http"]:
        check(flag(container, f"--{option}").startswith("0.0.0.0:"), f"--{option} is not for other pods")
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    check(named == listening, f"the container's ports are {named}, it listens on {listening}")
    for service in services:
        tls = any(arg.startswith("--tls-cert=") for arg in container["args"])
        protocols = {port["name"]: port["appProtocol"] for port in service["spec"]["ports"]}
        check(protocols == {"grpc": "https" if tls else "kubernetes.io/h2c", "http": "http"}, f"it speaks {protocols}")
        served = {port["name"]: port.get("targetPort", port["port"]) for port in service["spec"]["ports"]}
        check(served == listening, f"the Service has {served}, the container listens on {listening}")
    open_ = {port["port"]: [next(iter(peer)) for peer in rule["from"]] for rule in let_in for port in rule["ports"]}
    # The one is for workers, the other for a Prometheus, which is of another namespace.
    wanted = {listening["grpc"]: ["podSelector"], listening["http"]: ["namespaceSelector"]}
    check(open_ == wanted, f"let in are {open_}, not {wanted}")
    notes = metadata["annotations"]
    check(notes["prometheus.io/scrape"] == "true" and notes["prometheus.io/path"] == "/metrics", "it is not scraped")
    check(int(notes["prometheus.io/port"]) == listening["http"], "Prometheus is sent to another port")
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        asked = container[probe].get("tcpSocket") or container[probe]["httpGet"]
        check(asked["port"] in named, f"the {probe} asks a port that is not there: {asked['port']}")


def misdirections(things):
    """Copies of a run's objects in which one port is another, in one place each."""

    def places(value, at):
        if isinstance(value, (dict, list)):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from places(inner, at + [key])
        elif not isinstance(value, bool) and any(str(value).endswith(port) for port in ["4747", "4748"]):
            yield at

    for path in places(things, []):
        broken = copy.deepcopy(things)
        place = broken
        for step in path[:-1]:
            place = place[step]
        was = place[path[-1]]
        place[path[-1]] = was + 10 if isinstance(was, int) else f"{was[:-4]}{int(was[-4:]) + 10}"
        yield ".".join([things[path[0]]["kind"], *map(str, path[1:])]), broken


def misspellings(thing):
    """Copies of an object with one field's name wrong each, wherever names are not the user's own."""
    free = {"data", "labels", "annotations", "matchLabels", "selector", "limits", "requests", "metadata", "stringData"}

    def paths(value, at):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield at + [key]
                if key not in free:
                    yield from paths(inner, at + [key])
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from paths(inner, at + [index])

    for path in paths(thing, []):
        if path[0] in ("apiVersion", "kind", "metadata"):
            continue
        broken = copy.deepcopy(thing)
        place = broken
        for step in path[:-1]:
            place = place[step]
        place[f"{path[-1]}X"] = place.pop(path[-1])
        yield ".".join(map(str, path)), broken


def main():
    coordinator = sys.argv[1]
    config = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text())
    runs = {}
    for file in sorted(FOLDER.glob("overlays/*/kustomization.yaml")):
        text = subprocess.run(["kubectl", "kustomize", file.parent], check=True, capture_output=True, text=True).stdout
        runs[f"overlays/{file.parent.name}"] = text
    options = ["--workers=4", "--data.data_path=/data", "--data.relabel.use=False"]
    for name, flags in {
        "jobs": [],
        "jobs on CPUs": ["--device=cpu", "--min-workers=2", "--namespace=vision", "--runs-claim=shared"],
        "jobset": ["--as=jobset"],
        "jobset with TLS": ["--as=jobset", "--tls-secret=relabel-tls"],
        "jobs with an object store": ["--store-secret=relabel-store", "--checkpoint.upload=s3://runs/a"],
        "jobs with TLS": ["--tls-secret=relabel-tls"],
        "trainjob": ["--as=trainjob", "--registry=registry.example.com/vision"],
    }.items():
        line = [coordinator, "submit", "k8s", "--dry-run", *options, *flags]
        runs[f"submit k8s: {name}"] = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    GIVEN.add("shared")

    passed = failed = 0

    def said(name, problem):
        nonlocal passed, failed
        passed, failed = (passed, failed + 1) if problem else (passed + 1, failed)
        print(f"{'FAILED' if problem else 'ok':6} {name}{': ' if problem else ''}{problem}", flush=True)

    for name, text in runs.items():
        things = [thing for thing in yaml.safe_load_all(text) if thing]
        try:
            check(len(things) >= 8, "only", len(things), "objects")
            for thing in things:
                schema(thing)
            whole(things, config)
            said(f"{name}: {len(things)} objects", "")
        except Exception as error:
            said(name, " ".join(str(error).split())[:400])
        # The schemas are what found nothing: they have to find something where there is something.
        count, missed = 0, []
        for thing in things:
            for path, broken in misspellings(thing):
                count += 1
                try:
                    schema(broken)
                    missed.append(f"{thing['kind']}: {path}")
                except Exception:
                    pass
        said(f"{name}: each of {count} misspelt fields is seen", ", ".join(missed[:5]) if missed or not count else "")
        count, missed = 0, []
        for path, broken in misdirections(things):
            count += 1
            try:
                whole(broken, config)
                missed.append(path)
            except Wrong:
                pass
        said(f"{name}: each of {count} wrong ports is seen", ", ".join(missed[:5]) or ("" if count > 5 else "none was there"))
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
