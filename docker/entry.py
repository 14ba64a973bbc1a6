"""The container's entry point, and that of scripts that start a launcher: launch/common/entry.py, by a path.

python docker/entry.py deepspeed launch/pretrain.py ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file sits in

from launch.common.entry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
