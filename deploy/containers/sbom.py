"""Prints what a program of this workspace is made of, as a CycloneDX 1.5 bill of materials: every crate that is linked
into it, with its version, licence and the checksum that Cargo.lock holds it to.

    sbom.py PACKAGE
"""

import json
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    package = sys.argv[1]
    line = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(line, cwd=ROOT, check=True, capture_output=True).stdout)
    packages = {each["id"]: each for each in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    sums = {(each["name"], each["version"]): each.get("checksum") for each in lock["package"]}

    def needs(id):
        """What is linked in: neither what only builds it nor what only tests it."""
        return sorted(dep["pkg"] for dep in nodes[id]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"]))

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
