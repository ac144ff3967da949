"""Known vulnerabilities of the installed packages, by pip-audit; part of `make lint`.

A vulnerability is a warning, as it appears without any change here; `STRICT=1` makes it an error, and so a
network without the database, which is passed over otherwise.
"""

import json
import os
import subprocess
import sys
from typing import Any, Final

SECONDS: Final = 180  # for all of it
NETWORK_SECONDS: Final = 5  # for one answer


def main() -> int:
    strict = bool(os.environ.get("STRICT"))
    try:
        document = ask()
    except (subprocess.TimeoutExpired, ValueError) as error:
        print(f"audit: not done, the database of vulnerabilities did not answer: {error}")
        return int(strict)
    lines, audited, vulnerable = report(document)
    print("\n".join(lines))
    return int(strict and (vulnerable > 0 or audited == 0))


def ask() -> dict[str, Any]:
    """pip-audit's report. Raises ValueError where there is none."""
    options = ("--local", "--skip-editable", "--format", "json", "--progress-spinner", "off")
    command = [sys.executable, "-m", "pip_audit", *options, "--timeout", str(NETWORK_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise ValueError((done.stderr.strip().splitlines() or ["no output"])[-1][:300]) from None
    return document


def report(document: dict[str, Any]) -> tuple[list[str], int, int]:
    """What a report says in lines, how many packages were looked up, and how many of them are vulnerable."""
    packages = document["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    vulnerable = [package for package in audited if package["vulns"]]
    lines = [
        f"audit: warning: {package['name']} {package['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for package in vulnerable
        for vulnerability in package["vulns"]
    ]
    unknown = len(packages) - len(audited)
    told = f"; {unknown} are not in the index's database" if unknown else ""
    lines.append(f"audit: {len(vulnerable)} of {len(audited)} packages have known vulnerabilities{told}")
    return lines, len(audited), len(vulnerable)


if __name__ == "__main__":
    sys.exit(main())
