"""`sak-cli doctor`: what this machine has, and what would fail on it."""

import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata, util
from pathlib import Path

import psutil

from pipeline.processes import usable_cores
from sak.errors import UsageError

GIB = 2**30
LEAST_FREE_DISK = 5 * GIB
LEAST_SHARED_MEMORY = 1 * GIB
LEAST_OPEN_FILES = 4096


@dataclass(frozen=True)
class Finding:
    """Something that would fail or disappoint: what, and how to mend it. `fatal` where every command would fail."""

    what: str
    remedy: str
    fatal: bool = False


@dataclass(frozen=True)
class Disk:
    """Free and total bytes of the file system under a folder, `place`."""

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
    threads = ", ".join(f"{name} {count}" for name, count in report.threads.items())
    count = len(report.devices)
    return [
        f"Python {report.python} on {report.platform}",
        f"{report.cores} cores (threads: {threads}), {_of(report.memory_free, report.memory_total)} memory free",
        f"CUDA {report.cuda}: {count or 'no'} device{'s' if count != 1 else ''}",
        *(f"  {card.name}, capability {card.capability}, {_of(card.free, card.total)} free" for card in report.devices),
    ]


def _of(free: int, total: int) -> str:
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB"


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


def examine(folders: tuple[str, ...]) -> Report:
    """Look at Python, torch, devices, memory, packages, disks (`folders` among them) and teachers' weights.

    Where a package is missing, what needs it is left out. UsageError for a folder that is a URL.
    """
    packages, package_findings = _installed_packages()
    torch_is_here = "torch" in packages
    folders = (*folders, str(Path.cwd()), tempfile.gettempdir(), *weight_folders())
    disks = tuple(_disk(folder) for folder in dict.fromkeys(folders))
    memory = psutil.virtual_memory()
    threads, cuda, devices = _seen_by_torch() if torch_is_here else (0, "unknown without torch", ())
    report = Report(
        python=platform.python_version(),
        platform=platform.platform(),
        cores=usable_cores(),
        threads={"torch": threads, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset")},
        memory_free=memory.available,
        memory_total=memory.total,
        packages=packages,
        cuda=cuda,
        devices=devices,
        disks=disks,
        weights=_weights_at_hand() if util.find_spec("huggingface_hub") is not None else {},
    )
    checks = (_check_devices, _check_disks, _check_shared_memory, _check_open_files, _check_weights)
    return replace(report, findings=(*package_findings, *(finding for check in checks for finding in check(report))))


def _installed_packages() -> tuple[dict[str, str], tuple[Finding, ...]]:
    from packaging.requirements import Requirement

    versions: dict[str, str] = {}
    findings = []
    try:
        needed = metadata.requires("sak") or []
    except metadata.PackageNotFoundError:
        return versions, (Finding("sak itself is not installed in this Python", "run `make setup`", fatal=True),)
    for line in needed:
        requirement = Requirement(line)
        optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        try:
            versions[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not optional:
                findings.append(Finding(f"{requirement.name} is not installed", "run `make setup`", fatal=True))
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            what = f"{requirement.name} {versions[requirement.name]} is installed, {requirement.specifier} is needed"
            findings.append(Finding(what, "run `make setup`", fatal=not optional))
    return versions, tuple(findings)


def _seen_by_torch() -> tuple[int, str, tuple[Device, ...]]:
    """(CPU threads, CUDA's version, CUDA devices)."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        devices.append(Device(properties.name, f"{properties.major}.{properties.minor}", free, total))
    return torch.get_num_threads(), torch.version.cuda or "none in this build of torch", tuple(devices)


def weight_folders() -> tuple[str, ...]:
    """Where downloaded weights lie: the Hugging Face hub's folder, and torch.hub's for segment-anything."""
    from sak.teachers.registry import SAM_URLS, UrlFile

    torch_hub = str(UrlFile(SAM_URLS["vit_b"]).path.parent)
    if util.find_spec("huggingface_hub") is None:
        return (torch_hub,)
    from huggingface_hub import constants

    return (constants.HF_HUB_CACHE, torch_hub)


def _disk(path: str) -> Disk:
    if "://" in path:
        raise UsageError(f"{path} is a URL, whose free space cannot be told: name folders of this machine")
    folder = Path(path).absolute()
    while True:  # up to the nearest folder that is there and may be looked at: / is
        try:
            usage = shutil.disk_usage(folder)
            return Disk(path, usage.free, usage.total, _writable(folder))
        except OSError:
            folder = folder.parent


def _writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`, by making one: permissions alone say nothing to root."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _weights_at_hand() -> dict[str, bool]:
    from sak.teachers.registry import list_teachers, weights_available

    return {teacher.name: weights_available(teacher) for teacher in list_teachers()}


def _check_devices(report: Report) -> list[Finding]:
    if report.devices:
        return []
    remedy = "stages run on the CPU with `--device cpu`, slowly: fit for the demo, not for ImageNet"
    if Path("/proc/driver/nvidia").exists():
        remedy = "a driver is loaded, so torch's CUDA build may not match it: compare `nvidia-smi` with the line above"
    return [Finding("no CUDA device is visible to torch", remedy)]


def _check_disks(report: Report) -> list[Finding]:
    findings = []
    for disk in report.disks:
        if not disk.writable:
            findings.append(Finding(f"{disk.place} is not writable", "choose another folder or mend its permissions"))
        elif disk.free < LEAST_FREE_DISK:
            what = f"{disk.place} has {disk.free / GIB:.1f} GiB free, less than {LEAST_FREE_DISK / GIB:.0f}"
            findings.append(Finding(what, "make room; `sak-cli cache plan` says what a cache takes"))
    return findings


def _check_shared_memory(report: Report) -> list[Finding]:
    shared = Path("/dev/shm")  # PyTorch's worker processes hand over their tensors there
    if not shared.is_dir() or shutil.disk_usage(shared).total >= LEAST_SHARED_MEMORY:
        return []
    size = shutil.disk_usage(shared).total / GIB
    what = f"/dev/shm holds only {size:.2f} GiB: image workers may die of a bus error"
    return [Finding(what, "give the container `--shm-size=8g`, or run with 0 workers")]


def _check_open_files(report: Report) -> list[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= LEAST_OPEN_FILES or soft == resource.RLIM_INFINITY:
        return []
    what = f"only {soft} files may be open at once (hard limit {hard})"
    return [Finding(what, f"run `ulimit -n {LEAST_OPEN_FILES}` before long runs over many shards")]


def _check_weights(report: Report) -> list[Finding]:
    absent = [name for name, present in report.weights.items() if not present]
    if not absent:
        return []
    from huggingface_hub import constants

    what = f"pretrained weights of {len(absent)} of {len(report.weights)} teachers are not on this machine"
    folders = "{} ({} for segment-anything)".format(*weight_folders())
    if constants.HF_HUB_OFFLINE:
        remedy = f"HF_HUB_OFFLINE is set: copy them into {folders}, or give a teacher a weights file in the spec"
    else:
        remedy = f"they are fetched into {folders} on first use, which needs the network; or give a file in the spec"
    return [Finding(what, remedy)]
