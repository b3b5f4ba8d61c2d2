"""Global random generators of Python, NumPy and PyTorch: their seed, and their states for checkpoints."""

import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0, iteration: int = 0) -> None:
    """Seed the global random generators of Python, NumPy and PyTorch.

    Args:
        seed: Seed of the run.
        rank: Rank; each one has its own streams.
        iteration: Number of steps already taken, for a run that continues without its random states.
    """
    if rank or iteration:
        seed = int(np.random.SeedSequence([seed, rank, iteration]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - extensions may draw from the global generator
    torch.manual_seed(seed)


def random_states() -> dict:
    """Return the states of the global random generators, in values that a checkpoint can store."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the state of the global generator is wanted
    states = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict) -> None:
    """Set the global random generators to the states that `random_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
