"""What was found while looking through a dataset: counted, named, and told apart by whether it should worry anybody."""

from dataclasses import dataclass, field

SHOWN = 3  # names beside a count


@dataclass
class Finding:
    warns: bool  # a problem; else something to know
    names: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """Counts by kind. A warning is what strict mode refuses: left out, read in another way than it stands, or missing."""

    pictures: int = 0
    draws: int = 0  # with repeats
    batches: int = 0  # in an epoch
    findings: dict[str, Finding] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)  # the buckets, one a line

    def warn(self, what: str, name: str) -> None:
        self.findings.setdefault(what, Finding(warns=True)).names.append(name)

    def note(self, what: str, name: str) -> None:
        self.findings.setdefault(what, Finding(warns=False)).names.append(name)

    def add(self, other: "DataReport") -> None:
        """Another part's findings."""
        for what, finding in other.findings.items():
            self.findings.setdefault(what, Finding(finding.warns)).names.extend(finding.names)

    def head(self) -> str:
        return f"{self.pictures} pictures, {self.draws} with repeats"

    def warnings(self, shown: int = SHOWN) -> list[str]:
        return self._lines(True, shown)

    def notes(self, shown: int = SHOWN) -> list[str]:
        return self._lines(False, shown)

    def lines(self, shown: int = SHOWN) -> list[str]:
        """All of it, for people."""
        return [self.head(), *(f"warning: {line}" for line in self.warnings(shown)), *self.notes(shown)]

    def _lines(self, warns: bool, shown: int) -> list[str]:
        chosen = [(what, finding.names) for what, finding in sorted(self.findings.items()) if finding.warns == warns]
        return [f"{what}: {len(names)} ({few(names, shown)})" for what, names in chosen]


def few(names: list[str], shown: int) -> str:
    """ "a, b, c, … and 9 more"."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f", … and {rest} more" if rest > 0 else "")
