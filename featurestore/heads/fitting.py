"""The fitting of heads: stored ones are loaded, the others fitted in banks, measured and saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from featurestore.errors import DamagedError, HeadError
from featurestore.heads.banks import Bank, banks
from featurestore.heads.candidate import Candidate, shown
from featurestore.heads.estimator import Fitted, fit_network
from featurestore.heads.events import FoldFitted, HeadFitted, HeadReused, HeadWarned
from featurestore.heads.folds import CrossValidation, Folds, folds_document
from featurestore.heads.head import Head
from featurestore.heads.identity import foreign
from featurestore.heads.metrics import evaluate
from featurestore.heads.notes import Notes
from featurestore.heads.parallel import fit_estimators
from featurestore.heads.rows import HELD_OUT, Rows
from featurestore.listening import OnEvent
from featurestore.versions import versions


def _plain(seed: Any) -> Any:
    return seed.item() if isinstance(seed, np.generic) else seed


class FitOptions(CrossValidation, Notes):
    """What the heads of one call have in common: see `featurestore.heads.fit.fit_head`."""

    seed: Annotated[int, BeforeValidator(_plain)] = 0
    save: bool = True


@dataclass(frozen=True)
class Fitting:
    """Fits candidates on the same rows with the same options.

    ``folds`` has those of each repetition; it is empty without cross-validation.
    """

    rows: Rows
    options: FitOptions
    folds: list[Folds]
    on_event: OnEvent

    def heads(self, candidates: Iterable[Candidate]) -> dict[str, Head | HeadError]:
        """Load the heads of candidates from the store, or else fit them; by id.

        One that cannot be fitted or cross-validated is returned as its HeadError.
        """
        features, store = self.rows.features, self.rows.features.store
        kept = store.datasets.keep(features.dataset) if self.options.save else nullcontext()
        heads: dict[str, Head | HeadError] = {}
        with store.features.lock([features.key], shared=True), kept:
            for bank in banks(candidates):
                ids = [candidate.id for candidate in bank.members]
                # Another process that fits one of these heads holds the lock until it is stored.
                with store.heads.lock(ids, shared=True), store.heads.lock_work(ids):
                    heads |= self._heads_of(bank)
        return heads

    def _heads_of(self, bank: Bank) -> dict[str, Head | HeadError]:
        store, save = self.rows.features.store, self.options.save
        heads: dict[str, Head | HeadError] = {}
        missing = []
        for candidate in bank.members:
            if stored := self._stored(candidate):
                heads[candidate.id] = stored
            else:
                missing.append(candidate)
        for key, fitted in self._fit(replace(bank, members=missing), self.rows):
            heads[key] = self._saved(fitted)
        if not self.folds:
            return heads
        unvalidated = [
            candidate
            for candidate in bank.members
            if isinstance(head := heads[candidate.id], Head) and not self.options.is_in(head.folds)
        ]
        for key, folds in self._validate(replace(bank, members=unvalidated)).items():
            head = heads[key]
            if isinstance(folds, HeadError):
                heads[key] = folds
            elif isinstance(head, Head):
                heads[key] = head.changed(folds=folds)
                if save:
                    store.heads.update(key, partial(_with_folds, folds))
        return heads

    def _stored(self, candidate: Candidate) -> Head | None:
        """Load a head from the store, with the notes of this call; None if it is not there."""
        heads = self.rows.features.store.heads
        if not heads.has(candidate.id):
            return None
        try:
            # Whoever gives an estimator runs the code of its package.
            packages = {path.partition(".")[0] for path in foreign(candidate.fields)}
            head = Head.load(candidate.id, self.rows.features.store, trusted=packages)
            _ = head.fitted
        except (DamagedError, HeadError):
            return None  # It is fitted again.
        changes = self.options.changes(head.document())
        if self.options.save:
            if changes:
                heads.update(head.id, self.options.changes)
            heads.fsync(head.id)
        self.on_event(HeadReused(head.id))
        return head.changed(**{**changes, "tags": tuple(changes.get("tags", head.tags))})

    def _saved(self, head: Head | HeadError) -> Head | HeadError:
        """Save a head that was fitted; return why it cannot be stored or fitted."""
        if isinstance(head, HeadError):
            return head
        if self.options.save:
            try:
                head.save(self.rows.features.store)
            except HeadError as error:
                return error
        for text in head.problems:
            self.on_event(HeadWarned(head.id, text))
        layer, seconds = head.provenance["features"]["ref"], head.provenance["seconds"]
        self.on_event(HeadFitted(head.id, head.metrics, seconds, layer, head.params))
        return head

    def _validate(self, bank: Bank) -> dict[str, dict[str, Any] | HeadError]:
        """Cross-validate the heads of a bank; return what they record of it, or errors, by id."""
        metrics: dict[str, list[dict[str, Any]]] = {member.id: [] for member in bank.members}
        errors: dict[str, HeadError] = {}
        done, total = 0, sum(map(len, self.folds))
        for number, folds in enumerate(self.folds if metrics else []):
            seed = self.options.seed + number
            bank = replace(bank, members=[member.reseeded(seed) for member in bank.members])
            fitted = self._fit_folds(bank, folds)
            for (train, held_out), fold_fitted in zip(folds, fitted, strict=True):
                for key, head in self._fit(bank, self.rows.fold(train, held_out), fold_fitted):
                    if isinstance(head, HeadError):
                        errors.setdefault(key, head)
                    else:
                        metrics[key].append(head.metrics[HELD_OUT])
                done += 1
                self.on_event(FoldFitted(len(metrics), done, total))
        return {
            key: errors[key] if key in errors else folds_document(self.options, values)
            for key, values in metrics.items()
        }

    def _fit_folds(self, bank: Bank, folds: Folds) -> Iterable[Any]:
        """Fit a bank on all folds together; for each what `_fit` takes as fitted, or None."""
        if bank.family is not None:
            with suppress(HeadError):  # Each fold is fitted by itself, which shows whose it is.
                return bank.fit_folds(self.rows, folds) or [None] * len(folds)
        if bank.family is not None or bank.members[0].kind == "keras":
            return [None] * len(folds)
        tasks = [(candidate, train) for train, _ in folds for candidate in bank.members]
        fitted = fit_estimators(tasks, self.rows)
        return (list(islice(fitted, len(bank.members))) for _ in folds)

    def _fit(
        self, bank: Bank, rows: Rows, fitted: Any = None
    ) -> Iterator[tuple[str, Head | HeadError]]:
        """Fit the heads of a bank on the training rows, if they are not fitted, and measure them.

        Yields the id of each with the head, as soon as it is measured, or with its error.
        """
        members = bank.members
        if bank.family is None:
            for candidate, own in zip(members, fitted or self._alone(members, rows), strict=True):
                yield candidate.id, self._measured(candidate, own, rows)
            return
        if not members:
            return
        try:
            fitted, predict = fitted or bank.fit(rows)
            heads = [self._head(*pair) for pair in zip(members, fitted, strict=True)]
            measured = [
                (head.id, head.changed(metrics=metrics))
                for head, metrics in zip(heads, evaluate(heads, rows, predict), strict=True)
            ]
        except HeadError as error:
            if len(members) == 1:
                yield members[0].id, error
                return
            for candidate in members:  # One of them, which only fails alone.
                yield from self._fit(replace(bank, members=[candidate]), rows)
            return
        yield from measured

    def _alone(self, members: Any, rows: Rows) -> Iterator[Fitted | HeadError]:
        """Fit heads that belong to no family one by one."""
        if members and members[0].kind == "sklearn":
            yield from fit_estimators([(candidate, None) for candidate in members], rows)
            return
        for candidate in members:
            emit = self.on_event if rows is self.rows else lambda event: None
            yield fit_network(candidate, rows, emit)

    def _measured(
        self, candidate: Candidate, fitted: Fitted | HeadError, rows: Rows
    ) -> Head | HeadError:
        if isinstance(fitted, HeadError):
            return fitted
        head = self._head(candidate, fitted)
        try:
            return head.changed(metrics=evaluate([head], rows)[0])
        except HeadError as error:
            return error

    def _head(self, candidate: Candidate, fitted: Fitted) -> Head:
        features = self.rows.features
        best_params = getattr(fitted.estimator, "best_params_", None) or {}
        return Head.of_fit(
            fitted.estimator,
            features.store,
            id=candidate.id,
            estimator=candidate.name,
            kind=candidate.kind,
            task=self.rows.task,
            classes=fitted.classes,
            shape=features.shape[1:],
            params=candidate.params,
            seed=candidate.seed,
            metrics={},
            history=fitted.history,
            problems=(*self.rows.problems(), *fitted.problems),
            provenance=_provenance(self.rows, candidate, fitted.seconds),
            best_params={name: shown(value, name) for name, value in best_params.items()},
            label=self.options.label,
            tags=self.options.tags,
            note=self.options.note or "",
        )


def _with_folds(folds: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {"folds": folds}


def _provenance(rows: Rows, candidate: Candidate, seconds: float) -> dict[str, Any]:
    """Return the origin of a head as JSON values."""
    features = rows.features
    key, dataset, provenance = features.key, features.dataset, features.group.provenance
    part = {} if features.blocks is None else {"rows": len(features)}
    return {
        "features": {
            "key": str(key),
            "model": key.model,
            "ref": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "dtype": str(features.dtype),
            **part,
        },
        "dataset": {
            "name": dataset.name,
            "digest": dataset.digest,
            "manifest_digest": dataset.manifest_digest,
            "rows": len(dataset),
        },
        "backbone": provenance.get("backbone"),
        "prefix": provenance.get("prefix"),
        "estimator": candidate.fields,
        "versions": versions(*foreign(candidate.fields)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }
