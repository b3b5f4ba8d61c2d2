"""The two papers' methods: network, objective and localization, by the name that `--model` gives."""

from dataclasses import dataclass

from torch import nn

from model import CO2Net
from utils.errors import InputError
from utils.losses import CO2Loss
from utils.methods.audio_visual import AudioVisualNet
from utils.methods.audio_visual_losses import AudioVisualLoss


@dataclass(frozen=True)
class Method:
    network: type[nn.Module]
    criterion: type[nn.Module]
    modalities: tuple[int, ...]  # how many it takes
    consensus: str  # what enhances the modalities, and
    localization: str  # how its outputs become detections, unless an option says otherwise


METHODS = {
    "co2net": Method(CO2Net, CO2Loss, (2,), "ccm", "outer_inner"),
    "audio_visual": Method(AudioVisualNet, AudioVisualLoss, (1, 2), "cross_attention", "two_stage"),
}


def build_network(model: str, architecture: dict) -> nn.Module:
    """The network of a method from its arguments; InputError for those that it does not take."""
    try:
        return METHODS[model].network(**architecture)
    except (TypeError, ValueError) as error:
        raise InputError(f"the network of --model {model} cannot be built: {error}") from None


def build_criterion(model: str, arguments: dict) -> nn.Module:
    """The objective of a method from its arguments; InputError for those that it does not take."""
    try:
        return METHODS[model].criterion(**arguments)
    except ValueError as error:
        raise InputError(f"the objective of --model {model} cannot be built: {error}") from None
