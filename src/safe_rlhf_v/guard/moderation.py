"""The guard: it returns a verdict for every input, and blocks what could not be checked."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from math import isfinite
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from safe_rlhf_v.functional.ordinal import correct_prior
from safe_rlhf_v.guard.calibration import Calibration, run_home, tempered, weights_identity
from safe_rlhf_v.guard.inputs import ImageLike, Input, Ready, load_views, prompts_of
from safe_rlhf_v.guard.limits import Gate
from safe_rlhf_v.guard.text import RefusedText, check_length, has_words, is_seen, readings
from safe_rlhf_v.guard.verdict import (
    DECISIONS,
    Verdict,
    level_name,
    likeliest_level,
    rounded,
    severest,
    unchecked,
    worst,
)
from safe_rlhf_v.modules.guard import HARM_BOUNDARY, GuardModule, GuardOutputs
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.records.user_files import FileError
from safe_rlhf_v.shards.images import ImageError
from safe_rlhf_v.training.devices import find_device
from safe_rlhf_v.training.runs import load_run

READINGS_PER_PASS = 32
"""Maximum number of altered readings in one forward pass."""


class Guard:
    """A trained, calibrated guard.

    Example::

        guard = Guard.from_pretrained("runs/quickstart/guard")
        verdict = guard.moderate(image="photo.jpg", question="Can I drink this?", response="Yes.")
        if not verdict.allowed: ...

    Texts are moderated as they stand and read in every other way (:mod:`safe_rlhf_v.guard.text`); the worst reading counts.
    Every picture of an animation is looked at, and the worst counts.
    It fails closed: an unreadable picture, refused or over-long text, more pictures or other words than training had, NaN or
    infinite output, an exception or a timeout give a verdict that blocks and says why.
    """

    def __init__(
        self, module: GuardModule, calibration: Calibration, identity: str, balanced_levels: bool = False
    ) -> None:
        """Combine a trained module with its calibration.

        Args:
            module: The trained module.
            calibration: Calibration of the module.
            identity: Hash of the module's weights.
            balanced_levels: Choose the level as if all levels were equally frequent, so that rare ones are not neglected; the
                probabilities and the decision do not change.

        Raises:
            ValueError: If the calibration belongs to another guard.
        """
        calibration.check_model(identity)
        self.module = module.eval()
        self.calibration = calibration
        self.identity = identity
        self.balanced_levels = balanced_levels
        self.gate = Gate(module.backbone, calibration.limits)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        balanced_levels: bool = False,
        *,
        trust: Sequence[str] = (),
        base: str | None = None,
    ) -> Self:
        """Load a run's newest checkpoint and its calibration; the run is treated as untrusted.

        Args:
            path: Run folder, or a checkpoint with the calibration beside it.
            device: Where the guard runs: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
            balanced_levels: See the constructor.
            trust: Packages whose classes the run may name, in addition to this library.
            base: Folder or hub name of the pretrained model, in place of the one that the run names.

        Raises:
            CheckpointError: If there is no readable checkpoint.
            CalibrationMissing: If the guard was never calibrated.
            ValueError: If the calibration belongs to other weights, or there is no such device here.
        """
        module, identity = load_module(path, device, trust, base)
        return cls(module, Calibration.load(run_home(path)), identity, balanced_levels)

    def moderate(
        self,
        image: ImageLike | Sequence[ImageLike] | None = None,
        question: str | None = None,
        response: str | None = None,
        system: str = "",
        history: Sequence[Turn] = (),
    ) -> Verdict:
        """Moderate one input; see :class:`Input`."""
        return self.moderate_batch([Input(image, question, response, system, history)])[0]

    def moderate_batch(self, inputs: Sequence[Input], timeout: float | None = None) -> list[Verdict]:
        """Moderate several inputs in one pass of the model; one verdict each, in order.

        Args:
            inputs: What to moderate.
            timeout: Seconds for the whole batch; what is not done by then is blocked.
        """
        if timeout is None:
            return self._moderate(inputs)
        pool = ThreadPoolExecutor(max_workers=1)
        try:
            return pool.submit(self._moderate, inputs).result(timeout)
        except FutureTimeout:
            return [self.unchecked(f"no verdict within {timeout} s")] * len(inputs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def moderate_texts(self, prompts: Prompts, responses: Sequence[str | None]) -> list[Verdict]:
        """Moderate responses to decoded prompts, without the checks of untrusted files: for generation loops.

        Args:
            prompts: B prompts.
            responses: B responses; ``None`` moderates the prompt alone.
        """
        readings: list[list[Ready] | Verdict] = []
        rows = zip(prompts.images, prompts.image_ids, prompts.questions, prompts.contexts, responses, strict=True)
        for images, ids, question, context, response in rows:
            try:
                readings.append(self._readings(images, ids, question, context, response))
            except Exception as error:  # fails closed, whatever it is
                readings.append(self.unchecked(f"{type(error).__name__}: {error}"))
        return self._verdicts(readings, len(readings))

    # --- from inputs to verdicts ------------------------------------------------------------------------------------

    def _moderate(self, inputs: Sequence[Input]) -> list[Verdict]:
        """One verdict per input: the worst of its views and of their readings."""
        read = [self._read(item) for item in inputs]
        views = [[item] if isinstance(item, Verdict) else item for item in read]
        verdicts = iter(self._verdicts([view for several in views for view in several], len(inputs)))
        return [severest([next(verdicts) for _ in several]) for several in views]

    def _read(self, item: Input) -> list[list[Ready]] | Verdict:
        """Every reading of every view of one input, or a verdict that it could not be checked."""
        try:
            if not item.parts:
                return self.unchecked("nothing to moderate: no image, no question, no response")
            views = load_views(item.image)
            context = item.context(len(views[0][0]))
            return [self._readings(*view, item.question or "", context, item.response) for view in views]
        except RefusedText as error:
            return self.unchecked(f"text refused ({error.reason}): {error}")
        except ImageError as error:
            return self.unchecked(f"image refused: {error}")
        except FileError as error:
            return self.unchecked(str(error))
        except Exception as error:  # fails closed, whatever it is
            return self.unchecked(f"{type(error).__name__}: {error}")

    def _readings(
        self,
        images: tuple[Tensor, ...],
        ids: tuple[str, ...],
        question: str,
        context: Context,
        response: str | None,
    ) -> list[Ready]:
        """Every reading of one input, the unaltered one first.

        Raises:
            RefusedText: See :func:`~safe_rlhf_v.guard.text.readings`.
            ValueError: If there is nothing to read.
        """
        if response is not None and not is_seen(response):
            raise ValueError("the response is empty")
        earlier = (context.system, *(turn.text for turn in context.history))
        check_length(earlier)
        if not images and not has_words("".join((*earlier, question, response or ""))):
            raise ValueError("nothing to moderate: no image, and no letter, digit or symbol in the text")
        rows = []
        for reading in readings(question, response or "", *earlier):
            question_read, response_read, system, *turns = reading.texts
            if response is not None and not response_read.strip():
                continue
            history = tuple(turn._replace(text=text) for turn, text in zip(context.history, turns, strict=True))
            before = Context(system, history)
            rows.append(Ready(images, ids, question_read, response_read, before, reading.undone, reading.tricks))
        return rows

    def _unread(self, row: Ready) -> str:
        """Why a row is unchecked, or "". Asked for every reading; only of the input as it stands the words are looked at."""
        return self.gate.refusal(prompts_of([row]), row.response, as_it_stands=not row.undone)

    def _verdicts(self, inputs: Sequence[list[Ready] | Verdict], size: int) -> list[Verdict]:
        """The worst verdict of each input; ``size`` unaltered readings share a forward pass, the other readings follow."""
        checked = [[item] if isinstance(item, Verdict) else [] for item in inputs]
        rows = [(i, row) for i, item in enumerate(inputs) if not isinstance(item, Verdict) for row in item]
        for plain, n in ((True, max(size, 1)), (False, READINGS_PER_PASS)):
            # Nothing is worse than unchecked: the other readings of such an input are left out.
            part = [(i, r) for i, r in rows if (not r.undone) == plain and (plain or checked[i][0].status == "ok")]
            for k in range(0, len(part), n):
                verdicts = self._forward([row for _, row in part[k : k + n]])
                for (i, _), verdict in zip(part[k : k + n], verdicts, strict=True):
                    checked[i].append(verdict)
        return [worst(verdicts) for verdicts in checked]

    def _forward(self, rows: Sequence[Ready]) -> list[Verdict]:
        """One verdict per row; a row that the model cannot read completely is unchecked."""
        reasons: list[str] = []
        for row in rows:
            try:
                reasons.append(self._unread(row))
            except Exception as error:  # fails closed, whatever it is
                reasons.append(f"{type(error).__name__}: {error}")
        ready = iter(self._model([row for row, reason in zip(rows, reasons, strict=True) if not reason]))
        return [
            self._unchecked_row(reason, row) if reason else next(ready)
            for row, reason in zip(rows, reasons, strict=True)
        ]

    def _model(self, rows: Sequence[Ready]) -> list[Verdict]:
        if not rows:
            return []
        try:
            with torch.no_grad():
                outputs = self.module(prompts_of(rows), [[row.response] for row in rows])
            parts = [part.float().cpu() for part in outputs]
            return [self._verdict(GuardOutputs(*(part[i] for part in parts)), row) for i, row in enumerate(rows)]
        except Exception as error:  # fails closed, whatever it is
            if len(rows) == 1:
                return [self._unchecked_row(f"{type(error).__name__}: {error}", rows[0])]
            return [verdict for row in rows for verdict in self._model([row])]  # one bad row must not block the others

    def _verdict(self, outputs: GuardOutputs, row: Ready) -> Verdict:
        """Calibrated probabilities, thresholds, words."""
        if not all(bool(torch.isfinite(part).all()) for part in outputs[1:]) or outputs.level_log_probs.isnan().any():
            return self._unchecked_row("NaN or infinite output", row)
        c = self.calibration
        categories = rounded(torch.sigmoid(outputs.categories.double()).tolist())
        by_name = dict(zip(self.module.categories, categories, strict=True))
        likeliest = max(by_name, key=by_name.__getitem__) if by_name else None
        category = likeliest if likeliest is not None and by_name[likeliest] >= 0.5 else None
        if not row.response:
            harm = round(float(torch.sigmoid(outputs.prompt_risk.double() / c.prompt_temperature)), 6)
            if not isfinite(harm):
                return self._unchecked_row("NaN or infinite output", row)
            index = int(harm >= c.prompt_review) + int(harm >= c.prompt_block)
            reasons = (
                f"prompt of a harm category with probability {harm:.2f}, blocked from {c.prompt_block:.2f} on{_read(row)}",
            )
            return Verdict(
                DECISIONS[index], "ok", harm, None, None, None, category, by_name, reasons, row.tricks, c.prompt_block,
                self.identity,
            )  # fmt: skip
        log_probs = tempered(outputs.level_log_probs.double(), c.level_temperature)
        probabilities = log_probs.exp()
        stated = rounded(probabilities.tolist())
        harm = round(float(probabilities[:HARM_BOUNDARY].sum()), 6)
        if not isfinite(harm):  # some levels may be impossible (-inf), but not all of them
            return self._unchecked_row("NaN or infinite output", row)
        level = likeliest_level(self._levels(log_probs, stated))
        mean = round(float((probabilities * torch.arange(-HARM_BOUNDARY, len(stated) - HARM_BOUNDARY)).sum()), 6)
        index = int(harm >= c.review) + int(harm >= c.block)
        reasons = (
            f"{level_name(level)}; harmful with probability {harm:.2f}, blocked from {c.block:.2f} on{_read(row)}",
        )
        return Verdict(
            DECISIONS[index],
            "ok",
            harm,
            level,
            mean,
            stated,
            category,
            by_name,
            reasons,
            row.tricks,
            c.block,
            self.identity,
        )

    def _levels(self, log_probs: Tensor, stated: tuple[float, ...]) -> tuple[float, ...]:
        """The probabilities that the level is chosen by."""
        if not self.balanced_levels:
            return stated
        prior = torch.tensor(self.calibration.level_prior, dtype=torch.float64)
        return rounded(correct_prior(log_probs, prior).exp().tolist())

    def _unchecked_row(self, reason: str, row: Ready) -> Verdict:
        return self.unchecked(reason + _read(row), row.tricks)

    def unchecked(self, reason: str, flags: tuple[str, ...] = ()) -> Verdict:
        """The verdict on an input that could not be checked."""
        return unchecked(reason, self.identity, self.calibration.block, flags)


def _read(row: Ready) -> str:
    """What was undone to read a row, for a verdict's reason."""
    return f" (read with {', '.join(row.undone)} undone)" if row.undone else ""


def load_module(
    path: str | Path, device: str = "auto", trust: Sequence[str] = (), base: str | None = None
) -> tuple[GuardModule, str]:
    """A trained guard module in evaluation mode, and the identity of its weights.

    Args:
        path: Run folder or checkpoint.
        device: Where it runs: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        trust: Packages whose classes the run may name, in addition to this library.
        base: Folder or hub name of the pretrained model, in place of the one that the run names.

    Raises:
        CheckpointError: If there is no readable checkpoint of a guard.
        ValueError: If there is no such device here.
    """
    where = find_device(device)
    module: Any = load_run(path, "guard", ("guard",), trust=trust, base=base)
    identity = weights_identity(module)
    return module.to(where).eval(), identity
