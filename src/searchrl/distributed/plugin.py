"""What verl loads in every process, by the entry point ``verl.plugins``: our agent loop's name.

verl swallows what goes wrong here, so the loop's manager asks every worker whether it took place.
"""

from __future__ import annotations

from verl.experimental.agent_loop.agent_loop import register

from searchrl.distributed.agent_loop import SearchLoop
from searchrl.distributed.translation import LOOP

register(LOOP)(SearchLoop)
