"""What a command finds in its run's folder: nothing, another run, or a part of its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sphere_bench.data.records import EditDataset
from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import EarlierVersionError, RunFolder
from sphere_bench.run_folder.identity import differences, shown
from sphere_bench.run_folder.table_files import first_gap

#: Gives the run's dataset with so many records.
DatasetOf = Callable[[int | None], EditDataset]


class Continuation:
    """Compares what a command asks for with what its run's folder holds.

    A run may go on with more records than it had, if the first ones are the same. A command that
    asks for fewer than are edited already takes nothing back.

    Args:
        folder: the run's folder.
        facts: of the run that is asked for, those that need no model.
        dataset_of: the run's dataset, by the number of records; ``None`` for those asked for.
        restart: another run in the folder is to be discarded.

    Attributes:
        folder, facts: as given.
        differences: what makes the run in the folder another one, old -> new; empty where there is
            none.
        dataset: the records of the run: those asked for, or those edited already if they are more.
        earlier_records: how many records the run had so far; 0 where there is none.

    Raises:
        SphereBenchError: the folder holds another run, which is not to be discarded.
    """

    def __init__(
        self,
        folder: RunFolder,
        facts: Mapping[str, Any],
        dataset_of: DatasetOf,
        *,
        restart: bool = False,
    ) -> None:
        self.folder = folder
        self.facts = facts
        self.dataset = dataset_of(None)
        self.earlier_records = 0
        self._restart = restart
        self._dataset_of = dataset_of
        self.differences: list[str] = []
        self.compare(facts)

    @property
    def resumes(self) -> bool:
        """Whether the folder holds a part of this run."""
        return self.folder.has_results and not self.differences

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Compare ``facts``, which may now include those of the model, with the folder's.

        Raises:
            SphereBenchError: see above.
        """
        if not self.folder.has_results:
            return
        try:
            self.differences = [*differences(self.folder, facts), *self._other_records()]
        except EarlierVersionError as error:
            if not self._restart:
                raise
            self.differences = [error.problem]
        if self.differences and not self._restart:
            raise SphereBenchError(
                f"{self.folder} holds another run ({'; '.join(self.differences)}): choose another "
                "run.name, or discard that run with run.on_mismatch=restart"
            )
        if self.differences:
            self.dataset, self.earlier_records = self._dataset_of(None), 0
        else:
            self._keep_what_is_recorded()

    def is_intact(self, stamps: Mapping[str, Any]) -> bool:
        """Whether the folder holds all rows of this run, made from files with these ``stamps``."""
        if not self.resumes or first_gap(self.folder) is not None:
            return False
        recorded = self.folder.provenance()
        return all(recorded.get(key) == stamp for key, stamp in stamps.items())

    @property
    def is_complete(self) -> bool:
        """Whether every record is edited and recorded."""
        progress = self.folder.progress()
        return (
            progress is not None
            and progress.state != "running"
            and progress.edits >= len(self.dataset.records)
        )

    def _other_records(self) -> list[str]:
        """Nothing, or that the records edited so far are others than the command's."""
        earlier = self.folder.provenance()
        count, before = int(earlier["records"]), str(earlier["dataset_fingerprint"])
        try:
            now = self._at_least(count).fingerprint(count)
        except SphereBenchError:  # the dataset has fewer records now
            now = self.dataset.fingerprint()
        if now != before:
            return [f"dataset_fingerprint {shown(before)} -> {shown(now)}"]
        self.earlier_records = count
        return []

    def _keep_what_is_recorded(self) -> None:
        """Records that are edited already stay, and the headline stays the same."""
        progress = self.folder.progress()
        edited = 0 if progress is None else progress.edits
        dataset = self._at_least(edited)
        self.dataset = replace(dataset, headline=self.folder.provenance()["headline"])

    def _at_least(self, count: int) -> EditDataset:
        return self.dataset if len(self.dataset.records) >= count else self._dataset_of(count)
