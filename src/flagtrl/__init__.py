"""flagtrl: the open implementation of FLAG-Trader."""

import logging
import warnings

__version__ = "0.1.0"

# Two messages of other libraries that no user of flagtrl can act on: bitsandbytes' note about an
# optional CPU kernel for 4-bit models, and peft's use of a name that transformers has renamed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings(
    "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
)
