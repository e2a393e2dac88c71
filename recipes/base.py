"""Every key of a recipe, its default and its meaning. A recipe is a file that overrides some of them.

Keys take the type of their default (a whole number where a float is due is fine). Batch and learning rate go together:
lr 0.1 is for a global batch of 512 with SGD; take lr = 0.1 x batch / 512 for another one.
"""

from easydict import EasyDict

recipe = EasyDict(
    # --- where things are
    data="",  # an InsightFace folder: train.rec, train.idx, property
    packs=[],  # verification packs; empty: every *.bin in `data`
    out="",  # the run folder
    may_change=[],  # keys in which this recipe may differ from the one that `out` was begun with, e.g. lr
    role="student",  # what the checkpoint is called: OUT/student-0001.params
    # --- network (symbols/): the keys that do not concern the network are not looked at
    network="vargfacenet",  # vargfacenet, resnet or mobilefacenet
    variant="",  # vargfacenet: authors, insightface; mobilefacenet: y1, y2; empty: the first
    multiplier=0.0,  # width; 0: the network's own (vargfacenet 1.25, resnet 1)
    num_layers=100,  # depth of resnet: 18, 34, 50, 100
    output="E",  # resnet: E (dropout) or FC
    embedding_size=0,  # 0: the network's own (512; mobilefacenet y1 128, y2 256)
    init="",  # PREFIX,EPOCH of the weights to start from; empty: scratch
    residual_gamma=1.0,  # from scratch: gamma of the batch norm that closes each residual body
    # --- losses
    scale=64.0,  # s of s*(cos(m1*theta + m2) - m3)
    m1=1.0,  # these are ArcFace; symbols/margin_softmax.py says what makes CosFace and others
    m2=0.5,
    m3=0.0,
    # 0: the softmax is over all identities. Above: over this share of them in each step, the batch's own and others at
    # random, at most class_limit (0: no limit); 1 with no limit is all of them, from the table that is sampled
    class_share=0.0,
    class_limit=0,
    # with class_share: each class at random counts as the many it stands for, so that the softmax's denominator is in
    # the mean that of all classes; False: as one, as in "Partial FC"
    class_correction=True,
    # with class_share: the centre of a class goes on, by its momentum and weight decay, in the steps that do not take
    # it, as with all classes; False: it stands still
    idle_updates=True,
    teacher="",  # PREFIX,EPOCH or FILE.onnx, or several joined by + (their mean on the sphere); empty: no distillation
    teacher_store="",  # a folder of `vargface teacher-store`: the teacher is looked up there; empty: asked in the loop
    # with `augment` and a store, what is distilled: the embedding of the face as the data set has it (clean, from the
    # store) or of the view that the student sees (augmented, in the loop)
    teacher_view="",
    # compare with the teacher a learned linear map of the embedding, for a teacher of another embedding size; the map
    # is no part of the checkpoint
    teacher_map=False,
    distillation="angular",  # angular (Eq. 5 of the paper), shrink (Eq. 4), cosine
    alpha=7.0,  # weight of the distillation loss
    # steps of the first generation between which the margin loss's say over the backbone rises from 0 to 1
    margin_ramp=[0, 0],  # [0, 0]: 1 all along
    generations=1,  # recursive distillation: generation n + 1 starts from generation n's weights, the teacher stays
    # --- optimisation
    batch_size=512,  # global: split over all workers of a job and their contexts
    accumulate=1,  # parts that a batch is gone through in, for one gradient: a big batch in the memory of a small one
    context="auto",  # auto, cpu, gpu, or a list such as gpu(0),gpu(1): of each worker
    kvstore="",  # of a job that `vargface launch` starts: dist_sync, dist_device_sync (sums on its GPUs first)
    steps=240_000,  # of one generation
    seed=0,  # of weights, order and mirroring
    mirror=True,  # mirror images at random
    augment=0.0,  # strength in 0..1 of random turns, shifts, zooms, colours, blur; a teacher in the loop sees the same
    mix=0.0,  # share in 0..1 of faces mixed from two people's, which only the teacher labels; without one: none
    jpeg=0.0,  # share in 0..1 of faces that are compressed anew, at a quality of 30 to 90
    cutout=0.0,  # share in 0..1 of faces that lose a square
    min_images=1,  # leave out identities of fewer images (they keep their classes)
    max_bad=0.001,  # share of the data set's images that may be unusable: they are logged, others stand in for them
    workers=-1,  # processes that decode; 0: the training process does; -1: 0 on CPUs, on GPUs one a core, 16 at most
    optimizer="sgd",  # sgd (with momentum) or adam
    lr=0.1,
    momentum=0.9,  # sgd's
    wd=5e-4,  # weight decay, on every parameter (as InsightFace's SGD object does it)
    schedule="step",  # step, cosine or poly
    lr_steps=[100_000, 160_000, 220_000],  # step: where lr is multiplied by lr_factor
    lr_factor=0.1,
    final_lr=0.0,  # cosine, poly: the rate at `steps`
    warmup_steps=0,  # lr rises linearly from 0
    skip_steps=0,  # steps with a loss or gradient that is not finite that may be left out; one more stops the run
    # --- watching
    log_every=50,  # steps between lines of log.csv
    verify_every=2_000,  # steps between verifications and checkpoints; the last step always has one
    report=True,  # write OUT/report.html at every verification
    save_every=1_000,  # steps between saved states, from which the same command resumes; a verification saves one, too
)
