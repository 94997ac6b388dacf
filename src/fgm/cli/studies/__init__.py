"""Studies. A study is a question that many runs answer; its rows, page and plots are in experiments/<study>/.

A sweep is how most studies ask: configs/sweep/<study>.yaml names axes of settings, whose values on a grid, each with
every seed, are the study's points; a point is one run. The study of the identity has cases in place of a sweep.

    definition, points            from a sweep's file to resolved configs
    running, process, point       one point after another, each in a process of its own
    multirun                      the same by Hydra's launchers and sweepers
    rows, table, plots, theme     what was found, by cells: a cell is a point with all its seeds
    page, report                  the page in experiments/, and one HTML file
    wandb_sweep, workspace        the sweep for W&B's agents, and the study's dashboard there
    identity/                     FGM's gradient beside the one that it stands for
"""
