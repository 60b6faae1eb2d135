"""Lists the dependencies that the manifests of a repository declare, with their version requirements.

Reads what people write (Cargo.toml, package.json, pyproject.toml, ...), not lock files, and runs nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Pattern, Tuple
from xml.etree import ElementTree

import toml_lite
from common import Contents, Job, Json, main, show, text
from secret_scan import scrub

try:
    from tomllib import loads as standard_toml
except ImportError:
    standard_toml = None  # type: ignore[assignment]

MAX_TEXT = 120
KEPT_PER_ECOSYSTEM = 1000


class Dependency(NamedTuple):
    """One line of a manifest: what is needed, which versions will do, and what for."""

    name: str
    version: str
    kind: str = "runtime"


def read_toml(source: str) -> Json:
    """A TOML document, by the standard library where it can."""
    return toml_lite.load(source) if standard_toml is None else standard_toml(source)


def table(value: Any, *keys: str) -> Json:
    """The table at a path, or an empty one where something else stands."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> List[str]:
    """The strings of a list, or none where something else stands."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


# Rust


def cargo(source: str) -> Iterator[Dependency]:
    """Cargo.toml: the dependency tables, those of targets, and those of the workspace.

    A crate by path is part of the repository, and what says `workspace = true` is declared elsewhere.
    """
    document = read_toml(source)
    places = [document, *(place for place in table(document, "target").values() if isinstance(place, dict))]
    tables = [("workspace", table(document, "workspace", "dependencies"))]
    for place in places:
        for key, kind in (("dependencies", "runtime"), ("dev-dependencies", "dev"), ("build-dependencies", "build")):
            tables.append((kind, table(place, key)))
    for kind, wanted in tables:
        for name, one in wanted.items():
            version = sourced_version(one)
            if version:
                yield Dependency(package_name(name, one), version, kind)


def package_name(name: str, wanted: Any) -> str:
    """The name on the registry, where the manifest uses another."""
    return str(wanted["package"]) if isinstance(wanted, dict) and "package" in wanted else name


def sourced_version(wanted: Any) -> Optional[str]:
    """The version requirement or the Git address of a Cargo or Poetry dependency; nothing for a local one."""
    if not isinstance(wanted, dict):
        return str(wanted)
    if "version" in wanted:
        return str(wanted["version"])
    if "git" in wanted:
        return f"git {wanted['git']}"
    return None if "path" in wanted or "workspace" in wanted else "any"


# JavaScript and PHP


def npm(source: str) -> Iterator[Dependency]:
    """package.json."""
    document = json.loads(source)
    for key, kind in (
        ("dependencies", "runtime"),
        ("devDependencies", "dev"),
        ("peerDependencies", "peer"),
        ("optionalDependencies", "optional"),
    ):
        for name, version in table(document, key).items():
            yield Dependency(name, str(version), kind)


def composer(source: str) -> Iterator[Dependency]:
    """composer.json."""
    document = json.loads(source)
    for key, kind in (("require", "runtime"), ("require-dev", "dev")):
        for name, version in table(document, key).items():
            yield Dependency(name, str(version), kind)


# Python

REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*([^;#]*)")


def requirement(line: str, kind: str) -> Optional[Dependency]:
    """A requirement as PEP 508 writes it, without its marker."""
    match = REQUIREMENT.match(line)
    return Dependency(match.group(1), match.group(2).strip() or "any", kind) if match else None


def pyproject(source: str) -> Iterator[Dependency]:
    """pyproject.toml: the standard tables, dependency groups, and Poetry's."""
    document = read_toml(source)
    project = table(document, "project")
    lists = [("runtime", project.get("dependencies"))]
    lists += [(f"extra {name}", items) for name, items in table(project, "optional-dependencies").items()]
    lists += [(f"group {name}", items) for name, items in table(document, "dependency-groups").items()]
    lists.append(("build", table(document, "build-system").get("requires")))
    for kind, items in lists:
        for line in strings(items):
            found = requirement(line, kind)
            if found:
                yield found
    yield from poetry(table(document, "tool", "poetry"))


def poetry(section: Json) -> Iterator[Dependency]:
    """The `tool.poetry` tables of pyproject.toml."""
    tables = [("runtime", table(section, "dependencies")), ("dev", table(section, "dev-dependencies"))]
    tables += [(f"group {name}", table(group, "dependencies")) for name, group in table(section, "group").items()]
    for kind, wanted in tables:
        for name, version in wanted.items():
            found = sourced_version(version)
            if found and name != "python":
                yield Dependency(name, found, kind)


def requirements(source: str) -> Iterator[Dependency]:
    """requirements.txt; options and references to other files are passed over."""
    for line in source.replace("\\\n", " ").split("\n"):
        if not line.lstrip().startswith(("-", "#")):
            found = requirement(line.split(" --", 1)[0], "runtime")
            if found:
                yield found


# Go, Ruby, Java, .NET


def go_mod(source: str) -> Iterator[Dependency]:
    """go.mod."""
    inside = False
    for line in source.split("\n"):
        code, _, comment = line.partition("//")
        words = code.split()
        if inside and words[:1] == [")"]:
            inside = False
        elif words == ["require", "("]:
            inside = True
        elif words and (inside or words[0] == "require"):
            name_and_version = words if inside else words[1:]
            if len(name_and_version) >= 2:
                kind = "indirect" if "indirect" in comment else "runtime"
                yield Dependency(name_and_version[0], name_and_version[1], kind)


GEM = re.compile(r"""^\s*(?:gem|\w+\.add_(?:runtime_|development_)?dependency)[ (]+["']([^"']+)["'](.*)$""")
QUOTED = re.compile(r"""(?<![:\w]\s)["']([^"']*\d[^"']*)["']""")


def gemfile(source: str) -> Iterator[Dependency]:
    """Gemfile and *.gemspec, as far as a version is written as a string."""
    for line in source.split("\n"):
        match = GEM.match(line)
        if match:
            versions = [item for item in QUOTED.findall(match.group(2)) if re.match(r"[\s~<>=!]*\d", item)]
            kind = "dev" if "add_development_dependency" in line else "runtime"
            yield Dependency(match.group(1), ", ".join(versions) or "any", kind)


def read_xml(source: str) -> ElementTree.Element:
    """An XML document without a type declaration: entities could blow a small file up to gigabytes."""
    if "<!DOCTYPE" in source or "<!ENTITY" in source:
        raise ValueError("it declares a document type, which is not read")
    return ElementTree.fromstring(source)


def local(tag: Any) -> str:
    """The name of an element without its namespace."""
    return str(tag).rsplit("}", 1)[-1]


def maven(source: str) -> Iterator[Dependency]:
    """pom.xml: direct dependencies; a version in a property is given as the property."""
    for element in read_xml(source).iter():
        if local(element.tag) == "dependency":
            about = {local(child.tag): (child.text or "").strip() for child in element}
            name = f"{about.get('groupId', '')}:{about.get('artifactId', '')}"
            yield Dependency(name, about.get("version") or "managed", about.get("scope") or "runtime")


def dotnet(source: str) -> Iterator[Dependency]:
    """A .NET project file."""
    for element in read_xml(source).iter():
        if local(element.tag) == "PackageReference" and element.get("Include"):
            yield Dependency(str(element.get("Include")), element.get("Version") or "managed")


GRADLE = re.compile(
    r"""^\s*(\w*(?:[iI]mplementation|[aA]pi|[cC]ompileOnly|[rR]untimeOnly))[ (]+["']([\w.-]+:[\w.-]+)(?::([^"'@]+))?"""
)


def gradle(source: str) -> Iterator[Dependency]:
    """build.gradle and build.gradle.kts, as far as a dependency is written as one string."""
    for line in source.split("\n"):
        match = GRADLE.match(line)
        if match:
            kind = "dev" if match.group(1).lower().startswith("test") else "runtime"
            yield Dependency(match.group(2), match.group(3) or "managed", kind)


Parser = Callable[[str], Iterator[Dependency]]
MANIFESTS: List[Tuple[Pattern[str], str, Parser]] = [
    (re.compile(r"Cargo\.toml"), "Cargo (Rust)", cargo),
    (re.compile(r"package\.json"), "npm (JavaScript)", npm),
    (re.compile(r"pyproject\.toml"), "PyPI (Python)", pyproject),
    (re.compile(r"requirements[\w.-]*\.(txt|in)"), "PyPI (Python)", requirements),
    (re.compile(r"go\.mod"), "Go", go_mod),
    (re.compile(r"pom\.xml"), "Maven (Java)", maven),
    (re.compile(r"build\.gradle(\.kts)?"), "Maven (Java)", gradle),
    (re.compile(r"Gemfile|.*\.gemspec"), "RubyGems", gemfile),
    (re.compile(r"composer\.json"), "Packagist (PHP)", composer),
    (re.compile(r".*\.(cs|fs|vb)proj"), "NuGet (.NET)", dotnet),
]


def manifest_kind(path: str) -> Optional[Tuple[str, Parser]]:
    """The ecosystem of a manifest and its parser, if the file is one."""
    name = os.path.basename(path)
    for pattern, ecosystem, parser in MANIFESTS:
        if pattern.fullmatch(name):
            return ecosystem, parser
    return None


def merge(found: Dict[Tuple[str, str, str, str], Json], ecosystem: str, path: str, one: Dependency) -> None:
    """Count a dependency that several manifests declare alike once, with all its manifests."""
    name, version, kind = (show(scrub(field), MAX_TEXT) for field in one)
    row = found.setdefault(
        (ecosystem, name, version, kind),
        {"ecosystem": ecosystem, "name": name, "version": version, "kind": kind, "manifests": []},
    )
    if row["manifests"][-1:] != [path]:
        row["manifests"].append(path)


def dependencies(job: Job) -> Tuple[Json, Json]:
    """The declared dependencies of the snapshot by ecosystem."""
    snapshot = job.load("snapshot")
    wanted = [file for file in snapshot["files"] if not file["vendored"] and manifest_kind(file["path"])]
    found: Dict[Tuple[str, str, str, str], Json] = {}
    unreadable: List[Json] = []
    for file, data in Contents(snapshot["top"], wanted):
        ecosystem, parser = manifest_kind(file["path"]) or ("", npm)
        try:
            for one in parser(text(data)):
                merge(found, ecosystem, file["path"], one)
        # A manifest is input: whatever is wrong with it must not stop the analysis of the others.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ElementTree.ParseError) as error:
            unreadable.append({"path": file["path"], "reason": show(scrub(str(error)), MAX_TEXT)})
    rows = [found[key] for key in sorted(found)]
    counts: Dict[str, int] = {}
    kept: List[Json] = []
    for row in rows:
        counts[row["ecosystem"]] = counts.get(row["ecosystem"], 0) + 1
        if counts[row["ecosystem"]] <= KEPT_PER_ECOSYSTEM:
            kept.append(row)
    result = {"dependencies": kept, "counts": counts, "manifests": len(wanted), "unreadable": unreadable}
    return result, {"manifests": len(wanted), "unreadable": len(unreadable), "declared": len(rows)}


if __name__ == "__main__":
    sys.exit(main("dependencies", dependencies))
