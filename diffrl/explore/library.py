"""Which episodes there are to look at: data set → task → arm → episode, and which go together."""

from dataclasses import dataclass
from pathlib import Path

from diffrl.base.errors import UserError
from diffrl.data.validate import data_files
from diffrl.quality import read_files
from diffrl.quality.files import tell_user
from diffrl.quality.stage import dataset_files, repeated_files
from diffrl.quality.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Entry:
    """One episode on the shelf: its data set's name, its trajectory, and its number in its arm."""

    dataset: str
    trajectory: Trajectory
    number: int

    @property
    def place(self) -> tuple[Path, str]:
        """The file and the demonstration in it, as quality labels them."""
        path, _, name = self.trajectory.label.rpartition(", ")
        return Path(path), name.replace("episode ", "demo_")

    @property
    def title(self) -> str:
        """ "3 · success · 8.2 s · fresh/1/3"."""
        t = self.trajectory
        outcome = {True: "success", False: "failure", None: "outcome unknown"}[t.success]
        seconds = len(t.actions) / t.rate
        return f"{self.number} · {outcome} · {seconds:.1f} s · {t.start_state}"


class Library:
    """All episodes of some files, in the files' order.

    Args:
        datasets: name → HDF5 files, anything that `diffrl.quality` reads.
        options: of `diffrl.quality.read_trajectories`: rate, source.

    Raises:
        UserError: a file cannot be read, or there is none.
    """

    def __init__(self, datasets: dict[str, list[Path]], tell=tell_user, **options):
        self.entries: list[Entry] = []
        for name, files in datasets.items():
            counts: dict[tuple, int] = {}
            for trajectory in read_files(files, tell=tell, **options) if files else []:
                shelf = (trajectory.task, trajectory.arm)
                number = counts.get(shelf, 0)
                self.entries.append(Entry(name, trajectory, number))
                counts[shelf] = number + 1
        if not self.entries:
            raise UserError("There is no episode to look at: name an HDF5 file of demonstrations.")

    @classmethod
    def of_preset(cls, preset: str) -> "Library":
        """The data sets of a preset and its repeated start states.

        Raises:
            UserError: notebook 02 has not made them yet.
        """
        shelves = {"data sets": dataset_files(preset)}
        shelves["repeated start states"] = repeated_files(preset)
        return cls(shelves)

    @classmethod
    def of_files(cls, paths: list[Path], **options) -> "Library":
        """HDF5 files and folders of them, as one data set."""
        return cls({"files": data_files(tuple(paths))}, **options)

    def datasets(self) -> list[str]:
        """The names of the data sets."""
        return list(dict.fromkeys(entry.dataset for entry in self.entries))

    def tasks(self, dataset: str) -> list[str]:
        """The tasks of a data set."""
        found = [e.trajectory.task for e in self.entries if e.dataset == dataset]
        return list(dict.fromkeys(found))

    def arms(self, dataset: str, task: str) -> list[tuple[str, str]]:
        """The (source, mode) pairs of a task."""
        found = [e for e in self.entries if (e.dataset, e.trajectory.task) == (dataset, task)]
        return list(dict.fromkeys(entry.trajectory.arm for entry in found))

    def episodes(self, dataset: str, task: str, arm: tuple[str, str]) -> list[Entry]:
        """The episodes of an arm."""
        wanted = (dataset, task, arm)
        return [
            e for e in self.entries if (e.dataset, e.trajectory.task, e.trajectory.arm) == wanted
        ]

    def beside(self, entry: Entry) -> list[Entry]:
        """One episode of each other arm that began in the same state, in the same data set."""
        found: dict[tuple[str, str], Entry] = {}
        for other in self.episodes_of_task(entry):
            t, mine = other.trajectory, entry.trajectory
            if t.arm != mine.arm and t.start_state == mine.start_state:
                found.setdefault(t.arm, other)
        return list(found.values())

    def episodes_of_task(self, entry: Entry) -> list[Entry]:
        """Every episode of an episode's data set and task."""
        wanted = (entry.dataset, entry.trajectory.task)
        return [e for e in self.entries if (e.dataset, e.trajectory.task) == wanted]
