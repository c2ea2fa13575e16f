"""The fitting of heads: stored ones are loaded, the others fitted in banks, measured and saved."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from featurestore.errors import DamagedError, HeadError
from featurestore.features import Features
from featurestore.heads.banks import Bank
from featurestore.heads.candidate import Candidate, shown
from featurestore.heads.estimator import Fitted
from featurestore.heads.events import FoldFitted, HeadFitted, HeadReused, HeadWarned
from featurestore.heads.folds import CrossValidation, Folds, gathered
from featurestore.heads.head import Head
from featurestore.heads.identity import foreign
from featurestore.heads.metrics import Predict, measure
from featurestore.heads.notes import Notes
from featurestore.heads.parallel import fit_estimators
from featurestore.heads.refit import fitted_again
from featurestore.heads.rows import HELD_OUT, Rows
from featurestore.heads.schema import validate
from featurestore.listening import OnEvent
from featurestore.quiet import load_tensorflow
from featurestore.store.variants import part_of
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

    def heads(self, bank: Bank) -> dict[str, Head]:
        """Load the heads of a bank from the store, or else fit them; by id."""
        store = self.rows.features.store
        found = {each.id: head for each in bank.members if (head := self._stored(each))}
        missing = [each for each in bank.members if each.id not in found]
        fitted: dict[str, Head] = {}
        errors = []
        for each in self._fit(replace(bank, members=missing), self.rows):
            if isinstance(each, HeadError):
                errors.append(each)
                continue
            fitted[each.id] = each
            if self.save:
                each.save(store)
            for text in each.problems:
                self.on_event(HeadWarned(each.id, text))
            layer, seconds = each.lineage["features"]["ref"], each.lineage["seconds"]
            self.on_event(HeadFitted(each.id, each.metrics, seconds, layer, each.params))
        if errors:
            raise errors[0]
        for key in found:
            if self.save:
                store.heads.fsync(key)
            self.on_event(HeadReused(key))
        given = {each.id: each for each in bank.members}
        again = {
            key: head if head.portable else fitted_again(head, given[key], self.rows)
            for key, head in found.items()
        }
        return self._validated(bank, again | fitted)

    def _validated(self, bank: Bank, heads: dict[str, Head]) -> dict[str, Head]:
        """Cross-validate the heads of a bank that were not yet."""
        store = self.rows.features.store
        missing = [
            each
            for each in bank.members
            if self.parts and not self.validation.is_in(heads[each.id].folds)
        ]
        for key, folds in self.folds(replace(bank, members=missing)).items():
            heads[key] = replace(heads[key], folds=folds)
            if self.save:
                store.heads.update(key, partial(_with_folds, folds))
        return heads

    def _stored(self, each: Candidate) -> Head | None:
        """Load a head from the store, with the notes of this call; None if it is not there."""
        store = self.rows.features.store
        if not store.heads.has(each.id):
            return None
        try:
            head = Head.load(each.id, store)
        except DamagedError:
            return None  # It is fitted again.
        changes = self.notes.changes(head.document())
        if self.save and changes:
            store.heads.update(head.id, lambda now: self.notes.changes(validate(now)))
        return replace(head, **{**changes, "tags": tuple(changes.get("tags", head.tags))})

    def folds(self, bank: Bank) -> dict[str, dict[str, Any]]:
        """Return the recorded folds of a bank's heads, by id."""
        measured: dict[str, list[dict[str, Any]]] = {each.id: [] for each in bank.members}
        done, total = 0, sum(map(len, self.parts))
        for number, folds in enumerate(self.parts if measured else []):
            again = replace(bank, members=[self.repeated[key][number] for key in measured])
            together = self._together(again, folds)
            for (train, held_out), fitted in zip(folds, together, strict=True):
                fold = self.rows.fold(train, held_out)
                heads = self._fit(again, fold, fitted)
                for each, head in zip(measured.values(), heads, strict=True):
                    if isinstance(head, HeadError):
                        raise head
                    each.append(head.metrics[HELD_OUT])
                done += 1
                self.on_event(FoldFitted(len(measured), done, total))
        return {key: gathered(self.validation, each) for key, each in measured.items()}

    def _together(self, bank: Bank, folds: Folds) -> Iterable[Any]:
        """Fit the heads of a bank on all folds; for each fold what `Bank.fit` gives, or None."""
        if not _in_processes(bank):
            return bank.fit_folds(self.rows, folds) or [None] * len(folds)
        tasks = [(each, train) for train, _ in folds for each in bank.members]
        fitted = fit_estimators(tasks, self.rows)
        return ((list(islice(fitted, len(bank.members))), None) for _ in folds)

    def _fit(self, bank: Bank, rows: Rows, done: Any = None) -> Iterator[Head | HeadError]:
        """Fit the heads of a bank on the training rows, if not done, and measure them.

        Yields each as soon as it is measured, and the error of one that cannot be fitted.
        """
        members = bank.members
        if not members:
            return
        started = time.perf_counter()
        on_event = self.on_event if rows is self.rows else lambda event: None
        parts: Iterable[tuple[Sequence[Fitted | HeadError], Predict | None]]
        if done is not None or bank.family is not None:
            parts = [done or bank.fit(rows, on_event)]
        elif _in_processes(bank):
            alone = fit_estimators([(each, None) for each in members], rows)
            parts = (([each], None) for each in alone)
        else:
            parts = [([self._trained(members[0], rows, on_event)], None)]
        rest = iter(members)
        for fitted, predict in parts:
            heads = [
                self._head(each, its)
                for each, its in zip(islice(rest, len(fitted)), fitted, strict=True)
                if isinstance(its, Fitted)
            ]
            measured = measure(heads, rows, predict)
            # Of a bank, each head has its share.
            seconds = round((time.perf_counter() - started) / len(fitted), 3)
            for head, metrics in zip(heads, measured, strict=True):
                yield replace(head, metrics=metrics, lineage={**head.lineage, "seconds": seconds})
            yield from (each for each in fitted if isinstance(each, HeadError))
            started = time.perf_counter()

    def _trained(self, each: Candidate, rows: Rows, on_event: OnEvent) -> Fitted:
        load_tensorflow()
        from featurestore.heads.training import train

        model, history = train(
            each.template,
            rows,
            seed=each.seed,
            head=each.id,
            callbacks=self.callbacks,
            on_event=on_event,
        )
        return Fitted(model, tuple(rows.features.classes), history=history)

    def _head(self, each: Candidate, fitted: Fitted) -> Head:
        features = self.rows.features
        return Head(
            id=each.id,
            name=self.notes.name or each.name,
            kind=each.kind,
            _fit=lambda: fitted.estimator,
            task=self.rows.task,
            classes=fitted.classes,
            shape=features.shape[1:],
            params=each.params,
            seed=each.seed,
            metrics={},
            history=fitted.history,
            problems=(*self.rows.problems(), *fitted.problems),
            lineage=_lineage(features, each),
            portable=each.portable,
            best_params=_best_params(fitted.estimator),
            folds=None,
            tags=tuple(self.notes.tags),
            note=self.notes.note or "",
            store=features.store,
        )


def _in_processes(bank: Bank) -> bool:
    return bank.family is None and all(each.kind == "sklearn" for each in bank.members)


def _with_folds(folds: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {"folds": folds}


def _best_params(estimator: Any) -> dict[str, Any]:
    found = getattr(estimator, "best_params_", None) or {}
    return {name: shown(value, name) for name, value in found.items()}


def _views(features: Features) -> dict[str, Any]:
    """Return the views that a head was fitted on too, as JSON values."""
    if not features.views:
        return {}
    from featurestore.backbone.augmentation import settings

    layers = part_of(features.views[0].group.provenance, "backbone").get("augmentation") or []
    return {
        "views": {
            "augmentation": json.loads(settings(layers)),
            "dataset_digest": features.views[0].key.dataset_digest,
            "prefix_digests": [each.key.prefix_digest for each in features.views],
        }
    }


def _lineage(features: Features, each: Candidate) -> dict[str, Any]:
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
            **_views(features),
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
