"""The bundle that devices receive."""
