"""``make audit``: known vulnerabilities of what is pinned, by pip-audit.

Status 0: everything was looked up and nothing is known. 1: something is. 3: no source of advisories could be reached,
or it does not know some of the packages; then nothing was proven and which they are is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOUND, NOT_AUDITED = 1, 3
LIMIT_S = 300


def judge(report: dict[str, list[dict[str, object]]]) -> tuple[int, list[str]]:
    """Status and what to say of pip-audit's JSON *report*."""
    lines = []
    vulnerable = [entry for entry in report["dependencies"] if entry.get("vulns")]
    skipped = [entry for entry in report["dependencies"] if "skip_reason" in entry]
    for entry in vulnerable:
        for vulnerability in entry["vulns"]:  # type: ignore[attr-defined]
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            lines.append(f"{entry['name']} {entry['version']}: {vulnerability['id']}, fixed in {fixed}")
    if skipped:
        names = ", ".join(str(entry["name"]) for entry in skipped[:8])
        more = f" and {len(skipped) - 8} more" if len(skipped) > 8 else ""
        lines.append(
            f"{len(skipped)} of {len(report['dependencies'])} packages could not be audited ({names}{more}): no source of "
            "advisories that knows them is in reach. Run it where one is."
        )
    if not report["dependencies"]:
        lines.append("There is nothing to audit.")
    status = FOUND if vulnerable else NOT_AUDITED if skipped or not report["dependencies"] else 0
    return status, lines or [f"{len(report['dependencies'])} packages, no known vulnerability."]


def main() -> int:
    pins = Path(__file__).parents[2] / "constraints.txt"
    command = [sys.executable, "-m", "pip_audit", "-r", str(pins), "--no-deps", "--disable-pip", "-f", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        report = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as exc:
        said = "it did not end" if isinstance(exc, subprocess.TimeoutExpired) else done.stderr.strip()[-400:]
        sys.stderr.write(f"Nothing was audited, no source of advisories is in reach: {said}\n")
        return NOT_AUDITED
    status, lines = judge(report)
    (sys.stderr if status else sys.stdout).write("\n".join(lines) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
