"""Tasks that tests/test_distributed.py runs in several processes: torchrun ... tests/ranks.py TASK ARGUMENTS."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.annotations import load_annotations
from utils.datasets import DATASETS
from utils.engine import BatchLoss, Evaluator, train_step
from utils.errors import exit_on_input_error
from utils.features.store import open_features
from utils.methods import build_method
from utils.run.random_states import seed_everything
from utils.run.ranks import Ranks, join_ranks
from utils.training import Training
from wsad_dataset import BatchLoader, WeakVideoDataset

# Method, options of its network, weights of its loss, pairs in a batch of 12. Three pairs are uneven on two ranks, and
# a single pair leaves a rank without any. L_mil^org alone gives the attention units no gradient.
CASES = {
    "uneven pairs": ("co2net", {}, {}, 3),
    "a rank without pairs": ("co2net", {}, {}, 1),
    "no pairs at all": ("co2net", {"consensus": "concat"}, {}, 0),
    "parameters without a gradient": (
        "co2net",
        {"consensus": "se"},
        {"mil_supp": 0, "cas": 0, "ml": 0, "oppo": 0, "norm": 0},
        3,
    ),
    "classifier without a gradient": ("co2net", {"consensus": "add"}, {"mil": 0, "cas": 0, "oppo": 0}, 3),
    "audio-visual": ("audio_visual", {"width": 16}, {}, 3),
}


def subset(path: Path, name: str) -> WeakVideoDataset:
    return WeakVideoDataset(load_annotations(path), open_features(path, ["rgb", "flow"]), name)


class Trainer:
    """Small training, built as in main.py."""

    def __init__(self, case: str, data: WeakVideoDataset, run: Path, ranks: Ranks, dropout: bool = False):
        method, options, weights, num_pairs = CASES[case]
        seed_everything(3, ranks.rank)
        self.method = build_method(method, 3, (6, 6), weights=weights, **options)
        self.net, self.ranks = self.method.network, ranks
        for layer in self.net.modules():
            if isinstance(layer, nn.Dropout) and not dropout:
                layer.p = 0.0
        self.loader = BatchLoader(data, 12, num_pairs, 9, 5, rank=ranks.rank, num_ranks=ranks.size)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-3, weight_decay=1e-2, fused=True)
        identity = {"classes": []}
        self.training = Training(self.net, self.optimizer, self.loader, identity, run, ranks, max_iter=9, eval_every=2)
        self.training.resume(seed=3)
        self.batch_loss = ranks.share(BatchLoss(self.net, self.method.objective), self.loader.example("cpu"))

    def step(self) -> tuple[dict, dict]:
        """Take one step; return its terms, and its gradients by parameter."""
        batch = next(self.loader)
        outcome = train_step(self.batch_loss, self.optimizer, batch, self.ranks)
        self.training.advance(outcome, batch)
        return outcome.terms, {n: None if p.grad is None else p.grad.clone() for n, p in self.net.named_parameters()}


def equality(ranks: Ranks, path: Path, out: Path) -> dict:
    """Take three steps of every case, evaluate, take a step with a NaN on the last rank, call every operation."""
    train, test = (subset(path, name) for name in ("train", "test"))
    torch.set_num_threads(1)
    result = {}
    evaluate = Evaluator(test, load_annotations(path), DATASETS["demo"], ranks)
    untrained = evaluate(Trainer("uneven pairs", train, out / "none", ranks).method)  # equal weights on every rank
    result["own videos"] = ranks.gather([each.video_id for each in untrained.results])
    result["untrained"] = evaluate.gather_outputs(untrained)
    for case in CASES:
        trainer = Trainer(case, train, out / "none", ranks)
        result[case] = {"gradients": trainer.step()[1], "terms": [trainer.step()[0] for _ in range(2)]}
        result[case]["weights"] = trainer.net.state_dict()
    evaluation = evaluate.gather_outputs(evaluate(trainer.method))
    everywhere = ranks.gather((evaluation.metrics, evaluation.selection))
    assert all(scores == everywhere[0] for scores in everywhere)
    result["evaluation"] = {"metrics": evaluation.metrics, "results": evaluation.results}
    batch = next(trainer.loader)
    if ranks.rank == ranks.size - 1:
        batch.features.fill_(torch.nan)
    result["finite"] = ranks.gather(bool(train_step(trainer.batch_loss, trainer.optimizer, batch, ranks).finite))
    result["operations"] = {
        "gathered": ranks.gather(10 + ranks.rank),
        "on_rank_zero": ranks.gather(ranks.on_rank_zero(lambda: ranks.rank)),
        "max": ranks.max(ranks.rank),
        "mean": ranks.mean(torch.tensor([1.0 * ranks.rank, 2.0])).tolist(),
    }
    return result


def resumed(ranks: Ranks, path: Path, out: Path) -> dict:
    """Take four steps with dropout, then two and two in a resumed run; return weights and random numbers of both."""
    train, result = subset(path, "train"), {}
    whole = Trainer("uneven pairs", train, out / "whole", ranks, dropout=True)
    for _ in range(4):
        whole.step()
    result["whole"] = {"weights": whole.net.state_dict(), "random": ranks.gather(torch.rand(3))}
    first = Trainer("uneven pairs", train, out / "parts", ranks, dropout=True)
    for _ in range(2):
        first.step()
    first.training.save_last()
    torch.rand(ranks.rank + 1)
    second = Trainer("uneven pairs", train, out / "parts", ranks, dropout=True)
    for _ in range(2):
        second.step()
    result["parts"] = {"weights": second.net.state_dict(), "random": ranks.gather(torch.rand(3))}
    return result


def interrupted(*argv: str) -> None:
    """Run main.py; rank 1 gets SIGTERM in its third step, and SIGKILL in the third step after the restart."""
    import main  # here, because importing it takes seconds

    life, steps = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), []

    def dangerous_step(*arguments):
        steps.append(0)
        if os.environ["RANK"] == "1" and len(steps) == 3 and life < 2:
            os.kill(os.getpid(), (signal.SIGTERM, signal.SIGKILL)[life])
        return train_step(*arguments)

    main.train_step = dangerous_step
    main.main(list(argv))


def run_tasks(tasks: list, path: Path, out: Path) -> None:
    """Save the result of each task in a file named after the task and the number of ranks."""
    with join_ranks() as ranks:
        for task in tasks:
            result = task(ranks, path, out)
            if ranks.is_main:
                torch.save(result, out / f"{task.__name__}{ranks.size}.pt")


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    if name == "interrupted":
        exit_on_input_error(lambda: interrupted(*words))
    else:
        tasks = {"equality": [equality], "equality+resumed": [equality, resumed]}[name]
        run_tasks(tasks, *map(Path, words))
