"""CO2-Net (arXiv:2107.12589): the network of model.py and the objective of utils/losses.py."""

from argparse import ArgumentParser
from collections.abc import Sequence

from model import CO2Net
from utils.fusion import consensus_factory
from utils.losses import SIMILARITIES, SUPPRESSIONS, CO2Loss
from utils.methods.base import Definition
from utils.number_types import fraction_below_one, temporal_pool


def build_network(
    num_classes: int,
    modality_dims: Sequence[int],
    consensus: str = "ccm",
    stages: int = 2,
    temporal_pool: int | None = None,
    attention_logit_dropout: float = 0.5,
) -> CO2Net:
    """Build CO2-Net with a consensus module by name; see `CO2Net` and `consensus_factory`."""
    return CO2Net(
        num_classes, modality_dims, temporal_pool, attention_logit_dropout, consensus_factory(consensus, stages)
    )


def add_options(parser: ArgumentParser) -> None:
    """Add the options of CO2-Net alone (Sections 3.4 and 3.5)."""
    add = parser.add_argument_group("co2net").add_argument
    add(
        "--suppression",
        choices=SUPPRESSIONS,
        default="shifted",
        help="suppressed T-CAM in training: of the release (shifted), or the paper's Eq. 9 (product)",
    )
    add(
        "--attention-logit-dropout",
        type=fraction_below_one,
        default=0.5,
        metavar="P",
        help="dropout on the attention logit: 0.5 in the release, 0 in the paper",
    )
    add(
        "--temporal-pool",
        type=temporal_pool,
        default="dataset",
        metavar="POOL",
        help="average pool over time: `dataset`, that of the dataset in the release (ActivityNet only); `none`, as in "
        "the paper; or an odd number of snippets",
    )
    add("--mutual", choices=tuple(SIMILARITIES), default="mse", help="similarity function of L_ml (Table 4)")


DEFINITION = Definition(
    network=build_network,
    objective=CO2Loss,
    num_modalities=(2,),
    localization="outer_inner",
    add_options=add_options,
)
