"""Lets a language model judge what the policy says, beside the training."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_pspo.errors import InputError
from lightning_pspo.judging import DIMENSIONS, Background, Item, Judge, JudgementCache, Panel
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import EvaluationOutput, Sample

from ._judgements import Judgements, Question
from ._trainer import finished_rollouts, is_trial, root_folder

_WAIT_SHARE, _LEAST_WAIT_S = 0.02, 0.5


class JudgeEval(Callback):
    """Scores completions of validation, and of every n-th rollout if asked to, on five dimensions (docs/judging.md).

    Judging runs in a process of its own (a judge that is not ``portable``, in a thread); a training step only hands
    items over and takes in what has arrived. Every item ends as a
    row of ``<default_root_dir>/judgements.jsonl``, with scores or the reason why there are none;
    ``judge_summary.json`` says how far the judge can be trusted. Means are logged as ``judge/<source>/<dimension>``
    when all items of an evaluation are there (under DDP those of the first rank). A resumed run asks only for what is
    missing. Under DDP each rank judges its own items, with its share of the judge's caps. A judge that fails never
    ends the training.

    Args:
        judge: Is asked.
        every_n_rollouts: Also judge training completions of every n-th rollout; None judges validation alone.
        max_items: Of one evaluation or rollout and rank, chosen by the seed; None takes all.
        budget_s: Longest that a step waits for file and log while results are taken in, above 0.
        final_wait_s: Longest that the end of training waits for what is not judged yet, at least 0; None for
            2 % of the time that the training took, but half a second at least.
        repeats: How often the items in ``repeat_share`` are asked about, at least 1.
        repeat_share: Share of items that measures the judge's agreement with itself, in [0, 1].
        max_pending: Items that may wait at a time; further ones are written down as not asked.
        cache: File with replies that may be used again, below the run's folder unless it is absolute.
        seed: Of choice and order.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
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
        least = {"every_n_rollouts": every_n_rollouts, "max_items": max_items}
        for name, value in (least | {"repeats": repeats, "max_pending": max_pending}).items():
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be at least 1, got {value}.")
        if not budget_s > 0 or not (final_wait_s is None or final_wait_s >= 0):
            raise InputError(
                f"`budget_s` must be above 0 and `final_wait_s` at least 0, got {budget_s} and {final_wait_s}."
            )
        if not 0.0 <= repeat_share <= 1.0:
            raise InputError(f"`repeat_share` must lie in [0, 1], got {repeat_share}.")
        self.judge, self.every_n_rollouts, self.max_items = judge, every_n_rollouts, max_items
        self.budget_s, self.final_wait_s = budget_s, final_wait_s
        self.repeats, self.repeat_share, self.max_pending = repeats, repeat_share, max_pending
        self.cache, self.seed = cache, seed
        self._background: Background | None = None
        self._judgements: Judgements | None = None
        self._cache: JudgementCache | None = None
        self._evaluated: list[Question] = []
        self._begun = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up what an interrupted run left, and begin."""
        if is_trial(trainer):
            return
        root = root_folder(trainer)
        if trainer.is_global_zero:
            Judgements.gather(root)
        trainer.strategy.barrier("pspo.judge.begin")
        self.judge.shared_by(trainer.world_size)
        self._cache = JudgementCache(root / self.cache)
        panel = Panel(self.judge, self._cache, self.seed, self.repeats, self.repeat_share)
        self._background = Background(panel, self.max_pending)
        model = str(self.judge.identity().get("model", type(self.judge).__name__))
        self._judgements = Judgements(root, trainer.global_rank, model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask again for what is missing of the rollouts that are not done again."""
        self._begun = time.monotonic()
        if self._judgements is None:
            return
        if trainer.is_global_zero:
            left = self._judgements.resume(finished_rollouts(trainer))
            if left:
                rank_zero_info(f"JudgeEval: {len(left)} items of the interrupted run are not judged yet.")
            self._submit(left)
        trainer.strategy.barrier("pspo.judge.resume")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the batch's completions."""
        if self._judgements is None or trainer.sanity_checking:
            return
        output: EvaluationOutput = outputs
        rollout = finished_rollouts(trainer)
        positions, valid = output.batch.positions.tolist(), output.batch.valid.tolist()
        for temperature, samples in output.samples.items():
            each = len(samples) // len(output.batch)
            for index, sample in enumerate(samples):
                row, number = divmod(index, each)
                if valid[row]:
                    place = f"validate/{rollout}/{output.batch.source}/{positions[row]}/{temperature:g}/{number}"
                    more = {"temperature": temperature, "sample": number}
                    self._evaluated.append(_question(place, rollout, output.batch.source, sample, more))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over what this evaluation said."""
        by_source: dict[str, list[Question]] = {}
        for question in self._evaluated:
            by_source.setdefault(question.source, []).append(question)
        self._evaluated = []
        for questions in by_source.values():
            self._submit(self._chosen(questions))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand over the rollout's completions where it is their turn, and take in what has arrived."""
        if self._judgements is None:
            return
        rollout = finished_rollouts(trainer)
        if self.every_n_rollouts is not None and rollout % self.every_n_rollouts == 0:
            step: StepOutput = outputs
            prompts = step["rollout"].prompts
            group = step["rollout"].rewards.shape[1]
            questions = [
                _question(
                    f"train/{rollout}/{int(prompts.positions[index // group])}/{index % group}",
                    rollout,
                    "train",
                    sample,
                )
                for index, sample in enumerate(step["rollout"].samples)
            ]
            self._submit(self._chosen(questions))
        self._take_in(trainer, self.budget_s)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for what is not judged yet, at most ``final_wait_s``, and account for everything."""
        if self._judgements is None or self._background is None:
            return
        wait_s = self.final_wait_s
        if wait_s is None:
            wait_s = max(_LEAST_WAIT_S, _WAIT_SHARE * (time.monotonic() - self._begun))
        end = time.monotonic() + wait_s
        while (left := end - time.monotonic()) > 0 and self._background.waiting:
            self._take_in(trainer, left, wait_s=min(left, 1.0))
        background = self._background
        self._stop(trainer, f"not finished {wait_s:.3g} s after the end of training (`final_wait_s`)")
        trainer.strategy.barrier("pspo.judge.end")
        if trainer.is_global_zero:
            root = root_folder(trainer)
            summary = Judgements.finish(root, self.judge, background.spent())
            if summary["missing"]:
                why = ", ".join(f"{count} {reason}" for reason, count in summary["reasons"].items())
                rank_zero_warn(
                    f"JudgeEval: {summary['missing']} of {summary['items']} items are not judged: {why}. "
                    f"scripts/judge.py can judge them later, from {root / 'judge_items.jsonl'}."
                )
            trust = summary["trust"]
            rank_zero_info(
                f"JudgeEval: {summary['scored']} of {summary['items']} items are judged, trust: {trust['level']}"
                f"{''.join(f'; {why}' for why in trust['why'])}; see {root / 'judge_summary.json'}."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down what has arrived; a resumed run asks for the rest."""
        self._stop(trainer, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of worker and file."""
        self._stop(trainer, None)

    def _chosen(self, questions: Sequence[Question]) -> list[Question]:
        """Return the items of one evaluation to judge, in the order of asking: by the seed, not by the source."""
        drawn = random.Random(f"{self.seed} {questions[0].item.id}") if questions else random.Random()
        count = len(questions) if self.max_items is None else min(self.max_items, len(questions))
        return drawn.sample(questions, count)

    def _submit(self, questions: Sequence[Question]) -> None:
        if self._judgements is None or self._background is None:
            return
        fresh = self._judgements.add(questions)
        for judgement in self._background.submit(fresh):
            self._judgements.record(judgement)

    def _take_in(self, trainer: Trainer, budget_s: float, wait_s: float = 0.0) -> None:
        if self._judgements is None or self._background is None:
            return
        end = time.monotonic() + budget_s
        for judgement in self._background.fetch(wait_s, enough=1):
            self._log(trainer, self._judgements.record(judgement))
        while time.monotonic() < end and (found := self._background.fetch(enough=1)):
            self._log(trainer, self._judgements.record(found[0]))

    def _log(self, trainer: Trainer, finished: Mapping[str, Any] | None) -> None:
        """Log the means of an evaluation whose last item has arrived."""
        if not finished or not trainer.is_global_zero:
            return
        source, means = finished["source"], finished["means"]
        values = {f"judge/{source}/{name}": means[name] for name in DIMENSIONS if name in means}
        values |= {f"judge/{source}/missing": float(finished["missing"]), "judge/rollout": float(finished["rollout"])}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _stop(self, trainer: Trainer, why: str | None) -> None:
        """End judging; without a reason what is under way stays to be asked again."""
        if self._background is None or self._judgements is None:
            return
        background, self._background = self._background, None
        for judgement in background.close(why or ""):
            if why is not None or judgement.reason != "":
                self._log(trainer, self._judgements.record(judgement))
        self._judgements.close()
        self._judgements = None
        if self._cache is not None:
            self._cache.close()
            self._cache = None


def _question(place: str, rollout: int, source: str, sample: Sample, more: Mapping[str, Any] | None = None) -> Question:
    item = Item(place, sample.problem.question, sample.completion, sample.problem.answer)
    fields = {"problem": sample.problem.id, "verdict": sample.grade.verdict.value, **(more or {})}
    return Question(item, rollout, source, fields)
