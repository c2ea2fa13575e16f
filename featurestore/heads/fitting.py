"""The fitting of heads: stored ones are loaded, the others fitted in banks, measured and saved."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from featurestore.errors import DamagedError, HeadError, one_line
from featurestore.features import Features
from featurestore.heads.banks import Bank
from featurestore.heads.candidate import Candidate, shown
from featurestore.heads.estimator import Fitted
from featurestore.heads.events import FoldFitted, HeadFitted, HeadReused, HeadWarned
from featurestore.heads.folds import CrossValidation, Folds, gathered
from featurestore.heads.head import Head
from featurestore.heads.identity import foreign
from featurestore.heads.metrics import Predict, evaluate
from featurestore.heads.notes import Notes
from featurestore.heads.parallel import fit_estimators
from featurestore.heads.rows import HELD_OUT, Rows
from featurestore.listening import OnEvent
from featurestore.quiet import load_tensorflow
from featurestore.versions import versions


@dataclass(frozen=True)
class Fitting:
    """What the heads of one call share.

    ``parts`` has the folds of each seed, and ``repeated`` each head, by its id, for each seed.
    """

    rows: Rows
    validation: CrossValidation
    parts: list[Folds]
    repeated: dict[str, list[Candidate]]
    save: bool = False
    callbacks: Sequence[Any] = ()
    notes: Notes = field(default_factory=Notes)
    on_event: OnEvent = field(default=lambda event: None)

    def heads(self, bank: Bank) -> dict[str, Head | HeadError]:
        """Load the heads of a bank from the store, or else fit them; by id.

        One that cannot be fitted or cross-validated is returned as its HeadError.
        """
        store = self.rows.features.store
        known = {each.id: head for each in bank.members if (head := self._stored(each))}
        missing = [each for each in bank.members if each.id not in known]
        fitted: dict[str, Head | HeadError] = {**known}
        for key, new in self._fit(replace(bank, members=missing), self.rows):
            fitted[key] = new
            if isinstance(new, HeadError):
                continue
            if self.save:
                try:
                    new.save(store)
                except HeadError as error:
                    fitted[key] = error
                    continue
            for text in new.problems:
                self.on_event(HeadWarned(key, text))
            layer, seconds = new.provenance["features"]["ref"], new.provenance["seconds"]
            self.on_event(HeadFitted(key, new.metrics, seconds, layer, new.params))
        for key in known:
            if self.save:
                store.heads.fsync(key)
            self.on_event(HeadReused(key))
        return self._validated(bank, fitted)

    def _validated(
        self, bank: Bank, heads: dict[str, Head | HeadError]
    ) -> dict[str, Head | HeadError]:
        """Cross-validate the heads of a bank that were not yet."""
        store = self.rows.features.store
        missing = [
            each
            for each in bank.members
            if self.parts
            and isinstance(head := heads[each.id], Head)
            and not self.validation.is_in(head.folds)
        ]
        for key, folds in self.folds(replace(bank, members=missing)).items():
            head = heads[key]
            if isinstance(folds, HeadError):
                heads[key] = folds
            elif isinstance(head, Head):
                heads[key] = head.changed(folds=folds)
                if self.save:
                    store.heads.update(key, partial(_with_folds, folds))
        return heads

    def _stored(self, each: Candidate) -> Head | None:
        """Load a head from the store, with the notes of this call; None if it is not there."""
        store = self.rows.features.store
        if not store.heads.has(each.id):
            return None
        try:
            # Whoever gives an estimator runs the code of its package.
            packages = {path.partition(".")[0] for path in foreign(each.fields)}
            head = Head.load(each.id, store, trusted=packages)
        except DamagedError:
            return None  # It is fitted again.
        changes = self.notes.changes(head.document())
        if self.save and changes:
            store.heads.update(head.id, self.notes.changes)
        return head.changed(**{**changes, "tags": tuple(changes.get("tags", head.tags))})

    def folds(self, bank: Bank) -> dict[str, dict[str, Any] | HeadError]:
        """Return the recorded folds of a bank's heads, by id; the error of one that failed."""
        measured: dict[str, list[dict[str, Any]]] = {each.id: [] for each in bank.members}
        errors: dict[str, HeadError] = {}
        done, total = 0, sum(map(len, self.parts))
        for number, folds in enumerate(self.parts if measured else []):
            repeated = {self.repeated[key][number].id: key for key in measured}
            again = replace(bank, members=[self.repeated[key][number] for key in measured])
            together = self._together(again, folds)
            for (train, held_out), fitted in zip(folds, together, strict=True):
                fold = self.rows.fold(train, held_out)
                for key, head in self._fit(again, fold, fitted):
                    if isinstance(head, HeadError):
                        errors.setdefault(repeated[key], head)
                    else:
                        measured[repeated[key]].append(head.metrics[HELD_OUT])
                done += 1
                self.on_event(FoldFitted(len(measured), done, total))
        return {
            key: errors[key] if key in errors else gathered(self.validation, each)
            for key, each in measured.items()
        }

    def _together(self, bank: Bank, folds: Folds) -> Iterable[Any]:
        """Fit the heads of a bank on all folds; for each fold what `Bank.fit` gives, or None."""
        if not _in_processes(bank):
            with suppress(HeadError):  # Each fold is fitted for itself, which shows whose it is.
                return bank.fit_folds(self.rows, folds) or [None] * len(folds)
            return [None] * len(folds)
        tasks = [(each, train) for train, _ in folds for each in bank.members]
        fitted = fit_estimators(tasks, self.rows)
        return ((list(islice(fitted, len(bank.members))), None) for _ in folds)

    def _fit(
        self, bank: Bank, rows: Rows, done: Any = None
    ) -> Iterator[tuple[str, Head | HeadError]]:
        """Fit the heads of a bank on the training rows, if not done, and measure them.

        Yields the id of each with the head, as soon as it is measured, or with its error.
        """
        members = bank.members
        if not members:
            return
        if done is None and _in_processes(bank):
            alone = fit_estimators([(each, None) for each in members], rows)
            for each, one in zip(members, alone, strict=True):
                yield from self._measured([each], [one], None, rows)
            return
        try:
            if done is None and bank.family is None:
                done = [self._trained(members[0], rows)], None
            fitted, predict = done or bank.fit(rows)
            found = list(self._measured(members, fitted, predict, rows))
        except Exception as error:
            if not (isinstance(error, HeadError) or _no_memory(error)):
                raise
            if len(members) > 1:  # One of them, which only fails alone.
                banks = [replace(bank, members=[each]) for each in members]
                found = [one for each in banks for one in self._fit(each, rows)]
            elif isinstance(error, HeadError):
                found = [(members[0].id, error)]
            else:
                text = (
                    f"head {members[0].name!r} needs more memory than there is: {one_line(error)}"
                )
                found = [(members[0].id, HeadError(text))]
        yield from found

    def _measured(
        self,
        members: Sequence[Candidate],
        fitted: Sequence[Fitted | HeadError],
        predict: Predict | None,
        rows: Rows,
    ) -> Iterator[tuple[str, Head | HeadError]]:
        """Measure heads that were fitted.

        HeadError if one of several that predict together cannot.
        """
        pairs = list(zip(members, fitted, strict=True))
        yield from ((each.id, its) for each, its in pairs if isinstance(its, HeadError))
        heads = [self._head(each, its) for each, its in pairs if isinstance(its, Fitted)]
        together = [heads] if predict is not None else [[head] for head in heads]
        for part in together:
            try:
                measured = evaluate(part, rows, predict)
            except HeadError as error:
                if len(part) > 1:
                    raise
                yield part[0].id, error
                continue
            for head, metrics in zip(part, measured, strict=True):
                yield head.id, head.changed(metrics=metrics)

    def _trained(self, each: Candidate, rows: Rows) -> Fitted:
        load_tensorflow()
        from featurestore.heads.training import train

        started = time.perf_counter()
        try:
            model, history = train(
                each.template,
                rows,
                seed=each.seed,
                head=each.id,
                callbacks=self.callbacks,
                on_event=self.on_event if rows is self.rows else lambda event: None,
            )
        except HeadError as error:
            params = f" with {json.dumps(each.params)}" if each.params else ""
            raise HeadError(f"head {each.name!r}{params}: {error}") from error
        seconds = time.perf_counter() - started
        return Fitted(model, tuple(rows.features.classes), seconds, history=history)

    def _head(self, each: Candidate, fitted: Fitted) -> Head:
        features = self.rows.features
        return Head.of_fit(
            fitted.estimator,
            features.store,
            id=each.id,
            estimator=each.name,
            label=self.notes.label,
            kind=each.kind,
            task=self.rows.task,
            classes=fitted.classes,
            shape=features.shape[1:],
            params=each.params,
            seed=each.seed,
            metrics={},
            history=fitted.history,
            problems=(*self.rows.problems(), *fitted.problems),
            provenance={**_provenance(features, each), "seconds": round(fitted.seconds, 3)},
            best_params=_best_params(fitted.estimator),
            folds=None,
            tags=tuple(self.notes.tags),
            note=self.notes.note or "",
        )


def _in_processes(bank: Bank) -> bool:
    return bank.family is None and all(each.kind == "sklearn" for each in bank.members)


def _no_memory(error: Exception) -> bool:
    # The second of TensorFlow, which may not be loaded.
    return isinstance(error, MemoryError) or "ResourceExhausted" in type(error).__name__


def _with_folds(folds: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {"folds": folds}


def _best_params(estimator: Any) -> dict[str, Any]:
    found = getattr(estimator, "best_params_", None) or {}
    return {name: shown(value, name) for name, value in found.items()}


def _provenance(features: Features, each: Candidate) -> dict[str, Any]:
    """Return the origin of a head as JSON values."""
    key, dataset, provenance = features.key, features.dataset, features.group.provenance
    partial = {} if features.blocks is None else {"rows": len(features)}
    return {
        "features": {
            "key": str(key),
            "model": key.model,
            "ref": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "dtype": str(features.dtype),
            **partial,
        },
        "dataset": {
            "name": dataset.name,
            "digest": dataset.digest,
            "manifest_digest": dataset.manifest_digest,
            "rows": len(dataset),
        },
        "backbone": provenance.get("backbone"),
        "prefix": provenance.get("prefix"),
        "estimator": each.fields,
        "versions": versions(*foreign(each.fields)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
