"""Fits heads on the same rows: stored ones are loaded, the others fitted, measured and saved."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from featurestore.errors import DamagedError, HeadError, one_line
from featurestore.heads import estimator, joint
from featurestore.heads.candidate import Candidate, shown
from featurestore.heads.estimator import Fitted
from featurestore.heads.events import FoldFitted, HeadFitted, HeadReused, HeadWarned
from featurestore.heads.folds import CrossValidation, Folds, folds_document
from featurestore.heads.head import Head
from featurestore.heads.identity import foreign
from featurestore.heads.metrics import evaluate
from featurestore.heads.notes import Notes
from featurestore.heads.rows import HELD_OUT, Rows
from featurestore.listening import OnEvent
from featurestore.quiet import load_tensorflow
from featurestore.versions import versions


class FitOptions(CrossValidation, Notes):
    """What the heads of one call have in common: see `featurestore.heads.fit.fit_head`."""

    seed: int = 0
    save: bool = True


class Fitting:
    """Fits heads on the same rows with the same options."""

    def __init__(self, rows: Rows, options: FitOptions, on_event: OnEvent) -> None:
        self.rows, self.options, self.on_event = rows, options, on_event
        self.store, self.problems = rows.features.store, rows.problems()
        # Those of each repetition; empty without cross-validation.
        self.folds: list[Folds] = options.repetitions(rows, options.seed)

    def heads(self, candidates: Iterable[Candidate]) -> dict[str, Head | HeadError]:
        """Load heads from the store, or else fit them; by id.

        One that cannot be fitted or cross-validated is returned as its HeadError.
        """
        features, store = self.rows.features, self.store
        kept = store.datasets.keep(features.dataset) if self.options.save else nullcontext()
        heads: dict[str, Head | HeadError] = {}
        with store.features.lock([features.key], shared=True), kept:
            for group in joint.groups(candidates):
                ids = [candidate.id for candidate in group]
                # Another process that fits one of these heads holds the lock until it is stored.
                with store.heads.lock(ids, shared=True), store.heads.lock_work(ids):
                    heads |= self._load_or_fit(group)
                    if self.folds:
                        heads |= self._validated(group, heads)
        return heads

    def _load_or_fit(self, group: Sequence[Candidate]) -> dict[str, Head | HeadError]:
        heads: dict[str, Head | HeadError] = {}
        for candidate in group:
            if head := self._stored(candidate):
                heads[candidate.id] = head
        missing = [candidate for candidate in group if candidate.id not in heads]
        for candidate, fitted in zip(missing, self._fit(missing), strict=True):
            heads[candidate.id] = self._saved(fitted)
        return heads

    def _stored(self, candidate: Candidate) -> Head | None:
        """Load a head from the store, with the notes of this call; None if it is not there."""
        heads = self.store.heads
        if not heads.has(candidate.id):
            return None
        try:
            # Whoever gives an estimator runs the code of its package.
            packages = {path.partition(".")[0] for path in foreign(candidate.fields)}
            head = Head.load(candidate.id, self.store, trusted=packages)
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
                head.save(self.store)
            except HeadError as error:
                return error
        for text in head.problems:
            self.on_event(HeadWarned(head.id, text))
        layer, seconds = head.provenance["features"]["ref"], head.provenance["seconds"]
        self.on_event(HeadFitted(head.id, head.metrics, seconds, layer, head.params))
        return head

    def _validated(
        self, group: Sequence[Candidate], heads: Mapping[str, Head | HeadError]
    ) -> dict[str, Head | HeadError]:
        """Cross-validate the heads of a group that are not yet; return them, or their errors."""
        group = [
            candidate
            for candidate in group
            if isinstance(head := heads[candidate.id], Head) and not self.options.is_in(head.folds)
        ]
        if not group:
            return {}
        results: dict[str, list[Any]] = {head.id: [] for head in group}
        done, total = 0, sum(map(len, self.folds))
        for number, folds in enumerate(self.folds):
            seed = self.options.seed + number
            fitted = self._fit([candidate.reseeded(seed) for candidate in group], folds)
            for _ in folds:
                for candidate, head in zip(group, fitted, strict=False):
                    result: Any = head
                    if isinstance(head, Head):
                        result = {**head.metrics[HELD_OUT], "confusion": None}  # It may be large.
                    results[candidate.id].append(result)
                done += 1
                self.on_event(FoldFitted(len(group), done, total))
        return {key: self._with_folds(heads[key], result) for key, result in results.items()}

    def _with_folds(self, head: Any, results: Sequence[Any]) -> Head | HeadError:
        for result in results:
            if isinstance(result, HeadError):
                return result
        folds = {"folds": folds_document(self.options, results)}
        if self.options.save:
            self.store.heads.update(head.id, lambda document: folds)
        return head.changed(**folds)

    def _fit(
        self, group: Sequence[Candidate], folds: Folds | None = None
    ) -> Iterator[Head | HeadError]:
        """Fit and measure the heads of a group: all on the training rows, or on each fold."""
        if not group:
            return
        jointly, fitted = joint.family_of(group[0]) is not None, None
        if group[0].kind == "sklearn":
            X, y = self.rows.fitted_arrays()
            fit = joint.fit if jointly else estimator.fit
            fitted = fit(group, X, y, [train for train, _ in folds] if folds else [None])
        for rows in [self.rows] if folds is None else (self.rows.fold(*fold) for fold in folds):
            for some in [group] if jointly else [[candidate] for candidate in group]:
                results = fitted or (self._network(candidate, rows) for candidate in some)
                yield from self._measured(some, list(islice(results, len(some))), rows)

    def _network(self, candidate: Candidate, rows: Rows) -> Fitted | HeadError:
        """Train a Keras head on the training rows; return why it cannot be trained."""
        load_tensorflow()
        from featurestore.heads.training import train

        emit = self.on_event if rows is self.rows else lambda event: None
        started = time.perf_counter()
        try:
            model, history = train(
                candidate.template, rows, seed=candidate.seed, head=candidate.id, on_event=emit
            )
        except HeadError as error:
            return HeadError(f"{candidate.title}: {error}")
        except Exception as error:
            # The second of TensorFlow.
            if not isinstance(error, MemoryError) and "ResourceExhausted" not in str(type(error)):
                raise
            text = one_line(error)
            return HeadError(f"{candidate.title} needs more memory than there is: {text}")
        elsewhere = "trained elsewhere, perhaps on rows of the val and test splits"
        problems, seconds = [] if history else [elsewhere], time.perf_counter() - started
        return Fitted(model, tuple(rows.features.classes), seconds, problems, history)

    def _measured(
        self, group: Sequence[Candidate], results: Sequence[Fitted | HeadError], rows: Rows
    ) -> list[Head | HeadError]:
        """Return the heads of fitted estimators with their metrics; a joint fit has several."""
        try:
            heads = [self._head(*pair) for pair in zip(group, results, strict=True)]
            metrics = evaluate(heads, rows)
        except HeadError as error:
            if len(group) == 1:
                return [error]
            pairs = zip(group, results, strict=True)
            return [self._measured([candidate], [own], rows)[0] for candidate, own in pairs]
        return [head.changed(metrics=own) for head, own in zip(heads, metrics, strict=True)]

    def _head(self, candidate: Candidate, fitted: Fitted | HeadError) -> Head:
        if isinstance(fitted, HeadError):
            raise fitted
        features = self.rows.features
        key, dataset, provenance = features.key, features.dataset, features.group.provenance
        best_params = getattr(fitted.estimator, "best_params_", None) or {}
        return Head.of_fit(
            fitted.estimator,
            self.store,
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
            problems=(*self.problems, *fitted.problems),
            provenance={
                "features": {
                    "key": str(key),
                    "model": key.model,
                    "ref": key.ref,
                    "prefix_digest": key.prefix_digest,
                    "dataset_digest": key.dataset_digest,
                    "dtype": str(features.dtype),
                    **({} if features.blocks is None else {"rows": len(features)}),
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
                "seconds": round(fitted.seconds, 3),
            },
            best_params={name: shown(value, name) for name, value in best_params.items()},
            label=self.options.label,
            tags=self.options.tags,
            note=self.options.note or "",
        )
