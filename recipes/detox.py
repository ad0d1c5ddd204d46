"""The whole chain: SFT, reward model, PPO under a KL penalty, and the comparison before and after."""

from __future__ import annotations

from recipes import evaluation, ppo, reward, sft
from workbench.run.cli import main

if __name__ == "__main__":
    main([sft.STAGE, reward.STAGE, ppo.STAGE, evaluation.STAGE], __doc__)
