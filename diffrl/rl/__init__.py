"""The RL room: cloning, rollouts, PPO over a policy's chain, experts as resumable stages."""
