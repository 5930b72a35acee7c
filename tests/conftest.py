"""What every test needs: no hub, no GPU, no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("coevolve", deadline=None)
settings.load_profile("coevolve")
