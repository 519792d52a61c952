"""What was found while scanning a dataset: counted, named, and told apart by whether it should worry anybody."""

from dataclasses import dataclass, field

NAMES_SHOWN = 3  # beside a count


@dataclass
class Finding:
    """warns: whether it is a problem, or only something to know. names: of the files it was found in."""

    warns: bool
    names: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """Findings by kind. A warning is what strict mode refuses: files that are left out, converted or missing."""

    pictures: int = 0
    draws: int = 0  # with repeats
    batches: int = 0  # in an epoch
    findings: dict[str, Finding] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)  # the buckets, one a line
    buckets: dict[tuple[int, int], int] = field(default_factory=dict)  # their draws, with repeats

    def warn(self, what: str, name: str) -> None:
        self.findings.setdefault(what, Finding(warns=True)).names.append(name)

    def note(self, what: str, name: str) -> None:
        self.findings.setdefault(what, Finding(warns=False)).names.append(name)

    def add(self, other: "DataReport", place: str = "") -> None:
        """Take over another part's findings. place: the sub-folder that they are in."""
        for what, finding in other.findings.items():
            names = [f"{place}/{name}" for name in finding.names] if place else finding.names
            self.findings.setdefault(what, Finding(finding.warns)).names.extend(names)

    def head(self) -> str:
        return f"{self.pictures} pictures, {self.draws} with repeats"

    def warnings(self, names: int = NAMES_SHOWN) -> list[str]:
        return self._lines(True, names)

    def notes(self, names: int = NAMES_SHOWN) -> list[str]:
        return self._lines(False, names)

    def lines(self, names: int = NAMES_SHOWN) -> list[str]:
        """Return all of it, for people."""
        return [self.head(), *(f"warning: {line}" for line in self.warnings(names)), *self.notes(names)]

    def _lines(self, warns: bool, names: int) -> list[str]:
        chosen = [(what, finding.names) for what, finding in sorted(self.findings.items()) if finding.warns == warns]
        return [f"{what}: {len(found)} ({first_of(found, names)})" for what, found in chosen]


def counted(number: int, what: str) -> str:
    """Return "1 picture", "2 pictures"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def first_of(names: list[str], count: int) -> str:
    """Return "a, b, c, … and 9 more"."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f", … and {rest} more" if rest > 0 else "")


def excerpt(text: str, length: int = 24) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= length else line[:length] + "…")
