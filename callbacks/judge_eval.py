"""Lets a language model judge completions beside the training."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.judging import Background, Item, Judge, JudgementCache, Panel
from lightning_pspo.training.passes import StepOutput

from ._completion_files import sample_row, sample_rows
from ._judgements import ITEMS, SUMMARY, JudgedEvaluation, Judgements, Question, finish, gather
from ._trainer import finished_rollouts, is_trial, root_folder

_WAIT_SHARE, _LEAST_WAIT_S = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class _Session:
    """What a run has open while it judges."""

    background: Background
    judgements: Judgements
    cache: JudgementCache


class JudgeEval(Callback):
    """Scores completions of validation, and of every n-th rollout if asked to, on five dimensions (docs/judging.md).

    Judging runs in a process of its own (a judge that is not ``portable``, in a thread); a training step only hands
    items over and collects what has arrived. Every item ends as a row of ``<default_root_dir>/judgements.jsonl``, with
    scores or the reason why there are none; ``judge_summary.json`` says how far the judge can be trusted. Means are
    logged as ``judge/<source>/<dimension>`` when all items of an evaluation are there (under DDP those of the first
    rank). A resumed run asks only for what is missing. Under DDP each rank judges its own items, with its share of the
    judge's caps. A judge that fails never ends the training.

    Args:
        judge: Judge that answers, such as an ``EndpointJudge``.
        every_n_rollouts: Also judge training completions of every n-th rollout; None judges validation alone.
        max_items: Most items of one evaluation or rollout and rank, chosen by the seed; None takes all.
        budget_s: Longest time that a step spends on collecting results, above 0.
        final_wait_s: Longest wait at the end of training for what is not judged yet, at least 0; None for 2 % of the
            time that the training took, and at least half a second.
        repeats: How often the items in ``repeat_share`` are asked about, at least 1.
        repeat_share: Share of items that measures the judge's agreement with itself, in [0, 1].
        max_pending: Most items that may wait at a time; further ones are written down as not asked.
        cache: File with replies that may be used again, below the run's folder unless it is absolute.
        seed: Seed of choice and order.

    Raises:
        InputError: A number is out of range.
    """

    reads_rollouts = True

    def __init__(
        self,
        *,
        judge: Judge,
        every_n_rollouts: int | None = None,
        max_items: int | None = 64,
        budget_s: float = 0.2,
        final_wait_s: float | None = None,
        repeats: int = 2,
        repeat_share: float = 0.1,
        max_pending: int = 10_000,
        cache: str = "judge_cache.sqlite",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("every_n_rollouts", every_n_rollouts, 1)
        check_at_least("max_items", max_items, 1)
        check_at_least("repeats", repeats, 1)
        check_at_least("max_pending", max_pending, 1)
        if not budget_s > 0:
            raise InputError(f"`budget_s` must be above 0, got {budget_s}.")
        if final_wait_s is not None and not final_wait_s >= 0:
            raise InputError(f"`final_wait_s` must be at least 0, got {final_wait_s}.")
        if not 0.0 <= repeat_share <= 1.0:
            raise InputError(f"`repeat_share` must be in [0, 1], got {repeat_share}.")
        self.judge, self.every_n_rollouts, self.max_items = judge, every_n_rollouts, max_items
        self.budget_s, self.final_wait_s = budget_s, final_wait_s
        self.repeats, self.repeat_share, self.max_pending = repeats, repeat_share, max_pending
        self.cache, self.seed = cache, seed
        self._session: _Session | None = None
        self._evaluated: list[Question] = []
        self._started = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the files of an interrupted run together, and start the judge."""
        if is_trial(trainer):
            return
        root = root_folder(trainer)
        if trainer.is_global_zero:
            gather(root)
        trainer.strategy.barrier("pspo.judge.begin")
        self.judge.shared_by(trainer.world_size)
        cache = JudgementCache(root / self.cache)
        panel = Panel(self.judge, cache, seed=self.seed, repeats=self.repeats, repeat_share=self.repeat_share)
        model = str(self.judge.identity().get("model", type(self.judge).__name__))
        judgements = Judgements(root, trainer.global_rank, model)
        self._session = _Session(Background(panel, max_pending=self.max_pending), judgements, cache)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask again for what is missing of the rollouts that are not repeated."""
        self._started = time.monotonic()
        if self._session is None:
            return
        if trainer.is_global_zero:
            missing = self._session.judgements.resume(finished_rollouts(trainer))
            if missing:
                rank_zero_info(f"JudgeEval: {len(missing)} items of the interrupted run are not judged yet.")
            self._submit(missing)
        trainer.strategy.barrier("pspo.judge.resume")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the batch's completions."""
        if self._session is None or trainer.sanity_checking:
            return
        rollout = finished_rollouts(trainer)
        for (position, _, number), row in sample_rows(outputs):
            name = f"validate/{rollout}/{row['source']}/{position}/{row['temperature']:g}/{number}"
            fields = {"temperature": row["temperature"], "sample": number}
            self._evaluated.append(_question(name, rollout, row["source"], row, fields))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Submit the completions of this evaluation."""
        by_source: dict[str, list[Question]] = {}
        for question in self._evaluated:
            by_source.setdefault(question.source, []).append(question)
        self._evaluated = []
        for questions in by_source.values():
            self._submit(self._chosen(questions))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Submit the rollout's completions where it is their turn, and collect what has arrived."""
        if self._session is None:
            return
        finished = finished_rollouts(trainer)
        if self.every_n_rollouts is not None and finished % self.every_n_rollouts == 0:
            step: StepOutput = outputs
            rollout = step["rollout"]
            group_size = rollout.rewards.shape[1]
            questions = []
            for index, sample in enumerate(rollout.samples):
                row, number = divmod(index, group_size)
                name = f"train/{finished}/{int(rollout.prompts.positions[row])}/{number}"
                questions.append(_question(name, finished, "train", sample_row(sample), {}))
            self._submit(self._chosen(questions))
        self._collect(trainer, self.budget_s)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for what is not judged yet, at most ``final_wait_s``, and account for everything."""
        if self._session is None:
            return
        wait_s = self.final_wait_s
        if wait_s is None:
            wait_s = max(_LEAST_WAIT_S, _WAIT_SHARE * (time.monotonic() - self._started))
        end = time.monotonic() + wait_s
        background = self._session.background
        while (left := end - time.monotonic()) > 0 and background.waiting:
            self._collect(trainer, left, wait_s=min(left, 1.0))
        self._stop(trainer, f"not finished {wait_s:.3g} s after the end of training (`final_wait_s`)")
        trainer.strategy.barrier("pspo.judge.end")
        if not trainer.is_global_zero:
            return
        root = root_folder(trainer)
        summary = finish(root, self.judge, background.spent())
        if summary["missing"]:
            rank_zero_warn(
                f"JudgeEval: {summary['missing']} of {summary['items']} items are not judged: "
                f"{', '.join(summary['examples'])}. `lightning-pspo judge {root / ITEMS}` can judge them later."
            )
        trust = "; ".join([summary["trust"]["level"], *summary["trust"]["why"]])
        judged = f"{summary['scored']} of {summary['items']} items are judged"
        rank_zero_info(f"JudgeEval: {judged}, trust: {trust}; see {root / SUMMARY}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down what has arrived; a resumed run asks for the rest."""
        self._stop(trainer, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close worker and files."""
        self._stop(trainer, None)

    def _chosen(self, questions: Sequence[Question]) -> list[Question]:
        """Return the items of one evaluation to judge, in the order of asking: by the seed, not by the source."""
        if not questions:
            return []
        count = len(questions) if self.max_items is None else min(self.max_items, len(questions))
        return random.Random(f"{self.seed} {questions[0].item.id}").sample(questions, count)

    def _submit(self, questions: Sequence[Question]) -> None:
        if self._session is not None:
            judgements = self._session.judgements
            for judgement in self._session.background.submit(judgements.add(questions)):
                judgements.record(judgement)

    def _collect(self, trainer: Trainer, budget_s: float, wait_s: float = 0.0) -> None:
        """Write down the results that have arrived, at least one, for as long as the budget lasts."""
        if self._session is None:
            return
        end = time.monotonic() + budget_s
        while arrived := self._session.background.fetch(wait_s, limit=1):
            self._log(trainer, self._session.judgements.record(arrived[0]))
            wait_s = 0.0
            if time.monotonic() >= end:
                break

    def _log(self, trainer: Trainer, evaluation: JudgedEvaluation | None) -> None:
        """Log the means of an evaluation whose last item has arrived."""
        if evaluation is None or not trainer.is_global_zero:
            return
        values = {f"judge/{evaluation.source}/{name}": value for name, value in evaluation.metrics().items()}
        values["judge/rollout"] = float(evaluation.rollout)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=finished_rollouts(trainer))

    def _stop(self, trainer: Trainer, why: str | None) -> None:
        """End judging; without a reason, unfinished items stay to be asked again."""
        if self._session is None:
            return
        session, self._session = self._session, None
        for judgement in session.background.close(why or ""):
            if why is not None or judgement.reason != "":
                self._log(trainer, session.judgements.record(judgement))
        session.judgements.close()
        session.cache.close()


def _question(name: str, rollout: int, source: str, row: Mapping[str, Any], fields: Mapping[str, Any]) -> Question:
    item = Item(name, row["question"], row["completion"], row["answer"])
    verdict = {"problem": row["id"], "verdict": row["verdict"]}
    return Question(item, rollout, source, verdict | dict(fields))
