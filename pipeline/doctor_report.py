"""What `sak-cli doctor` found, as JSON and as lines for a person."""

import json
from dataclasses import asdict, dataclass, field

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """Something that would fail or disappoint: what, and how to mend it. `fatal` where every command would fail."""

    what: str
    remedy: str
    fatal: bool = False


@dataclass(frozen=True)
class Disk:
    """Free and total bytes of the file system under `place`."""

    place: str
    free: int
    total: int
    writable: bool


@dataclass(frozen=True)
class Device:
    """One CUDA device: free and total bytes of memory."""

    name: str
    capability: str
    free: int
    total: int


@dataclass(frozen=True)
class Report:
    """What was found; `findings` is empty where nothing would fail."""

    python: str
    platform: str
    cores: int
    threads: dict[str, int | str]
    memory_free: int
    memory_total: int
    packages: dict[str, str]
    cuda: str
    devices: tuple[Device, ...]
    disks: tuple[Disk, ...]
    weights: dict[str, bool]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """1 where something fatal was found."""
        return int(any(finding.fatal for finding in self.findings))

    def to_json(self) -> str:
        """The report as JSON; sizes in bytes."""
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """The report as lines for a person; sizes in GiB."""
        return "\n".join(
            line for section in (_machine, _packages, _disks, _weights, _findings) for line in section(self)
        )


def _machine(report: Report) -> list[str]:
    devices = [
        f"  {device.name}, capability {device.capability}, {device.free / GIB:.1f} of {device.total / GIB:.1f} GiB free"
        for device in report.devices
    ]
    threads = ", ".join(f"{name} {count}" for name, count in report.threads.items())
    return [
        f"Python {report.python} on {report.platform}",
        f"{report.cores} cores (threads: {threads}), "
        f"{report.memory_free / GIB:.1f} of {report.memory_total / GIB:.1f} GiB memory free",
        f"CUDA {report.cuda}: {len(devices) or 'no'} device{'s' if len(devices) != 1 else ''}",
        *devices,
    ]


def _packages(report: Report) -> list[str]:
    return ["", "Packages", *(f"  {name:<18} {version}" for name, version in sorted(report.packages.items()))]


def _disks(report: Report) -> list[str]:
    lines = [
        f"  {disk.free / GIB:8.1f} of {disk.total / GIB:8.1f} GiB  {disk.place}"
        + ("" if disk.writable else "  (not writable)")
        for disk in report.disks
    ]
    return ["", "Free disk", *lines]


def _weights(report: Report) -> list[str]:
    present = [name for name, here in report.weights.items() if here]
    return ["", f"Teachers' weights here: {len(present)} of {len(report.weights)}", *(f"  {name}" for name in present)]


def _findings(report: Report) -> list[str]:
    if not report.findings:
        return ["", "Nothing would fail."]
    lines = [f"  {'!' if finding.fatal else '-'} {finding.what}: {finding.remedy}" for finding in report.findings]
    return ["", "What would fail, and how to mend it", *lines]
