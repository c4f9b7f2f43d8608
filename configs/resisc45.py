"""HAKSNet-T on RESISC45: 31,500 aerial images of 256 pixels in 45 classes (Cheng et al., 2017), one folder a class.

The set comes without a split; usual are 20 % of each class for training. Which ones, papers do not state: here a seed
says it. Another list: `--config.data.train.image_list=train.txt --config.data.train.share=(0.0,1.0)`, and for val.

    haksnet train --config=configs/resisc45.py --config.data.root=FOLDER_OF_CLASSES --config.pretrained=BACKBONE
"""

from configs import classification_folder


def get_config():
    """All values of the experiment: those of `classification_folder`, but for the lines here."""
    config = classification_folder.get_config()
    with config.unlocked():
        config.name = "resisc45"
        config.num_epochs = 200
        config.data.image_size = (256, 256)
        config.data.train.folder = config.data.val.folder = "."
        config.data.train.share = (0.0, 0.2)
        config.data.val.share = (0.2, 1.0)
        config.evaluation.protocol = "80 % of each class, divided by seed 0"
    return config
