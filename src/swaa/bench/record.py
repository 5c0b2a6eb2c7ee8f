"""The files of a run, written anew with every row: a run that is cut short has lost nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.bench.floors import Floors
from swaa.results import command_line, environment, write_csv, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass
class Record:
    """Rows and what they depend on.

    Args:
        folder: an existing folder.
        columns: of a row.
        settings: what was asked for, ready for JSON.
        floors: the rates of the device.
        rows: measured so far.
        environment: versions and hardware.
    """

    folder: Path
    columns: Sequence[str]
    settings: Mapping[str, Any]
    floors: Floors
    rows: list[Row] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=environment)

    def add(self, row: Mapping[str, Any]) -> Row:
        """Append a row (columns that it lacks are empty), and write table.csv and results.json."""
        complete = dict.fromkeys(self.columns) | dict(row)
        assert list(complete) == list(self.columns), set(complete) - set(self.columns)
        self.rows.append(complete)
        write_csv(self.folder / "table.csv", self.rows)
        write_json(self.folder / "results.json", self.content())
        return complete

    def content(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "command": command_line(),
            "settings": dict(self.settings),
            "environment": self.environment,
            "floors": asdict(self.floors),
            "rows": self.rows,
        }

    def plot(self, figures: Callable[[Sequence[Row]], Mapping[str, "Figure"]]) -> None:
        """Write a PNG of each figure that the rows give.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        from swaa.report.plots import save

        for name, figure in figures(self.rows).items():
            save(figure, self.folder / f"{name}.png")
