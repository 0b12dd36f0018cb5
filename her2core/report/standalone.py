"""The source of a network without the package: its definitions, gathered from their modules, as one file.

An exported folder has to run where only torch and numpy are.  A second copy of the architecture in git would age;
this follows the names that a definition uses, into her2core and torchvision, and takes what they name as it stands.
Everything else is imported.
"""

import ast
import importlib
import importlib.util
from functools import cache

from her2core.report.documents import fill_in

_TAKEN = ("her2core", "torchvision")  # whose definitions are taken; of all other packages names are imported
_BUILDERS = {  # how a network is built: what of it stands in which module
    "thda": ("ThdaResNet(ThdaConfig(**architecture))", "model", "ThdaResNet", "ThdaConfig"),
    "resnet34_rgb": ("_resnet34_rgb(ThdaConfig(**architecture))", "baselines", "_resnet34_rgb", "ThdaConfig"),
    "vit": ('_vit(VitConfig(**architecture), config["image_px"])', "baselines", "_vit", "VitConfig"),
    "cvt": ("_cvt(CvtConfig(**architecture))", "baselines", "_cvt", "CvtConfig"),
}


@cache
def _parsed(module):
    """→ the package that relative imports start from, the source's lines, {name: where it gets its meaning}."""
    spec = importlib.util.find_spec(module)
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    names = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: (node, alias) for alias in node.names}
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target)]
            names |= {name.id: node for name in targets if isinstance(name, ast.Name)}
    return spec.parent, source.splitlines(), names


def _imported(parent, node, alias):
    """→ module and name where the definition is taken from there, or the line that imports it."""
    renamed = f" as {alias.asname}" if alias.asname else ""
    if isinstance(node, ast.Import):
        return None, f"import {alias.name}{renamed}"
    module = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
    if module.split(".")[0] not in _TAKEN:
        return None, f"from {module} import {alias.name}{renamed}"
    if renamed:
        raise ValueError(f"{module}: {alias.name} is imported{renamed}, expected its own name; rename it there")
    return module, alias.name


def _gather(module, name, found, imports):
    """Into `found`, {(module, first line): text}, a definition after all that it uses, and its imports."""
    parent, lines, names = _parsed(module)
    if name not in names:  # a star brought it
        return _gather(getattr(importlib.import_module(module), name).__module__, name, found, imports)
    if isinstance(names[name], tuple):
        module, name = _imported(parent, *names[name])
        return _gather(module, name, found, imports) if module else imports.add(name)
    node = names[name]
    first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))])
    if (module, first) in found:
        return
    used = {n.id: None for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in names and names[n.id] != node}
    for other in used:
        _gather(module, other, found, imports)
    found[module, first] = "\n".join(lines[first - 1 : node.end_lineno])


def network_source(kind: str, version: str) -> str:
    """network.py: `build(config)`, a network of that kind (see `baselines.MODELS`) in torch alone, and
    `eight_bits`, its window; cvt also needs the package transformers.  version: of her2core."""
    builder, module, *roots = _BUILDERS[kind]
    found, imports = {}, {"import numpy as np"}
    wanted = [(module, root) for root in roots]
    wanted += [("normalize", "Window"), ("normalize", "knots"), ("normalize", "piecewise")]
    for module, root in [*wanted, ("preprocess", "_statistics_of")]:
        _gather(f"her2core.{module}", root, found, imports)
    texts = {"imports": "\n".join(sorted(imports)), "definitions": "\n\n\n".join(found.values())}
    return fill_in("network.py.jinja", builder=builder, version=version, **texts)
