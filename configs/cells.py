"""Blood cells with two sets of labels, one of which lacks half of the cells: a small detector.

python tools/experiment.py --suite=cells --source=FOLDER --output=runs/cells   (docs/evidence.md)

Images of 640x480 pixels are seen at 208x156 and less. The labels that train are people's own, so
boxes the teacher finds are added, in the normal half too, above a score that the data choose.
"""

from ml_collections import ConfigDict

from mixtrain_jax.config import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.base()
    config.batch_size = 8
    config.steps = 1000

    data = config.data
    data.max_boxes = 40
    data.train.update(
        annotations="data/cells/train.json",
        images="data/cells/images",
        scale=(208, 128, 160),
        buckets=((160, 224),),
    )
    data.val.update(
        annotations="data/cells/val.json",
        images="data/cells/images",
        scale=(208, 160),
        buckets=((160, 224),),
    )

    recipes.small_detector(config.model)
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup_steps=150)
    config.eval.update(every=0, batch_size=8)
    config.checkpoint.update(every=200, keep=5)
    config.log.update(every=50, pictures_every=500)
    config.mixtraining.update(
        start_share=0.4,
        replace_boxes=False,
        gt_score_threshold=0.0,  # all human boxes stay: those that are there are right
        pseudo_score_threshold=0.3,  # where auto_agreement is 0
        auto_agreement=0.9,
        must_agree=True,
        mend_normal=True,
        mixed_loss_weight=1.0,
        ema_momentum=0.99,  # over 100 steps, as there are so few
    )
    return recipes.variants(config, argument)
