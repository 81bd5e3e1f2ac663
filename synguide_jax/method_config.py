"""Fields of the single methods, with the defaults of those who published them.

Where a default is another one, docs/methods.md says so. What a method's own
code and paper leave open, or do differently from another well-known code, is a
field here. Plain data only; the equations are in synguide_jax/methods.
"""

from ml_collections import ConfigDict


def sections() -> dict[str, ConfigDict]:
  """Returns the sections by name."""
  return {
    "two_streams": _two_streams(),
    "guidance": _guidance(),
    "weighted": _weighted(),
    "transfer": _transfer(),
    "two_stage": _two_stage(),
    "asg": _asg(),
    "csg": _csg(),
    "dann": _dann(),
    "adda": _adda(),
    "dada": _dada(),
    "ltda": _ltda(),
  }


def _two_streams() -> ConfigDict:
  """Of steps with a real and a synthetic batch; the paper says nothing of them.

  Of "balanced", "weighted", "guided" with RG, "a_gem", "dann", and the second
  stage of "adda" and "dada".
  """
  section = ConfigDict()
  # Share of batch_size that is real.
  section.real_share = 0.5
  # How real images are drawn: "epoch", in shuffled passes, "uniform", with
  # replacement, or "balanced", all classes alike.
  section.real_sampler = "epoch"
  # Batch normalisation of the two: "separate" passes, or "joint"; dann has a
  # field of its own, adda and dada are always separate.
  section.batch_norm = "separate"
  # What updates the running statistics: "both", the real batch first (in dada
  # the synthetic one), or "real"; adda's M_t sees real images only.
  section.running_statistics = "both"
  return section


def _guidance() -> ConfigDict:
  """Real Guidance and Pretrained Guidance, of method "guided"."""
  section = ConfigDict()
  # RG: project the synthetic gradient where it opposes the real one.
  section.rg = True
  # PG-R: the PG loss on the real images.
  section.pg_real = True
  # PG-F: the PG loss on the synthetic images.
  section.pg_synthetic = True
  # lambda_1, weight of the real gradient. On CIFAR-10 the paper's rows of RG
  # and A-GEM are the same figures, as with weights 0 and 1.
  section.real_weight = 1.0
  # lambda_2, weight of the projected synthetic gradient.
  section.synthetic_weight = 1.0
  # lambda_3, weight of the PG loss; its scale depends on the reduction.
  section.pg_weight = 10.0
  # Whether PG is part of the two gradients, as Eq. 3 reads, or its gradient is
  # added after the projection; the paper does not say.
  section.project_pg = True
  # Stage of M_u whose pooled map is guided.
  section.feature_layer = "stage3"
  # "kl", "l1", "l2" or "js". But for kl and js take elementmean, and a weight
  # near 1: what batchmean sums over a row is of the order of its length.
  section.similarity = "kl"
  # "cosine", "dot", "euclidean" or "sqeuclidean".
  section.metric = "cosine"
  # "batchmean", "elementmean" or "sum".
  section.reduction = "batchmean"
  # "pretrained_to_trained" or "trained_to_pretrained"; of kl.
  section.direction = "pretrained_to_trained"
  # Divides the similarities before the softmax.
  section.temperature = 1.0
  return section


def _weighted() -> ConfigDict:
  section = ConfigDict()
  # Weight of the real cross entropy; the synthetic one has the rest.
  section.real_weight = 0.8
  # Instead of weights: real images, each exchanged with this probability for a
  # synthetic one of its class; 0: off. Epochs are then of the real images.
  section.replacement_probability = 0.0
  return section


def _transfer() -> ConfigDict:
  """Of "linear_probe" and "finetune", which train the network M_p itself.

  They have no use for the section "model".
  """
  section = ConfigDict()
  # "real", "synthetic" or "mixed", their union.
  section.train_on = "mixed"
  # Learning rate of all but the new head, in units of optimizer.learning_rate;
  # of finetune.
  section.backbone_rate = 1.0
  return section


def _two_stage() -> ConfigDict:
  """Of "adp", "adda", "dada" and "ltda", which begin on synthetic images."""
  section = ConfigDict()
  # Share of num_epochs or num_steps in the first stage: 150 of 200 epochs.
  section.first_share = 0.75
  # Passes over which images the second stage's epochs are, "real" (the paper:
  # "finetuned on real data for 50 epochs", which few images make few steps) or
  # "synthetic".
  section.second_epochs_of = "real"
  # Learning rate of the second stage, in units of optimizer.learning_rate.
  section.second_rate = 1.0
  # Whether adp and ltda begin the second stage with a new optimizer and a new
  # schedule; the paper does not say. The others always do.
  section.reset_optimizer = True
  return section


def _asg() -> ConfigDict:
  section = ConfigDict()
  # Weight of KL(teacher || student) over the classes of M_p.
  section.kl_weight = 0.1
  # Batch normalisation while training: "frozen" keeps the checkpoint's
  # statistics, and has no dropout, as the official code; from scratch that
  # stays near chance. "train"; "auto": frozen if model.init is a checkpoint,
  # else train.
  section.batch_norm = "auto"
  # The new head: "mlp", one hidden layer, or "linear".
  section.head = "mlp"
  # Units of the hidden layer.
  section.head_width = 512
  # What gives M_u's logits for the classes of M_p: "checkpoint", M_p's own
  # head, frozen, for a network of its structure; "trainable" or "frozen", a
  # random one (the paper does not say which where M_u is another network);
  # "auto": checkpoint if M_u begins from M_p's weights, else trainable.
  section.old_head = "auto"
  # Learning rate of the backbone, in units of optimizer.learning_rate; -1: the
  # official 0.1 if model.init is a checkpoint, else 1.
  section.backbone_rate = -1.0
  return section


def _csg() -> ConfigDict:
  section = ConfigDict()
  # Weight of the contrastive loss, of each layer.
  section.weight = 0.1
  # Stages compared, such as "('stage2', 'stage3')"; (): the last two, as the
  # official code.
  section.layers = ()
  # How their maps become vectors: "attention" (A-Pool) or "average".
  section.pooling = "attention"
  # Length of the compared vectors.
  section.dimension = 128
  # Divides their products.
  section.temperature = 0.07
  # Keys in the queue, at least batch_size; -1: 65,536, the official number, but
  # no more than there are synthetic images, since older keys are of the same
  # images.
  section.queue_size = -1
  # Of the average that the key network's heads are.
  section.momentum = 0.999
  # 2: key and query are different augmentations of an image; 1: the same.
  section.views = 2
  # As asg.batch_norm.
  section.batch_norm = "auto"
  # As asg.head.
  section.head = "mlp"
  # Units of its hidden layer.
  section.head_width = 512
  # As asg.backbone_rate.
  section.backbone_rate = -1.0
  return section


def _dann() -> ConfigDict:
  section = ConfigDict()
  # Cross entropy on "both" domains (the supervised form; the paper's accuracies
  # say so, its text does not) or on the "source", the synthetic images.
  section.labels = "both"
  # Largest factor of the reversed gradient, lambda.
  section.domain_weight = 1.0
  # How lambda rises: "progress": 2 / (1 + exp(-10 p)) - 1 over the training, as
  # published; "steps": the same of step / 10,000; "constant".
  section.schedule = "progress"
  # Of the two domains' losses: "mean" or "sum".
  section.reduction = "mean"
  # Batch statistics of both domains together, "joint", or "separate".
  section.batch_norm = "joint"
  # Units of the discriminator's hidden layers.
  section.hidden = (1024, 1024)
  # Dropout behind each of them.
  section.dropout = 0.5
  # Learning rate of the backbone, in units of optimizer.learning_rate, which
  # head and discriminator have; -1: the official 0.1 if model.init is a
  # checkpoint, else 1.
  section.backbone_rate = -1.0
  return section


def _adda() -> ConfigDict:
  section = ConfigDict()
  # What the discriminator sees: "logits", as in the official code, or
  # "embedding".
  section.features = "logits"
  # Inverted labels on "both" halves, as the official code (half the gradient),
  # or on the "target".
  section.mapping_loss = "both"
  # "simultaneous", or the discriminator first: "alternating".
  section.updates = "simultaneous"
  # Units of the discriminator's hidden layers.
  section.hidden = (500, 500)
  # "leaky_relu" or "relu".
  section.activation = "leaky_relu"
  # Half the squared norm of its weights is added with this factor, which the
  # official code declares, minimising a loss without it. optimizer.weight_decay
  # is added to that.
  section.discriminator_decay = 2.5e-5
  # Learning rate of the network in the second stage, in units of that stage's.
  section.encoder_rate = 1.0
  # Of its head; the official code, whose discriminator sees what the last layer
  # makes, adapts it too.
  section.head_rate = 0.0
  # Of the discriminator, likewise.
  section.discriminator_rate = 1.0
  return section


def _dada() -> ConfigDict:
  section = ConfigDict()
  # Whether target images are compared with every class (the published form) or
  # with the domain as a whole.
  section.discriminative = True
  # Largest weight of the adversarial losses, lambda; with 0 only the entropy is
  # left.
  section.weight = 1.0
  # "progress": lambda rises as 2 / (1 + exp(-10 p)) - 1; "constant".
  section.schedule = "progress"
  return section


def _ltda() -> ConfigDict:
  section = ConfigDict()
  # What the second stage trains on: "synthetic", "real" or "mixed"; the paper
  # does not say. The development images are always real, also if these are.
  section.train_on = "synthetic"
  # Development images a step, of all classes alike; 0: as many as trained on.
  section.dev_batch_size = 0
  # Of the class weights (1 - beta) / (1 - beta^n), n being a class's images.
  section.beta = 0.9999
  # Step of the example weights, tau.
  section.example_rate = 0.01
  # Step of the virtual update, plain gradient descent whatever the optimizer;
  # 0: the learning rate of the moment, as the official code, whose SGD has 0.1.
  # With adam's 1e-4 the example weights hardly change.
  section.inner_rate = 0.0
  # Of the losses in the virtual update: "sum", as the official code, or "mean",
  # which makes it as many times smaller as there are images.
  section.inner_reduction = "sum"
  return section
