"""Export the network of a checkpoint to ONNX.

python scripts/export.py --checkpoint runs/NAME/checkpoints/best.pt --out model.onnx
"""

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root

import numpy as np
import torch
from torch import Tensor, nn

from eval.tables import format_table
from utils.checkpoint import read_checkpoint
from utils.detector import Detector, load_detector
from utils.errors import InputError, OneLineParser, exit_on_input_error
from utils.features.recipes import recipe_to_text
from utils.formats.files import atomic_write
from utils.trained import stored_options

OPSET = 18
LENGTHS = (1, 2, 7, 10, 101, 600)  # snippets of the check; 600 is more than a chunk of the cross attention
TRACED = 23  # snippets of the example that the export follows
MAX_SNIPPETS = 2**20
TOLERANCE = 1e-4  # of an output, relative to its largest value if that is above 1
SCENE = 8  # consecutive snippets that are similar


class Exported(nn.Module):
    """Network with the outputs that its localization needs, for features before the feature scale."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.network, self.scale = detector.method.network, detector.scale
        self.names, self.dim = detector.method.localization.outputs, sum(detector.method.architecture["modality_dims"])

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for features (1, T, D)."""
        outputs = self.network(features * self.scale)
        return tuple(outputs[name] for name in self.names)


def main() -> None:
    """Run the command."""
    parser = OneLineParser(
        prog="scripts/export.py",
        description="Export the network of a checkpoint to ONNX, with a dynamic number of snippets. The file has the "
        "outputs that the localization needs, and classes, method, modalities, snippet rate and feature scale as "
        "metadata. It is written only if onnxruntime and PyTorch agree at several lengths.",
    )
    parser.add_argument("--checkpoint", required=True, help="best.pt, selected.pt or last.pt of a run")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.onnx", help="file to write")
    args = parser.parse_args()
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: expected a file in an existing folder")
    onnx, onnxruntime = require_onnx()
    detector = load_detector(args.checkpoint, "cpu")
    net = Exported(detector).eval().requires_grad_(False)
    model = export(net)
    onnx.helper.set_model_props(model, metadata(detector, args.checkpoint))
    content = model.SerializeToString()
    rows = compare(net, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]))
    print(format_table([["snippets", "output", "largest difference"], *rows]))
    with atomic_write(args.out) as partial:
        partial.write_bytes(content)
    print(f"equal to {TOLERANCE:g}; wrote {args.out}: {', '.join(net.names)}; opset {OPSET}, {len(content):,} bytes")


def require_onnx() -> tuple[ModuleType, ModuleType]:
    """Import onnx and onnxruntime; InputError if they or onnxscript, which PyTorch needs, are not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"the export needs {error.name}; install it with: pip install -e '.[onnx]'") from None
    onnxruntime.set_default_logger_severity(3)  # errors only
    return onnx, onnxruntime


def export(net: Exported):
    """Return the ONNX model of a network.

    Raises:
        InputError: PyTorch cannot export it, or it is too large for one file.
    """
    example = torch.rand(1, TRACED, net.dim)
    snippets = torch.export.Dim("snippets", min=1, max=MAX_SNIPPETS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        try:
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                input_names=["features"],
                output_names=list(net.names),
                dynamic_shapes={"features": {1: snippets}},
                opset_version=OPSET,
                verbose=False,
            )
            return program.model_proto
        except (torch.onnx.OnnxExporterError, ValueError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"{type(net.network).__name__} cannot be exported ({reason})") from None


def metadata(detector: Detector, checkpoint: str) -> dict[str, str]:
    """Return the facts that a user of the model needs; lists and dicts are JSON."""
    options = stored_options(read_checkpoint(checkpoint), checkpoint)
    facts = {
        "classes": json.dumps(detector.classes),
        "method": options.method,
        "modalities": json.dumps(detector.modalities),
        "modality_dims": json.dumps(detector.method.architecture["modality_dims"]),
        "snippet_rate": repr(snippet_rate(detector)),
        "feature_scale": repr(detector.scale),  # part of the model
        "localization": options.localization,
        "settings": json.dumps(detector.method.settings, default=np.ndarray.tolist),
    }
    return facts if detector.recipe is None else {**facts, "recipe": recipe_to_text(detector.recipe)}


def snippet_rate(detector: Detector) -> float:
    """Return the snippet rate of the recipe of the features, or that of the training dataset."""
    recipe = detector.recipe or {}
    fps, stride = recipe.get("fps"), recipe.get("stride")
    if all(isinstance(value, int | float) and value > 0 for value in (fps, stride)):
        return fps / stride
    return detector.spec.snippet_rate


def compare(net: Exported, session) -> list[list[str]]:
    """Compare an ONNX session with its network at all LENGTHS, and return rows of a table.

    Raises:
        InputError: An output differs, or has another shape.
    """
    rows = []
    for length in LENGTHS:
        features = example_features(length, net.dim) / net.scale
        with torch.inference_mode():
            expected = [output.numpy() for output in net(features)]
        try:
            got = session.run(list(net.names), {"features": features.numpy()})
        except Exception as error:  # onnxruntime has an error class per status
            reason = str(error).splitlines()[0]
            raise InputError(f"the exported model fails at {length} snippets ({reason}); nothing was written") from None
        for name, ours, theirs in zip(net.names, expected, got, strict=True):
            same_shape = ours.shape == theirs.shape
            difference = float(np.abs(ours - theirs).max()) if same_shape else np.inf
            if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):  # NaN too
                raise InputError(
                    f"the exported model differs from PyTorch at {length} snippets: {name} {theirs.shape} by "
                    f"{difference:.1e}, expected at most {TOLERANCE:g}; nothing was written"
                )
            rows.append([str(length), name, f"{difference:.1e}"])
    return rows


def example_features(length: int, dim: int) -> Tensor:
    """Return random features (1, length, dim), not negative; snippets of one scene are similar (graph of DDG-Net)."""
    generator = torch.Generator().manual_seed(length)
    scenes = torch.rand(-(-length // SCENE), dim, generator=generator).square().repeat_interleave(SCENE, dim=0)[:length]
    return (scenes + 0.2 * torch.rand(length, dim, generator=generator))[None]


if __name__ == "__main__":
    exit_on_input_error(main)
