"""What machines read of a study: where each file comes from, what the data are, what the software is.

The same files give the same bytes.  No run has a time: the pipeline keeps none.  `croissant` is written by the
notebook of the report.  The two files at the top are written after all stages, by
`python -m her2core.report.machine_readable`: the crate is of dvc.lock, which DVC writes as each stage ends.
"""

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from her2core.config import Study, read_yaml, stages_of
from her2core.formats.boundary import reading
from her2core.records import file_digest, whole
from her2core.report.documents import fill_in

_PROFILES = [f"https://w3id.org/ro/wfrun/{kind}/0.5" for kind in ("process", "workflow", "provenance")]
_PROFILES.append("https://w3id.org/workflowhub/workflow-ro-crate/1.0")
_DVC, _PYPI = "https://dvc.org", "https://pypi.org/project/{}/{}/"
_CRATE = "https://w3id.org/ro/crate/1.1"
_MD5 = {"md5": "https://w3id.org/ro/terms/workflow-run#md5"}
_NOT_IN_GIT = ("data", "models")
_SPDX = "https://spdx.org/licenses/{}"
_FORMATS = {".csv": "text/csv", ".html": "text/html", ".md": "text/markdown", ".py": "text/x-python"}
_FORMATS |= {f".{name}": f"application/{name}" for name in ("json", "pdf", "yaml")}
_FORMATS |= {".ipynb": "application/x-ipynb+json", ".png": "image/png"}


def _refs(ids: Iterable[str]):
    """One stands alone, as RO-Crate has it."""
    refs = [{"@id": name} for name in ids]
    return refs[0] if len(refs) == 1 else refs


def _thing(name, kind, /, **more):
    return {"@id": name, "@type": kind} | more


def _text(value):
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _authors(citation):
    for author in citation["authors"]:
        if "name" in author:
            yield {"@type": "Organization", "name": author["name"]}
        else:
            person = {"@type": "Person", "givenName": author["given-names"], "familyName": author["family-names"]}
            yield person | ({"@id": author["orcid"]} if "orcid" in author else {})


def pinned(project: dict, lock: str) -> dict[str, str]:
    """{package: version} of what `project`, the table of that name in pyproject.toml, names as its dependencies.

    lock: the text of requirements.lock.  ValueError names a package that the lock lacks.
    """
    versions = dict(reversed(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.lower(), re.M)))  # the first of several
    names = [re.match(r"[\w.-]+", line)[0].lower().replace(".", "-") for line in project["dependencies"]]
    if lacking := [name for name in names if name not in versions]:
        raise ValueError(f"requirements.lock: no version of {', '.join(lacking)}; renew it: make lock")
    return {name: versions[name] for name in names}


def codemeta(project: dict, citation: dict) -> dict:
    """CodeMeta 3.0 of the software.  project: the table of that name in pyproject.toml; citation: CITATION.cff.

    ValueError where the two give different versions or licences.
    """
    for key, value in (("version", project["version"]), ("license", project["license"]["text"])):
        if citation[key] != value:
            raise ValueError(f"CITATION.cff: {key} {citation[key]!r}, in pyproject.toml {value!r}; make them one")
    found = {"@context": "https://w3id.org/codemeta/3.0", "@type": "SoftwareSourceCode", "name": project["name"]}
    found |= {"description": project["description"], "version": project["version"]}
    found |= {"license": _SPDX.format(citation["license"]), "author": [*_authors(citation)]}
    if "date-released" in citation:
        found["datePublished"] = str(citation["date-released"])
    found |= {"programmingLanguage": "Python", "runtimePlatform": f"Python {project['requires-python']}"}
    found |= {"softwareRequirements": project["dependencies"], "readme": project["readme"]}
    papers = [{"name": work["title"], "url": work["url"]} for work in citation["references"]]
    return found | {"referencePublication": [{"@type": "ScholarlyArticle"} | paper for paper in papers]}


def _entity(entry):
    """What an entry of dvc.lock is in the crate; data and weights are not in git and so no part of it."""
    path, folder = entry["path"], entry["md5"].endswith(".dir")
    if path.split("/")[0] in _NOT_IN_GIT:
        found = _thing(f"#{path}", "CreativeWork", description="not in git: the pipeline makes it")
    elif folder:
        found = _thing(f"{path}/", "Dataset")
    else:
        found = _thing(path, "File", encodingFormat=_FORMATS.get(Path(path).suffix, "text/plain"))
    return found | {"name": path, "md5": entry["md5"], "contentSize": str(entry["size"])}


def _settings(entry):
    """The parameters of an entry of dvc.lock."""
    for file, sections in entry.get("params", {}).items():
        for name, value in sections.items():
            text = json.dumps(value, ensure_ascii=False)
            yield _thing(f"#{file}:{name}", "PropertyValue", name=f"{file}: {name}", value=text)


def _tool(command):
    """The notebook or module that a stage's command runs."""
    _, _, module, first, *_ = command.split()
    return f"notebooks/{first}.ipynb" if module == "her2core.run" else module.replace(".", "/") + ".py"


class _Graph(dict):
    """{@id: entity}; two that differ under one name are an error."""

    def put(self, entities, where):
        ids = []
        for entity in entities:
            ids.append(entity["@id"])
            if self.setdefault(ids[-1], entity) != entity:
                found = f"{entity['name']} of the stage {where} is not the one of an earlier stage"
                raise ValueError(f"dvc.lock: {found}, expected the same; run first: dvc repro")
        return ids


def _runs(study, stages, lock, graph):
    """An action for each entry of dvc.lock, in the order of dvc.yaml; (inputs, outputs) of all of them."""
    inputs, outputs = {}, {}
    for position, (stage, definition) in enumerate(stages.items(), 1):
        for name in [f"{stage}@{run}" for run in study.runs] if "matrix" in definition else [stage]:
            if name not in lock:
                raise ValueError(f"dvc.lock: no stage {name}, expected every one of dvc.yaml; run first: dvc repro")
            entry = lock[name]
            used = graph.put([_entity(dep) for dep in entry["deps"]], name) + graph.put(_settings(entry), name)
            made = graph.put([_entity(out) for out in entry["outs"]], name)
            action = _thing(f"#run/{name}", "CreateAction", name=name, description=entry["cmd"])
            tool = _refs([_tool(entry["cmd"])])
            graph.put([action | {"instrument": tool, "object": _refs(used), "result": _refs(made)}], name)
            inputs |= dict.fromkeys(used)
            outputs |= dict.fromkeys(made)
        step = _thing(f"#step/{stage}", "HowToStep", name=stage, description=definition["desc"])
        graph.put([step | {"position": str(position), "workExample": tool}], stage)
    return [name for name in inputs if name not in outputs], [*outputs]


def ro_crate(study: Study, stages: dict, lock: dict, project: dict, citation: dict, versions: dict) -> dict:
    """A Provenance Run Crate of the top-level study: which stage made which file of which, by MD5.

    stages: of dvc.yaml.  lock: those of dvc.lock.  project: of pyproject.toml.  versions: of `pinned`.  ValueError
    where the lock lacks a stage or contradicts itself, or CITATION.cff has no date-released.
    """
    if "date-released" not in citation:
        raise ValueError("CITATION.cff: no date-released, which a crate must have; write it as YYYY-MM-DD")
    graph, title = _Graph(), f"the study {study.name}"
    inputs, outputs = _runs(study, stages, lock, graph)
    steps, actions = ([name for name in graph if name.startswith(f"#{kind}/")] for kind in ("step", "run"))
    files = [name for name in graph if not name.startswith("#")]
    tools = dict.fromkeys(graph[step]["workExample"]["@id"] for step in steps)
    for tool in tools:
        graph[tool]["@type"] = ["File", "SoftwareSourceCode"]
    root = _thing("./", "Dataset", name=citation["title"], description=project["description"])
    root |= {"datePublished": str(citation["date-released"]), "license": _refs([_SPDX.format(citation["license"])])}
    root |= {"author": _refs(["#authors"]), "conformsTo": _refs(_PROFILES), "mainEntity": _refs(["dvc.yaml"])}
    root |= {"hasPart": _refs(["dvc.yaml", "README.md", *files]), "mentions": _refs(["#run", *actions])}
    kinds = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
    workflow = _thing("dvc.yaml", kinds, encodingFormat=_FORMATS[".yaml"], name=title, version=project["version"])
    workflow |= {"programmingLanguage": _refs([_DVC]), "step": _refs(steps), "hasPart": _refs(tools)}
    workflow["softwareRequirements"] = _refs(_PYPI.format(*item) for item in versions.items())
    run = _thing("#run", "CreateAction", name=title, description="dvc repro", instrument=_refs(["dvc.yaml"]))
    run |= {"object": _refs(inputs), "result": _refs(outputs)}
    entities = [root, workflow, run, *graph.values(), *_others(citation, versions)]
    return {"@context": [f"{_CRATE}/context", _MD5], "@graph": entities}


def _others(citation, versions):
    """Entities that stand in no record of a run."""
    about = {"about": _refs(["./"]), "conformsTo": _refs([_CRATE, _PROFILES[-1]])}
    yield _thing("ro-crate-metadata.json", "CreativeWork", **about)
    names = "; ".join(a.get("name") or f"{a['given-names']} {a['family-names']}" for a in citation["authors"])
    yield _thing("#authors", "Organization", name=names)
    yield _thing(_SPDX.format(citation["license"]), "CreativeWork", name=citation["license"])
    yield _thing(_DVC, "ComputerLanguage", name="DVC", version=versions["dvc"])
    yield _thing("README.md", "File", about=_refs(["./"]), encodingFormat=_FORMATS[".md"])
    for profile in _PROFILES:
        yield _thing(profile, "CreativeWork", name=profile.split("/")[-2], version=profile.split("/")[-1])
    for name, version in versions.items():
        url = _PYPI.format(name, version)
        yield _thing(url, "SoftwareApplication", name=name, url=url, softwareVersion=version)


def croissant(study: Study, citation: dict, reference: str) -> str:
    """Croissant of a study's prediction tables, with how their images were made (RAI), as JSON text.

    Digests are of the tables as they are.  Raises `Unready` where the reference has none.
    """
    study.need(f"train@{reference}", study.results / "predictions" / f"{reference}.csv")
    tables = {}
    for folder in ("predictions", "external"):
        for path in sorted((study.results / folder).glob("*.csv")):
            tables[f"{folder}/{path.name}"] = path.stat().st_size, file_digest(path)
    made = {key: value for key, value in study.section("acquire").items() if key != "jobs"}
    text = fill_in(
        "croissant.json.jinja", study=study, citation=citation, reference=reference, tables=tables, made=made
    )
    return _text(json.loads(text))


def top_level_files(study: Study) -> dict[str, str]:
    """{name: text} of codemeta.json and ro-crate-metadata.json, which stand at the compendium's top.

    study: the top level's, whose dvc.lock it is.  ValueError where the files at the top contradict each other.
    """
    top = study.top
    if study.folder != top:
        raise ValueError(f"{study.name} is a study in studies/, expected the top level's: the crate is of dvc.lock")
    citation = read_yaml(top / "CITATION.cff")
    with reading(top / "pyproject.toml", "a project's table, as TOML"):
        project = tomllib.loads((top / "pyproject.toml").read_text("utf-8"))["project"]
    versions = pinned(project, (top / "requirements.lock").read_text("utf-8"))
    lock = stages_of(top / "dvc.lock")
    crate = ro_crate(study, stages_of(top / "dvc.yaml"), lock, project, citation, versions)
    return {"codemeta.json": _text(codemeta(project, citation)), "ro-crate-metadata.json": _text(crate)}


if __name__ == "__main__":
    for name, text in top_level_files(opened := Study.open()).items():
        with whole(opened.top / name) as part:
            part.write_text(text, "utf-8")
        print(f"written: {name}")
