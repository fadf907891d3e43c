"""What a shrink on the command line writes and prints: a file for each budget, tables, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts.measure import Sizes
from secateur.artifacts.safetensors import check_path, check_place
from secateur.commands.files import describe_artifact, write_artifact, write_folder
from secateur.errors import ArgumentError
from secateur.own_code.slices import index_map
from secateur.planning.details.file_formats import format_of
from secateur.planning.plan import Plan
from secateur.planning.state import quality_cells, quality_columns, to_json
from secateur.planning.weight_plan import WeightPlan
from secateur.reporting.paths import check_page
from secateur.result import Result
from secateur.structure.units import Units
from secateur.text import parse_bytes, table

PLACE = "{bytes}"  # stands in a file's name for what --bytes gives


@dataclass(frozen=True)
class Outputs:
    """The files that a shrink writes: one of each kind for each budget.

    Attributes:
        asked: What --bytes gives, as it was written; empty without it.
        files: The files of the networks; empty where none was named.
        reports: The pages on them; empty without.
        picture: The picture of the loss against bytes; None for none.
        folders: Whether those of the networks are folders of Hugging Face's.
    """

    asked: tuple[str, ...]
    files: tuple[Path, ...]
    reports: tuple[Path, ...]
    picture: Path | None
    folders: bool = False

    @classmethod
    def of(
        cls, asked: Sequence[str], out: Sequence[str], report: str | None, picture: Path | None, folders: bool = False
    ) -> Outputs:
        """Return the files by what --bytes, --out, --report and --picture give.

        Args:
            asked: What --bytes gives.
            out: What --out gives.
            report: What --report gives.
            picture: What --picture gives.
            folders: Whether a name without an ending is that of a folder.

        Raises:
            ArgumentError: --out is given twice, or files of several budgets would have one name.
        """
        if len(out) > 1:
            raise ArgumentError(f"--out: give it once; {PLACE} in it stands for what each --bytes gives")
        files = _names("--out", out[0], asked) if out else ()
        reports = () if report is None else _names("--report", report, asked)
        folders = folders and bool(out) and not Path(out[0].replace(PLACE, "")).suffix
        return cls(tuple(asked), files, reports, picture, folders)

    @property
    def artifact(self) -> str:
        """The kind of the files, which --bytes are of."""
        if not self.files or self.folders:
            return "safetensors"
        return format_of(self.files[0]).suffix.removeprefix(".")

    def check(self, estimate: bool, of_units: bool, in_one_go: bool, measured: bool) -> None:
        """Refuse what cannot be written, before the work.

        Args:
            estimate: Whether nothing but an estimate is asked for.
            of_units: Whether units are removed, not single weights.
            in_one_go: Whether there are no rounds and no training.
            measured: Whether there is a loss.

        Raises:
            ArgumentError: There is no file and the network shall be shrunk, or a folder for single weights; an estimate
                is asked for that there is not, several budgets where there is not one order, or a picture of no loss.
            ArtifactError: A folder does not exist or cannot be written to, or one that is to be written is not empty.
        """
        if not self.files and not estimate:
            raise ArgumentError("--out: needs the file to write the small network to, or --estimate")
        if estimate and not of_units:
            raise ArgumentError("--estimate: there is none with --granularity weight")
        if len(self.asked) > 1 and not (of_units and in_one_go):
            raise ArgumentError("--bytes: several are cut from one order; not with --rounds, --retrain or weights")
        if self.picture is not None and not measured:
            raise ArgumentError("--picture: shows the loss against bytes; give --loss")
        if self.folders and not of_units:
            raise ArgumentError(f"--out {self.files[0]}: single weights are left out of .safetensors files alone")
        for path in self.files:
            check_place(path, folder=True) if self.folders else check_path(path)
        for path in self.reports:
            check_page(path)

    def write(self, results: Sequence[Result], data: Any, loss: str | None) -> list[dict[str, Any]]:
        """Write all files, and return what is known of each, as plain data.

        Args:
            results: The result for each budget.
            data: Inputs and targets: other runtimes are compared and measured on them.
            loss: The loss to measure.
        """
        pairs = zip(self.files, results, strict=True)
        bounds: list[int | None] = [parse_bytes(size) for size in self.asked]
        written = [
            write_folder(result, path) if self.folders else write_artifact(result, path, data, loss, most)
            for (path, result), most in zip(pairs, bounds or [None], strict=True)
        ]
        for path, result in zip(self.reports, results, strict=False):
            result.report(path)
        if self.picture is not None:
            from secateur.reporting.size_curve import loss_by_bytes  # matplotlib is slow to import

            dots = [(result.after.bytes, result.after.loss) for result in results]
            loss_by_bytes(_longest(results).curve, dots, self.picture)
        return written

    def to_json(self, results: Sequence[Result], written: Sequence[dict[str, Any]], units: Units) -> Any:
        """Return the results as plain data: one object, of several budgets a list of them.

        Args:
            results: The result for each budget.
            written: The path and the bytes of each file.
            units: The original's units, which tell from where each slice of the weights comes.
        """
        reports: list[str | None] = [*map(str, self.reports)] or [None for _ in results]
        every = [
            {
                **_result_to_json(result),
                "index_map": index_map(units, result.plan.kept) if isinstance(result.plan, Plan) else None,
                "artifact": file,
                "report": report,
                "picture": None if self.picture is None else str(self.picture),
            }
            for result, file, report in zip(results, written, reports, strict=True)
        ]
        return every if len(self.asked) > 1 else every[0]

    def text(self, results: Sequence[Result], written: Sequence[dict[str, Any]]) -> str:
        """Return the results as people read them: one with all of its steps, several as a table."""
        files = [*self.reports, *([] if self.picture is None else [self.picture])]
        if len(self.asked) > 1:
            return "\n".join([self._comparison(results, written), *(f"written too: {path}" for path in files)])
        report = f", the report to {self.reports[0]}" if self.reports else ""
        picture = "" if self.picture is None else f", the picture to {self.picture}"
        return f"{results[0]}\n{describe_artifact(written[0])}{report}{picture}"

    def _comparison(self, results: Sequence[Result], written: Sequence[dict[str, Any]]) -> str:
        """Lay out one row per file, and one of the original."""
        before, plan = results[0].before, results[0].plan
        columns = ["asked", "written", "units removed", "parameters", *quality_columns(before), "file"]
        rows = [
            (asked, f"{file['bytes']:,}", len(result.curve), *_quality(result.after, result), file["path"])
            for asked, file, result in zip(self.asked, written, results, strict=True)
        ]
        whole = ("all", f"{before.bytes:,}", 0, *_quality(before, results[0]), "")
        title = f"{len(results)} networks from one order; loss and accuracy on {plan.basis}"
        return table(columns, [whole, *rows], title if plan.basis else title.partition(";")[0])


def _quality(sizes: Sizes, result: Result) -> tuple[str | None, ...]:
    """Return parameters, loss, accuracy and metric as in the tables."""
    return f"{sizes.params:,}", *quality_cells(sizes, result.before, result.plan.basis)


def _longest(results: Sequence[Result]) -> Result:
    """Return the result whose plan goes furthest: the others' are its beginnings."""
    return max(results, key=lambda result: len(result.curve))


def _names(option: str, name: str, asked: Sequence[str]) -> tuple[Path, ...]:
    """Return the name of a file for each budget.

    Raises:
        ArgumentError: They would be the same, or nothing is known that stands for the place in the name.
    """
    if PLACE in name and not asked:
        raise ArgumentError(f"{option} {name}: {PLACE} stands for what --bytes gives, and there is none")
    if PLACE not in name and len(asked) > 1:
        raise ArgumentError(f"{option} {name}: several --bytes need {PLACE} in it, which stands for each of them")
    names = [name.replace(PLACE, size.replace(" ", "")) for size in asked or ["all"]]
    if len(set(names)) < len(names):
        raise ArgumentError(f"--bytes: {', '.join(asked)} hold a size twice")
    return tuple(map(Path, names))


def _result_to_json(result: Result) -> dict[str, Any]:
    """Return a result as plain data."""
    return {
        "before": to_json(result.before),
        "after": to_json(result.after),
        "removed": len(result.plan.steps) if isinstance(result.plan, Plan) else result.plan.removed,
        "kept": result.plan.kept,
        "measured": _measured(result),
        **_options(result.plan),
        "verified": True,
        "max_difference": result.max_difference,
        "captured": result.captured,
        "proven": result.proven,
    }


def _measured(result: Result) -> dict[str, Any] | None:
    """Return on which samples loss and accuracy were measured, as plain data."""
    basis, accuracy = result.plan.basis, result.after.accuracy
    if basis is None:
        return None
    return {
        "on": basis.where,
        "samples": basis.samples,
        "fitted_on": basis.fitted,
        "accuracy_standard_error": None if accuracy is None else basis.standard_error(accuracy),
    }


def _options(plan: Plan | WeightPlan) -> dict[str, Any]:
    """Return how a plan of units was made, as plain data."""
    if isinstance(plan, WeightPlan):
        none: dict[str, Any] = {"ranking": None, "compensation": None, "swaps": None, "reason": None, "unfitted": {}}
        return {**none, "rounds": plan.rounds, "retrained": any(step.trained for step in plan.steps)}
    return {
        "ranking": plan.made_by and plan.made_by.to_json(),
        "compensation": plan.compensation and plan.compensation.to_json(),
        "swaps": plan.swaps and asdict(plan.swaps),
        "reason": plan.reason,
        "unfitted": dict(plan.unfitted),
        "rounds": plan.rounds,
        "retrained": plan.retrained,
    }
