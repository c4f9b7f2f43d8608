"""HAKSNet-S from random weights on SSDD: the recipe of `ssdd.py` with the wider backbone.

Data as for `ssdd.py`. What was measured with it stands in docs/results.md.

    python -m haksnet_jax.main --config=configs/ssdd_s.py --config.data.root=DIR
"""

from configs import ssdd


def get_config():
    """All values of the experiment: those of `ssdd`, but for the lines here."""
    config = ssdd.get_config()
    with config.unlocked():
        config.name = "ssdd_s"
        config.num_epochs = 60  # at 150 images a second 5.4 minutes
        config.model.backbone = "haksnet_s"
    return config
