"""HAKSNet-S with Oriented R-CNN on DOTA-v1.0, single scale.

Reproduces: 80.20 AP50 (upstream's figure, on DOTA's test server, with its ImageNet weights, trained on train + val).
Ours on this data set: not measured yet. Upstream's hardware: 8 GPUs, 12 epochs.

Prepare the tiles and the records (see data/README.md), then:

    python -m haksnet_jax.main --config=configs/dota_ss.py --config.pretrained=DIR_OF_CONVERTED_BACKBONE
"""

from configs import dota_ss_t


def get_config():
    """All values of the experiment: those of `dota_ss_t`, but for the lines here."""
    config = dota_ss_t.get_config()
    with config.unlocked():
        config.name = "dota_ss"
        config.batch_size_per_device = 1  # upstream: samples_per_gpu
        config.evaluation.batch_size_per_device = 1
        config.model.backbone = "haksnet_s"
        config.optimizer.reference_batch = 8  # upstream: 8 GPUs x 1
    return config
