"""Methods by name. Each is one file: network, objective, localization and options."""

from collections.abc import Sequence

from eval.localizations import LOCALIZATIONS
from utils.errors import InputError
from utils.methods import (
    audio_visual,
    co2net,
    ddg_net,
    delu,
    hamnet,
    tfe_dcn,
    um,
)
from utils.methods.base import Definition, Method, arguments_of

__all__ = ["METHODS", "Definition", "Method", "arguments_of", "build_method"]

METHODS: dict[str, Definition] = {
    "co2net": co2net.DEFINITION,
    "audio_visual": audio_visual.DEFINITION,
    "hamnet": hamnet.DEFINITION,
    "um": um.DEFINITION,
    "tfe_dcn": tfe_dcn.DEFINITION,
    "delu": delu.DEFINITION,
    "ddg_net": ddg_net.DEFINITION,
}


def build_method(name: str, num_classes: int, modality_dims: Sequence[int], **options: object) -> Method:
    """Build network, objective and localization of a method.

    Args:
        name: A key of METHODS.
        num_classes: Number of action classes C, without the background.
        modality_dims: Channels of each modality, in the order of the features.
        **options: Options of the method by name, e.g. `topk_ratio=5`. The defaults are the published values.

    Raises:
        InputError: If the method or an option is unknown, or the method cannot be built with these values.
    """
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'; expected one of {', '.join(METHODS)}")
    definition = METHODS[name]
    if unknown := sorted(set(options) - definition.options()):
        raise InputError(f"unknown option '{unknown[0]}' of method {name}; expected {sorted(definition.options())}")
    options = {**definition.defaults, **options}
    localization = options.get("localization", definition.localization)
    if localization not in definition.localizations:
        accepted = ", ".join(definition.localizations)
        raise InputError(f"method {name} has no localization '{localization}'; expected one of {accepted}")
    architecture = {
        "num_classes": num_classes,
        "modality_dims": list(modality_dims),
        **arguments_of(definition.network, options),
    }
    try:
        network = definition.network(**architecture)
        objective = definition.objective(**arguments_of(definition.objective, options))
    except (TypeError, ValueError) as error:
        raise InputError(f"method {name} cannot be built: {error}") from None
    localization = LOCALIZATIONS[localization]
    settings = arguments_of(localization.localize, options)
    return Method(network, objective, localization, settings, architecture)
