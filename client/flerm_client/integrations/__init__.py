"""FLeRM in training frameworks.

Each module needs its framework (`pip install 'flerm[transformers]'`, …).

- `flerm_client.integrations.transformers`: `FLeRMCallback` for Hugging Face's Trainer
- `flerm_client.integrations.lightning`: `FLeRMCallback` for Lightning's Trainer
- `flerm_client.integrations.accelerate`: `record` and `match` for a loop around an Accelerator
- `flerm_client.integrations.probe_batches`: `probe_of`, probe batches out of a training loader
"""
