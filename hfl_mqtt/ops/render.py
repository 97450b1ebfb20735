"""`hfl brokers render`: write what a site's brokers run on, and say what to do with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hfl_mqtt.config.roles import load_role
from hfl_mqtt.config.site import Site
from hfl_mqtt.ops.brokers import render_example, render_to, write_to


def render_site(site_file: Path, out_dir: Path, *, example: bool, as_json: bool) -> None:
    """Render a site file into `out_dir`.

    Raises:
        ConfigError: the site file has mistakes, or the folder cannot be written.
    """
    site = load_role(site_file, Site)
    outcomes = write_to(out_dir, render_example(site)) if example else render_to(site, out_dir)
    if as_json:
        rows = [{"path": str(outcome.path), "changed": outcome.changed} for outcome in outcomes]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    for outcome in outcomes:
        sys.stdout.write(f"{'wrote    ' if outcome.changed else 'unchanged'}  {outcome.path}\n")
    if not example:
        sys.stdout.write("Copy each broker's folder to its machine as brokers/README.md says.\n")
        if site.has_certificates:
            sys.stdout.write("The certificates that these files name are issued by hfl fleet render.\n")
