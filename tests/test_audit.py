"""What `make lint` makes of pip-audit's report."""

import subprocess

import pytest

from tests import audit

SOUND = {"name": "httpx", "version": "0.28.1", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
VULNERABLE = {
    "name": "jinja2",
    "version": "3.0.0",
    "vulns": [{"id": "PYSEC-2024-1", "fix_versions": ["3.1.4", "3.1.5"]}, {"id": "GHSA-x", "fix_versions": []}],
}


def test_a_report_in_lines() -> None:
    lines, audited, vulnerable = audit.report({"dependencies": [SOUND, UNKNOWN, VULNERABLE]})
    assert (audited, vulnerable) == (2, 1)
    assert lines == [
        "audit: warning: jinja2 3.0.0: PYSEC-2024-1, fixed in 3.1.4, 3.1.5",
        "audit: warning: jinja2 3.0.0: GHSA-x, fixed in no version yet",
        "audit: 1 of 2 packages have known vulnerabilities; 1 are not in the index's database",
    ]


@pytest.mark.parametrize(
    ("packages", "lenient", "strict"),
    [([SOUND], 0, 0), ([SOUND, VULNERABLE], 0, 1), ([UNKNOWN], 0, 1), (None, 0, 1)],
    ids=["sound", "vulnerable", "nothing known", "no network"],
)
def test_only_strictness_fails(
    monkeypatch: pytest.MonkeyPatch, packages: list[object] | None, lenient: int, strict: int
) -> None:
    def ask() -> dict[str, object]:
        if packages is None:
            raise subprocess.TimeoutExpired("pip-audit", 1)
        return {"dependencies": packages}

    monkeypatch.setattr(audit, "ask", ask)
    monkeypatch.delenv("STRICT", raising=False)
    assert audit.main() == lenient
    monkeypatch.setenv("STRICT", "1")
    assert audit.main() == strict
