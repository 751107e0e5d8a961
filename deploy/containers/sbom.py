"""Prints what a program of this workspace is made of, as a CycloneDX 1.5 bill of materials: every crate that is linked
into it, with its version, licence and the checksum that Cargo.lock holds it to.

    sbom.py PACKAGE
"""

import json
import pathlib
import subprocess
import sys
import tomllib

PLATFORM = "x86_64-unknown-linux-gnu"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    package = sys.argv[1]
    line = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={PLATFORM}"]
    metadata = json.loads(subprocess.run(line, cwd=ROOT, check=True, capture_output=True).stdout)
    # That has the features of all programs together; this has those of the one, and no macros, which are not linked.
    line = ["cargo", "tree", "--locked", f"--package={package}", "--edges=normal,no-proc-macro", "--prefix=none",
            "--format={p}", f"--target={PLATFORM}"]
    tree = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    own = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    packages = {each["id"]: each for each in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    sums = {(each["name"], each["version"]): each.get("checksum") for each in lock["package"]}

    def needs(id):
        """What is linked in: neither what only builds it nor what only tests it."""
        normal = (dep["pkg"] for dep in nodes[id]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"]))
        return sorted(dep for dep in normal if (packages[dep]["name"], f"v{packages[dep]['version']}") in own)

    found = [id for id, each in packages.items() if each["name"] == package and id in metadata["workspace_members"]]
    if not found:
        sys.exit(f"sbom: there is no package {package} in this workspace")
    linked, waiting = set(), list(found)
    while waiting:
        id = waiting.pop()
        if id not in linked:
            linked.add(id)
            waiting.extend(needs(id))

    def reference(id):
        return f"pkg:cargo/{packages[id]['name']}@{packages[id]['version']}"

    def component(id, kind):
        each = packages[id]
        entry = {"type": kind, "bom-ref": reference(id), "name": each["name"], "version": each["version"]}
        entry["purl"] = reference(id)
        if each["license"]:
            # Older crates write MIT/Apache-2.0.
            entry["licenses"] = [{"expression": each["license"].replace("/", " OR ")}]
        if checksum := sums.get((each["name"], each["version"])):
            entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return entry

    (root,) = found
    others = sorted(linked - {root}, key=reference)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root, "application")},
        "components": [component(id, "library") for id in others],
        "dependencies": [
            {"ref": reference(id), "dependsOn": sorted({reference(need) for need in needs(id)})}
            for id in sorted(linked, key=reference)
        ],
    }
    print(json.dumps(bill, indent=2))


if __name__ == "__main__":
    main()
