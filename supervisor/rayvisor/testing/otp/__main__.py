"""``python -m rayvisor.testing.otp PATH...``: runs OTP scenarios; exits with 1 if any differs."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayvisor.testing.otp.comparing import difference, is_known
from rayvisor.testing.otp.replaying import replay

__all__ = ["main"]


def scenarios(path: Path) -> Iterator[dict[str, Any]]:
    """Read the scenarios of a JSON file, a folder of them, or a .tar.gz."""
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield json.loads(file.read_bytes())
    elif path.suffix == ".json":
        yield json.loads(path.read_bytes())
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(".json") else None
                if content is not None:
                    yield json.load(content)


def compare(file: dict[str, Any]) -> str:
    """Run one scenario; return how the traces differ, or why it could not be completed."""
    try:
        return difference(file["trace"], replay(file["scenario"]))
    except Exception as error:  # noqa: BLE001 - one scenario that cannot be run must not hide the others
        return f"{type(error).__name__}: {error}"


def main(arguments: list[str]) -> int:
    """Compare all scenarios; print a line for each that differs, and the totals."""
    if not arguments:
        sys.stderr.write("usage: python -m rayvisor.testing.otp PATH...\n")
        return 2
    agree = differ = known = 0
    for argument in arguments:
        for file in scenarios(Path(argument)):
            found = compare(file)
            if not found:
                agree += 1
            elif is_known(file):
                known += 1
                sys.stdout.write(f"known  {file['name']}: {found}\n")
            else:
                differ += 1
                sys.stdout.write(f"differ {file['name']}: {found}\n")
    total = agree + differ + known
    sys.stdout.write(f"{total} traces, {agree} agree, {differ} differ, {known} known\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
