"""`her2 export`: a run's frozen networks as a folder that is read without the study, and by plain torch.

What stands in it: see `frozen`; besides network.py, the architecture as source, README.md, the model card with ten
lines that predict, and where wanted an ONNX file for each network.  The same run gives the same bytes.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from her2core.config import Study, read_yaml
from her2core.formats.boundary import reading
from her2core.records import read_digests, whole
from her2core.report.documents import fill_in
from her2core.report.frozen import FrozenModel, frozen_model
from her2core.report.standalone import network_source
from her2core.runs import Run

_PACKAGES = ("her2core", "numpy", "safetensors", "torch", "torchvision")
_OPSET = 20
_CARD = "MODEL_CARD.md"
_EXTERNAL = re.compile(r"\[([^]]+)\]\((?!https?:)[^)]+\)")  # a link to a file that stays with the study


class _Probability(torch.nn.Module):
    """A network from 8-bit slices to probabilities: what an ONNX file computes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """slices `(N, channels, H, W)` uint8 → `(N,)`."""
        return self.network(slices.float() / 255).sigmoid()


@torch.no_grad()
def onnx_bytes(network: torch.nn.Module, channels: int, image_px: int) -> bytes:
    """A network as ONNX: `slices` `(N, channels, H, W)` uint8 → `probability` `(N,)` float32, for any N.

    ValueError where a package lacks, or where the exporter holds N to one number."""
    try:
        import onnx  # noqa: F401 - the two are of the extra `export`
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed, which ONNX needs; pip install -e .[export]") from error
    some = torch.zeros((5, channels, image_px, image_px), dtype=torch.uint8)
    how = {"dynamo": True, "external_data": False, "verbose": False, "opset_version": _OPSET}
    how |= {"input_names": ["slices"], "output_names": ["probability"]}
    how |= {"dynamic_shapes": ({0: torch.export.Dim("N")},)}
    model = torch.onnx.export(_Probability(network).cpu().eval(), (some,), **how).model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError("heads with networks of their own: ONNX would hold them to 5 slices; leave out --onnx")
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")  # where on this machine each line of code lies
    return model.SerializeToString(deterministic=True)


def _readme(study, model, onnx):
    """The study's model card where it is this run's, then how to use the folder."""
    path, card, reference = study.results / _CARD, None, Run.of(study).name
    if path.is_file() and model.described.run == reference:
        card = _EXTERNAL.sub(r"\1", path.read_text("utf-8")).rstrip()
    citation = read_yaml(study.top / "CITATION.cff") if (study.top / "CITATION.cff").is_file() else {}
    licence = citation.get("license", "MIT").lower() if study.is_synthetic else "other"
    texts = {"card": card, "reference": reference, "licence": licence, "has_card": path.is_file()}
    texts |= {"transformers": None if model.described.model != "cvt" else version("transformers")}
    return fill_in("export.md.jinja", study=study, m=model, opset=onnx and _OPSET, **texts)


def _json(section):
    return json.dumps(asdict(section), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _sums(folder):
    """SHA256SUMS of all files of a folder, for `sha256sum -c`."""
    each = ((hashlib.sha256(path.read_bytes()).hexdigest(), path.name) for path in sorted(folder.iterdir()))
    return "".join(f"{digest}  {name}\n" for digest, name in each)


def _copy_weights(run, model, part):
    """The files that training froze, once more compared with their digests."""
    frozen = read_digests(run.frozen, f"run: dvc repro {run.stage}")
    for file in (member.file for member in model.described.networks):
        shutil.copyfile(run.folder / file, part / file)
        with reading(part / file, "what training froze"):
            if hashlib.sha256((part / file).read_bytes()).hexdigest() != frozen[file]:
                raise ValueError("its SHA-256 is another: it changed meanwhile")


def write_model(study: Study, name: str, folder: Path, onnx: bool = False) -> FrozenModel:
    """A run of a study as a new folder; returns what is in it.  onnx: with an ONNX file for each network.

    `Unready` where the run has not been computed; ValueError where the folder is there already."""
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already; expected the name of a new folder")
    model = frozen_model(study, name, {package: version(package) for package in _PACKAGES})
    described = model.described
    source = network_source(described.model, described.versions["her2core"])
    texts = {"config.json": _json(described), "preprocessing.json": _json(model.preprocessing)}
    texts |= {"comparison.json": _json(model.comparison), "network.py": source}
    texts |= {"README.md": _readme(study, model, onnx)}
    with whole(folder) as part:
        part.mkdir()
        _copy_weights(Run.of(study, name), model, part)
        for file, text in texts.items():
            (part / file).write_text(text, "utf-8", newline="\n")
        for member, network in zip(described.networks, model.networks, strict=True) if onnx else ():
            content = onnx_bytes(network, described.channels, described.image_px)
            (part / member.file).with_suffix(".onnx").write_bytes(content)
        (part / "SHA256SUMS").write_text(_sums(part), "utf-8", newline="\n")
    return model
