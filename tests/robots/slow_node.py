"""The node with a model that takes a third of a second longer; run with ROS 2."""

import sys
import time
from typing import Any

from edgevlm_ros import node

from edgevlm import VLM, ChoiceScore


class SlowVLM(VLM):
    def _score(self, *arguments: Any, **options: Any) -> list[ChoiceScore]:
        time.sleep(0.33)
        return super()._score(*arguments, **options)


vars(node)["VLM"] = SlowVLM
sys.exit(node.main())
