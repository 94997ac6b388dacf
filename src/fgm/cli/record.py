"""Add a finished run to <experiments>/<experiment>/runs.jsonl:  python -m fgm.cli.record experiment=digits_fgm seed=1"""

from pathlib import Path
from typing import Any

from fgm.cli import runs
from fgm.cli.command import Command, NoSettings
from fgm.utils.errors import UserError


def run(config: dict[str, Any], settings: NoSettings) -> None:
    """
    Raises:
        UserError: the run is not finished.
    """
    del settings
    if not runs.is_done(config, Path(config["run_dir"])):
        raise UserError(f"{config['run_dir']} holds no finished run: make train EXP={config['experiment']} first")
    print(f"row in {runs.record(config)} (make table)")


main = Command("record", run)

if __name__ == "__main__":
    main.main()
