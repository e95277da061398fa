"""Rollouts, advantages, losses and the PPO trainer."""
