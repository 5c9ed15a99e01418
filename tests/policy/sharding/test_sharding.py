"""The same run on one process and on two gloo processes, under every strategy that a CPU can run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import layouts
from tests.support.processes import two_ranks

SAME = {
    "sgd": ["ddp", "fsdp2", "fsdp2 deferring"],
    "adamw": ["fsdp2", "fsdp1"],
    "lora": ["ddp", "fsdp2", "fsdp1", "fsdp2 in one file"],
    "kl": ["lightning's fsdp2", "fsdp1"],
    "lora kl, checkpointing and trees": ["fsdp2"],
}
ROUNDED = ["bfloat16 mixed", "lora bfloat16 base", "lora bfloat16 mixed"]
TWO_RANKS = SAME | {scenario: ["fsdp2"] for scenario in ROUNDED}
TWO_RANKS["bfloat16 mixed"] = ["fsdp2", "fsdp2 deferring"]
RESUMED = [("adamw", "fsdp2"), ("lora", "fsdp2"), ("lora", "fsdp2 in one file"), ("adamw", "fsdp1")]
MOVED = {  # scenario, layout that saves, layout that goes on -> number of ranks that go on
    ("adamw", "fsdp2", "fsdp2"): 1,
    ("lora", "fsdp2 in one file", "single"): 1,
    ("lora", "ddp", "fsdp2"): 2,
    ("sgd", "ddp", "fsdp2"): 2,
}
ROLLOUTS, SAVED, UPDATES, ROWS = 2, 1, 4, 16
Results = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def results(model_folder: Callable[..., Path], problem_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return a function that returns a run's result; all runs happen here, those on one rank in this process."""
    folder = tmp_path_factory.mktemp("layouts")
    # Many ids end a completion, so that lengths are uneven.
    model = model_folder(generation={"eos_token_id": [2, *range(60, 110)]})

    def checkpoint(scenario: str, layout: str) -> str:
        return str(folder / "checkpoints" / f"{scenario}, {layout}" / f"rollout={SAVED:06d}.ckpt")

    def task(scenario: str, layout: str, name: str, saved: str | None = None) -> dict[str, Any]:
        saves = saved is None and (scenario, layout) in [*RESUMED, *(move[:2] for move in MOVED)]
        return {
            "name": f"{scenario}, {name}",
            "scenario": scenario,
            "layout": layout,
            "rollouts": ROLLOUTS if scenario in SAME else 1,
            "save_after": {SAVED: checkpoint(scenario, layout)} if saves else {},
            "ckpt_path": saved and checkpoint(scenario, saved),
        }

    def moves(ranks: int) -> list[dict[str, Any]]:
        return [task(s, b, f"{a} to {b}", saved=a) for (s, a, b), number in MOVED.items() if number == ranks]

    def arguments(ranks: int, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        shared = {"ranks": ranks, "model": str(model), "problems": str(problem_file), "folder": str(folder)}
        return shared | {"tasks": tasks}

    both = [task(scenario, layout, layout) for scenario, runs in TWO_RANKS.items() for layout in runs]
    both += [task(scenario, layout, f"{layout} again", saved=layout) for scenario, layout in RESUMED] + moves(2)
    path = folder / "tasks.json"
    path.write_text(json.dumps(arguments(2, both)), encoding="utf-8")
    layouts.main(arguments(1, [task(scenario, "single", "single") for scenario in TWO_RANKS]))
    two_ranks([str(path)], folder, "tests.support.layouts")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            patch.setenv(variable, "0")  # so that it is restored
            patch.delenv(variable)
        layouts.main(arguments(1, moves(1)))

    return lambda scenario, name: torch.load(folder / f"{scenario}, {name}.pt", weights_only=True)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest difference between two sets of weights of the same names."""
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def later(completions: list[Any]) -> list[Any]:
    """Return the completions of the rollouts after the checkpoint."""
    return [row for row in completions if row[0] >= SAVED]


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("scenario", "layout"), [(scenario, layout) for scenario, runs in SAME.items() for layout in runs]
)
def test_two_ranks_do_what_one_does(results: Results, scenario: str, layout: str) -> None:
    """Token for token, with completions of uneven lengths."""
    one, two = results(scenario, "single"), results(scenario, layout)
    assert two["completions"] == one["completions"]
    assert len(one["completions"]) == ROLLOUTS * ROWS
    assert len({len(ids) for _, _, ids in one["completions"]}) > 4
    assert len(one["norms"]) == ROLLOUTS * UPDATES
    assert distance(one["weights"], two["weights"]) < 2e-5
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert two["estimates"] == one["estimates"]


def test_the_runs_went_somewhere(results: Results) -> None:
    """Otherwise equal weights would prove nothing."""
    ends = [results(scenario, "single")["weights"] for scenario in ("sgd", "adamw", "kl")]
    assert distance(ends[0], ends[1]) > 1e-2
    assert distance(ends[0], ends[2]) > 1e-3
    adapters = results("lora", "single")["weights"]
    assert max(float(weight.abs().max()) for name, weight in adapters.items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize(("scenario", "layout"), [("sgd", "fsdp2"), ("kl", "lightning's fsdp2"), ("kl", "fsdp1")])
def test_weights_are_spread_and_gathered_once_for_sampling(results: Results, scenario: str, layout: str) -> None:
    two, one = results(scenario, layout), results(scenario, "single")
    everything = sum(weight.numel() for weight in one["weights"].values())
    assert one["held"] == everything
    assert everything / 2 <= two["held"] < 0.51 * everything  # of vectors of odd length rank zero has the longer part
    assert two["reference held"] == (two["held"] if scenario == "kl" else 0)
    in_a_pass, while_sampling, *_ = two["exchanges"]
    assert in_a_pass == 3  # two layers, and what is in no layer
    assert while_sampling == 0


@pytest.mark.parametrize("layout", SAME["adamw"])
def test_generation_of_transformers_waits_for_no_other_rank(results: Results, layout: str) -> None:
    """It would communicate at each token if it took the weights to be spread."""
    assert results("adamw", layout)["exchanges"][:2] == (3, 0)


@pytest.mark.parametrize("scenario", ["sgd", "bfloat16 mixed"])
def test_gradients_are_exchanged_in_every_pass_or_in_the_last(results: Results, scenario: str) -> None:
    """With the same gradient, which one process computes, up to rounding."""
    always, once = results(scenario, "fsdp2"), results(scenario, "fsdp2 deferring")
    assert always["exchanges"][2:] == (3, 3)
    assert once["exchanges"][2:] == (0, 3)
    rounding = 1e-5 if scenario == "sgd" else 0.01
    assert once["norms"][0] == pytest.approx(always["norms"][0], rel=rounding)
    assert once["norms"][0] == pytest.approx(results(scenario, "single")["norms"][0], rel=5 * rounding)
    distances = [distance(run["weights"], results(scenario, "single")["weights"]) for run in (always, once)]
    assert max(distances) < (2e-5 if scenario == "sgd" else 0.02)


@pytest.mark.parametrize("scenario", ROUNDED)
def test_bfloat16(results: Results, scenario: str) -> None:
    """Rounding separates the layouts, but not before the first update; what is gathered of a layer has 16 bits."""
    sharded, replicated = results(scenario, "fsdp2"), results(scenario, "single")
    assert sum(a == b for a, b in zip(sharded["completions"], replicated["completions"], strict=True)) >= 14
    assert sharded["norms"][0] == pytest.approx(replicated["norms"][0], rel=0.05)
    assert sharded["dtypes"] == ["torch.float32"]
    of_layers = {weight.dtype for name, weight in sharded["weights"].items() if "layers." in name}
    assert of_layers == {torch.bfloat16} | ({torch.float32} if scenario == "lora bfloat16 base" else set())


@pytest.mark.parametrize(("scenario", "layout"), RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(results: Results, scenario: str, layout: str) -> None:
    uninterrupted, again = results(scenario, layout), results(scenario, f"{layout} again")
    assert again["completions"] == later(uninterrupted["completions"])
    assert all(torch.equal(again["weights"][name], weight) for name, weight in uninterrupted["weights"].items())
    assert again["norms"] == uninterrupted["norms"][SAVED * UPDATES :]
    assert again["estimates"] == uninterrupted["estimates"]


@pytest.mark.parametrize(("scenario", "saved", "resumed"), MOVED)
def test_a_run_goes_on_in_another_layout(results: Results, scenario: str, saved: str, resumed: str) -> None:
    uninterrupted, moved = results(scenario, saved), results(scenario, f"{saved} to {resumed}")
    assert moved["completions"] == later(uninterrupted["completions"])
    assert distance(moved["weights"], uninterrupted["weights"]) < 2e-5
