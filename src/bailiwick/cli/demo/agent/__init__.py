"""The demo's agent, copied into its workspace as it stands. It is run as a program, never imported by the product, and imports nothing of ours."""
