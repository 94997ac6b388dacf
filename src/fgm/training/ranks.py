"""What the ranks of a training tell each other beside gradients: a gloo group, next to the training's own.

Objects and flags then travel from host to host, wait for no device, and have a patience of their own.
"""

from functools import cache

import torch.distributed

from fgm.utils.distributed import TIMEOUT, ProcessGroup, Ranks, SingleProcess


def training_ranks() -> Ranks:
    """Of the ranks that Lightning has started, or SingleProcess; asked for on all ranks alike."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return SingleProcess()
    return beside(torch.distributed.group.WORLD)


@cache
def beside(group: object) -> ProcessGroup:
    """One for the life of the group."""
    del group
    return ProcessGroup(torch.distributed.new_group(backend="gloo", timeout=TIMEOUT))
