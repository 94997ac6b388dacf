"""Make or update a study's W&B dashboard: python -m fgm.cli.dashboard sweep=t_star

entity=<team or user>    whose project fgm it is; yours unless given
outputs=outputs          where the spec is written, <study>/dashboard.json, and the dashboard's address is kept
upload=auto              false: the spec alone

Without an account, or without the package wandb-workspaces, the spec is all that is written.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgm.cli.arguments import choice, read_settings
from fgm.cli.studies.definition import read_sweep
from fgm.utils.account import has_account
from fgm.utils.errors import entry
from fgm.utils.records import write_json

OWN = {"sweep": "", "entity": "", "outputs": "outputs", "upload": "auto"}


def main(arguments: list[str]) -> None:
    own = read_settings(arguments, OWN)
    choice(own, "upload", ("auto", "false"))
    sweep, folder = read_sweep(own["sweep"]), Path(own["outputs"]) / own["sweep"]
    from fgm.cli.studies.workspace import dashboard

    spec = dashboard(sweep, own["entity"] or os.environ.get("WANDB_ENTITY"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "dashboard.json", spec)
    why = "upload=false" if own["upload"] == "false" else missing()
    if why:
        print(f"{folder / 'dashboard.json'} holds the dashboard; nothing was uploaded: {why}")
    else:
        print(f"the dashboard is at {publish(spec, folder / 'dashboard_url.txt')}")


def missing() -> str | None:
    """What uploading lacks."""
    if find_spec("wandb_workspaces") is None:
        return "wandb-workspaces is not installed, pip install -e '.[dashboard]'"
    return None if has_account() else "no W&B account is known here, set WANDB_API_KEY"


def publish(spec: dict[str, Any], kept: Path) -> str:
    """To the address that is kept from before, if there is one; the address."""
    from fgm.cli.studies.workspace import workspace
    from fgm.training.loggers import default_entity

    url = kept.read_text().strip() if kept.exists() else None
    saved = workspace(spec | {"entity": spec["entity"] or default_entity()}, url).save()
    kept.write_text(saved.url)
    return saved.url


if __name__ == "__main__":
    entry(main, __doc__)
